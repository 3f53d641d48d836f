"""What the delivery of stored messages works on: a job is one message in memory, a parcel one message to one target."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec import Struct

from gateway.journal import FINAL, Attempt, Attempted, Delivery, DeliveryState, Expanded, Finished, Hop, Reason
from gateway.message import Message

Lane = tuple[str, str]
"""(target, key): parcels of one lane are sent one after the other, in the order of their messages."""


class Job(Struct, eq=False):
    """A stored message in memory, until its end is committed."""

    message: Message
    only: str | None = None
    """The target that it was replayed to; None: all that take it."""
    parcels: Sequence[Parcel] = ()
    open: int = 0
    """Parcels that are still in memory and not final."""
    delivered: bool = False
    """It needed no parcel, and its only target has it."""
    expanded: bool = False
    """Its parcels are written in the journal, or on their way there: see `commit`."""
    commit: asyncio.Future[None] | None = None
    """Done once they are there."""
    hops: list[Hop] = []
    attempts: Sequence[Attempt] = ()
    reason: Reason | None = None
    scope: asyncio.Timeout | None = None
    """While its steps run and may wait: what ends them when the message is discarded."""
    handed_over: bool = False
    """The target that `dead_letter` names has it."""

    @property
    def size(self) -> int:
        """Bytes of the message's body."""
        return self.message.size

    def finished(self) -> Finished:
        """Its end, when no parcel was ever written."""
        if self.delivered or (len(self.parcels) == 1 and self.parcels[0].state == "delivered"):
            return Finished(self.message.id, "delivered", self.hops, self.attempts)
        states = {parcel.state for parcel in self.parcels}
        state = (
            "discarded"
            if self.handed_over
            else "dead"
            if self.reason
            else "expired"
            if "expired" in states
            else "delivered"
            if states
            else "filtered"
        )
        return Finished(self.message.id, state, self.hops, self.attempts, self.reason)  # type: ignore[arg-type]

    def written(self, now: float) -> Expanded:
        """All its parcels as they stand, to be written for the first time.

        now: journal time: those in memory that need no order would be due at once after a crash.
        """
        self.expanded = True
        for parcel in self.parcels:
            if parcel.due_at is None and parcel.key is None and not parcel.final:
                parcel.due_at = now
        return Expanded(self.message.id, [parcel.delivery() for parcel in self.parcels], self.hops, self.attempts)


class Parcel:
    """One message on its way to one target."""

    __slots__ = ("attempts", "due_at", "job", "key", "message", "parent", "reason", "state", "target")

    def __init__(self, job: Job | None, parent: str, message: Message, target: str, key: str | None) -> None:
        self.job = job
        """None: the journal gave it out."""
        self.parent = parent
        self.message = message
        self.target = target
        self.key = key
        self.state: DeliveryState = "pending"
        self.attempts = 0
        self.due_at: float | None = None
        self.reason: Reason | None = None

    @classmethod
    def of_delivery(cls, delivery: Delivery) -> Parcel:
        """A parcel that the journal gave out."""
        parcel = cls(None, delivery.parent, delivery.message, delivery.target, delivery.key)
        parcel.attempts = delivery.attempts
        parcel.reason = delivery.reason
        return parcel

    @property
    def name(self) -> tuple[str, str]:
        """(child id, target): one parcel among all."""
        return self.message.id, self.target

    @property
    def lane(self) -> Lane | None:
        """Its lane; None: it needs no order."""
        return None if self.key is None else (self.target, self.key)

    @property
    def since(self) -> float:
        """Journal time from which its age counts: that of the stored message, whatever its steps made of it."""
        return (self.message if self.job is None else self.job.message).since

    @property
    def size(self) -> int:
        """Bytes of its body."""
        return self.message.size

    @property
    def written(self) -> bool:
        """Whether the journal has it."""
        return self.job is None or self.job.expanded

    @property
    def final(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in FINAL

    def delivery(self) -> Delivery:
        """It as the journal writes it."""
        return Delivery(
            parent=self.parent,
            target=self.target,
            message=self.message,
            state=self.state,
            key=self.key,
            attempts=self.attempts,
            due_at=self.due_at,
            reason=self.reason,
        )

    def attempted(self, attempt: Attempt | None) -> Attempted:
        """How it stands after a try."""
        return Attempted(
            self.parent, self.message.id, self.target, self.state, self.attempts, self.due_at, attempt, self.reason
        )
