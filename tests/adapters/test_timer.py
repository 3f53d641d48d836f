"""Timers keep to their times, leave out what they missed, and hand over again what was deferred."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from adapters import timer
from gateway import Accepted, Deferred, Message, Outcome, rfc3339
from gateway.testing import FakeHost, Inbox, ManualClock, running, settle

START_S = datetime(2026, 11, 21, 5, 59, 30, tzinfo=UTC).timestamp()


async def test_a_message_is_made_every_so_often() -> None:
    host = FakeHost(clock=ManualClock(START_S))
    inbox = Inbox(host)
    async with running(timer.Source.model_validate({"every": "10s"}), inbox, host):
        await settle()
        for _ in range(3):
            await host.clock.advance(10)  # type: ignore[attr-defined]
    assert [message.tree for message in inbox.messages] == [
        {"time": rfc3339(START_S + 10 * n), "count": n} for n in (1, 2, 3)
    ]


async def test_cron_counts_in_its_time_zone() -> None:
    host = FakeHost(clock=ManualClock(START_S))
    inbox = Inbox(host)
    async with running(timer.Source(cron="0 7 * * *", timezone="Europe/Zurich"), inbox, host):
        await settle()
        await host.clock.advance(29)  # type: ignore[attr-defined]
        assert inbox.messages == []
        await host.clock.advance(1)  # type: ignore[attr-defined]
    assert inbox.messages[0].tree == {"time": "2026-11-21T06:00:00.000Z", "count": 1}


async def test_times_that_pass_while_one_is_on_its_way_are_left_out() -> None:
    host = FakeHost(clock=ManualClock(START_S))
    answers: list[Outcome] = []

    def outcome(message: Message) -> Outcome:
        answers.append(Deferred(message.id, "full", wait_s=25.0) if not answers else Accepted(message.id))
        return answers[-1]

    inbox = Inbox(host, outcome)
    async with running(timer.Source.model_validate({"every": "10s"}), inbox, host):
        await settle()
        await host.clock.advance(10)  # type: ignore[attr-defined]
        await host.clock.advance(25)  # type: ignore[attr-defined]
        await host.clock.advance(10)  # type: ignore[attr-defined]
    assert [message.tree["count"] for message in inbox.messages] == [1, 1, 2]  # type: ignore[index,call-overload]
    assert inbox.messages[0].id == inbox.messages[1].id


async def test_what_each_message_takes_does_not_add_up() -> None:
    clock = ManualClock(START_S)
    host = FakeHost(clock=clock)

    async def outcome(message: Message) -> Outcome:
        await clock.sleep(3)
        return Accepted(message.id)

    inbox = Inbox(host, outcome)
    async with running(timer.Source.model_validate({"every": "10s"}), inbox, host):
        await settle()
        for _ in range(41):
            await clock.advance(1)
    times = [message.tree["time"] for message in inbox.messages]  # type: ignore[index,call-overload]
    assert times == [rfc3339(START_S + 10 * n) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "expected either every: or cron:"),
        ({"every": "5s", "cron": "* * * * *"}, "expected either every: or cron:"),
        ({"cron": "61 * * * *"}, 'expected five cron fields such as "0 6 * * mon-fri", got "61 * * * *"'),
        ({"cron": "* * * *"}, "expected five cron fields"),
        ({"every": "5s", "timezone": "Mars/Olympus"}, 'expected a time zone such as Europe/Zurich, got "Mars/Olympus"'),
    ],
)
def test_settings_that_say_no_time_are_refused(settings: dict[str, str], text: str) -> None:
    with pytest.raises(ValidationError, match=text.replace("*", r"\*")):
        timer.Source.model_validate(settings)


async def test_a_clock_that_is_set_right_after_the_start_is_noticed_before_the_old_time_comes() -> None:
    clock = ManualClock(0.0)  # as of a machine without a clock of its own
    host = FakeHost(clock=clock)
    inbox = Inbox(host)
    async with running(timer.Source(cron="0 6 * * *"), inbox, host):
        await settle()
        clock.set_by_s = START_S - 86_400
        await clock.advance(30)
        inbox.messages.clear()  # 6 o'clock of 1970 is over
        clock.set_by_s = START_S - 30
        await clock.advance(30)
    assert [message.tree["time"] for message in inbox.messages] == ["2026-11-21T06:00:00.000Z"]  # type: ignore[index,call-overload]


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0])
async def test_a_clock_that_is_set_does_not_stop_a_timer(jump_s: float) -> None:
    clock = ManualClock(START_S)
    host = FakeHost(clock=clock)
    inbox = Inbox(host)
    async with running(timer.Source.model_validate({"every": "10s"}), inbox, host):
        await settle()
        await clock.advance(10)
        clock.set_by_s = jump_s
        for _ in range(4):
            await clock.advance(10)
    assert len(inbox.messages) >= 4
