"""One field of a fixed-width record: its settings, and its text as a value and back."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from gateway import Settings
from transforms._charset import scalar

_WIDTH_MAX = 32_760
"""Characters. Source: IBM, z/OS DFSMS Using Data Sets, the longest record (LRECL)."""
_DIGITS_MAX = 400
"""Characters of a number, as of one in JSON (`limits.json_digits`)."""
LINE_ENDS = "\r\n\x85"

_READ = re.compile(r"(?P<before>[+-]?)(?P<digits>[0-9]+)(?P<behind>[+-]?)")
_WRITTEN = re.compile(r"[+-]?[0-9]{1,400}(?:\.[0-9]{1,400})?")
# What stands before and behind the digits of a number from zero up, and of one below zero.
_SIGNS = {
    "minus": (("", ""), ("-", "")),
    "leading": (("+", ""), ("-", "")),
    "trailing": (("", "+"), ("", "-")),
    "trailing_minus": (("", " "), ("", "-")),
}


def _in_quotes(value: object) -> object:
    """Refuses 0 and 01, which YAML reads as numbers: without quotes nobody knows how they were written."""
    if isinstance(value, int | float):
        raise ValueError('expected text, got a number or a truth value; write it in quotes, such as "0"')
    return value


def _in_one_line(text: str) -> str:
    if any(sign in text for sign in LINE_ENDS):
        raise ValueError("expected text without the end of a line; where lines end is for ending: to say")
    return text


class FixedField(Settings):
    """What stands at one place of a record."""

    name: str | None = Field(
        None,
        min_length=1,
        description="its key in the row. Without a name, and without `constant`, it is a gap: skipped when reading, "
        "written as `pad`",
    )
    width: int | None = Field(
        None,
        ge=1,
        le=_WIDTH_MAX,
        description="characters, once decoded. Needed but for a `constant`, which has its own",
    )
    constant: Annotated[str, BeforeValidator(_in_quotes)] | None = Field(
        None,
        min_length=1,
        max_length=_WIDTH_MAX,
        description='text that always stands there, such as "H": expected when reading, written, and not in the row. '
        "Among `records` it tells which of them a line is",
    )
    type: Literal["text", "number"] = Field(
        "text",
        description="number: digits, perhaps with a sign before or behind them: a whole number, or with `decimals` "
        "an exact decimal. Blanks alone are null, and null is written as blanks",
    )
    decimals: int = Field(
        0, ge=0, le=_DIGITS_MAX, description="how many digits stand behind the point, which is not there: 2 for cents"
    )
    sign: Literal["minus", "leading", "trailing", "trailing_minus"] = Field(
        "minus",
        description="how the sign of a number is written; all are read. minus: - before it, below zero alone; leading, "
        "trailing: always, + or -; trailing_minus: behind it, - or a blank",
    )
    align: Literal["left", "right"] | None = Field(None, description="default: left; right for numbers")
    pad: Annotated[str, BeforeValidator(_in_quotes)] | None = Field(
        None, min_length=1, max_length=1, description='what fills the width; default: a blank; "0" for numbers'
    )
    trim: bool = Field(default=True, description="whether `pad` is taken off texts that are read")

    @model_validator(mode="after")
    def _fits(self) -> FixedField:
        given = self.model_fields_set
        _in_one_line(f"{self.constant or ''}{self.pad or ''}")
        if self.constant is not None:
            _has_no(given - {"constant"}, "a constant is written as it stands, and is not in the row;")
            return self
        if self.width is None:
            raise ValueError("a field needs its width; write how many characters it has, such as width: 10")
        if self.name is None:
            _has_no(given - {"name", "width", "pad"}, "a field without a name is a gap, with width and pad alone;")
        elif self.type == "text":
            _has_no(given & {"decimals", "sign"}, "this field is text; write type: number, or")
        else:
            _has_no(given & {"trim"}, "a number is always read without its padding;")
            self._fits_a_number(self.width)
        return self

    def _fits_a_number(self, width: int) -> None:
        if width > _DIGITS_MAX:
            raise ValueError(f"a number has at most {_DIGITS_MAX} characters, got width: {width}; write type: text")
        if self.decimals > width:
            raise ValueError(f"expected decimals: {width} at most, the width, got {self.decimals}")
        if self.filler in "123456789+-":
            raise ValueError(f'a pad of "{self.filler}" would be read as part of the number; write "0", " " or "*"')
        if self.filler == "0" and not self.to_right:
            raise ValueError('zeros behind a number make another of it; write pad: " ", or align: right')

    @cached_property
    def size(self) -> int:
        """Characters of its place."""
        return self.width or len(self.constant or "")

    @cached_property
    def to_right(self) -> bool:
        return self.align == "right" or (self.align is None and self.type == "number")

    @cached_property
    def filler(self) -> str:
        """The pad, as set or by default."""
        return self.pad or ("0" if self.type == "number" else " ")

    def read(self, text: str) -> Any:
        """The value of a named field.

        Raises:
            ValueError: it is no number; says what was found and expected.
        """
        if self.type == "number":
            return self._number(text)
        if not self.trim:
            return text
        return text.lstrip(self.filler) if self.to_right else text.rstrip(self.filler)

    def _number(self, text: str) -> int | Decimal | None:
        bare = text.strip(" ")
        if self.filler != "0":
            bare = (bare.lstrip(self.filler) if self.to_right else bare.rstrip(self.filler)).strip(" ")
        if not bare:
            return None
        found = _READ.fullmatch(bare)
        if found is None or (found["before"] and found["behind"]):
            raise ValueError(
                f"found {text!r:.60}, expected digits with a sign before or behind them, or blanks; "
                "what has a point of its own is type: text"
            )
        whole = int(f"{found['before'] or found['behind']}{found['digits']}")
        return Decimal(f"{whole}E-{self.decimals}") if self.decimals else whole

    def write(self, value: Any) -> str:
        """The text of a value, as wide as the field.

        Raises:
            ValueError: the value does not fit; says what was found and expected.
        """
        if self.constant is not None:
            return self.constant
        if self.type == "number" and value in (None, ""):
            return " " * self.size
        before, text, behind = self._digits(value) if self.type == "number" else ("", scalar(value), "")
        if text is None:
            raise ValueError("found a mapping or a list, expected one text")
        if self.type == "number" and self.filler == "0":
            text = text.rjust(self.size - len(before) - len(behind), "0")
        text = f"{before}{text}{behind}"
        if len(text) > self.size:
            raise _too_long(len(text), self.size)
        return text.rjust(self.size, self.filler) if self.to_right else text.ljust(self.size, self.filler)

    def _digits(self, value: Any) -> tuple[str, str, str]:
        """The sign before, the digits without a point, the sign behind. Exact: what would be rounded is refused."""
        number = _decimal(value)
        negative, each, exponent = number.as_tuple()
        assert isinstance(exponent, int)
        digits = "".join(map(str, each)).lstrip("0")
        places = exponent + self.decimals
        if digits and len(digits) + places > self.size:
            raise _too_long(len(digits) + places, self.size)
        if places < 0:
            if digits[places:].strip("0"):
                raise ValueError(f"found {number!s:.40}, expected at most {self.decimals} decimals; round it before")
            digits = digits[:places]
        elif digits:
            digits += "0" * places
        before, behind = _SIGNS[self.sign][bool(negative and digits)]
        return before, digits or "0", behind


def _decimal(value: Any) -> Decimal:
    """A number, or the text of one as csv has it, as a decimal.

    Raises:
        ValueError: it is neither, or not finite.
    """
    if isinstance(value, str) and _WRITTEN.fullmatch(value):
        return Decimal(value)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
        if number.is_finite():
            return number
    shown = "a mapping or a list" if isinstance(value, dict | list) else f"{value!r:.60}"
    raise ValueError(f"found {shown}, expected a number such as -12.50")


def _too_long(found: int, expected: int) -> ValueError:
    return ValueError(f"found {found} characters, expected at most {expected}; shorten it before, or widen the field")


def _has_no(settings: set[str], why: str) -> None:
    if settings:
        raise ValueError(f"{why} remove {', '.join(sorted(settings))}")
