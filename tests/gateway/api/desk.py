"""A gateway with its API in this process: real routes, a journal in memory, requests over ASGI."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

from adapters.memory import box
from gateway.api.access import Door
from gateway.api.application import Guard, application
from gateway.app import App
from gateway.clock import SystemClock
from gateway.config import load
from gateway.host import Services
from gateway.observe import Observed
from gateway.ports import Clock
from gateway.settings import Address
from tests.memory_journal import MemoryJournal

TOKEN = "t" * 43
BEARER = {"authorization": f"Bearer {TOKEN}"}

ROUTES = """
version: 1
gateway: {name: desk, api: {listen: "127.0.0.1:0"}}
routes:
  orders:
    description: Orders to the ledger
    from: rest
    accept:
      - filter: body.id is defined
    to:
      - {memory: {name: ledger}, name: ledger, retry: {attempts: 1}, circuit: {failures: 100, reset_after: 1s}}
  asks:
    from: rest
    ack: reply
    to: {memory: {name: asked}}
  passes:
    from: rest
    ack: delivered
    to: {memory: {name: passed}}
"""


class Desk:
    """One gateway and a client that has its token."""

    def __init__(self, app: App, journal: MemoryJournal, guard: Guard, client: httpx2.AsyncClient) -> None:
        self.app = app
        self.journal = journal
        self.guard = guard
        self.client = client

    async def post(self, route: str, body: Any, *, query: str = "", **headers: str) -> httpx2.Response:
        """Posts JSON to a route."""
        return await self.client.post(f"/api/v1/routes/{route}/messages{query}", json=body, headers=headers)

    async def get(self, path: str, **query: str) -> Any:
        """What a call that must be good answers."""
        answer = await self.client.get(f"/api/v1{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()


@asynccontextmanager
async def desk(
    folder: Path, yaml: str = ROUTES, *, clock: Clock | None = None, starts: bool = True
) -> AsyncIterator[Desk]:
    """A desk for as long as the context lasts. starts: as one whose routes run, not as one that is starting."""
    for name in ("ledger", "asked", "passed", "other"):
        box(name).received.clear()
        box(name).failing = None
    file = folder / "routes.yaml"
    file.write_text(yaml)
    clock = clock or SystemClock()
    journal = MemoryJournal(clock)
    app = App(load(file), Services("desk", folder, journal, Observed(clock), clock))
    guard = application(app, Door(TOKEN, clock, Address("127.0.0.1", 0)))
    if starts:
        await app.start()
    transport = httpx2.ASGITransport(guard, client=("127.0.0.1", 4711))
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080", headers=BEARER) as client:
            yield Desk(app, journal, guard, client)
    finally:
        await app.stop(0)
