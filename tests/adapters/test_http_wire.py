"""The client's side of HTTP/1.1: what answers may look like, and to whom a connection belongs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from adapters._http_client import host_header, target_of
from adapters._http_pool import ConnectError, Pool
from adapters._http_wire import Answer, WireError
from gateway import Address, Limits

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A server whose connections do what the test says."""

    def __init__(self, talk: Talk) -> None:
        self.connections = 0
        self.requests = 0
        self.port = 0
        self._talk = talk
        self._tasks: set[asyncio.Task[Any]] = set()

    async def read(self, reader: asyncio.StreamReader) -> None:
        """Waits for one request without a body."""
        await reader.readuntil(b"\r\n\r\n")
        self.requests += 1

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._talk(reader, writer)
        except (asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def serving(talk: Talk) -> AsyncIterator[Server]:
    server = Server(talk)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        await server.stop()


@asynccontextmanager
async def pooled(server: Server, **more: Any) -> AsyncIterator[Pool]:
    settings = {"connections": 10, "timeout_s": 3.0, "connect_timeout_s": 3.0, "idle_s": 30.0, "limits": Limits()}
    settings |= more
    limits = settings.pop("limits")
    pool = Pool(Address("127.0.0.1", server.port), None, limits, **settings)  # type: ignore[arg-type]
    try:
        yield pool
    finally:
        pool.close()


def saying(*answers: bytes) -> Talk:
    """One of these for each request of a connection, in turn; then the connection is closed."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()

    return talk


async def forever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(-1)


REQUEST = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"


async def ask(pool: Pool, *, without_body: bool = False) -> Answer:
    return await pool.ask(REQUEST, without_body=without_body)


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (OK, 200, b"ok"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\no\x00\r\n1\r\nk\r\n0\r\n\r\n", 200, b"o\x00k"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil it closes", 200, b"until it closes"),
        (b"HTTP/1.0 200 OK\r\n\r\nold", 200, b"old"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\n\r\n", 304, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, 200, b"ok"),
        (b"HTTP/1.1 599 Whatever\r\ncontent-length: 0\r\n\r\n", 599, b""),
    ],
    ids=["length", "chunked", "until close", "old", "no content", "not modified", "interim", "unknown status"],
)
async def test_an_answer_of_any_form_is_read(answer: bytes, status: int, body: bytes) -> None:
    async with serving(saying(answer)) as server, pooled(server) as pool:
        found = await ask(pool)
        assert (found.status, found.body) == (status, body)
        assert "link" not in found.headers


async def test_an_answer_may_come_byte_by_byte() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for at in range(len(OK)):
            writer.write(OK[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(talk) as server, pooled(server) as pool:
        assert await ask(pool) == Answer(200, {"content-length": "2"}, b"ok")


async def test_an_answer_in_very_many_chunks_holds_up_nobody() -> None:
    count = 100_000
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"40\r\n%b\r\n" % (b"x" * 64) * count
    async with serving(saying(answer + b"0\r\n\r\n")) as server:
        began_s = time.process_time()
        async with pooled(server, limits=Limits(message="8MiB"), timeout_s=60.0) as pool:
            assert (await ask(pool)).body == b"x" * 64 * count
    # Where each chunk was added to a copy of those before it, this took 20 s and more.
    assert time.process_time() - began_s < 5


async def test_headers_of_one_name_are_joined() -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-A: 1 \r\nx-a: 2\r\ncontent-length: 0\r\n\r\n"
    async with serving(saying(answer)) as server, pooled(server) as pool:
        assert (await ask(pool)).headers["x-a"] == "1, 2"


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"220 mail\r\n\r\n", "did not answer in HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok", "did not answer in HTTP/1.1"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "did not answer in HTTP/1.1",
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "its transfer-encoding is not chunked",
        ),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "did not answer in HTTP/1.1"),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "switched to another protocol"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ncut", "closed the connection inside its answer"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\ncut", "closed the connection inside its answer"),
        (b"HTTP/1.1 200 OK\r\nx-y: z\r\n", "closed the connection inside its answer"),
        (b"", "closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"x-y: z\r\n" * 9000 + b"\r\n", "more than 32768 bytes or 100 lines of headers"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n\r\n", "larger than 1048576 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_100_000, "larger than 1048576 bytes"),
    ],
    ids=[
        "another protocol",
        "two lengths",
        "length and chunks",
        "another coding",
        "bad chunk size",
        "upgrade",
        "cut by length",
        "cut in a chunk",
        "cut in the head",
        "nothing",
        "too many headers",
        "too large by its length",
        "too large without",
    ],
)
async def test_a_broken_answer_is_a_sentence_and_ends_the_connection(answer: bytes, fault: str) -> None:
    async with serving(saying(answer)) as server, pooled(server, connections=1) as pool:
        for count in (1, 2):
            with pytest.raises(WireError, match=fault):
                await ask(pool)
            assert server.connections == count


async def test_an_answer_to_head_has_no_body_whatever_it_says() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n"
    async with serving(saying(answer, answer)) as server, pooled(server) as pool:
        for _ in range(2):
            found = await ask(pool, without_body=True)
            assert (found.status, found.body, found.headers) == (200, b"", {"content-length": "100"})


async def test_a_connection_is_used_again_unless_the_server_ends_it() -> None:
    closing = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    async with serving(saying(OK, OK, closing)) as server, pooled(server) as pool:
        for count in (1, 1, 1, 2):
            await ask(pool)
            assert server.connections == count


async def test_a_connection_that_the_server_closed_while_idle_is_not_used() -> None:
    async with serving(saying(OK)) as server, pooled(server) as pool:
        for count in (1, 2, 3):
            assert (await ask(pool)).body == b"ok"
            assert server.connections == count
            await asyncio.sleep(0.01)  # its end has to come through


async def test_a_connection_that_the_server_closes_as_it_is_used_again_costs_no_request() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(reader)
        writer.write(OK)
        await server.read(reader)  # and closes: to who asked it looks as if it had been closed while idle

    async with serving(talk) as server, pooled(server) as pool:
        answers = [await ask(pool) for _ in range(5)]
    assert [answer.body for answer in answers] == [b"ok"] * 5


async def test_a_new_connection_that_brings_no_answer_is_a_failed_request() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(reader)

    async with serving(talk) as server, pooled(server) as pool:
        with pytest.raises(WireError, match="it closed the connection without an answer"):
            await ask(pool)
        assert server.requests == 1


@pytest.mark.parametrize("said", [b"HTTP/1.1 2", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
async def test_a_request_whose_answer_has_begun_is_not_sent_again(said: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(reader)
        writer.write(OK)
        await server.read(reader)
        writer.write(said)

    async with serving(talk) as server, pooled(server) as pool:
        await ask(pool)
        with pytest.raises(WireError, match="it closed the connection inside its answer"):
            await ask(pool)
        assert server.requests == 2


async def test_what_nobody_asked_for_is_never_an_answer() -> None:
    async with serving(saying(OK + OK, OK)) as server, pooled(server) as pool:
        assert (await ask(pool)).body == b"ok"
        assert (await ask(pool)).body == b"ok"
        assert server.connections == 2


async def test_an_answer_that_comes_too_late_is_not_that_of_the_next_request() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if server.connections > 1:
            writer.write(OK)
        await reader.read(-1)

    async with serving(talk) as server, pooled(server, timeout_s=0.1) as pool:
        with pytest.raises(WireError, match=r"no answer within 0\.1 s") as error:
            await ask(pool)
        assert error.value.late
        assert (await ask(pool)).body == b"ok"


async def test_each_request_has_its_own_time() -> None:
    async with serving(forever) as server, pooled(server, timeout_s=0.2) as pool:
        loop = asyncio.get_running_loop()
        began_s = loop.time()

        async def late() -> float:
            with pytest.raises(WireError, match="no answer within"):
                await ask(pool)
            return loop.time() - began_s

        first = asyncio.ensure_future(late())
        await asyncio.sleep(0.1)
        second = asyncio.ensure_future(late())
        took_s = await asyncio.gather(first, second)
        assert took_s[0] < 0.3 <= took_s[1] + 0.01


async def test_requests_beyond_the_connections_have_their_turn_in_order() -> None:
    async with serving(saying(*[OK] * 50)) as server, pooled(server, connections=1) as pool:
        ended: list[int] = []

        async def one(index: int) -> None:
            await ask(pool)
            ended.append(index)

        await asyncio.gather(*(one(index) for index in range(20)))
        assert ended == list(range(20))
        assert server.connections == 1


async def test_who_waits_for_a_connection_hears_that_all_are_busy() -> None:
    async with serving(forever) as server, pooled(server, connections=1, timeout_s=0.2) as pool:
        first = asyncio.ensure_future(ask(pool))
        await asyncio.sleep(0)
        results = await asyncio.gather(first, ask(pool), ask(pool), return_exceptions=True)
        assert all(isinstance(result, WireError) for result in results)
        assert server.connections <= 3


async def test_who_gives_up_waiting_takes_no_connection_along() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await server.read(reader)
            await gate.wait()
            writer.write(OK)

    gate = asyncio.Event()
    async with serving(slow) as server, pooled(server, connections=1) as pool:
        asking = [asyncio.ensure_future(ask(pool)) for _ in range(4)]
        while not server.requests:
            await asyncio.sleep(0)
        asking[1].cancel()
        gate.set()
        await asyncio.sleep(0)
        asking[2].cancel()
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert [isinstance(result, Answer) for result in results] == [True, False, False, True]
        assert (await ask(pool)).body == b"ok"


async def test_a_cancelled_request_ends_its_connection() -> None:
    async with serving(forever) as server, pooled(server, connections=1) as pool:
        asking = asyncio.ensure_future(ask(pool))
        while not server.connections:
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        again = asyncio.ensure_future(ask(pool))
        while server.connections < 2:
            await asyncio.sleep(0)
        again.cancel()


async def test_a_connection_without_use_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters._http_pool._SWEEP_S", 0.02)
    ended = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await reader.read(-1)
        ended.set()

    async with serving(talk) as server, pooled(server, idle_s=0.05) as pool:
        await ask(pool)
        await asyncio.wait_for(ended.wait(), 3)


async def test_a_closed_pool_answers_who_waits_and_who_comes() -> None:
    async with serving(forever) as server, pooled(server, connections=1) as pool:
        asking = [asyncio.ensure_future(ask(pool)) for _ in range(3)]
        while not server.connections:
            await asyncio.sleep(0)
        pool.close()
        results = await asyncio.gather(*asking, ask(pool), return_exceptions=True)
        assert [str(result) for result in results] == ["the sink was closed"] * 4


async def test_nobody_there_is_known_with_its_cause() -> None:
    async with serving(forever) as server:
        pass
    async with pooled(server) as pool:
        with pytest.raises(ConnectError) as error:
            await ask(pool)
        assert isinstance(error.value.__cause__, ConnectionRefusedError)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://h", b"/"),
        ("http://h/a/b?x=1#part", b"/a/b?x=1"),
        ("http://h?x=1", b"/?x=1"),
        ("http://h/stra\u00dfe?\u00e4=%20", b"/stra%C3%9Fe?%C3%A4=%20"),
    ],
)
def test_the_target_of_a_url_is_its_path_and_query(url: str, target: bytes) -> None:
    assert target_of(url, "http://h") == target


def test_the_host_header_is_in_ascii() -> None:
    assert host_header("http://b\u00fccher.example:8080") == b"xn--bcher-kva.example:8080"
    assert host_header("https://[::1]:8443") == b"[::1]:8443"
