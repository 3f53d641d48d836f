"""amqtt's broker, hardened: what its version 0.12.1 gets wrong is done here. It speaks MQTT 3.1.1.

Identity comes before any session is looked up; a client id belongs to the user who used it first; an acknowledgement
follows the outcome of the route; outgoing QoS is the lower of the two; whatever waits is bounded; nothing is given up
after a fixed five seconds. Sessions and retained messages live in memory: it is never the durable hop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from amqtt.broker import Broker
from amqtt.contexts import BrokerConfig, ListenerConfig, ListenerType
from amqtt.errors import AMQTTError, MQTTError, NoDataError
from amqtt.mqtt.connack import ConnackPacket
from amqtt.session import Session
from amqtt.utils import gen_client_id
from msgspec import Struct

from adapters._admission import Admission
from adapters._broker_client import IN_FLIGHT, Handler, Published, Queued, filters_of, outbox_of
from adapters._broker_door import SUBSCRIPTIONS, Connect, Reader, Users, Window, Writer
from adapters._mqtt_arrivals import PATIENCE_S, matches
from adapters._mqtt_packets import PacketError
from gateway import Host, Limits

log = logging.getLogger("gateway.mqtt_broker")
for _library in ("amqtt", "transitions"):  # a line for each packet and each change of state
    logging.getLogger(_library).setLevel(logging.WARNING)

SESSIONS, RETAINED, RETAINED_BYTES = 10_000, 10_000, 64 * 1024**2
STARTING_S = 1.0
"""How long, after the start, a message waits for a route that takes it."""
_WRONG_LEVEL, _REFUSED_ID, _UNAVAILABLE, _NOT_AUTHORISED = 1, 2, 3, 5
_WILL_S = 5.0
_LEAVING_S = 10.0


class Taker:
    """A route: topic filters and what takes the messages. `take` says whether it could."""

    def __init__(self, topics: tuple[str, ...], take: Callable[[Published], Awaitable[bool]]) -> None:
        self._filters = [topic.split("/") for topic in topics]
        self.take = take

    def wants(self, topic: str) -> bool:
        """Whether one of its filters matches."""
        return any(matches(levels, topic) for levels in self._filters)


class _Retained(Struct):
    topic: str
    data: bytes
    qos: int


class EmbeddedBroker(Broker):  # type: ignore[misc]
    """The broker behind one address. `publish` reaches its clients, `taking` gives what they publish to a route."""

    def __init__(self, host: Host, passwords: dict[str, str] | None, session_expiry_s: float) -> None:
        listener = ListenerConfig(type=ListenerType.EXTERNAL)
        expiry_s = int(session_expiry_s)
        super().__init__(BrokerConfig(listeners={"default": listener}, plugins={}, session_expiry_interval=expiry_s))
        self._limits: Limits = host.limits
        self._dropped = host.dropped
        self._users = None if passwords is None else Users(passwords, host.clock)
        self._admission = Admission(host.limits, host.clock)
        self._takers: list[Taker] = []
        self._departed: list[tuple[Taker, float]] = []
        self._changed = asyncio.Event()
        self._started_s = self._loop.time()
        self._gone: dict[str, asyncio.Event] = {}
        self._retained_bytes = 0

    # Routes

    @asynccontextmanager
    async def taking(
        self, topics: tuple[str, ...], take: Callable[[Published], Awaitable[bool]]
    ) -> AsyncIterator[None]:
        """Gives what clients publish to these topics to `take`, for as long as the context lasts.

        `take` returns once the route has settled the message; then its client is acknowledged. False: it could not.
        """
        taker = Taker(topics, take)
        self._takers.append(taker)
        self._changed.set()
        try:
            yield
        finally:
            self._takers.remove(taker)
            until_s = self._loop.time() + PATIENCE_S
            self._departed = [(other, at_s) for other, at_s in self._departed if at_s > self._loop.time()]
            self._departed.append((taker, until_s))

    async def published(self, message: Published) -> None:
        """A client published: tells the other clients, and returns once all routes that want it settled it."""
        self.publish(message.topic, message.body, message.qos, retain=message.retain)
        asked: set[Taker] = set()
        owed: int | None = None  # how many routes have not settled it; None: none wanted it yet
        while True:
            wanting = [taker for taker in self._takers if taker not in asked and taker.wants(message.topic)]
            if owed is None and wanting:
                owed = len(wanting)
            for taker in wanting:
                asked.add(taker)
                # who comes later gets it in the place of one that left, not beside one that has it
                if owed and await taker.take(message):
                    owed -= 1
            if owed == 0:
                return
            if not wanting and not await self._another(message.topic):
                return

    async def _another(self, topic: str) -> bool:
        """Whether the routes changed while there was reason to hope for one that wants this topic."""
        hopes = [until_s for taker, until_s in self._departed if taker.wants(topic)]
        until_s = max([self._started_s + STARTING_S, *hopes])
        if self._loop.time() >= until_s:
            return False
        self._changed.clear()
        try:
            async with asyncio.timeout_at(until_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def publish(self, topic: str, body: bytes, qos: int, *, retain: bool) -> None:
        """Hands a message to all clients that are subscribed to its topic. Never waits."""
        if retain:
            self._retain(topic, body, qos)
        told: dict[str, tuple[Session, int]] = {}
        for topic_filter, subscriptions in self._subscriptions.items():
            if matches(topic_filter.split("/"), topic):
                for session, granted in subscriptions:
                    known = told.get(session.client_id or "")
                    told[session.client_id or ""] = (session, granted if known is None else max(granted, known[1]))
        for session, granted in told.values():
            self._queue(session, Queued(topic, body, min(qos, granted), retain=False))

    def _queue(self, session: Session, message: Queued) -> None:
        if session.transitions.state != "connected" and (session.clean_session or not message.qos):
            return
        if not outbox_of(session).put(message):
            self._dropped(1, "full")

    def _retain(self, topic: str, body: bytes, qos: int) -> None:
        old = self._retained_messages.pop(topic, None)
        if old is not None:
            self._retained_bytes -= len(topic) + len(old.data)
        if not body:
            return
        size = len(topic) + len(body)
        if len(self._retained_messages) >= RETAINED or self._retained_bytes + size > RETAINED_BYTES:
            self._dropped(1, "retained full")
            return
        self._retained_bytes += size
        self._retained_messages[topic] = _Retained(topic, body, qos)

    # Clients

    async def serve(self, stream: asyncio.StreamReader, writing: asyncio.StreamWriter) -> None:
        """Serves one connection to its end. Raises nothing but CancelledError."""
        writer = Writer(writing, self._limits)
        address, port = writer.get_peer_info() or ("", 0)
        if not self._admission.admit(address):
            await writer.close()
            return
        window = Window(IN_FLIGHT)
        reader = Reader(stream, writer, self._limits, window)
        try:
            await self._serve(reader, writer, window, address, f"{address}:{port}")
        except PacketError as error:
            reader.broken = str(error)
        except (AMQTTError, MQTTError, NoDataError, OSError) as error:
            reader.broken = reader.broken or str(error)
        except Exception:
            log.exception("connection failed", extra={"peer": address})
        finally:
            self._admission.leave(address)
            if reader.broken:
                log.info("connection ended", extra={"peer": address, "reason": reader.broken})
            await writer.close()

    async def _serve(self, reader: Reader, writer: Writer, window: Window, address: str, peer: str) -> None:
        connect = await reader.connect()
        refused = self._refused(connect, address)
        if refused:
            await ConnackPacket.build(0, refused).to_stream(writer)
            raise PacketError(f"login refused with code {refused}")
        client_id = connect.client_id or gen_client_id()
        await self._take_over(client_id)
        session = self._session(client_id, connect)
        gone = self._gone[client_id] = asyncio.Event()
        handler = Handler(self.plugins_manager, self.published, window, peer)
        handler.attach(session, reader, writer)
        session.transitions.connect()
        self._sessions[client_id] = (session, handler)
        sender: asyncio.Task[None] | None = None
        try:
            await handler.mqtt_connack_authorize(authorize=True)
            await handler.start()
            sender = asyncio.create_task(self._send(session, handler), name="mqtt-broker-sender")
            await self._client_message_loop(session, handler)
        finally:
            await self._ended(session, handler, sender)
            gone.set()
            if self._gone.get(client_id) is gone:
                del self._gone[client_id]

    def _refused(self, connect: Connect, address: str) -> int:
        """The code to refuse a login with; 0: it is welcome. Looks at sessions only once it knows who this is."""
        if connect.level != 4:
            return _WRONG_LEVEL
        if self._users is not None and not self._users.knows(connect.username, connect.password, address):
            return _NOT_AUTHORISED
        if not connect.client_id and not connect.clean:
            return _REFUSED_ID
        known = self._sessions.get(connect.client_id)
        if known is not None and known[0].username != connect.username:
            return _REFUSED_ID
        return _UNAVAILABLE if known is None and len(self._sessions) >= SESSIONS else 0

    async def _take_over(self, client_id: str) -> None:
        """Ends the connection that has this client id, if there is one. [MQTT-3.1.4-2]"""
        while client_id in self._gone:
            gone = self._gone[client_id]
            _, handler = self._sessions[client_id]
            await handler.handle_connection_closed()
            try:
                async with asyncio.timeout(_LEAVING_S):
                    await gone.wait()
            except TimeoutError:
                raise PacketError("the earlier connection of this client id does not end") from None

    def _session(self, client_id: str, connect: Connect) -> Session:
        known = self._sessions.get(client_id)
        if known is not None and not connect.clean:
            session, session.parent = known[0], 1
        else:
            if known is not None:
                self._forget(known[0])
            session = Session()
            session.client_id = client_id
        session.clean_session = connect.clean
        session.username = connect.username
        session.keep_alive = 0  # the door watches it: amqtt would only write it to a log
        session.will_flag = connect.will_topic is not None
        session.will_topic = connect.will_topic
        session.will_message = connect.will_body
        session.will_qos = connect.will_qos
        session.will_retain = connect.will_retain
        session.inflight_in.clear()
        session.inflight_out.clear()
        return session

    async def _send(self, session: Session, handler: Handler) -> None:
        outbox = outbox_of(session)
        while True:
            message = await outbox.first()
            await handler.send(message)
            outbox.done()

    async def _ended(self, session: Session, handler: Handler, sender: asyncio.Task[None] | None) -> None:
        if sender is not None:
            sender.cancel()
            await asyncio.wait({sender})
        await handler.stop()
        if session.transitions.state == "connected":
            session.transitions.disconnect()
        if session.clean_session and self._sessions.get(session.client_id or "", (None,))[0] is session:
            self._forget(session)

    def _forget(self, session: Session) -> None:
        self._sessions.pop(session.client_id or "", None)
        self._unsubscribe(session)

    async def _del_all_subscriptions(self, session: Session) -> None:
        """A session expired, or the broker ends."""
        self._unsubscribe(session)

    def _unsubscribe(self, session: Session) -> None:
        for topic_filter in tuple(filters_of(session)):
            self._del_subscription(topic_filter, session)

    async def _broadcast_message(
        self, session: Session | None, topic: str | None, data: bytes | bytearray | None, force_qos: int | None = None
    ) -> None:
        """A client vanished: its will goes the way of its messages."""
        assert session is not None
        will = Published(
            topic or "",
            bytes(data or b""),
            force_qos or 0,
            bool(session.will_retain),
            redelivered=False,
            client_id=session.client_id or "",
            username=session.username,
            peer="",
        )
        try:
            async with asyncio.timeout(_WILL_S):
                await self.published(will)
        except TimeoutError:
            self._dropped(1, "will")

    async def retain_message(
        self,
        source_session: Session | None,
        topic_name: str | None,
        data: bytes | bytearray | None,
        qos: int | None = None,
    ) -> None:
        """Nothing: what is to be retained is when it is published."""

    async def add_subscription(self, subscription: tuple[str, int], session: Session) -> int:
        """The QoS that is granted, or 0x80: refused. A shared subscription is refused, which amqtt takes literally."""
        topic_filter, _ = subscription
        filters = filters_of(session)
        if topic_filter.startswith("$share/") or (topic_filter not in filters and len(filters) >= SUBSCRIPTIONS):
            return 0x80
        self._del_subscription(topic_filter, session)  # amqtt keeps the QoS of the first time
        granted: int = await super().add_subscription(subscription, session)
        if granted != 0x80:
            filters.add(topic_filter)
        return granted

    def _del_subscription(self, a_filter: str, session: Session) -> int:
        """How many were removed. A filter that nobody has any more is forgotten: amqtt keeps it for ever."""
        filters_of(session).discard(a_filter)
        deleted: int = super()._del_subscription(a_filter, session)
        if not self._subscriptions.get(a_filter, True):
            del self._subscriptions[a_filter]
        return deleted

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        await asyncio.sleep(0)  # the filters of one SUBSCRIBE are many, and so is what is retained
        topic_filter, qos = subscription
        levels = topic_filter.split("/")
        for topic, retained in self._retained_messages.items():
            if matches(levels, topic):
                self._queue(session, Queued(topic, bytes(retained.data), min(qos, retained.qos or 0), retain=True))
