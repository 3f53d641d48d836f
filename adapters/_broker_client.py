"""One client of the embedded broker: what it sends, in the order of receipt, and what waits for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from amqtt.errors import ProtocolHandlerError
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.mqtt.puback import PubackPacket
from amqtt.mqtt.pubcomp import PubcompPacket
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.pubrec import PubrecPacket
from amqtt.mqtt.pubrel import PubrelPacket
from amqtt.session import INCOMING, OutgoingApplicationMessage, Session
from msgspec import Struct

from adapters._broker_door import Window

IN_FLIGHT = 64
"""Messages of one client that are in the hands of a route; then nothing more is read from it."""
QUEUED, QUEUED_BYTES = 1_000, 16 * 1024**2
"""Messages that wait for one client, connected or not; then new ones are dropped and counted."""
_OUTBOX = "gateway.outbox"
_FILTERS = "gateway.filters"
_RELEASABLE = "gateway.releasable"


class Published(Struct, gc=False):
    """A message that a client published."""

    topic: str
    body: bytes
    qos: int
    retain: bool
    redelivered: bool
    client_id: str
    username: str | None
    peer: str


class Queued(Struct, gc=False):
    """A message on its way to a client."""

    topic: str
    body: bytes
    qos: int
    retain: bool

    @property
    def size(self) -> int:
        """Of what it holds, about as many bytes."""
        return len(self.topic) + len(self.body)


class Outbox:
    """What waits for one client, oldest first."""

    def __init__(self) -> None:
        self._queue: deque[Queued] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()

    def put(self, message: Queued) -> bool:
        """Whether there was room."""
        if len(self._queue) >= QUEUED or self._bytes + message.size > QUEUED_BYTES:
            return False
        self._queue.append(message)
        self._bytes += message.size
        self._filled.set()
        return True

    async def first(self) -> Queued:
        """The oldest, which stays until `done`."""
        while not self._queue:
            self._filled.clear()
            await self._filled.wait()
        return self._queue[0]

    def done(self) -> None:
        """The oldest reached the client."""
        self._bytes -= self._queue.popleft().size


class Handler(BrokerProtocolHandler):  # type: ignore[misc]
    """One connection. Incoming messages go to the broker first and are acknowledged after, in the order of receipt."""

    def __init__(
        self, plugins: Any, published: Callable[[Published], Awaitable[None]], window: Window, peer: str
    ) -> None:
        super().__init__(plugins)
        self._hand_over = published
        self._window = window
        self._before: asyncio.Future[None] | None = None
        self._peer = peer
        self._publishing: set[asyncio.Task[None]] = set()

    async def handle_publish(self, publish_packet: PublishPacket) -> None:
        """Hands a message on, and acknowledges it once that is done and all before it are acknowledged."""
        before, done = self._before, asyncio.get_running_loop().create_future()
        self._before = done
        # Not in the task that amqtt made: as long as that is not done, it keeps all that it makes after it.
        task = asyncio.create_task(self._publish(publish_packet, before, done), name="mqtt-broker-publish")
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def stop(self) -> None:
        """Ends the connection; what is in the hands of a route stays there, and is not acknowledged any more."""
        for task in self._publishing:
            task.cancel()
        await super().stop()

    async def mqtt_acknowledge_subscription(self, packet_id: int, return_codes: list[int]) -> None:
        """Answers a SUBSCRIBE, of which no more are read than the window lets."""
        self._window.free()
        await super().mqtt_acknowledge_subscription(packet_id, return_codes)

    async def mqtt_acknowledge_unsubscription(self, packet_id: int) -> None:
        """Answers an UNSUBSCRIBE, likewise."""
        self._window.free()
        await super().mqtt_acknowledge_unsubscription(packet_id)

    async def _publish(
        self, publish_packet: PublishPacket, before: asyncio.Future[None] | None, done: asyncio.Future[None]
    ) -> None:
        try:
            if not self._is_repeated(publish_packet):
                await self._hand_over(self._published(publish_packet))
            if before is not None:
                await asyncio.shield(before)
            await self._acknowledge(publish_packet)
        except ProtocolHandlerError:
            pass  # cancelled while it wrote: the connection ends
        finally:
            self._window.free()
            if not done.done():
                done.set_result(None)

    def _published(self, packet: PublishPacket) -> Published:
        assert self.session is not None
        return Published(
            packet.topic_name or "",
            packet.data or b"",
            packet.qos or 0,
            packet.retain_flag,
            packet.dup_flag,
            self.session.client_id or "",
            self.session.username,
            self._peer,
        )

    @property
    def _releasable(self) -> set[int]:
        assert self.session is not None
        found: set[int] = self.session.attributes.setdefault(_RELEASABLE, set())
        return found

    def _is_repeated(self, packet: PublishPacket) -> bool:
        return packet.qos == 2 and packet.packet_id in self._releasable

    async def _acknowledge(self, packet: PublishPacket) -> None:
        if packet.qos == 1:
            await self._send_packet(PubackPacket.build(packet.packet_id))
        elif packet.qos == 2:
            if len(self._releasable) < 65_535:
                self._releasable.add(packet.packet_id or 0)
            await self._send_packet(PubrecPacket.build(packet.packet_id))

    async def handle_pubrel(self, pubrel: PubrelPacket) -> None:
        """Ends a QoS 2 message: from now on its packet id means another."""
        self._releasable.discard(pubrel.packet_id)
        await self._send_packet(PubcompPacket.build(pubrel.packet_id))

    async def send(self, message: Queued) -> None:
        """Returns once the client acknowledged it, however long that takes; for QoS 0 once it was written."""
        await self.mqtt_publish(message.topic, message.body, message.qos, message.retain)

    async def handle_puback(self, puback: PubackPacket) -> None:
        """The client has a message. amqtt writes a line to the log for each that is of none."""
        _answer(self._puback_waiters, puback)

    async def handle_pubrec(self, pubrec: PubrecPacket) -> None:
        """The client has a message of QoS 2."""
        _answer(self._pubrec_waiters, pubrec)

    async def handle_pubcomp(self, pubcomp: PubcompPacket) -> None:
        """The client is done with a message of QoS 2."""
        _answer(self._pubcomp_waiters, pubcomp)

    async def _handle_qos1_message_flow(self, app_message: Any) -> None:
        assert app_message.direction != INCOMING
        await self._sent(app_message, self._puback_waiters)

    async def _handle_qos2_message_flow(self, app_message: Any) -> None:
        assert app_message.direction != INCOMING
        await self._sent(app_message, self._pubrec_waiters)
        await self._answered(PubrelPacket.build(app_message.packet_id), app_message.packet_id, self._pubcomp_waiters)

    async def _sent(self, message: OutgoingApplicationMessage, waiters: dict[int, asyncio.Future[Any]]) -> None:
        await self._answered(message.build_publish_packet(), message.packet_id or 0, waiters)

    async def _answered(self, packet: Any, packet_id: int, waiters: dict[int, asyncio.Future[Any]]) -> None:
        # Registered before it is written: amqtt does it after, and can miss the answer.
        waiters[packet_id] = asyncio.get_running_loop().create_future()
        try:
            await self._send_packet(packet)
            await waiters[packet_id]
        finally:
            del waiters[packet_id]


def _answer(waiters: dict[int, asyncio.Future[Any]], packet: Any) -> None:
    waiter = waiters.get(packet.packet_id)
    if waiter is not None and not waiter.done():
        waiter.set_result(packet)


def outbox_of(session: Session) -> Outbox:
    found: Outbox | None = session.attributes.get(_OUTBOX)
    if found is None:
        found = session.attributes[_OUTBOX] = Outbox()
    return found


def filters_of(session: Session) -> set[str]:
    """The topic filters that the session is subscribed to."""
    found: set[str] = session.attributes.setdefault(_FILTERS, set())
    return found
