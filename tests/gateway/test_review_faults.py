"""One message, one bug, one lost wait: what goes wrong with one stored message is never felt by the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from gateway import Deferred, Message, MessageError, registry
from gateway.journal import Change, Expanded, Waiting
from gateway.testing import settle
from tests.gateway.bench import Bench, post
from tests.gateway.probe import plug_in, raises, script


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    plug_in(monkeypatch)
    adapters = registry.plugged("adapters")
    faulty = (EntryPoint("faulty", "tests.gateway.faulty", "gateway.transforms"),)
    monkeypatch.setattr(registry, "plugged", lambda group: adapters if group == "adapters" else faulty)
    return Bench(tmp_path)


def numbers(name: str = "out") -> list[object]:
    return [tree["n"] for tree in script(name).trees]  # type: ignore[index]


def states(bench: Bench) -> list[str]:
    return [record.state for record in bench.journal.records.values()]


async def test_a_bug_in_a_targets_step_is_a_dead_letter_and_the_others_go_on(bench: Bench) -> None:
    async with bench.route("    to: {probe: {}, steps: [faulty]}\n") as route:
        await post(route, {"n": 1, "bug": True})
        await post(route, {"n": 2})
        assert numbers() == [2]
        assert states(bench) == ["dead", "delivered"]
    assert bench.dead == ["the gateway failed on this message; its log says why"]


async def test_a_bug_in_the_target_for_dead_letters_keeps_them_in_the_journal(bench: Bench) -> None:
    async with bench.route("    to: {probe: {}}\n    dead_letter: {probe: {name: dead}, name: dead}\n") as route:
        script("out").does = raises(MessageError("no"))
        script("dead").does = raises(ZeroDivisionError("a bug"))
        await post(route, {"n": 1})
        script("out").does = lambda message: None
        await post(route, {"n": 2})
        assert numbers() == [1, 2]
        assert states(bench) == ["dead", "delivered"]


async def test_a_change_that_the_journal_can_not_write_holds_up_no_other_message(bench: Bench) -> None:
    async with bench.route("    to: {probe: {}}\n") as route:
        advance = bench.journal.advance

        def failing(name: str, changes: Sequence[Change]) -> asyncio.Future[None]:
            if any(isinstance(change, Expanded) for change in changes):
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                future.set_exception(ZeroDivisionError("a bug"))
                return future
            return advance(name, changes)

        bench.journal.advance = failing  # type: ignore[assignment,method-assign]
        script("out").does = raises(MessageError("no"))
        await post(route, {"n": 1})
        script("out").does = lambda message: None
        await post(route, {"n": 2})
        assert numbers() == [1, 2]


async def test_a_question_that_the_journal_fails_on_is_asked_again(bench: Bench) -> None:
    async with bench.route("    to: {probe: {}}\n") as route:
        stored = bench.journal.stored
        bench.journal.stored = raises(ZeroDivisionError("a bug"))  # type: ignore[assignment]
        assert route.delivering is not None
        route.delivering.poke()
        await post(route, {"n": 1})
        assert numbers() == []
        bench.journal.stored = stored  # type: ignore[method-assign]
        await bench.clock.advance(2)
        await settle(40)
        assert numbers() == [1]


HALF = """
    to:
      - {probe: {name: a}, name: a, steps: [{filter: body.missing.x}]}
      - {probe: {name: b}, name: b}
      - {probe: {name: c}, name: c, steps: [{call: {probe: {name: asked}, name: asked}}]}
"""


async def test_a_stop_while_a_message_is_packed_leaves_out_no_target(bench: Bench) -> None:
    release = asyncio.Event()

    async def slow(message: Message) -> Message | None:
        await release.wait()
        return message

    script("asked").does = slow
    async with bench.route(HALF) as route:
        await post(route, {"n": 1})
    assert (numbers("a"), numbers("b"), numbers("c")) == ([], [], [])
    release.set()
    async with bench.route(HALF):
        await settle(60)
    assert (numbers("a"), numbers("b"), numbers("c")) == ([], [1], [1])


async def test_dedupe_waits_for_room_in_the_journal(bench: Bench) -> None:
    async with bench.route("    steps: [{dedupe: {by: body.n}}]\n    to: {probe: {}}\n") as route:
        append = bench.journal.append

        def last(name: str, message: Message, waiting: Waiting[bool]) -> None:
            append(name, message, waiting)
            bench.journal.full = True

        bench.journal.append = last  # type: ignore[assignment,method-assign]
        await post(route, {"n": 1})
        assert states(bench) == ["stored"]
        bench.journal.full = False
        await bench.clock.advance(5)
        await settle(40)
        assert states(bench) == ["delivered"]
        assert numbers() == [1]


async def test_a_pause_lets_a_call_finish_which_is_not_made_again(bench: Bench) -> None:
    release = asyncio.Event()

    async def slow(message: Message) -> Message | None:
        await release.wait()
        return message

    script("asked").does = slow
    async with bench.route("    steps: [{call: {probe: {name: asked}, name: asked}}]\n    to: {probe: {}}\n") as route:
        await post(route, {"n": 1})
        pausing = asyncio.create_task(route.pause(30))
        await settle()
        release.set()
        await pausing
        route.resume()
        await settle(60)
        assert numbers("asked") == [1]
        assert numbers() == [1]
    assert states(bench) == ["delivered"]


async def test_a_bug_while_a_dead_letter_is_handed_over_defers_the_sender(bench: Bench) -> None:
    settings = "    ack: delivered\n    to: {probe: {}}\n    dead_letter: {probe: {name: dead}, name: dead}\n"
    async with bench.route(settings) as route:
        script("out").does = raises(MessageError("no"))
        script("dead").does = raises(ZeroDivisionError("a bug"))
        assert isinstance(await post(route, {"n": 1}, answers=False), Deferred)
