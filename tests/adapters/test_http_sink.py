"""Messages sent as requests, and what answers mean for them."""

from __future__ import annotations

import asyncio
import base64
import gzip
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import ValidationError

from adapters._http_client import peer_error, retry_after
from adapters._http_pool import ConnectError
from adapters._request import Request, header_lines
from adapters.http import Sink
from gateway import Limits, Message, MessageError, PeerError
from gateway.testing import FakeHost, ManualClock, arriving, opened, until
from tests.adapters.raw_http import Kept, listener

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
EVERY = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class Server(Kept):
    """A server that answers all with the same."""

    def __init__(self, status: int = 200, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        super().__init__()
        self.address = ""
        self.answer = (status, body, header_lines((headers or {}).items()))

    def __call__(self, request: Request) -> None:
        super().__call__(request)
        request.answer(*self.answer)


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Server]:
    async with listener() as listening:
        server.address = f"http://{listening.address}"
        with listening.mount("/{path}", EVERY, server):
            yield server


@asynccontextmanager
async def speaking(
    answer: Callable[[asyncio.StreamWriter], Awaitable[None]], *, reads: bool = True
) -> AsyncIterator[str]:
    """A server that writes what it likes, once it has read a request. Gives its URL."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            if reads:
                await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
        except (asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for task in tasks:
            task.cancel()
        server.close()
        await asyncio.gather(*tasks, return_exceptions=True)


async def send(host: FakeHost | None = None, message: Message | None = None, **settings: Any) -> Message:
    host = host or FakeHost()
    async with opened(Sink.model_validate(settings), host) as send_one:
        reply = await send_one(message or arriving(host))
    assert reply is not None
    return reply


async def test_a_message_is_a_request() -> None:
    host = FakeHost(target="erp")
    message = arriving(host, b"<a/>", content_type="application/xml", traceparent=TRACE, headers={"cookie": "theirs"})
    async with serving(Server(201, b"ok", {"Content-Type": "text/plain", "X-Id": "7"})) as server:
        reply = await send(host, message, url=f"{server.address}/orders?x=1", headers={"X-Shop": "{{ message.id }}"})
        request = server.requests[0]
        assert (request.method, request.target, request.body) == ("POST", "/orders?x=1", b"<a/>")
        headers = dict(request.headers)
        headers.pop("host")
        assert headers == {
            "accept": "*/*",
            "user-agent": "interchange-gateway",
            "content-type": "application/xml",
            "content-length": "4",
            "traceparent": TRACE,
            "idempotency-key": f"{message.id}.erp",
            "x-shop": message.id,
        }
        assert (reply.raw, reply.content_type, reply.transport["status"]) == (b"ok", "text/plain", 201)
        assert reply.headers["x-id"] == "7"
        assert reply.causation_id == message.id


async def test_a_header_that_the_gateway_sends_and_headers_names_goes_once() -> None:
    named = {
        "Accept": "application/json",
        "User-Agent": "desk",
        "Content-Type": "application/soap+xml",
        "Idempotency-Key": "{{ message.id }}",
        "Traceparent": "none",
    }
    message = arriving(FakeHost(), b"<a/>", content_type="application/xml", traceparent=TRACE)
    async with serving(Server()) as server:
        await send(None, message, url=f"{server.address}/orders", headers=named)
        sent = dict(server.requests[0].headers)
    assert sent.pop("content-length") == "4"
    assert f"http://{sent.pop('host')}" == server.address
    assert sent == {name.lower(): value.replace("{{ message.id }}", message.id) for name, value in named.items()}


async def test_values_in_the_url_are_encoded() -> None:
    async with serving(Server()) as server:
        message = arriving(FakeHost(), b'{"customer": "a/b?c#d e%41"}')
        await send(None, message, url=server.address + "/{{ body.customer }}")
        assert server.requests[0].params == {"path": "a/b?c#d e%41"}


@pytest.mark.parametrize("value", [".", ".."])
async def test_a_value_never_climbs_out_of_its_place_in_the_url(value: str) -> None:
    async with serving(Server()) as server:
        message = arriving(FakeHost(), f'{{"customer": "{value}"}}'.encode())
        with pytest.raises(MessageError):
            await send(None, message, url=server.address + "/customers/{{ body.customer }}/orders")
        assert server.requests == []


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_get_and_head_have_no_body(method: str) -> None:
    async with serving(Server(200, b"found")) as server:
        reply = await send(url=f"{server.address}/orders", method=method)
        request = server.requests[0]
        assert (request.method, request.body) == (method, b"")
        assert "content-type" not in request.headers
        assert reply.raw == (b"found" if method == "GET" else b"")


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_other_methods_have_the_body(method: str) -> None:
    async with serving(Server(204)) as server:
        reply = await send(url=f"{server.address}/orders", method=method)
        assert (server.requests[0].method, server.requests[0].body) == (method, b"{}")
        assert (reply.raw, reply.transport["status"]) == (b"", 204)


@pytest.mark.parametrize(
    ("settings", "authorization"),
    [
        ({"username": "me", "password": "sécret"}, "Basic " + base64.b64encode("me:sécret".encode()).decode()),
        ({"token": "t0ken"}, "Bearer t0ken"),
    ],
)
async def test_credentials_go_into_the_authorization(settings: dict[str, Any], authorization: str) -> None:
    async with serving(Server()) as server:
        await send(url=f"{server.address}/orders", **settings)
        assert server.requests[0].headers["authorization"] == authorization


@pytest.mark.parametrize("value", ["a\\r\\nX-Evil: 1", "a\\nb", "a\\u0000b", "café"])
async def test_a_header_value_is_one_line_of_ascii_or_the_message_is_refused(value: str) -> None:
    async with serving(Server()) as server:
        message = arriving(FakeHost(), f'{{"name": "{value}"}}'.encode())
        with pytest.raises(MessageError, match="header x-name"):
            await send(None, message, url=f"{server.address}/orders", headers={"X-Name": "{{ body.name }}"})
        assert server.requests == []


async def test_a_content_type_of_two_lines_is_refused() -> None:
    async with serving(Server()) as server:
        message = arriving(FakeHost(), content_type="text/plain\r\nX-Evil: 1")
        with pytest.raises(MessageError, match="header content-type"):
            await send(None, message, url=f"{server.address}/orders")


@pytest.mark.parametrize("status", [400, 409, 413, 415, 422])
async def test_some_answers_refuse_the_message(status: int) -> None:
    async with serving(Server(status, b"why")) as server:
        with pytest.raises(MessageError, match=f"^{server.address}: answered {status} ") as error:
            await send(url=f"{server.address}/orders?secret=1")
        assert isinstance(error.value.reply, Message)
        assert (error.value.reply.raw, error.value.reply.transport["status"]) == (b"why", status)
        assert "secret" not in str(error.value)


@pytest.mark.parametrize("status", [301, 302, 304, 401, 403, 404, 408, 429, 500, 502, 503, 504, 599])
async def test_all_other_answers_may_be_different_next_time(status: int) -> None:
    async with serving(Server(status, b"" if status == 304 else b"why", {"Location": "/elsewhere"})) as server:
        with pytest.raises(PeerError, match=f"answered {status}") as error:
            await send(url=f"{server.address}/orders")
        assert not error.value.reconnect
        assert not error.value.too_late
        assert isinstance(error.value.reply, Message)
        assert error.value.reply.transport["status"] == status
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_a_peer_that_names_its_wait_is_heard(status: int) -> None:
    async with serving(Server(status, headers={"Retry-After": "7"})) as server:
        with pytest.raises(PeerError) as error:
            await send(url=f"{server.address}/orders")
        assert error.value.wait_s == 7.0


NOW_S = 1_763_690_400.0  # Fri, 21 Nov 2025 02:00:00 GMT


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        (None, None),
        ("0", 0.0),
        ("3600", 3600.0),
        ("3601", 3600.0),
        ("9" * 400, 3600.0),
        ("-1", None),
        ("soon", None),
        ("Fri, 21 Nov 2025 02:00:30 GMT", 30.0),
        ("Friday, 21-Nov-25 02:00:30 GMT", 30.0),
        ("Fri, 21 Nov 2025 01:00:00 GMT", 0.0),
        ("Sat, 22 Nov 2025 02:00:00 GMT", 3600.0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_an_hour_at_most(value: str | None, wait_s: float | None) -> None:
    assert retry_after(value, NOW_S) == wait_s


async def test_a_retry_after_date_is_read_by_the_clock_of_the_host() -> None:
    host = FakeHost(clock=ManualClock(NOW_S))
    async with serving(Server(503, headers={"Retry-After": "Fri, 21 Nov 2025 02:00:30 GMT"})) as server:
        with pytest.raises(PeerError) as error:
            await send(host, url=f"{server.address}/orders")
        assert error.value.wait_s == 30.0


async def test_nobody_there_is_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(PeerError) as error:
            await send(url=f"{address}/a?secret=1")
    assert str(error.value) == f"{address}: connection refused; is it running?"
    assert not error.value.too_late


@pytest.mark.parametrize(
    ("cause", "sentence"),
    [
        (socket.gaierror(-2, "Name or service not known"), "the host name is not known"),
        (OSError(113, "no route"), "no connection: no route to host"),
        (OSError("Multiple exceptions"), "no connection: multiple exceptions"),
        (TimeoutError(), "no connection within 5 s; is it reachable?"),
    ],
    ids=["unknown name", "no route", "several", "late"],
)
def test_what_keeps_a_connection_from_being_made_is_a_sentence(cause: OSError, sentence: str) -> None:
    error = ConnectError()
    error.__cause__ = cause
    found = peer_error("http://h", error, connect_timeout_s=5)
    assert str(found) == f"http://h: {sentence}"
    assert not found.too_late


async def nothing(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def test_no_answer_in_time_is_too_late() -> None:
    async with speaking(nothing) as url:
        with pytest.raises(PeerError, match=f"^{url}: no answer within 0.2 s$") as error:
            await send(url=url, timeout="200ms")
        assert error.value.too_late


async def test_a_body_that_does_not_end_in_time_is_too_late() -> None:
    async def half(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await asyncio.Event().wait()

    async with speaking(half) as url:
        with pytest.raises(PeerError, match=r"no answer within 0\.2 s") as error:
            await send(url=url, timeout="200ms")
        assert error.value.too_late


async def test_an_answer_that_is_cut_is_none() -> None:
    async def cut(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")

    async with speaking(cut) as url:
        with pytest.raises(PeerError, match="it closed the connection inside its answer"):
            await send(url=url)


async def test_a_connection_closed_without_an_answer_is_a_sentence() -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        return

    async with speaking(silent) as url:
        with pytest.raises(PeerError, match=r"it (closed the connection without an answer|reset the connection)"):
            await send(url=url)


async def test_another_protocol_is_a_sentence() -> None:
    async def hello(writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n\r\n")

    async with speaking(hello) as url:
        with pytest.raises(PeerError, match=r"it did not answer in HTTP/1\.1"):
            await send(url=url)


async def test_an_answer_with_bytes_that_are_no_text_is_still_read() -> None:
    async def odd(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX-Odd: caf\xe9\r\nX-Id: 7\r\nContent-Length: 2\r\n\r\nok")

    async with speaking(odd) as url:
        reply = await send(url=url)
        assert (reply.raw, reply.headers["x-id"]) == (b"ok", "7")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n",
        b"HTTP/1.1 201 Created\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\nok",
    ],
    ids=["too large", "not readable"],
)
@pytest.mark.parametrize("wanted", [True, False])
async def test_what_was_taken_is_not_sent_again_for_a_reply_that_nobody_needs(answer: bytes, *, wanted: bool) -> None:
    async def answering(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    host = FakeHost()
    host.wants_reply = wanted
    async with speaking(answering) as url, opened(Sink.model_validate({"url": url}), host) as post:
        if wanted:
            with pytest.raises(PeerError, match="its answer"):
                await post(arriving(host))
        else:
            assert await post(arriving(host)) is None


@pytest.mark.parametrize("declared", [True, False], ids=["by its length", "chunked"])
async def test_an_answer_may_be_as_large_as_a_message(*, declared: bool) -> None:
    limits = Limits.model_validate({"message": "200KiB"})

    def sized(size: int) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
        async def answer(writer: asyncio.StreamWriter) -> None:
            if declared:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                writer.write(b"%x\r\n" % size + b"x" * size + b"\r\n0\r\n\r\n")
            await writer.drain()

        return answer

    async with speaking(sized(200 * 1024)) as url:
        assert len((await send(FakeHost(limits=limits), url=url)).raw or b"") == 200 * 1024
    async with speaking(sized(200 * 1024 + 1)) as url:
        with pytest.raises(PeerError, match="its answer is larger than 204800 bytes"):
            await send(FakeHost(limits=limits), url=url)


async def test_an_answer_that_came_compressed_unasked_is_read() -> None:
    async with serving(Server(200, gzip.compress(b"hello" * 9), {"Content-Encoding": "gzip"})) as server:
        reply = await send(url=f"{server.address}/orders")
        assert reply.raw == b"hello" * 9
        assert "content-encoding" not in reply.headers


async def test_an_answer_that_is_a_bomb_is_refused() -> None:
    async with serving(Server(200, gzip.compress(b"\0" * 50_000_000), {"Content-Encoding": "gzip"})) as server:
        with pytest.raises(PeerError, match="its answer can't be read"):
            await send(url=f"{server.address}/orders")


async def test_connections_are_kept_and_shared() -> None:
    async with listener() as listening:
        server = Server(200)
        with listening.mount("/", ("POST",), server):
            host = FakeHost()
            sink = Sink.model_validate({"url": f"http://{listening.address}/", "connections": 2})
            async with opened(sink, host) as send_one:
                for _ in range(5):
                    await send_one(arriving(host))
                assert len({request.peer for request in server.requests}) == 1
                await asyncio.gather(*(send_one(arriving(host)) for _ in range(50)))
            assert len(server.requests) == 55
            assert len({request.peer for request in server.requests}) <= 3


async def test_sends_beyond_the_connections_wait_and_then_are_told() -> None:
    async with speaking(nothing) as url:
        host = FakeHost()
        sink = Sink.model_validate({"url": url, "connections": 1, "timeout": "300ms"})
        async with opened(sink, host) as send_one:
            first = asyncio.ensure_future(send_one(arriving(host)))
            await asyncio.sleep(0)
            second = asyncio.ensure_future(send_one(arriving(host)))
            errors = await asyncio.gather(first, second, return_exceptions=True)
            assert all(isinstance(error, PeerError) for error in errors)


async def test_a_cancelled_send_leaves_the_others_alone() -> None:
    kept = Kept()
    async with listener() as listening:
        with listening.mount("/", ("POST",), kept):
            host = FakeHost()
            sink = Sink.model_validate({"url": f"http://{listening.address}/", "connections": 10, "timeout": "5s"})
            async with opened(sink, host) as send_one:
                sends = [asyncio.ensure_future(send_one(arriving(host))) for _ in range(5)]
                await until(lambda: len(kept.requests) == 5)
                sends[2].cancel()
                for index, request in enumerate(kept.requests):
                    request.answer(200, b"%d" % index)
                results = await asyncio.gather(*sends, return_exceptions=True)
                assert [isinstance(result, Message) for result in results] == [True, True, False, True, True]
                again = asyncio.ensure_future(send_one(arriving(host)))
                await until(lambda: len(kept.requests) == 6)
                kept.requests[5].answer(200, b"again")
                reply = await again
                assert reply is not None
                assert reply.raw == b"again"


async def test_a_cancellation_is_heard_even_in_the_moment_of_the_answer() -> None:
    kept = Kept()
    async with listener() as listening:
        with listening.mount("/", ("POST",), kept):
            host = FakeHost()
            async with opened(Sink.model_validate({"url": f"http://{listening.address}/"}), host) as send_one:
                for count in range(1, 101):
                    sending = asyncio.ensure_future(send_one(arriving(host)))
                    await until(lambda: len(kept.requests) == count)  # noqa: B023
                    sending.cancel()
                    kept.requests[-1].answer(200)
                    with pytest.raises(asyncio.CancelledError):
                        await sending


async def test_a_sink_may_be_closed_with_sends_in_flight() -> None:
    async with speaking(nothing) as url:
        host = FakeHost()
        async with opened(Sink.model_validate({"url": url, "timeout": "2s"}), host) as send_one:
            sending = asyncio.ensure_future(send_one(arriving(host)))
            await asyncio.sleep(0.05)
        with pytest.raises(PeerError):
            await sending


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with serving(Server()) as server:
        assert (await send(url=f"{server.address}/orders")).transport["status"] == 200


async def test_an_answer_can_be_read_as_its_type_says() -> None:
    async with serving(Server(200, b'{"total": 1.10}', {"Content-Type": "application/json"})) as server:
        reply = await send(url=f"{server.address}/orders")
        assert isinstance(reply.tree, dict)
        assert str(reply.tree["total"]) == "1.10"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"url": "ftp://host/"}, "expected http:// or https://"),
        ({"url": "http://me:secret@host/"}, ""),
        ({"url": "http://{{ body.host }}/"}, ""),
        ({"tls": {}}, "write https://"),
        ({"url": "https://host/", "tls": {"server_name": "other"}}, "write that name in the url"),
        ({"username": "me"}, "username and password: expected both or none"),
        ({"username": "me", "password": "x", "token": "y"}, "either a token or username and password"),
        ({"token": "a\r\nb"}, "no header can carry"),
        ({"headers": {"Authorization": "Bearer x"}, "token": "y"}, "write one of them"),
        ({"headers": {"Content-Length": "1"}}, "can't be set"),
        ({"headers": {"X Y": "1"}}, "expected a header name"),
        ({"method": "FETCH"}, "'POST'"),
        ({"timeout": 5}, "expected a duration"),
        ({"timeout": "0s"}, "greater than 0"),
        ({"timeout": "2h"}, "less than or equal to 3600"),
    ],
)
def test_wrong_settings_are_complained_about(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError) as error:
        Sink.model_validate({"url": "http://host/", **settings})
    assert complaint in str(error.value)
