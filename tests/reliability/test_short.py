"""The short form of `make reliability`: each kind of harm once or a few times, and the control builds that lie.

What this finds, `python -m tests.reliability --only <suite> --seed <n>` repeats at length.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from adapters.sqlite import SqliteJournal
from gateway import Message
from gateway.testing import until
from tests.adapters.test_sqlite import opened
from tests.memory_journal import append
from tests.reliability import disks, power_cut, runs
from tests.reliability.launch import lie
from tests.reliability.ledger import Ledger
from tests.reliability.runs import Stage
from tests.reliability.suites import SUITES, Suite

pytestmark = [pytest.mark.slow, pytest.mark.timeout(170)]

TIMES = {"random_kills": 4, "stops": 3, "reloads": 10, "target_down": 2, "full_disk": 2}
"""Suites do their harm so often here; the others once."""


@pytest.fixture
def seed() -> int:
    """Another one each time: what fails says which."""
    return random.SystemRandom().randrange(1_000_000)


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
async def test_nothing_is_lost_by(suite: Suite, tmp_path: Path, seed: int) -> None:
    stage = Stage(tmp_path, random.Random(seed), TIMES.get(suite.name, 1))
    try:
        verdict = await suite.run(stage)
    except disks.SkippedError as skipped:
        pytest.skip(str(skipped))
    assert verdict.good, f"seed {seed}: " + "\n".join(verdict.some())
    assert verdict.acknowledged > 20


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
async def test_a_gateway_that_acknowledges_before_it_commits_is_caught_by(suite: Suite, tmp_path: Path) -> None:
    stage = Stage(tmp_path, random.Random(1), suite.least, points=runs.POINTS[2:3])
    try:
        verdict = await suite.run(stage.lying(suite.least))
    except disks.SkippedError as skipped:
        pytest.skip(str(skipped))
    assert verdict.lost


def test_nothing_is_lost_by_a_power_cut(seed: int) -> None:
    found = power_cut.check(40, seed)
    assert found.good, f"seed {seed}: {found}"


def test_a_journal_that_does_not_sync_is_caught_by_a_power_cut() -> None:
    assert power_cut.check(40, 1, "OFF").lost


async def test_the_lie_is_told_before_a_message_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SqliteJournal, "append", SqliteJournal.append)  # as it was, at the end
    lie(0.05)
    async with opened(tmp_path) as journal:
        assert await append(journal, "r", Message())
        assert journal.counts() == {}
        await until(lambda: journal.counts() == {"r": {"stored": 1}})


def test_every_point_is_killed_at() -> None:
    from gateway.failpoints import NAMES

    assert {*runs.POINTS, "journal.dead_letter", "replay.bulk", "reload.swapped"} == set(NAMES)


# -- the judge is judged -----------------------------------------------------------------------------------------------


def ledger(**settings: Any) -> Ledger:
    made = Ledger({"r": ("a", "b")}, **settings)
    for number in (1, 2):
        made.heard_ok(made.sending(f"m{number}", "r", "k", number, b"body"))
    return made


def deliver(to: Ledger, *uids: str, target: str | None = None) -> None:
    for uid in uids:
        for name in (target,) if target else ("a", "b"):
            receipt = to.received(name, uid, b"body", "accepted")
            receipt.answered_s = receipt.at_s


def test_what_reached_all_of_its_targets_is_fine() -> None:
    made = ledger()
    deliver(made, "m1", "m2")
    assert made.judge().good
    assert made.waiting() == []


def test_what_reached_one_of_two_targets_is_lost() -> None:
    made = ledger()
    deliver(made, "m1")
    deliver(made, "m2", target="a")
    assert made.judge().some() == ["lost: m2 of r was acknowledged and did not reach b"]
    assert made.judge(dead={"m2"}).good


def test_what_was_not_acknowledged_may_arrive_or_not() -> None:
    made = ledger()
    made.sending("m3", "r", "k", 3, b"body")
    made.sending("m4", "r", "k", 4, b"body")
    deliver(made, "m1", "m2", "m3")
    verdict = made.judge()
    assert (verdict.good, verdict.recovered) == (True, 1)


def test_what_nobody_sent_and_what_has_another_body_is_found() -> None:
    made = ledger()
    deliver(made, "m1", "m2", "m9")
    made.received("a", "m2", b"other", "refused")
    verdict = made.judge()
    assert (len(verdict.unexpected), len(verdict.damaged)) == (2, 1)


def test_what_comes_twice_needs_a_fault_near_the_first_time() -> None:
    made = ledger()
    deliver(made, "m1", "m1", "m2")
    assert len(made.judge().duplicated) == 2
    made.fault("kill -9").ended_s = made.last_receipt_s + 1
    verdict = made.judge()
    assert (verdict.good, verdict.again) == (True, 2)


def test_what_overtakes_is_found() -> None:
    made = ledger()
    deliver(made, "m2", "m1")
    assert len(made.judge().disordered) == 2


def test_what_a_broker_was_given_back_for_lack_of_room_may_be_overtaken() -> None:
    for through_brokers, disordered in ((("r",), 0), ((), 2)):
        made = ledger(through_brokers=through_brokers)
        made.no_room().ended_s = made.sent["m1"].sent_s
        deliver(made, "m2", "m1")
        assert len(made.judge().disordered) == disordered, through_brokers
        made.without_room[0].ended_s = made.sent["m1"].sent_s - 1
        assert len(made.judge().disordered) == 2


def test_an_answer_that_was_seen_to_be_known_is_not_excused_by_a_link_that_is_cut_later() -> None:
    made = ledger()
    deliver(made, "m1", "m1", "m2")
    made.fault("a link to a cut", "a")
    verdict = made.judge()
    assert (len(verdict.duplicated), verdict.again) == (1, 1)  # the one at b has nothing to do with it
    for receipt in made.receipts["m1"]:
        receipt.known_s = receipt.at_s
    assert len(made.judge().duplicated) == 2
