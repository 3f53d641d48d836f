"""The filters that make text, times and digests of values."""

# ruff: noqa: FBT002 - the places of the arguments are Jinja2's
from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from gateway.expressions.arithmetic import effort, number, small
from gateway.expressions.methods import join, replace
from gateway.expressions.sandbox import FaultError, Scope, json, kind, text


def _of_text(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(scope: Scope, value: Any) -> Any:
        written = text(value)
        scope.spend(effort(written))
        return method(written)

    return call


def _trim(scope: Scope, value: Any, chars: Any = None) -> str:
    if not isinstance(chars, str | None):
        raise FaultError(f"trim takes the signs to cut off as text, got {kind(chars)}")
    written = text(value)
    scope.spend(effort(written))
    return written.strip(chars)


_WORDS = re.compile(r"([-\s({\[<]+)")


def _title(value: str) -> str:
    return "".join(word[0].upper() + word[1:].lower() for word in _WORDS.split(value) if word)


def _truncate(
    scope: Scope, value: Any, length: Any = 255, killwords: Any = False, end: Any = "...", leeway: Any = 5
) -> str:
    """At most `length` characters, `end` included; up to `leeway` more are let be, as in Jinja2."""
    written, last = text(value), text(end)
    most = small(length, "the length")
    if most < len(last) or small(leeway, "the leeway") < 0:
        raise FaultError(f"the length is {len(last)} or more, the leeway 0 or more")
    if len(written) <= most + leeway:
        return written
    cut = written[: most - len(last)]
    return (cut if killwords else cut.rsplit(" ", 1)[0]) + last


def _urlencode(scope: Scope, value: Any) -> str:
    if isinstance(value, Mapping):
        scope.spend(2 * len(value))
        pairs = [(quote(text(key), safe=""), quote(text(one), safe="")) for key, one in value.items()]
        return join(scope, "&", [f"{key}={one}" for key, one in pairs])
    written = text(value)
    scope.made(3 * len(written))
    return quote(written, safe="/")


def _replace(scope: Scope, value: Any, old: Any, new: Any, count: Any = None) -> str:
    return replace(scope, text(value), old, new, count)


def _hash(scope: Scope, value: Any, algorithm: Any = "sha256") -> str:
    """The digest of the text's UTF-8 bytes in hexadecimal; sha256 or sha512."""
    if algorithm not in ("sha256", "sha512"):
        raise FaultError("hash knows sha256 and sha512")
    written = text(value)
    scope.spend(effort(written))
    return hashlib.new(algorithm, written.encode()).hexdigest()


_DIRECTIVES = frozenset("YmdHMSfjyzZbBaAIpuGVUW%")


_MOMENT_MAX = 40


def _date(scope: Scope, value: Any, format: Any = "%Y-%m-%dT%H:%M:%SZ") -> str:
    """A moment in another form: an RFC 3339 text, or a number of seconds since 1970, as Python's strftime writes it.

    The moment keeps the offset that it was written with; a number is UTC.
    """
    if not isinstance(format, str) or len(format) > 200:
        raise FaultError("the format of date is a text such as %Y-%m-%d")
    for directive in re.findall(r"%(.?)", format.replace("%%", "")):
        if directive not in _DIRECTIVES or not directive:
            raise FaultError(f"the format of date has no directive %{directive}")
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value.strip() if len(value) <= _MOMENT_MAX else "")
        else:
            moment = datetime.fromtimestamp(float(number(value)), UTC)
        return moment.strftime(format)
    except (ValueError, OverflowError, OSError) as error:
        raise FaultError("it is no moment, expected one such as 2026-11-21T02:34:41Z") from error


def _tojson(scope: Scope, value: Any, indent: Any = None) -> str:
    written = json(value, None if indent is None else min(small(indent, "indent"), 8))
    scope.spend(len(written))
    return written


def _string(scope: Scope, value: Any) -> str:
    found = text(value)
    scope.spend(effort(found))
    return found


TEXT_FILTERS: dict[str, Callable[..., Any]] = {
    "capitalize": _of_text(str.capitalize),
    "date": _date,
    "hash": _hash,
    "lower": _of_text(str.lower),
    "replace": _replace,
    "string": _string,
    "title": _of_text(_title),
    "tojson": _tojson,
    "trim": _trim,
    "truncate": _truncate,
    "upper": _of_text(str.upper),
    "urlencode": _urlencode,
    "wordcount": _of_text(lambda value: len(re.findall(r"\w+", value))),
}
