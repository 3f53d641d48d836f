"""The pages of the documentation as something to run: their fenced blocks, and a walk through them.

What a block is for stands behind its language:

- `yaml`: a configuration, which is loaded; or the inside of one route, a section or a list of steps, which are loaded
  within one. `yaml NAME` is written to that file, too.
- `sh`: commands, run in a folder like the repository's; a `text` block behind it is what they print, … being anything.
- `sh terminal`: a command that runs until Ctrl-C; the next one ends it.
- `sh by hand`: commands that a test does not run.
- `python NAME`, `toml NAME`: written to that file; the package of a `pyproject.toml` is as if it were installed.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import textwrap
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import yaml

from gateway.config import load
from tests.certificates import Authority
from tests.playground import ROOT, Playground

_FENCE = re.compile(r"^```(\S*)(?: +([^\n]*?))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"^[A-Z]+=.*\n", re.MULTILINE)
"""Stays known to the blocks that follow, as in the shell of a reader."""
_LOOKING = (
    "tail",
    "cat",
    "ls",
    "gateway messages",
    "gateway show",
    "gateway dead",
    "curl -s http",
    'curl -s -H "authorization',
)
"""Commands that only look: what they show may need a moment, so they are asked again."""
PATIENCE_S = 10.0


@dataclass(frozen=True)
class Block:
    """One fenced block: `yaml hello.yaml` has the language yaml and the words [hello.yaml]."""

    page: str
    line: int
    language: str
    words: list[str] = field(compare=False)
    text: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page of the repository, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[1], (found[2] or "").split(), found[3])
        for found in _FENCE.finditer(text)
    ]


def pages() -> Iterator[str]:
    """All pages that people write: README and its like, and docs/."""
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]):
        yield str(path.relative_to(ROOT))


def whole(block: Block) -> str:
    """The configuration that a `yaml` block stands for: itself, or what is missing round it."""
    text = block.text
    content = yaml.safe_load(text)
    if isinstance(content, list):
        steps = textwrap.indent(text, " " * 6)
        return f"version: 1\nroutes:\n  example:\n    from: rest\n    steps:\n{steps}    to: drop\n"
    if "from" in content:
        return f"version: 1\nroutes:\n  example:\n{textwrap.indent(text, ' ' * 4)}"
    if "routes" not in content:
        text += "routes: {example: {from: rest, to: drop}}\n"
    return text if "version" in content else f"version: 1\n{text}"


class Walk:
    """Goes through the blocks of a page as a reader would, in a copy of what the repository has."""

    def __init__(self, folder: Path) -> None:
        self.place = Playground(folder)
        self._terminal: asyncio.subprocess.Process | None = None
        self._said = folder / ".terminal"
        self._variables = ""
        examples = [path for kind in ("yaml", "json", "xsl") for path in ROOT.glob(f"examples/**/*.{kind}")]
        for original in [ROOT / "routes.yaml", *examples]:
            self.place.put(original, str(original.relative_to(ROOT)))
        (folder / ".venv").symlink_to(sys.prefix)

    @asynccontextmanager
    async def serving(self, command: str | None) -> AsyncIterator[None]:
        """The command in the terminal, once it runs; the last command of the terminal is ended with the context."""
        try:
            if command is not None:
                await self._start_terminal(Block(command, 0, "sh", ["terminal"], command), None)
            yield
        finally:
            await self._end_terminal()

    async def through(self, page: str, command: str | None = None) -> None:
        """Does what the page says. command: what runs in the terminal from the start.

        Raises:
            AssertionError: something printed is not what the page shows.
        """
        found = blocks(page)
        async with self.serving(command):
            for block, after in zip_longest(found, found[1:]):
                expected = after.text if after is not None and after.language == "text" else None
                await self._do(block, expected)

    async def _do(self, block: Block, expected: str | None) -> None:
        if block.language == "yaml" and block.words:
            api = "" if "api:" in block.text else 'gateway: {api: {listen: "127.0.0.1:8080"}}\n'
            (self.place.folder / block.words[0]).write_text(self.place.mapped(block.text + api), encoding="utf-8")
        elif block.language in ("python", "toml") and block.words:
            path = self.place.folder / block.words[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
            if path.name == "pyproject.toml":
                self._install(path)
        elif block.language == "sh" and block.words == ["terminal"]:
            await self._start_terminal(block, expected)
        elif block.language == "sh" and not block.words:
            await self._run(block, expected)

    def _install(self, project: Path) -> None:
        """What `pip install -e` of the package beside this file would do."""
        said = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        known = self.place.folder / "packages" / f"{said['name'].replace('-', '_')}-{said['version']}.dist-info"
        known.mkdir(parents=True)
        (known / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {said['name']}\nVersion: {said['version']}\n")
        (known / "entry_points.txt").write_text(
            "".join(
                f"[{group}]\n" + "".join(f"{name} = {where}\n" for name, where in points.items())
                for group, points in said["entry-points"].items()
            )
        )
        self.place.python_path = f"{known.parent}:{project.parent}"

    async def _run(self, block: Block, expected: str | None) -> None:
        self._variables += "".join(_ASSIGNMENT.findall(block.text))
        until_s = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            printed = await self.place.sh(self._variables + block.text)
            if expected is None or self._shows(printed, expected):
                return
            late = asyncio.get_running_loop().time() > until_s
            commands = _ASSIGNMENT.sub("", block.text)
            if late or " -d " in commands or not commands.startswith(_LOOKING):
                raise AssertionError(
                    f"{block}: {block.text}printed:\n{printed}\nexpected:\n{expected}\n{self.terminal}"
                )
            await asyncio.sleep(0.1)

    def _shows(self, printed: str, expected: str) -> bool:
        pattern = ".*?".join(re.escape(part) for part in self.place.mapped(expected).strip().split("…"))
        return re.fullmatch(pattern, printed.replace("\r", "").strip(), re.DOTALL) is not None

    @property
    def terminal(self) -> str:
        """What the command in the terminal has said so far."""
        return self._said.read_text(encoding="utf-8") if self._said.exists() else ""

    async def _start_terminal(self, block: Block, expected: str | None) -> None:
        await self._end_terminal()
        command = recipe(block.text.split()[1]) if block.text.startswith("make ") else block.text.strip()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with self._said.open("wb") as said:
            self._terminal = await asyncio.create_subprocess_exec(
                "bash",
                "-c",
                f"exec {command}",
                cwd=self.place.folder,
                env={**os.environ, "PATH": path, "PYTHONPATH": self.place.python_path},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        async with asyncio.timeout(30):
            while "is running; Ctrl-C" not in self.terminal:
                assert self._terminal.returncode is None, f"{block}: {block.text}said:\n{self.terminal}"
                await asyncio.sleep(0.02)
        assert expected is None or self._shows(self.terminal, expected), f"{block}: it said:\n{self.terminal}"

    async def _end_terminal(self) -> None:
        process, self._terminal = self._terminal, None
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGINT)
            try:
                await asyncio.wait_for(process.wait(), 20)
            except TimeoutError:
                process.kill()
                await process.wait()


def recipe(target: str) -> str:
    """The last command of a make target, as it runs where everything is installed."""
    printed = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", printed, re.MULTILINE)
    assert found is not None, f"there is no make {target}"
    return found[1].strip().splitlines()[-1].strip().removeprefix("@").replace("$(BIN)/", "")


def check_yaml(block: Block, folder: Path) -> None:
    """Loads what a `yaml` block stands for, where files that it names are there.

    Raises:
        ConfigError: it can't be loaded.
    """
    for name in ("schemas", "stylesheets"):
        shutil.copytree(ROOT / "examples" / name, folder / name)
    (folder / "tls").mkdir()
    Authority(folder / "tls", "ca").issue("server")
    path = folder / "routes.yaml"
    path.write_text(whole(block), encoding="utf-8")
    load(path)
