"""What all tests have in common."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import settings

# A check that lets changes in or keeps them out must say the same twice; whoever works on the code looks for news.
settings.register_profile("ci", derandomize=True, database=None)
if os.environ.get("CI"):
    settings.load_profile("ci")


def loop_of_the_gateway() -> asyncio.AbstractEventLoop:
    """A loop as the gateway has it: uvloop's, or asyncio's where that is not installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop = uvloop.new_event_loop()
    loop.set_exception_handler(_end_what_is_over_time)
    return loop


def _end_what_is_over_time(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # What a signal's handler raises, as pytest-timeout's does, ends asyncio's loop; uvloop only tells of it.
    loop.default_exception_handler(context)
    if isinstance(context.get("exception"), pytest.fail.Exception):
        loop.stop()


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Async tests run on the loop that the gateway runs on: uvloop's transports, and their ends, are not asyncio's.

    What drives the gateway from outside in tests/reliability runs on asyncio's, as it does in its long form.
    """
    outside = "reliability" in item.path.parts
    return {"asyncio": asyncio.new_event_loop} if outside else {"the gateway's": loop_of_the_gateway}
