"""`timer`: a message at fixed times: every so often, or as cron says."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import croniter
from pydantic import Field, field_validator, model_validator

from gateway import JSON, Deferred, Deliver, Duration, Host, Message, Settings, rfc3339

_LOOK_S = 30.0
"""Time between two looks at the machine's clock, which may be set: after a start without a clock by decades."""


class Source(Settings):
    """Makes a message at fixed times. Its body is `{"time": "2026-11-21T06:00:00.000Z", "count": 1}`.

    Times that pass while the gateway does not run, or while one message is still on its way, are left out.
    """

    every: Duration | None = Field(None, gt=0, description="time between two messages, such as 30s")
    cron: str | None = Field(None, description="five fields: minute, hour, day of month, month, day of week")
    timezone: str = Field("UTC", description="the time zone that `cron` counts in, such as Europe/Zurich")

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, text: str | None) -> str | None:
        if text is not None and (len(text.split()) != 5 or not croniter.is_valid(text)):
            raise ValueError(f'expected five cron fields such as "0 6 * * mon-fri", got "{text}"')
        return text

    @field_validator("timezone")
    @classmethod
    def _is_zone(cls, text: str) -> str:
        try:
            ZoneInfo(text)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f'expected a time zone such as Europe/Zurich, got "{text}"') from None
        return text

    @model_validator(mode="after")
    def _says_when_once(self) -> Source:
        if (self.every is None) == (self.cron is None):
            raise ValueError("expected either every: or cron:, such as every: 30s")
        return self

    @property
    def answers(self) -> bool:
        """Nobody waits: what is refused becomes a dead letter."""
        return False

    async def run(self, host: Host, deliver: Deliver, ready: Callable[[], None]) -> None:
        """Makes messages until cancelled."""
        ready()
        count = 0
        due_s = self._next(host.clock.time())
        while True:
            await host.clock.sleep(min(max(due_s - host.clock.time(), 0.0), _LOOK_S))
            now_s = host.clock.time()
            if now_s < due_s:  # not yet, or the machine's clock was set back
                due_s = min(due_s, self._next(now_s))
                continue
            count += 1
            await self._deliver(host, deliver, due_s, count)
            due_s = self._after(due_s, host.clock.time())

    async def _deliver(self, host: Host, deliver: Deliver, due_s: float, count: int) -> None:
        body: dict[str, Any] = {"time": rfc3339(due_s), "count": count}
        message = Message(parsed=body, content_type=JSON, formats=host.formats)
        message.raw = message.body
        while isinstance(outcome := await deliver(message), Deferred):
            await host.clock.sleep(outcome.wait_s)

    def _after(self, due_s: float, now_s: float) -> float:
        """The next time that is not over. `every` counts on from the last one, or each would be a little too late."""
        if self.every is None or now_s < due_s:
            return self._next(max(due_s, now_s))
        return due_s + self.every * ((now_s - due_s) // self.every + 1)

    def _next(self, after_s: float) -> float:
        if self.every is not None:
            return after_s + self.every
        start = datetime.fromtimestamp(after_s, UTC).astimezone(ZoneInfo(self.timezone))
        return float(croniter(self.cron, start).get_next(float))
