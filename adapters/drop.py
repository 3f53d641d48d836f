"""`drop`: takes every message and forgets it. For what is not wanted, and for measuring."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway import Host, Message, Send, Settings


class Sink(Settings):
    """Takes every message and forgets it. Delivered: always."""

    @property
    def replies(self) -> bool:
        """It has no reply to give."""
        return False

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Send]:
        """A send that does nothing."""

        async def send(message: Message) -> None:
            return None

        yield send
