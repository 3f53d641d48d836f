"""Messages that are not stored: their steps run, and they are sent, while their sender waits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway.errors import MessageError, PeerError
from gateway.message import Message
from gateway.target import Inside, RunningTarget, chosen


async def delivered(inside: Inside, message: Message) -> Message | None:
    """Runs the steps and sends to every target that takes what comes out. Returns the reply of the only one.

    Raises:
        MessageError, PeerError: of the worst: a PeerError if any target was away, so that the sender tries again.
    """
    steps = inside.steps
    out: Message | None = message
    outs: Sequence[Message] = ()
    if steps.plain is not None:
        out = steps.plain(message)
        if out is not message:
            message.forget_tree()  # it is not needed any more, and waits as long as its target does
    elif not steps.empty:
        out, outs = None, await steps(message)
    if out is not None:
        if inside.only is not None:
            return await _sent(inside, inside.only, out)
        outs = (out,)
    if not outs:
        inside.meters.filtered += 1
        return None
    sends: list[tuple[RunningTarget, Message]] = []
    for out in outs:
        for target in inside.always or chosen(inside, out):
            if target.path.empty:
                sends.append((target, out))
            else:
                sends += [(target, made) for made in await target.made_of(out)]
    if len(sends) == 1:
        return await _sent(inside, *sends[0])
    if sends:
        await _sent_to_all(inside, sends)
    return None


async def _sent(inside: Inside, target: RunningTarget, message: Message) -> Message | None:
    if message.expires_at_s is not None and message.left_s(inside.services.journal.now()) < 0:
        inside.meters.expired += 1
        return None
    try:
        return await target.send(message)
    except MessageError as error:
        error.place = error.place or target.name
        if isinstance(error.reply, Message) and inside.settings.ack == "reply":
            return error.reply
        raise
    except PeerError as error:
        if isinstance(error.reply, Message) and inside.settings.ack == "reply":
            return error.reply
        raise


async def _sent_to_all(inside: Inside, sends: list[tuple[RunningTarget, Message]]) -> None:
    results = await asyncio.gather(*(_sent(inside, *send) for send in sends), return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in errors:
        if isinstance(error, asyncio.CancelledError | PeerError):
            raise error
    for error in errors:
        if not isinstance(error, MessageError):  # a bug, which has to be heard of
            raise error
    if errors:
        raise errors[0]
