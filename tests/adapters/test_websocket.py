"""A websocket source as a server: what clients send becomes messages."""

from __future__ import annotations

import asyncio
import logging

import pytest
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from adapters.http import Source as HttpSource
from adapters.websocket import Sink, Source
from gateway import Accepted, ConfigError, Limits, Message
from gateway.testing import Inbox, running, until
from tests.adapters.raw_http import Held, peer, post
from tests.adapters.raw_websocket import TEXT, close_code, ears, frame, handshake, raw


@pytest.mark.parametrize(
    ("sent", "body", "opcode", "content_type"),
    [
        pytest.param('{"a": 1}', b'{"a": 1}', "text", "application/json", id="text"),
        pytest.param("grün 🙂", "grün 🙂".encode(), "text", "application/json", id="utf-8"),
        pytest.param("", b"", "text", "application/json", id="empty text"),
        pytest.param(b"\x00\xff\x80", b"\x00\xff\x80", "binary", "application/octet-stream", id="binary"),
        pytest.param(b"", b"", "binary", "application/octet-stream", id="empty binary"),
        pytest.param(b"x" * 125, b"x" * 125, "binary", "application/octet-stream", id="125 bytes"),
        pytest.param(b"x" * 126, b"x" * 126, "binary", "application/octet-stream", id="126 bytes"),
        pytest.param(b"x" * 65536, b"x" * 65536, "binary", "application/octet-stream", id="64 KiB"),
        pytest.param("x" * 1024**2, b"x" * 1024**2, "text", "application/json", id="1 MiB"),
    ],
)
async def test_a_frame_becomes_a_message(sent: str | bytes, body: bytes, opcode: str, content_type: str) -> None:
    async with ears() as one, one.client() as client:
        await client.send(sent)
        (message,) = await one.inbox.wait(1)
        assert message.body == body
        assert message.transport["opcode"] == opcode
        assert message.content_type == content_type


async def test_a_message_in_fragments_is_one_message() -> None:
    async with ears() as one, one.client() as client:
        await client.send(["gr", "", "ün", " is a colour"])
        await client.send([b"\x00", b"\x01"])
        first, second = await one.inbox.wait(2)
        assert first.body == "grün is a colour".encode()
        assert second.body == b"\x00\x01"


async def test_content_type_says_what_bodies_are() -> None:
    async with ears(content_type="application/xml") as one, one.client() as client:
        await client.send("<a/>")
        await client.send(b"<b/>")
        assert [message.content_type for message in await one.inbox.wait(2)] == ["application/xml"] * 2


async def test_path_parameters_query_and_peer_are_transport() -> None:
    async with (
        ears(path="/devices/{id}/{kind}") as one,
        one.client("/devices/a%20b/log?since=5&since=6", additional_headers={"X-Line": "7"}) as client,
    ):
        await client.send("{}")
        (message,) = await one.inbox.wait(1)
        transport = dict(message.transport)
        assert transport.pop("peer").startswith("127.0.0.1:")
        assert transport == {
            "path": "/devices/a%20b/log",
            "params": {"id": "a b", "kind": "log"},
            "query": {"since": "5, 6"},
            "scheme": "ws",
            "opcode": "text",
        }
        assert message.headers["x-line"] == "7"
        assert not {"sec-websocket-key", "upgrade", "connection"} & set(message.headers)


async def test_secrets_of_the_handshake_are_no_headers_of_messages() -> None:
    headers = {"Authorization": "Bearer abc", "Cookie": "session=abc"}
    async with ears() as one, one.client(additional_headers=headers) as client:
        await client.send("{}")
        (message,) = await one.inbox.wait(1)
        assert "abc" not in str(message.headers)


async def test_the_best_common_subprotocol_is_agreed() -> None:
    async with ears(subprotocols=["v2.orders", "v1.orders"]) as one:
        offered = [Subprotocol("v1.orders"), Subprotocol("v2.orders")]
        async with one.client(subprotocols=offered) as client:
            assert client.subprotocol == "v2.orders"
            await client.send("{}")
            assert (await one.inbox.wait(1))[0].transport["subprotocol"] == "v2.orders"
        with pytest.raises(InvalidStatus) as error:
            await one.client()
        assert error.value.response.status_code == 400


