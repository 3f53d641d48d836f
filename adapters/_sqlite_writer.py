"""The one thread that writes the journal: takes what waits, applies it in one transaction, and says that it is durable.

Whoever waits is woken by one call into the loop per commit. What happens on a full disk and on a broken one is decided
here and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import apsw

from adapters._sqlite_arrivals import Arrivals
from adapters._sqlite_changes import apply
from adapters._sqlite_ops import APPEND, CHANGES, END, Op
from adapters._sqlite_quick import Quick
from adapters._sqlite_retention import Upkeep
from adapters._sqlite_schema import no_room
from adapters._sqlite_tables import End, Tables
from gateway.failpoints import ARMED, IN_TRANSACTION, failpoint
from gateway.journal import JournalBrokenError, JournalFullError

log = logging.getLogger("gateway.journal")

MAX_OPS = 1024
MAX_BYTES = 8 << 20
"""What one transaction takes at most, unless a single operation is larger."""
AGAIN_S = 0.25
"""How long changes wait that found no room before they are tried again."""
LATER_S = 0.004
"""How long ends of messages wait for something that somebody waits for, to be written along with it: a commit that
brings nothing but ends would keep the next messages waiting. After a crash they are sent again, as at any commit."""
MANY_ENDS = 256
"""So many ends are written at once."""
GIVE_WAY_S = 0.0005
"""How long the loop waits at most for the writer to begin: else it would keep the interpreter from it for far longer,
and the two would take turns instead of working at the same time."""
IDLE_S = 1.0
"""How often an idle writer looks after room and retention."""


class Writer:
    """Runs until `close`. `put` may be called from the loop alone."""

    def __init__(self, tables: Tables, upkeep: Upkeep, on_broken: Callable[[str], None]) -> None:
        self._tables = tables
        self._quick = Quick(tables)
        self._upkeep = upkeep
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Op] = deque()
        self._kept: list[Op] = []
        """Changes that found no room, in their order."""
        self._wake = threading.Lock()
        self._wake.acquire()
        self._begun = threading.Lock()
        self._awaited = False
        """The loop waits until the writer has had its turn with the interpreter."""
        self._coming: dict[str, Arrivals] = {}
        """By route: what came in this turn of the loop. Only the loop's thread knows of it."""
        self._ends = 0
        """Ends that were handed over without a kick."""
        self._asleep = False
        self._kicked = False
        self._pressing = False
        """What waits is to be written now. Set by the loop, before the writer is woken; cleared by the writer."""
        self._later: asyncio.TimerHandle | None = None
        self._closing = False
        self._gone = False
        """The thread takes nothing any more."""
        self._without_room = False
        """The last commit found no room: as long as that is so, one is tried now and then."""
        self.broken: str | None = None
        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)
        self._thread.start()

    # -- on the loop -------------------------------------------------------------------------------------------------

    def put(self, op: Op) -> None:
        """Hands over. The writer is woken once per turn of the loop: what comes together is written together."""
        if self.broken is not None or self._closing:
            op.future.set_exception(JournalBrokenError(self.broken or "journal: it is closed"))
            return
        self._hand_over()
        self._waiting.append(op)
        if self._kicked:
            return
        if op.kind == END:
            self._ends += op.count
            if self._ends < MANY_ENDS:
                if self._later is None:
                    self._later = self._loop.call_later(LATER_S, self._kick)
                return
        self._kick_soon()

    def arrivals(self, route: str) -> Arrivals | None:
        """Where to add a message that came in for this route, now; None: nothing is stored any more.

        What comes in one turn of the loop is one operation: it is handed over at the end of that turn.
        """
        if self.broken is not None or self._closing:
            return None
        coming = self._coming.get(route)
        if coming is None:
            coming = self._coming[route] = Arrivals(route)
            self._kick_soon()
        elif len(coming) >= MAX_OPS or coming.size >= MAX_BYTES:
            self._hand_over()
            coming = self._coming[route] = Arrivals(route)
        return coming

    def _hand_over(self) -> None:
        for coming in self._coming.values():
            if coming.ids:  # what was to be added may have failed
                self._waiting.append(Op(APPEND, coming, coming, size=coming.size, count=len(coming)))
        self._coming.clear()

    def _kick_soon(self) -> None:
        if not self._kicked:
            self._kicked = True
            self._loop.call_soon(self._kick)

    @property
    def trouble(self) -> str | None:
        """Why nothing new is stored now; None: it is."""
        return self.broken or self._upkeep.full or (NO_ROOM if self._without_room else None)

    def check_room(self) -> None:
        """Raises JournalFullError when nothing new is accepted."""
        if self._upkeep.full is not None:
            raise JournalFullError(self._upkeep.full)

    async def close(self) -> None:
        """Writes what waits, and ends the thread."""
        self._hand_over()  # the writer ends once nothing waits
        self._closing = True
        self._kick()
        while self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 1.0)
            self._kick()
        for op in (*self._kept, *self._waiting):
            op.error = JournalBrokenError("journal: it was closed before there was room")
        self._answer([*self._kept, *self._waiting])

    def _kick(self) -> None:
        self._kicked = False
        self._ends = 0
        self._hand_over()
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._pressing = True
        if self._asleep:
            self._asleep = False
            self._begun.acquire(blocking=False)
            self._awaited = True
            if self._wake.locked():  # else it woke by itself when it was woken last, and finds this open
                self._wake.release()
            self._begun.acquire(timeout=GIVE_WAY_S)
            self._awaited = False
        if self._gone:
            self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        """The writer is gone: what was handed over to it meanwhile is told so."""
        refused = [*self._waiting]
        self._waiting.clear()
        for op in refused:
            op.error = JournalBrokenError(self.broken or "journal: it is closed")
        self._answer(refused)

    def _answer(self, ops: Sequence[Op]) -> None:
        """Resolves, in the order in which it was stored."""
        for op in ops:
            future = op.future
            if future.done():
                continue
            try:
                if op.error is not None:
                    future.set_exception(op.error)
                else:
                    future.set_result(op.result)
            except Exception:  # what it is to one must not be to the others
                log.exception("who waited for a change failed")

    def reading_failed(self, error: apsw.Error) -> None:
        """A reader met a broken disk or file. Called in its thread."""
        if not isinstance(error, apsw.BusyError | apsw.InterruptError):
            self._broken_by(error)

    # -- in the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing or self._waiting:
                batch = self._take()
                if batch or self._without_room:
                    self._write(batch)
                if self.broken is None:
                    self._look_after(idle=not batch)
        except apsw.Error as error:
            self._break(error, [])
        except Exception as error:
            log.exception("the journal's writer failed")
            self._break(error, [])
        self._gone = True
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._kick)

    def _take(self) -> list[Op]:
        waiting = self._waiting
        if not self._pressing and not self._closing:
            self._sleep()
        self._pressing = False
        batch: list[Op] = []
        size = count = 0
        while waiting and count < MAX_OPS and size < MAX_BYTES:
            op = waiting.popleft()
            size += op.size
            count += op.count
            batch.append(op)
        if waiting:
            self._pressing = True
        return batch

    def _sleep(self) -> None:
        wait_s = AGAIN_S if self._without_room else self._upkeep.wait_s(IDLE_S)
        if wait_s <= 0:
            return
        self._asleep = True
        if self._pressing or self._closing:
            # came between the look and the flag: nobody may have released the lock for it
            self._asleep = False
            self._wake.acquire(blocking=False)
            return
        if not self._wake.acquire(timeout=wait_s):
            self._asleep = False
            self._wake.acquire(blocking=False)

    def _write(self, batch: list[Op]) -> None:
        if self.broken is not None:
            self._fail(batch, JournalBrokenError(self.broken))
            return
        if self._without_room:
            batch = self._write_kept(batch)
            if not batch:
                return
        full = self._upkeep.full
        if full is not None:
            refused = [op for op in batch if op.kind == APPEND]
            if refused:
                self._fail(refused, JournalFullError(full))
                batch = [op for op in batch if op.kind != APPEND]
                if not batch:
                    return
        self._try(batch)

    def _write_kept(self, batch: list[Op]) -> list[Op]:
        """What waits for room goes first; as long as it finds none, nothing else is written."""
        kept, self._kept = self._kept, []
        self._try(kept)
        if not self._without_room:
            return batch
        self._keep(batch)
        return []

    def _keep(self, batch: Sequence[Op]) -> None:
        """There is no room: what is patient waits for some, the others are told."""
        self._kept += [op for op in batch if op.patient]
        self._fail([op for op in batch if not op.patient], JournalFullError(NO_ROOM))

    def _try(self, batch: list[Op]) -> None:
        try:
            self._commit(batch)
        except (apsw.FullError, apsw.IOError) as error:
            if not no_room(error):
                self._break(error, batch)
                return
            self._roll_back()
            self._without_room = True
            self._keep(batch)
            self._upkeep.look_at_room()
        except (apsw.CorruptError, apsw.NotADBError, apsw.BusyError, apsw.ReadOnlyError, apsw.CantOpenError) as error:
            self._break(error, batch)
        except Exception as error:
            self._roll_back()
            if len(batch) == 1 and batch[0].kind == APPEND and batch[0].count > 1:
                batch = [Op(APPEND, one, one) for one in batch[0].data.apart()]
            if len(batch) == 1:
                log.exception("the journal could not apply a change")
                batch[0].error = error
                self._tell(batch)
                return
            for op in batch:  # one of them is at fault, and the others must not suffer from it
                if self.broken is not None:
                    self._fail([op], JournalBrokenError(self.broken))
                elif self._kept:
                    self._keep([op])
                else:
                    self._try([op])

    def _commit(self, batch: list[Op]) -> None:
        if not self._commit_quickly(batch):
            self._commit_with_care(batch)
        self._without_room = False
        if ARMED:
            _pass_failpoints(batch)
        self._tell(batch)

    def _commit_quickly(self, batch: list[Op]) -> bool:
        if IN_TRANSACTION:
            return False
        appends: list[Op] = []
        ends: list[End] = []
        for op in batch:
            if op.kind == APPEND:
                appends.append(op)
            elif op.kind == END:
                ends += op.data
            else:
                return False
        if not self._quick.commit([op.data for op in appends], ends, self._give_way):
            return False
        for op in appends:
            op.result = [True] * op.count
        return True

    def _give_way(self) -> None:
        """The loop may go on: what the writer does now needs the interpreter no more."""
        if self._awaited:
            self._awaited = False
            self._begun.release()

    def _commit_with_care(self, batch: list[Op]) -> None:
        self._give_way()
        tables = self._tables
        tables.execute("BEGIN IMMEDIATE")
        appends = [op for op in batch if op.kind == APPEND]
        for op in appends:
            op.result = tables.append(op.data)
        ends: list[End] = []
        for op in batch:
            kind = op.kind
            if kind == END:
                ends += op.data
            elif kind != APPEND:
                if ends:
                    tables.finish_all(ends)
                    ends = []
                if kind == CHANGES:
                    apply(tables, op.data)
                else:
                    op.result = op.data(tables)
        if ends:
            tables.finish_all(ends)
        tables.close_books()
        failpoint("journal.inside_transaction")
        tables.execute("COMMIT")
        tables.committed()

    def _roll_back(self) -> None:
        if self._tables.connection.in_transaction:
            self._tables.execute("ROLLBACK")
        self._tables.rolled_back()

    def _look_after(self, *, idle: bool) -> None:
        """Write-back of the log, room and retention: a little after each commit, more when there is nothing to do."""
        try:
            self._upkeep.after_commit(idle=idle)
        except (apsw.FullError, apsw.IOError) as error:
            if not no_room(error):
                self._break(error, [])
                return
            self._roll_back()
            self._upkeep.pause()

    def _fail(self, ops: Sequence[Op], error: Exception) -> None:
        for op in ops:
            op.error = error
        self._tell(ops)

    def _tell(self, ops: Sequence[Op]) -> None:
        if ops:
            try:
                self._loop.call_soon_threadsafe(self._answer, ops)
            except RuntimeError:  # the loop is closed: nobody waits any more
                log.warning("the journal answered after the end", extra={"count": len(ops)})

    def _break(self, error: BaseException, batch: list[Op]) -> None:
        text = self._broken_by(error)
        failed = [*self._kept, *batch]
        self._kept = []
        while self._waiting:
            failed.append(self._waiting.popleft())
        self._fail(failed, JournalBrokenError(text))

    def _broken_by(self, error: BaseException) -> str:
        """Says so, to whoever asks from now on."""
        text = f"journal: the disk failed ({error}): nothing more is accepted; see to the disk and start again"
        if isinstance(error, apsw.CorruptError | apsw.NotADBError):
            text = f"journal: the file is damaged ({error}): nothing more is accepted; restore it from a copy"
        self.broken = text
        try:
            self._loop.call_soon_threadsafe(self._on_broken, text)
        except RuntimeError:
            log.critical("the journal is broken", extra={"reason": text})
        return text


NO_ROOM = "journal: there is no room on its disk; free some space"


def _pass_failpoints(batch: Sequence[Op]) -> None:
    if any(op.kind == APPEND for op in batch):
        failpoint("journal.committed")
    if any(op.kind != APPEND for op in batch):
        failpoint("journal.marked")
