"""Comma-separated values, RFC 4180: a list of mappings by column name, or of lists where there is no header.

All values that are read are texts. Empty lines are skipped; a row with more or fewer fields than the header is
refused. A field is at most 128 KiB.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field, field_validator

from gateway import Limits, MessageError, Settings, Tree
from transforms._charset import Charset, decoded, encoded, scalar

# What a spreadsheet takes for the start of a formula. Source: OWASP, "CSV injection".
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Format(Settings):
    """Rows of text with a header line."""

    content_types: ClassVar[tuple[str, ...]] = ("text/csv",)

    delimiter: str = Field(",", min_length=1, max_length=1, description="what stands between fields")
    quote: str = Field('"', min_length=1, max_length=1, description="what encloses a field; doubled inside of one")
    header: bool | tuple[str, ...] = Field(
        default=True,
        description="true: the first line names the columns; a list of names: these, and there is no such line; "
        "false: no names, each row is a list",
    )
    charset: Charset = Field("utf-8", description="how to write, and how to read what does not say its charset")
    guard_formulas: bool = Field(
        default=False,
        description="when writing, put ' before texts that a spreadsheet would run: those starting with = + - @ tab CR",
    )

    @field_validator("delimiter", "quote")
    @classmethod
    def _is_a_sign(cls, sign: str) -> str:
        if sign in "\r\n\0":
            raise ValueError("expected one character that is not the end of a line")
        return sign

    @field_validator("header")
    @classmethod
    def _is_unique(cls, header: bool | tuple[str, ...]) -> bool | tuple[str, ...]:  # noqa: FBT001
        if isinstance(header, tuple) and (not header or len(set(header)) != len(header)):
            raise ValueError("expected at least one column name, each once")
        return header

    def parse(self, body: bytes, content_type: str, limits: Limits) -> Tree:
        text = decoded("csv", body, content_type, self.charset)
        rows = self._rows(text)
        if self.header is False:
            return [row for _, row in rows]
        if self.header is True:
            names = next((row for _, row in rows), None)
            if names is None:
                raise MessageError("csv: the body is empty; expected a header line", code="malformed")
            _check_names(names)
        else:
            names = list(self.header)
        tree: list[Any] = []
        for number, row in rows:
            if len(row) != len(names):
                raise MessageError(
                    f"csv: row {number} has {len(row)} fields, expected {len(names)}; is the delimiter "
                    f"{self.delimiter!r}, and a field that holds it quoted?",
                    code="malformed",
                )
            tree.append(dict(zip(names, row, strict=True)))
        return tree

    def _rows(self, text: str) -> Iterator[tuple[int, list[str]]]:
        """Rows with their numbers, the header line's included, from 1."""
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter, quotechar=self.quote, strict=True)
        number = 0
        try:
            for row in reader:
                if row:
                    number += 1
                    yield number, row
        except csv.Error as error:
            raise MessageError(f"csv: row {number + 1} (line {reader.line_num}): {error}", code="malformed") from None

    def format(self, tree: Tree) -> bytes:
        if not isinstance(tree, list):
            raise MessageError("csv: expected a list of rows; make one with map:")
        names = self._names(tree)
        out = io.StringIO(newline="")
        writer = csv.writer(out, delimiter=self.delimiter, quotechar=self.quote, lineterminator="\r\n")
        if self.header is True and names:  # of no rows nobody knows the columns
            writer.writerow([self._guarded(name) for name in names])
        for number, row in enumerate(tree, 1):
            writer.writerow(self._fields(row, names, number))
        return encoded("csv", out.getvalue(), self.charset)

    def _names(self, tree: list[Any]) -> list[str] | None:
        if self.header is False:
            return None
        if self.header is not True:
            return list(self.header)
        return [str(name) for name in tree[0]] if tree and isinstance(tree[0], dict) else []

    def _fields(self, row: Any, names: list[str] | None, number: int) -> list[str]:
        if names is None:
            if not isinstance(row, list):
                raise MessageError(f"csv: row {number} is no list, as header: false expects")
            return [self._field(value, number, index + 1) for index, value in enumerate(row)]
        if not isinstance(row, dict):
            raise MessageError(f"csv: row {number} is no mapping of column names to values")
        unknown = next((name for name in row if name not in names), None)
        if unknown is not None:
            raise MessageError(f"csv: row {number} has the column {unknown!r:.60}, which the header lacks")
        return [self._field(row.get(name), number, name) for name in names]

    def _field(self, value: Any, number: int, column: object) -> str:
        text = scalar(value)
        if text is None:
            raise MessageError(
                f"csv: row {number}, column {column!s:.60}: a field is one text, got a mapping or a list"
            )
        return self._guarded(text) if isinstance(value, str) else text

    def _guarded(self, text: str) -> str:
        return f"'{text}" if self.guard_formulas and text.startswith(_FORMULA) else text


def _check_names(names: list[str]) -> None:
    for name in names:
        if not name.strip():
            raise MessageError("csv: a column of the header line has no name", code="malformed")
        if names.count(name) > 1:
            raise MessageError(f"csv: the header line names {name!r:.60} twice", code="malformed")
