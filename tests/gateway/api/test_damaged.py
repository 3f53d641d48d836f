"""Messages whose record the disk has changed, in a journal on disk: never sent as what came."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import httpx2
import pytest

from adapters.memory import box
from gateway import Message
from gateway.api import serving
from gateway.app import App, running
from gateway.config import load
from gateway.journal import Reason

ROUTES = """\
version: 1
gateway: {{data: ./var, api: {{listen: "127.0.0.1:0"}}}}
routes:
  direct:
    from: rest
    ack: delivered
    to: {{memory: {{name: {box}}}}}
  stored:
    from: rest
    to: {{memory: {{name: {box}}}}}
"""


@asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[tuple[App, httpx2.AsyncClient]]:
    file = folder / "routes.yaml"
    file.write_text(ROUTES.format(box=folder.name))
    async with running(load(file)) as app, serving(app) as place:
        token = (folder / "var" / "admin.token").read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(base_url=f"{place.url}/api/v1", headers=headers, trust_env=False) as client:
            yield app, client


def flip(folder: Path) -> None:
    """Changes one bit of each body."""
    with apsw.Connection(str(folder / "var" / "gateway.db")) as connection:
        found: list[Any] = connection.execute("SELECT seq, body FROM messages").fetchall()
        for seq, body in found:
            changed = bytes([body[0] ^ 1]) + body[1:]
            connection.execute("UPDATE messages SET body = ? WHERE seq = ?", (changed, seq))


@pytest.mark.parametrize("route", ["direct", "stored"])
async def test_a_dead_letter_that_the_disk_changed_is_not_sent_again(tmp_path: Path, route: str) -> None:
    target = box(tmp_path.name)
    async with gateway(tmp_path) as (app, _):
        dead = Message(raw=b'{"amount":100}')
        await app.services.journal.bury(route, dead, Reason("refused", "the till is closed", "memory"))
    flip(tmp_path)
    async with gateway(tmp_path) as (_, client):
        path = f"/messages/{dead.id}/replay"
        unchanged: list[dict[str, str]] = [{}] if route == "direct" else []
        for change in [*unchanged, {"content_type": "text/plain"}]:
            answer = await client.post(path, json=change)
            assert (answer.status_code, answer.json()["code"]) == (409, "damaged")
            assert answer.json()["detail"] == (
                "its record in the journal is not as it was written: the disk changed it; "
                "send it edited, with the body as it should be, or discard it"
            )
        bulk = (await client.post("/dead-letters/replay", json={"route": route})).json()
        if route == "direct":
            assert bulk == {"replayed": 0, "skipped": {"damaged": 1}, "more": False}
        assert not target.received
        mended = await client.post(path, json={"body": {"amount": 100}})
        assert mended.status_code < 300
        await client.post("/routes/stored/messages?wait=10s", json={"last": True})
        assert [message.body for message in target.received] == [b'{"amount":100}', b'{"last":true}']
        target.received.clear()
