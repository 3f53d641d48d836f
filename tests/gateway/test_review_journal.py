"""What is promised on a real journal: what was stored is delivered, whoever stopped waiting for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from adapters.memory import box
from gateway import Message
from gateway.app import App, running
from gateway.config import load
from gateway.testing import until

ROUTES = """
version: 1
gateway: {name: review, data: ./var}
routes:
  orders:
    from: rest
    order_by: body.k
    to: {memory: {name: review-test}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    box("review-test").received.clear()
    file = tmp_path / "routes.yaml"
    file.write_text(ROUTES)
    return file


def taking(app: App, number: int) -> asyncio.Task[object]:
    message = Message(raw=b'{"k": "x", "n": %d}' % number)
    return asyncio.create_task(app.routes["orders"].take(message, answers=True, type_="test"))


def delivered() -> list[int]:
    return [message.tree["n"] for message in box("review-test").received]  # type: ignore[index,call-overload,misc]


async def test_a_message_whose_sender_left_during_the_commit_is_delivered_and_in_order(file: Path) -> None:
    async with running(load(file)) as app:
        await taking(app, 0)
        await until(lambda: delivered() == [0])
        delivering = app.routes["orders"].delivering
        await until(lambda: delivering is not None and not delivering._spilled)
        left = taking(app, 1)
        after = taking(app, 2)
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.gather(left, after, return_exceptions=True)
        assert left.cancelled()
        await until(lambda: len(delivered()) == 3, timeout_s=3)
    assert delivered() == [0, 1, 2]
