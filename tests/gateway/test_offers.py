"""Messages that are offered: no task waits for their commit; all else is as with those that are handed over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.sqlite import open_journal
from gateway import Message, Outcome
from gateway.clock import SystemClock
from gateway.edge import Door
from gateway.testing import until
from tests.gateway.bench import Bench
from tests.gateway.probe import FEEDS, plug_in, script


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    plug_in(monkeypatch)
    return Bench(tmp_path)


@asynccontextmanager
async def on_disk(bench: Bench) -> AsyncIterator[None]:
    """The bench keeps its messages in a file, and its clock goes by itself."""
    clock = SystemClock()
    async with open_journal(
        bench.folder, age_s=1e6, size_bytes=1 << 40, reserve_bytes=0, clock=clock, on_broken=pytest.fail
    ) as journal:
        bench.services = replace(bench.services, journal=journal, clock=clock)
        yield


def offered(number: int, **fields: object) -> tuple[bool, list[Outcome]]:
    """Offers a message by the door of the source: whether it was taken, and where its outcome will be."""
    door, outcomes = FEEDS["in"], list[Outcome]()
    assert isinstance(door, Door)
    message = Message(raw=None, parsed={"n": number, "k": "x"}, **fields)  # type: ignore[arg-type]
    return door.offer(message, outcomes.append), outcomes


def numbers(name: str = "out") -> list[object]:
    return [tree["n"] for tree in script(name).trees]  # type: ignore[index]


async def test_messages_of_one_key_go_in_their_order_whether_a_task_waits_for_them_or_not(bench: Bench) -> None:
    async with on_disk(bench), bench.route("    order_by: body.k\n    to: {probe: {}}\n") as route:
        for first in range(0, 40, 4):
            waits = [
                asyncio.create_task(
                    route.take(Message(raw=None, parsed={"n": first + n, "k": "x"}), answers=True, type_="test")
                )
                for n in (0, 1)
            ]
            await asyncio.sleep(0)
            assert offered(first + 2)[0]
            assert offered(first + 3)[0]
            await asyncio.gather(*waits)
        await until(lambda: len(numbers()) == 40)
        assert numbers() == list(range(40))
        assert route.gate.inside == 0
