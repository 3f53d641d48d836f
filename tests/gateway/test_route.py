"""One running route: what becomes of a message, as a table, and what stands between the sender and the targets."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from gateway import Accepted, ConfigError, Deferred, Message, MessageError, PeerError, Refused
from gateway.testing import settle
from tests.gateway.bench import Bench, post, written
from tests.gateway.probe import BROKEN, FEEDS, RUNS, plug_in, raises, replies, script

DELIVERED = """
    ack: delivered
    to: {probe: {}}
"""
REPLY = """
    ack: reply
    to: {probe: {}}
"""
STORED = """
    to: {probe: {}}
"""
BOTH = """
    ack: delivered
    to:
      - {probe: {name: a}, name: a}
      - {probe: {name: b}, name: b}
"""


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def shown(outcome: Any) -> tuple[Any, ...]:
    match outcome:
        case Accepted():
            return ("accepted",)
        case Refused():
            return ("refused", outcome.code, outcome.reason)
        case Deferred():
            return ("deferred", outcome.wait_s, outcome.too_late, outcome.answerless)
    raise AssertionError(outcome)


NO = 'the target "probe" refused it'
ANY = "the gateway failed on this message; its log says why"
OUTCOMES = [
    (None, ("accepted",), ("accepted",)),
    (MessageError("no"), ("refused", "refused", NO), ("refused", "refused", NO)),
    (MessageError("no", code="malformed"), ("refused", "malformed", NO), ("refused", "malformed", NO)),
    (PeerError("away"), ("deferred", 1.0, False, False), ("deferred", 1.0, False, True)),
    (PeerError("busy", wait_s=7.0), ("deferred", 7.0, False, False), ("deferred", 7.0, False, True)),
    (PeerError("late", too_late=True), ("deferred", 1.0, True, False), ("deferred", 1.0, True, False)),
    (ValueError("bug"), ("refused", "internal", ANY), ("refused", "internal", ANY)),
    (ExceptionGroup("bugs", [ValueError("bug")]), ("refused", "internal", ANY), ("refused", "internal", ANY)),
]


@pytest.mark.parametrize(("error", "delivered", "reply"), OUTCOMES, ids=lambda value: repr(value)[:30])
async def test_what_a_target_raises_decides_what_the_sender_hears(
    bench: Bench, error: Exception | None, delivered: Any, reply: Any
) -> None:
    for settings, expected in ((DELIVERED, delivered), (REPLY, reply)):
        async with bench.route(settings) as route:
            script("out").does = (lambda message: None) if error is None else raises(error)
            assert shown(await post(route)) == expected
        assert bench.journal.records == {}


@pytest.mark.parametrize("error", [error for error, *_ in OUTCOMES], ids=lambda value: repr(value)[:30])
async def test_with_the_journal_the_sender_hears_of_no_target(bench: Bench, error: Exception | None) -> None:
    async with bench.route(STORED) as route:
        script("out").does = (lambda message: None) if error is None else raises(error)
        assert shown(await post(route)) == ("accepted",)


async def test_a_bug_is_logged_once_with_its_traceback_and_counted(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench.route(DELIVERED) as route:
        script("out").does = raises(ZeroDivisionError("bug"))
        await post(route)
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.message == "message failed"
    assert record.exc_info is not None
    assert bench.observed.route("r").errors == 1


@pytest.mark.parametrize("settings", [DELIVERED, STORED.replace("to:", "accept: [{filter: body.good}]\n    to:")])
@pytest.mark.parametrize("full", [False, True])
async def test_who_can_not_be_told_has_its_dead_letter_kept_before_the_refusal(
    bench: Bench, settings: str, full: bool
) -> None:
    async with bench.route(settings) as route:
        script("out").does = raises(MessageError("no"))
        bench.journal.full = full
        outcome = await post(route, {"good": False}, answers=False)
        if full:
            assert isinstance(outcome, Deferred)
            assert outcome.reason == "the gateway can't store it now; send it again later"
            assert outcome.full.startswith("the dead letter could not be kept: ")
            assert (outcome.wait_s, bench.journal.records) == (5.0, {})
        else:
            assert isinstance(outcome, Refused)
            assert len(bench.dead) == 1
            assert bench.observed.route("r").dead == 1


async def test_a_refusal_that_the_sender_hears_is_no_dead_letter(bench: Bench) -> None:
    async with bench.route(DELIVERED) as route:
        script("out").does = raises(MessageError("no"))
        assert isinstance(await post(route), Refused)
    assert bench.journal.records == {}


async def test_a_dead_letter_may_go_to_a_target_which_must_accept_it_first(bench: Bench) -> None:
    settings = DELIVERED + "    dead_letter: {probe: {name: graves}, name: graves}\n"
    async with bench.route(settings) as route:
        script("out").does = raises(MessageError("no"))
        script("graves").does = raises(PeerError("full up"))
        outcome = await post(route, {"n": 1}, answers=False)
        assert isinstance(outcome, Deferred)
        assert outcome.full == "the dead letter could not be kept: full up"
        script("graves").does = lambda message: None
        assert isinstance(await post(route, {"n": 2}, answers=False), Refused)
    assert script("graves").trees == [{"n": 1}, {"n": 2}]
    assert bench.journal.records == {}


async def test_a_journal_without_room_defers_for_five_seconds(bench: Bench) -> None:
    async with bench.route(STORED) as route:
        bench.journal.full = True
        assert shown(await post(route)) == ("deferred", 5.0, False, False)


# --- what accept checks


async def test_what_accept_does_not_let_pass_is_the_senders_and_stored_nowhere(bench: Bench) -> None:
    async with bench.route("    accept: [{filter: body.n > 1}]\n" + STORED) as route:
        assert shown(await post(route, {"n": 1})) == (
            "refused",
            "refused",
            "accept: the condition 'body.n > 1' does not hold for this message",
        )
        assert shown(await post(route, {"n": 2})) == ("accepted",)
        outcome = await post(route, raw=b"{broken")
        assert isinstance(outcome, Refused)
        assert outcome.code == "malformed"
    assert len(bench.journal.records) == 1


async def test_what_accept_says_names_the_condition_and_shows_no_text_of_it(bench: Bench) -> None:
    accept = "    accept: [{filter: body.a}, {filter: body.b == 's3cret'}]\n"
    async with bench.route(accept + STORED) as route:
        outcome = await post(route, {"a": True, "b": False})
    assert isinstance(outcome, Refused)
    assert outcome.reason == "accept: the condition \"body.b == '…'\" does not hold for this message"


async def test_a_parse_in_accept_refuses_what_is_malformed_and_changes_nothing(bench: Bench) -> None:
    async with bench.route("    accept: [{parse: xml}, {filter: body.order.id == '7'}]\n" + STORED) as route:
        outcome = await post(route, raw=b"<order>", content_type="text/plain")
        assert isinstance(outcome, Refused)
        assert outcome.code == "malformed"
        assert shown(await post(route, raw=b"<order><id>7</id></order>", content_type="text/plain")) == ("accepted",)
    (record,) = bench.journal.records.values()
    assert (record.message.raw, record.message.content_type) == (b"<order><id>7</id></order>", "text/plain")


async def test_a_body_over_the_limit_is_refused_whoever_brings_it(bench: Bench) -> None:
    async with bench.route(DELIVERED + "    limits: {message: 3B}\n") as route:
        assert shown(await post(route, raw=b"123")) == ("accepted",)
        assert shown(await post(route, raw=b"1234")) == (
            "refused",
            "too_large",
            "body: more than 3 bytes; send less, or raise limits.message",
        )


async def test_a_message_is_stamped_with_its_route(bench: Bench) -> None:
    async with bench.route(DELIVERED) as route:
        await post(route)
        await post(route, type="order.placed")
    first, second = script("out").received
    assert (first.source, first.type, second.type) == ("/desk/r", "probe.message", "order.placed")


# --- fan-out


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (None, None, "accepted"),
        (None, MessageError("no"), "refused"),
        (MessageError("no"), PeerError("away"), "deferred"),
        (PeerError("away"), MessageError("no"), "deferred"),
        (ValueError("bug"), PeerError("away"), "deferred"),
        (MessageError("no"), ValueError("bug"), "internal"),
        (ValueError("bug"), None, "internal"),
    ],
)
async def test_the_outcome_of_many_targets_is_that_of_the_worst(
    bench: Bench, a: Exception | None, b: Exception | None, expected: str
) -> None:
    async with bench.route(BOTH) as route:
        for name, error in (("a", a), ("b", b)):
            if error is not None:
                script(name).does = raises(error)
        outcome = shown(await post(route))
    assert expected in outcome
    assert (len(script("a").received), len(script("b").received)) == (1, 1)


async def test_the_outcome_of_a_split_is_that_of_its_worst_child(bench: Bench) -> None:
    settings = "    steps: [{split: {each: body.lines}}]\n" + DELIVERED

    def third_is_away(message: Message) -> None:
        if message.tree == 3:
            raise PeerError("away")

    async with bench.route(settings) as route:
        script("out").does = third_is_away
        assert isinstance(await post(route, {"lines": [1, 2]}), Accepted)
        assert isinstance(await post(route, {"lines": [1, 3, 2]}), Deferred)
        assert isinstance(await post(route, {"lines": []}), Accepted)
    assert sorted(script("out").trees) == [1, 1, 2, 2, 3]  # type: ignore[type-var]


# --- which targets


WHENS = """
    ack: delivered
    to:
      - {probe: {name: a}, name: a, when: body.n > 1}
      - {probe: {name: b}, name: b, when: body.n > 2}
