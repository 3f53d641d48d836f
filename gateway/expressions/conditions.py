"""The tests of the expression language (`is defined`, `is number` …): Jinja2's names and meanings.

They differ in one: `true` and `false` are no numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from gateway.expressions.arithmetic import compare, effort, modulo
from gateway.expressions.sandbox import FaultError, Missing, Scope, kind, text

Condition = Callable[..., Any]
"""Called with the scope, the value and the arguments."""


def holds(scope: Scope, value: Any) -> bool:
    """Whether a value is true: not empty, null, zero or false."""
    return bool(value)


def defined(scope: Scope, value: Any) -> bool:
    """Whether a value is there."""
    return not isinstance(value, Missing)


def undefined(scope: Scope, value: Any) -> bool:
    """Whether a value is not there."""
    return isinstance(value, Missing)


def _plain(check: Callable[[Any], bool]) -> Condition:
    def condition(scope: Scope, value: Any) -> bool:
        return check(value)

    return condition


def _relation(word: str) -> Condition:
    def condition(scope: Scope, left: Any, right: Any) -> bool:
        scope.spend(effort(left, right))
        return compare(word, left, right)

    return condition


def _divisible(scope: Scope, value: Any, num: Any) -> bool:
    return bool(modulo(scope, value, num) == 0)


def _odd_or_even(rest: int) -> Condition:
    def condition(scope: Scope, value: Any) -> bool:
        return bool(modulo(scope, value, 2) == rest)

    return condition


def _same(scope: Scope, value: Any, other: Any) -> bool:
    if isinstance(value, str | bool | int | None) and isinstance(other, str | bool | int | None):
        return type(value) is type(other) and value == other
    raise FaultError(f"can't tell whether {kind(value)} and {kind(other)} are the same; compare with ==")


_PLAIN: dict[str, Callable[[Any], bool]] = {
    "none": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "false": lambda value: value is False,
    "true": lambda value: value is True,
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, float | Decimal),
    "number": lambda value: isinstance(value, int | float | Decimal) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "mapping": lambda value: isinstance(value, Mapping),
    "sequence": lambda value: isinstance(value, str | list | tuple | Mapping),
    "iterable": lambda value: isinstance(value, str | list | tuple | Mapping),
    "lower": lambda value: text(value).islower(),
    "upper": lambda value: text(value).isupper(),
}

CONDITIONS: dict[str, Condition] = {
    "defined": defined,
    "undefined": undefined,
    **{name: _plain(check) for name, check in _PLAIN.items()},
    "odd": _odd_or_even(1),
    "even": _odd_or_even(0),
    "divisibleby": _divisible,
    "sameas": _same,
    "in": _relation("in"),
    **dict.fromkeys(("==", "eq", "equalto"), _relation("eq")),
    **dict.fromkeys(("!=", "ne"), _relation("ne")),
    **dict.fromkeys((">", "gt", "greaterthan"), _relation("gt")),
    **dict.fromkeys((">=", "ge"), _relation("gteq")),
    **dict.fromkeys(("<", "lt", "lessthan"), _relation("lt")),
    **dict.fromkeys(("<=", "le"), _relation("lteq")),
}
"""All tests."""

SCOPELESS = frozenset({"defined", "undefined", *_PLAIN})
"""Those that spend nothing, and so need no scope of their own."""
