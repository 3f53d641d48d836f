"""The data listener: who gets a request, in which order answers go out, and what is left when it closes."""

from __future__ import annotations

import asyncio
import json
import socket
import struct

import pytest

from adapters._listener import Listener
from adapters._request import Refusal, Request, header_lines
from gateway import ConfigError
from gateway.settings import ListenAt
from gateway.testing import FakeHost, ManualClock, until
from tests.adapters.raw_http import HERE, Kept, Peer, listener, peer, post


def get(path: str, *, method: str = "GET", extra: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: gateway\r\n{extra}\r\n".encode()


def reset(client: Peer) -> None:
    """Cuts the connection so that the other side notices at once."""
    link = client.writer.get_extra_info("socket")
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()


def says(text: str) -> Kept:
    """A handler that answers at once."""

    class Says(Kept):
        def __call__(self, request: Request) -> None:
            super().__call__(request)
            request.answer(200, text.encode())

    return Says()


async def test_the_answers_of_pipelined_requests_go_out_in_their_order() -> None:
    kept = Kept()
    async with listener() as listening, peer(listening.address) as client:
        with listening.mount("/orders/{id}", ("GET",), kept):
            await client.send(b"".join(get(f"/orders/{index}") for index in range(5)))
            await until(lambda: len(kept.requests) == 5)
            for index in (4, 2, 0, 3, 1):
                kept.requests[index].answer(200, kept.requests[index].params["id"].encode())
            assert [(await client.response()).body for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_refusal_waits_for_the_answers_before_it() -> None:
    kept = Kept()
    async with listener() as listening, peer(listening.address) as client:
        with listening.mount("/orders", ("POST",), kept):
            await client.send(post() + b"nonsense\r\n\r\n")
            await until(lambda: kept.requests)
            kept.requests[0].answer(200, b"first")
            assert (await client.response()).body == b"first"
            assert (await client.response()).status == 400
            assert await client.closed()


async def test_continue_waits_for_the_answers_before_it() -> None:
    kept = Kept()
    async with listener() as listening, peer(listening.address) as client:
        with listening.mount("/orders", ("POST",), kept):
            await client.send(post() + post(extra="Expect: 100-continue\r\n")[:-2])
            await until(lambda: kept.requests)
            kept.requests[0].answer(200, b"first")
            assert (await client.response()).body == b"first"
            assert (await client.head())[0] == 100
            await client.send(b"{}")
            await until(lambda: len(kept.requests) == 2)
            kept.requests[1].answer(201)
            assert (await client.response()).status == 201


async def test_a_request_may_come_byte_by_byte() -> None:
    kept = Kept()
    async with listener() as listening, peer(listening.address) as client:
        with listening.mount("/orders/{id}", ("POST",), kept):
            for byte in post(b"body", path="/orders/a%20b?x=1&x=2&y", extra="X-A: b \r\nx-a: c\r\n"):
                await client.send(bytes([byte]))
            await until(lambda: kept.requests)
            request = kept.requests[0]
            assert (request.method, request.path, request.body) == ("POST", "/orders/a%20b", b"body")
            assert request.params == {"id": "a b"}
            assert request.query == {"x": "1, 2", "y": ""}
            assert request.headers == {"host": "gateway", "content-length": "4", "x-a": "b, c"}
            assert request.peer.startswith("127.0.0.1:")
            assert request.scheme == "http"


async def test_a_body_may_come_in_many_pieces() -> None:
    kept = Kept()
    async with listener() as listening, peer(listening.address) as client:
        with listening.mount("/orders", ("POST",), kept):
            body = bytes(range(256)) * 3000
            await client.send(post(body) + post(b"next"))
            await until(lambda: len(kept.requests) == 2)
            assert kept.requests[0].body == body
            assert kept.requests[1].body == b"next"


async def test_only_the_first_answer_counts() -> None:
    kept = Kept()
    async with listener() as listening, peer(listening.address) as client:
        with listening.mount("/orders", ("GET",), kept):
            await client.send(get("/orders") + get("/orders"))
            await until(lambda: len(kept.requests) == 2)
            kept.requests[0].answer(200, b"one")
            kept.requests[0].answer(500, b"again")
            kept.requests[1].answer(200, b"two")
            assert [(await client.response()).body for _ in range(2)] == [b"one", b"two"]


async def test_an_answer_to_a_peer_that_has_gone_does_nothing() -> None:
    kept = Kept()
    async with listener() as listening:
        with listening.mount("/orders", ("GET",), kept):
            async with peer(listening.address) as client:
                await client.send(get("/orders") * 2)
                await until(lambda: len(kept.requests) == 2)
                reset(client)
            await until(lambda: not listening.connections)
            for request in kept.requests:
                request.answer(200, b"late")


async def test_a_request_that_is_cut_in_its_body_is_not_handed_over() -> None:
    kept = Kept()
    async with listener() as listening:
        with listening.mount("/orders", ("POST",), kept):
            async with peer(listening.address) as client:
                await client.send(post(b"x" * 100)[:-1])
            await until(lambda: not listening.connections)
            assert kept.requests == []


async def test_a_peer_that_only_stops_sending_gets_its_answers() -> None:
    kept = Kept()
    async with listener() as listening, peer(listening.address) as client:
        with listening.mount("/orders", ("GET",), kept):
            await client.send(get("/orders"))
            client.writer.write_eof()
            await until(lambda: kept.requests)
            await asyncio.sleep(0.05)
            kept.requests[0].answer(200, b"here")
            response = await client.response()
            assert (response.body, response.headers["connection"]) == (b"here", "close")
            assert await client.closed()


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/orders", "orders"),
        ("/orders/7", "one of orders"),
        ("/orders/new", "new"),
        ("/orders/new/lines", "lines"),
        ("/orders/%6Eew", "new"),
        ("/orders/a%2Fb", "one of orders"),
        ("/7/orders", "orders of"),
    ],
)
async def test_static_segments_win_over_parameters(path: str, found: str) -> None:
    async with listener() as listening, peer(listening.address) as client:
        with (
            listening.mount("/orders", ("GET",), says("orders")),
            listening.mount("/orders/{id}", ("GET",), says("one of orders")),
            listening.mount("/orders/new", ("GET",), says("new")),
            listening.mount("/orders/{id}/lines", ("GET",), says("lines")),
            listening.mount("/{customer}/orders", ("GET",), says("orders of")),
        ):
            assert (await client.exchange(get(path))).body == found.encode()