@pytest.mark.parametrize(
    ("origins", "origin", "host", "status"),
    [
        pytest.param([], "", "gateway", 101, id="no origin"),
        pytest.param([], "http://gateway", "gateway", 101, id="same host"),
        pytest.param([], "http://gateway:8081", "gateway:8081", 101, id="same host and port"),
        pytest.param([], "http://gateway:8082", "gateway:8081", 403, id="another port"),
        pytest.param([], "https://gateway", "gateway", 403, id="another scheme, so another port"),
        pytest.param([], "http://evil.example", "gateway", 403, id="another host"),
        pytest.param([], "null", "gateway", 403, id="null"),
        pytest.param([], "http://gateway:x", "gateway", 403, id="no number for a port"),
        pytest.param(["https://app.example"], "https://APP.example", "gateway", 101, id="listed"),
        pytest.param(["https://app.example"], "http://gateway", "gateway", 403, id="the same host is not listed"),
        pytest.param(
            ["https://app.example"], "https://app.example.evil", "gateway", 403, id="begins like a listed one"
        ),
        pytest.param(["https://app.example"], "", "gateway", 101, id="no browser"),
        pytest.param(["*"], "https://evil.example", "gateway", 101, id="all"),
    ],
)
async def test_pages_of_other_origins_may_not_connect(origins: list[str], origin: str, host: str, status: int) -> None:
    async with ears(origins=origins) as one, peer(one.address) as link:
        await link.send(handshake(host=host, **({"origin": origin} if origin else {})))
        assert (await link.head())[0] == status


async def test_why_a_page_may_not_connect_is_in_the_log_as_its_browser_does_not_say(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with ears() as one, peer(one.address) as link:
        await link.send(handshake(origin="https://app.example"))
        assert (await link.head())[0] == 403
    (told,) = [vars(record) for record in caplog.records if record.message == "handshake refused"]
    assert (told["path"], told["status"]) == ("/live", 403)
    assert told["reason"].endswith("may not connect; name https://app.example in origins if they should")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(handshake(leave_out="sec-websocket-key"), 400, id="no key"),
        pytest.param(handshake(sec_websocket_key="short"), 400, id="a short key"),
        pytest.param(handshake(leave_out="sec-websocket-version"), 426, id="no version"),
        pytest.param(handshake(sec_websocket_version="8"), 426, id="an old version"),
        pytest.param(handshake("/nowhere"), 404, id="no such path"),
        pytest.param(b"GET /live HTTP/1.1\r\nHost: gateway\r\n\r\n", 426, id="plain http"),
        pytest.param(post(path="/live"), 405, id="a post"),
    ],
)
async def test_a_bad_handshake_is_answered(request_: bytes, status: int) -> None:
    async with ears() as one, peer(one.address) as link:
        answer = await link.exchange(request_)
        assert answer.status == status
        assert answer.headers["content-type"] == "application/problem+json"
        if status == 426 and b"Version" in request_.title() and b"pgrade" in request_:
            assert answer.headers["sec-websocket-version"] == "13"
        assert one.inbox.messages == []


async def test_a_frame_that_comes_with_the_handshake_is_heard() -> None:
    async with ears() as one, peer(one.address) as link:
        await link.send(handshake() + frame(TEXT, b"[1]") + frame(TEXT, b"[2]")[:4])
        (message,) = await one.inbox.wait(1)
        assert message.body == b"[1]"


async def test_http_and_websocket_share_a_port_and_even_a_path() -> None:
    async with ears(path="/orders") as one:
        inbox = Inbox(one.host)
        http = HttpSource.model_validate({"listen": one.at, "path": "/orders"})
        async with running(http, inbox, one.host), one.client("/orders") as client, peer(one.address) as link:
            await client.send("[1]")
            assert (await link.exchange(post(b"[2]"))).status == 202
            assert (await one.inbox.wait(1))[0].body == b"[1]"
            assert inbox.messages[0].body == b"[2]"


