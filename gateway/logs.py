"""Logs as JSON lines on standard error, written by a thread, so that who reads them slowly never holds up a message."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.message import rfc3339

MAX_WAITING = 10_000
"""How many lines wait to be written; more are dropped and counted."""
FLUSH_S = 1.0
"""How long the end of the process waits for the lines that are left."""

_UNSEEN = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What JSON does not escape, and yet moves a terminal's cursor, ends a line, or turns the order of what is read."""
_ORDINARY = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, event, then the fields given as `extra`.

    Texts of peers stay in their fields, and no control character of theirs comes out as one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "time": rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update((name, value) for name, value in record.__dict__.items() if name not in _ORDINARY)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _UNSEEN.sub(_escaped, msgspec.json.encode(line, enc_hook=str).decode())


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


class LinesHandler(logging.Handler):
    """Writes lines to a file descriptor from a thread of its own. `emit` never waits; what has no room is counted."""

    def __init__(self, descriptor: int = 2, *, most: int = MAX_WAITING) -> None:
        super().__init__()
        self.dropped = 0
        """How many lines were let go."""
        self._told = 0
        self._descriptor = descriptor
        self._most = most
        self._lines: deque[str] = deque()
        self._wake = threading.Semaphore(0)
        self._written = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="log-lines", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Hands the record's line over."""
        if len(self._lines) >= self._most:
            self.dropped += 1
            return
        try:
            self._lines.append(self.format(record))
        except Exception:
            self.handleError(record)
            return
        self._written.clear()
        self._wake.release()

    def flush(self) -> None:
        """Waits until all is written, `FLUSH_S` at most."""
        if self._lines or not self._written.is_set():
            self._wake.release()
            self._written.wait(FLUSH_S)

    def close(self) -> None:
        """Ends the thread once all is written."""
        self.flush()
        self._closed = True
        self._wake.release()
        super().close()

    def _run(self) -> None:
        while not self._closed:
            self._wake.acquire()
            while self._lines:
                batch = [self._lines.popleft() for _ in range(min(len(self._lines), 256))]
                if self.dropped != self._told:
                    batch.append(self._tell())
                self._write("".join(f"{line}\n" for line in batch).encode("utf-8", "replace"))
            self._written.set()

    def _tell(self) -> str:
        count, self._told = self.dropped - self._told, self.dropped
        record = logging.makeLogRecord(
            {"name": "gateway.logs", "levelname": "WARNING", "msg": "log lines dropped", "count": count}
        )
        return self.format(record)

    def _write(self, data: bytes) -> None:
        # os.write, as a stream's lock held by a blocked thread would keep the interpreter from ending
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                with contextlib.suppress(OSError, ValueError):
                    select.select([], [self._descriptor], [], 1.0)
            except OSError:
                self.dropped += data.count(b"\n")
                self._told = self.dropped  # nobody is there to be told
                return


@contextlib.contextmanager
def logging_as_json(level: int = logging.INFO) -> Iterator[LinesHandler]:
    """Sends all logs of the process to standard error as JSON lines; libraries only from warnings on.

    When the context ends the lines that are left have been written, and logging is as it was: who runs the command
    within a process of its own, a test say, gets no line more.
    """
    handler = LinesHandler()
    handler.setFormatter(JsonLines())
    root, gateway = logging.getLogger(), logging.getLogger("gateway")
    before = list(root.handlers), root.level, gateway.level
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    gateway.setLevel(level)
    try:
        yield handler
    finally:
        handler.close()
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        gateway.setLevel(before[2])


def lines_dropped() -> int:
    """How many log lines this process let go so far."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, LinesHandler))


def flush_logs() -> None:
    """Gives the lines that are left a second to be written."""
    for handler in logging.getLogger().handlers:
        handler.flush()