async def test_a_parameter_is_decoded_once() -> None:
    kept = says("")
    async with listener() as listening, peer(listening.address) as client:
        with listening.mount("/{a}/{b}", ("GET",), kept):
            await client.exchange(get("/%2541/%C3%A9%2F.."))
            assert kept.requests[0].params == {"a": "%41", "b": "é/.."}


async def test_methods_of_one_path_may_go_different_ways() -> None:
    async with listener() as listening, peer(listening.address) as client:
        with (
            listening.mount("/orders", ("GET",), says("got")),
            listening.mount("/orders", ("POST", "PUT"), says("posted")),
        ):
            assert (await client.exchange(get("/orders"))).body == b"got"
            assert (await client.exchange(post())).body == b"posted"
            response = await client.exchange(get("/orders", method="DELETE"))
            assert (response.status, response.headers["allow"]) == (405, "GET, OPTIONS, POST, PUT")


async def test_two_handlers_of_one_path_and_method_are_a_mistake() -> None:
    async with listener() as listening:
        with (
            listening.mount("/orders/{id}", ("GET",), says("")),
            pytest.raises(ConfigError, match="two routes take GET, POST at /orders"),
            listening.mount("/orders/{name}", ("GET", "POST"), says("")),
        ):
            pass


async def test_head_is_get_without_a_body() -> None:
    async with listener() as listening, peer(listening.address) as client:
        with listening.mount("/orders", ("GET",), says("four")):
            await client.send(get("/orders", method="HEAD"))
            response = await client.response(bodiless=True)
            assert (response.status, response.headers["content-length"]) == (200, "4")
            assert (await client.exchange(get("/orders"))).body == b"four"


async def test_a_body_to_nobody_is_read_over() -> None:
    async with listener() as listening, peer(listening.address) as client:
        with listening.mount("/orders", ("GET",), says("got")):
            assert (await client.exchange(post(b"x" * 100_000, path="/nothing"))).status == 404
            assert (await client.exchange(post(b"x" * 100_000))).status == 405
            assert (await client.exchange(get("/orders"))).body == b"got"


async def test_headers_may_be_refused_before_the_body_is_sent() -> None:
    kept = Kept()
    refusal = Refusal(415, "unsupported", "no")
    async with listener() as listening, peer(listening.address) as client:
        with listening.mount("/orders", ("POST",), kept, check=lambda headers: refusal):
            await client.send(post(extra="Expect: 100-continue\r\n")[:-2])
            assert (await client.response()).status == 415
            assert await client.closed()
            assert kept.requests == []


async def test_a_handler_that_fails_is_our_fault_and_nobody_elses(caplog: pytest.LogCaptureFixture) -> None:
    def fails(request: Request) -> None:
        raise RuntimeError("secret of ours")

    async with listener() as listening, peer(listening.address) as client, peer(listening.address) as other:
        with listening.mount("/orders", ("GET",), fails), listening.mount("/other", ("GET",), says("fine")):
            await client.send(get("/orders"))
            # The request itself waits for its answer; who never gets it is told when the handler goes.
            await until(lambda: "http request failed" in caplog.text)
            assert (await other.exchange(get("/other"))).body == b"fine"
        response = await client.response()
        assert response.status == 503
        assert b"secret" not in response.body


