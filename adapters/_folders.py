"""Files as messages: written whole or not at all, read only when nobody writes them any more."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from gateway import MessageError, PeerError

ATTRIBUTE = "user.gateway.id"
"""The extended attribute of a file that says which message it is. xattr(7)."""
COARSE_S = 2.0
"""How coarse the times of files may be."""
Stamp = tuple[int, int, int]
"""Inode, size and time of change: another one is another file, or one that was written anew."""


def append_lines(path: Path, lines: bytes) -> None:
    """Appends and syncs the file, and its folder when the file is new. Half a line is never left behind.

    Half a line that is there, after a power cut or by another's hand, is ended first: it must not spoil one of ours.

    Raises:
        PeerError: the disk did not take it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            before = os.fstat(file).st_size
            try:
                _write_all(file, b"\n" + lines if before and _ends_inside_a_line(path) else lines)
                os.fsync(file)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file, before)
                raise
        finally:
            os.close(file)
        if before == 0:
            sync_folder(path.parent)
    except OSError as error:
        raise PeerError(
            f"file {path.name}: {error.strerror}; is the disk full, or the folder not ours to write?"
        ) from error


def _ends_inside_a_line(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:  # one that we may only write to is left as it is
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
    return False


class Mark(NamedTuple):
    """Whose file it is."""

    stable_id: str
    received_s: float
    """When that message was received, in seconds since 1970."""


def replace_whole(path: Path, body: bytes) -> None:
    """Writes under another name, syncs, and renames: nobody ever sees half a file.

    Raises:
        PeerError: the disk did not take it.
    """
    with _disk_errors(path):
        with _part(path, body, None) as part:
            part.replace(path)
        sync_folder(path.parent)


def create_whole(path: Path, body: bytes, mark: Mark) -> None:
    """As `replace_whole`, under a name that is free: or that this very message has, with these bytes, from before.

    Raises:
        MessageError: there is another file of this name.
        PeerError: the disk did not take it.
    """
    with _disk_errors(path):
        made = False
        if not path.exists():
            with _part(path, body, mark) as part:
                made = _give_free_name(part, path)
        if not made and not _is_marked(path, body, mark):  # what was made may be gone again: somebody waited for it
            raise MessageError(f"file {path.name}: it is there already; use a template that gives each message its own")
        sync_folder(path.parent)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PeerError(
            f"file {path.name}: {error.strerror}; is the disk full, or the folder not ours to write?"
        ) from error


def _part_of(path: Path) -> Path:
    """Where a file is written until it is whole. Of its name no more than leaves room for the rest: 255 bytes."""
    return path.with_name(f".{path.name[:50]}.{threading.get_ident()}.part")


@contextmanager
def _part(path: Path, body: bytes, mark: Mark | None) -> Iterator[Path]:
    """A file beside `path`, with these bytes, synced; gone at the end of the context unless it was renamed."""
    part = _part_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(file, body)
            if mark is not None:
                _put_mark(file, mark)
            os.fsync(file)
        finally:
            os.close(file)
        yield part
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _give_free_name(part: Path, path: Path) -> bool:
    """Renames, unless there is a file of that name by now: unlike a rename, a link then fails. link(2)."""
    try:
        path.hardlink_to(part)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        part.rename(path)
    return True


def _put_mark(file: int, mark: Mark) -> None:
    with contextlib.suppress(OSError, AttributeError):  # a file system, or an OS, without such attributes
        os.setxattr(file, ATTRIBUTE, mark.stable_id.encode())


def _is_marked(path: Path, body: bytes, mark: Mark) -> bool:
    """Whether this file has these bytes from this message: by its attribute or, where there are none, by its time."""
    if not path.is_file() or path.stat().st_size != len(body) or path.read_bytes() != body:
        return False
    try:
        return os.getxattr(path, ATTRIBUTE) == mark.stable_id.encode()
    except AttributeError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS):
            return False
    return path.stat().st_mtime >= mark.received_s - COARSE_S


def stamp_of(path: Path) -> Stamp | None:
    """Which file this is, and as who wrote it left it; None: there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def move_into(path: Path, folder: Path, stamp: Stamp) -> Path | None:
    """Moves a file into a folder, under a name that is free there, and syncs both folders. Returns where it is.

    None: it is not the file of this stamp any more, and stays.

    Raises:
        OSError: it could not be moved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    now = stamp_of(path)
    if now is not None and now != stamp:
        return None
    place = folder / path.name
    number = 1
    while place.exists():
        place = folder / f"{path.stem}.{number}{path.suffix}"
        number += 1
    try:
        path.rename(place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if not _carry(path, place, stamp):
            return None
    sync_folder(folder)
    sync_folder(path.parent)
    return place


def _carry(path: Path, place: Path, stamp: Stamp) -> bool:
    """Moves a file to another file system: copied, synced, and only then gone here. False: it is another one by now."""
    part = _part_of(place)
    try:
        part.touch(mode=0o600)
        shutil.copyfile(path, part)
        with contextlib.suppress(OSError):  # a file system that keeps no modes
            shutil.copystat(path, part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        if stamp_of(path) != stamp:
            return False
        part.rename(place)
        sync_folder(place.parent)
        path.unlink()
    finally:
        part.unlink(missing_ok=True)
    return True


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable. fsync(2): a new file needs its folder synced too."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _write_all(file: int, body: bytes) -> None:
    view = memoryview(body)
    while view:
        view = view[os.write(file, view) :]
