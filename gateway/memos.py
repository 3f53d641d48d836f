"""What a route that stores nothing remembers of its messages (`dedupe`): each once it was delivered, and no sooner.

What is remembered before would be lost when its target is away: its sender sends it again, and it would be known.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar

from gateway.errors import PeerError
from gateway.journal import Journal, JournalBrokenError, JournalFullError

Name = tuple[str, str]
"""(scope, key) of a memo."""


class Memos:
    """The memos of one route."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._on_their_way: set[Name] = set()
        self._mine: ContextVar[dict[Name, tuple[str, float, int]]] = ContextVar("memos of the message")
        self.used = False
        """Whether anything is ever remembered."""

    def of(self, scope: str, window_s: float, most: int) -> Callable[[str, str], Awaitable[str]]:
        """As `Journal.remember`, for messages that are delivered within `kept_once_delivered`.

        Raises, when called:
            PeerError: another message with this key is being delivered: what becomes of it is not known yet.
        """
        self.used = True

        async def first(key: str, value: str) -> str:
            name, mine = (scope, key), self._mine.get()
            if name in mine:
                return mine[name][0]
            known = await self._journal.recall(scope, key, most)
            if known is not None:
                return known
            if name in self._on_their_way:
                raise PeerError("dedupe: a message that is the same is on its way just now; send again", wait_s=1.0)
            self._on_their_way.add(name)
            mine[name] = value, window_s, most
            return value

        return first

    @asynccontextmanager
    async def kept_once_delivered(self) -> AsyncIterator[None]:
        """What is asked for within the context is remembered when that ends well."""
        mine: dict[Name, tuple[str, float, int]] = {}
        token = self._mine.set(mine)
        try:
            yield
            for (scope, key), (value, window_s, most) in mine.items():
                with suppress(JournalFullError, JournalBrokenError):  # delivered it is, and may come twice now
                    await self._journal.remember(scope, key, value, window_s, most)
        finally:
            self._mine.reset(token)
            self._on_their_way.difference_update(mine)
