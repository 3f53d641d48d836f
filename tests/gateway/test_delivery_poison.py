"""Messages that seem to kill the process run alone and end as dead letters; the others keep their order and their way."""

from __future__ import annotations

import asyncio
from pathlib import Path

from adapters.memory import box
from gateway import Message
from gateway.host import Alone
from gateway.journal import Delivery, Expanded
from gateway.suspects import POISON_CLAIMS, SUSPECT_CLAIMS
from gateway.testing import settle, until
from tests.gateway.test_delivery import Bench, empty_boxes, sent
from tests.memory_journal import append

__all__ = ["empty_boxes"]

ORDERED = """
version: 1
routes:
  r:
    from: {memory: {name: in}}
    order_by: body.k
    to: {memory: {name: a}}
"""
SLOW = """
version: 1
routes:
  r:
    from: {memory: {name: in}}
    to: {tcp: {connect: "127.0.0.1:PORT", reply: {accepted: OK, timeout: 50s}}, name: a}
"""


async def stored(bench: Bench, number: int, key: str | None = None, claims: int = 0) -> Message:
    message = Message(raw=b'{"k": "%s", "n": %d}' % ((key or "").encode(), number), key=key)
    await append(bench.journal, "r", message)
    bench.journal.records[message.id].claims = claims
    return message


async def delivery(bench: Bench, number: int, claims: int) -> Message:
    message = await stored(bench, number)
    change = Delivery(parent=message.id, target="memory", message=message, due_at=0.0)
    await bench.journal.advance("r", [Expanded(message.id, [change])])
    bench.journal.records[message.id].delivery_claims[message.id, "memory"] = claims
    return message


async def test_a_suspect_is_overtaken_by_nothing_of_its_key_and_by_all_others(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ORDERED)
    await stored(bench, 1, "x", claims=SUSPECT_CLAIMS)
    await stored(bench, 2, "x")
    await stored(bench, 3, "y")
    await stored(bench, 4, "x", claims=SUSPECT_CLAIMS)
    await stored(bench, 5, "x")
    async with bench.running():
        await settle(200)
        assert bench.states() == ["delivered"] * 5
    assert [tree["n"] for tree in sent("a") if tree["k"] == "x"] == [1, 2, 4, 5]
    assert next(tree["n"] for tree in sent("a")) == 3


async def test_of_many_suspects_only_the_one_that_kills_becomes_a_dead_letter(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ORDERED)
    for number in range(20):
        await stored(bench, number, "x", claims=POISON_CLAIMS if number == 7 else SUSPECT_CLAIMS)
    async with bench.running():
        await settle(400)
    assert bench.states() == ["delivered"] * 7 + ["dead"] + ["delivered"] * 12
    assert [tree["n"] for tree in sent("a")] == [*range(7), *range(8, 20)]


async def test_the_suspect_that_was_begun_most_often_is_tried_first(tmp_path: Path) -> None:
    """Else all that were under way with it would be sent, one by one, before it can show once more what it does."""
    bench = Bench(tmp_path, ORDERED)
    for number, key in enumerate("abcd"):
        await stored(bench, number, key, claims=SUSPECT_CLAIMS)
    await stored(bench, 4, "e", claims=SUSPECT_CLAIMS + 1)
    async with bench.running():
        await settle(400)
    assert [tree["n"] for tree in sent("a")] == [4, 0, 1, 2, 3]


async def test_the_suspected_delivery_that_was_begun_most_often_is_tried_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ORDERED.replace("    order_by: body.k\n", ""))
    for number in range(3):
        await delivery(bench, number, SUSPECT_CLAIMS + number)
    async with bench.running():
        await settle(400)
    assert [tree["n"] for tree in sent("a")] == [2, 1, 0]


async def test_suspected_deliveries_are_sent_one_after_the_other_and_only_the_killer_dies(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ORDERED.replace("    order_by: body.k\n", ""))
    for number in range(10):
        await delivery(bench, number, POISON_CLAIMS if number == 4 else SUSPECT_CLAIMS)
    await delivery(bench, 10, 0)
    async with bench.running():
        await settle(400)
    assert bench.states() == ["delivered"] * 4 + ["dead"] + ["delivered"] * 6
    assert next(tree["n"] for tree in sent("a")) == 10


async def test_orderly_stops_never_make_a_message_suspicious(tmp_path: Path) -> None:
    heard = asyncio.Event()
    answering = False

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            heard.set()
            if answering:
                writer.write(b"OK\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    bench = Bench(tmp_path, SLOW.replace("PORT", str(server.sockets[0].getsockname()[1])))
    await stored(bench, 1)
    message = await stored(bench, 2)
    change = Delivery(parent=message.id, target="a", message=message, due_at=0.0)
    await bench.journal.advance("r", [Expanded(message.id, [change])])
    async with server:
        for _ in range(POISON_CLAIMS + 1):
            heard.clear()
            async with bench.running():
                await asyncio.wait_for(heard.wait(), 5)
        answering = True
        async with bench.running():
            await until(lambda: bench.states() == ["delivered"] * 2)


async def test_suspects_are_known_as_such_only_after_crashes(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ORDERED)
    await stored(bench, 1, "x", claims=SUSPECT_CLAIMS - 1)
    await stored(bench, 2, "x")
    async with bench.running():
        await settle(100)
    assert [tree["n"] for tree in sent("a")] == [1, 2]
    assert box("a").failing is None


async def test_suspects_of_two_routes_do_not_run_at_the_same_time(tmp_path: Path) -> None:
    heard: list[bytes] = []
    answering = False

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            heard.append(line)
            while not answering:
                await asyncio.sleep(0)
            writer.write(b"OK\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    bench = Bench(tmp_path, SLOW.replace("PORT", str(server.sockets[0].getsockname()[1])))
    await stored(bench, 1, claims=SUSPECT_CLAIMS)
    alone, other, asked = Alone(), object(), asyncio.Event()
    assert alone.begin(other, asked.set)
    async with server, bench.running(alone=alone):
        await settle(50)
        assert heard == []
        alone.end(other)
        await until(lambda: len(heard) == 1)
        assert not alone.begin(other, asked.set)
        answering = True
        await asyncio.wait_for(asked.wait(), 5)
        assert alone.begin(other, asked.set)
        assert bench.states() == ["delivered"]


async def test_what_waits_behind_a_suspect_is_bounded_by_its_bytes_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ORDERED.replace("    order_by", "    limits: {in_memory_size: 1KiB}\n    order_by"))
    for number in range(200):
        await stored(bench, number, "x", claims=0 if number else SUSPECT_CLAIMS)
    alone, other = Alone(), object()
    assert alone.begin(other, lambda: None)
    async with bench.running(alone=alone) as route:
        await settle(400)
        assert route.delivering is not None
        assert 10 < len(route.delivering._suspects.works) < 70
        alone.end(other)
        await until(lambda: len(sent("a")) == 200)
    assert [tree["n"] for tree in sent("a")] == list(range(200))
    assert bench.states() == ["delivered"] * 200
