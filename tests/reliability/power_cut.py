"""Cuts the power under the journal: a model of the disk that loses, reorders and tears what was not synced.

The journal works on a disk that writes down every write, sync, truncation and removal. Then, for random moments, what
could be on the platter is put together: all that was synced before, and of the rest some writes, in any order, some of
them torn at 512 bytes. On that the journal is opened again: every acknowledged message must be there.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import apsw

from adapters import _sqlite_retention as retention
from adapters import _sqlite_schema as schema
from adapters._sqlite_records import CODES, STATES, id_text
from adapters.sqlite import open_journal
from gateway import Message
from gateway.clock import SystemClock
from gateway.errors import ConfigError
from gateway.journal import Attempt, Attempted, Delivery, Expanded, Finished, Journal, JournalBrokenError
from tests.memory_journal import append

SECTOR = 512
BASE = "unix"


@dataclass
class Event:
    """Something that was asked of the disk."""

    file: str
    kind: str
    """`write`, `sync`, `truncate` or `delete`."""
    at: int = 0
    data: bytes = b""


class _File(apsw.VFSFile):
    def __init__(self, events: list[Event], name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = Path(path).name if path else None
        self._events = events
        super().__init__(BASE, name, flags)

    def _note(self, event: Event) -> None:
        if self._name is not None:
            self._events.append(event)

    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self._note(Event(self._name or "", "write", offset, bytes(data)))

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._note(Event(self._name or "", "sync"))

    def xTruncate(self, size: int) -> None:
        super().xTruncate(size)
        self._note(Event(self._name or "", "truncate", size))


class _Disk(apsw.VFS):
    def __init__(self, events: list[Event]) -> None:
        self._events = events
        super().__init__("recording", base=BASE, makedefault=True)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> _File:
        return _File(self._events, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        self._events.append(Event(Path(filename).name, "delete"))
        if syncdir:
            self._events.append(Event(Path(filename).name, "sync"))


@contextmanager
def _recorded() -> Iterator[list[Event]]:
    events: list[Event] = []
    disk = _Disk(events)
    try:
        yield events
    finally:
        disk.unregister()
        apsw.set_default_vfs(BASE)


# -- what happens before the cut ---------------------------------------------------------------------------------------


@dataclass
class Promise:
    """From this event on, this is promised of a message."""

    since: int
    id: str
    state: str


async def _work(journal: Journal, luck: random.Random, events: list[Event], count: int) -> list[Promise]:
    promises: list[Promise] = []

    async def end(message: Message) -> None:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        one = Finished(message.id, "delivered", (), (Attempt("a", 1, 0.0, 0.1),))
        journal.finish("r", [one], lambda: ended.set_result(None))
        await ended

    async def store(name: int, *, usual: bool) -> None:
        message = Message(raw=luck.randbytes(luck.choice((50, 500, 6000))), key=str(name))
        await append(journal, "r", message)
        promises.append(Promise(len(events), message.id, "stored"))
        fate = luck.random()
        if fate < 0.5:
            await end(message)
            promises.append(Promise(len(events), message.id, "delivered"))
        elif fate < 0.7 and not usual:
            parcel = Delivery(parent=message.id, target="a", message=message.with_body(b"changed"), key=str(name))
            await journal.advance("r", [Expanded(message.id, [parcel])])
            promises.append(Promise(len(events), message.id, "pending"))
            if fate < 0.6:
                await journal.advance("r", [Attempted(message.id, message.id, "a", "dead", 1)])
                promises.append(Promise(len(events), message.id, "dead"))

    async def caller(name: int) -> None:
        for number in range(count):  # where nothing else happens the commits are quick
            await store(name, usual=number >= count // 2)

    await asyncio.gather(*(caller(name) for name in range(6)))
    return promises


# -- the cut -----------------------------------------------------------------------------------------------------------


@dataclass
class _Platter:
    """A file: what is on it for sure, and what was asked since."""

    content: bytearray = field(default_factory=bytearray)
    named: bool = False
    """Its name is in the folder for sure."""
    since: list[Event] = field(default_factory=list)


def _platters(events: list[Event]) -> dict[str, _Platter]:
    platters: dict[str, _Platter] = {}
    for event in events:
        platter = platters.setdefault(event.file, _Platter())
        if event.kind == "sync":
            if not platter.named:
                _sync_folder(platters)
            _sync(platter)
        else:
            platter.since.append(event)
    return platters


def _sync(platter: _Platter) -> None:
    for event in platter.since:
        _apply(platter, event)
    platter.named = not platter.since or platter.since[-1].kind != "delete"
    platter.since = []


def _sync_folder(platters: dict[str, _Platter]) -> None:
    """The first sync of a new file syncs its folder, too: from then on what was removed stays removed."""
    for platter in platters.values():
        if platter.since and platter.since[-1].kind == "delete":
            _sync(platter)


def _apply(platter: _Platter, event: Event) -> None:
    content = platter.content
    if event.kind == "truncate":
        del content[event.at :]
    elif event.kind == "delete":
        content.clear()
        platter.named = False
    else:
        content.extend(bytes(max(0, event.at - len(content))))
        content[event.at : event.at + len(event.data)] = event.data


def _torn(event: Event, luck: random.Random) -> Iterator[Event]:
    for at in range(0, len(event.data), SECTOR):
        if luck.random() < 0.5:
            yield Event(event.file, "write", event.at + at, event.data[at : at + SECTOR])


def _cut(events: list[Event], folder: Path, luck: random.Random) -> None:
    """Puts into the folder what could be there after the power went."""
    for name, platter in _platters(events).items():
        kept = [event for event in platter.since if luck.random() < luck.choice((0.0, 0.5, 1.0))]
        if luck.random() < 0.5:
            luck.shuffle(kept)
        for event in kept:
            if event.kind == "write" and luck.random() < 0.3:
                for part in _torn(event, luck):
                    _apply(platter, part)
            else:
                _apply(platter, event)
        if platter.named or (platter.content and luck.random() < 0.7):
            (folder / name).write_bytes(platter.content)


# -- what is left ------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What was found, over all moments."""

    moments: int
    promised: int = 0
    """How many promises were looked after."""
    lost: int = 0
    """How many were broken."""
    damaged: list[str] = field(default_factory=list)
    """What the integrity check or the journal's own books said."""

    @property
    def good(self) -> bool:
        return not self.lost and not self.damaged


