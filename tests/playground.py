"""A copy of examples and documents to play in: ports of their own, a shell beside them, and the gateway running."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.app import App, running
from gateway.config import load
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
_PORT = re.compile(r"(?<=127\.0\.0\.1[:/])\d{4,5}\b|(?<=-p )\d{4,5}\b")
_BEHIND_PROMPT = re.compile(r"^# {3,}(\S.*)$", re.MULTILINE)


class Playground:
    """A folder whose files name free ports of 127.0.0.1 where the originals name fixed ones.

    ports: those that are given already, such as the one of a broker that runs, by the number in the originals.
    """

    def __init__(self, folder: Path, ports: dict[str, int] | None = None) -> None:
        self.folder = folder
        self.python_path = ""
        """Where Python finds more packages."""
        (folder / ".curlrc").write_text("silent\n")
        self._ports = {number: str(port) for number, port in (ports or {}).items()}

    def put(self, original: Path, name: str | None = None) -> Path:
        """A copy of a file, with ports of our own. Returns where it is."""
        copy = self.folder / (name or original.name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(self.mapped(original.read_text(encoding="utf-8")), encoding="utf-8")
        return copy

    def put_schemas(self) -> None:
        """The schemas and stylesheets that examples name."""
        for name in ("schemas", "stylesheets"):
            shutil.copytree(ROOT / "examples" / name, self.folder / name)

    def mapped(self, text: str) -> str:
        """The text with our ports."""
        return _PORT.sub(lambda found: self._port(found[0]), text)

    def port(self, number: int) -> int:
        """Our port for one of the originals."""
        return int(self._port(str(number)))

    def _port(self, number: str) -> str:
        if number not in self._ports:
            self._ports[number] = str(free_port())
        return self._ports[number]

    async def sh(self, commands: str) -> str:
        """What these commands print in a shell in the folder, errors too; `gateway` is on its path."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            self.mapped(commands),
            cwd=self.folder,
            env={
                **os.environ,
                "PATH": path,
                "LC_ALL": "C.UTF-8",
                "CURL_HOME": str(self.folder),
                "PYTHONPATH": self.python_path,
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            printed, _ = await asyncio.wait_for(process.communicate(), 30)
        finally:
            if process.returncode is None:
                process.kill()
        return printed.decode()

    async def listens(self, number: int) -> None:
        """Returns once somebody listens on our port for this one of the originals."""
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port(number))
                except OSError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    return

    def read(self, name: str) -> str:
        """The content of a file in the folder; empty: there is none yet."""
        path = self.folder / name
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @asynccontextmanager
    async def running(self, name: str) -> AsyncIterator[App]:
        """The gateway with this configuration, without its API."""
        async with running(load(self.folder / name)) as app:
            yield app


def to_paste(text: str) -> str:
    """The commands in the comment at the top of an example: the lines that are indented."""
    head = text.partition("\nversion:")[0]
    return "\n".join(_BEHIND_PROMPT.findall(head))
