"""All suites, with how often each does its harm: in the long form, and at least."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.reliability import disks, runs
from tests.reliability.ledger import Verdict
from tests.reliability.runs import Stage


@dataclass(frozen=True)
class Suite:
    """One kind of harm."""

    run: Callable[[Stage], Awaitable[Verdict]]
    what: str
    times: int
    """In the long form."""
    least: int = 1

    @property
    def name(self) -> str:
        """As `--only` takes it."""
        return self.run.__name__


SUITES = (
    Suite(runs.random_kills, "kill -9 at a random moment", 100),
    Suite(runs.kill_points, f"kill -9 at each of {len(runs.POINTS)} points", 20),
    Suite(runs.dead_letters, "kill -9 while burying, and while replaying many", 20),
    Suite(runs.stops, "SIGTERM", 50),
    Suite(runs.reloads, "reload, every second file broken; kill -9 in one", 200, least=2),
    Suite(runs.target_down, "two targets away (seconds)", 60, least=2),
    Suite(disks.disk_errors, "EIO and ENOSPC at the Nth write and sync (N)", 30),
    Suite(disks.full_disk, "a full disk, with and without a reserve", 10),
    Suite(disks.poison, "a message that kills the process", 5),
    Suite(disks.second_process, "a second process on the data folder", 10),
)
