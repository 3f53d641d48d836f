"""Who came first goes in first, whatever happens between the turn and the step through the gate."""

from __future__ import annotations

import asyncio
import random

from gateway.gate import Gate
from gateway.observe import RouteMeters
from gateway.testing import settle


class Crowd:
    """Tasks that go in as a route does: at once if they can, else when it is their turn."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.went_in: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []

    def come(self) -> None:
        self.tasks.append(asyncio.create_task(self._go_in(len(self.tasks))))

    async def _go_in(self, number: int) -> None:
        if self.gate.enter_at_once() or await self.gate.enter(patient=True):
            self.went_in.append(number)


async def test_who_comes_as_a_gate_opens_does_not_overtake_those_who_waited() -> None:
    crowd = Crowd(Gate(100, RouteMeters()))
    crowd.gate.close(stopping=False)
    for _ in range(5):
        crowd.come()
    await settle()
    crowd.come()  # its first step is due before those of the others, who are woken now
    crowd.gate.reopen()
    await settle()
    assert crowd.went_in == [0, 1, 2, 3, 4, 5]


async def test_who_comes_as_a_place_becomes_free_does_not_overtake_the_one_whose_turn_it_is() -> None:
    crowd = Crowd(Gate(2, RouteMeters()))
    for _ in range(3):
        crowd.come()
    await settle()
    crowd.come()
    crowd.gate.leave()
    crowd.gate.leave()
    await settle()
    assert crowd.went_in == [0, 1, 2, 3]
    assert crowd.gate.inside == 2


async def test_a_crowd_at_a_gate_that_opens_and_closes_goes_in_in_order_and_the_books_balance() -> None:
    luck = random.Random(1)
    meters = RouteMeters()
    crowd = Crowd(Gate(3, meters))
    for _ in range(3000):
        what = luck.random()
        if what < 0.4:
            crowd.come()
        elif what < 0.7 and crowd.gate.inside:
            crowd.gate.leave()
        elif what < 0.75:
            crowd.gate.close(stopping=False)
        elif what < 0.85:
            crowd.gate.reopen()
        elif what < 0.87 and crowd.tasks:
            luck.choice(crowd.tasks).cancel()
        else:
            await asyncio.sleep(0)
        assert crowd.gate.inside <= 3
    crowd.gate.reopen()
    for _ in range(3000):
        await settle(3)
        if crowd.gate.inside:
            crowd.gate.leave()
    assert crowd.went_in == sorted(crowd.went_in)
    assert all(task.done() for task in crowd.tasks)
    assert (crowd.gate.inside, meters.in_flight) == (0, 0)
