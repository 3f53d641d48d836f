"""A small AMQP 0-9-1 server in this process, written with pamqp: enough for a link, and to break the rules on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from decimal import Decimal

import pamqp.frame
from pamqp import commands as spec
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

_ANSWERS: dict[type[Frame], type[Frame]] = {
    spec.Channel.Open: spec.Channel.OpenOk,
    spec.Channel.Close: spec.Channel.CloseOk,
    spec.Confirm.Select: spec.Confirm.SelectOk,
    spec.Basic.Qos: spec.Basic.QosOk,
    spec.Exchange.Declare: spec.Exchange.DeclareOk,
    spec.Connection.Close: spec.Connection.CloseOk,
}


ALL = spec.Basic.Properties(
    content_type="application/json",
    content_encoding="identity",
    headers={
        "text": "ž",
        "bool": True,
        "int": 7,
        "negative": -300,
        "big": 2**40,
        "float": 1.5,
        "decimal": Decimal("12.34"),
        "moment": datetime(2026, 11, 21, tzinfo=UTC),
        "none": None,
        "bytes": bytearray(b"\x00\xff"),
        "list": [1, "x", {"deep": False}],
        "table": {"a": {"b": "c"}},
    },
    delivery_mode=2,
    priority=3,
    correlation_id="c",
    reply_to="r",
    expiration="1000",
    message_id="m",
    timestamp=datetime(2026, 11, 21, tzinfo=UTC),
    message_type="t",
    user_id="u",
    app_id="a",
)
"""A message's properties with one of each kind."""


class FakeBroker:
    """Confirms what is published, remembers what is settled, delivers what it is told to."""

    def __init__(self) -> None:
        self.published: list[tuple[spec.Basic.Publish, ContentHeader, bytes]] = []
        self.settled: list[Frame] = []
        self.seen: list[Frame] = []
        self.confirms = True
        self.silent_about: type[Frame] | None = None
        """What it does not answer."""
        self.consumed = asyncio.Event()
        self._tags: dict[int, int] = {}
        self._delivered = 0
        self._held: list[bytes] | None = None
        self._writer: asyncio.StreamWriter
        self._consumer: tuple[int, str] = (0, "")
        self._server: asyncio.Server

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"amqp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeBroker]:
        """Listens for as long as the context lasts."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        async with self._server:
            yield self

    def deliver(self, body: bytes, properties: spec.Basic.Properties | None = None, *, pieces: int = 1) -> None:
        """Hands a message to the consumer, its body in that many frames."""
        self._delivered += 1
        number, tag = self._consumer
        size = max(1, -(-len(body) // pieces))
        self.send(
            number,
            spec.Basic.Deliver(consumer_tag=tag, delivery_tag=self._delivered, exchange="x", routing_key="k"),
            ContentHeader(body_size=len(body), properties=properties or spec.Basic.Properties()),
            *(ContentBody(body[at : at + size]) for at in range(0, len(body), size)),
        )

    def send(self, number: int, *frames: Frame | ContentHeader | ContentBody | Heartbeat) -> None:
        """Sends frames on a channel."""
        self.send_raw(b"".join(pamqp.frame.marshal(frame, number) for frame in frames))

    def send_raw(self, data: bytes) -> None:
        """Sends these bytes; to who is gone already, nothing."""
        if self._held is not None:
            self._held.append(data)
        elif not self._writer.is_closing():
            self._writer.write(data)

    @contextmanager
    def holding(self, held: list[bytes]) -> Iterator[None]:
        """Collects what would be sent."""
        self._held = held
        try:
            yield
        finally:
            self._held = None

    @property
    def consumer_channel(self) -> int:
        """The channel that consumes."""
        return self._consumer[0]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        assert await reader.readexactly(8) == b"AMQP\0\0\x09\x01"
        self.send(
            0,
            spec.Connection.Start(server_properties={"capabilities": {"publisher_confirms": True, "basic.nack": True}}),
        )
        rest, at = b"", 0
        pending: tuple[spec.Basic.Publish, ContentHeader | None, bytes] | None = None
        while data := await reader.read(65_536):
            rest = rest[at:] + data
            at = 0
            while len(rest) - at >= 8 and len(rest) - at >= int.from_bytes(rest[at + 3 : at + 7], "big") + 8:
                used, number, frame = pamqp.frame.unmarshal(rest[at:])
                at += used
                match frame:
                    case spec.Basic.Publish():
                        pending = frame, None, b""
                    case ContentHeader():
                        assert pending is not None
                        pending = pending[0], frame, b""
                    case ContentBody():
                        assert pending is not None
                        pending = pending[0], pending[1], pending[2] + frame.value
                    case _:
                        self._answer(number, frame)
                if pending and pending[1] is not None and len(pending[2]) == pending[1].body_size:
                    self.published.append((pending[0], pending[1], pending[2]))
                    pending = None
                    self._confirm(number)
        writer.close()

    def _confirm(self, number: int) -> None:
        self._tags[number] = self._tags.get(number, 0) + 1
        if self.confirms:
            self.send(number, spec.Basic.Ack(delivery_tag=self._tags[number]))

    def _answer(self, number: int, frame: object) -> None:
        assert isinstance(frame, Frame | Heartbeat)
        if isinstance(frame, Heartbeat):
            return
        self.seen.append(frame)
        if type(frame) is self.silent_about:
            return
        match frame:
            case spec.Connection.StartOk():
                self.send(0, spec.Connection.Tune(channel_max=2047, frame_max=131_072, heartbeat=60))
            case spec.Connection.Open():
                self.send(0, spec.Connection.OpenOk())
            case spec.Queue.Declare():
                self.send(number, spec.Queue.DeclareOk(queue=frame.queue, message_count=0, consumer_count=0))
            case spec.Basic.Consume():
                self._consumer = number, frame.consumer_tag or "c"
                self.send(number, spec.Basic.ConsumeOk(consumer_tag=self._consumer[1]))
                self.consumed.set()
            case spec.Basic.Ack() | spec.Basic.Nack():
                self.settled.append(frame)
            case _:
                answer = _ANSWERS.get(type(frame))
                if answer is not None:
                    self.send(number, answer())
