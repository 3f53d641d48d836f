"""Dead letters that hold the beginning of what was too large: never sent as what came."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from adapters.memory import box
from gateway.api import serving
from gateway.app import App, running
from gateway.config import load
from gateway.testing import until

ROUTES = """\
version: 1
gateway: {{data: ./var, api: {{listen: "127.0.0.1:0"}}}}
routes:
  files:
    from: {{file: {{folder: in, every: 10ms, settle: 0s}}}}
    ack: {ack}
    limits: {{message: 10B}}
    to: {{memory: {{name: {box}}}}}
"""


@asynccontextmanager
async def signed_in(app: App) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(app) as place:
        token = (app.config.path.parent / "var" / "admin.token").read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(base_url=f"{place.url}/api/v1", headers=headers, trust_env=False) as client:
            yield client


@pytest.mark.parametrize("ack", ["stored", "delivered"])
async def test_a_replay_does_not_send_the_beginning_of_a_file_as_the_file(tmp_path: Path, ack: str) -> None:
    target = box(tmp_path.name)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "large.txt").write_bytes(b"0123456789abcdef")
    file = tmp_path / "routes.yaml"
    file.write_text(ROUTES.format(box=tmp_path.name, ack=ack))
    async with running(load(file)) as app, signed_in(app) as client:
        await until((tmp_path / "in" / "failed" / "large.txt").exists)
        file.write_text(file.read_text().replace("message: 10B", "message: 20B"))
        await app.reload()
        (dead,) = (await client.get("/messages?status=dead")).json()["messages"]
        path = f"/messages/{dead['id']}/replay"
        for change in ({}, {"content_type": "text/html"}):
            answer = await client.post(path, json=change)
            assert (answer.status_code, answer.json()["code"]) == (409, "too_large")
            assert answer.json()["detail"].startswith("only the beginning of its body was kept")
        bulk = (await client.post("/dead-letters/replay", json={"route": "files"})).json()
        if ack == "stored":
            await until(lambda: app.services.observed.route("files").dead == 2)
            while not (await client.get("/messages?status=dead")).json()["messages"]:
                pass  # its end is on its way to the disk
        else:
            assert bulk == {"replayed": 0, "skipped": {"too_large": 1}, "more": False}
        assert not target.received
        assert (await client.post(path, json={"body": "0123456789abcdef"})).status_code < 300
        await until(lambda: len(target.received) == 1)
    assert target.received[0].body == b"0123456789abcdef"
