"""Records of fields at fixed places, as mainframes and banks have them: a list of mappings by field name.

    fields: [{name: account, width: 10}, {name: amount, width: 9, type: number, decimals: 2}, {width: 3}]

Where lines are of several kinds, `records` names each with its fields; a line is of the first one whose constants it
has, and its row holds the kind:

    records:
      - {name: header, fields: [{constant: H}, {name: date, width: 8}]}
      - {name: payment, fields: [{constant: D}, {name: account, width: 10}]}

Widths are characters, once decoded. LF and CR LF end a line that is read, and in EBCDIC (cp037, cp500) also NEL, which
is what z/OS writes there: 0x15, beside LF 0x25. Empty lines are skipped. A line that is too short is taken when only
blanks are missing that pad it, as editors strip them; nothing is ever cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from gateway import Limits, MessageError, Settings, Tree
from transforms._charset import Charset, charset_of, decoded, encoded
from transforms._fixed_field import LINE_ENDS, FixedField

_ENDINGS = {"lf": "\n", "crlf": "\r\n", "nel": "\x85", "none": ""}


class Record(Settings):
    """One kind of line among others."""

    name: str = Field(min_length=1, description="the kind, as rows have it")
    fields: tuple[FixedField, ...] = Field(min_length=1, description="its fields, in order; see `fields` of the format")


class Format(Settings):
    """Records of fields at fixed places, one a line or one behind the other. Numbers are exact.

    It needs its fields, so bodies are read and written by the steps `parse` and `format` alone, not by content type.
    """

    content_types: ClassVar[tuple[str, ...]] = ("application/x-fixed-width",)

    fields: tuple[FixedField, ...] = Field((), description="what a record holds, in order")
    records: tuple[Record, ...] = Field(
        (),
        description="instead of `fields`, where lines are of several kinds: a line is the first whose constants it has",
    )
    record_key: str = Field("record", min_length=1, description="of `records`: the key of a row that holds its kind")
    ending: Literal["lf", "crlf", "nel", "none"] = Field(
        "lf",
        description="what is written after each record; nel is that of EBCDIC. Whichever it is, LF and CR LF end a "
        "line that is read, and NEL in EBCDIC. none: there are no lines, one record follows the other",
    )
    charset: Charset = Field("utf-8", description="how to write, and how to read what does not say its charset")

    @model_validator(mode="after")
    def _fits(self) -> Format:
        if bool(self.fields) == bool(self.records):
            raise ValueError(
                "expected either fields: or records:, got both; keep records: where lines are of several kinds"
                if self.fields
                else "no field is named; write fields: [{name: account, width: 10}, …], or records: with those of each"
            )
        if not self.records and "record_key" in self.model_fields_set:
            raise ValueError("record_key belongs to records:, of which there are none; remove it")
        if self.ending == "nel" and not _is_ebcdic(self.charset):
            raise ValueError(f"nel ends lines of EBCDIC, such as cp037, and not of {self.charset}; write lf or crlf")
        _check_once([each.name for each in self.records], "records", "call each kind otherwise")
        for layout in self._layouts:
            self._check_layout(layout, f"fields of {layout.name}" if layout.name else "fields")
        self._check_reached()
        if self.ending == "none":
            self._check_within()
        return self

    def _check_layout(self, layout: _Layout, subject: str) -> None:
        _check_once(layout.names, subject, "leave it out where a gap is skipped")
        if self.records and self.record_key in layout.names:
            raise ValueError(
                f"{subject}: {self.record_key} is the key of a row that holds its kind; "
                "call this field otherwise, or write another record_key:"
            )
        for _, field in layout.places:
            for text in (field.constant or "", field.filler):
                try:
                    text.encode(self.charset)
                except UnicodeError:
                    raise ValueError(f"{subject}: {self.charset} has no {text!r:.60}; write what it has") from None

    def _check_reached(self) -> None:
        """Complains of a record whose every line would be taken for one of another, which stands before it."""
        for number, later in enumerate(self._layouts):
            for former in self._layouts[:number]:
                if former.signs <= later.signs:
                    raise ValueError(
                        f'records: no line is ever "{later.name:.60}", as "{former.name:.60}" takes each of them '
                        "before; write it first, or give the other a constant that it has not"
                    )

    def _check_within(self) -> None:
        """Complains of a constant that, without line ends, might be looked for in what follows a shorter record."""
        shortest = min(self._layouts, key=lambda layout: layout.width)
        for layout in self._layouts:
            end = max((start + len(constant) for start, constant in layout.constants), default=0)
            if end > shortest.width:
                raise ValueError(
                    f'records: a constant of "{layout.name:.60}" ends in column {end}, but "{shortest.name:.60}" has '
                    f"{shortest.width} columns; without line ends, write gaps that make all of them as long"
                )

    @cached_property
    def _layouts(self) -> tuple[_Layout, ...]:
        kinds = [(each.name, each.fields) for each in self.records] or [("", self.fields)]
        return tuple(_Layout.of(name, fields) for name, fields in kinds)

    def parse(self, body: bytes, content_type: str, limits: Limits) -> Tree:
        """The rows of these records.

        Raises:
            MessageError: code "malformed": a record is too short or too long or none of these, or holds no number
                where one belongs; says at which line.
        """
        del limits  # its depth is fixed, and its size is that of the message
        text = decoded("fixed_width", body, content_type, self.charset)
        if self.ending == "none":
            return list(self._joined(text))
        if _is_ebcdic(charset_of(content_type) or self.charset):
            text = text.replace("\x85", "\n")
        return [self._line(line.removesuffix("\r"), number) for number, line in _filled(text.split("\n"))]

    def _line(self, line: str, number: int) -> Tree:
        where = f"line {number}"
        layout = self._layout(line.ljust(self._widest), 0, where)
        found, expected = len(line), layout.width
        if found > expected:
            raise _malformed(
                f"{where} has {found} characters, expected {expected}; what begins in column {expected + 1} "
                "is in no field: add one without a name to skip it"
            )
        cut = layout.cut(line) if found < expected else None
        if cut is not None:
            raise _malformed(
                f"{where} has {found} characters, expected {expected}; it ends before {cut}, "
                "and only blanks that pad it may be missing"
            )
        return self._row(layout, line.ljust(expected), 0, where)

    def _joined(self, text: str) -> Iterator[Tree]:
        at = number = 0
        while at < len(text):
            number += 1
            where = f"record {number}"
            layout = self._layout(text, at, where)
            if at + layout.width > len(text):
                raise _malformed(
                    f"{where} has {len(text) - at} characters, expected {layout.width}; is the body cut, "
                    "or has it lines, so that ending: lf belongs there?"
                )
            yield self._row(layout, text, at, where)
            at += layout.width

    @cached_property
    def _widest(self) -> int:
        return max(layout.width for layout in self._layouts)

    def _layout(self, text: str, at: int, where: str) -> _Layout:
        """The first layout whose constants stand there."""
        for layout in self._layouts:
            if layout.takes(text, at):
                return layout
        names = [f" ({layout.name:.60})" if self.records else "" for layout in self._layouts]
        wanted = ", or ".join(layout.wanted + name for layout, name in zip(self._layouts, names, strict=True))
        raise _malformed(f"{where} begins with {text[at : at + 20].rstrip(' ')!r}, expected {wanted}")

    def _row(self, layout: _Layout, text: str, at: int, where: str) -> Tree:
        row: dict[str, Any] = {self.record_key: layout.name} if self.records else {}
        for start, field in layout.places:
            if field.name is not None:
                begin = at + start
                try:
                    row[field.name] = field.read(text[begin : begin + field.size])
                except ValueError as error:
                    raise _malformed(f"{where}, {_shown(start, field)}: {error}") from None
        return row

    def format(self, tree: Tree) -> bytes:
        """The records of these rows.

        Raises:
            MessageError: this is no list of mappings, or a value does not fit its field; says in which row.
        """
        if not isinstance(tree, list):
            raise MessageError("fixed_width: expected a list of rows; make one with map:")
        ending = _ENDINGS[self.ending]
        text = "".join(f"{self._written(row, number)}{ending}" for number, row in enumerate(tree, 1))
        return encoded("fixed_width", text, self.charset)

    def _written(self, row: Any, number: int) -> str:
        if not isinstance(row, dict):
            raise MessageError(f"fixed_width: row {number} is no mapping of field names to values")
        layout = self._layout_of(row, number)
        for key in row:
            if key not in layout.known and not (self.records and key == self.record_key):
                raise MessageError(
                    f"fixed_width: row {number} has the key {key!r:.60}, which no field is called; "
                    "leave it out in map:, or add a field"
                )
        written = []
        for start, field in layout.places:
            try:
                text = field.write(None if field.name is None else row.get(field.name))
                if self._ends_a_line(text):
                    raise ValueError("found the end of a line, expected text in one line; replace it before")
            except ValueError as error:
                raise MessageError(f"fixed_width: row {number}, {_shown(start, field)}: {error}") from None
            written.append(text)
        line = "".join(written)
        reader = next(each for each in self._layouts if each.takes(line.ljust(self._widest)))
        if reader is not layout:
            raise MessageError(
                f"fixed_width: row {number} is {layout.name:.60}, but would be read as {reader.name:.60}, "
                f"as it has {reader.wanted}; write another value there"
            )
        return line

    def _ends_a_line(self, text: str) -> bool:
        if self.ending == "none":
            return False
        return any(sign in text for sign in (LINE_ENDS if _is_ebcdic(self.charset) else "\r\n"))

    def _layout_of(self, row: dict[str, Any], number: int) -> _Layout:
        if not self.records:
            return self._layouts[0]
        kind = row.get(self.record_key)
        for layout in self._layouts:
            if layout.name == kind:
                return layout
        known = ", ".join(layout.name for layout in self._layouts)
        raise MessageError(
            f"fixed_width: row {number} has {kind!r:.60} as its {self.record_key}, expected one of {known:.200}"
        )


@dataclass(frozen=True)
class _Layout:
    """The fields of one kind of record, each with where it starts: characters, from 0."""

    name: str
    """The kind; empty where there is only one."""
    places: tuple[tuple[int, FixedField], ...]

    @classmethod
    def of(cls, name: str, fields: Iterable[FixedField]) -> _Layout:
        places, at = [], 0
        for field in fields:
            places.append((at, field))
            at += field.size
        return cls(name, tuple(places))

    @cached_property
    def width(self) -> int:
        """Characters of a whole record."""
        return sum(field.size for _, field in self.places)

    @cached_property
    def names(self) -> list[str]:
        return [field.name for _, field in self.places if field.name is not None]

    @cached_property
    def known(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def constants(self) -> list[tuple[int, str]]:
        return [(start, field.constant) for start, field in self.places if field.constant is not None]

    @cached_property
    def signs(self) -> set[tuple[int, str]]:
        """The characters of its constants with their places: a line that has them all is one of these."""
        return {(at, sign) for start, constant in self.constants for at, sign in enumerate(constant, start)}

    @cached_property
    def wanted(self) -> str:
        """What a line of this kind has."""
        return " and ".join(f"{constant!r:.60} in column {start + 1}" for start, constant in self.constants)

    def takes(self, text: str, at: int = 0) -> bool:
        """Whether its constants stand in the text, in a record that begins there."""
        return all(text.startswith(constant, at + start) for start, constant in self.constants)

    def cut(self, line: str) -> str | None:
        """What a line ends before, other than blanks that pad it; None: nothing."""
        for start, field in self.places:
            if start + field.size <= len(line) or field.constant is not None:  # constants were found already
                continue
            if field.filler != " " or (field.to_right and line[start:].strip(" ")):
                return f"the end of {_shown(start, field)}"
        return None


def _shown(start: int, field: FixedField) -> str:
    """A field with its columns, which count from 1 as editors do."""
    what = "the gap" if field.name is None else f"field {field.name:.60}"
    return f"{what} (columns {start + 1} to {start + field.size})"


def _filled(lines: list[str]) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(lines, 1) if line not in ("", "\r"))


@lru_cache(maxsize=64)
def _is_ebcdic(charset: str) -> bool:
    try:
        return "\x85".encode(charset) == b"\x15"
    except UnicodeError:
        return False


def _check_once(names: list[str], subject: str, then: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'{subject}: the name "{name:.60}" comes twice; {then}')


def _malformed(text: str) -> MessageError:
    return MessageError(f"fixed_width: {text}", code="malformed")
