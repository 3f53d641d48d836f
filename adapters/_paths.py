"""Which handler a request path belongs to. No I/O.

A pattern is a path whose whole segments may be `{name}` parameters: `/orders/{id}`. Static segments win over
parameters. Each segment of a request path is percent-decoded once, after it was cut at its slashes.
"""

from __future__ import annotations

import re
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

T = TypeVar("T")

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_STATIC = re.compile(r"[^{}?#%\s\x00-\x1f\x7f]*")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def checked_pattern(text: str) -> str:
    """The pattern as it was given.

    Raises:
        ValueError: it is not a path such as `/orders` or `/orders/{id}`.
    """
    if not text.startswith("/"):
        raise ValueError(f'expected a path such as /orders or /orders/{{id}}, got "{text}"')
    names = parameters(text)
    if len(set(names)) < len(names):
        raise ValueError(f'a parameter may stand in a path once, got "{text}"')
    for segment in text.split("/"):
        if not (_PARAMETER.fullmatch(segment) or _STATIC.fullmatch(segment)):
            raise ValueError(
                f'a segment is plain text or one {{parameter}}, got "{segment}" in "{text}"; '
                "write it without query, fragment and percent signs"
            )
    return text


def parameters(pattern: str) -> tuple[str, ...]:
    """The names of the parameters of a pattern, from left to right."""
    return tuple(found[1] for segment in pattern.split("/") if (found := _PARAMETER.fullmatch(segment)))


def shape(pattern: str) -> str:
    """The pattern without the names of its parameters: two patterns of one shape take the same paths."""
    return "/".join("{}" if _PARAMETER.fullmatch(segment) else segment for segment in pattern.split("/"))


def decoded_segments(path: str) -> list[str]:
    """The segments of a raw request path behind its first slash, each percent-decoded once.

    Raises:
        ValueError: a percent sign without two hex digits, bytes that are not UTF-8, or a NUL.
    """
    segments = path[1:].split("/")
    if "%" not in path:
        return segments
    if _BAD_ESCAPE.search(path):
        raise ValueError("a percent sign in the path is not followed by two hex digits")
    try:
        decoded = [unquote_to_bytes(segment).decode() for segment in segments]
    except UnicodeDecodeError:
        raise ValueError("the path is not UTF-8 once percent-decoded") from None
    if any("\0" in segment for segment in decoded):
        raise ValueError("the path holds a NUL once percent-decoded")
    return decoded


class Place(Generic[T]):
    """What hangs on one pattern: by HTTP method, and for upgrades."""

    __slots__ = ("by_method", "inner", "left_at", "parameter", "upgrade")

    def __init__(self) -> None:
        self.by_method: dict[bytes, T] = {}
        self.upgrade: T | None = None
        self.left_at: float | None = None
        """When the last of it was taken away, by the listener's clock."""
        self.inner: dict[str, Place[T]] = {}
        self.parameter: Place[T] | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing hangs here (any more)."""
        return not self.by_method and self.upgrade is None

    @property
    def known(self) -> bool:
        """Whether something hangs here, or did."""
        return not self.empty or self.left_at is not None

    @property
    def allow(self) -> str:
        """The value of an Allow header."""
        methods = {method.decode() for method in self.by_method}
        if self.upgrade is not None:
            methods.add("GET")
        return ", ".join(sorted(methods | {"OPTIONS"}))


class Paths(Generic[T]):
    """Places by pattern. `exact` finds those without parameters by the bytes of the request target alone."""

    def __init__(self) -> None:
        self.exact: dict[bytes, Place[T]] = {}
        self._root: Place[T] = Place()

    def place(self, pattern: str) -> Place[T]:
        """The place of a pattern, made if there is none; patterns that differ in parameter names alone share one."""
        place = self._root
        for segment in pattern[1:].split("/"):
            if _PARAMETER.fullmatch(segment):
                place.parameter = place.parameter or Place()
                place = place.parameter
            else:
                place = place.inner.setdefault(segment, Place())
        if pattern.isascii() and not parameters(pattern):
            self.exact[pattern.encode()] = place
        return place

    def find(self, segments: list[str]) -> tuple[Place[T], list[str]] | None:
        """The place of these decoded segments, and the values of its parameters; None: there is none."""
        return _find(self._root, segments, 0)


def _find(place: Place[T], segments: list[str], at: int) -> tuple[Place[T], list[str]] | None:
    if at == len(segments):
        return (place, []) if place.known else None
    segment = segments[at]
    inner = place.inner.get(segment)
    found = _find(inner, segments, at + 1) if inner is not None else None
    if found is None and place.parameter is not None and segment:
        found = _find(place.parameter, segments, at + 1)
        if found is not None:
            found[1].insert(0, segment)
    return found
