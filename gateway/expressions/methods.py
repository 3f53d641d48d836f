"""The methods that expressions may call on text and numbers: what they make is bounded, and none leads out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.expressions.arithmetic import EXACT, effort
from gateway.expressions.sandbox import METHOD_NAMES, FaultError, Scope, decimal, fits, kind, text


def _text_method(name: str) -> Callable[..., Any]:
    method = getattr(str, name)

    def call(scope: Scope, value: str, *args: Any) -> Any:
        try:
            found = method(value, *(tuple(arg) if isinstance(arg, list) else arg for arg in args))
        except (TypeError, ValueError, OverflowError) as error:
            raise FaultError(f"{name}() takes no such arguments: {', '.join(map(kind, args)) or 'none'}") from error
        scope.spend(effort(value, found))
        return list(found) if isinstance(found, tuple) else found

    return call


def replace(scope: Scope, value: str, old: str, new: str, count: int | None = None) -> str:
    """The text with `old` replaced by `new`, everywhere or the first `count` times."""
    if not (isinstance(old, str) and isinstance(new, str) and isinstance(count, int | None)):
        raise FaultError(f"can't replace {kind(old)} by {kind(new)}, expected text and text")
    times = value.count(old)
    times = times if count is None or count < 0 else min(times, count)
    length = len(value) + times * (len(new) - len(old))
    fits(length if times else 0)
    scope.spend(length if times else effort(value))
    return value.replace(old, new, times)


def join(scope: Scope, between: str, values: Any) -> str:
    """The texts of these values, with `between` between them."""
    if not isinstance(values, str | list | tuple | Mapping):
        raise FaultError(f"can't join {kind(values)}, expected a list")
    scope.spend(len(values))
    texts = []
    length = 0
    for value in values:
        texts.append(text(value))
        length += len(texts[-1]) + len(between)
        fits(length)
    scope.spend(length)
    return between.join(texts)


def _is_integer(scope: Scope, value: Any) -> bool:
    return isinstance(value, int) or decimal(value) == EXACT.to_integral_value(decimal(value))


_OWN: dict[str, Callable[..., Any]] = {"replace": replace, "join": join, "is_integer": _is_integer}

METHODS: dict[str, dict[str, Callable[..., Any]]] = {
    whose: {name: _OWN.get(name) or _text_method(name) for name in names} for whose, names in METHOD_NAMES.items()
}
"""Each is called with the scope and the value first."""


def call_method(scope: Scope, value: Any, name: str, owner: str, args: list[Any]) -> Any:
    """Calls a method of a value; `owner` is the text of the value. Raises FaultError when it has none of that name."""
    found = METHODS.get(kind(value), {}).get(name)
    if found is None:
        raise FaultError(f"{owner} is {kind(value)}, which has no {name}()")
    try:
        return found(scope, value, *args)
    except TypeError as error:
        raise FaultError(f"{name}() takes no {len(args)} arguments") from error
