"""A websocket source as a client: what a server sends becomes messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.frames import Opcode
from websockets.typing import Subprotocol

from adapters.websocket import Source
from gateway import Accepted, Limits, PeerError
from gateway.testing import FakeHost, Inbox, running, until
from tests.adapters.raw_http import Held
from tests.adapters.raw_websocket import accepting, asked, frame, plain_server, server


@asynccontextmanager
async def reading(
    url: str, outcome: Any = None, *, limits: Limits | None = None, **settings: Any
) -> AsyncIterator[Any]:
    host = FakeHost(limits=limits)
    inbox = Inbox(host, outcome)
    async with running(Source.model_validate({"url": url, **settings}), inbox, host) as task:
        yield inbox, task


async def test_what_a_server_sends_becomes_messages() -> None:
    async with server() as one:
        async with reading(f"{one.url}?x=1", headers={"X-Line": "7"}, token="abc") as (inbox, _):
            connection = one.connections[0]
            request = connection.request
            assert request is not None
            assert request.path == "/feed?x=1"
            assert request.headers["X-Line"] == "7"
            assert request.headers["Authorization"] == "Bearer abc"
            await connection.send('{"a": 1}')
            await connection.send([b"\x00", b"\xff"])
            await connection.send("x" * 1024**2)
            first, second, third = await inbox.wait(3)
            assert (first.body, second.body, len(third.body)) == (b'{"a": 1}', b"\x00\xff", 1024**2)
            assert first.transport["opcode"] == "text"
            assert second.transport["opcode"] == "binary"
            assert first.transport["path"] == "/feed"
            assert first.transport["peer"] in one.url
        await connection.wait_closed()
        assert connection.close_code == 1001


async def test_a_source_that_loses_its_server_says_so() -> None:
    async with server() as one, reading(one.url) as (inbox, task):
        await one.connections[0].send("[1]")
        await inbox.wait(1)
        await one.connections[0].close(1012, "restarting")
        await asyncio.wait((task,), timeout=5)
        error = task.exception()
        assert isinstance(error, PeerError)
        assert error.reconnect
        assert str(error).endswith("the peer closed the connection with 1012 'restarting'")


async def test_a_plain_source_settles_what_it_took_before_it_ends() -> None:
    held = Held()
    async with server() as one, reading(one.url, held) as (_, task):
        await one.connections[0].send("[1]")
        await until(lambda: held.waiting)
        one.connections[0].transport.abort()
        await asyncio.wait((task,), timeout=0.2)
        assert not task.done()
        held.waiting[0][1].set_result(Accepted("m"))
        await asyncio.wait((task,), timeout=5)
        assert isinstance(task.exception(), PeerError)


async def test_a_source_confirms_to_its_server() -> None:
    async with server() as one, reading(one.url, confirm=True) as (_, _task):
        await one.connections[0].send('{"id": "9", "data": {}}')
        await until(lambda: one.heard)
        assert one.heard == ['{"ack":"9"}']


async def test_what_comes_with_the_handshake_is_heard() -> None:
    async def at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        key = await asked(reader)
        writer.write(accepting(key) + frame(Opcode.TEXT, b"[1]", mask=False) + frame(Opcode.TEXT, b"[2]", mask=False))

    async with plain_server(at_once) as url, reading(url) as (inbox, _):
        assert [message.body for message in await inbox.wait(2)] == [b"[1]", b"[2]"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\n\r\n", "it answered 'HTTP/1.1 401 Unauthorized', expected 101; set username"),
        (b"HTTP/1.1 302 Found\r\nLocation: ws://127.0.0.1:1/\r\n\r\n", "expected 101; redirects are not followed"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "it does not speak HTTP"),
        (accepting("wrong"), "its handshake is not good: invalid Sec-WebSocket-Accept"),
        (b"HTTP/1.1 101 OK\r\n" + b"x: y\r\n" * 10_000, "more than 32768 bytes of headers"),
        (b"HTTP/1.1 101 OK\r\n\r\n", "its handshake is not good: missing Connection header"),
        (b"", "closed the connection during the handshake"),
    ],
    ids=["401", "redirect", "ssh", "wrong key", "endless headers", "no upgrade", "closed"],
)
async def test_a_server_that_does_not_agree_is_a_sentence(answer: bytes, said: str) -> None:
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with plain_server(answers) as url:
        with pytest.raises(PeerError, match=f"^websocket {url}: .*{said}"):
            async with reading(url):
                pass


async def test_a_server_that_never_answers_is_not_waited_for() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with plain_server(silent) as url:
        with pytest.raises(PeerError, match=r"no answer to the handshake within 0\.2 s"):
            async with reading(url, timeout="200ms"):
                pass


async def test_nobody_there_is_a_sentence() -> None:
    async with server() as one:
        url = one.url
    with pytest.raises(PeerError, match="connection refused"):
        async with reading(url):
            pass


async def test_subprotocols_are_offered() -> None:
    async with (
        server(subprotocols=[Subprotocol("v1.feed")]) as one,
        reading(one.url, subprotocols=["v2.feed", "v1.feed"]) as (inbox, _),
    ):
        await one.connections[0].send("[1]")
        assert (await inbox.wait(1))[0].transport["subprotocol"] == "v1.feed"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(Opcode.TEXT, b"a", mask=True), 1002),
        (frame(Opcode.TEXT, b"\xff", mask=False), 1007),
        (frame(Opcode.BINARY, bytes(1001), mask=False), 1009),
    ],
    ids=["masked", "bad utf-8", "oversize"],
)
async def test_a_server_that_breaks_the_protocol_is_left(data: bytes, code: int) -> None:
    limits = Limits.model_validate({"message": "1000B"})
    async with server() as one, reading(one.url, limits=limits) as (_, task):
        one.connections[0].transport.write(data)
        await asyncio.wait((task,), timeout=5)
        assert f"closed by us with {code}" in str(task.exception())
