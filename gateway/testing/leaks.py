"""What a component leaves behind when it was stopped: tasks and sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from gateway.testing.fakes import until

LEFT_S = 2.0
"""How long what was stopped may take to be gone."""
_DESCRIPTORS = Path("/proc/self/fd")


def _sockets() -> set[str]:
    """The sockets of this process by their numbers in the system; none where it has no /proc."""
    found = set()
    if _DESCRIPTORS.is_dir():
        for descriptor in _DESCRIPTORS.iterdir():
            with suppress(OSError):
                found.add(str(descriptor.readlink()))
    return {name for name in found if name.startswith("socket:")}


async def _nobody() -> None:
    """Who has nothing to let go of."""


@asynccontextmanager
async def nothing_left(then: Callable[[], Awaitable[None]] = _nobody) -> AsyncIterator[None]:
    """Checks that no task and no socket is left of what was done within the context.

    then: called at its end, such as for a peer to let go of its side.

    Raises:
        AssertionError: something is still there two seconds later.
    """
    tasks, sockets = asyncio.all_tasks(), _sockets()
    yield
    await then()

    def left() -> set[Any]:
        return {task for task in asyncio.all_tasks() - tasks if not task.done()} | (_sockets() - sockets)

    try:
        await until(lambda: not left(), timeout_s=LEFT_S)
    except AssertionError:
        raise AssertionError(f"left behind: {left()}") from None