async def test_what_is_withdrawn_answers_503_and_is_forgotten_later() -> None:
    clock, kept = ManualClock(), Kept()
    async with listener(clock=clock) as listening, peer(listening.address) as client:
        with listening.mount("/orders", ("GET",), kept):
            await client.send(get("/orders"))
            await until(lambda: kept.requests)
        assert (await client.response()).status == 503
        kept.requests[0].answer(200, b"too late")
        response = await client.exchange(get("/orders"))
        assert (response.status, json.loads(response.body)["code"]) == (503, "busy")
        await clock.advance(11)
        listening.tick()
        assert (await client.exchange(get("/orders"))).status == 404
        with listening.mount("/orders", ("GET",), says("again")):
            assert (await client.exchange(get("/orders"))).body == b"again"


async def test_a_closing_listener_answers_what_it_has_and_closes_the_idle() -> None:
    host, kept = FakeHost(), Kept()
    async with (
        host.share(Listener(ListenAt(HERE))) as listening,
        peer(listening.address) as idle,
        peer(listening.address) as busy,
    ):
        with listening.mount("/orders", ("GET",), kept):
            assert (await idle.exchange(get("/"))).status == 404
            await busy.send(get("/orders"))
            await until(lambda: kept.requests)
            kept.requests[0].answer(200, b"x" * 1_000_000)
        closing = asyncio.create_task(listening.close())
        assert await idle.closed()
        assert (await busy.response()).body == b"x" * 1_000_000
        assert await busy.closed()
        await closing


async def test_the_port_is_free_once_the_listener_is_closed() -> None:
    async with listener() as listening:
        address = listening.address
    host = FakeHost()
    async with host.share(Listener(ListenAt(address))) as again:
        assert again.address == address


async def test_an_address_that_is_taken_is_a_sentence() -> None:
    async with listener() as listening:
        with pytest.raises(ConfigError, match="address already in use"):
            async with FakeHost().share(Listener(ListenAt(listening.address))):
                pass


async def test_equal_settings_are_one_listener() -> None:
    host = FakeHost()
    async with host.share(Listener(ListenAt(HERE))) as one, host.share(Listener(ListenAt(HERE))) as other:
        assert one is other


async def test_a_path_for_upgrades_alone_says_so() -> None:
    def take(request: Request, transport: asyncio.Transport, early: bytes) -> asyncio.Protocol:
        raise AssertionError

    async with listener() as listening, peer(listening.address) as client:
        with listening.mount("/live", (), Kept(), upgrade=take):
            response = await client.exchange(get("/live"))
            assert (response.status, response.headers["upgrade"]) == (426, "websocket")
            assert (await client.exchange(post(path="/live"))).status == 405


class Echo(asyncio.Protocol):
    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.transport.write(data.upper())

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


UPGRADE = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"


async def test_an_upgrade_hands_the_connection_over_with_what_came_early() -> None:
    taken: list[tuple[Request, bytes, Echo]] = []

    def take(request: Request, transport: asyncio.Transport, early: bytes) -> asyncio.Protocol:
        echo = Echo(transport)
        taken.append((request, early, echo))
        transport.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        echo.data_received(early)
        return echo

    async with listener() as listening, peer(listening.address) as client:
        with (
            listening.mount("/live/{room}", (), Kept(), upgrade=take),
            listening.mount("/live/{name}", ("GET",), says("plain")),
        ):
            assert (await client.exchange(get("/live/a"))).body == b"plain"
            await client.send(get("/live/b?x=1", extra=UPGRADE) + b"early")
            assert (await client.head())[0] == 101
            assert await client.reader.readexactly(5) == b"EARLY"
            await client.send(b"x" * 10_000)
            assert await client.reader.readexactly(10_000) == b"X" * 10_000
            request, early, echo = taken[0]
            assert (request.params, request.query, early) == ({"room": "b"}, {"x": "1"}, b"early")
            assert request.headers["upgrade"] == "WebSocket"
            echo.transport.close()
            assert await client.closed()
            await until(lambda: echo.lost)


async def test_an_upgrade_does_not_overtake_a_request() -> None:
    def take(request: Request, transport: asyncio.Transport, early: bytes) -> asyncio.Protocol:
        raise AssertionError

    kept = Kept()
    async with listener() as listening, peer(listening.address) as client:
        with listening.mount("/live", ("GET",), kept, upgrade=take):
            await client.send(get("/live") + get("/live", extra=UPGRADE))
            await until(lambda: kept.requests)
            kept.requests[0].answer(200)
            assert (await client.response()).status == 200
            assert (await client.response()).status == 400


@pytest.mark.parametrize("value", ["a\r\nb", "a\nb", "a\0b", "€"])
def test_no_answer_carries_a_header_that_is_two(value: str) -> None:
    with pytest.raises(ValueError, match="header x"):
        header_lines([("x", value)])