"""


@pytest.mark.parametrize(
    ("more", "n", "taken"),
    [
        ("", 3, {"a", "b"}),
        ("", 2, {"a"}),
        ("    match: first\n", 3, {"a"}),
        ("    unmatched: drop\n", 1, set()),
        ("    match: first\n    unmatched: drop\n", 1, set()),
    ],
)
async def test_a_message_goes_to_the_targets_whose_when_holds(bench: Bench, more: str, n: int, taken: set[str]) -> None:
    async with bench.route(WHENS + more) as route:
        assert isinstance(await post(route, {"n": n}), Accepted)
    assert {name for name in "ab" if script(name).received} == taken


@pytest.mark.parametrize("more", ["", "    match: first\n"])
async def test_what_no_target_takes_is_not_dropped_unasked(bench: Bench, more: str) -> None:
    async with bench.route(WHENS + more) as route:
        outcome = await post(route, {"n": 1})
        assert isinstance(outcome, Refused)
        assert outcome.reason == "to: no target takes this message; give one a when: that does, or say unmatched: drop"
        assert isinstance(await post(route, {"n": 1}, answers=False), Refused)
    assert len(bench.dead) == 1


async def test_a_condition_that_can_not_be_said_is_refused_with_its_place(bench: Bench) -> None:
    async with bench.route(WHENS) as route:
        assert isinstance(await post(route, {"m": 1}, answers=False), Refused)
    (record,) = bench.journal.records.values()
    assert record.reason is not None
    assert (record.reason.place, "body.n" in record.reason.text) == ("to.a.when", True)


async def test_what_a_filter_ends_is_accepted_and_counted(bench: Bench) -> None:
    async with bench.route("    steps: [{filter: body.n > 1}]\n" + DELIVERED) as route:
        assert isinstance(await post(route, {"n": 1}), Accepted)
    assert script("out").received == []
    assert bench.observed.route("r").filtered == 1


async def test_steps_of_a_target_are_its_own(bench: Bench) -> None:
    settings = """
    ack: delivered
    to:
      - {probe: {name: a}, name: a, steps: [{set: {subject: only a}}, {filter: body.n > 1}]}
      - {probe: {name: b}, name: b}
