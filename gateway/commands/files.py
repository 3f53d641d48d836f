"""Bodies from files and from standard input."""

from __future__ import annotations

import mimetypes
import sys
from pathlib import Path

import typer

_TYPES = {".hl7": "application/hl7-v2", ".msgpack": "application/msgpack", ".json": "application/json"}


def read_body(path: Path) -> bytes:
    """The bytes of the file; `-` is standard input."""
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{path} can't be read: {error.strerror}") from error


def content_type_of(path: Path | None) -> str:
    """What a file with this name holds; JSON if the name does not say it."""
    suffix = "" if path is None else path.suffix.lower()
    guessed = None if path is None else mimetypes.guess_type(path.name)[0]
    return _TYPES.get(suffix) or guessed or "application/json"
