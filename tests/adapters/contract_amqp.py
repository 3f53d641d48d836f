"""Benches of amqp, against the small AMQP server of the tests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from pamqp import commands as spec

from adapters import amqp
from gateway import Message, Sink, Source, Template
from gateway.testing import SinkBench, SourceBench
from tests.adapters.amqp_fake import FakeBroker
from tests.ports import free_port

FRAME = 131_000


class Broker(FakeBroker):
    """It keeps one queue and the unacknowledged messages across connections, and can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        self.queue: deque[tuple[bytes, dict[str, str]]] = deque()
        self.unacknowledged: dict[int, tuple[bytes, dict[str, str]]] = {}
        self.acknowledged: list[bytes] = []
        self._prefetch = 0
        self._consuming = False
        self._unconfirmed: list[tuple[int, int]] = []
        self._open: dict[asyncio.StreamWriter, asyncio.Task[Any] | None] = {}

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def stop(self) -> None:
        self._server.close()
        await self.hang_up()

    async def hang_up(self) -> None:
        tasks = [task for task in self._open.values() if task is not None]
        for writer in list(self._open):
            writer.transport.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def offer(self, body: bytes, headers: dict[str, str]) -> None:
        self.queue.append((body, headers))
        self._pump()

    def release(self) -> None:
        self.confirms = True
        for number, tag in self._unconfirmed:
            self.send(number, spec.Basic.Ack(delivery_tag=tag))
        self._unconfirmed.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = asyncio.current_task()
        self._tags.clear()
        self._unconfirmed.clear()
        try:
            await super()._connected(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            del self._open[writer]
            self._consuming = False
            self.queue.extendleft(reversed(self.unacknowledged.values()))
            self.unacknowledged.clear()
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    def _pump(self) -> None:
        while self._consuming and self.queue and len(self.unacknowledged) < self._prefetch:
            body, headers = self.queue.popleft()
            properties = spec.Basic.Properties(headers=dict(headers))
            self.deliver(body, properties, pieces=len(body) // FRAME + 1)
            self.unacknowledged[self._delivered] = body, headers

    def _confirm(self, number: int) -> None:
        confirms, self.confirms = self.confirms, False
        super()._confirm(number)
        self.confirms = confirms
        if confirms:
            self.send(number, spec.Basic.Ack(delivery_tag=self._tags[number]))
        else:
            self._unconfirmed.append((number, self._tags[number]))

    def _answer(self, number: int, frame: object) -> None:
        super()._answer(number, frame)
        match frame:
            case spec.Basic.Qos():
                self._prefetch = frame.prefetch_count or 0
            case spec.Basic.Consume():
                self._consuming = True
            case spec.Basic.Ack():
                for tag in self._settled(frame.delivery_tag, multiple=frame.multiple):
                    self.acknowledged.append(self.unacknowledged.pop(tag)[0])
            case spec.Basic.Nack():
                for tag in self._settled(frame.delivery_tag, multiple=frame.multiple):
                    self.queue.appendleft(self.unacknowledged.pop(tag))
        self._pump()

    def _settled(self, tag: int, *, multiple: bool) -> list[int]:
        return [each for each in self.unacknowledged if each <= tag] if multiple else [tag]


class AmqpSource(SourceBench):
    """amqp."""

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
        connection = amqp.Connection(url=f"amqp://127.0.0.1:{self.broker.port}")
        return amqp.Source(connection=connection, queue="orders", prefetch=8)

    async def send(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.broker.offer(body, headers or {})
        await asyncio.sleep(0)

    async def send_again(self) -> None:
        """The broker does, after each loss."""

    def accepted(self) -> list[bytes]:
        return list(self.broker.acknowledged)

    async def lose(self) -> None:
        await self.broker.stop()

    async def come_back(self) -> None:
        await self.broker.start()


class AmqpSink(SinkBench):
    """amqp, with confirms."""

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
        return amqp.Sink(
            connection=amqp.Connection(url=f"amqp://127.0.0.1:{self.broker.port}"),
            routing_key=Template("{{ headers['x-key'] | default('orders') }}"),
            headers={"x-check": Template("{{ headers['x-check'] | default('none') }}")},
        )

    def received(self) -> list[bytes]:
        return [body for _, _, body in self.broker.published]

    def received_headers(self) -> dict[str, str]:
        headers = self.broker.published[-1][1].properties.headers or {}
        return {name: str(value) for name, value in headers.items()}

    def ids(self) -> list[str]:
        return [header.properties.message_id or "" for _, header, _ in self.broker.published]

    def hold(self) -> None:
        self.broker.confirms = False

    def release(self) -> None:
        self.broker.release()

    def uncarried(self) -> Message:
        return self.message(b"{}", {"x-key": "k" * 256})

    async def lose(self) -> None:
        await self.broker.stop()

    async def come_back(self) -> None:
        await self.broker.start()


SOURCES: list[type[SourceBench]] = [AmqpSource]
SINKS: list[type[SinkBench]] = [AmqpSink]
