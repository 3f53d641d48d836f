"""The journal on SQLite against the fake: thousands of random changes, and both must show the same."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters._sqlite_records import envelope_of, id_key, id_text, message_of
from gateway import Message
from gateway.journal import Attempt, Attempted, Change, Delivery, Expanded, Finished, Journal, Reason
from gateway.testing import ManualClock
from tests.adapters.test_sqlite import opened
from tests.memory_journal import MemoryJournal, append

ROUTES = ("r", "s")
KEYS = (None, None, "k", "l")
FINAL = ("delivered", "filtered", "expired", "dead")


class Twin:
    """Both journals, and what may happen to them."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._luck = random.Random(seed)
        self._folder = folder
        self.clock = ManualClock()
        self._model = MemoryJournal(self.clock)
        self._stack = AsyncExitStack()

    async def open(self) -> None:
        self._real: Journal = await self._stack.enter_async_context(opened(self._folder, self.clock))

    async def close(self) -> None:
        await self._stack.aclose()

    async def step(self) -> None:
        kinds = ["append"] * 6 + ["advance"] * 8 + ["claim", "claim", "wait", "reopen"]
        await getattr(self, f"_{self._luck.choice(kinds)}")()

    async def _append(self) -> None:
        luck = self._luck
        route = luck.choice(ROUTES)
        messages = [
            Message(raw=luck.randbytes(luck.randrange(3000)), key=luck.choice(KEYS), priority=luck.choice((0, 0, 3, 9)))
            for _ in range(luck.choice((1, 2, 80)))
        ]
        if self._model.records and luck.random() < 0.2:
            messages.append(self._model.records[luck.choice(list(self._model.records))].message)
        told = await asyncio.gather(*(append(self._real, route, one) for one in messages))
        assert told == [await append(self._model, route, one) for one in messages]

    async def _advance(self) -> None:
        route = self._luck.choice(ROUTES)
        waits = []
        for _ in range(self._luck.choice((1, 1, 5, 30))):
            changes = [
                change for change in (self._change(route) for _ in range(self._luck.choice((1, 1, 3)))) if change
            ]
            busy = [getattr(change, "parent", None) or change.id for change in changes]  # type: ignore[union-attr]
            if changes and len(set(busy)) == len(busy):
                waits.append(self._real.advance(route, changes))
                self._model.advance(route, changes)
        await asyncio.gather(*waits)

    def _change(self, route: str) -> Change | None:
        luck = self._luck
        records = [one for one in self._model.records.values() if one.route == route]
        stored = [one for one in records if one.state == "stored"]
        pending = [one for one in records if one.state == "pending"]
        tries = (Attempt("a", 1, self.clock.time(), 0.5, luck.choice((None, "no"))),)
        reason = luck.choice((None, Reason("refused", "no", "a")))
        if stored and luck.random() < 0.6:
            record = luck.choice(stored)
            message = record.message
            if luck.random() < 0.5:
                return Finished(message.id, luck.choice(FINAL), (), tries, reason)  # type: ignore[arg-type]
            return Expanded(message.id, [self._delivery(message, target) for target in luck.choice(("a", "ab", "abc"))])
        if pending:
            record = luck.choice(pending)
            one = luck.choice([one for one in record.deliveries if one.state == "pending"])
            state: Any = luck.choice((*FINAL, "pending", "pending"))
            due_at = self.clock.monotonic() + luck.uniform(-5, 20) if state == "pending" else None
            return Attempted(one.parent, one.message.id, one.target, state, one.attempts + 1, due_at, tries[0], reason)
        return None

    def _delivery(self, message: Message, target: str) -> Delivery:
        luck = self._luck
        made = luck.choice((message, message.with_body(b"other"), message.child(target)))
        state: Any = luck.choice(("pending", "pending", "pending", "delivered", "dead"))
        due_at = None
        if state == "pending" and message.key is None:
            due_at = self.clock.monotonic() + luck.uniform(-5, 20)
        return Delivery(parent=message.id, target=target, message=made, state=state, key=message.key, due_at=due_at)

    async def _claim(self) -> None:
        records = [one for one in self._model.records.values() if one.state in ("stored", "pending")]
        if not records:
            return
        some = self._luck.sample(records, min(len(records), 70))
        stored = [one.message.id for one in some if one.state == "stored"]
        pending = [(d.message.id, d.target) for one in some for d in one.deliveries if d.state == "pending"]
        for journal in (self._model, self._real):
            await journal.claim("r", stored, pending)

    async def _wait(self) -> None:
        await self.clock.advance(self._luck.uniform(0, 10))

    async def _reopen(self) -> None:
        if self._luck.random() < 0.3:
            await self._stack.aclose()
            await self.open()

    async def compare(self) -> None:
        books = {route: {state: n for state, n in states.items() if n} for route, states in self._real.counts().items()}
        assert books == {route: states for route, states in self._clean_model().items() if states}
        for route in ROUTES:
            for exclude_part in (0.0, 0.5):
                await self._compare_route(route, exclude_part)

    def _clean_model(self) -> dict[str, dict[Any, int]]:
        return {route: {s: n for s, n in states.items() if n} for route, states in self._model.counts().items()}

    async def _compare_route(self, route: str, part: float) -> None:
        luck = self._luck
        ids = [one.message.id for one in self._model.records.values() if luck.random() < part]
        names = [
            (d.message.id, d.target)
            for one in self._model.records.values()
            for d in one.deliveries
            if luck.random() < part
        ]
        limit = luck.choice((1, 10, 1000))
        shown = []
        for journal in (self._model, self._real):
            works = await journal.stored(route, ids, limit, 1 << 40)
            due = await journal.due(route, names, limit)
            lanes = await journal.lanes(route)
            queued = await journal.queued(route, list(lanes), limit)
            shown.append(
                (
                    [(w.message.id, w.message.body, w.message.key, w.claims) for w in works],
                    [(*_facts(item.delivery), item.claims) for item in due],
                    await journal.next_due(route, names),
                    lanes,
                    {lane: [(*_facts(item.delivery), item.claims) for item in queued[lane]] for lane in lanes},
                )
            )
        assert shown[0] == shown[1]


def _facts(one: Delivery) -> tuple[Any, ...]:
    return one.parent, one.target, one.message.id, one.message.body, one.key, one.attempts, one.due_at, one.reason


@pytest.mark.parametrize("seed", range(5))
async def test_after_any_changes_both_journals_show_the_same(seed: int, tmp_path: Path) -> None:
    twin = Twin(seed, tmp_path)
    await twin.open()
    try:
        for turn in range(120):
            await twin.step()
            if turn % 4 == 0:
                await twin.compare()
        await twin.compare()
    finally:
        await twin.close()


@given(st.uuids() | st.text(max_size=40))
def test_every_id_comes_back_as_it_was(value: object) -> None:
    text = str(value)
    assert id_text(id_key(text)) == text
    assert id_text(id_key(text.upper())) == text.upper()


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.decimals(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(max_size=5), PLAIN, max_size=3), st.dictionaries(st.text(), st.text(), max_size=20))
def test_every_context_and_header_comes_back_as_it_was(context: dict[str, Any], headers: dict[str, str]) -> None:
    back = message_of(envelope_of(Message(context=context, headers=headers)), b"")
    assert back.context == context
    assert back.headers == headers
