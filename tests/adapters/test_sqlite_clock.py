"""Ages and deadlines of stored messages: they go by journal time, so that a clock that is set ends nothing early."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.memory import box
from gateway import PeerError
from gateway.journal import Filter
from gateway.testing import until
from tests.adapters.test_sqlite_delivery import Bench, books, post, sent

DAY_S = 86_400.0
RETRY = """
version: 1
routes:
  r:
    from: {memory: {name: in}}
    to: {memory: {name: a}, retry: {attempts: 9, first_wait: 10s, max_wait: 10s, max_age: 1h}}
"""
EXPIRE = RETRY.replace("    to:", "    expire_after: 1m\n    to:")


@pytest.fixture(autouse=True)
def away() -> None:
    for name in ("in", "a", "b"):
        box(name).received.clear()
        box(name).failing = None
    box("a").failing = PeerError("away")


def posted(bench: Bench) -> dict[str, float]:
    return {"time_s": bench.clock.time()}


@pytest.mark.parametrize("set_by_s", [DAY_S, -DAY_S])
async def test_a_clock_that_is_set_does_not_end_retries(tmp_path: Path, set_by_s: float) -> None:
    bench = Bench(tmp_path, RETRY)
    async with bench.running() as (route, journal):
        await post(route, n=1, fields=posted(bench))
        await until(lambda: books(journal) == {"pending": 1})
        bench.clock.set_by_s = set_by_s
        await bench.passes(lambda: route.inside.targets[0].meters.failed == 2)
    async with bench.running() as (route, journal):
        await bench.passes(lambda: route.inside.targets[0].meters.failed == 1)
        box("a").failing = None
        await bench.passes(lambda: books(journal) == {"delivered": 1})
    assert sent("a") == [1]


async def test_a_clock_that_was_set_before_the_steps_ran_does_not_end_retries(tmp_path: Path) -> None:
    bench = Bench(tmp_path, RETRY)
    async with bench.running() as (route, journal):
        await route.pause(0)
        await post(route, n=1, fields=posted(bench))
    bench.clock.set_by_s = DAY_S
    async with bench.running() as (route, journal):
        await until(lambda: books(journal) == {"pending": 1})
        box("a").failing = None
        await bench.passes(lambda: books(journal) == {"delivered": 1})


async def test_what_is_too_old_is_not_tried_again_however_the_clock_is_set(tmp_path: Path) -> None:
    bench = Bench(tmp_path, RETRY)
    async with bench.running() as (route, journal):
        await post(route, n=1, fields=posted(bench))
        await until(lambda: books(journal) == {"pending": 1})
        bench.clock.set_by_s = -DAY_S
        await bench.clock.advance(3590)
        await bench.passes(lambda: books(journal) == {"dead": 1})


async def test_a_replay_has_all_of_its_time_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, RETRY)
    async with bench.running() as (route, journal):
        await post(route, n=1, fields=posted(bench))
        await until(lambda: books(journal) == {"pending": 1})
        await bench.clock.advance(3590)
        await bench.passes(lambda: books(journal) == {"dead": 1})
        (row,) = (await journal.browse(Filter(), None, 10)).rows
        failed = route.inside.targets[0].meters.failed
        assert await journal.replay([row.id], None, "me") == 1
        assert route.delivering is not None
        route.delivering.poke()
        await until(lambda: route.inside.targets[0].meters.failed == failed + 1)
        box("a").failing = None
        await bench.passes(lambda: books(journal) == {"delivered": 1})


@pytest.mark.parametrize("set_by_s", [DAY_S, -DAY_S])
async def test_a_deadline_comes_no_sooner_or_later_when_the_clock_is_set(tmp_path: Path, set_by_s: float) -> None:
    bench = Bench(tmp_path, EXPIRE)
    async with bench.running() as (route, journal):
        for n in (1, 2):
            await post(route, n=n, fields=posted(bench))
        await until(lambda: books(journal) == {"pending": 2})
        bench.clock.set_by_s = set_by_s
        box("a").failing = None
        await bench.passes(lambda: books(journal) == {"delivered": 2})
        box("a").failing = PeerError("away")
        await post(route, n=3, fields=posted(bench))
        await until(lambda: books(journal) == {"delivered": 2, "pending": 1})
        bench.clock.set_by_s = 0.0
        await bench.passes(lambda: books(journal) == {"delivered": 2, "expired": 1})


async def test_a_target_is_told_a_deadline_by_the_clock_as_it_is_now(tmp_path: Path) -> None:
    bench = Bench(tmp_path, EXPIRE)
    async with bench.running() as (route, journal):
        await post(route, n=1, fields=posted(bench))
        await until(lambda: books(journal) == {"pending": 1})
        bench.clock.set_by_s = DAY_S
        box("a").failing = None
        received_s = bench.clock.monotonic()
        await bench.passes(lambda: books(journal) == {"delivered": 1})
    (message,) = box("a").received
    assert message.expires_at_s is not None
    assert message.expires_at_s == pytest.approx(received_s + 60 + DAY_S, abs=0.1)


async def test_what_waited_before_it_was_stored_is_part_of_its_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path, EXPIRE)
    box("a").failing = None
    async with bench.running() as (route, journal):
        now_s = bench.clock.time()
        await post(route, n=1, fields={"time_s": now_s - 50, "expires_at_s": now_s - 1})
        await until(lambda: books(journal) == {"expired": 1})
    assert sent("a") == []
