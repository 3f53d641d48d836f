"""Who may call, from where, and how often one may be wrong."""

from __future__ import annotations

import stat
from pathlib import Path

import httpx2
import pytest
from fastapi import APIRouter

from gateway.api.access import READ, Failures, admin_token, without_permission
from gateway.api.application import ROUTERS
from gateway.errors import ConfigError
from gateway.testing import ManualClock
from tests.gateway.api.desk import TOKEN, desk

OPEN = ("/health/live", "/health/ready", "/metrics")


def test_every_call_names_the_permission_that_it_needs() -> None:
    assert [path for router in ROUTERS for path in without_permission(router)] == []


def test_a_call_without_a_permission_is_found() -> None:
    router = APIRouter()

    @router.get("/careless")
    async def careless() -> None: ...

    @router.get("/twice", dependencies=[*READ, *READ])
    async def twice() -> None: ...

    @router.get("/metrics", dependencies=READ)
    async def metrics() -> None: ...

    assert without_permission(router) == ["/careless", "/twice", "/metrics"]


async def test_health_and_metrics_need_no_token_and_all_else_does(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        for path in OPEN:
            answer = await here.client.get(path, headers={"authorization": ""})
            assert answer.status_code in (200, 503), path
        for path in ("/api/v1/messages", "/api/v1/openapi.json", "/nowhere", "/docs"):
            answer = await here.client.get(path, headers={"authorization": ""})
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
            assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("header", ["Basic abc", "Bearer", "Bearer ", "bearer wrong", f"Token {TOKEN}", "Bearer \xe9"])
async def test_what_is_not_the_token_is_401(tmp_path: Path, header: str) -> None:
    async with desk(tmp_path) as here:
        raw = header.encode("latin-1")
        answer = await here.client.get("/api/v1/routes", headers=[(b"authorization", raw)])
        assert answer.status_code == 401
        assert TOKEN not in answer.text


async def test_the_word_bearer_is_taken_in_any_case(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        answer = await here.client.get("/api/v1/routes", headers={"authorization": f"bearer {TOKEN}"})
        assert answer.status_code == 200


async def test_after_ten_wrong_tokens_the_address_is_not_listened_to(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        for _ in range(10):
            answer = await here.client.get("/api/v1/routes", headers={"authorization": "Bearer guess"})
            assert answer.status_code == 401
        answer = await here.client.get("/api/v1/routes")
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_failures")
        assert 290 < int(answer.headers["retry-after"]) <= 300
        assert (await here.client.get("/health/live")).status_code == 200


async def test_nine_wrong_tokens_and_the_right_one_begin_anew() -> None:
    failures = Failures(ManualClock())
    for _ in range(9):
        failures.add("a")
    failures.forget("a")
    for _ in range(9):
        failures.add("a")
    assert failures.wait_s("a") == 0


async def test_a_lock_doubles_to_an_hour_and_is_of_one_address() -> None:
    clock = ManualClock()
    failures = Failures(clock)
    waits = []
    for _ in range(6):
        for _ in range(10):
            failures.add("a")
        waits.append(failures.wait_s("a"))
        await clock.advance(failures.wait_s("a"))
    assert waits == [300, 600, 1200, 2400, 3600, 3600]
    assert failures.wait_s("b") == 0


async def test_failures_older_than_a_minute_do_not_count() -> None:
    clock = ManualClock()
    failures = Failures(clock)
    for _ in range(30):
        failures.add("a")
        await clock.advance(7)
    assert failures.wait_s("a") == 0


async def test_addresses_that_fail_are_not_kept_without_bound() -> None:
    failures = Failures(ManualClock())
    for number in range(5000):
        failures.add(str(number))
    assert len(failures._known) <= 1025


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8080", "", "localhost.:8080", "[::2]:80"])
async def test_a_host_that_is_not_loopback_is_refused_even_with_the_token(tmp_path: Path, host: str) -> None:
    async with desk(tmp_path) as here:
        for path in ("/api/v1/routes", "/health/live"):
            answer = await here.client.get(path, headers={"host": host})
            assert (answer.status_code, answer.json()["code"]) == (421, "wrong_host")


@pytest.mark.parametrize("host", ["127.0.0.1", "LOCALHOST:8080", "[::1]:8080"])
async def test_loopback_names_are_taken_with_any_port(tmp_path: Path, host: str) -> None:
    async with desk(tmp_path) as here:
        assert (await here.client.get("/health/live", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
    ],
)
async def test_pages_of_other_origins_are_refused(tmp_path: Path, headers: dict[str, str]) -> None:
    async with desk(tmp_path) as here:
        for path in ("/api/v1/routes", "/metrics"):
            answer = await here.client.get(path, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "cross_origin")
        assert "access-control-allow-origin" not in answer.headers


async def test_a_page_of_our_own_origin_may_call(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        answer = await here.client.get("/api/v1/routes", headers={"origin": "http://127.0.0.1:8080"})
        assert answer.status_code == 200


async def test_every_answer_forbids_sniffing_caching_and_framing(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        for path in ("/api/v1/routes", "/nowhere", "/health/live"):
            headers = (await here.client.get(path)).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
            assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_the_first_start_makes_a_token_that_only_we_can_read_and_later_ones_keep_it(tmp_path: Path) -> None:
    token = admin_token(tmp_path)
    assert len(token) >= 43
    assert stat.S_IMODE((tmp_path / "admin.token").stat().st_mode) == 0o600
    assert admin_token(tmp_path) == token
    assert [file.name for file in tmp_path.iterdir()] == ["admin.token"]


@pytest.mark.parametrize(("text", "mode"), [("t" * 43, 0o644), ("", 0o600), ("short", 0o600), ("é" * 43, 0o600)])
def test_a_token_file_that_is_open_or_no_token_ends_the_start(tmp_path: Path, text: str, mode: int) -> None:
    file = tmp_path / "admin.token"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(ConfigError, match=r"admin\.token") as raised:
        admin_token(tmp_path)
    assert not text or text not in str(raised.value)


async def test_unknown_paths_and_methods_are_problems_too(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        missing = await here.client.get("/api/v1/nothing")
        wrong = await here.client.put("/api/v1/routes")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["code"], wrong.headers["allow"]) == (405, "method_not_allowed", "GET")
    for answer in (missing, wrong):
        assert answer.headers["content-type"] == "application/problem+json"


async def test_a_bug_is_500_without_a_word_of_it_and_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk(tmp_path) as here:

        def broken() -> None:
            raise ZeroDivisionError("a secret inside")

        monkeypatch.setattr(here.journal, "counts", broken)
        answer: httpx2.Response = await here.client.get("/api/v1/routes")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert len([record for record in caplog.records if record.exc_info]) == 1
