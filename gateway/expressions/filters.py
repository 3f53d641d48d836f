"""The filters and tests of the expression language: Jinja2's names and meanings, exact numbers, bounded results.

They differ from Jinja2's where a gateway would lose data without a word: `int` and `float` refuse what is no number
unless a default is given, lists come out as lists, and `tojson` escapes nothing for HTML.
"""

# ruff: noqa: FBT002 - the places of the arguments are Jinja2's
from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Any

from gateway.expressions.arithmetic import EXACT, add, number, small
from gateway.expressions.conditions import defined, holds, undefined
from gateway.expressions.methods import join
from gateway.expressions.sandbox import DIGITS_MAX, FaultError, Missing, Scope, decimal, get, kind, text
from gateway.expressions.texts import TEXT_FILTERS

Filter = Callable[..., Any]
"""Called with the scope, the value and the arguments."""

_NOT_GIVEN: Any = object()


def _list(scope: Scope, value: Any, work: int = 1) -> list[Any]:
    """The elements of a list, the keys of an object, the characters of a text."""
    if not isinstance(value, list | tuple | Mapping | str):
        raise FaultError(f"it is {kind(value)}, expected a list")
    scope.spend(work * len(value))
    return list(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise FaultError(f"it is {kind(value)}, expected an object")
    return value


def _attribute(name: Any) -> Callable[[int, Any], Any]:
    """Reads `name`, which may be a path such as `price.net` or `0.sku`, of the numbered element of a list."""
    parts = [int(part) if part.isdecimal() else part for part in str(name).split(".")] if name is not None else []

    def read(index: int, element: Any) -> Any:
        for part in parts:
            element = get(element, part, label=repr(part), owner="the element", path=f"{name} of element {index}")
        return element

    return read


def _attributes(values: list[Any], name: Any, default: Any = _NOT_GIVEN) -> list[Any]:
    """That attribute of each; without a name the elements themselves."""
    if name is None:
        return values
    read = _attribute(name)
    found = [read(index, value) for index, value in enumerate(values)]
    for index, value in enumerate(found):
        if isinstance(value, Missing):
            if default is _NOT_GIVEN:
                raise value.error()
            found[index] = default
    return found


def _ordered(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else decimal(value) if isinstance(value, float) else value


def _order(values: list[Any], *, case_sensitive: bool, reverse: bool = False) -> list[int]:
    """The places of these values, in the order of the values."""
    keys = values if case_sensitive else [_ordered(value) for value in values]
    try:
        return sorted(range(len(keys)), key=keys.__getitem__, reverse=reverse)
    except TypeError as error:
        kinds = sorted({kind(value) for value in values})
        raise FaultError(f"can't order {' and '.join(kinds)}") from error


# --- filters of any value


def _elements(scope: Scope, value: Any) -> list[Any]:
    return _list(scope, value)


def _default(scope: Scope, value: Any, default: Any = "", boolean: Any = False) -> Any:
    return default if isinstance(value, Missing) or (boolean and not value) else value


def _length(scope: Scope, value: Any) -> int:
    if not isinstance(value, str | list | tuple | Mapping):
        raise FaultError(f"it is {kind(value)}, which has no length")
    return len(value)


# --- numbers


def _abs(scope: Scope, value: Any) -> Any:
    return abs(value) if isinstance(value, int) else EXACT.abs(number(value))


def _float(scope: Scope, value: Any, default: Any = _NOT_GIVEN) -> Any:
    """The number as a Decimal, so that 1.10 stays 1.10."""
    try:
        return number(value)
    except FaultError:
        if default is _NOT_GIVEN:
            raise
        return default


def _int(scope: Scope, value: Any, default: Any = _NOT_GIVEN, base: Any = 10) -> Any:
    """The whole number, cut off towards zero."""
    try:
        if isinstance(value, str) and base != 10 and len(value) <= DIGITS_MAX:
            return int(value, small(base, "base"))
        return value if type(value) is int else int(number(value))
    except (FaultError, ValueError) as error:
        if default is not _NOT_GIVEN:
            return default
        raise error if isinstance(error, FaultError) else FaultError("it is text that is no number") from error


_ROUNDINGS = {"common": ROUND_HALF_EVEN, "ceil": ROUND_CEILING, "floor": ROUND_FLOOR}


def _round(scope: Scope, value: Any, precision: Any = 0, method: Any = "common") -> Any:
    """Rounded to that many digits after the point; `common` takes a half to the even neighbour, as Jinja2 does."""
    if method not in _ROUNDINGS:
        raise FaultError("the method of round is one of common, ceil, floor")
    if abs(small(precision, "the precision")) > 100:
        raise FaultError("the precision of round is at most 100 digits")
    if isinstance(value, int) and precision >= 0:
        return value
    rounded = number(value).quantize(Decimal(1).scaleb(-precision), rounding=_ROUNDINGS[method], context=EXACT)
    return rounded if precision >= 0 else rounded.quantize(1, context=EXACT)


def _sum(scope: Scope, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    total = start
    for one in _attributes(_list(scope, value, work=6), attribute):
        if isinstance(one, str | list):
            raise FaultError(f"can't sum {kind(one)}; convert with map('int') or map('float')")
        total = add(scope, total, one)
    return total


# --- lists


def _edge(name: str, index: int) -> Filter:
    def take(scope: Scope, value: Any) -> Any:
        values = _list(scope, value) if isinstance(value, Mapping) else value
        if not isinstance(values, list | tuple | str):
            raise FaultError(f"it is {kind(value)}, expected a list")
        return values[index] if values else Missing(f"| {name}", "the list is empty")

    return take


def _extreme(name: str, index: int) -> Filter:
    def take(scope: Scope, value: Any, case_sensitive: Any = False, attribute: Any = None) -> Any:
        values = _list(scope, value, work=4)
        if not values:
            return Missing(f"| {name}", "the list is empty")
        return values[_order(_attributes(values, attribute), case_sensitive=bool(case_sensitive))[index]]

    return take


def _sort(
    scope: Scope, value: Any, reverse: Any = False, case_sensitive: Any = False, attribute: Any = None
) -> list[Any]:
    values = _list(scope, value, work=4)
    order = _order(_attributes(values, attribute), case_sensitive=bool(case_sensitive), reverse=bool(reverse))
    return [values[index] for index in order]


def _unique(scope: Scope, value: Any, case_sensitive: Any = False, attribute: Any = None) -> list[Any]:
    values = _list(scope, value, work=4)
    found: dict[Any, Any] = {}
    try:
        for key, one in zip(_attributes(values, attribute), values, strict=True):
            found.setdefault(key if case_sensitive else _ordered(key), one)
    except TypeError as error:
        raise FaultError("unique takes texts and numbers; name the attribute that tells them apart") from error
    return list(found.values())


def _groupby(
    scope: Scope, value: Any, attribute: Any, default: Any = _NOT_GIVEN, case_sensitive: Any = False
) -> list[Any]:
    """A list of [key, elements], in the order of the keys."""
    values = _list(scope, value, work=4)
    keys = _attributes(values, attribute, default)
    groups: dict[Any, list[Any]] = {}
    for index in _order(keys, case_sensitive=bool(case_sensitive)):
        key = keys[index] if case_sensitive else _ordered(keys[index])
        groups.setdefault(key, [keys[index], []])[1].append(values[index])
    return list(groups.values())


def _batch(scope: Scope, value: Any, linecount: Any, fill_with: Any = None) -> list[Any]:
    values = _list(scope, value, work=2)
    width = small(linecount, "the size of a batch")
    if width < 1:
        raise FaultError("the size of a batch is 1 or more")
    rows = [values[start : start + width] for start in range(0, len(values), width)]
    if rows and fill_with is not None:
        missing = width - len(rows[-1])
        scope.spend(missing)
        rows[-1] += [fill_with] * missing
        scope.built(rows[-1])
    return rows


def _reverse(scope: Scope, value: Any) -> Any:
    return value[::-1] if isinstance(value, str) else _list(scope, value)[::-1]


def _items(scope: Scope, value: Any) -> list[Any]:
    scope.spend(2 * len(_mapping(value)))
    return [[key, one] for key, one in value.items()]


def _dictsort(scope: Scope, value: Any, case_sensitive: Any = False, by: Any = "key", reverse: Any = False) -> Any:
    if by not in ("key", "value"):
        raise FaultError("dictsort sorts by key or by value")
    pairs = _items(scope, value)
    order = _order([pair[by == "value"] for pair in pairs], case_sensitive=bool(case_sensitive), reverse=bool(reverse))
    return [pairs[index] for index in order]


def _join(scope: Scope, value: Any, d: Any = "", attribute: Any = None) -> str:
    return join(scope, text(d), value if attribute is None else _attributes(_list(scope, value), attribute))


def _map(scope: Scope, value: Any, apply: Any = None, *args: Any, attribute: Any = None, **more: Any) -> Any:
    """One filter on each element, or one attribute of each."""
    values = _list(scope, value, work=2)
    if apply is None:
        default = more.pop("default", _NOT_GIVEN)
        if attribute is None or more:
            raise FaultError("map takes the name of a filter, or attribute= and default=")
        return scope.built(_attributes(values, attribute, default))
    found = [apply(scope, one, *args, **more) for one in values]
    for index, one in enumerate(found):
        if isinstance(one, Missing):
            raise FaultError(f"element {index}: {one.fault}")
    return scope.built(found)


def _chosen(*, keep: bool, by_attribute: bool) -> Filter:
    """select, reject, selectattr, rejectattr: by a test, or by being true."""

    def choose(scope: Scope, value: Any, test: Any = holds, *others: Any) -> list[Any]:
        return chosen(scope, value, None, test, *others)

    def choose_by(scope: Scope, value: Any, attribute: Any, test: Any = holds, *others: Any) -> list[Any]:
        return chosen(scope, value, _attribute(attribute), test, *others)

    def chosen(scope: Scope, value: Any, read: Any, test: Any, *others: Any) -> list[Any]:
        values = _list(scope, value, work=2)
        found = []
        for index, one in enumerate(values):
            tested = one if read is None else read(index, one)
            if isinstance(tested, Missing) and test not in (defined, undefined):
                raise tested.error()
            if bool(test(scope, tested, *others)) is keep:
                found.append(one)
        return found

    return choose_by if by_attribute else choose


FILTERS: dict[str, Filter] = {
    **TEXT_FILTERS,
    "abs": _abs,
    "batch": _batch,
    "count": _length,
    "d": _default,
    "default": _default,
    "dictsort": _dictsort,
    "first": _edge("first", 0),
    "float": _float,
    "groupby": _groupby,
    "int": _int,
    "items": _items,
    "join": _join,
    "last": _edge("last", -1),
    "length": _length,
    "list": _elements,
    "map": _map,
    "max": _extreme("max", -1),
    "min": _extreme("min", 0),
    "reject": _chosen(keep=False, by_attribute=False),
    "rejectattr": _chosen(keep=False, by_attribute=True),
    "reverse": _reverse,
    "round": _round,
    "select": _chosen(keep=True, by_attribute=False),
    "selectattr": _chosen(keep=True, by_attribute=True),
    "sort": _sort,
    "sum": _sum,
    "unique": _unique,
}
"""All filters that are built in. What is not here is asked of `plug_filters`, then refused."""
