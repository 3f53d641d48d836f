"""An http source offers what it gets to its route: answers only once it is safe, and everything in its order."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from gateway.testing import settle, until
from tests.gateway.bench import Bench
from tests.gateway.probe import plug_in, script
from tests.gateway.test_discard import numbers, states
from tests.gateway.test_offers import on_disk
from tests.ports import free_port


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    plug_in(monkeypatch)
    return Bench(tmp_path)


def settings(port: int, more: str = "") -> str:
    return f"    from: {{http: {{listen: 127.0.0.1:{port}, path: /in}}}}\n{more}    to: {{probe: {{}}}}\n"


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


def request(number: int, *, packed: bool = False) -> bytes:
    body = b'{"n": %d, "k": "x"}' % number
    extra = b""
    if packed:
        body, extra = gzip.compress(body), b"Content-Encoding: gzip\r\n"
    return b"POST /in HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b" % (extra, len(body), body)


async def status(reader: asyncio.StreamReader) -> int:
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.partition(b":")[2]))
    return int(head.split()[1])


def hold_commits(bench: Bench) -> list[Callable[[], None]]:
    """What is stored from now on becomes durable when it is called."""
    append, commits = bench.journal.append, list[Callable[[], None]]()
    bench.journal.append = lambda *args: commits.append(partial(append, *args))  # type: ignore[method-assign]
    return commits


async def test_nothing_is_answered_before_it_is_durable(bench: Bench) -> None:
    port, commits = free_port(), hold_commits(bench)
    async with bench.route(settings(port)) as route, connected(port) as (reader, writer):
        writer.write(request(1))
        await until(lambda: commits)
        answer = asyncio.create_task(status(reader))
        await settle(100)
        assert not answer.done()
        assert (route.gate.inside, numbers()) == (1, [])
        commits[0]()
        assert await answer == 202
        await settle(40)
        assert (route.gate.inside, numbers()) == (0, [1])


@pytest.mark.parametrize("in_flight", [2, 4, 1000])
async def test_pipelined_messages_of_a_key_go_in_their_order(bench: Bench, in_flight: int) -> None:
    port = free_port()
    more = f"    order_by: body.k\n    limits: {{in_flight: {in_flight}}}\n"
    async with on_disk(bench), bench.route(settings(port, more)) as route, connected(port) as (reader, writer):
        for number in range(200):
            writer.write(request(number, packed=number % 7 == 3))
            if number % 9 == 0:
                await asyncio.sleep(0.001)
        assert [await status(reader) for _ in range(200)] == [202] * 200
        await until(lambda: len(numbers()) == 200)
        assert numbers() == [*range(200)]
        assert route.gate.inside == 0


async def test_who_has_gone_before_the_commit_has_its_message_delivered_all_the_same(bench: Bench) -> None:
    port, commits = free_port(), hold_commits(bench)
    async with bench.route(settings(port)) as route:
        async with connected(port) as (_, writer):
            writer.write(request(1))
            await until(lambda: commits)
        await settle(100)
        commits[0]()
        await settle(40)
        assert (route.gate.inside, numbers(), states(bench)) == (0, [1], ["delivered"])


async def test_a_source_that_stops_while_a_message_is_committed_loses_neither_it_nor_its_place(bench: Bench) -> None:
    port, commits = free_port(), hold_commits(bench)
    async with bench.route(settings(port)) as route, connected(port) as (reader, writer):
        writer.write(request(1))
        await until(lambda: commits)
        await route.stop(0)
        assert await status(reader) == 503  # it is to be sent again, which does no harm
        commits[0]()
        await settle(40)
        assert (route.gate.inside, numbers(), states(bench)) == (0, [], ["stored"])
    async with bench.route(settings(port)):
        await settle(40)
        assert numbers() == [1]


async def test_a_full_journal_is_answered_503_and_takes_again_once_there_is_room(bench: Bench) -> None:
    port = free_port()
    async with bench.route(settings(port)) as route, connected(port) as (reader, writer):
        bench.journal.full = True
        writer.write(request(1))
        assert await status(reader) == 503
        bench.journal.full = False
        writer.write(request(2))
        assert await status(reader) == 202
        await settle(40)
        assert (route.gate.inside, numbers()) == (0, [2])


@pytest.mark.parametrize("more", ["    accept: [{filter: body.n > 5}]\n", "    order_by: body.none\n"])
async def test_what_is_refused_is_answered_as_ever(bench: Bench, more: str) -> None:
    port = free_port()
    async with bench.route(settings(port, more)) as route, connected(port) as (reader, writer):
        writer.write(request(1))
        assert await status(reader) == 422
        assert route.gate.inside == 0
    meters = bench.observed.route("r")
    assert (meters.received, meters.refused, meters.accepted) == (1, 1, 0)
    assert script("out").received == []
