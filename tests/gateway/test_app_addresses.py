"""Reloads that change what listens: nobody who connects meanwhile is refused, and routes may trade addresses."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway import Accepted, ConfigError
from gateway.testing import settle, until
from tests.certificates import Authority
from tests.gateway.probe import BROKEN, FEEDS, plug_in, script
from tests.gateway.test_app import Desk, fed, route
from tests.ports import free_port

RELOADS = 20


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def listening(name: str, source: str, *, ack: str = "delivered", more: str = "") -> str:
    return f"  {name}:\n    from: {source}\n    ack: {ack}\n{more}    to: {{probe: {{name: {name}}}}}\n"


def http(port: int, more: str = "", host: str = "127.0.0.1") -> str:
    return f"{{http: {{listen: '{host}:{port}', path: /in{more}}}}}"


def tcp(port: int, more: str = "") -> str:
    return f"{{tcp: {{listen: '127.0.0.1:{port}', answer: {{accepted: OK}}{more}}}}}"


async def posted(port: int, body: bytes, host: str = "127.0.0.1") -> int:
    """The status of one request over a connection of its own."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"POST /in HTTP/1.1\r\nhost: desk\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body))
        writer.write(body)
        return int((await reader.readuntil(b"\r\n\r\n")).split(b" ")[1])
    finally:
        writer.close()


