"""One MQTT connection: login, keep-alive, publishes that wait for their acknowledgement, subscriptions."""

from __future__ import annotations

import asyncio
import logging
import math
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

from msgspec import Struct

from adapters import _mqtt_reasons as reasons
from adapters._mqtt_arrivals import PATIENCE_S, Arrival, Arrivals, Subscription
from adapters._mqtt_outbox import Outbox
from adapters._mqtt_packets import (
    CONNACK,
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    UNSUBACK,
    Answer,
    Outgoing,
    PacketError,
    Packets,
    Version,
    Will,
    Writer,
    odd_sign,
    read_answer,
    read_publish,
)
from adapters._sockets import dial, lost, prepare
from gateway import Address, ClientTls, MessageError, PeerError

log = logging.getLogger("gateway.mqtt")

_GOODBYE_S = 1.0
_FROM_BROKERS = {CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK, DISCONNECT}


class Login(Struct, frozen=True):
    """How to connect: what CONNECT says, and where to."""

    address: Address
    tls: ClientTls | None
    version: Version
    client_id: str
    username: str | None
    password: str | None
    clean: bool
    keep_alive_s: int
    will: Will | None
    properties: Mapping[str, Any]
    window: int
    handshake_s: float
    frame_s: float

    @property
    def peer(self) -> str:
        """How error texts name the broker."""
        return f"mqtt {self.address}"


