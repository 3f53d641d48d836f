"""Replies of an AMQP source to who asked, on a channel that the first of them opens."""

from __future__ import annotations

import asyncio
import logging

from adapters._amqp import Link
from adapters._amqp_frames import Properties
from adapters._amqp_wire import Channel
from gateway import Accepted, Host, Message, MessageError, PeerError, Shared

log = logging.getLogger("gateway.amqp")

_AGAIN_S = 1.0
_TRIES = 3
_LOST = 2
"""After so many lost links a reply is given up: the broker may end the link because of it."""


class Replies:
    """Replies to who asked, over the publishing link, which is opened for the first of them."""

    def __init__(self, publishing: Shared[Link], host: Host, tasks: asyncio.TaskGroup, asked_on: Channel) -> None:
        self._publishing = publishing
        self._host = host
        self._tasks = tasks
        self._asked_on = asked_on
        self._channel: asyncio.Future[Channel] | None = None

    async def send(self, outcome: Accepted, reply: Message, asked: Properties) -> None:
        """Returns once the reply is with the broker, or given up. Who asked and is gone needs no reply.

        Given up is one that the broker does not take, or for which it ends the link each time: with its question given
        back to the queue the route would run again for it, for ever.
        """
        properties = Properties(
            content_type=reply.content_type,
            correlation_id=asked.correlation_id or asked.message_id,
            message_id=f"{outcome.id}.reply",
            delivery_mode=1,
        )
        why, tries, lost = "it can't be written as a reply, now or later", 0, 0
        while tries < _TRIES and lost < _LOST:
            if tries > lost:
                await self._host.clock.sleep(_AGAIN_S)
            channel = await self._open()
            try:
                await channel.room()
                await channel.publish("", asked.reply_to or "", properties, reply.body, mandatory=False)
                return
            except PeerError as error:
                why, tries, lost = str(error), tries + 1, lost + error.reconnect
            except MessageError:
                break
        self._host.dropped(1, "reply refused")
        log.warning("reply dropped", extra={"route": self._host.route, "id": outcome.id, "reason": why})

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
