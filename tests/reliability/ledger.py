"""What was sent, acknowledged and received, and the judgement over it: by id and hash, message by message."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

IN_FLIGHT_S = 1.0
"""How long before a fault something may have been on its way at the fault, and so may come twice."""
LINK_S = 0.1
"""So long after a link was seen to end something may have come by another that ended with it."""


@dataclass(slots=True)
class Sent:
    """A message that a sender of ours began to hand over."""

    uid: str
    route: str
    key: str | None
    number: int
    """Its place among those of its key."""
    digest: bytes
    sent_s: float
    acknowledged_s: float | None = None
    refused_s: float | None = None
    """The gateway said that it did not take it."""


Kind = Literal["accepted", "cut", "refused"]
"""What our target made of it: accepted and answered so; accepted and the answer cut off; answered no."""


@dataclass(slots=True)
class Receipt:
    """A message that reached a target of ours, as a whole."""

    target: str
    digest: bytes
    at_s: float
    kind: Kind
    answered_s: float = float("inf")
    """When the target said so, if it did."""
    known_s: float = float("inf")
    """When the gateway was seen to have that answer, if it was: it sent the next message over the same connection."""


@dataclass(slots=True)
class Fault:
    """Something that went wrong on purpose, and until when."""

    what: str
    began_s: float
    ended_s: float
    target: str | None = None
    """The one that it happened to; None: the gateway itself, and so all."""

    def excuses(self, receipt: Receipt) -> bool:
        """Whether what was received so may come again: it was not answered yet, or just now and not yet noted."""
        if self.target is not None and (self.target != receipt.target or receipt.known_s < self.began_s):
            return False
        return receipt.at_s <= self.ended_s and receipt.answered_s >= self.began_s - IN_FLIGHT_S

    def caught(self, entry: Sent, first: Receipt) -> bool:
        """Whether it hit a message on its way from a broker: that one may be stored twice, and so come twice."""
        return self.target is None and entry.sent_s <= self.began_s <= first.at_s + IN_FLIGHT_S


WRONG = ("lost", "unexpected", "duplicated", "damaged", "disordered", "troubles")


@dataclass
class Verdict:
    """What the checker found. `lost`, `unexpected`, `duplicated`, `damaged`, `disordered` and `troubles` must be empty."""

    sent: int = 0
    acknowledged: int = 0
    delivered: int = 0
    recovered: int = 0
    """Delivered although their sender had heard nothing: allowed."""
    again: int = 0
    """Delivered twice because of a fault: allowed."""
    dead: int = 0
    lost: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    disordered: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    """Anything else that is not as promised: books that do not balance, late recovery, a trace of the inside."""

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        return not any(getattr(self, word) for word in WRONG)

    def some(self, most: int = 5) -> list[str]:
        """What is wrong, each as a line: so many of each kind at most."""
        return [f"{word}: {text}" for word in WRONG for text in getattr(self, word)[:most]]

    def add(self, other: Verdict) -> None:
        """Takes over what another run found."""
        for name in ("sent", "acknowledged", "delivered", "recovered", "again", "dead"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in WRONG:
            getattr(self, name).extend(getattr(other, name))


def digest(body: bytes) -> bytes:
    """The hash that tells a damaged body from a sound one."""
    return hashlib.blake2b(body, digest_size=16).digest()


class Ledger:
    """What happened, as seen from outside. Everything is added by the one loop of the checker."""

    def __init__(self, targets: Mapping[str, Sequence[str]], through_brokers: Collection[str] = ()) -> None:
        """targets: which targets each route has. through_brokers: routes whose broker sends again after a fault."""
        self.targets = targets
        self.through_brokers = through_brokers
        self.sent: dict[str, Sent] = {}
        self.receipts: dict[str, list[Receipt]] = defaultdict(list)
        self.unknown: list[str] = []
        self.faults: list[Fault] = []
        self.without_room: list[Fault] = []
        """When the journal had no room: what came from a broker then was given back, or is tried again later."""
        self.acknowledged = 0
        """By the gateway itself, not by a broker before it."""
        self.last_receipt_s = 0.0
        self._arrived: set[str] = set()
        """Those that are known to have reached all of their targets."""

    def sending(self, uid: str, route: str, key: str | None, number: int, body: bytes) -> Sent:
        """A message is about to go out."""
        entry = self.sent[uid] = Sent(uid, route, key, number, digest(body), time.monotonic())
        return entry

    def heard_ok(self, entry: Sent) -> None:
        """The gateway said that it is safe."""
        entry.acknowledged_s = time.monotonic()
        self.acknowledged += 1

    def confirmed(self, entry: Sent) -> None:
        """A broker before the gateway said that it has it."""
        entry.acknowledged_s = time.monotonic()

    def heard_no(self, entry: Sent) -> None:
        """The gateway said that it did not take it."""
        entry.refused_s = time.monotonic()

    def received(self, target: str, uid: str | None, body: bytes, kind: Kind) -> Receipt:
        """A target of ours has a message."""
        self.last_receipt_s = time.monotonic()
        receipt = Receipt(target, digest(body), self.last_receipt_s, kind)
        if uid is None or uid not in self.sent:
            self.unknown.append(f"{target} got {body[:80]!r}")
        else:
            self.receipts[uid].append(receipt)
        return receipt

    def fault(self, what: str, target: str | None = None, lasts_s: float = float("inf")) -> Fault:
        """Something goes wrong from now on, until `ended_s` is set, at most for so long."""
        now = time.monotonic()
        found = Fault(what, now, now + lasts_s, target)
        self.faults.append(found)
        return found

    def no_room(self) -> Fault:
        """The journal finds no room from now on, until `ended_s` is set."""
        found = Fault("no room", time.monotonic(), float("inf"))
        self.without_room.append(found)
        return found

    # -- the judgement -----------------------------------------------------------------------------------------------

    def missing(self, uid: str) -> list[str]:
        """Targets that an acknowledged message did not reach."""
        entry = self.sent[uid]
        reached = {receipt.target for receipt in self.receipts.get(uid, ()) if receipt.kind == "accepted"}
        return [target for target in self.targets[entry.route] if target not in reached]

    def waiting(self, dead: Collection[str] = ()) -> list[str]:
        """Acknowledged messages that did not reach all of their targets, and are not known to be dead."""
        found = []
        for uid, entry in self.sent.items():
            if uid in self._arrived or entry.acknowledged_s is None or uid in dead:
                continue
            if self.missing(uid):
                found.append(uid)
            else:
                self._arrived.add(uid)
        return found

    def judge(self, dead: Collection[str] = (), pending: Collection[str] = ()) -> Verdict:
        """What became of everything that was sent. `dead`, `pending`: what the journal says is a dead letter, or open.

        What is open at the end is not lost; the books say whether it may be (`books.wrong_in`).
        """
        verdict = Verdict(sent=len(self.sent), dead=len(dead))
        verdict.unexpected += self.unknown
        for uid, entry in self.sent.items():
            receipts = self.receipts.get(uid, [])
            missing = self.missing(uid)
            if entry.acknowledged_s is not None and missing and uid not in dead and uid not in pending:
                verdict.lost.append(f"{uid} of {entry.route} was acknowledged and did not reach {', '.join(missing)}")
            verdict.acknowledged += entry.acknowledged_s is not None
            if not missing:
                verdict.delivered += 1
                verdict.recovered += entry.acknowledged_s is None
            for receipt in receipts:
                if receipt.digest != entry.digest:
                    verdict.damaged.append(f"{uid} reached {receipt.target} with another body")
            self._judge_again(entry, receipts, verdict)
        self._judge_order(verdict)
        return verdict

    def _judge_again(self, entry: Sent, receipts: Iterable[Receipt], verdict: Verdict) -> None:
        before: dict[str, Receipt] = {}
        via = entry.route in self.through_brokers
        for receipt in receipts:
            earlier = before.get(receipt.target)
            before[receipt.target] = receipt
            if earlier is None or earlier.kind != "accepted":
                continue
            if receipt.target not in self.targets[entry.route]:
                verdict.unexpected.append(f"{entry.uid} of {entry.route} reached {receipt.target}")
            if any(fault.excuses(earlier) or (via and fault.caught(entry, earlier)) for fault in self.faults):
                verdict.again += 1
            else:
                verdict.duplicated.append(
                    f"{entry.uid} reached {receipt.target} again {receipt.at_s - earlier.at_s:.3f} s after it had "
                    f"been accepted there, and nothing was wrong then: {self._story(entry, receipt.target)}"
                )

    def _story(self, entry: Sent, target: str) -> str:
        """What happened to one message, in seconds since the first was sent, with the last fault before each."""
        began = next(iter(self.sent.values())).sent_s
        steps = [("sent", entry.sent_s), ("acknowledged", entry.acknowledged_s), ("refused", entry.refused_s)]
        steps += [(one.kind, one.at_s) for one in self.receipts.get(entry.uid, ()) if one.target == target]
        told = []
        for word, at_s in steps:
            if at_s is not None:
                before = [one for one in self.faults if one.target in (None, target) and one.began_s <= at_s]
                last = f" (after {before[-1].what} {before[-1].began_s - began:.3f})" if before else ""
                told.append(f"{word} {at_s - began:.3f}{last}")
        return f"{entry.uid} " + ", ".join(told)

    def _judge_order(self, verdict: Verdict) -> None:
        """The first time that a target took each message: in the order of sending, for each key."""
        firsts: list[tuple[float, str, str, Sent]] = []
        for uid, receipts in self.receipts.items():
            entry = self.sent[uid]
            seen: set[str] = set()
            for receipt in receipts:
                if entry.key is not None and receipt.kind != "refused" and receipt.target not in seen:
                    seen.add(receipt.target)
                    firsts.append((receipt.at_s, receipt.target, entry.key, entry))
        highest: dict[tuple[str, str], Sent] = {}
        for at_s, target, key, entry in sorted(firsts, key=lambda first: first[0]):
            before = highest.get((target, key))
            if before is not None and before.number > entry.number:
                if entry.route in self.through_brokers and any(
                    entry.sent_s <= fault.ended_s and fault.began_s <= at_s for fault in self.without_room
                ):
                    continue  # the order is that of receipt, and it was received once more, behind the others
                verdict.disordered.append(
                    f"{entry.uid} came after {before.uid} to {target}, of one key: "
                    f"{self._story(entry, target)}; {self._story(before, target)}"
                )
            else:
                highest[target, key] = entry
