"""Patterns in running routes: choose, split, call, tap, try; and what they refuse at load."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from gateway import Accepted, Deferred, Message, MessageError, PeerError, Refused, derived_id
from gateway.documents import Complaints
from gateway.testing import settle
from tests.gateway.bench import Bench, post, written
from tests.gateway.probe import plug_in, raises, replies, script

TO = """
    ack: delivered
    to: {probe: {}}
"""


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def steps(yaml: str, rest: str = TO) -> str:
    lines = "".join(f"      {line}\n" for line in yaml.strip().splitlines())
    return f"    steps:\n{lines}{rest}"


async def sent(bench: Bench, yaml: str, *trees: Any) -> list[Any]:
    async with bench.route(steps(yaml)) as route:
        for tree in trees:
            await post(route, tree)
    return script("out").trees


def complaints(folder: Path, yaml: str) -> str:
    with pytest.raises(Complaints) as caught:
        written(folder, f"version: 1\nroutes:\n  r:\n    from: {{probe: {{}}}}\n{steps(yaml)}")
    return str(caught.value)


# --- choose


CHOOSE = """
- choose:
    - when: body.n == 1
      steps: [{map: {was: one}}]
    - when: body.n >= 1
      steps: [{map: {was: more}}]
"""


async def test_the_first_branch_that_holds_is_taken(bench: Bench) -> None:
    assert await sent(bench, CHOOSE, {"n": 1}, {"n": 2}) == [{"was": "one"}, {"was": "more"}]


async def test_what_no_branch_takes_goes_on_unchanged(bench: Bench) -> None:
    assert await sent(bench, CHOOSE, {"n": 0}) == [{"n": 0}]


async def test_otherwise_takes_what_is_left(bench: Bench) -> None:
    yaml = CHOOSE + "    - otherwise: [{map: {was: less}}]\n"
    assert await sent(bench, yaml, {"n": 0}, {"n": 1}) == [{"was": "less"}, {"was": "one"}]


async def test_an_otherwise_without_steps_lets_go_on(bench: Bench) -> None:
    assert await sent(bench, CHOOSE + "    - otherwise: []\n", {"n": 0}) == [{"n": 0}]


async def test_a_branch_may_end_a_message(bench: Bench) -> None:
    yaml = "- choose: [{when: body.n == 1, steps: [{filter: 1 == 2}]}]"
    assert await sent(bench, yaml, {"n": 1}, {"n": 2}) == [{"n": 2}]


async def test_a_condition_that_can_not_be_said_refuses_with_its_place(bench: Bench) -> None:
    async with bench.route(steps(CHOOSE)) as route:
        outcome = await post(route, {"m": 1}, answers=False)
    assert isinstance(outcome, Refused)
    (record,) = bench.journal.records.values()
    assert record.reason is not None
    assert record.reason.place == "steps.0.choose"


def test_an_otherwise_that_hides_another_branch_is_a_complaint(tmp_path: Path) -> None:
    text = complaints(tmp_path, "- choose: [{otherwise: []}, {when: body.n, steps: []}]")
    assert "otherwise stands before another branch, which it makes unreachable; put it last" in text


def test_a_choose_without_branches_is_a_complaint(tmp_path: Path) -> None:
    assert "routes.r.steps[0].choose: " in complaints(tmp_path, "- choose: []")


@pytest.mark.parametrize("set_by_s", [3600.0, -3600.0])
async def test_a_deadline_is_not_moved_by_a_clock_that_is_set_while_a_step_waits(bench: Bench, set_by_s: float) -> None:
    settings = steps("- call: {probe: {name: asked}, into: body.x, name: asked}", f"    expire_after: 10s{TO}")
    release = asyncio.Event()

    async def slow(_: Message) -> Message:
        await release.wait()
        return Message(raw=b"{}")

    async with bench.route(settings) as route:
        script("asked").does = slow
        for waited_s, expected in ((0.0, 1), (11.0, 0)):
            release.clear()
            script("out").received.clear()
            taken = asyncio.create_task(post(route, {"n": 1}, time_s=bench.clock.time()))
            await settle()
            bench.clock.set_by_s += set_by_s
            await bench.clock.advance(waited_s)
            release.set()
            await taken
            assert len(script("out").received) == expected


# --- dedupe


async def test_of_messages_that_come_again_only_the_newest_are_known(bench: Bench) -> None:
    yaml = "- dedupe: {by: body.n, max_count: 2}"
    trees = [{"n": n} for n in (1, 1, 2, 1, 3, 2, 1)]
    assert await sent(bench, yaml, *trees) == [{"n": n} for n in (1, 2, 3, 1)]


async def test_what_its_target_did_not_take_is_no_duplicate_when_it_comes_again(bench: Bench) -> None:
    async with bench.route(steps("- dedupe: {by: body.n}")) as route:
        for error in (PeerError("away"), MessageError("no")):
            script("out").does = raises(error)
            assert not isinstance(await post(route, {"n": 1}), Accepted)
        script("out").does = lambda message: None
        assert isinstance(await post(route, {"n": 1}), Accepted)
        assert isinstance(await post(route, {"n": 1}), Accepted)
    assert script("out").trees == [{"n": 1}] * 3


async def test_the_same_message_twice_at_once_is_deferred_until_it_is_known_what_became_of_the_first(
    bench: Bench,
) -> None:
    release = asyncio.Event()

    async def slow(_: Message) -> None:
        await release.wait()

    async with bench.route(steps("- dedupe: {by: body.n}")) as route:
        script("out").does = slow
        first = asyncio.create_task(post(route, {"n": 1}))
        await settle()
        second = await post(route, {"n": 1})
        assert isinstance(second, Deferred)
        assert second.full == "dedupe: a message that is the same is on its way just now; send again"
        release.set()
        assert isinstance(await first, Accepted)
        assert isinstance(await post(route, {"n": 1}), Accepted)
    assert script("out").trees == [{"n": 1}]


async def test_children_that_are_the_same_are_one(bench: Bench) -> None:
    yaml = "- split: {each: body.lines}\n- dedupe: {by: body.n}"
    lines = [{"n": 1}, {"n": 2}, {"n": 1}]
    assert await sent(bench, yaml, {"lines": lines}, {"lines": lines}) == [{"n": 1}, {"n": 2}]


async def test_a_delivered_message_is_accepted_also_when_it_can_not_be_remembered(bench: Bench) -> None:
    async with bench.route(steps("- dedupe: {by: body.n}")) as route:
        bench.journal.full = True
        assert isinstance(await post(route, {"n": 1}), Accepted)
    assert script("out").trees == [{"n": 1}]


# --- split


async def test_each_element_is_a_message_of_its_own(bench: Bench) -> None:
    trees = await sent(
        bench, "- split: {each: body.lines}\n- set: {type: line}", {"lines": [{"a": 1}, 2, "three", None]}
    )
    assert sorted(trees, key=str) == sorted([{"a": 1}, 2, "three", None], key=str)
    assert {message.type for message in script("out").received} == {"line"}


async def test_children_have_ids_that_come_from_their_parents(bench: Bench) -> None:
    async with bench.route(steps("- split: {each: body.lines}")) as route:
        first = Message(raw=None, parsed={"lines": [1, 2]})
        again = first.replace()
        for message in (first, again):
            await route.take(message, answers=True, type_="t")
    ids = [message.id for message in script("out").received]
    assert ids[:2] == ids[2:] == [derived_id(first.id, "steps.0.split", index) for index in (0, 1)]
    assert {message.causation_id for message in script("out").received} == {first.id}


async def test_children_of_two_splits_never_share_an_id(bench: Bench) -> None:
    yaml = "- split: {each: body}\n- split: {each: body}"
    await sent(bench, yaml, [[1, 2], [3, 4]])
    assert len({message.id for message in script("out").received}) == 4


async def test_joined_they_are_one_message_again_in_order(bench: Bench) -> None:
    yaml = "- split: {each: body.lines, steps: [{map: {n: '{{ body * 2 }}'}}], join: list}"
    async with bench.route(steps(yaml)) as route:
        message = Message(raw=None, parsed={"lines": [3, 1, 2]})
        await route.take(message, answers=True, type_="t")
    (out,) = script("out").received
    assert out.tree == [{"n": 6}, {"n": 2}, {"n": 4}]
    assert out.id == message.id


async def test_an_element_that_is_filtered_is_left_out_of_the_join(bench: Bench) -> None:
    yaml = "- split: {each: body, steps: [{filter: body > 1}], join: list}"
    assert await sent(bench, yaml, [1, 2, 3], [1], []) == [[2, 3], [], []]


async def test_when_one_element_is_refused_nothing_of_the_message_was_sent(bench: Bench) -> None:
    yaml = "- split: {each: body, steps: [{filter: body.n > 1}]}"
    async with bench.route(steps(yaml)) as route:
        assert isinstance(await post(route, [{"n": 2}, {"m": 1}, {"n": 3}]), Refused)
    assert script("out").received == []


@pytest.mark.parametrize(
    ("tree", "kind"),
    [({"a": 1}, "a mapping"), ("text", "text"), (7, "a number"), (True, "true or false"), (None, "null")],
)
async def test_what_is_no_list_can_not_be_split(bench: Bench, tree: Any, kind: str) -> None:
    async with bench.route(steps("- split: {each: body.x}")) as route:
        outcome = await post(route, {"x": tree})
    assert isinstance(outcome, Refused)
    assert outcome.reason == f"split: body.x is {kind}, expected a list; write an expression that gives a list"


# --- call


CALL = "- call: {probe: {name: crm}, name: crm, into: body.customer.crm}"


async def test_a_reply_is_put_into_the_body(bench: Bench) -> None:
    script("crm").does = replies({"vip": True})
    trees = await sent(bench, CALL, {"customer": {"id": 7}}, {}, {"customer": {"crm": "old"}})
    assert trees == [
        {"customer": {"id": 7, "crm": {"vip": True}}},
        {"customer": {"crm": {"vip": True}}},
        {"customer": {"crm": {"vip": True}}},
    ]


async def test_a_reply_is_put_into_the_context(bench: Bench) -> None:
    script("crm").does = replies([1, 2])
    yaml = "- call: {probe: {name: crm}, name: crm, into: context.crm.found}\n- map: {n: '{{ context.crm.found | length }}'}"
    assert await sent(bench, yaml, {"a": 1}) == [{"n": 2}]


async def test_without_into_the_reply_is_the_body_with_its_own_content_type(bench: Bench) -> None:
    script("crm").does = lambda message: Message(raw=b"<a/>", content_type="application/xml")
    async with bench.route(steps("- call: {probe: {name: crm}, name: crm}")) as route:
        await post(route, {"a": 1}, subject="kept")
    (out,) = script("out").received
    assert (out.body, out.content_type, out.subject) == (b"<a/>", "application/xml", "kept")


async def test_a_call_carries_the_id_of_its_message_and_its_own_name(bench: Bench) -> None:
    script("crm").does = replies({})
    async with bench.route(steps(CALL)) as route:
        await post(route, {})
    assert [host.target for host in script("crm").hosts] == ["crm"]
    assert script("crm").received[0].id == script("out").received[0].id


async def test_a_body_that_has_no_place_for_the_reply_refuses_the_message(bench: Bench) -> None:
    script("crm").does = replies({})
    async with bench.route(steps(CALL)) as route:
        for tree, text in (
            ([1], "call: body is a list, expected a mapping to put 'customer' into"),
            ({"customer": "C9"}, "call: body.customer is text, expected a mapping to put 'crm' into"),
        ):
            outcome = await post(route, tree)
            assert isinstance(outcome, Refused)
            assert outcome.reason == text


async def test_who_never_replies_can_not_be_called(bench: Bench) -> None:
    async with bench.route(steps(CALL)) as route:
        outcome = await post(route, {})
    assert isinstance(outcome, Refused)
    assert outcome.reason == "call crm: it gives no reply; use it as a target, or a sink that replies"


async def test_a_call_is_tried_again_as_the_route_says(bench: Bench) -> None:
    script("crm").does = raises(PeerError("away"))
    async with bench.route("    retry: {attempts: 3, first_wait: 2s}\n" + steps(CALL)) as route:
        posting = asyncio.create_task(post(route, {}))
        await settle()
        await bench.clock.advance(2)
        script("crm").does = replies({})
        await bench.clock.advance(4)
        assert isinstance(await posting, Accepted)
    assert len(script("crm").received) == 3
    assert bench.observed.target("r", "crm").retried == 2


async def test_a_call_that_finds_nobody_defers_the_sender(bench: Bench) -> None:
    script("crm").does = raises(PeerError("away", wait_s=9.0))
    async with bench.route("    retry: {attempts: 1}\n" + steps(CALL)) as route:
        outcome = await post(route, {})
    assert isinstance(outcome, Deferred)
    assert outcome.reason == 'the target "crm" did not take it; send it again later'
    assert (outcome.full, outcome.wait_s) == ("away", 9.0)


@pytest.mark.parametrize("into", ["crm", "headers.x", "body", "body.", "body..x", "body.1"])
def test_an_into_that_names_no_place_is_a_complaint(tmp_path: Path, into: str) -> None:
    assert "routes.r.steps[0].call.into: " in complaints(
        tmp_path, f"- call: {{probe: {{}}, name: crm, into: '{into}'}}"
    )


# --- tap


async def test_a_tap_gets_a_copy_and_holds_nothing_up(bench: Bench) -> None:
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def hangs(_: Message) -> None:
        await never

    script("live").does = hangs
    async with bench.route(steps("- tap: {probe: {name: live}}")) as route:
        for n in range(3):
            assert isinstance(await post(route, {"n": n}), Accepted)
    assert [len(script(name).received) for name in ("live", "out")] == [1, 3]
    copy, original = script("live").received[0], script("out").received[0]
    assert (copy.id, copy.causation_id) == (derived_id(original.id, "steps.0.tap"), original.id)


async def test_a_tap_that_is_full_or_away_drops_and_counts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.target.TAP_QUEUE", 2)
    gate = asyncio.Event()

    async def waits(_: Message) -> None:
        await gate.wait()
        raise PeerError("away")

    script("live").does = waits
    async with bench.route(steps("- tap: {probe: {name: live}}")) as route:
        for n in range(5):
            assert isinstance(await post(route, {"n": n}), Accepted)
        gate.set()
        await settle()
    assert bench.observed.route("r").dropped == {"steps.0.tap full": 3, "steps.0.tap failed": 2}
    assert len(script("out").received) == 5


async def test_a_tap_of_a_route_that_has_stopped_only_counts(bench: Bench) -> None:
    async with bench.route(steps("- tap: {probe: {name: live}}")) as route:
        inside = route.inside
    walked = await inside.steps(Message(raw=b"{}"))
    assert len(walked) == 1
    assert bench.observed.route("r").dropped == {"steps.0.tap full": 1}


# --- try


TRY = """
- try:
    steps: [{map: {half: '{{ body.n / 2 }}'}}, {filter: body.half > 1}]
    catch: [{map: {was: '{{ body.n | default("nothing") }}', kind: '{{ context.error.kind }}', place: '{{ context.error.place }}', text: '{{ context.error.text }}'}}]
