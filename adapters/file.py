"""`file`: watches a folder for files, and writes messages to files."""

from __future__ import annotations

import asyncio
import errno
import logging
import mimetypes
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, assert_never

from pydantic import Field

from adapters._folders import Mark, Stamp, append_lines, create_whole, move_into, replace_whole, stamp_of
from gateway import (
    CUT,
    JSON,
    Accepted,
    Deferred,
    Deliver,
    Duration,
    Folder,
    Host,
    Message,
    MessageError,
    PathTemplate,
    PeerError,
    Refused,
    Send,
    Settings,
    duration,
)

log = logging.getLogger("gateway.file")

T = TypeVar("T")


class Source(Settings):
    """Watches a folder: each file becomes a message, and moves to `done` (or `failed`) once the outcome is known.

    A file is read when it did not change for `settle`; names that begin with a dot or end in `.part` or `.tmp` are
    left alone, so that who writes may rename when it is complete. Files go in the order of their names. One that is
    written anew before it could move stays, and becomes a message of its own. One that can't be read stays, too: the
    others go on, and the source is down with its name. A symbolic link stays, and is logged once.
    """

    folder: Folder = Field(description="the folder to watch; made if it is missing")
    pattern: str = Field("*", description="which names to take, such as *.xml")
    every: Duration = Field(duration("1s"), gt=0, description="time between two looks at the folder")
    settle: Duration = Field(duration("2s"), description="how long a file must be unchanged before it is read")
    done: Folder | None = Field(None, description="where files go that were accepted; default: `done` in the folder")
    failed: Folder | None = Field(None, description="where files go that were refused; default: `failed` in the folder")
    content_type: str | None = Field(None, description="what the files are; default: by the name's ending, else JSON")
    follow_links: bool = Field(
        default=False,
        description="whether symbolic links are followed: who may put one into the folder then has any file sent "
        "that the gateway may read",
    )

    @property
    def answers(self) -> bool:
        """Nobody waits: what is refused becomes a dead letter, and the file moves to `failed`."""
        return False

    @property
    def claims(self) -> tuple[str, ...]:
        """No other route may watch the same folder."""
        return (f"folder {self.folder}",)

    async def run(self, host: Host, deliver: Deliver, ready: Callable[[], None]) -> None:
        """Watches until cancelled.

        Raises:
            PeerError: the folder can't be read or written.
        """
        seen: dict[Path, tuple[Stamp, float]] = {}
        links: set[Path] = set()
        try:
            await _to_its_end(asyncio.to_thread(self._make_folders))
            ready()
            while True:
                unread: OSError | None = None
                for path, stamp in await asyncio.to_thread(self._settled, seen, links, host):
                    try:
                        body = await asyncio.to_thread(self._read, path, stamp, host.limits.message + 1)
                    except OSError as error:  # it must not stand in the way of those behind it
                        unread = unread or error
                        continue
                    if body is not None and await self._take(path, stamp, body, host, deliver):
                        seen.pop(path, None)
                if unread is not None:
                    raise unread
                await host.clock.sleep(self.every)
        except OSError as error:
            where = self.folder.name if error.filename is None else Path(error.filename).name
            raise PeerError(f"file {where}: {error.strerror}; may this process read and write there?") from error

    def _make_folders(self) -> None:
        for folder in (self.folder, self._done, self._failed):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def _done(self) -> Path:
        return self.done or self.folder / "done"

    @property
    def _failed(self) -> Path:
        return self.failed or self.folder / "failed"

    def _settled(self, seen: dict[Path, tuple[Stamp, float]], links: set[Path], host: Host) -> list[tuple[Path, Stamp]]:
        """Files that have not changed for long enough. Logs symbolic links that are left alone, each once.

        seen: what the files were, and since when, by path. links: those of which that was said.
        """
        now_s = host.clock.monotonic()
        settled = []
        there, linked = set(), set()
        for path in sorted(self.folder.glob(self.pattern)):
            if path.name.startswith(".") or path.suffix in {".part", ".tmp"}:
                continue
            if not self.follow_links and path.is_symlink():
                linked.add(path)
                if path not in links:
                    links.add(path)
                    extra = {"route": host.route, "file": path.name, "reason": "follow_links is false"}
                    log.warning("symbolic link left alone", extra=extra)
                continue
            if not path.is_file():
                continue
            stamp = stamp_of(path)
            if stamp is None:
                continue
            there.add(path)
            before, since_s = seen.get(path, (None, now_s))
            if stamp != before:
                seen[path] = stamp, now_s
                since_s = now_s
            if now_s - since_s >= self.settle:
                settled.append((path, stamp))
        for gone in set(seen) - there:
            del seen[gone]
        links &= linked
        return settled

    def _read(self, path: Path, stamp: Stamp, most: int) -> bytes | None:
        """What is in a file; None: it is not the one that was looked at any more, or changed while it was read.

        Raises:
            OSError: it can't be read; with its name.
        """
        try:
            with open(path, "rb", opener=None if self.follow_links else _open_no_link) as file:
                body = file.read(most)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP and not self.follow_links:  # it has become a link since it was looked at
                return None
            error.filename = str(path)  # a failed read does not say it
            raise
        return body if stamp_of(path) == stamp else None

    async def _take(self, path: Path, stamp: Stamp, body: bytes, host: Host, deliver: Deliver) -> bool:
        """Whether the file was taken; not when it has changed since it was read: then it has to settle anew."""
        guessed = self.content_type or mimetypes.guess_type(path.name)[0] or JSON
        transport: dict[str, Any] = {"file": path.name, "folder": self.folder.name}
        if len(body) > host.limits.message:
            transport |= {CUT: True}
        message = Message(raw=body, content_type=guessed, subject=path.name, transport=transport)
        while True:
            outcome = await deliver(message)
            match outcome:
                case Accepted():
                    return await self._move(path, stamp, self._done, host)
                case Refused():
                    return await self._move(path, stamp, self._failed, host)
                case Deferred():
                    await host.clock.sleep(outcome.wait_s)
                case other:
                    assert_never(other)

    async def _move(self, path: Path, stamp: Stamp, folder: Path, host: Host) -> bool:
        """Moves a file that is settled. While that fails we wait here: read again, it would be sent again.

        False: it was written anew meanwhile. It stays, as what is in it now was not read.
        """
        while True:
            try:
                return await _to_its_end(asyncio.to_thread(move_into, path, folder, stamp)) is not None
            except FileNotFoundError:  # somebody else took it away
                return True
            except OSError as error:
                log.warning(
                    "file not moved",
                    extra={"route": host.route, "file": path.name, "reason": error.strerror or str(error)},
                )
                await host.clock.sleep(self.every)


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))  # Windows has none


