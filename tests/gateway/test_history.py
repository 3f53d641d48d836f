"""What is recorded of a stored message: each step that changed, ended, split or failed on it, as `history:` says."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import Address, Message, MessageError
from gateway.journal import Hop
from gateway.path import HOP_BYTES, MOST_HOP_BYTES, MOST_HOPS
from gateway.testing import until
from tests.adapters.raw_http import peer
from tests.gateway.bench import Bench, post
from tests.gateway.probe import plug_in, raises, replies, script
from tests.playground import Playground


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    plug_in(monkeypatch)
    return Bench(tmp_path)


async def recorded(bench: Bench, settings: str, tree: object) -> list[Hop]:
    """The history of this message on a route with these settings."""
    async with bench.route(settings) as route:
        await post(route, tree)
        (record,) = bench.journal.records.values()
        return list(record.hops)


def told(hops: list[Hop]) -> list[tuple[str, str]]:
    return [(hop.place, hop.outcome) for hop in hops]


PATTERNS = """\
    steps:
      - set: {type: order}
      - filter: body.id is defined
      - choose:
          - when: body.kind == 'big'
            steps: [{set: {subject: big}}]
          - otherwise: [{set: {subject: small}}]
      - call: {probe: {name: crm}, into: body.crm, name: crm}
      - try:
          steps: [{map: {qty: "{{ body.qty | int }}"}}]
          catch: [{map: {qty: null}}]
      - tap: {probe: {name: seen}}
      - split: {each: "[1, 2]", steps: [{map: {n: "{{ body }}"}}], join: list}
    to:
      probe: {}
      steps: [{map: {lines: "{{ body }}"}}]
