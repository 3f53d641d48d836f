"""Measurements that are no throughput: how long a start takes, and how much an idle gateway holds."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import gateway_command
from benchmarks.processes import Cores, free_port, started

_ROOT = Path(__file__).resolve().parent.parent
_IDLE_S = 3.0


@dataclass(frozen=True)
class Found:
    """A number, and what it may be at most."""

    text: str
    value: float
    unit: str
    most: float

    @property
    def met(self) -> bool:
        """Whether it keeps to its bar."""
        return self.value <= self.most


def start_time(folder: Path, cores: Cores, seconds: float) -> list[Found]:
    """From the start of the process until its API, which opens last, listens: the best of three."""
    took = []
    for index in range(3):
        path, port = _bundled(folder / str(index))
        began_s = time.monotonic()
        with started(gateway_command(path), cores.subject, folder / "output", cwd=path.parent) as process:
            process.until_open(port)
            took.append(time.monotonic() - began_s)
    return [Found("", min(took), "s", 1.5)]


def idle_memory(folder: Path, cores: Cores, seconds: float) -> list[Found]:
    """Resident memory some seconds after the start."""
    path, port = _bundled(folder)
    with started(gateway_command(path), cores.subject, folder / "output", cwd=path.parent) as process:
        process.until_open(port)
        time.sleep(_IDLE_S)
        return [Found("", process.rss_bytes() / 2**20, "MiB", 120.0)]


def _bundled(folder: Path) -> tuple[Path, int]:
    """A copy of the bundled configuration on free ports, and the port of its API."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(_ROOT / "examples" / "schemas", folder / "examples" / "schemas", dirs_exist_ok=True)
    ports: dict[str, int] = {}

    def moved(found: re.Match[str]) -> str:
        return f"{found[1]}{ports.setdefault(found[2], free_port())}"

    text = re.sub(r"(127\.0\.0\.1:)(\d+)", moved, (_ROOT / "routes.yaml").read_text(encoding="utf-8"))
    path = folder / "routes.yaml"
    path.write_text(text, encoding="utf-8")
    return path, ports["8080"]
