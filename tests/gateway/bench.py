"""One route on a bench: its YAML, a journal in memory, a clock that tests move and luck that is always the worst."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway import Message, Outcome
from gateway.config import Config, load
from gateway.host import Services
from gateway.observe import Observed
from gateway.route import Route
from gateway.testing import ManualClock, settle
from tests.memory_journal import MemoryJournal


def written(folder: Path, yaml: str) -> Config:
    """The configuration of this text, which the folder keeps as routes.yaml."""
    path = folder / "routes.yaml"
    path.write_text(yaml)
    return load(path)


class Bench:
    """What a route needs around it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.journal = MemoryJournal(self.clock)
        self.observed = Observed(self.clock)
        self.services = Services("desk", folder, self.journal, self.observed, self.clock, luck=lambda: 1.0)

    @asynccontextmanager
    async def route(self, settings: str) -> AsyncIterator[Route]:
        """The route `r` with these settings, indented by four; from: probe in, unless they say it."""
        if "from:" not in settings:
            settings = f"    from: {{probe: {{}}}}\n{settings}"
        config = written(self.folder, f"version: 1\nroutes:\n  r:\n{settings}")
        route = Route(config.routes["r"], self.services)
        await route.start()
        await settle()
        try:
            yield route
        finally:
            await route.stop(0)

    @property
    def dead(self) -> list[str]:
        """Why messages became dead letters."""
        return [record.reason.text for record in self.journal.records.values() if record.reason is not None]


async def post(route: Route, tree: Any = None, *, answers: bool = True, **fields: Any) -> Outcome:
    """Hands a message to a route: its tree, or `raw`."""
    if "raw" not in fields:
        fields |= {"raw": None, "parsed": {} if tree is None else tree}
    outcome = await route.take(Message(**fields), answers=answers, type_="probe.message")
    await settle()
    return outcome
