"""The ends of stored messages: written together once a turn of the loop, each job kept until its own is durable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from gateway.jobs import Job
from gateway.journal import Journal


class Ends:
    """Takes the jobs of one route that have nothing left to do in memory."""

    def __init__(self, route: str, journal: Journal, left: Callable[[Job], None]) -> None:
        """left: called when a job's end is durable."""
        self._route = route
        self._journal = journal
        self._left = left
        self._jobs: list[Job] = []
        """Those of this turn of the loop."""
        self.waiting = 0
        """Jobs that wait for their end to be written."""

    def put(self, job: Job) -> None:
        """Writes the job's end, unless its parcels have one each, and lets go of it then."""
        if not job.expanded:
            self.waiting += 1
            if not self._jobs:
                asyncio.get_running_loop().call_soon(self.write)
            self._jobs.append(job)
        elif job.commit is None or job.commit.done():
            self._left(job)
        else:  # until then the journal would give it out once more
            job.commit.add_done_callback(lambda done: self._forget(job, done))

    def write(self) -> None:
        """Hands over what was put since the last time."""
        jobs, self._jobs = self._jobs, []
        if jobs:
            self._journal.finish(self._route, [job.finished() for job in jobs], lambda: self._written(jobs))

    def _written(self, jobs: Sequence[Job]) -> None:
        self.waiting -= len(jobs)
        for job in jobs:
            self._left(job)

    def _forget(self, job: Job, done: asyncio.Future[None]) -> None:
        if not done.cancelled() and done.exception() is None:
            self._left(job)
