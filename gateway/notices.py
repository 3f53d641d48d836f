"""What a route tells the log of single messages: dead letters, and what only their sender heard. Sparingly."""

from __future__ import annotations

import asyncio
import logging
import re

from gateway.message import Deferred, Message, Refused
from gateway.observe import RouteMeters
from gateway.ports import Clock

log = logging.getLogger("gateway")

_VALUE = re.compile(
    r"""(?<!condition\ )(?<!target\ )(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?:(?<=\bis\ )|(?<=\bgot\ ))-?\d[\d.]*""",
    re.VERBOSE,
)
TOLD_A_SECOND = 10
"""Of each kind and route; of more, only how many."""
DEFERRED_A_SECOND = 1
"""The same of messages not taken now: their senders come again, for as long as a target is away."""


def without_values(reason: str) -> str:
    """A reason as the log has it: what it quotes may be of a body, and a log goes further than the journal.

    Names of targets and conditions stay, as they are those of `routes.yaml`.
    """
    return _VALUE.sub("…", reason)


class _Sparing:
    """A warning that a route may have often: so many a second are logged, and of more how many."""

    def __init__(self, one: str, many: str, route: str, clock: Clock, *, a_second: int = TOLD_A_SECOND) -> None:
        self._a_second = a_second
        self._one = one
        self._many = many
        self._route = route
        self._clock = clock
        self._second = 0
        self._told = 0
        self._untold = 0

    def tell(self, **fields: object) -> None:
        second = int(self._clock.monotonic())
        if second != self._second:
            self._tell_rest()
            self._second, self._told = second, 0
        if self._told < self._a_second:
            self._told += 1
            log.warning(self._one, extra={"route": self._route, **fields})
            return
        if not self._untold:  # the last of a burst: nothing may come behind it
            asyncio.get_running_loop().call_later(1.0, self._tell_rest)
        self._untold += 1

    def _tell_rest(self) -> None:
        if self._untold:
            log.warning(self._many, extra={"route": self._route, "more": self._untold})
            self._untold = 0


class DeadLetters:
    """Tells of dead letters, to the log and the counters: each one, but in the log no more than ten a second."""

    def __init__(self, route: str, meters: RouteMeters, clock: Clock) -> None:
        self._meters = meters
        self._log = _Sparing("dead letter", "dead letters", route, clock)

    def note(self, message_id: str, kind: str, text: str, place: str | None) -> None:
        """A message, or its delivery to one target, became a dead letter."""
        self._meters.dead += 1
        self._log.tell(message_id=message_id, kind=kind, reason=without_values(text), place=place)


class Refusals:
    """Tells the log of refusals that the sender heard, which leave no other trace: no more than ten a second.

    Of messages that a target did not take now, no more than one a second.
    """

    def __init__(self, route: str, clock: Clock) -> None:
        self._log = _Sparing("message refused", "messages refused", route, clock)
        self._deferred = _Sparing("message deferred", "messages deferred", route, clock, a_second=DEFERRED_A_SECOND)

    def note(self, message: Message, refused: Refused, place: str | None) -> None:
        """A sender was told that its message can't pass. Nothing of the body or the headers is logged."""
        fields = {"message_id": message.id, "code": refused.code, "reason": without_values(refused.full)}
        if place is not None:
            fields["place"] = place
        self._log.tell(**fields, **_peer(message))

    def note_deferred(self, message: Message, deferred: Deferred) -> None:
        """A sender was told to come again, as a target did not take its message: nothing else keeps why."""
        self._deferred.tell(message_id=message.id, reason=without_values(deferred.full), **_peer(message))

    def note_unread(self, code: str, reason: str, peer: str) -> None:
        """A sender was told that what it sent is no message, or one that is not read."""
        self._log.tell(code=code, reason=without_values(reason), peer=peer)


def _peer(message: Message) -> dict[str, str]:
    peer = message.transport.get("peer")
    return {"peer": peer} if isinstance(peer, str) else {}
