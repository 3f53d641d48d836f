"""Replies of an AMQP source to who asked, on a channel that the first of them opens."""

from __future__ import annotations

import asyncio
import logging

from adapters._amqp import Link
from adapters._amqp_frames import Properties
from adapters._amqp_wire import Channel
from gateway import Accepted, Deferred, Host, Message, MessageError, PeerError, Shared

log = logging.getLogger("gateway.amqp")

_AGAIN_S = 1.0
_TRIES = 2


class Replies:
    """Replies to who asked, over the publishing link, which is opened for the first of them."""

    def __init__(self, publishing: Shared[Link], host: Host, tasks: asyncio.TaskGroup, asked_on: Channel) -> None:
        self._publishing = publishing
        self._host = host
        self._tasks = tasks
        self._asked_on = asked_on
        self._channel: asyncio.Future[Channel] | None = None

    async def send(self, outcome: Accepted, reply: Message, asked: Properties) -> Accepted | Deferred:
        """The outcome once its reply is with the broker. Who asked and is gone needs no reply.

        Nor does who asks for one at a place for which the broker ends the link each time: the question would come
        again for ever.
        """
        properties = Properties(
            content_type=reply.content_type,
            correlation_id=asked.correlation_id or asked.message_id,
            message_id=f"{outcome.id}.reply",
            delivery_mode=1,
        )
        why = "it can't be written as a reply, now or later"
        for _ in range(_TRIES):
            channel = await self._open()
            try:
                await channel.room()
                await channel.publish("", asked.reply_to or "", properties, reply.body, mandatory=False)
            except PeerError as error:
                if not error.reconnect:
                    return Deferred(outcome.id, f"its reply could not be sent: {error}", _AGAIN_S)
                why = str(error)
            except MessageError:
                break
            else:
                return outcome
        self._host.dropped(1, "reply refused")
        log.warning("reply dropped", extra={"route": self._host.route, "id": outcome.id, "reason": why})
        return outcome

    async def _open(self) -> Channel:
        """The channel for replies; a new one, where the last was lost."""
        if self._channel is None:
            self._tasks.create_task(self._hold(), name=f"{self._host.route}:amqp-replies")
        if self._channel is None or (self._channel.done() and self._channel.result().lost.done()):
            self._channel = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._channel)

    async def _hold(self) -> None:
        while True:
            opened = False
            try:
                async with self._host.share(self._publishing) as link, link.channel() as channel:
                    if self._channel is None or self._channel.done():
                        self._channel = asyncio.get_running_loop().create_future()
                    self._channel.set_result(channel)
                    opened = True
                    await asyncio.get_running_loop().create_future()
            except PeerError as error:
                if not opened:
                    self._asked_on.lose(f"replies can't be sent: {error}")
                    return
            await self._host.clock.sleep(_AGAIN_S)