"""


async def test_each_step_that_changes_a_message_is_recorded_also_within_patterns_and_of_targets(bench: Bench) -> None:
    script("crm").does = replies({"name": "Anna"})
    hops = await recorded(bench, PATTERNS, {"id": "A1", "kind": "big", "qty": "many"})
    assert told(hops) == [
        ("steps.0.set", "changed"),
        ("steps.2.choose.0.0.set", "changed"),
        ("steps.3.call", "changed"),
        ("steps.4.try.catch.0.map", "changed"),
        ("steps.6.split", "split"),
        ("steps.6.split.steps.0.map", "changed"),
        ("steps.6.split.steps.0.map", "changed"),
        ("steps.6.split", "changed"),
        ("to.probe.steps.0.map", "changed"),
    ]
    assert {(hop.before, hop.after) for hop in hops} == {(None, None)}


async def test_with_full_the_bodies_before_and_after_are_there(bench: Bench) -> None:
    script("crm").does = replies({"name": "Anna"})
    hops = await recorded(bench, f"    history: full\n{PATTERNS}", {"id": "A1", "kind": "big", "qty": "7"})
    by_place = {hop.place: (hop.before, hop.after) for hop in hops}
    assert by_place["steps.3.call"] == (
        b'{"id":"A1","kind":"big","qty":"7"}',
        b'{"id":"A1","kind":"big","qty":"7","crm":{"name":"Anna"}}',
    )
    assert by_place["steps.4.try.steps.0.map"][1] == b'{"qty":7}'
    assert by_place["steps.6.split"] == (b'{"qty":7}', b'[{"n":1},{"n":2}]')


async def test_with_off_nothing_is_recorded(bench: Bench) -> None:
    script("crm").does = replies({"name": "Anna"})
    assert await recorded(bench, f"    history: off\n{PATTERNS}", {"id": "A1"}) == []


async def test_with_off_a_failure_has_its_reason_and_no_history(bench: Bench) -> None:
    assert await recorded(bench, "    history: off\n    steps: [{filter: body.x > 1}]\n    to: drop\n", {}) == []
    assert len(bench.dead) == 1


async def test_what_ends_a_message_is_the_last_of_its_history(bench: Bench) -> None:
    settings = "    steps: [{set: {type: a}}, {filter: body.go}, {set: {type: b}}]\n    to: drop\n"
    hops = await recorded(bench, settings, {"go": False})
    assert told(hops) == [("steps.0.set", "changed"), ("steps.1.filter", "filtered")]


async def test_a_duplicate_is_recorded_as_filtered(bench: Bench) -> None:
    async with bench.route("    steps: [{dedupe: {by: body.id}}]\n    to: drop\n") as route:
        await post(route, {"id": "A1"})
        await post(route, {"id": "A1"})
        first, second = bench.journal.records.values()
    assert (first.state, told(first.hops)) == ("delivered", [])
    assert (second.state, told(second.hops)) == ("filtered", [("steps.0.dedupe", "filtered")])


async def test_the_step_that_failed_is_named(bench: Bench) -> None:
    script("crm").does = raises(MessageError("crm: no such customer"))
    settings = "    steps: [{set: {type: a}}, {call: {probe: {name: crm}, into: body.crm, name: crm}}]\n    to: drop\n"
    assert told(await recorded(bench, settings, {})) == [("steps.0.set", "changed"), ("steps.1.call", "failed")]


async def test_the_step_of_a_target_that_failed_is_named(bench: Bench) -> None:
    settings = "    steps: [{set: {type: a}}]\n    to: {drop: {}, steps: [{filter: body.x > 1}]}\n"
    hops = await recorded(bench, settings.replace("drop: {}", "probe: {}"), {})
    assert told(hops) == [("steps.0.set", "changed"), ("to.probe.steps.0.filter", "failed")]


async def test_a_history_has_bounds(bench: Bench) -> None:
    lines = ["x" * 1000] * (2 * MOST_HOPS)
    settings = (
        '    history: full\n    steps: [{split: {each: body, steps: [{map: {n: "{{ body }}"}}]}}]\n    to: drop\n'
    )
    hops = await recorded(bench, settings, lines)
    assert len(hops) == MOST_HOPS
    assert told(hops)[0] == ("steps.0.split", "split")
    assert len(hops[0].before or b"") == HOP_BYTES


async def test_large_bodies_are_left_out_once_there_are_enough(bench: Bench) -> None:
    steps = ", ".join(['{map: {text: "{{ body.text }}"}}'] * 20)
    settings = f"    history: full\n    steps: [{steps}]\n    to: drop\n"
    hops = await recorded(bench, settings, {"text": "x" * 200_000})
    kept = [hop for hop in hops if hop.after is not None]
    assert (len(hops), len(kept)) == (20, MOST_HOP_BYTES // (2 * HOP_BYTES))


async def test_what_a_history_can_not_show_refuses_nothing(bench: Bench) -> None:
    """A tree that its content type can't carry is no fault while nobody needs its bytes."""
    settings = """\
    history: full
    steps: [{map: {a: {b: 1}}}, {set: {content_type: application/x-www-form-urlencoded}}, {map: {n: 1}}]
    to: probe
"""
    async with bench.route(settings) as route:
        await post(route, {})
        assert bench.dead == []
        assert script("out").trees == [{"n": 1}]


async def test_other_routes_are_no_part_of_a_history(tmp_path: Path) -> None:
    """A call into a channel runs another route's steps on the same message: those are that route's own."""
    place = Playground(tmp_path)
    (tmp_path / "routes.yaml").write_text(
        place.mapped(
            """\
version: 1
routes:
  asks:
    from: {http: {listen: "127.0.0.1:8081", path: /asks}}
    history: full
    steps:
      - call: {channel: crm, into: body.crm, name: crm}
      - set: {type: asked}
    to: {file: {path: asked.jsonl}}
  crm:
    from: {channel: crm}
    ack: reply
    steps: [{map: {name: Anna}}, {choose: [{when: "true", steps: [{set: {type: found}}]}]}]
    to: {http: {url: "http://127.0.0.1:8081/echo"}}
  echo:
    from: {http: {listen: "127.0.0.1:8081", path: /echo}}
    ack: delivered
    to: drop
"""
        )
    )
    async with place.running("routes.yaml") as app:
        async with peer(Address("127.0.0.1", place.port(8081))) as client:
            body = b'{"id":1}'
            await client.send(b"POST /asks HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            answer = await client.response()
        message_id = answer.body.decode().split('"')[3]
        await until(lambda: (tmp_path / "asked.jsonl").exists())
        journal = app.services.journal
        for _ in range(500):
            detail = await journal.find(message_id)
            if detail is not None and detail.row.state == "delivered":
                break
    assert detail is not None
    assert told(list(detail.hops)) == [("steps.0.call", "changed"), ("steps.1.set", "changed")]
    assert isinstance(detail.message, Message)
