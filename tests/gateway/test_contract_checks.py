"""The contract checks themselves: components that lie are caught, each by the check that is for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
from pydantic import Field

from gateway import Accepted, Deliver, Format, Host, Limits, Message, MessageError, PeerError, Send, Settings, Tree
from gateway.ports import Sink as SinkPort
from gateway.ports import Source as SourcePort
from gateway.testing import (
    FORMAT_CHECKS,
    SINK_CHECKS,
    SOURCE_CHECKS,
    Check,
    FakeHost,
    FormatBench,
    SinkBench,
    SourceBench,
    checks_for,
    settle,
)


class Slow:
    """Something to share that takes a few turns to open."""

    opened = 0

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[list[str]]:
        del host
        await settle(5)
        self.opened += 1
        state = ["open"]
        try:
            yield state
        finally:
            state.append("closed")


async def test_two_who_share_at_the_same_time_have_one_until_both_have_left() -> None:
    host, slow, left = FakeHost(), Slow(), asyncio.Event()

    async def first() -> None:
        async with host.share(slow):
            await left.wait()

    async def second() -> list[str]:
        async with host.share(slow) as state:
            left.set()
            await settle()
            return list(state)

    _, state = await asyncio.gather(first(), second())
    assert (slow.opened, state) == (1, ["open"])


class Line:
    """Where the fakes of this file meet: what was sent, and what was told."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[bytes] = asyncio.Queue()
        self.accepted: list[bytes] = []
        self.refused: list[bytes] = []
        self.received: list[bytes] = []
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gate = asyncio.Event()
        self.gate.set()


LINE: dict[str, Line] = {}


class Source(Settings):
    """Takes what is put on the line, and tells. Each fault is one way to break the contract."""

    fault: str = Field("", description="what it does wrong")

    @property
    def answers(self) -> bool:
        return True

    async def run(self, host: Host, deliver: Deliver, ready: Callable[[], None]) -> None:
        line = LINE["line"]
        if self.fault == "ready twice":
            ready()
        ready()
        if self.fault == "leaks a task":
            line.leak = asyncio.create_task(asyncio.Event().wait())  # type: ignore[attr-defined]
        window = asyncio.Semaphore(10_000 if self.fault == "takes too much" else 8)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ends(line))
            try:
                while True:
                    await window.acquire()
                    body = await line.waiting.get()
                    if self.fault == "reorders" and not line.waiting.empty():
                        line.waiting.put_nowait(body)
                        body = line.waiting.get_nowait()
                    tasks.create_task(self._take(line, body, deliver, window))
                    await asyncio.sleep(0)
            except asyncio.CancelledError:
                if self.fault == "does not stop":
                    await asyncio.sleep(30)
                raise

    async def _ends(self, line: Line) -> None:
        await asyncio.wait({line.lost})
        if self.fault == "does not notice":
            await asyncio.Event().wait()
        if self.fault == "a bug instead of a PeerError":
            raise ValueError("lost")
        raise PeerError("line: lost")

    async def _take(self, line: Line, body: bytes, deliver: Deliver, window: asyncio.Semaphore) -> None:
        if self.fault == "acknowledges early":
            line.accepted.append(body)
        if self.fault == "cuts bodies":
            body = body[:100]
        outcome = await deliver(Message(raw=body))
        window.release()
        if self.fault == "accepts refusals" or isinstance(outcome, Accepted):
            if self.fault != "acknowledges early":
                line.accepted.append(body)
        else:
            line.refused.append(body)


