"""Finds the class behind a word of `routes.yaml`: by file, then by entry point. Imports only what is named.

A module holds at most one class of each kind, called by its kind: `adapters/mqtt.py` has `Source`, `Sink` and
`Connection`, `transforms/xml.py` has `Format` or `Step`. Nothing registers itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from importlib.metadata import entry_points
from types import ModuleType
from typing import Literal

from gateway.errors import ConfigError, MessageError
from gateway.limits import Limits
from gateway.message import Formats, Tree
from gateway.ports import Format
from gateway.settings import Settings

Kind = Literal["Source", "Sink", "Connection", "Format", "Step"]

_GROUPS: dict[str, Literal["adapters", "transforms"]] = {
    "Source": "adapters",
    "Sink": "adapters",
    "Connection": "adapters",
    "Format": "transforms",
    "Step": "transforms",
}

# The wheel that an optional component needs, so that a missing one is a sentence and not a traceback.
_EXTRAS = {"mqtt": "mqtt", "mqtt_broker": "mqtt", "amqp": "amqp"}


def words(kind: Kind) -> list[str]:
    """The words that name a component of this kind, bundled and plugged in, sorted."""
    group = _GROUPS[kind]
    found = [word for word in _bundled(group) if hasattr(module(group, word), kind)]
    found += [entry.name for entry in entry_points(group=f"gateway.{group}") if hasattr(entry.load(), kind)]
    return sorted(found)


def component(kind: Kind, word: str) -> type[Settings]:
    """The class of this kind that the word names.

    Raises:
        ConfigError: there is none, or its client library is not installed.
    """
    group = _GROUPS[kind]
    found = getattr(module(group, word), kind, None) if word.isidentifier() else None
    if found is None:
        near = get_close_matches(word, words(kind), 1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(words(kind))}"
        raise ConfigError(f'no {kind.lower()} is called "{word}"{hint}')
    assert isinstance(found, type)
    assert issubclass(found, Settings)
    return found


def module(group: Literal["adapters", "transforms"], word: str) -> ModuleType | None:
    """The module of a word, bundled or from an entry point; None: there is none.

    Raises:
        ConfigError: the module is there and its client library is not; or a plug-in takes a bundled name.
    """
    plugged = [entry for entry in entry_points(group=f"gateway.{group}") if entry.name == word]
    if word in _bundled(group):
        if plugged:
            raise ConfigError(f'the plug-in {plugged[0].value} calls itself "{word}", a bundled name; rename it')
        return _imported(f"{group}.{word}", word)
    if plugged:
        loaded = plugged[0].load()
        assert isinstance(loaded, ModuleType)
        return loaded
    return None


def _bundled(group: str) -> list[str]:
    package = importlib.import_module(group)
    return [info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")]


def _imported(name: str, word: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(word)
        if extra is None or (error.name or "").split(".")[0] in {"gateway", "adapters", "transforms"}:
            raise
        raise ConfigError(
            f"{word} needs the package {error.name}, which is not installed; "
            f"install it with: pip install 'interchange-gateway[{extra}]'"
        ) from error


# Which format a content type means, so that a format is imported only when a body of its type is first read.
_BY_CONTENT_TYPE = {
    "application/json": "json",
    "text/json": "json",
    "application/xml": "xml",
    "text/xml": "xml",
    "text/plain": "text",
    "application/x-www-form-urlencoded": "form",
    "application/hl7-v2": "hl7",
    "x-application/hl7-v2+er7": "hl7",
}
_BY_SUFFIX = {"+json": "json", "+xml": "xml"}


class _Formats:
    """The formats by content type, with one route's limits; each is imported and made on first use."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._made: dict[str, Format] = {}

    def parse(self, body: bytes, content_type: str) -> Tree:
        known = self._made.get(content_type) or self._find(content_type)
        return known.parse(body, content_type, self._limits)

    def format(self, tree: Tree, content_type: str) -> bytes:
        known = self._made.get(content_type) or self._find(content_type)
        return known.format(tree)

    def _find(self, content_type: str) -> Format:
        media_type = content_type.partition(";")[0].strip().lower()
        word = _BY_CONTENT_TYPE.get(media_type) or _BY_SUFFIX.get(media_type[media_type.rfind("+") :])
        if word is None:
            raise MessageError(
                f"body: no format reads {content_type!r}; known are {', '.join(sorted(_BY_CONTENT_TYPE))}; "
                "say content_type: at the source if it is one of these",
                code="unsupported",
            )
        found = component("Format", word)()
        assert isinstance(found, Format)
        if len(self._made) < 100:  # peers choose content types: don't let them fill the memory with parameters
            self._made[content_type] = found
        return found


def formats_with(limits: Limits) -> Formats:
    """All formats, by content type, that keep to these limits."""
    return _Formats(limits)
