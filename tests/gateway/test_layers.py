"""What wraps a send: retries with injected luck, circuits on a moved clock, limits, meters."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from pydantic import ValidationError

from gateway import Message, MessageError, PeerError, Send
from gateway.layers import Breaker, Circuit, Retry, guarded, limited, measured, retried
from gateway.observe import TargetMeters
from gateway.testing import ManualClock, settle

MESSAGE = Message(raw=b"x")


class Target:
    """A send that ends as told, one entry a call; then it takes everything."""

    def __init__(self, *ends: Exception | None) -> None:
        self.ends = list(ends)
        self.calls = 0

    async def __call__(self, message: Message) -> Message | None:
        self.calls += 1
        end = self.ends.pop(0) if self.ends else None
        if end is not None:
            raise end
        return message


async def failure(send: Callable[[Message], Awaitable[object]]) -> Exception:
    with pytest.raises(Exception) as caught:
        await send(MESSAGE)
    return caught.value


# --- retry


@pytest.mark.parametrize(
    ("attempts", "luck", "wait_s"),
    [(1, 1.0, 1.0), (2, 1.0, 2.0), (4, 1.0, 8.0), (10, 1.0, 300.0), (1000, 1.0, 300.0), (3, 0.5, 2.0), (3, 0.0, 0.0)],
)
def test_waits_double_up_to_the_longest_with_full_jitter(attempts: int, luck: float, wait_s: float) -> None:
    assert Retry().wait_s(attempts, lambda: luck) == wait_s


@pytest.mark.parametrize(
    ("asked_s", "luck", "wait_s"),
    [(7.0, 0.0, 7.0), (7.0, 1.0, 7.0), (0.5, 1.0, 1.0), (1e9, 0.0, 300.0), (None, 0.0, 0)],
)
def test_a_peer_that_names_its_wait_is_obeyed_up_to_the_longest(
    asked_s: float | None, luck: float, wait_s: float
) -> None:
    assert Retry().wait_s(1, lambda: luck, asked_s) == wait_s


@pytest.mark.parametrize(
    "settings", [{"attempts": 0}, {"first_wait": "0s"}, {"max_wait": "0s"}, {"max_age": "0s"}, {"tries": 3}]
)
def test_a_retry_that_means_nothing_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Retry.model_validate(settings)


def retrying(target: Send, clock: ManualClock, *, luck: float = 1.0, **settings: object) -> tuple[Send, TargetMeters]:
    meters = TargetMeters()
    return retried(target, Retry.model_validate(settings), clock, lambda: luck, meters), meters


async def test_a_call_is_tried_again_until_it_goes_through() -> None:
    clock, target = ManualClock(), Target(PeerError("away"), PeerError("away", wait_s=7.0))
    send, meters = retrying(target, clock)
    sending = asyncio.ensure_future(send(MESSAGE))
    await settle()
    await clock.advance(1.0)
    await clock.advance(6.9)
    assert target.calls == 2
    await clock.advance(0.1)
    assert await sending is MESSAGE
    assert clock.slept == [1.0, 7.0]
    assert meters.retried == 2


async def test_a_refusal_is_not_tried_again() -> None:
    target = Target(MessageError("no"))
    send, _ = retrying(target, ManualClock())
    assert str(await failure(send)) == "no"
    assert target.calls == 1


async def test_the_last_error_is_raised_when_the_attempts_are_used_up() -> None:
    clock, target = ManualClock(), Target(PeerError("first"), PeerError("second"))
    send, meters = retrying(target, clock, attempts=2)
    failing = asyncio.create_task(failure(send))
    await settle()
    await clock.advance(1.0)
    assert str(await failing) == "second"
    assert meters.retried == 1


async def test_nothing_is_tried_after_its_age() -> None:
    clock, target = ManualClock(), Target(PeerError("away", wait_s=60.0))
    send, _ = retrying(target, clock, max_age="59s")
    assert str(await failure(send)) == "away"
    assert clock.slept == []


# --- circuit


def circuit(clock: ManualClock, **settings: object) -> tuple[Breaker, TargetMeters]:
    meters = TargetMeters()
    return Breaker(Circuit.model_validate({"failures": 2, **settings}), clock, meters), meters


async def fail(send: Send, times: int) -> None:
    for _ in range(times):
        await failure(send)


async def test_a_circuit_opens_after_so_many_failures_in_a_row() -> None:
    clock = ManualClock()
    breaker, meters = circuit(clock)
    target = Target(PeerError("1"), None, PeerError("2"), MessageError("no"), PeerError("3"), PeerError("4"))
    send = guarded(target, breaker)
    for state in ("closed", "closed", "closed", "closed", "closed", "open"):
        await asyncio.gather(send(MESSAGE), return_exceptions=True)
        assert breaker.state == state
    assert meters.circuit_open == 1
    error = await failure(send)
    assert isinstance(error, PeerError)
    assert str(error) == "circuit: open after 2 failures in a row; next try in 30.0 s"
    assert error.wait_s == 30.0
    assert target.calls == 6


async def test_one_probe_goes_through_a_circuit_whose_time_is_over() -> None:
    clock = ManualClock()
    breaker, meters = circuit(clock)
    answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    ends: list[Exception] = [PeerError("away"), PeerError("away")]

    async def target(_: Message) -> Message:
        if ends:
            raise ends.pop()
        return await answer

    send = guarded(target, breaker)
    await fail(send, 2)
    await clock.advance(29.9)
    assert breaker.state == "open"
    await clock.advance(0.1)
    assert (breaker.state, breaker.wait_s()) == ("half-open", 0.0)
    probe = asyncio.ensure_future(send(MESSAGE))
    await settle()
    assert breaker.wait_s() == 0.1
    assert "circuit: open" in str(await failure(send))
    answer.set_result(MESSAGE)
    assert await probe is MESSAGE
    assert (breaker.state, meters.circuit_open) == ("closed", 0)


async def test_the_open_time_doubles_with_each_failed_probe_up_to_16_times() -> None:
    clock = ManualClock()
    breaker, _ = circuit(clock)
    send = guarded(Target(*(PeerError("away") for _ in range(20))), breaker)
    await fail(send, 2)
    waits = []
    for _ in range(7):
        waits.append(breaker.wait_s())
        await clock.advance(breaker.wait_s())
        await fail(send, 1)
    assert waits == [30.0, 60.0, 120.0, 240.0, 480.0, 480.0, 480.0]


async def test_a_good_probe_begins_anew() -> None:
    clock = ManualClock()
    breaker, _ = circuit(clock)
    send = guarded(
        Target(PeerError("1"), PeerError("2"), PeerError("3"), None, PeerError("4"), PeerError("5")), breaker
    )
    await fail(send, 2)
    await clock.advance(30)
    await fail(send, 1)
    await clock.advance(60)
    await send(MESSAGE)
    assert breaker.state == "closed"
    await fail(send, 2)
    assert breaker.wait_s() == 30.0


async def test_tries_that_began_before_it_opened_do_not_double_its_time() -> None:
    clock = ManualClock()
    breaker, _ = circuit(clock)
    away = asyncio.Event()

    async def target(_: Message) -> None:
        await away.wait()
        raise PeerError("away")

    send = guarded(target, breaker)
    sends = [asyncio.ensure_future(send(MESSAGE)) for _ in range(16)]
    await settle()
    away.set()
    await asyncio.gather(*sends, return_exceptions=True)
    assert breaker.wait_s() == 30.0


async def test_a_late_failure_lets_no_second_probe_through() -> None:
    clock = ManualClock()
    breaker, _ = circuit(clock, failures=1)
    ends = [asyncio.get_running_loop().create_future() for _ in range(3)]
    calls = iter(ends)

    async def target(_: Message) -> None:
        await next(calls)

    send = guarded(target, breaker)
    first, late = asyncio.ensure_future(send(MESSAGE)), asyncio.ensure_future(send(MESSAGE))
    await settle()
    ends[0].set_exception(PeerError("away"))
    await settle()
    await clock.advance(30)
    probe = asyncio.ensure_future(send(MESSAGE))
    await settle()
    ends[1].set_exception(PeerError("late"))
    await asyncio.gather(first, late, return_exceptions=True)
    assert (breaker.state, breaker.wait_s()) == ("half-open", 0.1)
    ends[2].set_result(None)
    await probe
    assert breaker.state == "closed"


async def test_a_cancelled_probe_leaves_the_way_to_the_next() -> None:
    clock = ManualClock()
    breaker, _ = circuit(clock, failures=1)
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    ends: list[Exception] = [PeerError("away")]

    async def target(_: Message) -> None:
        if ends:
            raise ends.pop()
        await never

    send = guarded(target, breaker)
    await fail(send, 1)
    await clock.advance(30)
    probe = asyncio.ensure_future(send(MESSAGE))
    await settle()
    probe.cancel()
    await settle()
    assert (breaker.state, breaker.wait_s()) == ("half-open", 0.0)


# --- limit and meters


async def test_so_many_sends_run_at_once_and_others_wait_in_order() -> None:
    begun: list[bytes] = []
    gates: dict[bytes, asyncio.Event] = {}

    async def target(message: Message) -> None:
        begun.append(message.body)
        gates[message.body] = asyncio.Event()
        await gates[message.body].wait()

    send = limited(target, 2)
    sends = [asyncio.ensure_future(send(Message(raw=b"%d" % n))) for n in range(5)]
    await settle()
    assert begun == [b"0", b"1"]
    sends[2].cancel()
    gates[b"1"].set()
    await settle()
    assert begun == [b"0", b"1", b"3"]
    for n in (b"0", b"3"):
        gates[n].set()
    await settle()
    gates[b"4"].set()
    await asyncio.gather(*sends, return_exceptions=True)
    assert begun == [b"0", b"1", b"3", b"4"]


async def test_a_send_that_is_cancelled_at_its_turn_gives_it_on() -> None:
    gate = asyncio.Event()
    begun: list[bytes] = []

    async def target(message: Message) -> None:
        begun.append(message.body)
        await gate.wait()

    send = limited(target, 1)
    sends = [asyncio.ensure_future(send(Message(raw=b"%d" % n))) for n in range(3)]
    await settle()
    gate.set()
    await asyncio.sleep(0)  # the first has ended, and it is the turn of the second, which has not run since
    sends[1].cancel()
    await asyncio.gather(*sends, return_exceptions=True)
    assert begun in ([b"0", b"2"], [b"0", b"1", b"2"])
    assert await asyncio.wait_for(asyncio.ensure_future(send(MESSAGE)), 1) is None


async def test_attempts_are_counted_by_how_they_end_and_timed() -> None:
    clock, meters = ManualClock(), TargetMeters()
    send = measured(Target(None, MessageError("no"), PeerError("away")), meters, clock)
    await send(MESSAGE)
    await fail(send, 2)
    assert (meters.delivered, meters.refused, meters.failed, meters.latency.total) == (1, 1, 1, 3)