class Sources(SourceBench):
    """The honest source."""

    acknowledges = True
    connects = True
    fault = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Sources]:
        self.line = LINE["line"] = Line()
        yield self
        leak = getattr(self.line, "leak", None)
        if leak is not None:
            leak.cancel()

    def source(self) -> SourcePort:
        return Source(fault=self.fault)

    async def send(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.line.waiting.put_nowait(body)

    def accepted(self) -> list[bytes]:
        return list(self.line.accepted)

    def refused(self) -> list[bytes]:
        return list(self.line.refused)

    async def send_again(self) -> None:
        for number in range(100):
            if self.body(number) not in self.line.accepted:
                await self.send(self.body(number))

    async def lose(self) -> None:
        self.line.lost.set_result(None)
        await settle()

    async def come_back(self) -> None:
        self.line.lost = asyncio.get_running_loop().create_future()


class Sink(Settings):
    """Puts what it is given on the line. Each fault is one way to break the contract."""

    fault: str = Field("", description="what it does wrong")

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Send]:
        line = LINE["line"]
        if line.lost.done():
            raise PeerError("line: away")

        async def send(message: Message) -> None:
            if message.headers.get("bad"):
                raise ValueError("bug") if self.fault == "a bug instead of a refusal" else MessageError("bad")
            if line.lost.done():
                if self.fault == "delivers to nobody":
                    return
                raise PeerError("line: lost", reconnect=True)
            line.received.append(message.body[:100] if self.fault == "cuts bodies" else message.body)
            if self.fault != "does not wait":
                await line.gate.wait()

        async with asyncio.TaskGroup() as tasks:
            if self.fault != "does not notice":
                tasks.create_task(self._ends(line))
            yield send
            raise asyncio.CancelledError

    async def _ends(self, line: Line) -> None:
        await asyncio.wait({line.lost})
        raise PeerError("line: lost")


class Sinks(SinkBench):
    """The honest sink."""

    confirms = True
    connects = True
    refuses = True
    fault = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Sinks]:
        self.line = LINE["line"] = Line()
        yield self

    def sink(self) -> SinkPort:
        return Sink(fault=self.fault)

    def received(self) -> list[bytes]:
        return list(self.line.received)

    def hold(self) -> None:
        self.line.gate.clear()

    def release(self) -> None:
        self.line.gate.set()

    def uncarried(self) -> Message:
        return self.message(b"", {"bad": "yes"})

    async def lose(self) -> None:
        self.line.lost.set_result(None)
        await settle()

    async def come_back(self) -> None:
        self.line.lost = asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("check", checks_for(Sources, SOURCE_CHECKS), ids=lambda check: check.__name__)
async def test_an_honest_source_passes(check: Check) -> None:
    async with Sources().running() as bench:
        await check(bench)


@pytest.mark.parametrize("check", checks_for(Sinks, SINK_CHECKS), ids=lambda check: check.__name__)
async def test_an_honest_sink_passes(check: Check) -> None:
    async with Sinks().running() as bench:
        await check(bench)


def named(checks: list[Check], name: str) -> Check:
    (found,) = [check for check in checks if check.__name__ == name]
    return found


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("ready twice", "opens_and_closes"),
        ("leaks a task", "opens_and_closes"),
        ("reorders", "takes_in_order"),
        ("cuts bodies", "bodies_arrive_as_they_are"),
        ("acknowledges early", "no_acknowledgement_goes_out_before_the_outcome"),
        ("acknowledges early", "an_outcome_acknowledges_its_own_message_alone"),
        ("acknowledges early", "a_stop_acknowledges_nothing"),
        ("acknowledges early", "nothing_is_lost_when_its_peer_dies_mid_flight"),
        ("accepts refusals", "a_refusal_is_told_or_settled"),
        ("accepts refusals", "a_deferred_message_is_told_or_comes_again"),
        ("does not notice", "a_lost_peer_is_noticed_while_idle"),
        ("a bug instead of a PeerError", "a_lost_peer_is_noticed_while_idle"),
        ("takes too much", "saturated_it_takes_no_more_than_its_window"),
        ("does not stop", "it_can_be_cancelled_while_it_works"),
    ],
)
async def test_a_source_that_breaks_the_contract_is_caught(
    monkeypatch: pytest.MonkeyPatch, fault: str, check: str
) -> None:
    monkeypatch.setattr("gateway.testing.source_checks.STOP_S", 0.1)
    monkeypatch.setattr("gateway.testing.leaks.LEFT_S", 0.1)
    monkeypatch.setattr(Sources, "fault", fault)
    async with Sources().running() as bench:
        monkeypatch.setattr("gateway.testing.source_checks.until", impatient)
        with pytest.raises((AssertionError, ExceptionGroup)):
            await named(SOURCE_CHECKS, check)(bench)


