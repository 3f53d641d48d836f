"""Complaints about a configuration, each with the place that it is about."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TypeAlias
from unicodedata import combining, east_asian_width

from gateway.errors import ConfigError

Loc: TypeAlias = tuple[str | int, ...]
"""A path in a document: keys and, from 0, indexes."""


@dataclass(frozen=True)
class Place:
    """Where something is written: line and column from 1, in characters; line 0 means the file as a whole."""

    file: str
    line: int = 0
    column: int = 0
    source: str = field(default="", repr=False, compare=False)
    """The text of the line, as it stands in the file: with references instead of secrets."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True)
class Complaint:
    """One thing that the operator must put right."""

    place: Place
    subject: str
    """Dotted path such as `routes.orders.to.http.timeout`; empty: the file itself."""
    text: str
    """What was found, what was expected, what to do: lower case, no full stop."""
    of_reference: bool = False
    """A reference has no value here: the document can be read all the same."""


class Complaints(ConfigError):  # noqa: N818 - what an operator gets is complaints
    """All that is wrong with a configuration, at once. Its text is the rendering without colors.

    document: what could be read of it, where nothing but references is wrong.
    """

    def __init__(self, complaints: Iterable[Complaint], document: object | None = None) -> None:
        self.complaints = list(complaints)
        self.document = document
        super().__init__(render(self.complaints))


def render(complaints: Iterable[Complaint], *, color: bool = False) -> str:
    """The complaints by place, each with its source line and a caret under the place, and last their number."""
    sorted_ones = sorted(set(complaints), key=lambda c: (c.place.file, c.place.line, c.place.column, c.subject, c.text))
    bold, red, plain = ("\033[1m", "\033[31m", "\033[0m") if color else ("", "", "")
    lines = []
    for complaint in sorted_ones:
        subject = f"{complaint.subject}: " if complaint.subject else ""
        lines.append(f"{bold}{_printable(str(complaint.place))}:{plain} {_printable(subject + complaint.text)}")
        if complaint.place.source.strip():
            shown, indent = _line_and_indent(complaint.place)
            lines += [f"  {shown}", f"  {' ' * indent}{red}^{plain}"]
    return "\n".join([*lines, f"{len(sorted_ones)} complaint{'' if len(sorted_ones) == 1 else 's'}"])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean methods?` when one of the known words is near, else nothing."""
    by_plain_form = {name.lower().replace("-", "_"): name for name in known}
    near = get_close_matches(word.lower().replace("-", "_"), by_plain_form, 1)
    return f"; did you mean {by_plain_form[near[0]]}?" if near else ""


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def _line_and_indent(place: Place) -> tuple[str, int]:
    """The part of the source line around the place, and how many columns of a terminal lie before the place."""
    start = max(0, place.column - 100) if len(place.source) > 160 else 0
    before = _printable(place.source[start : place.column - 1])
    after = _printable(place.source[place.column - 1 : start + 160]).rstrip()
    cut = "…" if start else ""
    return cut + before + after, sum(_columns(char) for char in cut + before)


def _columns(char: str) -> int:
    return 0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1


def quoted(text: str) -> str:
    """Text in double quotes, cut when it is long."""
    return json.dumps(text if len(text) <= 80 else text[:77] + "…", ensure_ascii=False)


def shown_value(value: object) -> str:
    """A value of a document as complaints show it: text in quotes, and of what holds others only what it is."""
    match value:
        case str():
            return quoted(value)
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case list() | tuple():
            return "a list"
        case Mapping():
            return "a mapping"
        case _:
            return str(value)


def subject_of(loc: Loc) -> str:
    """A path as complaints write it: `routes.orders.steps[0].map`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")
