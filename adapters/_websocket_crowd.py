"""Several open WebSockets together: looked after, and sent away."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from adapters._websocket_link import Link
from gateway import Clock

_SWEEP_S = 1.0
_GOODBYE_S = 1.0


@contextmanager
def swept(links: Collection[Link], clock: Clock) -> Iterator[None]:
    """Calls `sweep` on each of these links every second or so, for as long as the context lasts."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def sweep() -> None:
        nonlocal timer
        timer = loop.call_later(_SWEEP_S, sweep)
        now_s = clock.monotonic()
        for link in tuple(links):
            link.sweep(now_s)

    sweep()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()


async def farewell(links: Collection[Link], code: int, reason: str) -> None:
    """Closes these links, each once what it handed over is settled; those that take more than a second are cut."""
    leaving = [link.lost for link in links]
    for link in tuple(links):
        link.part(code, reason)
    try:
        if leaving:
            await asyncio.wait(leaving, timeout=_GOODBYE_S)
    finally:
        for link in tuple(links):
            link.cut("it did not close in time")