async def _to_its_end(moving: Coroutine[Any, Any, T]) -> T:
    """Waits also when cancelled: a thread goes on, and who comes next must find the folder as it stays."""
    task = asyncio.ensure_future(moving)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


class Sink(Settings):
    """Writes messages to files: one line each at the end of one file, or a file each.

    Delivered: when the file is synced to the disk, and its folder too when the file is new. With `mode: create` each
    file carries the stable id as its attribute `user.gateway.id`, so that a message that is sent again after a crash
    is delivered when its file is there, with the same bytes; any other file of its name is refused. Where the file
    system keeps no attributes, a file of the same bytes that is no older than the message is taken for its own.
    """

    path: PathTemplate = Field(description="the file, relative to the file that names it; values hold no separator")
    mode: Literal["append", "create", "replace"] = Field(
        "append",
        description="append a line; create a file for each message and refuse a name that another has; or replace it",
    )

    @property
    def replies(self) -> bool:
        """It has no reply to give."""
        return False

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Send]:
        """A send that writes outside of the event loop; lines that come together are synced together."""
        lines = _Lines()

        async def send(message: Message) -> None:
            path, body = Path(self.path(message)), message.body
            if self.mode == "replace":
                await asyncio.to_thread(replace_whole, path, body)
            elif self.mode == "create":
                mark = Mark(f"{message.id}.{host.target}", message.time_s)
                await asyncio.to_thread(create_whole, path, body, mark)
            elif b"\n" in body.rstrip(b"\n"):
                raise MessageError(
                    f"file {path.name}: the body has line ends, and append writes one line a message; "
                    "format it on one line, or use mode: create"
                )
            else:
                await lines.append(path, body.rstrip(b"\n") + b"\n")

        yield send


class _Lines:
    """Lines on their way to files: one write at a time, and what comes meanwhile goes with the next."""

    def __init__(self) -> None:
        self._waiting: dict[Path, list[tuple[bytes, asyncio.Future[None]]]] = {}
        self._writing = False

    async def append(self, path: Path, line: bytes) -> None:
        """Returns once the line is synced. Raises PeerError: the disk did not take it."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(path, []).append((line, written))
        self._write_next()
        await written

    def _write_next(self) -> None:
        if self._writing or not self._waiting:
            return
        path = next(iter(self._waiting))
        batch = self._waiting.pop(path)
        self._writing = True
        task = asyncio.get_running_loop().run_in_executor(None, _appended, path, b"".join(line for line, _ in batch))
        # a callback, not an await: the sender who began this may be gone when it is done
        task.add_done_callback(lambda done: self._written(batch, done))

    def _written(self, batch: list[tuple[bytes, asyncio.Future[None]]], done: asyncio.Future[PeerError | None]) -> None:
        self._writing = False
        error = PeerError("file: the write was cancelled") if done.cancelled() else done.result()
        for _, written in batch:
            if written.done():
                continue
            if error is None:
                written.set_result(None)
            else:
                written.set_exception(error)
        self._write_next()


def _appended(path: Path, lines: bytes) -> PeerError | None:
    try:
        append_lines(path, lines)
    except PeerError as error:
        return error
    return None