async def impatient(condition: Callable[[], object], *, timeout_s: float = 10.0) -> None:
    """As `until`, but not for long."""
    from gateway.testing import until

    await until(condition, timeout_s=min(timeout_s, 0.3))


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("cuts bodies", "bodies_arrive_as_they_are"),
        ("a bug instead of a refusal", "what_it_can_not_carry_is_refused"),
        ("does not wait", "nothing_is_delivered_before_the_peer_says_so"),
        ("does not wait", "a_peer_that_never_confirms_can_be_given_up"),
        ("does not notice", "a_lost_peer_is_noticed_while_idle"),
        ("delivers to nobody", "a_send_to_a_lost_peer_is_a_peer_error"),
    ],
)
async def test_a_sink_that_breaks_the_contract_is_caught(
    monkeypatch: pytest.MonkeyPatch, fault: str, check: str
) -> None:
    monkeypatch.setattr(Sinks, "fault", fault)
    async with Sinks().running() as bench:
        with pytest.raises((AssertionError, ValueError)):
            await named(SINK_CHECKS, check)(bench)


class Plain(Settings):
    """Bytes as a text. Each fault is one way to break the contract."""

    content_types: ClassVar[tuple[str, ...]] = ("text/x-plain",)
    fault: str = Field("", description="what it does wrong")

    def parse(self, body: bytes, content_type: str, limits: Limits) -> Tree:
        try:
            text = body.decode()
        except UnicodeDecodeError:
            if self.fault == "raises what it likes":
                raise
            raise MessageError("plain: no UTF-8", code="malformed") from None
        return text.upper() if self.fault == "changes the tree" else text

    def format(self, tree: Tree) -> bytes:
        if not isinstance(tree, str):
            if self.fault == "writes anything":
                return b"?"
            raise MessageError("plain: expected a text")
        return tree.encode()


class Plains(FormatBench):
    fault = ""

    def format(self) -> Format:
        return Plain(fault=self.fault)

    def trees(self) -> list[Tree]:
        return ["", "text", "grüße"]

    def malformed(self) -> list[bytes]:
        return [b"\xff"]

    def foreign(self) -> list[Tree]:
        return [[1]]


@pytest.mark.parametrize("check", checks_for(Plains, FORMAT_CHECKS), ids=lambda check: check.__name__)
async def test_an_honest_format_passes(check: Check) -> None:
    await check(Plains())


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("changes the tree", "trees_come_back_as_they_were"),
        ("raises what it likes", "what_is_malformed_is_said"),
        ("raises what it likes", "no_bytes_break_it"),
        ("writes anything", "what_it_can_not_carry_is_refused"),
    ],
)
async def test_a_format_that_breaks_the_contract_is_caught(
    monkeypatch: pytest.MonkeyPatch, fault: str, check: str
) -> None:
    monkeypatch.setattr(Plains, "fault", fault)
    with pytest.raises((AssertionError, UnicodeDecodeError)):
        await named(FORMAT_CHECKS, check)(Plains())


def test_checks_are_chosen_by_what_a_bench_can_do() -> None:
    class Less(SourceBench):
        has_peer = False

    chosen = {check.__name__ for check in checks_for(Less, SOURCE_CHECKS)}
    assert "no_acknowledgement_goes_out_before_the_outcome" not in chosen
    assert "it_goes_on_when_its_peer_comes_back" not in chosen
    assert "takes_in_order" in chosen
