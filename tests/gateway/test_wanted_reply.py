"""A reply that can't be used matters to whom it was for, and to nobody else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway import Accepted, Deferred
from gateway.testing import until
from tests.gateway.test_delivery import Bench, empty_boxes, post

__all__ = ["empty_boxes"]

ROUTE = """
version: 1
routes:
  r:
    from: {memory: {name: in}}
    ack: ACK
    to: {http: {url: "http://127.0.0.1:PORT/"}}
"""


async def large(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n\r\n")
    await writer.drain()
    writer.close()


@pytest.mark.parametrize(("ack", "told"), [("stored", Accepted), ("delivered", Accepted), ("reply", Deferred)])
async def test_an_answer_that_is_too_large_fails_only_what_needs_it(
    tmp_path: Path, ack: str, told: type[Accepted | Deferred]
) -> None:
    server = await asyncio.start_server(large, "127.0.0.1", 0)
    async with server:
        port = str(server.sockets[0].getsockname()[1])
        bench = Bench(tmp_path, ROUTE.replace("ACK", ack).replace("PORT", port))
        async with bench.running() as route:
            assert isinstance(await post(route, {"n": 1}), told)
            if ack == "stored":
                await until(lambda: bench.states() == ["delivered"])
