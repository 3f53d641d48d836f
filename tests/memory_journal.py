"""A journal in memory, for tests of the delivery: the semantics of the port without a disk."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from gateway.journal import (
    CREDENTIALS,
    FINAL,
    QUEUED_BYTES,
    Attempt,
    Attempted,
    Backlog,
    Change,
    Delivery,
    Detail,
    Due,
    Expanded,
    Filter,
    Finished,
    Hop,
    Journal,
    JournalFullError,
    Page,
    Reason,
    Row,
    State,
    Waiting,
    Work,
)
from gateway.message import Message
from gateway.ports import Clock

GRAVITY = ("dead", "expired", "discarded", "delivered", "filtered")


async def append(journal: Journal, route: str, message: Message) -> bool:
    """Stores a message, and returns once it is durable. False: its id was known already."""
    future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    journal.append(route, message, future)
    return await future


@dataclass
class Record:
    route: str
    message: Message
    state: State = "stored"
    turn: int = 0
    number: int = 0
    claims: int = 0
    reason: Reason | None = None
    hops: list[Hop] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    only: str | None = None
    delivery_claims: dict[tuple[str, str], int] = field(default_factory=dict)


class MemoryJournal:
    """`full`: appends fail. `commits`: every batch of changes in the order it was committed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.records: dict[str, Record] = {}
        self.commits: list[Sequence[Change]] = []
        self.full = False
        self._turn = 0
        self._memos: dict[tuple[str, str], tuple[str, float]] = {}

    def now(self) -> float:
        return self._clock.monotonic()

    def _keep(self, route: str, message: Message) -> bool:
        if message.id in self.records:
            return False
        self._turn += 1
        self.records[message.id] = Record(route, message.replace(), turn=self._turn, number=len(self.records) + 1)
        return True

    def append(self, route: str, message: Message, waiting: Waiting[bool]) -> None:
        if self.full:
            raise JournalFullError("journal: no room; free some disk space")

        def tell() -> None:
            try:
                new = self._keep(route, message)
            except Exception as error:
                waiting.set_exception(error)
                return
            if not waiting.done():
                waiting.set_result(new)

        asyncio.get_running_loop().call_soon(tell)

    async def bury(self, route: str, message: Message, reason: Reason) -> None:
        if await append(self, route, message):
            record = self.records[message.id]
            record.state, record.reason = "dead", reason

    def advance(self, route: str, changes: Sequence[Change]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.commits.append(changes)
        for change in changes:
            self._apply(change)
        self._wake_lanes(route)
        asyncio.get_running_loop().call_soon(_finish, future)
        return future

    def finish(self, route: str, ends: Sequence[Finished], then: Callable[[], None]) -> None:
        self.advance(route, ends).add_done_callback(lambda _: then())

    def _apply(self, change: Change) -> None:
        record = self.records[change.parent if isinstance(change, Attempted) else change.id]
        if record.state in FINAL:
            return
        record.claims = 0
        if isinstance(change, Finished):
            record.state, record.reason = change.state, change.reason
            record.hops += change.hops
            record.attempts += change.attempts
        elif isinstance(change, Expanded):
            assert record.state == "stored"
            record.state, record.deliveries = "pending", list(change.deliveries)
            record.hops += change.hops
            record.attempts += change.attempts
        else:
            (delivery,) = [d for d in record.deliveries if (d.message.id, d.target) == (change.child, change.target)]
            delivery.state, delivery.attempts, delivery.due_at = change.state, change.attempts, change.due_at
            delivery.reason = change.reason
            record.delivery_claims.pop((change.child, change.target), None)
            if change.attempt is not None:
                record.attempts.append(change.attempt)
        states = {delivery.state for delivery in record.deliveries}
        if record.state == "pending" and "pending" not in states:
            record.state = next(state for state in GRAVITY if state in states)
            reasons = [delivery.reason for delivery in record.deliveries if delivery.state == record.state]
            record.reason = next(filter(None, reasons), None)

    def _wake_lanes(self, route: str) -> None:
        first: dict[tuple[str, str], Delivery] = {}
        for record in sorted(self.records.values(), key=lambda record: record.turn):
            for delivery in record.deliveries:
                if record.route == route and delivery.state == "pending" and delivery.key is not None:
                    first.setdefault((delivery.target, delivery.key), delivery)
        for delivery in first.values():
            if delivery.due_at is None:
                delivery.due_at = self.now()

    async def stored(self, route: str, exclude: Collection[str], limit: int, max_bytes: int) -> Backlog:
        await asyncio.sleep(0)
        found = [
            r for r in self.records.values() if r.route == route and r.state == "stored" and r.message.id not in exclude
        ]
        found.sort(key=lambda record: (-record.message.priority, record.turn))
        sizes = accumulate(len(record.message.body) for record in found)
        given = found[: min(limit, max(1, sum(size <= max_bytes for size in sizes)))]
        works = [Work(record.message.replace(), record.claims, record.only) for record in given]
        return Backlog(works, whole=len(given) == len(found))

    def _pending(self, route: str, exclude: Collection[tuple[str, str]]) -> list[tuple[Record, Delivery]]:
        return sorted(
            (
                (record, delivery)
                for record in self.records.values()
                for delivery in record.deliveries
                if record.route == route
                and delivery.state == "pending"
                and delivery.due_at is not None
                and (delivery.message.id, delivery.target) not in exclude
            ),
            key=lambda pair: (pair[1].due_at or 0.0, pair[0].turn),
        )

    async def due(
        self, route: str, exclude: Collection[tuple[str, str]], limit: int, max_bytes: int | None = None
    ) -> Sequence[Due]:
        await asyncio.sleep(0)
        due = [(r, d) for r, d in self._pending(route, exclude) if (d.due_at or 0.0) <= self.now()]
        sizes = accumulate(len(delivery.message.body) for _, delivery in due)
        if max_bytes is not None:
            due = due[: 1 + sum(size <= max_bytes for size in sizes)]
        return [
            Due(_copied(delivery), record.delivery_claims.get((delivery.message.id, delivery.target), 0))
            for record, delivery in due[:limit]
        ]

    async def queued(
        self, route: str, lanes: Collection[tuple[str, str]], limit: int
    ) -> Mapping[tuple[str, str], Sequence[Due]]:
        await asyncio.sleep(0)
        found: dict[tuple[str, str], list[Due]] = {lane: [] for lane in lanes}
        size: Counter[tuple[str, str]] = Counter()
        for record in sorted(self.records.values(), key=lambda record: record.turn):
            for delivery in record.deliveries:
                if delivery.key is None or record.route != route or delivery.state != "pending":
                    continue
                lane = delivery.target, delivery.key
                if lane in found and len(found[lane]) < limit and size[lane] <= QUEUED_BYTES:
                    claims = record.delivery_claims.get((delivery.message.id, delivery.target), 0)
                    found[lane].append(Due(_copied(delivery), claims))
                    size[lane] += len(delivery.message.body)
        return found

    async def next_due(self, route: str, exclude: Collection[tuple[str, str]]) -> float | None:
        pending = self._pending(route, exclude)
        return pending[0][1].due_at if pending else None

    async def lanes(self, route: str) -> Mapping[tuple[str, str], int]:
        found: dict[tuple[str, str], int] = {}
        for record in self.records.values():
            for delivery in record.deliveries:
                if record.route == route and delivery.state == "pending" and delivery.key is not None:
                    lane = delivery.target, delivery.key
                    found[lane] = found.get(lane, 0) + 1
        return found

    async def claim(self, route: str, messages: Sequence[str], deliveries: Sequence[tuple[str, str]]) -> None:
        for message_id in messages:
            self.records[message_id].claims += 1
        for record in self.records.values():
            for delivery in record.deliveries:
                name = delivery.message.id, delivery.target
                if name in deliveries:
                    record.delivery_claims[name] = record.delivery_claims.get(name, 0) + 1

    async def release(self, route: str, messages: Sequence[str], deliveries: Sequence[tuple[str, str]]) -> None:
        for record in self.records.values():
            if record.message.id in messages:
                record.claims = 0
            for name in deliveries:
                record.delivery_claims.pop(name, None)

    def counts(self) -> Mapping[str, Mapping[State, int]]:
        counts: dict[str, dict[State, int]] = {}
        for record in self.records.values():
            states = counts.setdefault(record.route, {})
            states[record.state] = states.get(record.state, 0) + 1
        return counts

    def trouble(self) -> str | None:
        return "no room; free some disk space" if self.full else None

    async def browse(self, wanted: Filter, cursor: str | None, limit: int) -> Page:
        before = None if cursor is None else int(cursor)
        newest_first = sorted(self.records.values(), key=lambda record: -record.number)
        rows = [
            self._row(record)
            for record in newest_first
            if (before is None or record.number < before) and _matches(record, wanted)
        ]
        return Page(rows[:limit], rows[limit - 1].cursor if len(rows) > limit else None)

    def _row(self, record: Record) -> Row:
        message = record.message
        return Row(
            id=message.id,
            route=record.route,
            state=record.state,
            received_s=message.time_s,
            type=message.type,
            subject=message.subject,
            key=message.key,
            sender_id=message.sender_id,
            correlation_id=message.correlation_id,
            size=len(message.body),
            reason=record.reason,
            cursor=str(record.number),
        )

    def _record(self, id: str) -> Record | None:
        if id in self.records:
            return self.records[id]
        for record in self.records.values():
            if any(delivery.message.id == id for delivery in record.deliveries):
                return record
        return None

    async def find(self, id: str) -> Detail | None:
        record = self._record(id)
        if record is None:
            return None
        return Detail(
            row=self._row(record),
            message=record.message.replace(),
            hops=tuple(record.hops),
            attempts=tuple(record.attempts),
            deliveries=tuple(_copied(delivery) for delivery in record.deliveries),
            actions=tuple(record.actions),
        )

    async def replay(self, ids: Sequence[str], target: str | None, by: str) -> int:
        return sum(self._replayed(one, target, by) for one in ids)

    def _replayed(self, id: str, target: str | None, by: str) -> bool:
        record = self._record(id)
        if record is None or record.state not in FINAL:
            return False
        if record.deliveries:
            wanted = [d for d in record.deliveries if (d.target == target if target else d.state == "dead")]
            if not wanted:
                return False
            for delivery in wanted:
                again = delivery.message.again + (delivery.state == "delivered")
                delivery.message = delivery.message.replace(again=again)  # other deliveries may share it
                delivery.state, delivery.attempts, delivery.reason = "pending", 0, None
                delivery.due_at = None if delivery.key is not None else self.now()
            record.state = "pending"
        else:
            record.message.again += record.state == "delivered"
            record.state, record.only = "stored", target
        self._turn += 1
        record.turn, record.reason, record.claims = self._turn, None, 0
        for message in (record.message, *(delivery.message for delivery in record.deliveries)):
            message.since, message.expires_at_s = self.now(), None
        record.actions.append(f"{by}: replay")
        self._wake_lanes(record.route)
        return True

    async def discard(self, ids: Sequence[str], by: str) -> int:
        count = 0
        for one in ids:
            record = self._record(one)
            if record is not None and record.state in ("stored", "pending", "dead"):
                record.state, record.reason = "discarded", None
                for delivery in record.deliveries:
                    if delivery.state in ("pending", "dead"):
                        delivery.state = "discarded"
                record.actions.append(f"{by}: discard")
                count += 1
        return count

    async def note(self, id: str, action: str, by: str) -> None:
        record = self._record(id)
        if record is not None:
            record.actions.append(f"{by}: {action}")

    async def recall(self, scope: str, key: str, most: int | None = None) -> str | None:
        known = [name for name in self._memos if name[0] == scope]
        kept, until = self._memos.get((scope, key), ("", 0.0))
        within = most is None or (scope, key) in known[-most:]
        return kept if within and until > self.now() else None

    async def remember(self, scope: str, key: str, value: str, window_s: float, most: int | None = None) -> str:
        if self.full:
            raise JournalFullError("journal: no room; free some disk space")
        known = [name for name in self._memos if name[0] == scope]
        for name in known[:-most] if most is not None else ():
            del self._memos[name]
        kept, until = self._memos.get((scope, key), ("", 0.0))
        if until <= self.now():
            kept = value
            self._memos.pop((scope, key), None)
            self._memos[scope, key] = value, self.now() + window_s
        return kept


def _matches(record: Record, wanted: Filter) -> bool:
    message = record.message
    status = "pending" if record.state == "stored" else record.state
    texts = [message.id, message.type, message.key, message.subject, message.sender_id, message.correlation_id]
    texts += [f"{name}: {value}" for name, value in message.headers.items() if name not in CREDENTIALS]
    return (
        wanted.route in (None, record.route)
        and wanted.status in (None, status)
        and (wanted.reason is None or (record.reason is not None and record.reason.kind == wanted.reason))
        and (wanted.since_s is None or message.time_s >= wanted.since_s)
        and (wanted.until_s is None or message.time_s <= wanted.until_s)
        and wanted.correlation_id in (None, message.correlation_id)
        and wanted.sender_id in (None, message.sender_id)
        and (wanted.text is None or any(wanted.text.lower() in text.lower() for text in texts if text))
    )


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _copied(delivery: Delivery) -> Delivery:
    return Delivery(
        parent=delivery.parent,
        target=delivery.target,
        message=delivery.message.replace(),
        state=delivery.state,
        key=delivery.key,
        attempts=delivery.attempts,
        due_at=delivery.due_at,
        reason=delivery.reason,
    )
