"""The journal's file: where it lies, who has it, what its tables are, and how an older one becomes a newer one."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import apsw

from gateway.errors import ConfigError

log = logging.getLogger("gateway.journal")

FILE = "gateway.db"
LOCK = "gateway.lock"
SYNCHRONOUS = "FULL"
APPLICATION = 0x47574A31
"""`application_id` of our files: GWJ1."""
CHECK_S = 0.5
"""How long opening may look for broken pages: all of a small journal, a part of a large one."""
WRITER_CACHE_KIB = 32 * 1024
READER_CACHE_KIB = 4 * 1024

# One row per message that never changes but for its turn (its place in the queue, its own number unless replayed) and
# what else a replay sets.
# `stored` are those whose steps are not finished; all others have a row in `states`. Nothing of a delivered message
# is in any index but that of the ids, so that millions of them cost nothing.
_TABLES_1 = """
CREATE TABLE routes (route INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE counts (route INTEGER, state INTEGER, n INTEGER NOT NULL, PRIMARY KEY (route, state)) WITHOUT ROWID;
CREATE TABLE messages (
  seq INTEGER PRIMARY KEY, route INTEGER NOT NULL, urgency INTEGER NOT NULL, turn INTEGER, crc INTEGER NOT NULL,
  received REAL NOT NULL, id NOT NULL, correlation TEXT, envelope BLOB NOT NULL, body BLOB NOT NULL);
CREATE UNIQUE INDEX messages_id ON messages (id);
CREATE INDEX messages_correlation ON messages (correlation) WHERE correlation IS NOT NULL;
CREATE TABLE stored (
  route INTEGER, urgency INTEGER, turn INTEGER, seq INTEGER NOT NULL, claims INTEGER NOT NULL,
  PRIMARY KEY (route, urgency, turn)) WITHOUT ROWID;
CREATE TABLE states (
  seq INTEGER PRIMARY KEY, route INTEGER NOT NULL, state INTEGER NOT NULL, at REAL NOT NULL, trace BLOB,
  open INTEGER, received REAL, kind TEXT, reason BLOB, search TEXT);
CREATE INDEX states_state ON states (state) WHERE state <> 2;
CREATE INDEX states_route ON states (route, state) WHERE state <> 2;
CREATE TABLE deliveries (
  n INTEGER PRIMARY KEY, seq INTEGER NOT NULL, route INTEGER NOT NULL, state INTEGER NOT NULL, turn INTEGER NOT NULL,
  target TEXT NOT NULL, child, lane TEXT, due_at REAL, attempts INTEGER NOT NULL, claims INTEGER NOT NULL,
  crc INTEGER NOT NULL, reason BLOB, envelope BLOB, body BLOB);
CREATE INDEX deliveries_seq ON deliveries (seq, target, child);
CREATE INDEX deliveries_child ON deliveries (child) WHERE child IS NOT NULL;
CREATE INDEX deliveries_due ON deliveries (route, due_at, turn) WHERE state = 1 AND due_at IS NOT NULL;
CREATE INDEX deliveries_lane ON deliveries (route, target, lane, turn) WHERE state = 1 AND lane IS NOT NULL;
CREATE TABLE traces (n INTEGER PRIMARY KEY, seq INTEGER NOT NULL, trace BLOB NOT NULL);
CREATE INDEX traces_seq ON traces (seq);
CREATE TABLE actions (n INTEGER PRIMARY KEY, seq INTEGER NOT NULL, line TEXT NOT NULL);
CREATE INDEX actions_seq ON actions (seq);
CREATE TABLE zones (zone INTEGER PRIMARY KEY, low REAL NOT NULL, high REAL NOT NULL);
CREATE TABLE memos (
  scope TEXT, key TEXT, value TEXT NOT NULL, until REAL NOT NULL, PRIMARY KEY (scope, key)) WITHOUT ROWID;
CREATE INDEX memos_until ON memos (until);
"""
# `since`: journal time from which a message's age counts. `again`: how often it was replayed after it had been
# delivered; NULL in `messages`: it was never replayed. `only`: the one target that it was last replayed to from its
# steps on; then its deliveries are not all that it ever had. `n`: memos of one scope in the order in which they came.
_TABLES_2 = """
ALTER TABLE messages ADD COLUMN since REAL;
ALTER TABLE messages ADD COLUMN again INTEGER;
ALTER TABLE messages ADD COLUMN only TEXT;
ALTER TABLE deliveries ADD COLUMN again INTEGER NOT NULL DEFAULT 0;
ALTER TABLE memos ADD COLUMN n INTEGER;
UPDATE memos SET n = numbered.n FROM
  (SELECT scope, key, row_number() OVER (PARTITION BY scope ORDER BY until) AS n FROM memos) numbered
  WHERE memos.scope = numbered.scope AND memos.key = numbered.key;
CREATE INDEX memos_n ON memos (scope, n);
"""
MIGRATIONS = (_TABLES_1, _TABLES_2)
"""What makes version n + 1 of version n."""
VERSION = len(MIGRATIONS)

# The first words of what SQLite's own check says of broken pages, as opposed to what a flipped record looks like.
_BROKEN_PAGE = re.compile(r"Tree |Page |Freelist|Main freelist|Rowid |btree|Multiple uses|invalid page|malformed")


def check_version(version: str) -> None:
    """Makes sure that this SQLite can't corrupt a log that two connections use.

    Raises:
        ConfigError: it can.
    Source: SQLite release notes, 3.51.3.
    """
    numbers = tuple(int(part) for part in version.split(".")[:3])
    if (3, 7, 0) <= numbers < (3, 51, 3):
        raise ConfigError(
            f"journal: SQLite is {version}, expected 3.51.3 or newer: older ones can corrupt a journal that is read "
            "and written at once; install apsw 3.51.3 or newer from a wheel, which brings its own"
        )


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """The folder, for this process alone.

    Raises:
        ConfigError: another process has it, or it can't be written.
    """
    with _plain_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise ConfigError(
                f"journal: {folder} is in use by process {holder}; stop it, or give this one a data folder of its own"
            ) from None
        with _plain_errors(folder):
            os.fchmod(lock, 0o600)
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


@contextmanager
def _plain_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(_os_sentence(folder, error)) from error


def _os_sentence(folder: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"journal: the disk of {folder} is full; make room and start again"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"journal: {folder} can't be written ({error.strerror}); make it writable, or choose another data folder"
    return f"journal: {folder} can't be used: {error.strerror}; choose another data folder"


def opened(path: Path) -> apsw.Connection:
    """The connection that writes and checkpoints, to a file that has the tables of this version.

    Raises:
        ConfigError: it can't be read or written, is damaged, or of a newer version.
    """
    folder = path.parent
    with _plain_errors(folder):
        _make_file(path)
    with plain(path), ExitStack() as stack:
        connection = connect(path, WRITER_CACHE_KIB)
        stack.callback(connection.close)
        version = _version(connection, path)
        if version:
            _look_for_broken_pages(connection, path)
        _migrate(connection, version)
        stack.pop_all()
        return connection


@contextmanager
def plain(path: Path) -> Iterator[None]:
    """What goes wrong with the file while it is opened, as sentences.

    Raises:
        ConfigError: something did.
    """
    try:
        yield
    except apsw.Error as error:
        raise ConfigError(_sqlite_sentence(path, error)) from error


def _make_file(path: Path) -> None:
    made = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
    if made:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def connect(path: Path, cache_kib: int, *, reads_only: bool = False) -> apsw.Connection:
    """A connection to the file. Only one may write; the others read."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=400)
    connection.set_busy_timeout(5000)
    pragma = connection.pragma
    pragma("mmap_size", 0)
    pragma("cache_size", -cache_kib)
    pragma("temp_store", "memory")
    if reads_only:
        pragma("query_only", 1)
        return connection
    if not pragma("page_count"):
        pragma("auto_vacuum", "INCREMENTAL")
    pragma("journal_mode", "wal")
    pragma("synchronous", SYNCHRONOUS)
    pragma("wal_autocheckpoint", 0)
    pragma("journal_size_limit", 64 << 20)
    pragma("foreign_keys", 0)
    return connection


def close(connection: apsw.Connection) -> None:
    """Closes; what can't be written back now is in the log, and is when it is opened again."""
    try:
        connection.close()
    except apsw.Error as error:
        log.warning("the journal was not written back at its end", extra={"reason": str(error)})


def _version(connection: apsw.Connection, path: Path) -> int:
    version: int = connection.pragma("user_version")
    application = connection.pragma("application_id")
    if version > VERSION:
        raise ConfigError(
            f"journal: {path} is of version {version}, this gateway knows versions up to {VERSION}; "
            "run the newer gateway that made it, or another data folder"
        )
    if application not in (0, APPLICATION) or (version and not application):
        raise ConfigError(
            f"journal: {path} is an SQLite file of another program; move it away, or choose another data folder"
        )
    return version


def _migrate(connection: apsw.Connection, version: int) -> None:
    for number in range(version, VERSION):
        with connection:
            connection.execute(MIGRATIONS[number]).fetchall()
            connection.pragma("user_version", number + 1)
            connection.pragma("application_id", APPLICATION)


def _look_for_broken_pages(connection: apsw.Connection, path: Path) -> None:
    deadline = time.monotonic() + CHECK_S
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 2000)
    found: list[Any] = []
    try:
        found = connection.execute("PRAGMA quick_check(5)").fetchall()
    except apsw.InterruptError:
        return
    finally:
        connection.set_progress_handler(None)
    broken = [text for (row,) in found for text in str(row).splitlines() if _BROKEN_PAGE.match(text)]
    if broken:
        raise ConfigError(_damaged(path, broken[0]))


def _damaged(path: Path, what: str) -> str:
    return (
        f"journal: {path} is damaged ({what}); nothing was changed: move it away together with its -wal file and "
        "restore it from a copy, or start with an empty one"
    )


def _sqlite_sentence(path: Path, error: apsw.Error) -> str:
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return _damaged(path, str(error))
    if isinstance(error, apsw.FullError) or no_room(error):
        return f"journal: the disk of {path.parent} is full; make room and start again"
    if isinstance(error, apsw.ReadOnlyError | apsw.CantOpenError | apsw.PermissionsError):
        return f"journal: {path} can't be written ({error}); make it and its folder writable for this user"
    if isinstance(error, apsw.BusyError):
        return f"journal: {path} is locked by another program; close it and start again"
    return f"journal: {path} can't be opened: {error}; is the disk well?"


def no_room(error: BaseException) -> bool:
    """Whether SQLite failed for lack of space: in its files, or in the index of its log that lies beside them."""
    if isinstance(error, apsw.FullError):
        return True
    extended = getattr(error, "extendedresult", 0)
    return isinstance(error, apsw.IOError) and extended in (apsw.SQLITE_IOERR_SHMSIZE, apsw.SQLITE_IOERR_SHMMAP)
