"""Counting lanes: which ones the journal has more of, quickly, since everything waits meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from gateway.lanes import Lanes


def counted(lanes: Lanes, pending: dict[tuple[str, str], int], moved: str) -> bool:
    lanes.begin_count()
    lanes.move(("a", moved))
    return lanes.end_count(pending, ())


def best_of_five(what: Callable[[], object]) -> float:
    def once() -> float:
        began = perf_counter()
        what()
        return perf_counter() - began

    return min(once() for _ in range(5))


def test_lanes_that_moved_while_they_were_counted_are_thought_to_have_the_more() -> None:
    lanes = Lanes()
    assert counted(lanes, {("a", "x"): 3, ("a", "y"): 3, ("a", "z"): 3}, "-")
    assert not counted(lanes, {("a", "x"): 2, ("a", "y"): 2}, "x")
    assert lanes._parked == {("a", "x"): 3, ("a", "y"): 2}
    assert counted(lanes, {("a", "y"): 2}, "-")
    assert lanes._parked == {("a", "y"): 2}


def test_lanes_of_which_nothing_is_in_memory_cost_no_more_than_a_copy() -> None:
    lanes = Lanes()
    pending = {("a", f"k{n}"): 2 for n in range(50_000)}
    counted(lanes, pending, "k1")
    copy_s = best_of_five(lambda: dict(pending))
    assert best_of_five(lambda: counted(lanes, pending, "k1")) < 10 * copy_s + 0.001