class Link(asyncio.Protocol):
    """A connection that is logged in. Made by `connected`; methods raise PeerError once it is lost."""

    def __init__(self, login: Login, dropped: Callable[[int, str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._login = login
        self._peer = login.peer
        self._version = login.version
        self._writer = Writer(login.version)
        self._packets = Packets()
        self._count_dropped = dropped
        self._warned: set[str] = set()
        self._arrivals = Arrivals(self._writer, self.write, login.window, self._let_go)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._reading_paused = False
        self._subscribing = 0
        self._connack: asyncio.Future[Answer] = self._loop.create_future()
        self._granted: dict[str, int] = {}
        self._outbox = Outbox(self._peer, self.lose)
        self._keep_alive_s = float(login.keep_alive_s)
        self._heard_s = self._sent_s = self._loop.time()
        self._unfinished: tuple[int, float] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._error: PeerError | None = None
        self._lost_scope: asyncio.Timeout | None = None
        self._made = False
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self.broker: Mapping[str, Any] = {}
        """What the broker said of itself in its CONNACK (MQTT 5), by gmqtt's names."""

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends CONNECT."""
        self._transport = cast("asyncio.Transport", transport)
        self._made = True
        prepare(transport)
        login = self._login
        self.write(
            self._writer.connect(
                login.client_id,
                login.username,
                login.password,
                clean=login.clean,
                keep_alive_s=login.keep_alive_s,
                will=login.will,
                properties=login.properties if login.version == 5 else {},
            )
        )

    def data_received(self, data: bytes) -> None:
        """Reads packets."""
        self._heard_s = self._loop.time()
        try:
            for first, body in self._packets.feed(data):
                if first & 0xF0 == PUBLISH:
                    self._arrivals.take(read_publish(first, body, self._version))
                else:
                    self._take(first, body)
        except PacketError as error:
            self.lose(PeerError(f"{self._peer}: the broker does not keep to MQTT: {error}", reconnect=True))
        if self._has_enough and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()
            held = f"{self._arrivals.held_bytes} bytes of its messages wait for their routes"
            self._outbox.unread = f"; nothing more is read from it while {held}"

    def connection_lost(self, error: Exception | None) -> None:
        """The broker is gone."""
        self.lose(lost(self._peer, error))
        if not self._gone.done():
            self._gone.set_result(None)

    def pause_writing(self) -> None:
        """The broker reads slower than we write: publishes wait."""
        self._outbox.paused = True

    def resume_writing(self) -> None:
        """The broker catches up."""
        self._outbox.paused = False
        self._outbox.admit()

    # Life

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Link]:
        """Logs in, and ends with a PeerError when the link is lost; says goodbye otherwise."""
        scope = asyncio.timeout(None)
        try:
            self._logged_in(await self._connected())
            async with scope:
                self._lost_scope = scope
                if self._error is not None:
                    raise self._error
                yield self
        except TimeoutError:
            if not scope.expired():
                raise
        finally:
            self._lost_scope = None
            self._close()
            if self._made:
                await asyncio.wait({self._gone}, timeout=_GOODBYE_S)
        if scope.expired() and self._error is not None:
            raise self._error

    async def _connected(self) -> Answer:
        login = self._login
        await dial(lambda: self, login.address, login.tls, timeout_s=login.handshake_s, who=self._peer)
        try:
            async with asyncio.timeout(login.handshake_s):
                return await self._connack
        except TimeoutError:
            text = f"{self._peer}: the broker did not answer the login within {login.handshake_s:g} s"
            raise PeerError(text, reconnect=True) from None

    def _logged_in(self, answer: Answer) -> None:
        if answer.code:
            raise reasons.connect_refused(self._peer, answer, self._version)
        self.broker = answer.properties
        self._outbox.window = min(self._outbox.window, self.broker.get("receive_maximum", self._outbox.window))
        self._keep_alive_s = float(self.broker.get("server_keep_alive", self._login.keep_alive_s))
        if self._keep_alive_s:
            self._after("keep-alive", self._keep_alive_s / 2, self._beat)
        self._expect_takers()

    def lose(self, error: PeerError) -> None:
        """Ends the link: all that waits for it hears this error."""
        if self._error is not None:
            return
        self._error = error
        if self._lost_scope is not None:
            self._lost_scope.reschedule(self._loop.time())
        if not self._connack.done():
            self._connack.set_exception(error)
            self._connack.exception()  # who connects may be gone: then nobody needs to hear it
        self._outbox.close(error)
        self._close()

    def _close(self) -> None:
        self._arrivals.closed = True
        for timer in self._timers.values():
            timer.cancel()
        transport, self._transport = self._transport, None
        if transport is None:
            return
        if self._error is None:
            self._error = PeerError(f"{self._peer}: the connection is closed", reconnect=True)
            self._outbox.close(self._error)  # who still sends would wait for an answer that can't come
            if not transport.is_closing():
                transport.write(b"".join(self._out) + self._writer.disconnect())
            transport.close()
        else:
            transport.abort()

    def _after(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = self._loop.call_later(seconds, call)

    def _beat(self) -> None:
        now_s = self._loop.time()
        if self._is_stuck(now_s):
            text = f"{self._peer}: the broker takes more than {self._login.frame_s:g} s for one packet"
            self.lose(PeerError(text, reconnect=True))
            return
        # While we do not read, for lack of room, silence says nothing of the broker.
        if now_s - self._heard_s > 1.5 * self._keep_alive_s and not self._reading_paused:
            silent = f"the broker said nothing for {now_s - self._heard_s:.1f} s, not even to a ping"
            self.lose(PeerError(f"{self._peer}: {silent}", reconnect=True))
            return
        if now_s - min(self._sent_s, self._heard_s) >= self._keep_alive_s / 2:
            self.write(PINGREQ)
        self._after("keep-alive", self._keep_alive_s / 2, self._beat)

    def _is_stuck(self, now_s: float) -> bool:
        """Whether one packet has been coming for too long, however steadily: each byte of it is a sign of life."""
        packets = self._packets
        if not packets.pending or self._reading_paused:
            self._unfinished = None
        elif self._unfinished is None or self._unfinished[0] != packets.count:
            self._unfinished = packets.count, now_s
        return self._unfinished is not None and now_s - self._unfinished[1] > self._login.frame_s

    # Out

    def write(self, packet: bytes) -> None:
        """Writes with all else that is written in this turn of the loop, in one go."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(packet)

    def _flush(self) -> None:
        out, self._out = self._out, []
        transport = self._transport
        if out and transport is not None and not transport.is_closing():
            transport.write(out[0] if len(out) == 1 else b"".join(out))
            self._sent_s = self._loop.time()
        self._read_on()

    @property
    def _has_enough(self) -> bool:
        # Before it answers SUBSCRIBE a broker may send what it kept, and more than was agreed: the answer lies behind.
        return self._arrivals.heavy if self._subscribing else self._arrivals.full

    def _read_on(self) -> None:
        if self._reading_paused and not self._has_enough and self._transport is not None:
            self._reading_paused = False
            self._outbox.unread = ""
            self._heard_s = self._loop.time()
            self._transport.resume_reading()

    async def publish(self, message: Outgoing, timeout_s: float) -> None:
        """Returns once the broker acknowledged it: PUBACK for QoS 1, PUBCOMP for QoS 2, nothing for QoS 0.

        timeout_s: how long to wait, both for room and for the answer. An answer that is late ends the link, since its
        packet id can't be used for another message before.

        Raises:
            MessageError: the broker refuses this message, or can't take one so large.
            PeerError: it did not take it now; `reconnect`: the link is lost.
        """
        deadline_s = self._loop.time() + timeout_s
        if self._outbox.busy:
            await self._outbox.room(deadline_s)
        packet_id = self._outbox.next_id() if message.qos else 0
        packet = self._written(packet_id, message)
        self.write(packet)
        if packet_id:
            answer = await self._outbox.sent(packet_id, deadline_s)
            if answer.code >= 0x80:
                raise reasons.publish_refused(self._peer, message.topic.decode(), answer)

    def _written(self, packet_id: int, message: Outgoing) -> bytes:
        try:
            packet = self._writer.publish(packet_id, message)
            odd = odd_sign(message)
        except (struct.error, UnicodeEncodeError) as error:
            raise MessageError(
                f"{self._peer}: the topic or a header can't be written as MQTT text of at most 65535 bytes of UTF-8"
            ) from error
        if odd is not None:
            raise MessageError(
                f"{self._peer}: the topic, content type or a header holds U+{ord(odd):04X}, for which a broker may end "
                "the link (MQTT 1.5.4); send it without control signs"
            )
        most = self.broker.get("maximum_packet_size")
        if most is not None and len(packet) > most:
            raise MessageError(
                f"{self._peer}: the message takes {len(packet)} bytes, the broker takes at most {most}",
                code="too_large",
            )
        return packet

    # In

    def _take(self, first: int, body: bytes) -> None:
        kind = first & 0xF0
        if kind == PINGRESP:
            return
        if kind not in _FROM_BROKERS or (kind == CONNACK and self._connack.done()):
            raise PacketError(f"a packet of type {first >> 4} came, which no broker may send here")
        answer = read_answer(first, body, self._version)
        if kind in {PUBACK, PUBCOMP, SUBACK, UNSUBACK} or (kind == PUBREC and answer.code >= 0x80):
            self._outbox.answered(answer)
        elif kind == PUBREC:
            self.write(self._writer.ack(PUBREL, answer.packet_id))
        elif kind == PUBREL:
            self._arrivals.release(answer.packet_id)
        elif kind == CONNACK:
            self._connack.set_result(answer)
        else:
            self.lose(reasons.disconnected(self._peer, answer))

    @asynccontextmanager
    async def subscription(self, topic_filter: str, qos: int, take: Callable[[Arrival], None]) -> AsyncIterator[None]:
        """Subscribed for as long as the context lasts; `take` is called with each message and must not wait.

        Leaving does not unsubscribe, so that the broker keeps what comes while we are away; a link that goes on
        without a taker for this filter does so after a while.

        Raises:
            PeerError: the broker refused it, or granted QoS 0 where more was asked.
        """
        subscription = Subscription(topic_filter, take)
        self._arrivals.join(subscription)
        self._expect_takers()
        try:
            self._subscribing += 1
            self._read_on()
            try:
                await self._subscribe(subscription, qos)
            finally:
                self._subscribing -= 1
            yield
        finally:
            self._arrivals.leave(subscription)
            self._expect_takers()

    async def _subscribe(self, subscription: Subscription, qos: int) -> None:
        with_identifier = self._version == 5 and self.broker.get("sub_id_available", 1)
        identifier = subscription.identifier if with_identifier else None
        topic_filter = subscription.topic_filter
        qos = max(qos, self._granted.get(topic_filter, 0))
        deadline_s = self._loop.time() + self._login.handshake_s
        if self._outbox.busy:
            await self._outbox.room(deadline_s)
        packet_id = self._outbox.next_id()
        # Before the answer: who leaves meanwhile may be subscribed all the same.
        self._granted.setdefault(topic_filter, 0)
        self.write(self._writer.subscribe(packet_id, topic_filter, qos, identifier))
        answer = await self._outbox.sent(packet_id, deadline_s)
        code = answer.codes[0] if answer.codes else 0x80
        if code >= 0x80:
            raise reasons.subscribe_refused(self._peer, topic_filter, answer, code)
        if qos and not code:
            raise PeerError(
                f"{self._peer}: the broker grants only QoS 0 for {topic_filter!r}, expected {qos}; say qos: 0 if "
                "messages may be lost"
            )
        self._granted[topic_filter] = qos

    def _expect_takers(self) -> None:
        if self._error is None:
            self._arrivals.waits_for_takers = True
            self._after("patience", PATIENCE_S, self._give_up)

    def _give_up(self) -> None:
        self._arrivals.stop_waiting()
        for topic_filter in set(self._granted) - self._arrivals.topic_filters:
            del self._granted[topic_filter]
            packet_id = self._outbox.next_id()
            self.write(self._writer.unsubscribe(packet_id, topic_filter))
            self._outbox.sent(packet_id, self._loop.time() + self._login.handshake_s)

    def _let_go(self, why: str, topic: str) -> None:
        self._count_dropped(1, why)
        if why not in self._warned:
            self._warned.add(why)
            log.warning("messages dropped", extra={"peer": self._peer, "reason": why, "topic": topic})


def whole_seconds(seconds: float) -> int:
    """Seconds as MQTT writes them: whole, never fewer than asked for."""
    return math.ceil(seconds)
