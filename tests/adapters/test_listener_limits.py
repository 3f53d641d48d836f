"""Each size that a peer may ask for, at the limit and one over it."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway import Limits
from gateway.testing import ManualClock, until
from tests.adapters.raw_http import Kept, desk, listener, peer, post

SMALL = Limits.model_validate(
    {"message": "64B", "headers": "300B", "header_count": 6, "header_line": "100B", "in_flight": 4}
)
LINE = len("GET  HTTP/1.1\r\n")
HOST = "Host: gateway\r\n"
LENGTH = "Content-Length: 2\r\n"


def get(path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\n{HOST}{headers}\r\n".encode()


def lines(count: int, size: int) -> str:
    """So many header lines of so many bytes, line ends included."""
    return "".join(f"X-{index:02}: " + "x" * (size - 8) + "\r\n" for index in range(count))


async def test_a_body_at_the_limit_is_taken() -> None:
    async with desk(limits=SMALL) as one:
        assert (await one.ask(post(b"x" * 64))).status == 202


async def test_a_body_over_the_limit_is_refused_by_its_length_before_it_is_sent() -> None:
    async with desk(limits=SMALL) as one, peer(one.address) as client:
        await client.send(post(b"x" * 65, extra="Expect: 100-continue\r\n")[:-65])
        response = await client.response()
        assert response.status == 413
        assert response.headers["connection"] == "close"
        assert json.loads(response.body)["code"] == "too_large"
        assert await client.closed()
        assert one.inbox.messages == []


@pytest.mark.parametrize(("size", "status"), [(64, 202), (65, 413)], ids=["at the limit", "over it"])
async def test_a_chunked_body_is_counted_as_it_comes(size: int, status: int) -> None:
    head = f"POST /orders HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n".encode()
    async with desk(limits=SMALL) as one, peer(one.address) as client:
        await client.send(head)
        for _ in range(size):
            await client.send(b"1\r\nx\r\n")
        await client.send(b"0\r\n\r\n")
        assert (await client.response()).status == status


async def test_a_chunked_body_without_end_is_cut_short() -> None:
    async with desk(limits=SMALL) as one, peer(one.address) as client:
        await client.send(f"POST /orders HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n".encode())
        sending = asyncio.create_task(client.send((b"40\r\n" + b"x" * 64 + b"\r\n") * 100_000))
        assert (await client.response()).status == 413
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_chunks_of_nothing_but_framing_are_refused() -> None:
    async with desk(limits=SMALL) as one, peer(one.address) as client:
        await client.send(f"POST /orders HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n".encode())
        sending = asyncio.create_task(client.send((b"1;" + b"e" * 50_000 + b"\r\nx\r\n") * 40))
        assert (await client.response()).status == 413
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_refused_peer_that_is_still_sending_reads_why() -> None:
    async with desk(limits=SMALL) as one, peer(one.address) as client:
        await client.send(post(b"x" * 3_000_000))
        assert (await client.response()).status == 413


@pytest.mark.parametrize(("size", "status"), [(100, 404), (101, 414)], ids=["at the limit", "over it"])
async def test_a_request_line_has_a_limit(size: int, status: int) -> None:
    async with desk(limits=SMALL) as one:
        assert (await one.ask(get("/" + "p" * (size - LINE - 1)))).status == status


async def test_a_request_line_without_end_is_refused() -> None:
    async with desk(limits=SMALL) as one, peer(one.address) as client:
        await client.send(b"GET /" + b"p" * 200)
        assert (await client.response()).status == 414


@pytest.mark.parametrize(("size", "status"), [(100, 202), (101, 431)], ids=["at the limit", "over it"])
async def test_a_header_line_has_a_limit(size: int, status: int) -> None:
    async with desk(limits=SMALL, methods=["GET"]) as one:
        assert (await one.ask(get("/orders", lines(1, size)))).status == status


@pytest.mark.parametrize(("count", "status"), [(5, 202), (6, 431)], ids=["at the limit", "over it"])
async def test_header_lines_are_counted(count: int, status: int) -> None:
    async with desk(limits=SMALL, methods=["GET"]) as one:
        assert (await one.ask(get("/orders", lines(count, 20)))).status == status


@pytest.mark.parametrize(("count", "status"), [(5, 202), (6, 431)], ids=["at the limit", "over it"])
async def test_repeated_header_lines_are_counted(count: int, status: int) -> None:
    async with desk(limits=SMALL, methods=["GET"]) as one:
        assert (await one.ask(get("/orders", "X-Same: a\r\n" * count))).status == status


@pytest.mark.parametrize(("last", "status"), [(85, 202), (86, 431)], ids=["at the limit", "over it"])
async def test_headers_have_a_limit_together(last: int, status: int) -> None:
    async with desk(limits=SMALL, methods=["GET"]) as one:
        headers = lines(2, 100) + "Y-00: " + "y" * (last - 8) + "\r\n"
        assert len(HOST + headers) == 300 + (last - 85)
        assert (await one.ask(get("/orders", headers))).status == status


async def test_headers_without_end_are_refused_while_they_come() -> None:
    async with desk(limits=SMALL) as one, peer(one.address) as client:
        await client.send(f"GET /orders HTTP/1.1\r\n{HOST}".encode() + b"X: y\r\n" * 10)
        assert (await client.response()).status == 431


async def test_a_header_line_without_end_is_refused_while_it_comes() -> None:
    async with desk(limits=SMALL) as one, peer(one.address) as client:
        await client.send(f"GET /orders HTTP/1.1\r\n{HOST}X: ".encode() + b"y" * 20_000)
        assert (await client.response()).status == 431


@pytest.mark.parametrize(("count", "status"), [(3, 202), (4, 431)], ids=["at the limit", "over it"])
async def test_trailers_count_as_headers(count: int, status: int) -> None:
    head = f"POST /orders HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\nX-A: b\r\n\r\n0\r\n"
    async with desk(limits=SMALL) as one:
        assert (await one.ask((head + "T: x\r\n" * count + "\r\n").encode())).status == status


async def test_each_route_has_its_own_limit_of_bodies() -> None:
    large, small = Kept(), Kept()
    async with listener(limits=SMALL) as listening:
        with (
            listening.mount("/large", ("POST",), large, limits=Limits.model_validate({"message": "100B"})),
            listening.mount("/small", ("POST",), small, limits=Limits.model_validate({"message": "10B"})),
        ):
            async with peer(listening.address) as client:
                await client.send(post(b"x" * 100, path="/large"))
                await until(lambda: large.requests)
                large.requests[0].answer(200)
                assert (await client.response()).status == 200
                assert (await client.exchange(post(b"x" * 11, path="/small"))).status == 413


async def test_connections_over_the_total_are_told_to_come_again() -> None:
    limits = Limits.model_validate({"connections": 2})
    async with (
        listener(limits=limits) as listening,
        peer(listening.address),
        peer(listening.address),
        peer(listening.address) as third,
    ):
        response = await third.response()
        assert response.status == 503
        assert response.headers["retry-after"] == "1"
        assert await third.closed()


async def test_a_connection_that_ends_makes_room() -> None:
    limits = Limits.model_validate({"connections": 1})
    async with listener(limits=limits) as listening:
        async with peer(listening.address) as first:
            assert (await first.exchange(get("/"))).status == 404

        async def answered() -> int:
            async with peer(listening.address) as client:
                return (await client.exchange(get("/"))).status

        async with asyncio.timeout(5):
            while await answered() != 404:
                pass


async def test_connections_of_one_address_have_a_limit() -> None:
    limits = Limits.model_validate({"connections_per_address": 1, "trusted": []})
    async with listener(limits=limits) as listening, peer(listening.address) as first:
        assert (await first.exchange(get("/"))).status == 404
        async with peer(listening.address) as second:
            assert (await second.response()).status == 503
        assert (await first.exchange(get("/"))).status == 404


async def test_a_trusted_address_may_have_more_connections() -> None:
    limits = Limits.model_validate({"connections_per_address": 1, "new_connections": "1/s"})
    async with listener(limits=limits) as listening, peer(listening.address), peer(listening.address) as second:
        assert (await second.exchange(get("/"))).status == 404


async def test_new_connections_of_one_address_have_a_rate() -> None:
    clock = ManualClock()
    limits = Limits.model_validate({"new_connections": "2/s", "trusted": []})
    async with listener(limits=limits, clock=clock) as listening:

        async def status() -> int:
            async with peer(listening.address) as client:
                await client.send(get("/"))
                return (await client.response()).status

        assert [await status(), await status(), await status()] == [404, 404, 503]
        await clock.advance(0.5)
        assert [await status(), await status()] == [404, 503]
