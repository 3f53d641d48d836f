"""What parts of a configuration can't know of each other: each cross check, and the notes of what may be lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.documents import Complaints
from tests.gateway.bench import written
from tests.gateway.probe import plug_in


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch)


def complaints(folder: Path, routes: str, top: str = "") -> list[str]:
    """Each complaint, without file, line and column."""
    try:
        written(folder, f"version: 1\n{top}routes:\n{routes}")
    except Complaints as error:
        lines = str(error).splitlines()
        return [line.split(": ", 1)[1] for line in lines if line.startswith(str(folder))]
    return []


def route(name: str, settings: str) -> str:
    """A route with these settings, one a line; from and to are probes unless they are said."""
    lines = settings.strip().splitlines()
    for key, value in (("from", f"{{probe: {{name: {name}}}}}"), ("to", "{probe: {}}")):
        if not any(line.startswith(f"{key}:") for line in lines):
            lines.append(f"{key}: {value}")
    return f"  {name}:\n" + "".join(f"    {line}\n" for line in lines)


FINE = [
    "to: [{probe: {}}, {probe: {}, name: b}]",
    "steps: [{call: {probe: {}, name: crm}}, {call: {probe: {}, name: erp}}]",
    "accept: [{filter: 1 == 1}]",
    "order_by: body.k",
    "ack: reply\nmatch: first\nto: [{probe: {}, when: body.a}, {probe: {}, name: b}]",
    "ack: reply\nsteps: [{split: {each: body, join: list}}]",
    "to: {probe: {}, retry: {attempts: 3}}",
    "dead_letter: {probe: {}, name: dead, circuit: {failures: 2}, steps: [{set: {type: dead}}]}",
]


@pytest.mark.parametrize("settings", FINE)
def test_what_fits_together_is_fine(tmp_path: Path, settings: str) -> None:
    assert complaints(tmp_path, route("r", settings)) == []


WRONG = [
    (
        "to: [{probe: {}}, {probe: {}}]",
        'routes.r.to[1]: the name "probe" is taken in this route; give this one a name: of its own',
    ),
    (
        "steps: [{call: {probe: {}}}]",
        'routes.r.steps[0]: the name "probe" is taken in this route; give this one a name: of its own',
    ),
    (
        "dead_letter: {probe: {}}",
        'routes.r.dead_letter: the name "probe" is taken in this route; give this one a name: of its own',
    ),
    (
        "to: {probe: {}, steps: [{try: {steps: [{call: {probe: {}, name: x}}], catch: [{call: {probe: {}, name: x}}]}}]}",
        'the name "x" is taken in this route; give this one a name: of its own',
    ),
    (
        "steps: [{choose: [{when: body.a, steps: [{call: {probe: {}}}]}]}]",
        'the name "probe" is taken in this route; give this one a name: of its own',
    ),
    (
        "accept: [{set: {type: x}}]",
        "routes.r.accept[0]: set is no check: accept takes validate, filter, parse; write it under steps:",
    ),
    (
        "accept: [{split: {each: body}}]",
        "split is no check: accept takes validate, filter, parse; write it under steps:",
    ),
    (
        "ack: delivered\norder_by: body.k",
        "routes.r.order_by: it needs ack: stored, got ack: delivered; order is kept by the journal",
    ),
    (
        "ack: delivered\nto: {probe: {}, retry: {attempts: 3}}",
        "it needs ack: stored, got ack: delivered: without the journal the sender tries again, not we",
    ),
    (
        "ack: reply\nto: [{probe: {}}, {probe: {}, name: b}]",
        "routes.r.to: ack: reply needs one target, or match: first; with several nobody knows whose reply counts",
    ),
    (
        "ack: reply\nsteps: [{split: {each: body}}]",
        "ack: reply needs a split with join: list; otherwise nobody knows whose reply counts",
    ),
    (
        "to: {channel: nowhere}",
        'nobody reads the channel "nowhere"; give a route from: {channel: nowhere}, or use drop',
    ),
    (
        "dead_letter: {probe: {}, name: dead, retry: {attempts: 3}}",
        "routes.r.dead_letter.retry: a target for dead letters has no retry: it gets each one once, and the gateway "
        "keeps what it does not take; remove it",
    ),
    (
        "ack: delivered\ndead_letter: {probe: {}, name: dead, when: body.a}",
        "routes.r.dead_letter.when: a target for dead letters has no when: it gets each one once, and the gateway "
        "keeps what it does not take; remove it",
    ),
    (
        "steps: [{tap: {channel: nowhere}}]",
        'nobody reads the channel "nowhere"; give a route from: {channel: nowhere}, or use drop',
    ),
    (
        "from: {channel: loop}\nto: {channel: loop}",
        "the channel loop leads back to this route, r: messages would go round for ever",
    ),
]


@pytest.mark.parametrize(("settings", "text"), WRONG, ids=[text[-40:] for _, text in WRONG])
def test_what_does_not_fit_together_is_a_complaint(tmp_path: Path, settings: str, text: str) -> None:
    (found,) = complaints(tmp_path, route("r", settings))
    assert text in found


def test_what_only_one_may_have_is_not_given_twice(tmp_path: Path) -> None:
    one = route("a", "from: {probe: {name: a, claim: [the key]}}")
    two = route("b", "from: {probe: {name: b, claim: [the key]}}")
    (found,) = complaints(tmp_path, one + two)
    assert found.endswith("the key is taken by route a; choose another")


HTTP = "http: {listen: '127.0.0.1:8081', path: '%s', methods: [%s]}"
TCP = "tcp: {listen: '127.0.0.1:%d', answer: {}}"
UDP = "udp: {listen: '127.0.0.1:8081'}"


@pytest.mark.parametrize(
    ("one", "two", "count"),
    [
        (HTTP % ("/a", "POST"), HTTP % ("/b", "POST"), 0),
        (HTTP % ("/a", "POST"), HTTP % ("/a", "GET"), 0),
        (HTTP % ("/a", "POST"), HTTP % ("/a", "GET, POST"), 1),
        (HTTP % ("/a/{x}", "POST"), HTTP % ("/a/{y}", "POST"), 1),
        (HTTP % ("/a/{x}", "POST"), HTTP % ("/a/b", "POST"), 0),
        (HTTP % ("/a", "POST"), TCP % 8081, 1),
        (TCP % 8081, HTTP % ("/a", "POST"), 1),
        (TCP % 8081, TCP % 8081, 1),
        (TCP % 8081, TCP % 8082, 0),
        (TCP % 0, TCP % 0, 0),
        (UDP, TCP % 8081, 0),
        (UDP, UDP, 1),
    ],
)
def test_an_address_is_shared_by_those_who_can(tmp_path: Path, one: str, two: str, count: int) -> None:
    found = complaints(tmp_path, route("a", f"from: {{{one}}}") + route("b", f"from: {{{two}}}"))
    assert len(found) == count, found


def test_a_cycle_of_channels_is_found_however_long(tmp_path: Path) -> None:
    routes = (
        route("a", "from: {channel: x}\nto: {channel: y}")
        + route("b", "from: {channel: y}\nsteps: [{tap: {channel: z}}]")
        + route("c", "from: {channel: z}\nto: {channel: x}")
    )
    found = complaints(tmp_path, routes)
    assert [text.split(": ")[1].split(",")[0] for text in found] == [
        "the channel y leads back to this route",
        "the channel z leads back to this route",
        "the channel x leads back to this route",
    ]


def test_channels_that_meet_again_are_no_cycle(tmp_path: Path) -> None:
    routes = (
        route("a", "to: [{channel: x}, {channel: y, name: other}]")
        + route("b", "from: {channel: x}\nto: {channel: z}")
        + route("c", "from: {channel: y}\nto: {channel: z}")
        + route("d", "from: {channel: z}")
    )
    assert complaints(tmp_path, routes) == []


def test_all_complaints_come_at_once(tmp_path: Path) -> None:
    routes = route("a", "to: {channel: x}") + route("b", "ack: delivered\norder_by: body.k\naccept: [{set: {type: t}}]")
    assert len(complaints(tmp_path, routes)) == 3


def test_what_no_route_uses_is_a_complaint(tmp_path: Path) -> None:
    top = "connections: {plant: {mqtt: {url: 'mqtt://127.0.0.1', client_id: g}}}\nlisteners: {'127.0.0.1:9999': {}}\n"
    found = complaints(tmp_path, route("r", ""), top)
    assert found == [
        "connections.plant: no route uses this connection; use it or remove it",
        'listeners."127.0.0.1:9999": no route listens on this address; use it or remove it',
    ] or [text.split(": ")[-1] for text in found] == [
        "no route uses this connection; use it or remove it",
        "no route listens on this address; use it or remove it",
    ]


def test_what_may_be_lost_is_noted_with_its_place(tmp_path: Path) -> None:
    routes = route("r", "to: {probe: {at_most_once: nobody answers}}")
    (note,) = written(tmp_path, f"version: 1\nroutes:\n{routes}").notes
    assert note.startswith(f"{tmp_path / 'routes.yaml'}:4:")
    assert note.endswith("at most once: nobody answers")


def test_a_reserve_that_the_log_of_the_journal_may_fill_is_noted(tmp_path: Path) -> None:
    for reserve, noted in (("127MiB", True), ("128MiB", False)):
        top = f"version: 1\ngateway: {{retention: {{reserve: {reserve}}}}}\nroutes:\n"
        told = written(tmp_path, top + route("r", "to: {probe: {}}")).notes
        assert [": gateway.retention.reserve: the journal's own log" in note for note in told] == [True] * noted
