"""Benches of what needs no network: channel, memory, file, drop, log, timer; and udp."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from adapters import channel, drop, file, log, memory, timer, udp
from adapters.memory import box
from gateway import Accepted, Message, MessageError, Outcome, PeerError, Sink, Source
from gateway.testing import SinkBench, SourceBench
from tests.ports import free_port


class InsideSource(SourceBench):
    """A source whose peer is in this process: it waits for the outcome of each message."""

    acknowledges = True
    has_peer = False
    bounds = False

    def __init__(self) -> None:
        super().__init__()
        self.safe: list[bytes] = []
        self.not_taken: list[bytes] = []
        self.sending: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        try:
            yield self
        finally:
            await self.leave()

    async def leave(self) -> None:
        for task in self.sending:
            task.cancel()
        await asyncio.gather(*self.sending, return_exceptions=True)
        self.sending.clear()

    async def handed_over(self, body: bytes) -> bool:
        """Hands over: whether it was accepted."""
        raise NotImplementedError

    async def send(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        async def sending() -> None:
            (self.safe if await self.handed_over(body) else self.not_taken).append(body)

        self.sending.add(asyncio.create_task(sending()))
        await asyncio.sleep(0)

    def accepted(self) -> list[bytes]:
        return list(self.safe)

    def refused(self) -> list[bytes]:
        return list(self.not_taken)


class Memory(InsideSource):
    """memory."""

    def source(self) -> Source:
        return memory.Source(name="contract")

    async def handed_over(self, body: bytes) -> bool:
        outcome: Outcome = await box("contract").send(Message(raw=body))
        return isinstance(outcome, Accepted)


class Channel(InsideSource):
    """channel: the other end is a sink."""

    def source(self) -> Source:
        return channel.Source(name="contract")

    async def handed_over(self, body: bytes) -> bool:
        async with channel.Sink(name="contract").open(self.host) as send:
            try:
                await send(Message(raw=body))
            except (PeerError, MessageError):
                return False
        return True


class FolderSource(SourceBench):
    """file: who puts files there sees them move."""

    acknowledges = True
    has_peer = False
    window = 1
    batch = 100

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.folder = Path(tempfile.mkdtemp(prefix="contract-"))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        try:
            yield self
        finally:
            shutil.rmtree(self.folder)

    def source(self) -> Source:
        return file.Source.model_validate({"folder": str(self.folder / "in"), "every": "5ms", "settle": "0s"})

    async def send(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.count += 1
        name = f"{self.count:06}.json"
        part = self.folder / "in" / f".{name}"
        part.write_bytes(body)
        part.rename(part.with_name(name))

    def accepted(self) -> list[bytes]:
        found = [path for kind in ("done", "failed") for path in (self.folder / "in" / kind).glob("*.json")]
        return [path.read_bytes() for path in sorted(found, key=lambda path: path.name)]


class UdpSource(SourceBench):
    """udp: nobody is told anything."""

    has_peer = False
    largest = 60_000
    batch = 200

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as self.link:
            yield self

    def source(self) -> Source:
        return udp.Source.model_validate({"listen": f"127.0.0.1:{self.port}"})

    async def send(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.link.sendto(body, ("127.0.0.1", self.port))
        await asyncio.sleep(0)


class Timer(SourceBench):
    """timer: nobody sends."""

    has_peer = False

    def source(self) -> Source:
        return timer.Source.model_validate({"every": "1ms"})


class InsideSink(SinkBench):
    """A sink without a peer."""

    has_peer = False


class MemorySink(InsideSink):
    """memory."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        box("contract").received.clear()
        yield self

    def sink(self) -> Sink:
        return memory.Sink(name="contract")

    def received(self) -> list[bytes]:
        return [message.body for message in box("contract").received]


class ChannelSink(InsideSink):
    """channel: delivered when its reader has accepted."""

    confirms = True

    def __init__(self) -> None:
        super().__init__()
        self.bodies_seen: list[bytes] = []
        self.go = asyncio.Event()
        self.go.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        ready = asyncio.Event()
        reading = asyncio.create_task(channel.Source(name="contract").run(self.host, self._take, ready.set))
        await ready.wait()
        try:
            yield self
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _take(self, message: Message) -> Outcome:
        self.bodies_seen.append(message.body)
        await self.go.wait()
        return Accepted(message.id)

    def sink(self) -> Sink:
        return channel.Sink(name="contract")

    def received(self) -> list[bytes]:
        return list(self.bodies_seen)

    def hold(self) -> None:
        self.go.clear()

    def release(self) -> None:
        self.go.set()


class Appended(InsideSink):
    """file, a line for each message."""

    binary = False
    refuses = True
    batch = 100

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="contract-"))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        try:
            yield self
        finally:
            shutil.rmtree(self.folder)

    def sink(self) -> Sink:
        return file.Sink.model_validate({"path": str(self.folder / "out.jsonl")})

    def received(self) -> list[bytes]:
        path = self.folder / "out.jsonl"
        return path.read_bytes().split(b"\n")[:-1] if path.exists() else []

    def uncarried(self) -> Message:
        return self.message(b"two\nlines")


class Created(Appended):
    """file, one for each message."""

    binary = True
    count = 0

    def sink(self) -> Sink:
        path = str(self.folder / "{{ message.subject }}.bin")
        return file.Sink.model_validate({"path": path, "mode": "create"})

    def received(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.folder.glob("*.bin")) if path.name != "taken.bin"]

    def message(self, body: bytes, headers: dict[str, str] | None = None) -> Message:
        self.count += 1
        return super().message(body, headers).replace(subject=f"{self.count:06}")

    def uncarried(self) -> Message:
        (self.folder / "taken.bin").touch()
        return self.message(b"{}").replace(subject="taken")


class Udp(InsideSink):
    """udp: nobody is told anything."""

    largest = 60_000
    refuses = True
    batch = 200

    def __init__(self) -> None:
        super().__init__()
        self.bodies_seen: list[bytes] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**21)
            link.bind(("127.0.0.1", 0))
            link.setblocking(False)
            self.port = link.getsockname()[1]
            loop.add_reader(link, lambda: self.bodies_seen.append(link.recv(65_536)))
            try:
                yield self
            finally:
                loop.remove_reader(link)

    def sink(self) -> Sink:
        return udp.Sink.model_validate({"connect": f"127.0.0.1:{self.port}"})

    def received(self) -> list[bytes]:
        return list(self.bodies_seen)

    def uncarried(self) -> Message:
        return self.message(b"x" * 65_508)


class Drop(InsideSink):
    """drop: what it took is nowhere."""

    def sink(self) -> Sink:
        return drop.Sink()


class Logged(InsideSink):
    """log, with the body as its text."""

    binary = False

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        logger = logging.getLogger("gateway.messages")
        handler = logging.Handler()
        handler.emit = lambda record: self.lines.append(record.text)  # type: ignore[attr-defined,method-assign]
        before = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield self
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before)

    def message(self, body: bytes, headers: dict[str, str] | None = None) -> Message:
        return super().message(body, headers).replace(content_type="text/plain")

    def sink(self) -> Sink:
        return log.Sink.model_validate({"text": "{{ body }}"})

    def received(self) -> list[bytes]:
        return [line.encode() for line in self.lines]


SOURCES: list[type[SourceBench]] = [Memory, Channel, FolderSource, UdpSource]
SINKS: list[type[SinkBench]] = [MemorySink, ChannelSink, Appended, Created, Udp, Logged]
ALONE = ("is_a_documented_settings_class", "opens_and_closes", "it_can_be_cancelled_while_it_starts")
"""The checks for a source that nobody feeds."""
