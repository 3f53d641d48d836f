"""What people see of the journal on SQLite, and what they do to it: lists, details, replay, discard."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from adapters import _sqlite_browse as browsing
from adapters import _sqlite_records as records
from gateway import Message
from gateway.journal import Attempt, Attempted, Change, Expanded, Filter, Finished, Hop, Journal, Reason
from gateway.testing import ManualClock, until
from tests.adapters.test_sqlite import bodies, delivery, due, keep, message, opened
from tests.memory_journal import append


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def journal(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Journal]:
    async with opened(tmp_path, clock) as journal:
        yield journal


async def listed(journal: Journal, limit: int = 100, **wanted: Any) -> list[str]:
    """The subjects of what is wanted, over all pages of so many."""
    subjects: list[str] = []
    cursor = None
    while True:
        page = await journal.browse(Filter(**wanted), cursor, limit)
        assert len(page.rows) <= limit
        subjects += [row.subject or "" for row in page.rows]
        cursor = page.next
        if cursor is None:
            return subjects


async def a_few(journal: Journal) -> dict[str, Message]:
    """One message in each state; its subject says which."""
    states = ("stored", "pending", "delivered", "filtered", "expired", "dead", "discarded")
    few = {
        state: message(state, subject=state, time_s=100.0 + n, headers={"colour": f"Red{n}"}, correlation_id="all")
        for n, state in enumerate(states)
    }
    await keep(journal, *few.values())
    await journal.advance("r", [Expanded(few["pending"].id, [delivery(few["pending"])])])
    for state in ("delivered", "filtered", "expired", "dead"):
        reason = Reason("refused", "no", "a") if state == "dead" else None
        await journal.advance("r", [Finished(few[state].id, state, reason=reason)])
    await journal.discard([few["discarded"].id], "me")
    return few


async def test_a_list_is_newest_first_whatever_the_page(journal: Journal) -> None:
    await a_few(journal)
    expected = ["discarded", "dead", "expired", "filtered", "delivered", "pending", "stored"]
    for limit in (1, 2, 3, 7, 100):
        assert await listed(journal, limit) == expected


@pytest.mark.parametrize("status", ["delivered", "filtered", "expired", "dead", "discarded"])
@pytest.mark.parametrize("text", [None, "red"])
async def test_a_list_of_one_state(journal: Journal, status: str, text: str | None) -> None:
    await a_few(journal)
    assert await listed(journal, status=status, text=text) == [status]
    assert await listed(journal, status=status, text=text, correlation_id="all") == [status]
    assert await listed(journal, status=status, text="not there") == []
    assert await listed(journal, status=status, route="other") == []


async def test_pending_is_stored_and_pending(journal: Journal) -> None:
    await a_few(journal)
    await keep(journal, message(subject="urgent", priority=5))
    for limit in (1, 2, 10):
        assert await listed(journal, limit, status="pending") == ["urgent", "pending", "stored"]
    assert await listed(journal, status="pending", correlation_id="all") == ["pending", "stored"]
    assert await listed(journal, status="pending", text="red") == ["pending", "stored"]
    assert await listed(journal, status="pending", since_s=101.0, until_s=101.0) == ["pending"]


async def test_a_list_of_a_reason_of_a_time_and_of_a_route(journal: Journal) -> None:
    await a_few(journal)
    await journal.bury("other", message(subject="buried", time_s=500.0), Reason("malformed", "no"))
    assert await listed(journal, reason="refused") == ["dead"]
    assert await listed(journal, reason="malformed") == ["buried"]
    assert await listed(journal, reason="malformed", route="r") == []
    assert await listed(journal, since_s=103.0, until_s=105.0) == ["dead", "expired", "filtered"]
    assert await listed(journal, since_s=106.5) == ["buried"]
    assert await listed(journal, until_s=100.5) == ["stored"]
    assert await listed(journal, route="other") == ["buried"]
    assert await listed(journal, route="nowhere") == []


@pytest.mark.parametrize("status", [None, "dead"])
async def test_text_is_found_in_everything_people_look_for(journal: Journal, status: Any) -> None:
    one = message(
        subject="Über Sub",
        type="order.placed",
        key="lane 7",
        sender_id="THEIRS",
        correlation_id="corr",
        headers={"x-colour": "Green", "authorization": "Bearer hunter2", "x-api-key": "hunter2"},
    )
    await keep(journal, one, message(subject="other"))
    await journal.advance("r", [Finished(one.id, "dead")])
    for text in ("über", "SUB", "Placed", "lane 7", "theirs", "CORR", "green", "x-colour: GREEN", one.id[4:20], ""):
        assert "Über Sub" in await listed(journal, status=status, text=text), text
    for text in ("nowhere", "100%", "l_ne", "hunter", "bearer"):
        assert await listed(journal, status=status, text=text) == []


@pytest.mark.parametrize("status", [None, "pending", "delivered", "dead", "discarded"])
async def test_a_senders_id_is_found_exactly_and_only_as_such(journal: Journal, status: Any) -> None:
    ids = ("4711", "47110", "msg4711", None, "", "Größe Σ", "größe σ")
    many = {id_: message(subject=str(id_), sender_id=id_, correlation_id="all") for id_ in ids}
    elsewhere = message("4711", subject="elsewhere", key="4711", type="4711", correlation_id="4711")
    await keep(journal, *many.values(), elsewhere)
    for one in (*many.values(), elsewhere):
        if status in ("delivered", "dead"):
            await journal.advance("r", [Finished(one.id, status)])
    if status == "discarded":
        await journal.discard([one.id for one in (*many.values(), elsewhere)], "me")
    for id_ in ("4711", "msg4711", "", "Größe Σ"):
        assert await listed(journal, status=status, sender_id=id_) == [id_]
        assert await listed(journal, status=status, sender_id=id_, correlation_id="all") == [id_]
        assert await listed(journal, status=status, sender_id=id_, text=id_) == [id_]
    assert await listed(journal, status=status, sender_id="4711", text="all") == ["4711"]
    assert await listed(journal, status=status, sender_id="4711", text="nowhere") == []
    assert await listed(journal, status=status, sender_id="4711", route="other") == []
    assert await listed(journal, status=status, sender_id="MSG4711") == []


async def test_a_senders_id_is_found_over_all_pages(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browsing, "SLICE", 50)
    many = [message(subject=str(n), sender_id=str(n % 1000)) for n in range(5000)]
    assert all(await asyncio.gather(*(append(journal, "r", one) for one in many)))
    for limit in (1, 2, 500):
        assert await listed(journal, limit, sender_id="7") == ["4007", "3007", "2007", "1007", "7"]
        assert await listed(journal, limit, status="pending", sender_id="7") == ["4007", "3007", "2007", "1007", "7"]


async def test_times_are_found_over_many_messages(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browsing, "SLICE", 50)
    for start in (0, 5000):
        many = [message(subject=str(n), time_s=float(n)) for n in range(start, start + 5000)]
        assert all(await asyncio.gather(*(append(journal, "r", one) for one in many)))
    assert await listed(journal, since_s=4990.0, until_s=5010.0) == [str(n) for n in range(5010, 4989, -1)]
    assert await listed(journal, since_s=9998.0, text=":") == []
    assert len(await listed(journal, 1000, status="pending")) == 10_000


async def test_a_row_shows_what_is_known(journal: Journal) -> None:
    one = message("body", subject="s", type="t", key="k", sender_id="i", correlation_id="c", time_s=7.0)
    await keep(journal, one)
    reason = Reason("refused", "no", "steps.0", "not there")
    await journal.advance("r", [Finished(one.id, "dead", reason=reason)])
    (row,) = (await journal.browse(Filter(), None, 10)).rows
    assert (row.id, row.route, row.state, row.received_s, row.size) == (one.id, "r", "dead", 7.0, 4)
    assert (row.type, row.subject, row.key, row.sender_id, row.correlation_id) == ("t", "s", "k", "i", "c")
    assert row.reason == reason


@pytest.mark.parametrize("cursor", ["", "xyz", "-1", "²", "9" * 30])
async def test_a_cursor_that_is_none_of_ours_is_refused(journal: Journal, cursor: str) -> None:
    await keep(journal, message("1"))
    with pytest.raises(ValueError, match="none of ours"):
        await journal.browse(Filter(), cursor, 10)


async def test_everything_about_a_message_by_its_id_or_that_of_a_child(journal: Journal) -> None:
    one = message("as it came", context={"n": 1})
    child = one.with_body(b"made").child("split", 0)
    await keep(journal, one)
    hops = [Hop("steps.0.map", "changed", b"before", b"after")]
    first, second = Attempt("a", 1, 5.0, 0.2, "503"), Attempt("a", 2, 9.0, 0.1)
    await journal.advance("r", [Expanded(one.id, [delivery(one, message=child, due_at=0.0)], hops, [first])])
    await journal.advance("r", [Attempted(one.id, child.id, "a", "delivered", 2, attempt=second)])
    for name in (one.id, child.id):
        detail = await journal.find(name)
        assert detail is not None
        assert (detail.row.id, detail.row.state, detail.message.body) == (one.id, "delivered", b"as it came")
        assert (list(detail.hops), list(detail.attempts)) == (hops, [first, second])
        (found,) = detail.deliveries
        assert (found.message.body, found.state, found.attempts, found.parent) == (b"made", "delivered", 2, one.id)
    assert await journal.find("nothing") is None


async def test_a_history_is_bounded(journal: Journal) -> None:
    one, two = message(), message()
    await keep(journal, one, two)
    large = [Hop(f"steps.{n}", "changed", bytes(400_000), None) for n in range(5)]
    await journal.advance("r", [Finished(one.id, "delivered", large)])
    await journal.advance("r", [Expanded(two.id, [delivery(two, due_at=0.0)])])
    for n in range(1, 300):
        journal.advance("r", [Attempted(two.id, two.id, "a", "pending", n, 0.0, Attempt("a", n, 1.0, 0.1, "no"))])
    await journal.advance("r", [])
    detail = await journal.find(one.id)
    assert detail is not None
    assert [len(hop.before or b"") for hop in detail.hops] == [400_000, 400_000, 0, 0, 0]
    detail = await journal.find(two.id)
    assert detail is not None
    assert [attempt.number for attempt in detail.attempts] == list(range(100, 300))
    assert len(detail.attempts) == records.MAX_ATTEMPTS


async def test_a_search_that_takes_long_ends_early_and_goes_on_where_it_was(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [message(str(n), subject=str(n), headers={"n": "odd" if n % 2 else "even"}) for n in range(40)]
    await keep(journal, *few)
    for one in few[::4]:
        await journal.advance("r", [Finished(one.id, "dead", reason=Reason("refused", "no"))])
    monkeypatch.setattr(browsing, "PAGE_S", 0.0)
    monkeypatch.setattr(browsing, "SLICE", 3)
    monkeypatch.setattr(browsing, "WIDTH", 4)
    first = await journal.browse(Filter(text="nowhere"), None, 10)
    assert (list(first.rows), first.next is not None) == ([], True)
    everything = [str(n) for n in reversed(range(40))]
    assert await listed(journal) == await listed(journal, 3) == everything
    assert await listed(journal, text="odd") == [n for n in everything if int(n) % 2]
    assert await listed(journal, text="nowhere") == await listed(journal, route="other") == []
    assert await listed(journal, status="dead") == await listed(journal, reason="refused") == everything[3::4]
    assert await listed(journal, 2, status="dead", text="even") == everything[3::4]
    assert await listed(journal, status="pending") == [n for n in everything if int(n) % 4]
    assert await listed(journal, since_s=0.0, text="odd") == [n for n in everything if int(n) % 2]


async def test_a_message_is_found_while_somebody_searches(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    one, searching, found = message("1"), threading.Event(), threading.Event()
    await keep(journal, one)

    def slow(*_: object) -> dict[int, int]:
        searching.set()
        found.wait(20)
        return {}

    monkeypatch.setattr(browsing, "_with_envelopes", slow)
    search = asyncio.ensure_future(journal.browse(Filter(text="x"), None, 10))
    await until(searching.is_set)
    assert await journal.find(one.id) is not None
    found.set()
    assert (await search).rows == []


# -- replay ------------------------------------------------------------------------------------------------------------


async def test_a_message_that_died_in_its_steps_is_stored_again_behind_the_others(journal: Journal) -> None:
    one, two = message("1"), message("2")
    await keep(journal, one, two)
    await journal.advance("r", [Finished(one.id, "dead", (Hop("s", "failed"),), reason=Reason("refused", "no"))])
    assert await journal.replay([one.id, "unknown", two.id], None, "me") == 1
    assert await bodies(journal) == ["2", "1"]
    assert {state: n for state, n in journal.counts()["r"].items() if n} == {"stored": 2}
    await journal.advance("r", [Finished(one.id, "delivered", (Hop("s", "changed"),))])
    detail = await journal.find(one.id)
    assert detail is not None
    assert [hop.outcome for hop in detail.hops] == ["failed", "changed"]
    assert [line.partition(" ")[2] for line in detail.actions] == ["me: replay"]
    assert detail.row.state == "delivered"


async def test_what_was_done_on_account_of_a_message_is_noted_with_it_by_the_id_of_a_part_too(journal: Journal) -> None:
    one, child = message("1"), message("1 of 1")
    await keep(journal, one)
    await journal.advance("r", [Expanded(one.id, [delivery(one, message=child)])])
    await journal.note(one.id, "replay edited, as 7", "me")
    await journal.note(child.id, "replay edited, as 8", "me")
    await journal.note("unknown", "replay edited, as 9", "me")
    detail = await journal.find(one.id)
    assert detail is not None
    assert [line.partition(" ")[2] for line in detail.actions] == ["me: replay edited, as 7", "me: replay edited, as 8"]


async def test_only_dead_deliveries_are_sent_again_as_they_were_written(journal: Journal) -> None:
    one = message("1")
    await keep(journal, one)
    made = one.with_body(b"made")
    await journal.advance(
        "r",
        [
            Expanded(
                one.id,
                [
                    delivery(one, "a", message=made, state="dead", attempts=8, reason=Reason("retries", "503")),
                    delivery(one, "b", state="delivered"),
                ],
            )
        ],
    )
    assert await journal.replay([one.id], None, "me") == 1
    (item,) = await journal.due("r", [], 10)
    assert (item.delivery.target, item.delivery.message.body, item.delivery.attempts) == ("a", b"made", 0)
    assert journal.counts()["r"]["pending"] == 1
    await journal.advance("r", [Attempted(one.id, one.id, "a", "delivered", 1)])
    assert journal.counts()["r"]["delivered"] == 1
    assert await journal.replay([one.id], "b", "me") == 1
    assert await due(journal) == [("1", "b")]
    assert await journal.replay([one.id], None, "me") == 0  # it is not final


async def test_what_is_written_of_a_message_after_its_discard_changes_nothing(journal: Journal) -> None:
    stored, pending = message("1"), message("2")
    await keep(journal, stored, pending)
    await journal.advance("r", [Expanded(pending.id, [delivery(pending, due_at=0.0)])])
    assert await journal.discard([stored.id, pending.id], "me") == 2
    changes: list[Change] = [
        Finished(stored.id, "delivered"),
        Expanded(stored.id, [delivery(stored, due_at=0.0)]),
        Attempted(pending.id, pending.id, "a", "delivered", 1),
        Finished(pending.id, "dead"),
    ]
    for change in changes:
        await journal.advance("r", [change])
    assert {state: n for state, n in journal.counts()["r"].items() if n} == {"discarded": 2}
    assert (await bodies(journal), await due(journal)) == ([], [])


async def test_only_a_replay_of_what_was_delivered_counts_as_sent_again(journal: Journal) -> None:
    one = message("1")
    await keep(journal, one)
    parcels = [delivery(one, target, due_at=0.0) for target in "ab"]
    await journal.advance("r", [Expanded(one.id, parcels)])
    await journal.advance("r", [Attempted(one.id, one.id, "a", "delivered", 1)])
    await journal.advance("r", [Attempted(one.id, one.id, "b", "dead", 1)])
    for target, counted in (("b", {"b": 0}), ("a", {"a": 1}), ("b", {"b": 0}), ("a", {"a": 2})):
        assert await journal.replay([one.id], target, "me") == 1
        assert {item.delivery.target: item.delivery.message.again for item in await journal.due("r", [], 9)} == counted
        await journal.advance("r", [Attempted(one.id, one.id, target, "dead" if target == "b" else "delivered", 1)])


@pytest.mark.parametrize(("state", "again"), [("delivered", 2), ("dead", 0), ("filtered", 0)])
async def test_a_message_that_runs_again_says_whether_it_had_been_delivered(
    journal: Journal, state: Any, again: int
) -> None:
    one = message("1", expires_at_s=1e10)
    await keep(journal, one)
    for _ in range(2):
        await journal.advance("r", [Finished(one.id, state)])
        assert await journal.replay([one.id], None, "me") == 1
    (work,) = await journal.stored("r", [], 9, 1 << 20)
    assert (work.message.again, work.message.expires_at_s) == (again, None)
    await journal.advance("r", [Expanded(one.id, [delivery(one, due_at=0.0, message=work.message)])])
    (item,) = await journal.due("r", [], 9)
    assert (item.delivery.message.again, item.delivery.message.expires_at_s) == (again, None)
    detail = await journal.find(one.id)
    assert detail is not None
    assert detail.message.expires_at_s == 1e10


async def test_a_replayed_message_queues_behind_its_lane(journal: Journal) -> None:
    one, two = message("1"), message("2")
    await keep(journal, one, two)
    await journal.advance("r", [Expanded(one.id, [delivery(one, key="k", state="dead")])])
    await journal.advance("r", [Expanded(two.id, [delivery(two, key="k")])])
    await journal.replay([one.id], None, "me")
    assert await due(journal) == [("2", "a")]
    await journal.advance("r", [Attempted(two.id, two.id, "a", "delivered", 1)])
    assert await due(journal) == [("1", "a")]


async def test_what_was_delivered_without_a_trace_is_sent_again_from_its_steps(journal: Journal) -> None:
    one = message("1")
    await keep(journal, one)
    await journal.advance("r", [Finished(one.id, "delivered", (), (Attempt("a", 1, 1.0, 0.1),))])
    assert await journal.replay([one.id], None, "me") == 1
    assert await bodies(journal) == ["1"]
    await journal.advance("r", [Expanded(one.id, [delivery(one, due_at=0.0)], (), (Attempt("a", 1, 2.0, 0.1, "no"),))])
    detail = await journal.find(one.id)
    assert detail is not None
    assert [attempt.error for attempt in detail.attempts] == [None, "no"]


async def test_what_was_discarded_can_be_sent_after_all(journal: Journal) -> None:
    one = message("1")
    await keep(journal, one)
    await journal.advance("r", [Expanded(one.id, [delivery(one, "a"), delivery(one, "b", state="delivered")])])
    assert await journal.discard([one.id], "me") == 1
    assert await journal.replay([one.id], None, "you") == 1
    assert await due(journal) == [("1", "a")]


async def test_a_replay_is_there_after_opening_again(tmp_path: Path) -> None:
    one, two = message("1"), message("2")
    async with opened(tmp_path) as journal:
        await keep(journal, one)
        await journal.bury("r", two, Reason("refused", "no"))
        await journal.replay([two.id], None, "me")
    async with opened(tmp_path) as journal:
        three = message("3")
        await keep(journal, three)
        assert await bodies(journal) == ["1", "2", "3"]
        await journal.claim("r", [two.id], [])
        await journal.advance("r", [Finished(two.id, "delivered")])
        assert await bodies(journal) == ["1", "3"]


# -- discard -----------------------------------------------------------------------------------------------------------


async def test_dead_and_waiting_messages_can_be_discarded_and_others_not(journal: Journal) -> None:
    few = await a_few(journal)
    ids = [one.id for one in few.values()]
    assert await journal.discard(ids, "me") == 3
    assert {state: n for state, n in journal.counts()["r"].items() if n} == {
        "delivered": 1,
        "filtered": 1,
        "expired": 1,
        "discarded": 4,
    }
    assert await bodies(journal) == []
    detail = await journal.find(few["dead"].id)
    assert detail is not None
    assert detail.actions[0].endswith(" me: discard")
    assert detail.message.body == b"dead"


async def test_discarding_the_first_of_a_lane_lets_the_next_go(journal: Journal) -> None:
    one, two = message("1"), message("2")
    await keep(journal, one, two)
    for parent in (one, two):
        await journal.advance("r", [Expanded(parent.id, [delivery(parent, key="k")])])
    assert await due(journal) == [("1", "a")]
    await journal.discard([one.id], "me")
    assert await due(journal) == [("2", "a")]
    await journal.advance("r", [Attempted(one.id, one.id, "a", "delivered", 1)])
    assert journal.counts()["r"]["discarded"] == 1


async def test_a_message_that_ends_after_it_was_discarded_stays_discarded(journal: Journal) -> None:
    one = message()
    await keep(journal, one)
    await journal.discard([one.id], "me")
    await journal.advance("r", [Finished(one.id, "delivered")])
    assert journal.counts()["r"]["discarded"] == 1
