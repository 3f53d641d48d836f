"""The gateway as `gateway run` runs it, with a lie put in first, or on a bad disk.

`RELIABILITY_LIE=100ms`: the journal says that a message is stored 100 ms before it is: what the checker has to catch.

`RELIABILITY_DISK=write:EIO:37:1`: the kernel answers the 37th write to the journal's files, and no other, with EIO;
`sync:ENOSPC:5:20`: the 5th to the 24th sync. It is strace that makes it, so that nothing in the process is other than
usual; it counts each thread apart, and the thread that commits is the one that writes after the start.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway import Message
    from gateway.journal import Waiting

LIE = "RELIABILITY_LIE"
DISK = "RELIABILITY_DISK"
PROGRAM = ("-m", "tests.reliability.launch")


def lie(late_s: float) -> None:
    """Lets the journal acknowledge before it commits."""
    from adapters.sqlite import SqliteJournal
    from gateway.errors import GatewayError

    honest = SqliteJournal.append

    def append(self: SqliteJournal, route: str, message: Message, waiting: Waiting[bool]) -> None:
        loop = asyncio.get_running_loop()

        def now() -> None:
            if not waiting.done():
                waiting.set_result(True)

        def later() -> None:
            stored: asyncio.Future[bool] = loop.create_future()
            stored.add_done_callback(lambda done: done.cancelled() or done.exception())
            with suppress(GatewayError):
                honest(self, route, message, stored)

        loop.call_soon(now)
        loop.call_later(late_s, later)

    SqliteJournal.append = append  # type: ignore[method-assign]


# -- a bad disk --------------------------------------------------------------------------------------------------------

_CALLS = {"write": "pwrite64", "sync": "fdatasync,fsync"}
_TRACE = "trace"


def can_trace() -> bool:
    """Whether strace is here, and may trace."""
    if shutil.which("strace") is None:
        return False
    probe = ["strace", "-D", "-f", "-qq", "--seccomp-bpf", "-o", os.devnull, "-e", "trace=pwrite64", "true"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def refused(folder: Path) -> int:
    """How many calls of the process that was started last on this folder were answered with the error so far."""
    try:
        return (folder / _TRACE).read_text(errors="replace").count("(INJECTED)")
    except OSError:
        return 0


def _traced(case: str, config: Path) -> list[str]:
    kind, error, first, count = case.split(":")
    calls = _CALLS[kind]
    when = f"{first}..{int(first) + int(count) - 1}"
    command = ["strace", "-D", "-f", "-qq", "--seccomp-bpf", "-o", str(config.parent / _TRACE), "-e", f"trace={calls}"]
    for name in ("gateway.db", "gateway.db-wal"):
        command += ["-P", str(config.parent.resolve() / "var" / name)]
    return [*command, "-e", f"inject={calls}:error={error}:when={when}"]


def _under_trace(environment: Mapping[str, str]) -> None:
    """Becomes this program once more, under strace, which stays in the background: the process id is the same."""
    left = {name: value for name, value in environment.items() if name != DISK}
    command = [*_traced(environment[DISK], Path(sys.argv[1])), sys.executable, *PROGRAM, *sys.argv[1:]]
    os.execvpe(command[0], command, left)


def main() -> None:
    """Runs it."""
    if os.environ.get(DISK):
        _under_trace(os.environ)
    from gateway.cli import main as gateway_main

    if os.environ.get(LIE):
        lie(float(os.environ[LIE].removesuffix("ms")) / 1000)
    gateway_main(["run", *sys.argv[1:]])


if __name__ == "__main__":
    main()
