"""Processes under measurement: started on a core of their own, watched from outside through /proc."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_OPENING_S = 30.0
_ENDING_S = 15.0


class Cores:
    """Which core the measured process has, and which everything else. With one core they share it."""

    def __init__(self) -> None:
        self.all = frozenset(os.sched_getaffinity(0))
        ordered = sorted(self.all)
        self.subject = frozenset(ordered[:1])
        self.others = frozenset(ordered[1:2] or ordered)

    @property
    def shared(self) -> bool:
        """Whether there is one core only: ratios still mean something then, rates do not."""
        return len(self.all) == 1


class MeasurementError(Exception):
    """A measurement could not be made; the text says why."""


class Running:
    """A started process."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._output = output

    @property
    def output(self) -> str:
        """The end of what it wrote."""
        return self._output.read_text(errors="replace")[-2000:]

    def check(self) -> None:
        """Raises MeasurementError when it has ended by itself."""
        if self._process.poll() is not None:
            raise MeasurementError(f"{self._process.args!r} ended with {self._process.returncode}:\n{self.output}")

    def cpu_s(self) -> float:
        """Processor time used so far by all its threads, in user and system mode."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    def rss_bytes(self) -> int:
        """Memory that it holds now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE_BYTES

    def until_open(self, port: int) -> None:
        """Returns once it listens on this port of 127.0.0.1."""
        self.until(lambda: _listens(port), f"listen on port {port}")

    def until(self, holds: Callable[[], bool], what: str, within_s: float = _OPENING_S) -> None:
        """Returns once `holds`; `what` it did not do in time otherwise ends in a MeasurementError."""
        deadline = time.monotonic() + within_s
        while not holds():
            self.check()
            if time.monotonic() > deadline:
                raise MeasurementError(f"{self._process.args!r} did not {what} within {within_s:g} s:\n{self.output}")
            time.sleep(0.005)

    def kill(self) -> None:
        """kill -9, and the wait for its end."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ends it in good order, or by force when that takes too long."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_ENDING_S)
            except subprocess.TimeoutExpired:
                self.kill()


@contextmanager
def started(command: Sequence[str], cores: Collection[int], output: Path, cwd: Path | None = None) -> Iterator[Running]:
    """The process of a command, on these cores, for as long as the context lasts. What it writes goes to `output`."""
    with output.open("wb") as stream:
        process = _spawned(command, cores, stream, cwd)
    running = Running(process, output)
    try:
        yield running
    finally:
        running.stop()


def _spawned(
    command: Sequence[str], cores: Collection[int], stream: IO[bytes], cwd: Path | None
) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, cwd=cwd, env=_environment()
    )
    os.sched_setaffinity(process.pid, cores)  # its threads, which it has not made yet, will have the same
    return process


def output_of(command: Sequence[str], within_s: float) -> str:
    """Runs a command to its end, on the cores that this process has, and returns what it wrote.

    Raises:
        MeasurementError: it failed, or took longer than `within_s` seconds.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=within_s, check=False, env=_environment()
        )
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"{command[0]} took longer than {within_s:g} s") from error
    if done.returncode:
        raise MeasurementError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"[:2000])
    return done.stdout


def module(name: str, *arguments: object) -> list[str]:
    """The command that runs a module with this interpreter."""
    return [sys.executable, "-m", name, *(str(argument) for argument in arguments)]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def machine() -> str:
    """The kind of this machine, in general words."""
    info = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    model = found[1].strip() if found else "an unknown processor"
    count = len(os.sched_getaffinity(0))
    version = ".".join(str(part) for part in sys.version_info[:3])
    return f"{count} cores of {model}, Linux, Python {version}"


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)
    return {**os.environ, "PYTHONPATH": root}


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