"""


async def test_what_its_steps_take_goes_on(bench: Bench) -> None:
    assert await sent(bench, TRY, {"n": 4}, {"n": 2}) == [{"half": 2.0}]


async def test_what_they_refuse_goes_through_catch_as_it_was(bench: Bench) -> None:
    (caught,) = await sent(bench, TRY, {"n": "text"})
    assert caught["was"] == "text"
    assert caught["kind"] == "refused"
    assert caught["place"] == "steps.0.try.steps.0.map"
    assert caught["text"]


async def test_a_call_that_finds_nobody_is_caught_as_unavailable(bench: Bench) -> None:
    script("crm").does = raises(PeerError("crm: away"))
    yaml = """
- try:
    steps: [{call: {probe: {name: crm}, name: crm}}]
    catch: [{map: {error: '{{ context.error }}'}}]
"""
    async with bench.route("    retry: {attempts: 1}\n" + steps(yaml)) as route:
        await post(route, {})
    assert script("out").trees == [{"error": {"kind": "unavailable", "text": "crm: away", "place": "steps.0.try"}}]


async def test_an_empty_catch_lets_it_go_on_unchanged(bench: Bench) -> None:
    assert await sent(bench, "- try: {steps: [{map: {a: '{{ body.x }}'}}], catch: []}", {"n": 1}) == [{"n": 1}]


async def test_what_catch_refuses_is_refused(bench: Bench) -> None:
    yaml = "- try: {steps: [{map: {a: '{{ body.x }}'}}], catch: [{map: {a: '{{ body.y }}'}}]}"
    async with bench.route(steps(yaml)) as route:
        outcome = await post(route, {"n": 1}, answers=False)
    assert isinstance(outcome, Refused)
    (record,) = bench.journal.records.values()
    assert record.reason is not None
    assert record.reason.place == "steps.0.try.catch.0.map"


async def test_a_bug_is_not_caught(bench: Bench) -> None:
    script("crm").does = raises(ZeroDivisionError("bug"))
    async with bench.route(steps("- try: {steps: [{call: {probe: {name: crm}, name: crm}}], catch: []}")) as route:
        outcome = await post(route, {})
    assert isinstance(outcome, Refused)
    assert outcome.code == "internal"


# --- all of them


@pytest.mark.parametrize(
    ("yaml", "pure"),
    [
        ("- set: {type: t}", True),
        ("- choose: [{when: body.n, steps: [{set: {type: t}}]}]", True),
        ("- choose: [{when: body.n, steps: [{call: {probe: {}, name: c}}]}]", False),
        ("- choose: [{otherwise: [{split: {each: body}}]}]", False),
        ("- split: {each: body}", False),
        ("- call: {probe: {}, name: c}", False),
        ("- tap: {probe: {}}", True),
        ("- try: {steps: [{set: {type: t}}], catch: []}", True),
        ("- try: {steps: [], catch: [{call: {probe: {}, name: c}}]}", False),
    ],
)
async def test_steps_are_pure_when_running_them_again_touches_nothing(bench: Bench, yaml: str, pure: bool) -> None:
    async with bench.route(steps(yaml)) as route:
        assert route.inside.steps.pure is pure


async def test_steps_before_and_after_a_pattern_run_in_order(bench: Bench) -> None:
    yaml = """
