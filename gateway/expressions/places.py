"""Templates that are typed by their place: URLs, file paths and MQTT topics. No value leads out of its place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import quote

from gateway.errors import ConfigError
from gateway.expressions.expression import in_scope
from gateway.expressions.sandbox import FaultError, kind
from gateway.expressions.statements import Block
from gateway.expressions.templates import Hole, Part, Template, joined, text_in


class _Placed(Template):
    """A template whose values must suit a place: text only, no statements. Always gives text."""

    __slots__ = ()

    def _keep(self, value: Any) -> None:
        raise ConfigError(f"expected text, got {kind(value)}")

    def _state(self, block: Block) -> None:
        raise ConfigError("{% %} has no place here, only {{ }}")

    def _join(self, parts: list[Part], *, scoped: bool) -> None:
        parts = self._checked(parts)
        self.constant = all(isinstance(part, str) for part in parts)
        write = in_scope(joined(parts, self._put), scoped=scoped)
        self._write = lambda message, names: self._finished(write(message, names))

    def _checked(self, parts: list[Part]) -> list[Part]:
        """The parts, once what is constant has been looked at. Raises ConfigError."""
        raise NotImplementedError

    def _put(self, value: Any, hole: Hole) -> str:
        """The text of a value at its place. Raises FaultError."""
        raise NotImplementedError

    def _finished(self, written: str) -> str:
        """The whole, once all values are in it. Raises FaultError."""
        return written


def _scalar(value: Any, hole: Hole) -> str:
    if isinstance(value, Mapping | list | tuple):
        raise _fault(hole, f"it is {kind(value)}, expected text or a number")
    return text_in(value, hole)


def _fault(hole: Hole, fault: str) -> FaultError:
    error = FaultError(fault)
    error.place = hole.text
    return error


def _bytes(written: str) -> int:
    try:
        return len(written.encode())
    except UnicodeEncodeError as error:
        raise FaultError("a value holds half of a surrogate pair") from error


_ORIGIN = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://"  # scheme
    r"(?:\[[0-9A-Fa-f:.]+\]|[^/?#@:\[\]\s\\%]+)(?::\d{1,5})?"  # host and port
    r"(?=(?P<end>[/?#])|$)"
)
_NOT_IN_URLS = re.compile(r"[\s\x00-\x1f\x7f\\]|%(?![0-9A-Fa-f]{2})")
_UNRESERVED = re.compile(r"[A-Za-z0-9_.~-]*")


class UrlTemplate(_Placed):
    """A URL in which each value is percent-encoded, `/` too. Scheme and host are constant; no user, no password.

    A value in the path is not empty and not only dots: it never leads to another place than the one written.
    """

    __slots__ = ("_path_holes", "origin")

    schema: ClassVar[dict[str, Any]] = {
        "title": "URL template",
        "type": "string",
        "description": "a URL with {{ expressions }}; scheme and host are constant, values are percent-encoded",
        "examples": ["https://crm.example/customers/{{ body.customer }}"],
    }

    def _checked(self, parts: list[Part]) -> list[Part]:
        first = parts[0] if parts and isinstance(parts[0], str) else ""
        if "@" in re.split("[/?#]", first.partition("://")[2])[0]:
            raise ConfigError("a URL holds no user and password: write them as username: and password:")
        found = _ORIGIN.match(first)
        if found is None or (found["end"] is None and len(parts) > 1):
            raise ConfigError("expected a URL that begins with a constant scheme and host, such as https://host/…")
        self.origin: str = found[0]
        """Scheme, host and port, such as `https://crm.example:8443`."""
        if any(_NOT_IN_URLS.search(part) for part in parts if isinstance(part, str)):
            raise ConfigError("a URL holds no space, control sign or backslash, and % only as in %20")
        if any(isinstance(part, Hole) and part.text.endswith("urlencode") for part in parts):
            raise ConfigError("values in a URL are percent-encoded already: leave out | urlencode")
        self._path_holes = frozenset(_path_holes(parts))
        return parts

    def _put(self, value: Any, hole: Hole) -> str:
        written = _scalar(value, hole)
        if hole in self._path_holes and not written.strip("."):
            raise _fault(hole, "it is only dots, which leads elsewhere in a URL" if written else "it is empty")
        if _UNRESERVED.fullmatch(written):
            return written
        _bytes(written)
        return quote(written, safe="")


def _path_holes(parts: list[Part]) -> Iterator[Hole]:
    """The holes in the path of a URL, rather than behind it."""
    for part in parts:
        if isinstance(part, Hole):
            yield part
        elif re.search("[?#]", part):
            return


_NAME_MAX_BYTES = 255


class PathTemplate(_Placed):
    r"""A file path in which each value is within one name: no `/`, `\`, NUL, not empty, not only dots.

    Relative paths start at the folder of the file that names them; `~` is the home where it is written, never where
    it comes with a value.
    """

    __slots__ = ("_folder",)

    schema: ClassVar[dict[str, Any]] = {
        "title": "path template",
        "type": "string",
        "description": "a file path with {{ expressions }}; a value is within one name",
        "examples": ["orders/{{ body.id }}.json"],
    }

    def __init__(self, text: Any, names: frozenset[str] = frozenset(), folder: Path | None = None) -> None:
        self._folder = folder or Path.cwd()
        super().__init__(text, names)
        self._key = (*self._key, self._folder)

    @classmethod
    def read(cls, text: Any, names: frozenset[str], folder: Path | None) -> Self:
        return cls(text, names, folder)

    def _checked(self, parts: list[Part]) -> list[Part]:
        if not parts:
            raise ConfigError("expected a file path, got nothing")
        if any("\0" in part for part in parts if isinstance(part, str)):
            raise ConfigError("a file path holds no NUL")
        home, *rest = parts
        # not Path.expanduser: it would drop a / at the end, and with it where the next value begins
        return [os.path.expanduser(home) if isinstance(home, str) else home, *rest]  # noqa: PTH111

    def _put(self, value: Any, hole: Hole) -> str:
        written = _scalar(value, hole)
        for sign, name in (("/", "/"), ("\\", "a backslash"), ("\0", "NUL")):
            if sign in written:
                raise _fault(hole, f"it holds {name}, which a file name can't")
        if not written.strip("."):
            raise _fault(hole, "it is only dots, which is no file name" if written else "it is empty")
        return written

    def _finished(self, written: str) -> str:
        longest = max(_bytes(name) for name in written.split("/"))
        if longest > _NAME_MAX_BYTES:
            raise FaultError(f"a file name has {longest} bytes, at most {_NAME_MAX_BYTES} are possible")
        return str(self._folder / written)


_TOPIC_MAX_BYTES = 65535


class TopicTemplate(_Placed):
    """An MQTT topic to publish to: no `+`, `#` and NUL, 1 to 65535 bytes of UTF-8. MQTT 5.0, section 4.7."""

    __slots__ = ("_begins",)

    schema: ClassVar[dict[str, Any]] = {
        "title": "topic template",
        "type": "string",
        "description": "an MQTT topic with {{ expressions }}; a value holds no +, # and NUL",
        "examples": ["plant/{{ body.machine }}/orders"],
    }

    def _checked(self, parts: list[Part]) -> list[Part]:
        if not parts:
            raise ConfigError("expected a topic, got nothing")
        if any(re.search("[+#\0]", part) for part in parts if isinstance(part, str)):
            raise ConfigError("a topic to publish to holds no +, # and NUL")
        self._begins = parts[0]
        return parts

    def _put(self, value: Any, hole: Hole) -> str:
        written = _scalar(value, hole)
        for sign, name in (("+", "+"), ("#", "#"), ("\0", "NUL")):
            if sign in written:
                raise _fault(hole, f"it holds {name}, which a topic can't")
        if hole is self._begins and written.startswith("$"):
            raise _fault(hole, "it begins with $, which is the broker's own")
        return written

    def _finished(self, written: str) -> str:
        size = _bytes(written)
        if not 0 < size <= _TOPIC_MAX_BYTES:
            raise FaultError(f"the topic has {size} bytes, expected 1 to {_TOPIC_MAX_BYTES}")
        return written
