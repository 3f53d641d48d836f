"""The gateway as a child process: started, killed, told to stop or to reload, asked how it is."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GATEWAY = ("-m", "gateway", "run")
START_S = 20.0
_BYTECODE = tempfile.TemporaryDirectory(prefix="reliability-bytecode-")
"""Hundreds of starts take half of the time with it, also where the environment forbids bytecode beside the source."""
STOP_S = 30.0


class Gateway:
    """One configuration in one folder, and the process that runs it, if any. Use it as a context."""

    def __init__(self, folder: Path, ports: Sequence[int], api_port: int, program: Sequence[str] = GATEWAY) -> None:
        """ports: where the routes listen; it is started when all of them answer."""
        self.folder = folder
        self.config = folder / "routes.yaml"
        self.log = folder / "gateway.log"
        self.ports = ports
        self.api_port = api_port
        self.program = program
        self.process: asyncio.subprocess.Process | None = None
        self.started_s = 0.0
        """When the process that runs now was started."""
        self.environment: dict[str, str] = {}
        """For each process, beside what `start` is given."""

    async def __aenter__(self) -> Gateway:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.kill()

    async def launch(self, environment: Mapping[str, str] | None = None, *more: str) -> asyncio.subprocess.Process:
        """Starts a process and does not wait for anything."""
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                *self.program,
                str(self.config),
                *more,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "PYTHONPYCACHEPREFIX": _BYTECODE.name, "PYTHONDONTWRITEBYTECODE": ""}
                | self.environment
                | dict(environment or {}),
                start_new_session=True,
            )

    async def start(self, environment: Mapping[str, str] | None = None) -> float:
        """Starts it. Returns after how many seconds it listens everywhere.

        Raises:
            RuntimeError: it ended, or did not listen in time; its log is in the text.
        """
        began = time.monotonic()
        self.process = await self.launch(environment)
        self.started_s = time.monotonic()
        for port in self.ports:
            while not await _listens(port):
                if self.process.returncode is not None:
                    if environment:
                        return time.monotonic() - began
                    raise RuntimeError(f"the gateway ended with {self.process.returncode}:\n{self.tail()}")
                if time.monotonic() - began > START_S:
                    raise RuntimeError(f"the gateway does not listen after {START_S:g} s:\n{self.tail()}")
                await asyncio.sleep(0.01)
        return time.monotonic() - began

    def tail(self, count: int = 4000) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-count:] if self.log.exists() else ""

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self.process is not None and self.process.returncode is None

    async def ended(self, timeout_s: float) -> int | None:
        """The exit code, or None when it still runs after that time."""
        assert self.process is not None
        try:
            return await asyncio.wait_for(self.process.wait(), timeout_s)
        except TimeoutError:
            return None

    def send(self, signal_number: signal.Signals) -> None:
        """Sends a signal, if it runs."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal_number)

    async def kill(self) -> None:
        """kill -9, and waits until it is gone."""
        self.send(signal.SIGKILL)
        if self.process is not None:
            await self.process.wait()

    async def stop(self) -> int | None:
        """SIGTERM. Returns the exit code; None: it had to be killed."""
        self.send(signal.SIGTERM)
        code = await self.ended(STOP_S)
        if code is None:
            await self.kill()
        return code

    # -- what its API says ---------------------------------------------------------------------------------------------

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Status and what came, as JSON where it is JSON.

        Raises:
            OSError, EOFError: it does not answer.
        """
        token_file = self.folder / "var" / "admin.token"
        token = token_file.read_text().strip() if token_file.exists() else ""
        data = json.dumps(body).encode() if body is not None else b""
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{self.api_port}\r\nconnection: close\r\n"
            f"authorization: Bearer {token}\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", self.api_port)
        try:
            writer.write(head.encode() + data)
            answer = await asyncio.wait_for(reader.read(), 60)
        finally:
            writer.close()
        top, _, text = answer.partition(b"\r\n\r\n")
        if not top:
            raise EOFError("no answer")
        if b"json" in top.lower():
            return int(top.split(b" ", 2)[1]), json.loads(text)
        return int(top.split(b" ", 2)[1]), text.decode(errors="replace")

    async def metrics(self) -> dict[str, float]:
        """What /metrics shows: name with labels → value."""
        _, text = await self.ask("GET", "/metrics")
        found: dict[str, float] = {}
        for line in str(text).splitlines():
            name, _, value = line.rpartition(" ")
            if name and not line.startswith("#"):
                found[name] = float(value)
        return found


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.transport.abort()
    return True
