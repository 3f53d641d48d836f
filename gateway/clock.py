"""The machine's time, as the `Clock` port has it."""

from __future__ import annotations

import asyncio
import time
from time import monotonic


class SystemClock:
    """Wall time, monotonic time and sleep of the machine."""

    # The functions themselves: each message reads the time often.
    time = staticmethod(time.time)
    """Seconds since 1970-01-01 UTC."""
    monotonic = staticmethod(monotonic)
    """Seconds from an unknown start, never going back."""

    async def sleep(self, seconds: float) -> None:
        """Returns after that many seconds."""
        await asyncio.sleep(seconds)
