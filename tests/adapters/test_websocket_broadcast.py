"""A websocket sink as a server: what it sends goes to whoever is connected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection, connect

from adapters._listener import Listener, Listening
from adapters.websocket import Sink, Source
from gateway import MessageError, Send
from gateway.settings import ListenAt
from gateway.testing import FakeHost, Inbox, arriving, opened, running, until
from tests.adapters.raw_websocket import HERE, TEXT, close_code, ears, frame, raw


class Stage:
    """An open sink."""

    def __init__(self, listening: Listening, host: FakeHost, send: Send) -> None:
        self.listening = listening
        self.host = host
        self.send = send

    def client(self, path: str = "/live") -> connect:
        return connect(f"ws://{self.listening.address}{path}", proxy=None)

    async def tell(self, raw: bytes, **fields: Any) -> None:
        assert await self.send(arriving(self.host, raw, **fields)) is None


@asynccontextmanager
async def stage(**settings: Any) -> AsyncIterator[Stage]:
    host = FakeHost()
    at = ListenAt(HERE)
    sink = Sink.model_validate({"listen": at, "path": "/live", **settings})
    async with host.share(Listener(at)) as listening, opened(sink, host) as send:
        yield Stage(listening, host, send)


async def heard(client: ClientConnection) -> str | bytes:
    async with asyncio.timeout(5):
        return await client.recv()


async def test_all_who_are_connected_hear_it_and_nobody_may_be() -> None:
    async with stage() as one:
        await one.tell(b"[0]")
        async with one.client() as first, one.client() as second:
            await one.tell(b"[1]")
            assert [await heard(first), await heard(second)] == ["[1]", "[1]"]
            await first.close()
            await one.tell(b"[2]")
            assert await heard(second) == "[2]"
        assert one.host.drops == {}


@pytest.mark.parametrize(
    ("body", "content_type", "opcode", "expected"),
    [
        (b'{"a": 1}', "application/json", None, '{"a": 1}'),
        ("grün".encode(), "text/plain", None, "grün"),
        (b"", "text/plain", None, ""),
        ("grün".encode("latin-1"), "text/plain", None, "grün".encode("latin-1")),
        (b"\x00\xff", "application/octet-stream", None, b"\x00\xff"),
        (b"{}", "application/json", "binary", b"{}"),
        (b"abc", "application/octet-stream", "text", "abc"),
        (b"x" * 1024**2, "text/plain", None, "x" * 1024**2),
    ],
    ids=range(8),
)
async def test_readable_bodies_are_text_frames(
    body: bytes, content_type: str, opcode: str | None, expected: str | bytes
) -> None:
    async with stage(**({"opcode": opcode} if opcode else {})) as one, one.client() as client:
        await one.tell(body, content_type=content_type)
        assert await heard(client) == expected


async def test_a_text_frame_carries_no_other_bytes() -> None:
    async with stage(opcode="text") as one:
        with pytest.raises(MessageError, match="set opcode: binary"):
            await one.tell(b"\xff")


async def test_clients_choose_topics_by_query() -> None:
    async with (
        stage(topic="{{ body.device }}") as one,
        one.client() as everything,
        one.client("/live?topic=a") as only_a,
        one.client("/live?topic=b%2C%20c&topic=a&x=1") as a_and_bc,
    ):
        for device in ("a", "b, c", "d"):
            await one.tell(b'{"device": "%b"}' % device.encode())
        await one.tell(b'{"device": "a", "last": true}')
        assert [await heard(everything) for _ in range(4)] == [
            '{"device": "a"}',
            '{"device": "b, c"}',
            '{"device": "d"}',
            '{"device": "a", "last": true}',
        ]
        assert [await heard(only_a) for _ in range(2)] == ['{"device": "a"}', '{"device": "a", "last": true}']
        assert [await heard(a_and_bc) for _ in range(3)] == [
            '{"device": "a"}',
            '{"device": "b, c"}',
            '{"device": "a", "last": true}',
        ]


async def test_a_message_without_its_topic_is_refused() -> None:
    async with stage(topic="{{ body.device }}") as one:
        with pytest.raises(MessageError, match="device"):
            await one.tell(b"{}")


async def test_a_client_that_lags_is_closed_with_1013_and_the_others_hear_all() -> None:
    async with stage(queue="256KiB") as one, raw(one.listening.address) as slow, one.client() as quick:
        slow.link.writer.transport.pause_reading()  # type: ignore[attr-defined]
        body = b"x" * 100_000
        told = 0
        while not one.host.drops:
            told += 1
            await one.tell(body, content_type="text/plain")
            assert len(await heard(quick)) == len(body)
        assert one.host.drops == {"slow": 1}
        assert 3 < told < 150
        await one.tell(b"after", content_type="text/plain")
        assert await heard(quick) == "after"
        slow.link.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await slow.close_code() == 1013


async def test_one_that_lags_and_never_reads_again_is_cut() -> None:
    async with stage(queue="64KiB") as one, raw(one.listening.address) as slow:
        slow.link.writer.transport.pause_reading()  # type: ignore[attr-defined]
        while not one.host.drops:
            await one.tell(b"x" * 1_000_000, content_type="text/plain")
        await one.listening.close()
        await until(lambda: not one.listening.connections)


async def test_what_clients_say_to_a_sink_is_counted_and_let_go() -> None:
    async with stage() as one, raw(one.listening.address) as client:
        await client.send(frame(TEXT, b"hello") * 1000)
        await until(lambda: one.host.drops == {"unheard": 1000})
        await one.tell(b"[1]")
        assert await client.frame() == (1, b"[1]")


async def test_who_is_connected_hears_1001_when_the_sink_closes() -> None:
    async with stage() as one:
        client = await one.client()
    assert await close_code(client) == 1001


async def test_one_route_reads_and_another_tells_the_clients_of_one_path() -> None:
    async with ears(confirm=True) as one:
        sink = Sink.model_validate({"listen": one.at, "path": "/live"})
        async with opened(sink, one.host) as send, one.client() as client:
            await send(arriving(one.host, b"[1]"))
            assert await heard(client) == "[1]"
            await client.send('{"id": "1", "data": 1}')
            assert await heard(client) == '{"ack":"1"}'
        # The sink has gone: who reads stays.
        async with one.client() as client:
            await client.send('{"id": "2", "data": 1}')
            assert await heard(client) == '{"ack":"2"}'


async def test_who_came_before_the_reader_is_heard_too() -> None:
    async with stage() as one, one.client() as client:
        inbox = Inbox(one.host)
        source = Source.model_validate({"listen": ListenAt(HERE), "path": "/live"})
        async with running(source, inbox, one.host):
            await client.send("[1]")
            await inbox.wait(1)
        assert await close_code(client) == 1001


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "expected either `listen`"),
        ({"listen": "127.0.0.1:1", "url": "ws://a"}, "expected either `listen`"),
        ({"listen": "127.0.0.1:1", "confirm": True}, "`confirm` is for `url`"),
        ({"listen": "127.0.0.1:1", "reply": {}}, "`reply` is for `url`"),
        ({"listen": "127.0.0.1:1", "timeout": "1s"}, "`timeout` is for `url`"),
        ({"listen": "127.0.0.1:1", "path": "live"}, "expected a path"),
        ({"listen": "127.0.0.1:1", "origins": ["app.example"]}, "expected an origin"),
        ({"listen": "127.0.0.1:1", "subprotocols": ["a b"]}, "expected a name"),
        ({"url": "ws://a", "topic": "a"}, "`topic` is for `listen`"),
        ({"url": "ws://a", "path": "/a"}, "`path` is for `listen`"),
        ({"url": "http://a"}, "expected a URL such as ws://"),
        ({"url": "ws://u:p@a"}, "no user and password"),
        ({"url": "ws://a", "tls": {}}, "write wss://"),
        ({"url": "ws://a", "username": "u"}, "expected both or none"),
        ({"url": "ws://a", "token": "a\r\nb"}, "no header can carry"),
        ({"url": "ws://a", "headers": {"upgrade": "h2c"}}, "can't be set"),
        ({"url": "ws://a", "headers": {"sec-websocket-key": "x"}}, "can't be set"),
        ({"url": "ws://a", "headers": {"x": "a\nb"}}, "holds a line end"),
        ({"url": "ws://a", "confirm": True, "reply": {}}, "expected either `confirm` or `reply`"),
        ({"url": "ws://a", "confirm": True, "opcode": "binary"}, "all frames are text"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Sink.model_validate(settings)


def test_only_the_reader_of_a_path_claims_it() -> None:
    assert Sink.model_validate({"listen": "127.0.0.1:8081", "path": "/a"}).claims == ()
    source = Source.model_validate({"listen": "127.0.0.1:8081", "path": "/a/{id}"})
    assert source.claims == Source.model_validate({"listen": "127.0.0.1:8081", "path": "/a/{x}"}).claims
    assert source.claims == ("websocket 127.0.0.1:8081/a/{}",)
    assert Source.model_validate({"url": "ws://a"}).claims == ()


def test_a_sink_says_where_it_delivers_at_most_once() -> None:
    def said(**settings: Any) -> str | None:
        return Sink.model_validate(settings).at_most_once

    assert "nobody" in str(said(listen="127.0.0.1:1"))
    assert "not asked" in str(said(url="ws://a"))
    assert said(url="ws://a", confirm=True) is None
    assert said(url="ws://a", reply={}) is None