def _state_of(connection: apsw.Connection) -> dict[str, str]:
    rows = connection.execute("SELECT m.id, s.state FROM messages m LEFT JOIN states s USING (seq)")
    return {id_text(key): STATES[state or 0] for key, state in rows}


async def _judge(folder: Path, promises: list[Promise], result: Result) -> None:
    try:
        async with open_journal(
            folder, age_s=1e9, size_bytes=1 << 40, reserve_bytes=0, clock=SystemClock(), on_broken=result.damaged.append
        ) as journal:
            books = dict(journal.counts().get("r", {}))
            works = await journal.stored("r", [], 100_000, 1 << 30)
    except (ConfigError, JournalBrokenError) as error:
        result.damaged.append(str(error))
        result.lost += len(promises)
        return
    connection = apsw.Connection(str(folder / schema.FILE))
    (said,) = connection.execute("PRAGMA integrity_check").get.splitlines()[:1]
    states = _state_of(connection)
    connection.close()
    if said != "ok":
        result.damaged.append(said)
    counted = {state: sum(one == state for one in states.values()) for state in books}
    if counted != books or len(works) != counted.get("stored", 0):
        result.damaged.append(f"books {books}, found {counted}, given out {len(works)}")
    last: dict[str, str] = {}
    for promise in promises:
        last[promise.id] = promise.state
    result.promised += len(last)
    result.lost += sum(name not in states or CODES[states[name]] < CODES[state] for name, state in last.items())


def check(moments: int, seed: int, synchronous: str = "FULL") -> Result:
    """Cuts the power at so many random moments of one run, and looks at what is left after each.

    synchronous: `OFF` is a control that lies: it must be caught.
    """
    return asyncio.run(_check(moments, seed, synchronous))


async def _check(moments: int, seed: int, synchronous: str) -> Result:
    luck = random.Random(seed)
    result = Result(moments)
    with (
        tempfile.TemporaryDirectory() as place,
        patch.object(schema, "SYNCHRONOUS", synchronous),
        patch.object(retention, "CHECKPOINT_PAGES", 40),
    ):
        folder = Path(place)
        with _recorded() as events:
            async with open_journal(
                folder / "run",
                age_s=1e9,
                size_bytes=1 << 40,
                reserve_bytes=0,
                clock=SystemClock(),
                on_broken=result.damaged.append,
            ) as journal:
                began = len(events)
                promises = await _work(journal, luck, events, 40)
        for moment in range(moments):
            at = luck.randrange(began, len(events) + 1)
            left = folder / f"left{moment}"
            left.mkdir()
            _cut(events[:at], left, luck)
            await _judge(left, [promise for promise in promises if promise.since <= at], result)
    return result


def main() -> None:
    """Prints what 500 moments show, and that the control is caught."""
    for synchronous in ("FULL", "OFF"):
        result = check(500, 1, synchronous)
        sys.stdout.write(
            f"synchronous={synchronous}: {result.moments} cuts, {result.promised} promises, {result.lost} lost, "
            f"{len(result.damaged)} damaged\n"
        )


if __name__ == "__main__":
    main()
