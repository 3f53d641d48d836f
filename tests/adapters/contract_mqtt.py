"""Benches of mqtt, against a small MQTT 5 broker in this process, and of mqtt_broker, against clients byte by byte."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from adapters import mqtt, mqtt_broker
from adapters._mqtt_packets import Outgoing, Packets, Writer, read_publish
from gateway import Message, Sink, Source, Template, TopicTemplate
from gateway.testing import SinkBench, SourceBench
from tests.adapters.contract_streams import Calling
from tests.ports import free_port

WINDOW = 16
TOPIC = b"plant/1"


class Broker:
    """One session: what was published to it and by it, across connections."""

    writer = Writer(5)

    def __init__(self) -> None:
        self.port = free_port()
        self.waiting: deque[tuple[bytes, dict[str, str]]] = deque()
        self.unacknowledged: dict[int, tuple[bytes, dict[str, str]]] = {}
        self.acknowledged: list[bytes] = []
        self.published: list[tuple[bytes, dict[str, str]]] = []
        self.holding = False
        self._held: list[bytes] = []
        self._next_id = 0
        self._consumer: asyncio.StreamWriter | None = None
        self._open: dict[asyncio.StreamWriter, asyncio.Task[Any] | None] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._consumer = None
        self._held.clear()
        tasks = [task for task in self._open.values() if task is not None]
        for writer in list(self._open):
            writer.transport.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def publish(self, body: bytes, headers: dict[str, str]) -> None:
        self.waiting.append((body, headers))
        self._pump()

    def release(self) -> None:
        self.holding = False
        for writer in self._open:
            if not writer.is_closing():
                writer.writelines(self._held)
        self._held.clear()

    def _pump(self) -> None:
        while self._consumer is not None and self.waiting and len(self.unacknowledged) < WINDOW:
            self._next_id = self._next_id % 65_535 + 1
            self.unacknowledged[self._next_id] = self.waiting.popleft()
            self._deliver(self._next_id, again=False)

    def _deliver(self, packet_id: int, *, again: bool) -> None:
        assert self._consumer is not None
        body, headers = self.unacknowledged[packet_id]
        outgoing = Outgoing(
            TOPIC, body, 1, False, {"user_property": list(headers.items())} if headers else {}, dup=again
        )
        self._consumer.write(self.writer.publish(packet_id, outgoing))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = asyncio.current_task()
        packets = Packets()
        try:
            while data := await reader.read(65_536):
                for first, body in packets.feed(data):
                    self._hear(first, body, writer)
                await writer.drain()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            del self._open[writer]
            if self._consumer is writer:
                self._consumer = None
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    def _hear(self, first: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        match first & 0xF0:
            case 0x10:
                writer.write(b"\x20\x03\x01\x00\x00")
            case 0x80:
                writer.write(b"\x90\x04" + body[:2] + b"\x00\x01")
                self._consumer = writer
                for packet_id in self.unacknowledged:
                    self._deliver(packet_id, again=True)
                self._pump()
            case 0xA0:
                writer.write(b"\xb0\x04" + body[:2] + b"\x00\x00")
            case 0xC0:
                writer.write(b"\xd0\x00")
            case 0x30:
                publish = read_publish(first, body, 5)
                self.published.append((publish.body, dict(publish.properties.get("user_property", ()))))
                ack = b"\x40\x02" + publish.packet_id.to_bytes(2, "big")
                if self.holding:
                    self._held.append(ack)
                else:
                    writer.write(ack)
            case 0x40:
                self.acknowledged.append(self.unacknowledged.pop(int.from_bytes(body[:2], "big"))[0])
                self._pump()


def connection(port: int) -> mqtt.Connection:
    return mqtt.Connection(url=f"mqtt://127.0.0.1:{port}", client_id="gateway", receive_maximum=WINDOW)


class MqttSource(SourceBench):
    """mqtt, QoS 1."""

    acknowledges = True
    connects = True
    headers = True

    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        await self.broker.start()
        try:
            yield self
        finally:
            await self.broker.stop()

    def source(self) -> Source:
        return mqtt.Source(connection=connection(self.broker.port), topic="plant/#")

    async def send(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.broker.publish(body, headers or {})
        await asyncio.sleep(0)

    async def send_again(self) -> None:
        """The broker does, after each loss."""

    def accepted(self) -> list[bytes]:
        return list(self.broker.acknowledged)

    async def lose(self) -> None:
        await self.broker.stop()

    async def come_back(self) -> None:
        await self.broker.start()


class MqttSink(SinkBench):
    """mqtt, QoS 1."""

    confirms = True
    connects = True
    headers = True
    stable_ids = True
    refuses = True

    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        await self.broker.start()
        try:
            yield self
        finally:
            await self.broker.stop()

    def sink(self) -> Sink:
        return mqtt.Sink(
            connection=connection(self.broker.port),
            topic=TopicTemplate("plant/{{ headers['x-line'] | default('1') }}"),
            headers={"x-check": Template("{{ headers['x-check'] | default('none') }}")},
        )

    def received(self) -> list[bytes]:
        return [body for body, _ in self.broker.published]

    def received_headers(self) -> dict[str, str]:
        return self.broker.published[-1][1]

    def ids(self) -> list[str]:
        return [headers["id"] for _, headers in self.broker.published]

    def hold(self) -> None:
        self.broker.holding = True

    def release(self) -> None:
        self.broker.release()

    def uncarried(self) -> Message:
        return self.message(b"{}", {"x-line": "a/#"})

    async def lose(self) -> None:
        await self.broker.stop()

    async def come_back(self) -> None:
        await self.broker.start()


class BrokerSource(Calling):
    """mqtt_broker: a client that publishes with QoS 1."""

    writer = Writer("3.1.1")
    window = 64  # of one client; the gate of the route bounds those of all
    pushes_back = False  # one client has 64 messages under way at most, which fit into the system's buffers

    def __init__(self) -> None:
        super().__init__()
        self._numbers = iter(range(1, 65_536))
        self._greeted: Any = None

    def source(self) -> Source:
        return mqtt_broker.Source(connection=embedded(self.port))

    def frame(self, body: bytes, headers: dict[str, str]) -> bytes:
        publish = Outgoing(TOPIC, body, 1, retain=False, properties={})
        said: bytes = self.writer.publish(next(self._numbers), publish)
        if self.peer is not self._greeted:
            self._greeted = self.peer
            login = self.writer.connect("device", None, None, clean=False, keep_alive_s=60, will=None, properties={})
            return login + said
        return said

    async def answer(self, reader: asyncio.StreamReader) -> bool:
        while (await reader.readexactly(4))[0] != 0x40:
            pass
        return True


def embedded(port: int) -> mqtt_broker.Connection:
    return mqtt_broker.Connection.model_validate({"listen": f"127.0.0.1:{port}"})


class BrokerSink(SinkBench):
    """mqtt_broker: a client that is subscribed with QoS 1."""

    has_peer = False
    refuses = True
    writer = Writer("3.1.1")

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        self.bodies_seen: list[bytes] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        async with self.host.share(embedded(self.port)):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(
                self.writer.connect("device", None, None, clean=True, keep_alive_s=60, will=None, properties={})
            )
            writer.write(self.writer.subscribe(1, "plant/#", 1, None))
            subscribed = asyncio.Event()
            reading = asyncio.create_task(self._read(reader, writer, subscribed))
            await subscribed.wait()
            try:
                yield self
            finally:
                reading.cancel()
                writer.close()
                await asyncio.gather(reading, writer.wait_closed(), return_exceptions=True)

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, subscribed: asyncio.Event
    ) -> None:
        packets = Packets()
        while data := await reader.read(65_536):
            for first, body in packets.feed(data):
                if first & 0xF0 == 0x90:
                    subscribed.set()
                elif first & 0xF0 == 0x30:
                    publish = read_publish(first, body, "3.1.1")
                    self.bodies_seen.append(publish.body)
                    writer.write(b"\x40\x02" + publish.packet_id.to_bytes(2, "big"))

    def sink(self) -> Sink:
        topic = TopicTemplate("plant/{{ headers['x-line'] | default('1') }}")
        return mqtt_broker.Sink(connection=embedded(self.port), topic=topic, qos=1)

    def received(self) -> list[bytes]:
        return list(self.bodies_seen)

    def uncarried(self) -> Message:
        return self.message(b"{}", {"x-line": "a/#"})


SOURCES: list[type[SourceBench]] = [MqttSource, BrokerSource]
SINKS: list[type[SinkBench]] = [MqttSink, BrokerSink]
