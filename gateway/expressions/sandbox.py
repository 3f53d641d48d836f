"""What an expression may do with values: look fields up, compute, write text; all of it bounded.

Values are trees (plain JSON-shaped data). There is no way from a value to a Python object: a field of a mapping is an
item, text and numbers have the methods of METHOD_NAMES, and nothing else has attributes.

Bounds hold for one evaluation. They count work, not time, so that running again gives the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from itertools import chain
from typing import Any

import msgspec

from gateway.errors import MessageError

OUTPUT_MAX = 1024 * 1024
"""Characters of one text that an expression makes. What a template writes has the route's own limit."""
WORK_MAX = 4 * 1024 * 1024
"""Elements visited and characters made by one evaluation."""
TURNS_MAX = 100_000
"""Turns of all `{% for %}` of one evaluation together."""
DIGITS_MAX = 1000
"""Digits of one number, and the largest power of ten."""


class FaultError(Exception):
    """What is wrong in an expression. `place` is the part of it; None: the caller names the whole."""

    place: str | None = None


class Missing:
    """A value that is not there. `default` and `is defined` take it; everything else raises `error()`.

    fault: what is wrong, or a function that says it: most are never asked.
    """

    __slots__ = ("_fault", "path")

    def __init__(self, path: str, fault: str | Callable[[], str]) -> None:
        self.path = path
        self._fault = fault

    @property
    def fault(self) -> str:
        """What is not there, and what is instead."""
        return self._fault if isinstance(self._fault, str) else self._fault()

    def below(self, path: str) -> Missing:
        """The same fault for a longer path."""
        return Missing(path, self._fault)

    def error(self) -> MessageError:
        """The error that names the path."""
        return MessageError(f"{self.path}: {self.fault}")


class Scope(dict[str, Any]):
    """The names of one evaluation beside the usual ones, and what it has spent so far."""

    __slots__ = ("_turns", "_work", "uuids")

    def __init__(self, names: Mapping[str, Any]) -> None:
        super().__init__(names)
        self._work = 0
        self._turns = 0
        self.uuids = 0

    def spend(self, work: int) -> None:
        """Counts elements visited or characters made. Raises FaultError when it is too much."""
        assert work >= 0
        self._work += work
        if self._work > WORK_MAX:
            raise FaultError(f"it takes more than {WORK_MAX} steps; do less at once, or use a python step")

    def turn(self, work: int) -> None:
        """Counts one turn of a loop whose body has so many parts."""
        self._turns += 1
        if self._turns > TURNS_MAX:
            raise FaultError(f"its loops turn more than {TURNS_MAX} times")
        self.spend(work)

    def made(self, length: int) -> None:
        """Counts a text of this many characters, before it is made. Raises FaultError when it is too long."""
        fits(length)
        self.spend(length)

    def built(self, value: Any) -> Any:
        """Counts a list or mapping just put together, with all that is in it, and returns it."""
        self.spend(weight(value, WORK_MAX))
        return value


def fits(length: int, most: int = OUTPUT_MAX) -> None:
    """Raises FaultError when a text of this many characters would be too long."""
    if length > most:
        raise FaultError(f"it makes a text of more than {most} characters")


def weight(value: Any, most: int, each: int = 8) -> int:
    """How much there is in a value, nested ones included: `each` for an element, one for a character. Stops at `most`.

    What stands in a value several times counts as often.
    """
    total = each
    waiting = [value]
    while waiting and total <= most:
        one = waiting.pop()
        if isinstance(one, Mapping):
            total += each * len(one)
            parts: Iterable[Any] = chain(one.keys(), one.values())
        elif isinstance(one, list | tuple):
            total += each * len(one)
            parts = one
        else:
            parts = (one,)
        if total > most:
            break
        for part in parts:
            if part.__class__ is str:
                total += len(part)
            elif isinstance(part, int):
                total += part.bit_length() >> 3
            elif isinstance(part, list | tuple | Mapping):
                waiting.append(part)
    return total


