"""The journal port, on SQLite and on the fake: what is stored, given out, changed and counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from adapters.sqlite import open_journal
from gateway import Limits, Message, MessageError
from gateway.formats import formats_with
from gateway.journal import (
    Attempt,
    Attempted,
    Change,
    Delivery,
    Expanded,
    Filter,
    Finished,
    Hop,
    Journal,
    Reason,
    Row,
)
from gateway.message import Principal
from gateway.testing import ManualClock
from tests.memory_journal import MemoryJournal, append

ROOM = 1 << 40


@asynccontextmanager
async def opened(folder: Path, clock: Any = None, **options: Any) -> AsyncIterator[Journal]:
    """A journal on SQLite that keeps all, in a folder."""
    options = {"age_s": 1e9, "size_bytes": ROOM, "reserve_bytes": 0, "on_broken": pytest.fail, **options}
    async with open_journal(folder, clock=clock or ManualClock(), **options) as journal:
        yield journal


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["sqlite", "memory"])
async def journal(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Journal]:
    if request.param == "memory":
        yield MemoryJournal(clock)
    else:
        async with opened(tmp_path, clock) as journal:
            yield journal


@pytest.fixture
async def sqlite(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Journal]:
    async with opened(tmp_path, clock) as journal:
        yield journal


def message(text: str = "x", **fields: Any) -> Message:
    return Message(raw=text.encode(), **fields)


def delivery(parent: Message, target: str = "a", **fields: Any) -> Delivery:
    return Delivery(parent=parent.id, **{"target": target, "message": parent, **fields})


async def keep(journal: Journal, *messages: Message, route: str = "r") -> None:
    for one in messages:
        assert await append(journal, route, one)


async def bodies(journal: Journal, *exclude: Message, limit: int = 100, max_bytes: int = ROOM) -> list[str]:
    works = await journal.stored("r", [one.id for one in exclude], limit, max_bytes)
    return [work.message.body.decode() for work in works]


async def listed(journal: Journal, **wanted: Any) -> list[Row]:
    """All messages that are wanted, newest first."""
    rows: list[Row] = []
    cursor = None
    while True:
        page = await journal.browse(Filter(**wanted), cursor, 500)
        rows += page.rows
        cursor = page.next
        if cursor is None:
            return rows


async def due(journal: Journal, exclude: tuple[tuple[str, str], ...] = (), limit: int = 100) -> list[tuple[str, str]]:
    found = await journal.due("r", exclude, limit)
    return [(item.delivery.message.body.decode(), item.delivery.target) for item in found]


# -- what comes in -----------------------------------------------------------------------------------------------------


async def test_what_is_stored_comes_back_in_the_order_it_came(journal: Journal) -> None:
    await keep(journal, *(message(str(n)) for n in range(300)))
    assert await bodies(journal, limit=1000) == [str(n) for n in range(300)]


async def test_urgent_messages_come_first(journal: Journal) -> None:
    await keep(journal, message("a"), message("b", priority=3), message("c", priority=9), message("d", priority=3))
    assert await bodies(journal) == ["c", "b", "d", "a"]


async def test_what_is_excluded_is_not_given_out(journal: Journal) -> None:
    first, second, third = message("1"), message("2"), message("3")
    await keep(journal, first, second, third)
    assert await bodies(journal, first, third) == ["2"]
    assert await bodies(journal, first, limit=1) == ["2"]


async def test_a_body_that_can_not_be_written_leaves_nothing_for_the_writer(
    sqlite: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(MessageError):
        await append(
            sqlite, "r", Message(raw=None, parsed={"a": 1}, content_type="image/png", formats=formats_with(Limits()))
        )
    await keep(sqlite, message("other"), route="s")
    assert caplog.records == []


async def test_what_is_given_out_says_whether_it_is_all(journal: Journal) -> None:
    some = [message("12345"), message("12345"), message("12345")]
    assert (await journal.stored("r", [], 10, ROOM)).whole
    await keep(journal, *some)
    known = [some[0].id]
    asked = [([], 3, ROOM), ([], 2, ROOM), ([], 9, 15), ([], 9, 14), (known, 2, ROOM), (known, 1, ROOM), (known, 9, 9)]
    told = [(await journal.stored("r", ids, limit, size)).whole for ids, limit, size in asked]
    assert told == [True, False, True, False, True, False, False]


async def test_a_known_id_changes_nothing(journal: Journal) -> None:
    first = message("first")
    await keep(journal, first)
    assert not await append(journal, "r", message("again", id=first.id))
    assert await bodies(journal) == ["first"]
    assert journal.counts() == {"r": {"stored": 1}}


async def test_one_id_twice_at_once_is_stored_once(journal: Journal) -> None:
    first = message("first")
    news = await asyncio.gather(*(append(journal, "r", first) for _ in range(3)), append(journal, "r", message("b")))
    assert news == [True, False, False, True]
    assert journal.counts() == {"r": {"stored": 2}}
    await journal.advance("r", [Finished(first.id, "delivered")])
    assert await bodies(journal) == ["b"]


async def test_routes_do_not_see_each_other(journal: Journal) -> None:
    await keep(journal, message("mine"))
    await keep(journal, message("theirs"), route="other")
    assert await bodies(journal) == ["mine"]
    assert journal.counts() == {"r": {"stored": 1}, "other": {"stored": 1}}


async def test_at_least_one_is_given_out_and_about_so_many_bytes(sqlite: Journal) -> None:
    await keep(sqlite, message("1" * 600), message("2" * 600), message("3" * 600))
    assert [len(body) for body in await bodies(sqlite, max_bytes=1)] == [600]
    assert [len(body) for body in await bodies(sqlite, max_bytes=1300)] == [600, 600]


async def test_callers_are_woken_in_the_order_their_messages_were_stored(journal: Journal) -> None:
    woken: list[int] = []

    async def store(n: int) -> None:
        await append(journal, "r", message(str(n)))
        woken.append(n)

    await asyncio.gather(*(store(n) for n in range(200)))
    assert [str(n) for n in woken] == await bodies(journal, limit=200)


async def test_every_field_of_a_message_comes_back(sqlite: Journal) -> None:
    whole = Message(
        raw=bytes(range(256)),
        source="/gw/r",
        type="t",
        subject="s",
        time_s=12.5,
        content_type="application/x",
        schema="urn:s",
        headers={"a": "ü", "b": ""},
        transport={"peer": "1.2.3.4:5", "params": {"n": 1}, "bytes": b"\x00"},
        sender_id="theirs",
        key="lane",
        priority=7,
        expires_at_s=1e10,
        correlation_id="c",
        causation_id="d",
        traceparent="00-1",
        principal=Principal("bob", ("admin", "x")),
        context={"reply": {"price": Decimal("1.10"), "big": 2**70, "list": [1, None, True]}},
    )
    await keep(sqlite, whole, message("odd id", id="not a uuid"))
    works = await sqlite.stored("r", [], 10, ROOM)
    back = works[0].message
    for name in Message.__struct_fields__:
        if name not in ("formats", "parsed", "since"):
            assert getattr(back, name) == getattr(whole, name), name
    assert isinstance(back.context["reply"]["price"], Decimal)
    assert back.since == sqlite.now()
    assert works[1].message.id == "not a uuid"


async def test_text_that_utf8_can_not_say_does_not_stop_a_message(sqlite: Journal) -> None:
    await keep(sqlite, message("x", headers={"file": "\udcff.txt"}, context={"n": 2**80}, correlation_id="\udc00"))
    (work,) = await sqlite.stored("r", [], 10, ROOM)
    assert work.message.headers == {"file": "?.txt"}


# -- what ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["delivered", "filtered", "expired", "dead", "discarded"])
async def test_a_finished_message_is_counted_and_not_given_out_again(journal: Journal, state: Any) -> None:
    one, other = message("1"), message("2")
    await keep(journal, one, other)
    await journal.advance("r", [Finished(one.id, state)])
    assert await bodies(journal) == ["2"]
    assert {name: n for name, n in journal.counts()["r"].items() if n} == {"stored": 1, state: 1}


async def test_what_is_final_does_not_change(journal: Journal) -> None:
    one = message()
    await keep(journal, one)
    changes: list[Change] = [Finished(one.id, "dead"), Finished(one.id, "delivered"), Expanded(one.id, [delivery(one)])]
    for change in changes:
        await journal.advance("r", [change])
    assert journal.counts()["r"]["dead"] == 1
    assert sum(journal.counts()["r"].values()) == 1
    assert await due(journal) == []


async def test_two_ends_of_one_message_at_once_count_once(sqlite: Journal) -> None:
    one = message()
    await keep(sqlite, one)
    await asyncio.gather(*(sqlite.advance("r", [Finished(one.id, "delivered")]) for _ in range(3)))
    assert sqlite.counts()["r"] == {"stored": 0, "delivered": 1}


async def test_an_unknown_message_can_end_without_harm(sqlite: Journal) -> None:
    ghost = message()
    await sqlite.advance("r", [Finished(ghost.id, "delivered"), Expanded(ghost.id, [delivery(ghost)])])
    await sqlite.advance("r", [Attempted(ghost.id, ghost.id, "a", "delivered", 1)])
    assert sqlite.counts() == {}


async def test_a_buried_message_is_dead_at_once(journal: Journal) -> None:
    await journal.bury("r", message(), Reason("refused", "no"))
    assert journal.counts()["r"]["dead"] == 1
    assert await bodies(journal) == []


async def test_claims_are_counted_until_something_happens(journal: Journal) -> None:
    one, two = message("1"), message("2")
    await keep(journal, one, two)
    for _ in range(2):
        await journal.claim("r", [one.id], [])
    works = await journal.stored("r", [], 10, ROOM)
    assert [work.claims for work in works] == [2, 0]
    await journal.release("r", [one.id], [])
    assert [work.claims for work in await journal.stored("r", [], 10, ROOM)] == [0, 0]
    await journal.advance("r", [Expanded(one.id, [delivery(one, due_at=0.0)])])
    await journal.claim("r", [], [(one.id, "a")])
    await journal.release("r", [], [(one.id, "a")])
    assert [item.claims for item in await journal.due("r", [], 10)] == [0]
    await journal.claim("r", [], [(one.id, "a")])
    assert [item.claims for item in await journal.due("r", [], 10)] == [1]
    await journal.advance("r", [Attempted(one.id, one.id, "a", "pending", 1, due_at=0.0)])
    assert [item.claims for item in await journal.due("r", [], 10)] == [0]


# -- deliveries --------------------------------------------------------------------------------------------------------


async def test_a_delivery_is_due_when_its_time_has_come(journal: Journal, clock: ManualClock) -> None:
    one = message("1")
    await keep(journal, one)
    await journal.advance("r", [Expanded(one.id, [delivery(one, due_at=journal.now() + 10)])])
    assert await due(journal) == []
    at = await journal.next_due("r", [])
    assert at == pytest.approx(journal.now() + 10)
    await clock.advance(10)
    assert await due(journal) == [("1", "a")]
    assert await due(journal, ((one.id, "a"),)) == []
    assert await journal.next_due("r", [(one.id, "a")]) is None


async def test_what_is_due_earliest_comes_first(journal: Journal) -> None:
    one, two, three = message("1"), message("2"), message("3")
    await keep(journal, one, two, three)
    now = journal.now()
    for parent, ago in ((one, 1), (two, 3), (three, 2)):
        await journal.advance("r", [Expanded(parent.id, [delivery(parent, due_at=now - ago)])])
    assert await due(journal) == [("2", "a"), ("3", "a"), ("1", "a")]
    assert await due(journal, limit=1) == [("2", "a")]


async def test_a_message_takes_the_gravest_state_of_its_deliveries(journal: Journal) -> None:
    for states, expected in (
        (("delivered", "dead"), "dead"),
        (("delivered", "expired"), "expired"),
        (("filtered", "delivered"), "delivered"),
        (("filtered", "filtered"), "filtered"),
    ):
        one = message()
        await keep(journal, one)
        before = journal.counts()["r"].get(expected, 0)  # type: ignore[call-overload]
        await journal.advance("r", [Expanded(one.id, [delivery(one, "a"), delivery(one, "b")])])
        assert journal.counts()["r"]["pending"] == 1
        for target, state in zip("ab", states, strict=True):
            await journal.advance("r", [Attempted(one.id, one.id, target, state, 1)])  # type: ignore[arg-type]
        assert journal.counts()["r"][expected] == before + 1  # type: ignore[index]


async def test_deliveries_that_are_all_final_end_their_message_at_once(journal: Journal) -> None:
    one = message()
    await keep(journal, one)
    states = [delivery(one, "a", state="delivered"), delivery(one, "b", state="dead", reason=Reason("refused", "no"))]
    await journal.advance("r", [Expanded(one.id, states)])
    assert {state: n for state, n in journal.counts()["r"].items() if n} == {"dead": 1}


async def test_a_target_gets_what_was_written_for_it(journal: Journal) -> None:
    one = message("as it came", headers={"h": "1"})
    await keep(journal, one)
    changed = one.with_body(b"changed").replace(type="t")
    child = changed.child("steps.0", 1)
    await journal.advance(
        "r",
        [
            Expanded(
                one.id,
                [delivery(one, "a", due_at=0.0, message=changed), delivery(one, "b", due_at=0.0, message=child)],
            )
        ],
    )
    first, second = [item.delivery for item in await journal.due("r", [], 10)]
    assert (first.message.body, first.message.type, first.message.id) == (b"changed", "t", one.id)
    assert (second.message.body, second.message.id, second.parent) == (b"changed", child.id, one.id)
    await journal.claim("r", [], [(child.id, "b")])
    assert [item.claims for item in await journal.due("r", [], 10)] == [0, 1]
    await journal.advance("r", [Attempted(one.id, child.id, "b", "delivered", 1)])
    assert await due(journal) == [("changed", "a")]


async def test_only_the_first_of_a_lane_is_due(journal: Journal) -> None:
    parents = [message(str(n)) for n in range(3)]
    await keep(journal, *parents)
    for parent in parents:
        await journal.advance("r", [Expanded(parent.id, [delivery(parent, key="k"), delivery(parent, "b", key="k")])])
    assert await journal.lanes("r") == {("a", "k"): 3, ("b", "k"): 3}
    for parent in parents:
        assert set(await due(journal)) == {(parent.body.decode(), "a"), ("0", "b")}
        await journal.advance("r", [Attempted(parent.id, parent.id, "a", "delivered", 1)])
    assert await due(journal) == [("0", "b")]
    assert await journal.lanes("r") == {("b", "k"): 3}


async def test_a_lane_is_given_out_from_its_first_on(journal: Journal) -> None:
    parents = [message(str(n)) for n in range(4)]
    await keep(journal, *parents)
    for parent in parents:
        await journal.advance("r", [Expanded(parent.id, [delivery(parent, key="k"), delivery(parent, "b")])])
    await journal.claim("r", [], [(parents[2].id, "a")])
    await journal.advance("r", [Attempted(parents[0].id, parents[0].id, "a", "delivered", 1)])

    async def queued(limit: int) -> list[tuple[str, int]]:
        found = await journal.queued("r", [("a", "k"), ("a", "none")], limit)
        assert not found.get(("a", "none"))
        return [(item.delivery.message.body.decode(), item.claims) for item in found["a", "k"]]

    assert await queued(10) == [("1", 0), ("2", 1), ("3", 0)]
    assert await queued(2) == [("1", 0), ("2", 1)]
    assert not (await journal.queued("none", [("a", "k")], 10)).get(("a", "k"))


async def test_of_a_lane_with_large_bodies_a_few_are_given_out(journal: Journal) -> None:
    parents = [message("x" * 400_000) for _ in range(6)]
    await keep(journal, *parents)
    for parent in parents:
        await journal.advance("r", [Expanded(parent.id, [delivery(parent, key="k")])])
    assert len((await journal.queued("r", [("a", "k")], 10))["a", "k"]) == 3


async def test_of_many_lanes_with_large_bodies_some_are_given_out(sqlite: Journal) -> None:
    keys = [f"k{n}" for n in range(24)]
    for key in keys:
        parent = message("x" * 1_100_000)
        await keep(sqlite, parent)
        await sqlite.advance("r", [Expanded(parent.id, [delivery(parent, key=key)])])
    assert len(await sqlite.queued("r", [("a", key) for key in keys], 10)) == 16


async def test_what_is_due_is_given_out_by_its_bytes_too(journal: Journal) -> None:
    parents = [message("x" * 1000) for _ in range(6)]
    await keep(journal, *parents)
    for parent in parents:
        await journal.advance("r", [Expanded(parent.id, [delivery(parent, due_at=journal.now())])])
    given = [len(await journal.due("r", [], 10, max_bytes)) for max_bytes in (None, 10_000, 2500, 0)]
    assert given == [6, 6, 3, 1]


async def test_a_lane_waits_while_its_first_is_tried_again(journal: Journal, clock: ManualClock) -> None:
    one, two, other = message("1"), message("2"), message("other")
    await keep(journal, one, two, other)
    for parent, key in ((one, "k"), (two, "k"), (other, "l")):
        await journal.advance("r", [Expanded(parent.id, [delivery(parent, key=key)])])
    await journal.advance("r", [Attempted(one.id, one.id, "a", "pending", 1, due_at=journal.now() + 60)])
    assert await due(journal) == [("other", "a")]
    await clock.advance(60)
    assert sorted(await due(journal)) == [("1", "a"), ("other", "a")]


async def test_children_of_a_split_keep_their_order_in_a_lane(journal: Journal) -> None:
    one = message("1")
    await keep(journal, one)
    children = [one.with_body(str(n).encode()).child("s", n) for n in range(3)]
    await journal.advance("r", [Expanded(one.id, [delivery(one, message=child, key="k") for child in children])])
    for n, child in enumerate(children):
        assert await due(journal) == [(str(n), "a")]
        await journal.advance("r", [Attempted(one.id, child.id, "a", "delivered", 1)])
    assert journal.counts()["r"]["delivered"] == 1


async def test_many_changes_are_one_commit(sqlite: Journal) -> None:
    messages = [message(str(n)) for n in range(200)]
    await keep(sqlite, *messages)
    ends = [
        Finished(one.id, "delivered", (Hop("steps.0", "changed"),), (Attempt("a", 1, 1.0, 0.1),)) for one in messages
    ]
    await sqlite.advance("r", ends)
    assert sqlite.counts()["r"] == {"stored": 0, "delivered": 200}


async def test_nothing_is_lost_by_closing_and_opening_again(tmp_path: Path) -> None:
    clock = ManualClock()
    one, two, three = message("1"), message("2"), message("3", priority=1)
    async with opened(tmp_path, clock) as journal:
        await keep(journal, one, two, three)
        await journal.claim("r", [one.id], [])
        await journal.advance("r", [Expanded(two.id, [delivery(two, key="k", due_at=5.0, attempts=3)])])
    async with opened(tmp_path, clock) as journal:
        assert journal.counts() == {"r": {"stored": 2, "pending": 1}}
        works = await journal.stored("r", [], 10, ROOM)
        assert [(work.message.body, work.claims) for work in works] == [(b"3", 0), (b"1", 1)]
        (item,) = await journal.due("r", [], 10)
        assert (item.delivery.attempts, item.delivery.key, item.delivery.due_at) == (3, "k", 5.0)
        assert await journal.lanes("r") == {("a", "k"): 1}
        await journal.advance("r", [Finished(one.id, "delivered")])
        assert await bodies(journal) == ["3"]


async def test_changes_that_nobody_waits_for_are_written_before_it_closes(tmp_path: Path) -> None:
    messages = [message() for _ in range(500)]
    async with opened(tmp_path) as journal:
        await asyncio.gather(*(append(journal, "r", one) for one in messages))
        for one in messages:
            journal.advance("r", [Finished(one.id, "delivered")])
    async with opened(tmp_path) as journal:
        assert journal.counts() == {"r": {"stored": 0, "delivered": 500}}


async def test_a_value_is_remembered_within_its_window(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock) as journal:
        assert await journal.remember("s", "k", "first", 60) == "first"
        assert await journal.remember("other", "k", "theirs", 60) == "theirs"
    async with opened(tmp_path, clock) as journal:
        assert await journal.remember("s", "k", "second", 60) == "first"
        await clock.advance(61)
        assert await journal.remember("s", "k", "third", 60) == "third"


async def test_only_the_newest_values_of_a_place_are_remembered(journal: Journal) -> None:
    for key in "abc":
        assert await journal.remember("s", key, f"first {key}", 60, 3) == f"first {key}"
        assert await journal.remember("other", key, "theirs", 60) == "theirs"
    assert await journal.remember("s", "a", "again", 60, 3) == "first a"
    assert await journal.remember("s", "d", "first d", 60, 3) == "first d"
    assert await journal.remember("s", "b", "again", 60, 3) == "first b"
    assert await journal.remember("s", "a", "second a", 60, 3) == "second a"
    assert await journal.remember("s", "b", "second b", 60, 3) == "second b"
    assert await journal.remember("s", "d", "again", 60, 3) == "first d"
    assert await journal.remember("other", "a", "again", 60) == "theirs"


async def test_what_is_remembered_can_be_asked_for(journal: Journal, clock: ManualClock) -> None:
    assert await journal.recall("s", "a", 2) is None
    for key in "abc":
        await journal.remember("s", key, f"first {key}", 60, 2)
    await journal.remember("other", "a", "theirs", 60)
    assert [await journal.recall("s", key, 2) for key in "abc"] == [None, "first b", "first c"]
    assert await journal.recall("other", "a") == "theirs"
    await clock.advance(61)
    assert await journal.recall("s", "c", 2) is None


async def test_how_many_are_remembered_holds_after_opening_again_and_when_it_becomes_less(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        for n in range(100):
            await journal.remember("s", str(n), "first", 60, 100)
    async with opened(tmp_path) as journal:
        assert await journal.remember("s", "0", "again", 60, 100) == "first"
        assert await journal.remember("s", "89", "again", 60, 10) == "again"
        assert await journal.remember("s", "90", "again", 60, 10) == "again"
        assert await journal.remember("s", "93", "again", 60, 10) == "first"
        for n in range(100, 130):
            await journal.remember("s", str(n), "first", 60, 10)
        count: int = journal._tables.connection.execute("SELECT count(*) FROM memos").get  # type: ignore[attr-defined]
        assert count == 10


async def test_what_is_forgotten_for_its_number_is_found_without_a_look_at_all(sqlite: Journal) -> None:
    connection = sqlite._tables.connection  # type: ignore[attr-defined]
    asked: list[str] = []

    def noted(cursor: Any, _sql: str, _values: object) -> bool:
        asked.append(cursor.expanded_sql)
        return True

    connection.exec_trace = noted
    await sqlite.remember("s", "k", "v", 60, 3)
    connection.exec_trace = None
    memos = [sql for sql in asked if "memos" in sql and "until < " not in sql]
    assert [sql.split()[0] for sql in memos] == ["SELECT", "SELECT", "INSERT", "DELETE"]
    plans = [step for sql in memos for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()]
    assert [step for step in plans if step.startswith("SCAN")] == []


async def test_a_message_stored_twice_at_once_ends_once_however_many_are_known(
    sqlite: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters._sqlite_tables.KNOWN", 1)
    one, two = message("1"), message("2")
    assert await asyncio.gather(*(append(sqlite, "r", each) for each in (one, two, one))) == [True, True, False]
    await sqlite.advance("r", [Finished(one.id, "delivered")])
    assert [work.message.id for work in await sqlite.stored("r", (), 10, 1 << 20)] == [two.id]
    counts = sqlite.counts()["r"]
    assert (counts.get("stored"), counts.get("delivered")) == (1, 1)


async def test_a_message_that_was_given_out_is_known_at_one_place_only(
    sqlite: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters._sqlite_tables.KNOWN", 1)
    one = message("1")
    await asyncio.gather(*(append(sqlite, "r", each) for each in (one, message("2"))))
    await sqlite.claim("r", [one.id], [])
    await sqlite.advance("r", [Finished(one.id, "delivered")])
    assert await sqlite.replay([one.id], None, "me") == 1
    await sqlite.advance("r", [Finished(one.id, "dead", reason=Reason("poison", "it kills"))])
    found = await sqlite.find(one.id)
    assert found is not None
    assert found.row.state == "dead"
    assert one.id not in {work.message.id for work in await sqlite.stored("r", (), 10, 1 << 20)}
