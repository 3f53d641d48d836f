"""The journal port: what is kept of stored messages, how it changes, and how it is found again.

A message goes `stored` (its steps are not finished) → `pending` (its deliveries are known, some are open) → one of
the final states. A delivery is one message to one target; it is written when it first fails, when it must wait behind
another of its lane, or before its first send when the steps are not pure. All times are the journal's own (`now`),
which never goes back, whatever the machine's clock does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal, Protocol, TypeVar, get_args

from msgspec import Struct

from gateway.errors import GatewayError, Refusal
from gateway.message import Message

T_contra = TypeVar("T_contra", contravariant=True)
State = Literal["stored", "pending", "delivered", "filtered", "expired", "dead", "discarded"]
FINAL: frozenset[State] = frozenset({"delivered", "filtered", "expired", "dead", "discarded"})
DeliveryState = Literal["pending", "delivered", "filtered", "expired", "dead", "discarded"]
REASONS: Sequence[str] = (*get_args(Refusal), "unmatched", "retries", "expired", "poison", "damaged")
"""The kinds of reasons."""


CREDENTIALS: frozenset[str] = frozenset({"authorization", "cookie", "proxy-authorization", "set-cookie", "x-api-key"})
"""Headers by which a peer says who it is. They stay with the message, are not shown, and no search finds them."""


class JournalFullError(GatewayError):
    """There is no room now (size limit, disk reserve, a commit rolled back for lack of space). Senders are deferred."""


class JournalBrokenError(GatewayError):
    """The disk failed (EIO, a failed fsync): nothing more is promised, the process must stop and recover."""


class Reason(Struct, frozen=True):
    """Why a message or a delivery is where it is."""

    kind: str
    """One of `REASONS`: `retries` when attempts or age are used up, what refused it, or what happened to it."""
    text: str
    place: str | None = None
    """The step, target or accept check, such as `steps.2.map` or `ledger`."""
    told: str | None = None
    """What the sender may hear in place of `text`, where that is about what is inside."""

    @property
    def for_sender(self) -> str:
        """What the sender hears; the text is for the operator."""
        return self.text if self.told is None else self.told


BEGINNING = Reason(
    "too_large",
    "only the beginning of its body was kept, as it was over the limit; have it sent again once limits.message is "
    "raised, or send it edited, with a whole body, or discard it",
)
"""Why a message that was too large to be read whole is not sent again."""


class Attempt(Struct, frozen=True):
    """One try to send."""

    target: str
    number: int
    at_s: float
    """Wall time of its beginning, for display."""
    took_s: float
    error: str | None = None
    """What went wrong; None: delivered."""
    answer: str | None = None
    """The beginning of what the target answered."""


class Hop(Struct, frozen=True):
    """One step that changed a message, ended it or failed on it."""

    place: str
    outcome: Literal["changed", "filtered", "failed", "split"]
    before: bytes | None = None
    """With `history: full`, bounded: the body before."""
    after: bytes | None = None


class Delivery(Struct, kw_only=True):
    """One message to one target."""

    parent: str
    """The id of the stored message."""
    target: str
    message: Message
    """As the target receives it: after the route's steps and those of the target. Its id differs from `parent` only
    for children of a split."""
    state: DeliveryState = "pending"
    key: str | None = None
    """Its lane: deliveries of one route, target and key go in the order of their parents."""
    attempts: int = 0
    due_at: float | None = None
    """Journal time of the next try; None while it waits behind another of its lane."""
    reason: Reason | None = None


class Work(Struct, frozen=True):
    """A stored message whose steps have not finished, as the journal gives it out again."""

    message: Message
    claims: int
    """How often it was begun without an end: a message that kills the process shows here."""
    only: str | None = None
    """The target that it was replayed to: the others do not get it."""


class Backlog(list[Work]):
    """Works that the journal gives out."""

    def __init__(self, works: Iterable[Work] = (), *, whole: bool) -> None:
        super().__init__(works)
        self.whole = whole
        """These are all that there were, but for those that were not wanted."""


class Due(Struct, frozen=True):
    """A pending delivery whose time has come."""

    delivery: Delivery
    claims: int


class Finished(Struct, frozen=True):
    """The message is done and no delivery was written: delivered everywhere, filtered, expired, dead in a step.

    Discarded: it was dead, and the target that `dead_letter` names has it.
    """

    id: str
    state: Literal["delivered", "filtered", "expired", "dead", "discarded"]
    hops: Sequence[Hop] = ()
    attempts: Sequence[Attempt] = ()
    reason: Reason | None = None


class Expanded(Struct, frozen=True):
    """The steps have run: these are the deliveries with their states. Steps never run again for the message."""

    id: str
    deliveries: Sequence[Delivery]
    hops: Sequence[Hop] = ()
    attempts: Sequence[Attempt] = ()


class Attempted(Struct, frozen=True):
    """A delivery that was written before was tried (or given up, or expired).

    When it becomes final, the next of its lane (same route, target and key, by the order of the parents) gets
    `due_at` = now; when all deliveries of the message are final, the message takes the gravest of their states (dead,
    expired, discarded, delivered, filtered). All in the same commit. The same holds for `Expanded`.
    """

    parent: str
    child: str
    target: str
    state: DeliveryState
    attempts: int
    due_at: float | None = None
    attempt: Attempt | None = None
    reason: Reason | None = None


Change = Finished | Expanded | Attempted


class Row(Struct, kw_only=True):
    """What is shown of a message in a list."""

    id: str
    route: str
    state: State
    received_s: float
    type: str
    subject: str | None
    key: str | None
    sender_id: str | None
    correlation_id: str | None
    size: int
    reason: Reason | None = None
    cursor: str = ""
    """Where the next page begins when this is the last row of one."""


class Page(Struct, frozen=True):
    """A part of a list."""

    rows: Sequence[Row]
    next: str | None = None
    """The cursor of what follows; None: nothing does."""


class Detail(Struct, kw_only=True):
    """All that is known of one message."""

    row: Row
    message: Message
    """As it came in."""
    hops: Sequence[Hop] = ()
    attempts: Sequence[Attempt] = ()
    deliveries: Sequence[Delivery] = ()
    actions: Sequence[str] = ()
    """What operators did: one line each, with time."""


class Filter(Struct, kw_only=True, frozen=True):
    """Which messages to list or to act on. Every field that is None does not matter."""

    route: str | None = None
    status: Literal["pending", "delivered", "filtered", "expired", "dead", "discarded"] | None = None
    """As people see it: `pending` is `stored` and `pending`."""
    reason: str | None = None
    since_s: float | None = None
    until_s: float | None = None
    text: str | None = None
    """Looked for in id, key, subject, type, sender_id, correlation_id and headers, but for `CREDENTIALS`."""
    correlation_id: str | None = None
    sender_id: str | None = None


QUEUED_BYTES = 1 << 20
"""How much of one lane is given out at once."""
ALL_QUEUED_BYTES = 16 << 20
"""How much of several lanes is given out at once."""


class Waiting(Protocol[T_contra]):
    """Who waits for something to be durable: a future, or what looks like one."""

    def done(self) -> bool:
        """Whether nobody waits any more."""
        ...

    def set_result(self, result: T_contra, /) -> None:
        """It is durable. Called in the loop's thread."""
        ...

    def set_exception(self, error: Exception, /) -> None:
        """It is not."""
        ...


