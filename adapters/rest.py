"""`rest`: a route that takes messages by REST only: POST /api/v1/routes/{route}/messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway import Deliver, Host, Settings


class Source(Settings):
    """Takes what is posted to `/api/v1/routes/{route}/messages` on the gateway's API.

    Every other route takes messages there too; name this source where a route has no other.
    """

    @property
    def answers(self) -> bool:
        """Who posts sees the outcome."""
        return True

    async def run(self, host: Host, deliver: Deliver, ready: Callable[[], None]) -> None:
        """Is ready at once: the API hands the messages over."""
        ready()
        await asyncio.get_running_loop().create_future()
