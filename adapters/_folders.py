"""Files as messages: written whole or not at all, read only when nobody writes them any more."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from gateway import MessageError, PeerError


def append_lines(path: Path, lines: bytes) -> None:
    """Appends and syncs the file, and its folder when the file is new. Half a line is never left behind.

    Raises:
        PeerError: the disk did not take it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            before = os.fstat(file).st_size
            try:
                _write_all(file, lines)
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


def write_whole(path: Path, body: bytes, *, replace: bool) -> None:
    """Writes under another name, syncs, and renames: nobody ever sees half a file.

    Raises:
        MessageError: there is a file of this name, and `replace` is off.
        PeerError: the disk did not take it.
    """
    part = path.with_name(f".{path.name}.{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not replace and path.exists():
            raise _taken(path)
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(file, body)
            os.fsync(file)
        finally:
            os.close(file)
        if replace:
            part.replace(path)
        else:
            _give_free_name(part, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise PeerError(
            f"file {path.name}: {error.strerror}; is the disk full, or the folder not ours to write?"
        ) from error


def _give_free_name(part: Path, path: Path) -> None:
    """Renames, unless there is a file of that name by now: unlike a rename, a link then fails. link(2)."""
    try:
        path.hardlink_to(part)
    except FileExistsError:
        part.unlink()
        raise _taken(path) from None
    except OSError:  # a file system without links
        part.rename(path)
    else:
        part.unlink()


def _taken(path: Path) -> MessageError:
    return MessageError(f"file {path.name}: it is there already; use a template that gives each message its own")


def move_into(path: Path, folder: Path) -> Path:
    """Moves a file into a folder, under a name that is free there, and syncs both folders. Returns where it is.

    Raises:
        OSError: it could not be moved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / path.name
    number = 1
    while place.exists():
        place = folder / f"{path.stem}.{number}{path.suffix}"
        number += 1
    path.rename(place)
    sync_folder(folder)
    sync_folder(path.parent)
    return place


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