def kind(value: Any) -> str:
    """What a value is, in words for an operator."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float | Decimal):
        return "a number"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    return "bytes" if isinstance(value, bytes) else "not plain data"


def get(value: Any, key: Any, *, label: str, owner: str, path: str) -> Any:
    """The field or element of a value, or a Missing that says what is not there.

    label: the key as it is shown; owner: the text of what `value` is; path: the text of the whole. A whole number is
    also the text that it is: keys of JSON are texts, and those of FIX look like numbers.
    """
    if isinstance(value, Missing):
        return value.below(path)
    if value.__class__ is dict or isinstance(value, Mapping):
        try:
            return value[key]
        except KeyError:
            if type(key) is int and str(key) in value:
                return value[str(key)]
            return Missing(path, lambda: f"{label} is not there; {owner} {_names_of(value)}{method_hint(key)}")
        except TypeError:
            return Missing(path, lambda: f"{label} is {kind(key)}, expected text")
    if isinstance(value, list | tuple | str | bytes) and type(key) in (int, slice):
        try:
            return value[key]
        except IndexError:
            return Missing(path, lambda: f"there is no element {label}; {owner} has {len(value)}")
        except (TypeError, ValueError):
            return Missing(path, lambda: f"{label} is no range of elements")
    return Missing(path, lambda: _why_not(value, key, label, owner))


def _why_not(value: Any, key: Any, label: str, owner: str) -> str:
    """Why a value that is neither an object nor an indexed list has no such field."""
    if value is None:
        return f"{owner} is null, so {label} is not there"
    if isinstance(key, str) and key in METHOD_NAMES.get(kind(value), ()):
        return f"{key} is a method: write {key}()"
    return f"{label} is not there; {owner} is {kind(value)}{method_hint(key)}"


def _names_of(mapping: Mapping[Any, Any]) -> str:
    """A few keys, never values."""
    names: list[str] = []
    for key in mapping:
        if len(names) == 5:
            break
        name = key if isinstance(key, str) and key.isprintable() and key else repr(key)
        names.append(name if len(name) <= 40 else f"{name[:39]}…")
    rest = len(mapping) - len(names)
    return f"has {', '.join(names)}" + (f" and {rest} more" if rest else "") if names else "is empty"


METHOD_NAMES = {
    "text": frozenset(
        [
            "capitalize",
            "casefold",
            "count",
            "endswith",
            "find",
            "isalnum",
            "isalpha",
            "isascii",
            "isdecimal",
            "isdigit",
            "islower",
            "isnumeric",
            "isspace",
            "istitle",
            "isupper",
            "join",
            "lower",
            "lstrip",
            "partition",
            "removeprefix",
            "removesuffix",
            "replace",
            "rfind",
            "rpartition",
            "rsplit",
            "rstrip",
            "split",
            "splitlines",
            "startswith",
            "strip",
            "swapcase",
            "title",
            "upper",
        ]
    ),
    "a number": frozenset({"is_integer"}),
}
"""The methods that may be called, by the kind of value: what they make is bounded, and none leads out."""

_INSTEAD = {"items": "| items", "get": "| default(…)", "keys": "| list", "format": "~"}


def method_hint(key: Any) -> str:
    """What to write instead of one of Python's methods, as the end of an error; empty for any other name."""
    hint = _INSTEAD.get(key) if isinstance(key, str) else None
    return f"; for Python's {key}() write {hint}" if hint else ""


# --- text


def text(value: Any) -> str:
    """A value as text: true and false, numbers without exponent, lists and objects as JSON.

    Raises:
        FaultError: it is null, or nothing that has a text, or too long.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(sized(value))
    if isinstance(value, Decimal | float):
        return plain(decimal(value))
    if isinstance(value, Mapping | list | tuple):
        return json(value)
    if value is None:
        raise FaultError("it is null where text is expected; use | default('…', true) or an if")
    raise FaultError(f"it is {kind(value)}, which has no text")


def plain(number: Decimal) -> str:
    """A number without exponent, with the digits that it has."""
    if abs(number.adjusted()) > DIGITS_MAX:
        raise FaultError(f"a number has more than {DIGITS_MAX} digits")
    return format(number, "f")


_ENCODER = msgspec.json.Encoder(decimal_format="number")


def json(value: Any, indent: int | None = None) -> str:
    """A value as compact JSON; numbers keep their digits."""
    fits(weight(value, OUTPUT_MAX, each=2))
    try:
        encoded = _ENCODER.encode(value)
        written = msgspec.json.format(encoded, indent=indent) if indent else encoded
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise FaultError("it can't be written as JSON") from error
    fits(len(written))
    return written.decode()


# --- numbers


def decimal(number: Decimal | float) -> Decimal:
    """A fraction exactly as it is written: the float 1.1 is 1.1, not the binary number nearest to it."""
    found = number if isinstance(number, Decimal) else Decimal(repr(number))
    if not found.is_finite():
        raise FaultError("a number is infinite or not a number")
    return found


def sized(number: int) -> int:
    """The same number. Raises FaultError when it has too many digits."""
    if number.bit_length() > DIGITS_MAX * 3:
        raise FaultError(f"a number has more than {DIGITS_MAX} digits")
    return number
