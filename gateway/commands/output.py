"""What commands print: lines, tables and JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

import msgspec
import typer


def say(text: str = "") -> None:
    """A line on standard output."""
    typer.echo(text)


def say_error(text: str) -> None:
    """A line on standard error."""
    typer.echo(text, err=True)


def say_json(value: Any) -> None:
    """The value as indented JSON on standard output."""
    typer.echo(as_json(value))


_ENCODER = msgspec.json.Encoder(decimal_format="number", enc_hook=str)


def as_json(value: Any) -> str:
    """Indented JSON; decimal numbers digit by digit, and what JSON does not have as text."""
    return msgspec.json.format(_ENCODER.encode(value), indent=2).decode()


def colored(stream: TextIO) -> bool:
    """Whether colors are welcome: on a terminal, unless NO_COLOR is set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def say_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, empty: str) -> None:
    """The rows as a table with these columns, on a terminal cut to its width; `empty` without rows."""
    lines = [[printable(row.get(column)) for column in columns] for row in rows]
    if not lines:
        say(empty)
        return
    table = [[column.upper().replace("_", " ") for column in columns], *lines]
    widths = [max(len(line[index]) for line in table) for index in range(len(columns))]
    width = shutil.get_terminal_size((160, 24)).columns if sys.stdout.isatty() else None
    for line in table:
        text = "  ".join(cell.ljust(wide) for cell, wide in zip(line, widths, strict=True)).rstrip()
        say(text if width is None or len(text) <= width else text[: width - 1] + "…")


def printable(value: object) -> str:
    """A value on one line, without characters that a terminal would act on."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return "".join(char if char.isprintable() else " " for char in text)