- map: {n: '{{ body.n + 1 }}'}
- choose: [{when: body.n == 2, steps: [{map: {n: '{{ body.n * 10 }}'}}]}]
- map: {n: '{{ body.n + 1 }}'}
- filter: body.n > 3
"""
    assert await sent(bench, yaml, {"n": 1}, {"n": 1}, {"n": 0}) == [{"n": 21}, {"n": 21}]


async def test_patterns_hold_patterns(bench: Bench) -> None:
    yaml = """
- split:
    each: body
    steps:
      - choose:
          - when: body.n > 1
            steps: [{try: {steps: [{call: {probe: {name: crm}, name: crm, into: body.crm}}], catch: [{set: {type: caught}}]}}]
    join: list
"""

    def only_two(message: Message) -> Message | None:
        if message.tree != {"n": 2}:
            raise MessageError("no")
        return Message(raw=b'"ok"', formats=message.formats)

    script("crm").does = only_two
    assert await sent(bench, yaml, [{"n": 1}, {"n": 2}, {"n": 3}]) == [[{"n": 1}, {"n": 2, "crm": "ok"}, {"n": 3}]]


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        ("- split: {each: 'body.['}", "steps[0].split.each: "),
        ("- split: {steps: []}", "a required key is missing: each"),
        ("- split: {each: body, join: map}", "split.join"),
        ("- call: {name: x}", "a sink is missing: write its name with its settings"),
        ("- call: {nowhere: {}}", 'no sink is called "nowhere"'),
        ("- tap: {nowhere: {}}", 'no sink is called "nowhere"'),
        ("- try: {steps: []}", "a required key is missing: catch"),
        ("- chose: []", 'no step is called "chose"; did you mean choose?'),
        ("- split: {each: body, steps: set}", "expected a list of steps: write each on its own line after a dash"),
    ],
)
def test_what_a_pattern_can_not_mean_is_a_complaint(tmp_path: Path, yaml: str, text: str) -> None:
    assert re.search(re.escape(text), complaints(tmp_path, yaml))
