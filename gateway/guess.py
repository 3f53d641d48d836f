"""A body that a route would take, guessed from what its expressions name, and tried on its steps."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from gateway.errors import GatewayError
from gateway.formats import formats_with
from gateway.language import Route
from gateway.limits import Limits
from gateway.message import Message
from gateway.path import Pattern

_NAMED = re.compile(r"\bbody((?:\.[A-Za-z_]\w*)+)(\s*\()?")
_COMPARED = re.compile(r"""\s*(==|!=|>=|<=|>|<)\s*(?:'([^'\\]*)'|"([^"\\]*)"|(\d+(?:\.\d+)?))""")
_COUNTED = re.compile(r"\s*(\|\s*(int|float|round|abs)\b|[-+*/]\s*\d|is\s+(number|integer|float)\b)")
_NUMBER = 1000
"""Large, where it may be: examples of routes like to look at large amounts."""


def guessed(route: Route) -> Any:
    """A JSON object with a value for each `body.…` that the route's expressions name; None: they name none."""
    found: dict[str, Any] = {}
    for text in _texts([route.accept, route.steps, [(target.when, target.steps, target.sink) for target in route.to]]):
        for name in _NAMED.finditer(text):
            keys = name[1][1:].split(".")
            if name[2]:
                keys.pop()  # the last one is a method
            if keys:
                _put(found, keys, _value(text[name.end() :]))
    return found or None


def passes(route: Route, body: Any, transport: Mapping[str, Any]) -> bool:
    """Whether checks, steps and the condition of a target surely let this body through.

    Patterns are not tried, nor is a step that does more than to change the message: this one is made up.
    """
    if any(isinstance(step, Pattern) or getattr(step, "acts", False) for step in (*route.accept, *route.steps)):
        return False
    message = Message(
        raw=json.dumps(body).encode(),
        content_type="application/json",
        transport=dict(transport),
        formats=formats_with(Limits()),
    )
    try:
        for check in route.accept:
            if check(message) is None:
                return False
        for step in route.steps:
            made = step(message)
            if made is None:
                return False
            message = made
        return any(target.when is None or target.when(message) for target in route.to)
    except GatewayError:
        return False


def _texts(value: Any) -> Iterator[str]:
    """The texts in settings, wherever they stand, those of expressions and templates among them."""
    if isinstance(value, BaseModel):
        value = [getattr(value, name) for name in type(value).model_fields]
    written = getattr(value, "text", None) or getattr(value, "value", None)
    if isinstance(value, str):
        yield value
    elif isinstance(written, str | Mapping | list | tuple):
        yield from _texts(written)
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _value(behind: str) -> Any:
    compared = _COMPARED.match(behind)
    if compared is None:
        return _NUMBER if _COUNTED.match(behind) else "text"
    sign, single, double, number = compared.groups()
    if number is None:
        said = single if single is not None else double
        return said if sign == "==" else "text"
    limit = float(number) if "." in number else int(number)
    if sign in ("==", ">=", "<="):
        return max(limit, _NUMBER) if sign == ">=" else limit
    return max(limit + 1, _NUMBER) if sign != "<" else limit - 1


def _put(found: dict[str, Any], keys: list[str], value: Any) -> None:
    *above, last = keys
    for key in above:
        inner = found.get(key)
        if not isinstance(inner, dict):
            inner = found[key] = {}
        found = inner
    if found.get(last, "text") == "text":  # what is compared says more
        found[last] = value
