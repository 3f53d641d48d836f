"""The gateway as a process of its own: signals, reload, readiness, exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
ROUTES = """
version: 1
gateway: {{name: proc, data: ./var, grace: 5s, api: {{listen: "127.0.0.1:{api}"}}}}
routes:
  slow:
    from: {{http: {{listen: "127.0.0.1:{data}", path: /slow}}}}
    ack: reply
    to: {{http: {{url: "http://127.0.0.1:{target}/", timeout: 20s}}}}
  kept:
    from: rest
    to: {{file: {{path: out.jsonl}}}}
  filed:
    from: rest
    to: {{file: {{path: "each/{{{{ body.n }}}}.json", mode: create}}}}
"""


class Target:
    """A server that answers when told."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked.set()
        await self.answer.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()


class Running:
    """One gateway process and what it logged."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, api: int, data: int) -> None:
        self.process = process
        self.folder = folder
        self.api = f"http://127.0.0.1:{api}"
        self.data = f"http://127.0.0.1:{data}"
        self.logged: list[dict[str, Any]] = []
        self._news = asyncio.Condition()
        self._ended = False

    async def read_log(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            async with self._news:
                self.logged.append(json.loads(line) if line.startswith(b"{") else {"event": line.decode()})
                self._news.notify_all()
        async with self._news:
            self._ended = True
            self._news.notify_all()

    async def log(self, event: str, count: int = 1) -> None:
        """Returns once this was logged so often."""

        def logged() -> bool:
            return [one["event"] for one in self.logged].count(event) >= count

        try:
            async with asyncio.timeout(20), self._news:
                await self._news.wait_for(lambda: logged() or self._ended)
        except TimeoutError:
            raise AssertionError(f"{event!r} was not logged within 20 s, but {self.logged}") from None
        assert logged(), f"the process ended without {event!r}: {self.logged}"

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    async def code(self) -> int:
        async with asyncio.timeout(20):
            return await self.process.wait()

    @property
    def token(self) -> str:
        return (self.folder / "var" / "admin.token").read_text().strip()

    def client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(headers={"authorization": f"Bearer {self.token}"}, timeout=20)


@asynccontextmanager
async def gateway(
    folder: Path, *, api: int | None = None, target: int = 9, failpoints: str = ""
) -> AsyncIterator[Running]:
    """A gateway process, running; killed when the context ends."""
    ports = free_ports(2)
    api = ports[0] if api is None else api
    (folder / "routes.yaml").write_text(ROUTES.format(api=api, data=ports[1], target=target))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import sys; from gateway.cli import main; main()",
        "run",
        "routes.yaml",
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GATEWAY_FAILPOINTS": failpoints},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Running(process, folder, api, ports[1])
    reading = asyncio.create_task(running.read_log())
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await reading
        process._transport.close()  # type: ignore[attr-defined]


async def test_a_process_runs_reloads_and_ends_when_told(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        await running.log("running")
        token_file = tmp_path / "var" / "admin.token"
        assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "var").stat().st_mode) == 0o700
        async with running.client() as client:
            answer = await client.post(f"{running.api}/api/v1/routes/kept/messages?wait=5s", json={"n": 1})
            assert answer.json()["status"] == "delivered"
            file = tmp_path / "routes.yaml"
            good = file.read_text()
            file.write_text(good.replace("path: /slow", "path: /fast"))
            running.send(signal.SIGHUP)
            await running.log("configuration changed")
            file.write_text("routes: [")
            running.send(signal.SIGHUP)
            await running.log("configuration not changed")
            config = (await client.get(f"{running.api}/api/v1/config")).json()["config"]
            assert config["routes"]["slow"]["from"]["http"]["path"] == "/fast"
            metrics = (await client.get(f"{running.api}/metrics")).text
            assert 'gateway_reloads_total{result="good"} 1.0' in metrics
            assert 'gateway_reloads_total{result="failed"} 1.0' in metrics
        running.send(signal.SIGTERM)
        assert await running.code() == 0
    assert (tmp_path / "out.jsonl").read_text() == '{"n":1}\n'
    events = [one["event"] for one in running.logged]
    assert not any(
        "Traceback" in event or "traceback" in one for event, one in zip(events, running.logged, strict=True)
    )
    assert token_file.read_text().strip() not in str(running.logged)


async def test_sigterm_lets_what_is_in_flight_finish_while_readiness_says_no(tmp_path: Path) -> None:
    target = Target()
    server = await asyncio.start_server(target, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, gateway(tmp_path, target=port) as running:
        await running.log("running")
        async with running.client() as client:
            waiting = asyncio.create_task(client.post(f"{running.data}/slow", json={"n": 1}))
            await target.asked.wait()
            running.send(signal.SIGTERM)
            await running.log("stopping")
            ready = await client.get(f"{running.api}/health/ready")
            assert (ready.status_code, ready.json()["phase"]) == (503, "stopping")
            assert (await client.get(f"{running.api}/health/live")).status_code == 200
            refused = await client.post(f"{running.api}/api/v1/routes/kept/messages", json={"n": 2})
            assert refused.status_code == 503
            target.answer.set()
            answer = await waiting
            assert (answer.status_code, answer.text) == (200, "ok")
        assert await running.code() == 0


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    target = Target()
    server = await asyncio.start_server(target, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, gateway(tmp_path, target=port) as running:
        await running.log("running")
        async with running.client() as client:
            waiting = asyncio.create_task(client.post(f"{running.data}/slow", json={"n": 1}))
            await target.asked.wait()
            running.send(signal.SIGTERM)
            await running.log("stopping")
            running.send(signal.SIGINT)
            assert await running.code() == 1
            with pytest.raises(httpx2.TransportError):
                await waiting
        target.answer.set()
    assert any("second signal" in one["event"] for one in running.logged)


async def test_a_file_that_was_written_before_a_kill_is_no_dead_letter_after_it(tmp_path: Path) -> None:
    async with gateway(tmp_path, failpoints="target.acked=kill") as running:
        await running.log("running")
        async with running.client() as client:
            posted = await client.post(f"{running.api}/api/v1/routes/filed/messages", json={"n": 1})
            assert posted.status_code == 202
        assert await running.code() == -signal.SIGKILL
    assert (tmp_path / "each" / "1.json").read_text() == '{"n":1}'
    async with gateway(tmp_path) as running:
        await running.log("running")
        async with running.client() as client:
            path = f"{running.api}{posted.json()['status_url']}"
            async with asyncio.timeout(20):
                while (status := (await client.get(path)).json()["status"]) == "pending":
                    await asyncio.sleep(0.02)
            assert status == "delivered"
            again = await client.post(f"{running.api}/api/v1/routes/filed/messages?wait=5s", json={"n": 1})
            assert again.json()["status"] == "dead"
    assert [path.name for path in (tmp_path / "each").iterdir()] == ["1.json"]


async def test_an_api_address_in_use_is_exit_code_2_with_a_plain_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with gateway(tmp_path, api=port) as running:
            assert await running.code() == 2
    said = " ".join(one["event"] for one in running.logged)
    assert f"gateway.api.listen: 127.0.0.1:{port} is in use by another program" in said
    assert "Traceback" not in said


async def test_a_second_process_on_the_same_data_is_told_who_has_it(tmp_path: Path) -> None:
    async with gateway(tmp_path) as first:
        await first.log("running")
        async with gateway(tmp_path) as second:
            assert await second.code() == 2
        said = " ".join(one["event"] for one in second.logged)
        assert f"process {first.process.pid}" in said


async def test_a_broken_configuration_is_exit_code_2(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        await running.log("running")
        running.send(signal.SIGTERM)
        assert await running.code() == 0
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import sys; from gateway.cli import main; main()", "run", "nowhere.yaml",
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert b"Traceback" not in errors
