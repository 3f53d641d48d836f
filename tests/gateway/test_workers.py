"""Workers: as many as needed and no more, in order, cancelled together."""

from __future__ import annotations

import asyncio

import pytest

from gateway import Workers
from gateway.testing import settle


class Work:
    """Work that ends when the test lets it."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.gate = asyncio.Event()

    async def __call__(self, item: int) -> None:
        self.begun.append(item)
        await self.gate.wait()
        self.ended.append(item)


def tasks_named(name: str) -> int:
    return sum(1 for task in asyncio.all_tasks() if task.get_name().startswith(f"{name}-"))


async def test_work_begins_in_the_order_in_which_it_was_put() -> None:
    work = Work()
    async with Workers(work, count=3) as workers:
        for item in range(10):
            workers.put(item)
        await settle()
        assert work.begun == [0, 1, 2]
        work.gate.set()
        await settle()
        assert work.begun == list(range(10))
        assert sorted(work.ended) == list(range(10))


async def test_tasks_are_made_on_demand_and_used_again() -> None:
    work = Work()
    work.gate.set()
    async with Workers(work, count=100, name="lazy") as workers:
        assert tasks_named("lazy") == 0
        for item in range(50):
            workers.put(item)
            await settle()
        assert tasks_named("lazy") == 1
    assert work.ended == list(range(50))


async def test_there_are_never_more_tasks_than_the_count() -> None:
    work = Work()
    async with Workers(work, count=4, name="few") as workers:
        for item in range(20):
            workers.put(item)
        await settle()
        assert (tasks_named("few"), len(work.begun)) == (4, 4)


async def test_busy_says_that_what_is_put_now_would_wait() -> None:
    work = Work()
    async with Workers(work, count=2) as workers:
        assert not workers.busy
        workers.put(1)
        assert not workers.busy
        workers.put(2)
        assert workers.busy
        work.gate.set()
        await settle()
        assert not workers.busy


async def test_room_returns_once_nothing_waits_for_a_free_task() -> None:
    work = Work()
    async with Workers(work, count=1) as workers:
        await workers.room()
        for item in range(3):
            workers.put(item)
        waiting, given_up = asyncio.create_task(workers.room()), asyncio.create_task(workers.room())
        await settle()
        assert not waiting.done()
        given_up.cancel()
        work.gate.set()
        await asyncio.wait_for(waiting, 1)
        assert work.begun[-1] == 2


async def test_the_end_of_the_context_cancels_work_and_lets_what_waits_go() -> None:
    work = Work()
    async with Workers(work, count=1, name="ended") as workers:
        workers.put(1)
        workers.put(2)
        await settle()
    assert (work.begun, work.ended, tasks_named("ended")) == ([1], [], 0)


async def test_what_work_raises_ends_the_context() -> None:
    async def work(_: int) -> None:
        raise ValueError("bug")

    async def working() -> None:
        async with Workers(work, count=2) as workers:
            workers.put(1)
            await asyncio.get_running_loop().create_future()

    with pytest.raises(ExceptionGroup) as group:
        await working()
    assert [str(error) for error in group.value.exceptions] == ["bug"]


async def test_an_error_of_the_context_itself_is_the_error() -> None:
    work = Work()

    async def working() -> None:
        async with Workers(work, count=2) as workers:
            workers.put(1)
            await settle()
            raise KeyError("mine")

    with pytest.raises(ExceptionGroup) as group:
        await working()
    assert isinstance(group.value.exceptions[0], KeyError)


async def test_a_burst_after_idleness_wakes_as_many_as_it_needs() -> None:
    work = Work()
    work.gate.set()
    async with Workers(work, count=5, name="burst") as workers:
        for item in range(5):
            workers.put(item)
        await settle()
        work.gate.clear()
        for item in range(5, 12):
            workers.put(item)
        await settle()
        assert work.begun == list(range(10))
        work.gate.set()
        await settle()
        assert work.begun == list(range(12))


async def test_work_that_cancels_itself_is_a_bug_and_no_task_is_lost_in_silence() -> None:
    async def work(_: int) -> None:
        inner: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        inner.cancel()
        await inner

    async def working() -> None:
        async with Workers(work, count=2) as workers:
            workers.put(1)
            await asyncio.get_running_loop().create_future()

    with pytest.raises(ExceptionGroup) as group:
        await working()
    assert [str(error) for error in group.value.exceptions] == ["worker: its work cancelled itself"]


async def test_what_is_put_while_the_context_ends_begins_nothing() -> None:
    begun: list[int] = []

    async def work(item: int) -> None:
        begun.append(item)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            workers.put(item + 1)
            await asyncio.sleep(0)

    async with asyncio.timeout(2):
        async with Workers(work, count=3) as workers:
            workers.put(1)
            await settle()
        workers.put(9)
    assert begun == [1]
