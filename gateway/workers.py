"""Fixed tasks that do what a source hands over: bounded, made on demand, no task per message."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Workers(Generic[T]):
    """Up to `count` tasks that call `work` with what was put, in the order it was put.

    Use it as `async with Workers(work, count=256) as workers`. A task is made when there is work and none is free,
    and stays. When the context ends all tasks are cancelled, and what is still waiting is let go: the source has not
    settled it. `work` handles its own errors; what it raises ends the context with that error.
    """

    def __init__(self, work: Callable[[T], Awaitable[None]], *, count: int, name: str = "worker") -> None:
        self._work = work
        self._count = count
        self._name = name
        self._waiting: deque[T] = deque()
        self._free: list[asyncio.Future[None]] = []
        self._tasks = asyncio.TaskGroup()
        self._made = 0
        self._called = 0
        """Tasks that were woken or made, and have not begun yet."""
        self._relieves = False
        """One of these takes over from a task that may be waiting in its work."""
        self._ending = False
        self._room: asyncio.Future[None] | None = None
        self._workers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Workers[T]:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        for task in self._workers:
            task.cancel()
        await self._tasks.__aexit__(kind, error, trace)

    @property
    def busy(self) -> bool:
        """Whether everything that was put would now have to wait for a free task."""
        return len(self._waiting) >= len(self._free) + self._called + self._count - self._made

    @property
    def waiting(self) -> bool:
        """Whether something that was put has not begun yet."""
        return bool(self._waiting)

    def put(self, item: T) -> None:
        """Hands over. Never waits: bound what you put by `busy`, `room` or your own window."""
        self._waiting.append(item)
        if not self._called:
            self._call()

    async def room(self) -> None:
        """Returns once nothing that was put is still waiting for a free task."""
        while self._waiting:
            if self._room is None or self._room.done():
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._room)

    def _call(self) -> bool:
        """Wakes a free task, or makes one; False: all are at work."""
        if self._free:
            free = self._free.pop()
            if free.done():  # cancelled, as all of them are
                return False
            free.set_result(None)
        elif self._made < self._count and not self._ending:  # a task made now would never be cancelled
            self._made += 1
            task = self._tasks.create_task(self._run(), name=f"{self._name}-{self._made}")
            self._workers.add(task)
        else:
            return False
        self._called += 1
        return True

    async def _run(self) -> None:
        waiting, work, free = self._waiting, self._work, self._free
        loop = asyncio.get_running_loop()
        while True:
            self._called -= 1
            if self._relieves:
                self._relieves = False
                for _ in range(len(waiting) - 1):
                    self._call()
            while waiting:
                item = waiting.popleft()
                if not waiting:
                    if self._room is not None and not self._room.done():
                        self._room.set_result(None)
                elif not self._called:
                    # One task does all that was put at once, as long as the work does not wait: waking a task costs
                    # as much as many a message. The next one called finds out: what is left is for others to begin.
                    self._relieves = self._call()
                try:
                    await work(item)
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if task is not None and task.cancelling():
                        raise
                    # This task would be gone without a word, and with it what it was given.
                    raise RuntimeError(f"{self._name}: its work cancelled itself") from None
            idle = loop.create_future()
            free.append(idle)
            await idle
