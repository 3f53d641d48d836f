"""What an attempt that failed says: whether it may be tried again, when, and why not."""

from __future__ import annotations

import logging
from typing import NamedTuple

from gateway.errors import MessageError, PeerError
from gateway.journal import Reason
from gateway.message import Message
from gateway.target import Inside

log = logging.getLogger("gateway.delivery")

ANSWER_BYTES = 200
"""How much of a target's answer is kept in the history."""


class Failure(NamedTuple):
    """How an attempt failed."""

    reason: Reason
    final: bool
    """It is of no use to try again."""
    asked_s: float | None = None
    """How long the peer asked to be left alone."""
    reply: object = None


def failure_of(error: Exception, inside: Inside, target: str, message: Message) -> Failure:
    """What this error of a send means. One that is a bug is told in the log, and counted."""
    if isinstance(error, MessageError):
        reason = Reason(error.code, str(error), error.place or target, error.told)
        return Failure(reason, final=True, reply=error.reply)
    if isinstance(error, PeerError):
        reason = Reason("retries", str(error), target, error.for_sender)
        return Failure(reason, final=False, asked_s=error.wait_s, reply=error.reply)
    extra = {"route": inside.name, "target": target, "message_id": message.id}
    log.error("send failed", extra=extra, exc_info=error)
    inside.meters.errors += 1
    return Failure(Reason("internal", "the gateway failed on this send; its log says why", target), final=True)


def shown(reply: object) -> str | None:
    """The beginning of what a target answered, for the history."""
    return reply.raw[:ANSWER_BYTES].decode(errors="replace") if isinstance(reply, Message) and reply.raw else None
