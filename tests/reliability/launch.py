"""The gateway as `gateway run` runs it, with a lie or a bad disk put in first: what the checker has to catch.

`RELIABILITY_LIE=100ms`: the journal says that a message is stored 100 ms before it is. `RELIABILITY_DISK=write:EIO:37:1`:
the 37th write to the journal's files fails, and no other; `sync:ENOSPC:5:20`: the 5th to the 24th sync.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import apsw

LIE = "RELIABILITY_LIE"
DISK = "RELIABILITY_DISK"
PROGRAM = ("-m", "tests.reliability.launch")


def lie(late_s: float) -> None:
    """Lets the journal acknowledge before it commits."""
    from adapters.sqlite import SqliteJournal

    honest = SqliteJournal.append
    late: set[asyncio.Task[Any]] = set()

    async def append(self: SqliteJournal, route: str, message: Any) -> bool:
        async def later() -> None:
            await asyncio.sleep(late_s)
            await honest(self, route, message)

        task = asyncio.create_task(later())
        late.add(task)
        task.add_done_callback(late.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return True

    SqliteJournal.append = append  # type: ignore[method-assign]


class _Trouble:
    """Counts what is asked of the disk, and when to refuse."""

    def __init__(self, text: str) -> None:
        self.kind, error, first, count = text.split(":")
        self.error = error
        self.range = range(int(first), int(first) + int(count))
        self.seen = 0

    def meets(self, kind: str) -> None:
        if kind != self.kind:
            return
        self.seen += 1
        if self.seen in self.range:
            if self.error == "ENOSPC":
                raise apsw.FullError("no space left on device")
            raise apsw.IOError("input/output error")


class _File(apsw.VFSFile):
    def __init__(self, trouble: _Trouble, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._trouble = trouble
        super().__init__("unix", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._trouble.meets("write")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        self._trouble.meets("sync")
        super().xSync(flags)


class _Disk(apsw.VFS):
    def __init__(self, trouble: _Trouble) -> None:
        self._trouble = trouble
        super().__init__("trouble", "unix", makedefault=True)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> _File:
        return _File(self._trouble, name, flags)


def main() -> None:
    """Runs it."""
    from gateway.cli import main as gateway_main

    if os.environ.get(LIE):
        lie(float(os.environ[LIE].removesuffix("ms")) / 1000)
    disk = _Disk(_Trouble(os.environ[DISK])) if os.environ.get(DISK) else None
    try:
        gateway_main(["run", *sys.argv[1:]])
    finally:
        del disk


if __name__ == "__main__":
    main()
