"""Pause, resume and reload under traffic, on a real journal: every message is delivered, and delivered once."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from adapters.memory import box
from gateway import Accepted, Message
from gateway.app import App, running
from gateway.config import load
from gateway.errors import ConfigError
from gateway.testing import until

ROUTES = """
version: 1
gateway: {name: paused, data: ./var}
routes:
  orders:
    description: first
    from: rest
    to: {memory: {name: pause-test}}
"""


async def post(app: App, number: int) -> bool:
    """Whether the message was accepted; it is tried again while the route changes."""
    while True:
        message = Message(raw=b'{"n": %d}' % number)
        outcome = await app.routes["orders"].take(message, answers=True, type_="test")
        if isinstance(outcome, Accepted):
            return True


def delivered() -> Counter[int]:
    return Counter(message.tree["n"] for message in box("pause-test", keep=10_000).received)  # type: ignore[index,call-overload,misc]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    box("pause-test", keep=10_000).received.clear()
    file = tmp_path / "routes.yaml"
    file.write_text(ROUTES)
    return file


async def sending(app: App, first: int, count: int) -> None:
    for number in range(first, first + count):
        await post(app, number)


async def test_pauses_under_traffic_lose_nothing_and_send_nothing_twice(file: Path) -> None:
    async with running(load(file)) as app:
        senders = [asyncio.create_task(sending(app, first, 100)) for first in range(0, 800, 100)]
        for _ in range(30):
            await app.pause("orders")
            await app.resume("orders")
        await asyncio.gather(*senders)
        await until(lambda: app.services.journal.counts()["orders"].get("delivered") == 800)
    assert delivered() == Counter(range(800))


async def test_reloads_under_traffic_lose_nothing_and_send_nothing_twice(file: Path) -> None:
    async with running(load(file)) as app:
        senders = [asyncio.create_task(sending(app, first, 100)) for first in range(0, 800, 100)]
        for number in range(20):
            file.write_text(ROUTES.replace("first", f"change {number}"))
            assert await app.reload() == ["orders: changed"]
        await asyncio.gather(*senders)
        await until(lambda: app.services.journal.counts()["orders"].get("delivered") == 800)
    assert delivered() == Counter(range(800))


async def test_what_was_kept_through_a_pause_and_a_restart_is_delivered_after_the_resume(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(load(file)) as app:
        await app.pause("orders")
        await sending(app, 0, 50)
        assert not delivered()
    async with running(load(file)) as app:
        assert app.routes["orders"].paused
        (told,) = [record for record in caplog.records if record.getMessage() == "still paused"]
        assert (told.levelname, told.__dict__["route"]) == ("WARNING", "orders")
        assert app.services.journal.counts()["orders"]["stored"] == 50
        await app.resume("orders")
        await until(lambda: sum(delivered().values()) == 50)
    assert delivered() == Counter(range(50))


async def test_a_pause_that_can_not_be_kept_changes_nothing(file: Path) -> None:
    async with running(load(file)) as app:
        (file.parent / "var" / "paused.new").mkdir()
        with pytest.raises(ConfigError, match=r"paused\.json can't be written"):
            await app.pause("orders")
        assert not app.routes["orders"].paused


async def test_a_file_of_pauses_that_is_none_ends_the_start(file: Path) -> None:
    (file.parent / "var").mkdir()
    (file.parent / "var" / "paused.json").write_text("{}")
    with pytest.raises(ConfigError, match="expected a list of the routes that are paused"):
        async with running(load(file)):
            pass
