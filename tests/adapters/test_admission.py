"""Who may connect: totals, per address, and new ones a second."""

from __future__ import annotations

from typing import Any

from adapters._admission import Admission
from gateway import Limits
from gateway.testing import ManualClock


def admission(clock: ManualClock | None = None, **written: Any) -> Admission:
    return Admission(Limits.model_validate({"trusted": (), **written}), clock or ManualClock())


def test_the_last_allowed_connection_comes_in_and_one_more_does_not() -> None:
    door = admission(connections=3, new_connections="1000/s")
    assert [door.admit(f"10.0.0.{n}") for n in range(4)] == [True, True, True, False]
    assert door.refused == 1
    door.leave("10.0.0.1")
    assert door.admit("10.0.0.9")


def test_each_address_has_its_own_share() -> None:
    door = admission(connections_per_address=2, new_connections="1000/s")
    assert [door.admit("10.0.0.1") for _ in range(3)] == [True, True, False]
    assert door.admit("10.0.0.2")
    door.leave("10.0.0.1")
    assert door.admit("10.0.0.1")


def test_the_rate_of_new_connections_of_an_address_recovers_with_time() -> None:
    clock = ManualClock()
    door = admission(clock, new_connections="2/s")
    assert [door.admit("10.0.0.1") for _ in range(3)] == [True, True, False]
    clock._now_s += 0.5
    assert [door.admit("10.0.0.1") for _ in range(2)] == [True, False]
    clock._now_s += 60
    assert [door.admit("10.0.0.1") for _ in range(3)] == [True, True, False]


def test_a_rate_below_one_a_second_still_lets_one_in() -> None:
    assert admission(new_connections="1/m").admit("10.0.0.1")


def test_trusted_networks_are_held_to_the_total_alone() -> None:
    door = admission(trusted=("10.0.0.0/8",), connections=5, connections_per_address=1, new_connections="1/s")
    assert [door.admit("10.0.0.1") for _ in range(6)] == [True] * 5 + [False]


def test_a_flood_from_many_addresses_does_not_fill_the_memory() -> None:
    clock = ManualClock()
    door = admission(clock, connections=100_000)
    for n in range(25_000):
        assert door.admit(f"2001:db8::{n:x}")
        door.leave(f"2001:db8::{n:x}")
    assert len(door._allowance) <= 10_000
    assert len(door._of_address) == 0