"""
    async with bench.route(settings) as route:
        await post(route, {"n": 1})
        await post(route, {"n": 2})
    assert [message.subject for message in script("a").received] == ["only a"]
    assert [message.subject for message in script("b").received] == [None, None]


async def test_a_refusal_says_where_it_happened(bench: Bench) -> None:
    settings = "    steps: [{set: {type: t}}, {filter: body.n > 1}]\n" + DELIVERED
    async with bench.route(settings) as route:
        await post(route, {"m": 1}, answers=False)
        script("out").does = raises(MessageError("no"))
        await post(route, {"n": 2}, answers=False)
    places = [record.reason.place for record in bench.journal.records.values() if record.reason]
    assert places == ["steps.1.filter", "probe"]


# --- replies


async def test_the_reply_of_the_target_is_the_senders(bench: Bench) -> None:
    async with bench.route(REPLY) as route:
        script("out").does = replies({"ok": True})
        outcome = await post(route)
    assert isinstance(outcome, Accepted)
    assert outcome.reply is not None
    assert outcome.reply.tree == {"ok": True}


async def test_without_ack_reply_a_reply_is_nobodys(bench: Bench) -> None:
    async with bench.route(DELIVERED) as route:
        script("out").does = replies({"ok": True})
        outcome = await post(route)
    assert isinstance(outcome, Accepted)
    assert outcome.reply is None


@pytest.mark.parametrize("kind", [MessageError, PeerError])
async def test_an_answer_is_the_reply_also_when_it_says_no(bench: Bench, kind: Any) -> None:
    answer = Message(raw=b"not found", transport={"status": 404})
    script("out").does = raises(kind("404", reply=answer))
    async with bench.route(REPLY) as route:
        outcome = await post(route)
        assert isinstance(outcome, Accepted)
        assert outcome.reply is answer
    async with bench.route(DELIVERED) as route:
        assert not isinstance(await post(route), Accepted)


# --- deadlines


async def test_what_is_too_late_is_not_sent_any_more(bench: Bench) -> None:
    async with bench.route("    expire_after: 10s\n" + DELIVERED) as route:
        now = bench.clock.time()
        assert isinstance(await post(route, {"n": 1}, time_s=now - 10.1), Accepted)
        assert isinstance(await post(route, {"n": 2}, time_s=now - 9.9), Accepted)
        assert isinstance(await post(route, {"n": 3}, time_s=now - 60, expires_at_s=now + 1), Accepted)
    assert script("out").trees == [{"n": 2}, {"n": 3}]
    assert bench.observed.route("r").expired == 1


async def test_a_stored_message_that_is_too_late_has_expired(bench: Bench) -> None:
    async with bench.route("    expire_after: 10s\n" + STORED) as route:
        script("out").does = raises(PeerError("away"))
        assert isinstance(await post(route, time_s=bench.clock.time()), Accepted)
        script("out").does = lambda message: None
        await bench.clock.advance(11)
        await settle(100)
    assert len(script("out").received) == 1
    assert [record.state for record in bench.journal.records.values()] == ["expired"]


# --- how urgent


async def test_the_more_urgent_leave_the_journal_first(bench: Bench) -> None:
    async with bench.route("    priority: body.n\n" + STORED) as route:
        await route.pause(1)
        for n in (0, 9, 5):
            assert isinstance(await post(route, {"n": n}), Accepted)
        route.resume()
        await settle(100)
    assert script("out").trees == [{"n": 9}, {"n": 5}, {"n": 0}]


@pytest.mark.parametrize("n", [-1, 10, 1.5, True, "high", None])
async def test_a_priority_that_is_none_is_the_senders_mistake(bench: Bench, n: Any) -> None:
    async with bench.route("    priority: body.n\n" + STORED) as route:
        outcome = await post(route, {"n": n})
    assert isinstance(outcome, Refused)
    assert outcome.reason == f"priority: expected a whole number from 0 to 9, got {n!r}"


# --- how much at once


async def test_no_more_sends_than_concurrency_run_at_once(bench: Bench) -> None:
    gate = asyncio.Event()

    async def waits(_: Message) -> None:
        await gate.wait()

    async with bench.route("    concurrency: 2\n" + DELIVERED) as route:
        script("out").does = waits
        posts = [asyncio.create_task(post(route, {"n": n})) for n in range(5)]
        await settle()
        assert len(script("out").received) == 2
        gate.set()
        await asyncio.gather(*posts)
    assert len(script("out").received) == 5


async def test_at_its_limit_a_route_defers_who_waits_for_an_answer_and_holds_the_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.gate.PATIENCE_S", 0.01)
    gate = asyncio.Event()

    async def waits(_: Message) -> None:
        await gate.wait()

    async with bench.route("    limits: {in_flight: 2}\n" + DELIVERED) as route:
        script("out").does = waits
        inside = [asyncio.create_task(post(route)) for _ in range(2)]
        await settle()
        assert bench.observed.route("r").in_flight == 2
        silent = asyncio.create_task(post(route, answers=False))
        outcome = await post(route)
        assert isinstance(outcome, Deferred)
        assert outcome.reason == "r has as many messages as it may take; send again"
        assert not silent.done()
        gate.set()
        assert all(isinstance(done, Accepted) for done in await asyncio.gather(*inside, silent))
    meters = bench.observed.route("r")
    assert (meters.received, meters.accepted, meters.deferred, meters.in_flight) == (4, 3, 1, 0)


async def test_a_cancelled_sender_leaves_the_gate(bench: Bench) -> None:
    async def never(_: Message) -> None:
        await asyncio.get_running_loop().create_future()

    async with bench.route(DELIVERED) as route:
        script("out").does = never
        posting = asyncio.create_task(post(route))
        await settle()
        posting.cancel()
        await asyncio.wait({posting}, timeout=1)
        assert (posting.cancelled(), route.gate.inside) == (True, 0)


# --- start, swap, stop


async def test_several_sources_run_and_stop_with_the_route(bench: Bench) -> None:
    settings = "    from: [{probe: {name: one}}, {probe: {name: two, answering: false}}]\n" + DELIVERED
    async with bench.route(settings) as route:
        assert RUNS == ["+one", "+two"]
        script("out").does = raises(MessageError("no"))
        await FEEDS["one"](Message(raw=b"{}"))
        await FEEDS["two"](Message(raw=b"{}"))
        assert route.gate.inside == 0
        assert [peer.name for peer in bench.observed.peers.values()] == ["probe", "probe", "probe-2"]
    assert sorted(RUNS[2:]) == ["-one", "-two"]
    assert len(bench.dead) == 1
    assert bench.observed.peers == {}


async def test_a_source_that_can_not_run_as_configured_ends_the_start_and_stops_the_others(bench: Bench) -> None:
    BROKEN.add("two")
    settings = "    from: [{probe: {name: one}}, {probe: {name: two}}]\n" + DELIVERED
    with pytest.raises(ConfigError, match=r"^probe two: it is broken$"):
        await bench.route(settings).__aenter__()
    assert RUNS in ([], ["+one", "-one"])


async def test_a_start_does_not_wait_for_a_peer_that_is_away(bench: Bench) -> None:
    async with bench.route("    from: {probe: {away: true}}\n" + DELIVERED):
        peer = bench.observed.peers["r", "source", "probe"]
        assert (peer.state, peer.reason) == ("down", "probe in: its peer is away")


async def test_a_start_waits_for_a_silent_peer_for_a_moment_only(bench: Bench) -> None:
    """No route takes anything before all have started: one broker must not keep the others from it."""
    async with asyncio.timeout(5), bench.route("    from: {probe: {silent: true}}\n" + DELIVERED):
        assert bench.observed.peers["r", "source", "probe"].state == "starting"


async def test_a_stop_waits_for_what_is_in_flight(bench: Bench) -> None:
    gate = asyncio.Event()

    async def waits(_: Message) -> None:
        await gate.wait()

    async with bench.route(DELIVERED) as route:
        script("out").does = waits
        posting = asyncio.create_task(post(route))
        await settle()
        stopping = asyncio.create_task(route.stop(60))
        await settle()
        assert not stopping.done()
        gate.set()
        assert isinstance(await posting, Accepted)
        await stopping


async def test_what_is_in_flight_longer_than_the_grace_is_not_waited_for(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def never(_: Message) -> None:
        await asyncio.get_running_loop().create_future()

    async with bench.route(DELIVERED) as route:
        script("out").does = never
        posting = asyncio.create_task(post(route))
        await settle()
        await asyncio.wait_for(route.stop(0.01), 2)
        posting.cancel()
        await asyncio.gather(posting, return_exceptions=True)
    assert "grace is over" in [record.message for record in caplog.records]


async def test_while_it_swaps_newcomers_wait_and_the_two_never_run_at_once(bench: Bench) -> None:
    gate = asyncio.Event()

    async def waits(_: Message) -> None:
        await gate.wait()

    async with bench.route(DELIVERED) as route:
        script("out").does = waits
        early = asyncio.create_task(post(route, {"n": 1}))
        await settle()
        changed = written(
            bench.folder,
            "version: 1\nroutes:\n  r:\n    from: {probe: {}}\n    ack: delivered\n    to: {probe: {name: new}}\n",
        )
        swapping = asyncio.create_task(route.swap(changed.routes["r"], 60))
        late = asyncio.create_task(post(route, {"n": 2}))
        await settle()
        assert (script("new").opened, late.done()) == (0, False)
        gate.set()
        await swapping
        assert isinstance(await early, Accepted)
        assert isinstance(await late, Accepted)
    assert (script("out").trees, script("new").trees) == ([{"n": 1}], [{"n": 2}])
    assert RUNS == ["+in", "-in"]  # its source stayed as it was, and its senders noticed nothing


async def test_a_source_that_changes_is_stopped_before_it_starts_anew(bench: Bench) -> None:
    async with bench.route(DELIVERED) as route:
        changed = written(
            bench.folder,
            "version: 1\nroutes:\n  r:\n    from: {probe: {name: in, port: 7}}\n    ack: delivered\n    to: {probe: {}}\n    limits: {in_flight: 1}\n",
        )
        await route.swap(changed.routes["r"], 60)
        assert RUNS == ["+in", "-in", "+in"]
        assert isinstance(await FEEDS["in"](Message(raw=b"{}")), Accepted)
        assert script("out").hosts[-1].limits.in_flight == 1


async def test_stored_messages_of_before_a_swap_are_delivered_by_the_new_one(bench: Bench) -> None:
    async with bench.route(STORED) as route:
        script("out").does = raises(PeerError("away"))
        assert isinstance(await post(route, {"n": 1}), Accepted)
        changed = written(
            bench.folder,
            "version: 1\nroutes:\n  r:\n    from: {probe: {}}\n    steps: [{set: {type: t}}]\n    to: {probe: {}}\n",
        )
        await route.swap(changed.routes["r"], 60)
        script("out").does = lambda message: None
        await bench.clock.advance(2)
        await settle(100)
    assert script("out").trees == [{"n": 1}, {"n": 1}]