async def test_two_sources_at_one_path_are_a_mistake() -> None:
    async with ears() as one:
        inbox = Inbox(one.host)
        for settings, text in (({}, "two routes read there"), ({"origins": ["*"]}, "with different settings")):
            second = Source.model_validate({"listen": one.at, "path": "/live", **settings})
            with pytest.raises(ConfigError, match=text):
                async with running(second, inbox, one.host):
                    pass


async def test_a_route_that_stops_says_1001_once_what_it_took_is_settled() -> None:
    held = Held()
    async with ears(held, confirm=True) as one, one.client() as client:
        await client.send('{"id": "1", "data": {}}')
        await until(lambda: held.waiting)
        message, outcome = held.waiting[0]
        one.task.cancel()
        asyncio.get_running_loop().call_later(0.05, outcome.set_result, Accepted(message.id))
        assert await client.recv() == '{"ack":"1"}'
        assert await close_code(client) == 1001


async def test_a_client_that_comes_while_the_reader_is_away_is_asked_to_come_again() -> None:
    async with ears() as one:
        host = one.host
        sink = Sink.model_validate({"listen": one.at, "path": "/live"})
        async with sink.open(host):
            one.task.cancel()
            await asyncio.gather(one.task, return_exceptions=True)
            with pytest.raises(InvalidStatus) as error:
                await one.client()
            assert error.value.response.status_code == 503


async def test_who_says_goodbye_is_answered_at_once() -> None:
    held = Held()
    async with ears(held) as one, raw(one.address) as client:
        await client.send(frame(TEXT, b"[1]") + frame(TEXT, b"[2]") + bytes([0x88, 0x82]) + bytes(4) + b"\x03\xe8")
        assert await client.close_code() == 1000
        assert await client.closed()
        assert [message.body for message in await one.inbox.wait(2)] == [b"[1]", b"[2]"]
        await until(lambda: not one.listening.connections)


async def test_a_thousand_messages_at_once_come_in_order_and_never_more_than_a_window() -> None:
    most = now = 0

    async def slowly(message: Message) -> Accepted:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        now -= 1
        return Accepted(message.id)

    async with ears(slowly) as one, raw(one.address) as client:
        await client.send(b"".join(frame(TEXT, b"%d" % number) for number in range(1000)))
        messages = await one.inbox.wait(1000)
        assert [int(message.body) for message in messages] == list(range(1000))
        assert 1 < most <= 64


async def test_an_unsettled_window_is_all_that_is_read() -> None:
    held = Held()
    async with ears(held) as one, raw(one.address) as client:
        await client.send(b"".join(frame(TEXT, b"%d" % number) for number in range(200)))
        await until(lambda: len(held.waiting) == 64)
        for number in range(200):
            await until(lambda number=number: len(held.waiting) > number)  # type: ignore[misc]
            assert len(held.waiting) <= number + 64
            message, outcome = held.waiting[number]
            outcome.set_result(Accepted(message.id))
        assert [int(message.body) for message in await one.inbox.wait(200)] == list(range(200))


async def test_large_bodies_fill_the_window_sooner() -> None:
    held = Held()
    limits = Limits.model_validate({"message": "1KiB"})
    async with ears(held, limits=limits) as one, raw(one.address) as client:
        await client.send(frame(TEXT, b"1" * 1024) * 20)
        await until(lambda: len(held.waiting) == 4)
        for number in range(20):
            await until(lambda number=number: len(held.waiting) > number)  # type: ignore[misc]
            message, outcome = held.waiting[number]
            outcome.set_result(Accepted(message.id))
        await one.inbox.wait(20)


async def test_a_silent_peer_is_pinged_and_closed() -> None:
    async with (
        ears(ping_interval="100ms", ping_timeout="100ms") as one,
        one.client() as lively,
        raw(one.address) as dead,
    ):
        assert (await dead.frame())[0] == 9
        assert await dead.close_code() == 1011
        assert await dead.closed()
        await lively.send("[1]")
        await one.inbox.wait(1)
