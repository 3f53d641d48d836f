"""The words that a text may use: names, functions, filters and tests; and what is near to a word that is none."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from jinja2 import nodes

from gateway.errors import ConfigError
from gateway.expressions.conditions import CONDITIONS
from gateway.expressions.filters import FILTERS
from gateway.expressions.sandbox import METHOD_NAMES, method_hint

FUNCTIONS = ("now", "uuid")
"""What can be called by itself."""

_find_filter: Callable[[str], Callable[..., Any] | None] = lambda name: None  # noqa: E731


def plug_filters(find: Callable[[str], Callable[..., Any] | None]) -> None:
    """Lends filters: `find` is asked at load for a name that is not built in; None: there is none of that name.

    What it finds is called with the value and the arguments, and raises MessageError when it can't.
    """
    global _find_filter  # noqa: PLW0603 - set once, by the registry, when the process starts
    _find_filter = find


def instead(name: str, known: Iterable[str]) -> str:
    """The nearest name that there is, else all of them, as the end of an error."""
    known = sorted(known)
    near = get_close_matches(name, known, 1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(known)}"


def filter_called(name: str) -> Callable[..., Any]:
    if name in FILTERS:
        return FILTERS[name]
    lent = _find_filter(name)
    if lent is None:
        raise ConfigError(f"no filter is called {name!r}{instead(name, FILTERS)}")
    found = lent

    def call(scope: Any, value: Any, *args: Any, **named: Any) -> Any:
        return found(value, *args, **named)

    scope = inspect.Parameter("scope", inspect.Parameter.POSITIONAL_ONLY)
    call.__signature__ = inspect.Signature([scope, *inspect.signature(found).parameters.values()])  # type: ignore[attr-defined]
    return call


def test_called(name: str) -> Callable[..., Any]:
    if name not in CONDITIONS:
        raise ConfigError(f"no test is called {name!r}{instead(name, CONDITIONS)}")
    return CONDITIONS[name]


# Filters whose argument at that place is itself the name of a filter or a test.
_APPLYING: dict[str, tuple[int, Callable[[str], Callable[..., Any]]]] = {
    "map": (0, filter_called),
    "select": (0, test_called),
    "reject": (0, test_called),
    "selectattr": (1, test_called),
    "rejectattr": (1, test_called),
}


def refuse_unknown_method(name: str) -> None:
    """Raises ConfigError when neither text nor numbers have a method of that name."""
    known = {method for methods in METHOD_NAMES.values() for method in methods}
    if name not in known:
        raise ConfigError(f"no method is called {name}(){method_hint(name) or instead(name, known)}")


def refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("__"):
        raise ConfigError(f"{name} can't be read: names that begin with two underscores are Python's own")


def apply_by_name(node: nodes.Filter) -> None:
    """Puts the filter or test itself where its name is an argument, as in `map('upper')`."""
    place, find = _APPLYING.get(node.name, (0, None))
    if find is None or len(node.args) <= place:
        return
    name = getattr(node.args[place], "value", None)
    if not isinstance(name, str):
        raise ConfigError(f"{node.name} takes the name of a {'filter' if place == 0 else 'test'} as constant text")
    found = find(name)
    _refuse_arguments(name, found, node.args[place + 1 :], node.kwargs)
    node.args[place] = nodes.Const(found)


def refuse_arguments(node: nodes.Filter | nodes.Test, apply: Callable[..., Any]) -> None:
    _refuse_arguments(node.name, apply, node.args, node.kwargs)


def _refuse_arguments(name: str, apply: Callable[..., Any], args: list[Any], named: list[Any]) -> None:
    try:
        inspect.signature(apply).bind(None, None, *args, **{str(pair.key): None for pair in named})
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from error
