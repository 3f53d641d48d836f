"""The machine's time, as the `Clock` port has it."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """Wall time, monotonic time and sleep of the machine."""

    def time(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds from an unknown start, never going back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Returns after that many seconds."""
        await asyncio.sleep(seconds)
