"""Places where a test can end the process: inert unless armed by `GATEWAY_FAILPOINTS` at start.

`GATEWAY_FAILPOINTS="journal.committed=kill;target.acked=kill:3"` kills the process (as kill -9 does) when it comes to
the first place, and to the second for the third time.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

VARIABLE = "GATEWAY_FAILPOINTS"

NAMES = {
    "listener.half_body": "a request has begun to arrive",
    "accept.parsed": "parsed and checked, not yet handed to the journal",
    "journal.inside_transaction": "rows are written, the transaction is open",
    "journal.committed": "committed, the sender not yet answered",
    "ack.sent": "the sender is answered, delivery has not begun",
    "steps.inside": "the steps have run, nothing is sent",
    "target.sent": "sent, the target has not answered",
    "target.acked": "the target has answered, which is not yet noted",
    "journal.marked": "delivery is noted and committed",
    "journal.checkpoint": "the journal's log is being written back",
    "journal.dead_letter": "a dead letter is being written",
    "replay.bulk": "some of many dead letters are replayed",
    "reload.swapped": "a route has been stopped and not yet started again",
    "fanout.partly_done": "some targets of a message have answered, others not",
}


def _inert(_name: str) -> None:
    """Does nothing."""


def _armed(text: str) -> Callable[[str], None]:
    left: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, _, action = part.partition("=")
        kind, _, count = action.partition(":")
        if name not in NAMES or kind != "kill" or not (count or "1").isdigit():
            raise ValueError(f"{VARIABLE}: expected name=kill or name=kill:3, got {part!r}; names: {', '.join(NAMES)}")
        left[name] = int(count or 1)

    def failpoint(name: str) -> None:
        if name in left:
            left[name] -= 1
            if left[name] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return failpoint


SOON_S = 0.002
"""Long enough for the loop to write out what it was given."""


def _later(name: str) -> None:
    asyncio.get_running_loop().call_later(SOON_S, failpoint, name)


ARMED = bool(os.environ.get(VARIABLE))
"""Whether any of these places is to end the process."""
IN_TRANSACTION = "journal.inside_transaction" in os.environ.get(VARIABLE, "")
"""Whether the one is that only a transaction of several statements comes to."""

failpoint: Callable[[str], None] = _armed(os.environ[VARIABLE]) if ARMED else _inert
"""Marks a place by its name."""

failpoint_soon: Callable[[str], None] = _later if ARMED else _inert
"""The same, for a place that is only reached once the loop has written what was handed to it just now."""
