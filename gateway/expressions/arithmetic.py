"""Operators of the expression language: exact on decimal fractions, bounded in what they make.

A fraction is a Decimal wherever it comes from. `/` gives one with 28 digits; `//` and `%` round down, as in Python.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from decimal import ROUND_HALF_EVEN, Context, Decimal, DivisionByZero, InvalidOperation, Overflow
from typing import Any

from gateway.expressions.sandbox import DIGITS_MAX, WORK_MAX, FaultError, Scope, decimal, kind, sized, weight

_TRAPS = [InvalidOperation, DivisionByZero, Overflow]
EXACT = Context(prec=DIGITS_MAX, Emax=DIGITS_MAX * 10, Emin=-DIGITS_MAX * 10, rounding=ROUND_HALF_EVEN, traps=_TRAPS)
"""Arithmetic of sums and products: exact up to DIGITS_MAX digits."""
DIVIDING = Context(prec=28, Emax=DIGITS_MAX * 10, Emin=-DIGITS_MAX * 10, rounding=ROUND_HALF_EVEN, traps=_TRAPS)
"""Arithmetic of quotients and powers, which have no last digit: 28 digits."""


def number(value: Any) -> Decimal:
    """The Decimal that a number or a text is."""
    if isinstance(value, str):
        try:
            value = Decimal(value.strip().replace("_", "x") if len(value) <= DIGITS_MAX else "too long")
        except InvalidOperation:
            raise FaultError("it is text that is no number; give a default: int(0), float(0)") from None
    if not isinstance(value, int | float | Decimal):
        raise FaultError(f"it is {kind(value)}, expected a number")
    number = Decimal(value) if isinstance(value, int) else decimal(value)
    if number and abs(number.adjusted()) > DIGITS_MAX:
        raise FaultError(f"a number has more than {DIGITS_MAX} digits")
    return number


def small(value: Any, what: str) -> int:
    if type(value) is not int or abs(value) > DIGITS_MAX * 100:
        raise FaultError(f"{what} is {kind(value)}, expected a small whole number")
    return value


def _numbers(word: str, left: Any, right: Any) -> tuple[Any, Any]:
    """Two whole numbers, or two Decimals."""
    for value in (left, right):
        if not isinstance(value, int | float | Decimal):
            raise FaultError(f"can't {word} {kind(left)} and {kind(right)}; convert with | int or | float")
    if isinstance(left, int) and isinstance(right, int):
        return left, right
    return Decimal(left) if isinstance(left, int) else decimal(left), (
        Decimal(right) if isinstance(right, int) else decimal(right)
    )


def add(scope: Scope, left: Any, right: Any) -> Any:
    """Two numbers, texts or lists together."""
    if isinstance(left, str) and isinstance(right, str):
        scope.made(len(left) + len(right))
        return left + right
    if isinstance(left, list) and isinstance(right, list):
        scope.spend(len(left) + len(right))
        return scope.built(left + right)
    if isinstance(left, str) or isinstance(right, str):
        raise FaultError(f"can't add {kind(left)} and {kind(right)}; ~ joins text, | int and | float make numbers")
    left, right = _numbers("add", left, right)
    return sized(left + right) if isinstance(left, int) else EXACT.add(left, right)


def subtract(scope: Scope, left: Any, right: Any) -> Any:
    left, right = _numbers("subtract", left, right)
    return sized(left - right) if isinstance(left, int) else EXACT.subtract(left, right)


def multiply(scope: Scope, left: Any, right: Any) -> Any:
    """Two numbers; or a text or a list of plain values so many times."""
    if isinstance(left, str | list) and type(right) is int:
        return _repeated(scope, left, right)
    if isinstance(right, str | list) and type(left) is int:
        return _repeated(scope, right, left)
    left, right = _numbers("multiply", left, right)
    if isinstance(left, int):
        # the product of two numbers of DIGITS_MAX digits is quick: it may be made before it is measured
        return sized(sized(left) * sized(right))
    return EXACT.multiply(left, right)


def _repeated(scope: Scope, what: Any, times: int) -> Any:
    if isinstance(what, str):
        scope.made(len(what) * max(times, 0))
    else:
        scope.spend(weight(what, WORK_MAX) * max(times, 0))
    return what * times


def divide(scope: Scope, left: Any, right: Any) -> Any:
    """The quotient, always as a Decimal: 28 digits, whole ones without an exponent."""
    left, right = _numbers("divide", left, right)
    if not right:
        raise ZeroDivisionError
    quotient = DIVIDING.divide(Decimal(left), Decimal(right))
    exponent = quotient.as_tuple().exponent
    return quotient.quantize(1, context=EXACT) if isinstance(exponent, int) and exponent > 0 else quotient


def modulo(scope: Scope, left: Any, right: Any) -> Any:
    """The rest with the sign of the divisor, for fractions as for whole numbers."""
    if isinstance(left, str):
        raise FaultError("% does not format text; join it with ~")
    left, right = _numbers("divide", left, right)
    if isinstance(left, int):
        return left % right
    if not right:
        raise ZeroDivisionError
    rest = EXACT.remainder(left, right)
    return EXACT.add(rest, right) if rest and (rest < 0) != (right < 0) else rest


def floor_divide(scope: Scope, left: Any, right: Any) -> Any:
    left, right = _numbers("divide", left, right)
    if isinstance(left, int):
        return left // right
    return EXACT.divide_int(EXACT.subtract(left, modulo(scope, left, right)), right)


def power(scope: Scope, left: Any, right: Any) -> Any:
    left, right = _numbers("raise", left, right)
    if isinstance(left, int) and right >= 0:
        if left.bit_length() * right > DIGITS_MAX * 3:
            raise FaultError(f"a number has more than {DIGITS_MAX} digits")
        return left**right
    left, right = Decimal(left), Decimal(right)
    if right.adjusted() > 6 or left.adjusted() > DIGITS_MAX:
        raise FaultError(f"a number has more than {DIGITS_MAX} digits")
    return DIVIDING.power(left, right)


def negative(scope: Scope, value: Any) -> Any:
    plain = positive(scope, value)
    return -plain if isinstance(plain, int) else EXACT.minus(plain)


def positive(scope: Scope, value: Any) -> Any:
    if not isinstance(value, int | float | Decimal):
        raise FaultError(f"can't put a sign before {kind(value)}; convert with | int or | float")
    return decimal(value) if isinstance(value, float) else value


BINARY: dict[str, Callable[[Scope, Any, Any], Any]] = {
    "+": add,
    "-": subtract,
    "*": multiply,
    "/": divide,
    "//": floor_divide,
    "%": modulo,
    "**": power,
}
UNARY: dict[str, Callable[[Scope, Any], Any]] = {"-": negative, "+": positive}


# --- comparisons

ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gteq": operator.ge,
    "lt": operator.lt,
    "lteq": operator.le,
}


def compare(word: str, left: Any, right: Any) -> bool:
    """Whether two values stand in this relation: a key of ORDER, `in` or `notin`."""
    if word in ("in", "notin"):
        return contains(right, left) is (word == "in")
    if isinstance(left, float) and isinstance(right, Decimal):
        left = decimal(left)
    elif isinstance(left, Decimal) and isinstance(right, float):
        right = decimal(right)
    try:
        return bool(ORDER[word](left, right))
    except TypeError as error:
        raise FaultError(
            f"can't order {kind(left)} and {kind(right)}; convert with | int, | float or | string"
        ) from error


def contains(whole: Any, part: Any) -> bool:
    """Whether a text holds a text, a list an element, or an object a key."""
    if isinstance(whole, str) and not isinstance(part, str):
        raise FaultError(f"can't look for {kind(part)} in text")
    if not isinstance(whole, str | list | tuple | Mapping):
        raise FaultError(f"can't look into {kind(whole)}, expected text, a list or an object")
    try:
        if isinstance(part, float | Decimal) and isinstance(whole, list | tuple):
            return any(compare("eq", one, part) for one in whole)
        return part in whole
    except TypeError as error:
        raise FaultError(f"can't look for {kind(part)} in {kind(whole)}") from error


def effort(*values: Any) -> int:
    """What it costs to read through these values once, texts being sixteen times as quick as elements."""
    total = 1
    for value in values:
        if isinstance(value, str):
            total += len(value) >> 4
        elif isinstance(value, list | tuple | Mapping):
            total += len(value)
    return total
