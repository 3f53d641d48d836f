"""The configuration over the API: shown without secrets, checked without running, read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.api.desk import ROUTES, desk

SECRETS = """
version: 1
gateway: {name: desk, api: {listen: "127.0.0.1:0"}}
routes:
  r:
    from: rest
    to:
      - http: {url: "http://127.0.0.1:9/hook", token: "${env:DESK_TOKEN}"}
        name: a
      - http: {url: "http://127.0.0.1:9/hook", username: gw, password: correct-horse-battery}
        name: b
      - http: {url: "http://127.0.0.1:9/hook", headers: {x-note: "Bearer correct-horse-battery"}}
        name: c
"""


async def test_what_runs_is_shown_with_references_and_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESK_TOKEN", "hunter2-hunter2")
    async with desk(tmp_path, SECRETS) as here:
        shown = await here.get("/config")
        first, second, third = shown["config"]["routes"]["r"]["to"]
        assert first["http"]["token"] == "${env:DESK_TOKEN}"
        assert second["http"]["password"] == "(hidden)"
        assert second["http"]["username"] == "gw"
        assert third["http"]["headers"]["x-note"] == "(hidden)"
        assert "hunter2" not in str(shown)
        assert "correct-horse" not in str(shown)


async def test_a_good_configuration_is_good_and_does_not_run(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        posted = ROUTES.replace("  orders:", "  bookings:")
        answer = await here.client.post("/api/v1/config/check", content=posted)
        assert answer.json() == {"good": True, "routes": ["bookings", "asks", "passes"], "notes": [], "complaints": []}
        assert list(here.app.routes) == ["orders", "asks", "passes"]
        assert (tmp_path / "routes.yaml").read_text() == ROUTES


async def test_all_complaints_come_with_their_places(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        posted = ROUTES.replace("accept:", "acept:").replace("ack: reply", "ack: replay")
        answer = (await here.client.post("/api/v1/config/check", content=posted)).json()
        assert answer["good"] is False
        assert len(answer["complaints"]) == 2
        first = answer["complaints"][0]
        assert (first["file"], first["line"], first["subject"]) == ("routes.yaml", 8, "routes.orders.acept")
        assert "did you mean accept?" in first["text"]


@pytest.mark.parametrize(("posted", "status"), [(b"", 422), (b"\xff", 400), (b"x" * (4 * 1024 * 1024 + 1), 413)])
async def test_what_is_nothing_or_no_text_or_too_large_is_refused(tmp_path: Path, posted: bytes, status: int) -> None:
    async with desk(tmp_path) as here:
        answer = await here.client.post("/api/v1/config/check", content=posted)
        assert answer.status_code == status


async def test_a_reload_says_what_it_changed(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        (tmp_path / "routes.yaml").write_text(ROUTES.replace("ack: reply", "ack: delivered"))
        answer = await here.client.post("/api/v1/config/reload")
        assert (answer.status_code, answer.json()) == (200, {"changed": ["asks: changed"]})


async def test_a_broken_file_is_refused_and_what_ran_still_runs(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        (tmp_path / "routes.yaml").write_text(ROUTES.replace("ack: reply", "ack: replay"))
        answer = await here.client.post("/api/v1/config/reload")
        assert (answer.status_code, answer.json()["code"]) == (422, "config")
        (complaint,) = answer.json()["complaints"]
        assert complaint["subject"] == "routes.asks.ack"
        assert (await here.post("orders", {"id": 1}, query="?wait=5s")).json()["status"] == "delivered"


async def test_what_can_not_change_while_it_runs_is_said(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        (tmp_path / "routes.yaml").write_text(ROUTES.replace("name: desk", "name: other"))
        answer = await here.client.post("/api/v1/config/reload")
        assert answer.status_code == 422
        assert "restart" in answer.json()["detail"]