class Journal(Protocol):
    """Where stored messages are kept. Every method that changes something is durable when it returns.

    Changes are told in the order in which they become durable: once a `claim` returns, who waits for a message that was
    stored before it has been told so.

    Raises, from every method:
        JournalFullError: no room now; nothing was changed.
        JournalBrokenError: the disk failed; nothing is promised any more.
    """

    def now(self) -> float:
        """Journal time, in seconds: goes on while the machine's clock jumps, and never goes back across restarts."""
        ...

    def append(self, route: str, message: Message, waiting: Waiting[bool]) -> None:
        """Stores a message as it came (`raw`, envelope, `since`). Hands over at once, in order.

        waiting: gets True once it is durable, False when its id was known already and nothing changed, or the error.
        Those who wait are told in the order in which their messages were stored.

        Raises:
            JournalFullError: there is no room, and `waiting` is not told.
            MessageError: its tree can't be written as bytes, and `waiting` is not told.
        """
        ...

    async def bury(self, route: str, message: Message, reason: Reason) -> None:
        """Stores a message as a dead letter at once."""
        ...

    def advance(self, route: str, changes: Sequence[Change]) -> asyncio.Future[None]:
        """Applies all changes in one commit; the future is done once it is durable. Hands over at once, in order.

        Changes of a message that is already final there change nothing. Never JournalFullError: for lack of room it
        waits, since what it writes ends messages. Need not be awaited.
        """
        ...

    def finish(self, route: str, ends: Sequence[Finished], then: Callable[[], None]) -> None:
        """`advance` with these changes; calls `then` once they are durable. Most changes by far are of this kind."""
        ...

    async def stored(self, route: str, exclude: Collection[str], limit: int, max_bytes: int) -> Backlog:
        """Messages in state `stored` but those with an id in `exclude`: higher `priority` first, then as they came.

        At least one if there is any, at most `limit`, about `max_bytes` of bodies. Each has its `since`.
        """
        ...

    async def due(
        self, route: str, exclude: Collection[tuple[str, str]], limit: int, max_bytes: int | None = None
    ) -> Sequence[Due]:
        """Pending deliveries whose time has come, but those with a (child id, target) in `exclude`; earliest first.

        At least one if there is any, at most `limit`, about `max_bytes` of bodies. Their messages have the `since` of
        their parents.
        """
        ...

    async def queued(
        self, route: str, lanes: Collection[tuple[str, str]], limit: int
    ) -> Mapping[tuple[str, str], Sequence[Due]]:
        """The first pending deliveries of each of these lanes (target, key), in their order, due or not.

        At most `limit` of a lane, about `QUEUED_BYTES` of bodies of each and `ALL_QUEUED_BYTES` of all, so that lanes
        may be missing; none behind one that is damaged.
        """
        ...

    async def next_due(self, route: str, exclude: Collection[tuple[str, str]]) -> float | None:
        """Journal time of the earliest pending delivery that has one, but those in `exclude`; None: there is none."""
        ...

    async def lanes(self, route: str) -> Mapping[tuple[str, str], int]:
        """How many pending deliveries each (target, key) has."""
        ...

    async def claim(self, route: str, messages: Sequence[str], deliveries: Sequence[tuple[str, str]]) -> None:
        """Notes that these are begun (message ids; child id and target of deliveries): `claims` + 1.

        Any change of them by `advance` sets it back to 0.
        """
        ...

    async def release(self, route: str, messages: Sequence[str], deliveries: Sequence[tuple[str, str]]) -> None:
        """Takes claims back: `claims` of these is 0 again."""
        ...

    def trouble(self) -> str | None:
        """Why nothing new is taken in now, such as a full disk; None: it is."""
        ...

    def counts(self) -> Mapping[str, Mapping[State, int]]:
        """How many messages of each route are in each state, those that retention removed included: the books."""
        ...

    async def browse(self, wanted: Filter, cursor: str | None, limit: int) -> Page:
        """Newest first, `limit` at most, those after the cursor. Fewer, or none, when the search took long: go on.

        Raises:
            ValueError: the cursor is none of ours.
        """
        ...

    async def find(self, id: str) -> Detail | None:
        """Everything about one message, by its id or by the id of one of its children; None: it is not there."""
        ...

    async def replay(self, ids: Sequence[str], target: str | None, by: str) -> int:
        """Final messages become pending again, and are sent as what was committed for their targets.

        Those whose deliveries are all known: the dead ones of them (with `target`: that target's, whatever its state);
        the others from their steps on, in state `stored` (with `target`: `only` to that). Their age begins anew, and
        they are given out without a deadline; what had been delivered, with `again` one higher. Returns how many. `by`
        goes into the audit line of each.
        """
        ...

    async def discard(self, ids: Sequence[str], by: str) -> int:
        """Dead and pending messages become discarded. Returns how many; their bodies are kept until retention."""
        ...

    async def note(self, id: str, action: str, by: str) -> None:
        """Adds an audit line to a message: what was done on account of it. One that is gone has none."""
        ...

    async def recall(self, scope: str, key: str, most: int | None = None) -> str | None:
        """The value that is kept under this key, if it is still known; None: `remember` would keep a new one."""
        ...

    async def remember(self, scope: str, key: str, value: str, window_s: float, most: int | None = None) -> str:
        """The value that is kept under this key: this one if none was, else the earlier one (within the window).

        most: how many keys of the scope are known, those that came last; None: however many. For `Idempotency-Key`
        and `dedupe`: survives a crash.
        """
        ...
