"""The gate of a route: how many are inside, who waits and for how long, and how it closes."""

from __future__ import annotations

import asyncio

import pytest

from gateway import gate as gate_module
from gateway.gate import Gate
from gateway.observe import RouteMeters
from gateway.testing import settle


@pytest.fixture
def meters() -> RouteMeters:
    return RouteMeters()


@pytest.fixture
def gate(meters: RouteMeters) -> Gate:
    return Gate(2, meters)


def entering(gate: Gate, *, patient: bool = True) -> asyncio.Task[bool]:
    return asyncio.create_task(gate.enter(patient=patient))


async def full(gate: Gate) -> None:
    while gate.enter_at_once():
        pass


async def test_as_many_come_in_at_once_as_the_limit_says(gate: Gate, meters: RouteMeters) -> None:
    assert [gate.enter_at_once() for _ in range(3)] == [True, True, False]
    assert (gate.inside, meters.in_flight) == (2, 2)


async def test_who_goes_out_lets_in_who_waited_longest(gate: Gate) -> None:
    await full(gate)
    first, second = entering(gate), entering(gate)
    await settle()
    gate.leave()
    await settle()
    assert (first.done(), second.done()) == (True, False)
    gate.leave()
    assert await second is True
    assert gate.inside == 2


async def test_who_waits_for_an_answer_is_sent_away_when_its_patience_ends(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "PATIENCE_S", 0.01)
    await full(gate)
    assert await gate.enter(patient=False) is False
    assert gate.inside == 2


def test_patience_is_one_second() -> None:
    assert gate_module.PATIENCE_S == 1.0


async def test_those_who_gave_up_leave_nothing_behind(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "PATIENCE_S", 0.01)
    await full(gate)
    assert not any(await asyncio.gather(*(gate.enter(patient=False) for _ in range(1000))))
    assert len(gate._waiting) == 0


async def test_the_patient_wait_for_as_long_as_it_takes(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "PATIENCE_S", 0.001)
    await full(gate)
    patient = entering(gate)
    assert await gate.enter(patient=False) is False
    assert not patient.done()
    gate.leave()
    assert await patient is True


async def test_who_is_cancelled_while_it_waits_takes_no_room(gate: Gate) -> None:
    await full(gate)
    first, second = entering(gate), entering(gate)
    await settle()
    first.cancel()
    await settle()
    gate.leave()
    assert await second is True
    assert gate.inside == 2


async def test_who_is_cancelled_when_its_turn_has_come_gives_it_to_the_next(gate: Gate) -> None:
    await full(gate)
    first, second = entering(gate), entering(gate)
    await settle()
    gate.leave()  # it is the turn of the first, which has not run since
    first.cancel()
    await settle()
    assert first.cancelled()
    assert await second is True
    assert gate.inside == 2


async def test_a_closed_gate_lets_nobody_in_until_it_opens_again(gate: Gate) -> None:
    gate.close(stopping=False)
    assert gate.enter_at_once() is False
    waiting = [entering(gate) for _ in range(3)]
    await settle()
    assert not any(task.done() for task in waiting)
    gate.reopen()
    await settle()
    assert [task.done() for task in waiting] == [True, True, False]
    assert gate.inside == 2
    gate.leave()
    assert await waiting[2] is True


async def test_who_leaves_a_closed_gate_lets_nobody_in(gate: Gate) -> None:
    await full(gate)
    waiting = entering(gate)
    await settle()
    gate.close(stopping=False)
    gate.leave()
    await settle()
    assert (waiting.done(), gate.inside) == (False, 1)
    waiting.cancel()


async def test_while_stopping_who_waits_for_an_answer_is_sent_away_at_once(gate: Gate) -> None:
    await full(gate)
    early, patient = entering(gate, patient=False), entering(gate)
    await settle()
    gate.close(stopping=True)
    await settle()
    assert early.done()
    assert await early is False
    assert await asyncio.wait_for(gate.enter(patient=False), 0.5) is False
    assert not patient.done()
    patient.cancel()


async def test_a_closed_gate_is_drained_when_the_last_has_left(gate: Gate) -> None:
    await gate.drained()
    await full(gate)
    gate.close(stopping=True)
    drained = asyncio.create_task(gate.drained())
    also = asyncio.create_task(gate.drained())
    gate.leave()
    await settle()
    assert not drained.done()
    gate.leave()
    await asyncio.gather(drained, also)


async def test_a_wait_for_the_drain_that_is_cancelled_spoils_no_other(gate: Gate) -> None:
    await full(gate)
    gate.close(stopping=False)
    first, second = asyncio.create_task(gate.drained()), asyncio.create_task(gate.drained())
    await settle()
    first.cancel()
    await settle()
    gate.leave()
    gate.leave()
    await second


async def test_a_raised_limit_lets_in_who_waits(gate: Gate) -> None:
    await full(gate)
    waiting = [entering(gate) for _ in range(3)]
    await settle()
    gate.close(stopping=False)
    gate.limit(4)
    gate.reopen()
    await settle()
    assert [task.done() for task in waiting] == [True, True, False]
    waiting[2].cancel()


async def test_a_lowered_limit_is_kept_as_soon_as_enough_have_left(gate: Gate) -> None:
    await full(gate)
    gate.limit(1)
    waiting = entering(gate)
    await settle()
    gate.leave()
    await settle()
    assert (waiting.done(), gate.inside) == (False, 1)
    gate.leave()
    assert await waiting is True
    assert gate.inside == 1
