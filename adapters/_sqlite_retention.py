"""What the journal's writer does between commits: writes the log back, keeps room, removes what is old."""

# ruff: noqa: S608  what is put into statements is question marks and words of ours
from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path

import apsw

from adapters._sqlite_records import DEAD, PENDING
from adapters._sqlite_tables import CHUNK, ZONE_BITS, Tables
from gateway.failpoints import failpoint

log = logging.getLogger("gateway.journal")

CHECKPOINT_PAGES = 1000
"""The log is written back when it has so many pages more (4 MiB): a commit that waits for that waits about 5 ms."""
PAGE_BYTES = 4096
SLICE = 256
"""How many messages are looked at, or removed, in one small transaction."""
LARGE_SLICE = 2048
"""The same while the journal is over its size: more than one commit can bring."""
EVERY = 8
"""A busy writer removes a slice after each of so many commits."""
LOOK_S = 1.0
"""How often room is looked at."""
PASS_S = 60.0
"""How long nothing is removed for its age after a pass that came to its end."""
VACUUM_PAGES = 256
"""How many pages are given back to the disk at once."""
RESERVE_PART = 0.05
"""Of the disk: kept free, unless `reserve_bytes` is more."""


class Upkeep:
    """The housekeeping of one journal, in the writer's thread. `full` may be read by others."""

    def __init__(self, tables: Tables, path: Path, *, age_s: float, size_bytes: int, reserve_bytes: int) -> None:
        self._tables = tables
        self._path = path
        self._age_s = age_s
        self._size_bytes = size_bytes
        self._reserve_bytes = reserve_bytes
        self.full: str | None = None
        """Why nothing new is accepted; None: there is room."""
        self._looked_at = 0.0
        self._resume_at = 0.0
        self._commits = 0
        self._too_large = False
        self._excess = 0
        """How many bytes must go while it is too large."""
        self._vacuuming = False
        self._from = 0
        """No message before this one could be removed when retention last looked."""
        self._at: int | None = None
        """How far this pass has come; None: it is over."""
        self._first_young: int | None = None
        self._pass_over_at = -PASS_S
        self._log_pages = 0
        self._checkpoint_at = CHECKPOINT_PAGES
        tables.connection.set_wal_hook(self._on_log)
        self.look_at_room()

    def _on_log(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        if pages < self._log_pages:  # it was written back as a whole and begins again
            self._checkpoint_at = CHECKPOINT_PAGES
        self._log_pages = pages
        return apsw.SQLITE_OK

    def wait_s(self, idle_s: float) -> float:
        """How long the writer may sleep: not at all while there is something to remove."""
        return 0.0 if self._busy() else idle_s

    def after_commit(self, *, idle: bool) -> None:
        """One small piece of what is to do."""
        busy = self._busy()
        if idle and self._tables.now.was_set():
            self._note_clock()
        if self._log_pages >= self._checkpoint_at or (idle and not busy and self._log_pages):
            self.checkpoint()
        if time.monotonic() - self._looked_at >= LOOK_S:
            self.look_at_room()
        self._commits += 1
        if busy and (idle or self._too_large or self._commits % EVERY == 0):
            self._work()

    def _note_clock(self) -> None:
        """Notes what the machine's clock shows now, so that the next start knows how much time has gone by."""
        self._tables.execute("BEGIN IMMEDIATE")
        self._tables.close_books()
        self._tables.execute("COMMIT")
        self._tables.committed()

    def checkpoint(self, mode: int = apsw.SQLITE_CHECKPOINT_PASSIVE) -> None:
        """Writes the log back into the file."""
        failpoint("journal.checkpoint")
        self._checkpoint_at = self._log_pages + CHECKPOINT_PAGES
        try:
            self._tables.connection.wal_checkpoint(mode=mode)
        except apsw.BusyError:  # somebody reads what is in the log: later
            return
        self._log_pages = 0 if mode == apsw.SQLITE_CHECKPOINT_TRUNCATE else self._log_pages

    def pause(self) -> None:
        """There was no room to remove anything: not again for a while."""
        self._resume_at = time.monotonic() + LOOK_S
        self._at = None
        self.look_at_room()

    # -- room --------------------------------------------------------------------------------------------------------

    def look_at_room(self) -> None:
        """Finds out whether there is room on the disk and within the limit of size, and logs when that changes."""
        had_room = self.full is None
        self._measure()
        if had_room and self.full is not None:  # senders hear "not now", and not why
            log.warning("nothing more is stored", extra={"reason": self.full})
        elif not had_room and self.full is None:
            log.info("messages are stored again")

    def _measure(self) -> None:
        self._looked_at = time.monotonic()
        disk = os.statvfs(self._path.parent)
        free = disk.f_bavail * disk.f_frsize
        reserve = max(self._reserve_bytes, int(disk.f_blocks * disk.f_frsize * RESERVE_PART))
        pragma = self._tables.connection.pragma
        pages, unused = pragma("page_count"), pragma("freelist_count")
        self._vacuuming = unused > (0 if free < reserve else max(VACUUM_PAGES, pages // (8 if self._vacuuming else 4)))
        size = (pages - unused) * PAGE_BYTES
        was_too_large = self._too_large
        self._excess = size - int(self._size_bytes * 0.95)
        self._too_large = self._excess > 0 if was_too_large else size > self._size_bytes
        if self._too_large and not was_too_large:
            self._begin()
        elif self._too_large and self._at is None:
            self.full = (
                f"journal: messages that must be kept take {_mib(size)}, allowed are {_mib(self._size_bytes)}; "
                "deliver or discard some, or raise retention.size"
            )
            self._begin()  # something may have ended since, but not so fast
            self._resume_at = time.monotonic() + LOOK_S
        elif free < reserve:
            self.full = (
                f"journal: {_mib(free)} are free on its disk, expected at least {_mib(reserve)}; free some space"
            )
        elif not self._too_large:
            self.full = None

    # -- retention ---------------------------------------------------------------------------------------------------

    def _busy(self) -> bool:
        if time.monotonic() < self._resume_at:
            return False
        if self._at is None and self._tables.now() - self._pass_over_at >= PASS_S:
            self._begin()
        return self._at is not None or self._vacuuming

    def _begin(self) -> None:
        """Begins a pass, where the last one left something or something ended since."""
        tables = self._tables
        self._at = self._from = int(min(self._from, tables.ended_from))
        self._first_young = None
        tables.ended_from = math.inf

    def _work(self) -> None:
        if self._at is None:
            self._give_back()
            return
        tables = self._tables
        tables.execute("BEGIN IMMEDIATE")
        self._sweep(self._at, LARGE_SLICE if self._too_large else SLICE)
        tables.close_books()
        tables.execute("COMMIT")
        tables.committed()
        if self._too_large:
            self.look_at_room()

    def _give_back(self) -> None:
        """Gives some unused pages back to the disk."""
        pragma = self._tables.connection.pragma
        before = pragma("freelist_count")
        self._tables.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
        if pragma("freelist_count") >= before:
            self._resume_at = time.monotonic() + LOOK_S
        self.look_at_room()

    def _sweep(self, first: int, limit: int) -> None:
        """Looks at the next messages, removes those that may go, and finds out whether that was all."""
        tables = self._tables
        rows: list[tuple[int, int, float, int]] = tables.execute(
            "SELECT seq, state, at, length(envelope) + length(body) FROM states JOIN messages USING (seq) "
            "WHERE seq >= ? ORDER BY seq LIMIT ?",
            (first, limit),
        ).fetchall()
        now = tables.now()
        oldest = now - self._age_s
        excess = self._excess
        gone: list[int] = []
        end = first
        for seq, state, at, size in rows:
            if self._too_large and excess <= 0:
                break
            end = seq + 1
            if state in (PENDING, DEAD):
                continue
            if self._too_large or at < oldest:
                gone.append(seq)
                excess -= size
            elif self._first_young is None:
                self._first_young = seq
        self._remove(gone)
        self._at = end
        more_memos = self._forget_memos()
        more = len(rows) == limit or (bool(rows) and end <= rows[-1][0])
        if (more and (gone or self._first_young is None)) or more_memos:
            return
        self._from = end if self._first_young is None else self._first_young
        self._at = None
        self._pass_over_at = now
        tables.execute("DELETE FROM zones WHERE zone < (SELECT min(seq) FROM messages) >> ?", (ZONE_BITS,))

    def _remove(self, seqs: list[int]) -> None:
        for at in range(0, len(seqs), CHUNK):
            chunk = seqs[at : at + CHUNK]
            marks = ",".join("?" * len(chunk))
            for table in ("deliveries", "traces", "actions", "states", "messages"):
                self._tables.execute(f"DELETE FROM {table} WHERE seq IN ({marks})", chunk)

    def _forget_memos(self) -> bool:
        """Removes some memos whose window is over. Whether there may be more."""
        self._tables.execute(
            "DELETE FROM memos WHERE (scope, key) IN (SELECT scope, key FROM memos WHERE until < ? LIMIT ?)",
            (self._tables.now(), SLICE),
        )
        return self._tables.connection.changes() == SLICE


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"
