"""`log`: writes one line about each message to the gateway's log. Bodies only when asked for."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from pydantic import Field

from gateway import Host, Message, Send, Settings, Template

log = logging.getLogger("gateway.messages")

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Sink(Settings):
    """Writes one line about each message to the gateway's log: id, type, size, and what `text` says.

    Delivered: when the line is handed to the log.
    """

    text: Template | None = Field(
        None, description="what to say; a template may name parts of the body, which are then logged"
    )
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="the level of the line")

    @property
    def replies(self) -> bool:
        """It has no reply to give."""
        return False

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Send]:
        """A send that writes a line."""
        level = _LEVELS[self.level]

        async def send(message: Message) -> None:
            if log.isEnabledFor(level):
                said = {} if self.text is None else {"text": self.text.text_of(message)}
                log.log(
                    level,
                    "message",
                    extra={
                        "route": host.route,
                        "message_id": message.id,
                        "type": message.type,
                        "size": len(message.body),
                        **said,
                    },
                )

        yield send
