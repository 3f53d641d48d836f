"""WebSocket keeps the contract of `gateway.testing`, in each of its ways, against the package websockets."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from adapters.websocket import Sink, Source
from gateway import Message
from gateway.testing import SINK_CHECKS, SOURCE_CHECKS, Check, SinkBench, SourceBench, checks_for, until
from tests.ports import free_port

Connection = ClientConnection | ServerConnection


class Serving:
    """A server that can go and come back on its port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"ws://127.0.0.1:{self.port}/feed"
        self.connections: list[ServerConnection] = []
        self._server: Server | None = None

    async def come_back(self) -> None:
        self._server = await serve(self._serve, "127.0.0.1", self.port, max_size=None, ping_interval=None)

    async def _serve(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        with suppress(ConnectionClosed):
            async for said in connection:
                await self.heard(connection, said)
        if connection in self.connections:
            self.connections.remove(connection)

    async def heard(self, connection: Connection, said: str | bytes) -> None:
        raise NotImplementedError

    async def lose(self) -> None:
        if self._server is not None:
            for connection in tuple(self.connections):
                connection.transport.abort()
            self.connections.clear()
            self._server.close()
            await self._server.wait_closed()


class ConfirmedBench(SourceBench):
    """A peer that sends envelopes and waits to be told of each."""

    acknowledges = True
    pushes_back = True

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, bytes] = {}
        self.told: dict[str, bool] = {}

    def accepted(self) -> list[bytes]:
        return [self.sent[name] for name, good in self.told.items() if good]

    def refused(self) -> list[bytes]:
        return [self.sent[name] for name, good in self.told.items() if not good]

    async def heard(self, connection: Connection, said: str | bytes) -> None:
        verdict = json.loads(said)
        self.told[verdict.get("ack") or verdict.get("nack") or verdict["retry"]] = "ack" in verdict

    async def connection(self) -> Connection:
        raise NotImplementedError

    async def send(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        name = str(len(self.sent))
        self.sent[name] = body
        await self._put(name)

    async def send_again(self) -> None:
        for name in self.sent:
            if not self.told.get(name):
                await self._put(name)

    async def _put(self, name: str) -> None:
        connection = await self.connection()
        with suppress(ConnectionClosed):
            await connection.send(json.dumps({"id": name, "data_base64": b64encode(self.sent[name]).decode()}))


class ServerSource(ConfirmedBench):
    """The source listens."""

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        self._client: ClientConnection | None = None
        self._reading: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        try:
            yield self
        finally:
            await self.leave()

    def source(self) -> Source:
        return Source.model_validate({"listen": f"127.0.0.1:{self.port}", "path": "/in", "confirm": True})

    async def connection(self) -> Connection:
        while self._client is None or self._client.close_code is not None or self._client.protocol.state != 1:
            await self.leave()
            with suppress(OSError, InvalidHandshake, ConnectionClosed):
                self._client = await connect(
                    f"ws://127.0.0.1:{self.port}/in", proxy=None, ping_interval=None, close_timeout=0.1
                )
                self._reading = asyncio.create_task(self._read(self._client))
            await asyncio.sleep(0.001)
        return self._client

    async def _read(self, client: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            async for said in client:
                await self.heard(client, said)

    async def leave(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            assert self._reading is not None
            await client.close()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def lose(self) -> None:
        if self._client is not None:
            self._client.transport.abort()
        await self.leave()

    async def come_back(self) -> None:
        """It connects when it has something to send."""


class ClientSource(ConfirmedBench):
    """The source connects to a server."""

    connects = True

    def __init__(self) -> None:
        super().__init__()
        self.server = Serving()
        self.server.heard = self.heard  # type: ignore[method-assign]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        await self.come_back()
        try:
            yield self
        finally:
            await self.lose()

    def source(self) -> Source:
        return Source.model_validate({"url": self.server.url, "confirm": True})

    async def connection(self) -> Connection:
        await until(lambda: self.server.connections)
        return self.server.connections[-1]

    async def lose(self) -> None:
        await self.server.lose()

    async def come_back(self) -> None:
        await self.server.come_back()


class _ServerPeer(SinkBench):
    """A sink that connects to a server which keeps what it hears."""

    connects = True

    def __init__(self) -> None:
        super().__init__()
        self.server = Serving()
        self.server.heard = self.heard  # type: ignore[method-assign]
        self.bodies_heard: list[bytes] = []
        self.holding = False
        self.held: list[tuple[Connection, str]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        await self.come_back()
        try:
            yield self
        finally:
            await self.lose()

    async def heard(self, connection: Connection, said: str | bytes) -> None:
        self.bodies_heard.append(said if isinstance(said, bytes) else said.encode())
        await self.answer(connection, "OK")

    async def answer(self, connection: Connection, text: str) -> None:
        if self.holding:
            self.held.append((connection, text))
        else:
            with suppress(ConnectionClosed):
                await connection.send(text)

    def message(self, body: bytes, headers: dict[str, str] | None = None) -> Message:
        return Message(raw=body, formats=self.host.formats, content_type="text/plain")

    def received(self) -> list[bytes]:
        return self.bodies_heard

    def hold(self) -> None:
        self.holding = True

    def release(self) -> None:
        self.holding = False
        held, self.held = self.held, []
        self._releasing = [asyncio.ensure_future(self.answer(*one)) for one in held]

    async def lose(self) -> None:
        await self.server.lose()

    async def come_back(self) -> None:
        await self.server.come_back()


class ConfirmingSink(_ServerPeer):
    """Each message is acknowledged by its id."""

    confirms = True
    stable_ids = True
    refuses = True

    def __init__(self) -> None:
        super().__init__()
        self.ids_heard: list[str] = []

    def sink(self) -> Sink:
        return Sink.model_validate({"url": self.server.url, "confirm": True})

    async def heard(self, connection: Connection, said: str | bytes) -> None:
        envelope = json.loads(said)
        binary = envelope.get("data_base64")
        self.bodies_heard.append(envelope["data"].encode() if binary is None else b64decode(binary))
        self.ids_heard.append(envelope["id"])
        await self.answer(connection, json.dumps({"ack": envelope["id"]}))

    def ids(self) -> list[str]:
        return self.ids_heard

    def uncarried(self) -> Message:
        return Message(raw=b"{broken", formats=self.host.formats)


class ReplySink(_ServerPeer):
    """Each message is answered by the next frame."""

    confirms = True

    def sink(self) -> Sink:
        return Sink.model_validate({"url": self.server.url, "reply": {"accepted": "OK"}})


class TellingSink(_ServerPeer):
    """Nothing is answered."""

    def sink(self) -> Sink:
        return Sink.model_validate({"url": self.server.url})

    async def answer(self, connection: Connection, text: str) -> None:
        """It keeps silent."""


class BroadcastSink(SinkBench):
    """A client that is connected before and after the sink, as the path is shared."""

    has_peer = False
    refuses = True

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        self.bodies_heard: list[bytes] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        sink = self.sink()
        assert sink.listen is not None
        async with (
            self.host.share(sink._door(sink.listen)),
            connect(f"ws://127.0.0.1:{self.port}/live", proxy=None, max_size=None) as client,
        ):
            reading = asyncio.create_task(self._read(client))
            yield self
            reading.cancel()

    async def _read(self, client: ClientConnection) -> None:
        async for said in client:
            self.bodies_heard.append(said if isinstance(said, bytes) else said.encode())

    def sink(self) -> Sink:
        return Sink.model_validate({"listen": f"127.0.0.1:{self.port}", "path": "/live", "topic": "{{ headers.x }}"})

    def message(self, body: bytes, headers: dict[str, str] | None = None) -> Message:
        return Message(raw=body, formats=self.host.formats, content_type="text/plain", headers={"x": "1"})

    def received(self) -> list[bytes]:
        return self.bodies_heard

    def uncarried(self) -> Message:
        return Message(raw=b"no topic", formats=self.host.formats)


SOURCES: list[type[SourceBench]] = [ServerSource, ClientSource]
SINKS: list[type[SinkBench]] = [ConfirmingSink, ReplySink, TellingSink, BroadcastSink]


@pytest.mark.parametrize(
    ("bench", "check"),
    [
        pytest.param(bench, check, id=f"{bench.__name__}-{check.__name__}")
        for bench in SOURCES
        for check in checks_for(bench, SOURCE_CHECKS)
    ],
)
async def test_a_source_keeps_its_contract(bench: type[SourceBench], check: Check) -> None:
    async with bench().running() as running:
        await check(running)


@pytest.mark.parametrize(
    ("bench", "check"),
    [
        pytest.param(bench, check, id=f"{bench.__name__}-{check.__name__}")
        for bench in SINKS
        for check in checks_for(bench, SINK_CHECKS)
    ],
)
async def test_a_sink_keeps_its_contract(bench: type[SinkBench], check: Check) -> None:
    async with bench().running() as running:
        await check(running)