async def said(port: int, body: bytes) -> bytes:
    """What one line over a connection of its own is answered with; b"": the connection was closed instead."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(body + b"\n")
        return await reader.readline()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


class Senders:
    """Clients that connect anew for each message, until they are told to stop. A refused connection ends the test."""

    def __init__(self, send: Callable[[bytes], Awaitable[Any]]) -> None:
        self.answers: dict[int, Any] = {}
        self._send = send
        self._stopping = False
        self._count = 0

    async def __aenter__(self) -> Senders:
        self._tasks = [asyncio.create_task(self._run()) for _ in range(4)]
        await self.more(20)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stopping = True
        async with asyncio.timeout(10):
            await asyncio.gather(*self._tasks)

    async def _run(self) -> None:
        while not self._stopping:
            self._count += 1
            number = self._count
            self.answers[number] = await self._send(json.dumps(number).encode())

    async def more(self, count: int) -> None:
        """Returns once so many more were answered."""
        wanted = len(self.answers) + count
        await until(lambda: len(self.answers) >= wanted or any(task.done() for task in self._tasks))
        for task in self._tasks:
            if task.done():
                task.result()


CHANGES: dict[str, Callable[[int], tuple[str, str]]] = {
    "answer": lambda n: (f", answer: {{headers: {{x-n: '{n}'}}}}", ""),
    "methods": lambda n: (", methods: [POST, PUT]" if n % 2 else "", ""),
    "limits": lambda n: ("", f"    limits: {{message: {100 + n}KiB, in_flight: {20 + n}}}\n"),
}
LOOPS: dict[str, Callable[[Coroutine[Any, Any, None]], None]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("change", CHANGES)
def test_who_connects_anew_each_time_is_never_refused_while_a_route_that_is_alone_changes(
    desk: Desk, change: str, loop: str
) -> None:
    async def scene() -> None:
        port = free_port()

        def write(number: int) -> None:
            source, more = CHANGES[change](number)
            desk.write(listening("alone", http(port, source), more=more))

        write(0)
        async with desk.running() as app, Senders(lambda body: posted(port, body)) as senders:
            for number in range(1, RELOADS + 1):
                write(number)
                assert await app.reload() == ["alone: changed"]
                await senders.more(5)
        assert set(senders.answers.values()) <= {202, 503}
        taken = sorted(number for number, status in senders.answers.items() if status != 503)
        assert sorted(map(str, script("alone").trees)) == sorted(map(str, taken))

    LOOPS[loop](scene())


def test_a_stream_s_port_stays_ours_while_its_route_changes(desk: Desk) -> None:
    async def scene() -> None:
        port = free_port()
        desk.write(listening("alone", tcp(port)))
        async with desk.running() as app, Senders(lambda body: said(port, body)) as senders:
            for number in range(1, RELOADS + 1):
                desk.write(listening("alone", tcp(port), more=f"    limits: {{in_flight: {20 + number}}}\n"))
                assert await app.reload() == ["alone: changed"]
                await senders.more(5)
        assert set(senders.answers.values()) <= {b"OK\n", b"BUSY\n", b""}
        taken = {number for number, answer in senders.answers.items() if answer == b"OK\n"}
        assert taken <= set(script("alone").trees)

    uvloop.run(scene())  # asyncio's own server forgets what it accepted in its last turn


async def test_who_shakes_hands_until_after_the_change_is_closed_and_not_forgotten(desk: Desk) -> None:
    port, authority = free_port(), Authority(desk.folder)
    pair = authority.issue("gw")
    tls = f"{{tls: {{certificate: {pair.certificate}, private_key: {pair.private_key}}}}}"
    top = f"gateway: {{grace: 2s}}\nlisteners:\n  '127.0.0.1:{port}': {tls}"
    trusting = ssl.create_default_context(cafile=authority.ca)
    loop = asyncio.get_running_loop()
    desk.write(listening("alone", tcp(port)), top=top)
    async with desk.running() as app:
        with socket.socket() as slow:
            slow.setblocking(False)
            await loop.sock_connect(slow, ("127.0.0.1", port))
            await settle()
            desk.write(listening("alone", tcp(port), more="    limits: {in_flight: 20}\n"), top=top)
            await app.reload()
            async with asyncio.timeout(5):
                with suppress(ConnectionError):
                    reader, writer = await asyncio.open_connection(sock=slow, ssl=trusting, server_hostname="127.0.0.1")
                    writer.write(b"1\n")
                    assert await reader.read() == b""
                    writer.close()


async def test_datagrams_wait_while_their_route_changes(desk: Desk) -> None:
    port = free_port()

    def write(number: int) -> None:
        source = f"{{udp: {{listen: '127.0.0.1:{port}', queue: {1000 + number}}}}}"
        desk.write(f"  alone:\n    from: {source}\n    to: {{probe: {{name: alone}}}}\n")

    write(0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(("127.0.0.1", port))
        async with desk.running() as app:
            for number in range(1, RELOADS + 1):
                write(number)
                reloading = asyncio.create_task(app.reload())
                while not reloading.done():
                    sender.send(json.dumps(number).encode())  # raises once nobody has the port
                    await asyncio.sleep(0)
                assert await reloading == ["alone: changed"]
                sender.send(b"0")
            await until(lambda: script("alone").trees.count(0) == RELOADS)
    assert {*range(RELOADS + 1)} == set(script("alone").trees)


@pytest.mark.parametrize("source", [http, tcp], ids=["http", "tcp"])
async def test_two_routes_may_trade_their_addresses(desk: Desk, source: Callable[[int], str]) -> None:
    one, two = free_port(), free_port()

    async def names(port: int) -> None:
        await (posted(port, b"1") if source is http else said(port, b"1"))

    desk.write(listening("a", source(one)) + listening("b", source(two)))
    async with desk.running() as app:
        desk.write(listening("a", source(two)) + listening("b", source(one)))
        assert await app.reload() == ["a: changed", "b: changed"]
        await names(one)
        assert (len(script("a").received), len(script("b").received)) == (0, 1)
        await names(two)
        assert (len(script("a").received), len(script("b").received)) == (1, 1)


async def test_a_trade_that_fails_in_its_middle_brings_all_back(desk: Desk) -> None:
    one, two = free_port(), free_port()
    desk.write(listening("a", http(one)) + route("b") + listening("c", http(two)) + route("d"))
    async with desk.running() as app:
        BROKEN.add("new")
        broken = route("b", source="{probe: {name: new}}")
        desk.write(listening("a", http(two)) + broken + listening("c", http(one)) + route("d", to="other"))
        with pytest.raises(ConfigError, match=r"^probe new: it is broken$"):
            await app.reload()
        assert (await posted(one, b"1"), await posted(two, b"2")) == (202, 202)
        assert (script("a").trees, script("c").trees) == ([1], [2])
        assert isinstance(await fed("b", 3), Accepted)
        assert isinstance(await fed("d", 4), Accepted)
        assert script("out").trees == [3, 4]
        assert app.config.routes["a"] == app.routes["a"].configured
        BROKEN.clear()
        assert await app.reload() == ["a: changed", "b: changed", "c: changed", "d: changed"]
        await posted(one, b"5")
        assert script("c").trees == [2, 5]


async def test_a_route_that_can_not_be_brought_back_is_tried_again_with_the_next_reload(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.write(route("a") + route("b"))
    async with desk.running() as app:
        BROKEN.update({"b", "new"})
        desk.write(route("a", to="other") + route("b", source="{probe: {name: new}}"))
        with pytest.raises(ConfigError):
            await app.reload()
        assert isinstance(await fed("a", 1), Accepted)
        assert [record.route for record in caplog.records if record.message == "route not brought back"] == ["b"]  # type: ignore[attr-defined]
        assert not desk.observed.ready()
        assert sorted(FEEDS) == ["a"]
        BROKEN.clear()
        desk.write(route("a") + route("b"))
        assert await app.reload() == ["b: changed"]
        assert isinstance(await fed("b", 2), Accepted)
        assert desk.observed.ready()
    assert script("out").trees == [1, 2]


async def test_a_listener_that_stays_open_keeps_to_the_new_limits(desk: Desk) -> None:
    port = free_port()
    long = b'"' + b"x" * 3000 + b'"'
    desk.write(listening("alone", http(port), more="    limits: {message: 2KiB}\n"))
    async with desk.running() as app:
        assert await posted(port, long) == 413
        desk.write(listening("alone", http(port), more="    limits: {message: 4KiB, header_count: 2}\n"))
        await app.reload()
        assert await posted(port, long) == 431
        desk.write(listening("alone", http(port), more="    limits: {message: 4KiB}\n"))
        await app.reload()
        assert await posted(port, long) == 202


async def test_an_address_may_become_another_kind_of_listener(desk: Desk, tmp_path: Path) -> None:
    """What is kept open must not be in the way of what comes: another kind, another host of the port, TLS."""
    port = free_port()
    authority = Authority(tmp_path)
    pair = authority.issue("gw")
    tls = f"{{tls: {{certificate: {pair.certificate}, private_key: {pair.private_key}}}}}"
    top = f"gateway: {{grace: 2s}}\nlisteners:\n  '127.0.0.1:{port}': {tls}"
    sources = [http(port), tcp(port), http(port, host="localhost"), http(port), tcp(port)]
    desk.write(listening("a", sources[0]))
    async with desk.running() as app:
        for source in sources[1:]:
            desk.write(listening("a", source))
            assert await app.reload() == ["a: changed"]
            if source.startswith("{tcp"):
                assert await said(port, b"1") == b"OK\n"
            else:
                assert await posted(port, b"1") == 202
        desk.write(listening("a", http(port)), top=top)
        assert await app.reload() == ["a: changed"]
        async with asyncio.timeout(5):
            trusting = ssl.create_default_context(cafile=authority.ca)
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
        writer.close()


async def test_what_is_not_used_any_more_is_closed_at_the_end_of_the_reload(desk: Desk) -> None:
    port = free_port()
    desk.write(listening("a", http(port)) + listening("b", http(port).replace("/in", "/b")))
    async with desk.running() as app:
        desk.write(route("a") + listening("b", tcp(free_port())))
        await app.reload()
        with pytest.raises(ConnectionRefusedError):
            await posted(port, b"1")
