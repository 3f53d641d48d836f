"""Plain data in which every value knows where it is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from gateway.documents.complaints import Complaint, Loc, Place, quoted, shown_value, subject_of

_PIECE = re.compile(r"""'([^'\s]+)'|"(['!"])"|(\w+)\(|^(\w+): """)
"""What a complaint about an expression may name of it: with a secret not in quotes there, a piece of the secret."""

Scalar: TypeAlias = str | int | float | bool | None
Data: TypeAlias = dict[str, Any] | list[Any] | Scalar


@dataclass(slots=True, eq=False)
class Node:
    """One value with its place. `written` has references where `value` has secrets."""

    place: Place
    value: Scalar | list[Node] | dict[str, Entry]
    written: Scalar = None
    secrets: tuple[tuple[str, str], ...] = ()
    """The references in it, each with the secret that it stands for."""
    size: int = 1
    height: int = 1

    def child(self, part: str | int) -> Node | None:
        match self.value:
            case dict() as entries:
                return entries[part].node if isinstance(part, str) and part in entries else None
            case list() as items:
                return items[part] if isinstance(part, int) and 0 <= part < len(items) else None
            case _:
                return None

    def children(self) -> Iterator[Node]:
        match self.value:
            case dict() as entries:
                yield from (entry.node for entry in entries.values())
            case list() as items:
                yield from items
            case _:
                pass

    def data(self, *, written: bool) -> Data:
        match self.value:
            case dict() as entries:
                return {key: entry.node.data(written=written) for key, entry in entries.items()}
            case list() as items:
                return [item.data(written=written) for item in items]
            case scalar:
                return self.written if written else scalar

    def all_secrets(self) -> Iterator[tuple[str, str]]:
        yield from self.secrets
        for child in self.children():
            yield from child.all_secrets()


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    key: Place
    node: Node


class Document:
    """A file, or a folder of files merged, as plain data with places."""

    def __init__(self, root: Node) -> None:
        self._root = root
        self.data: dict[str, Any] = _mapping(root.data(written=False))
        """With secrets put in."""
        self.raw: dict[str, Any] = _mapping(root.data(written=True))
        """For display: as written, with references instead of secrets."""

    def place(self, loc: Loc, *, key: bool = False) -> Place:
        """Where the value at this path is written, or its key; for a path that is not there, its nearest ancestor."""
        node, place = self._root, self._root.place
        for part in loc:
            child = node.child(part)
            if child is None:
                break
            place = child.place
            if key and isinstance(node.value, dict) and isinstance(part, str):
                place = node.value[part].key
            node = child
        return place

    def folder(self, loc: Loc) -> Path:
        """The folder of the file that this value stands in: where its relative paths start."""
        return Path(self.place(loc).file).parent

    def value(self, loc: Loc) -> Data:
        """The value at this path, with secrets put in; None: there is none."""
        node = self._at(loc)
        return node.data(written=False) if node else None

    def has(self, loc: Loc) -> bool:
        """Whether there is a value at this path."""
        return self._at(loc) is not None

    def is_secret(self, loc: Loc) -> bool:
        """Whether the value there has a secret in it, at any depth."""
        return any(True for _ in self._secrets(loc))

    def shown(self, loc: Loc) -> str:
        """The value there as complaints show it: references instead of secrets."""
        node = self._at(loc)
        return shown_value(node.data(written=True)) if node else "nothing"

    def complaint(self, loc: Loc, text: str, *, key: bool = False) -> Complaint:
        """A complaint about the value at this path (or its key), in whose text no secret of that value is left."""
        return Complaint(self.place(loc, key=key), subject_of(loc), self.without_secrets(text, loc))

    def without_secrets(self, text: str, loc: Loc) -> str:
        """The text with the reference in place of each secret of the value at this path."""
        secrets = self.secrets(loc)
        if not secrets:
            return text
        before, got, _ = text.partition(", got ")
        if got:  # what was got may be cut or escaped, so that no search finds the secret in it
            text = f"{before}, got {self.shown(loc)}"
        text = masked(text, secrets)
        node = self._at(loc)
        if node is None or not isinstance(node.written, str) or node.written == secrets[0][0]:
            return text
        pieces = {piece.lower() for found in _PIECE.findall(text) for piece in found if piece}
        for reference, secret in secrets:
            if any(piece in secret.lower() for piece in pieces):
                return f"it can't be read with {reference} put in; as a text in an expression it needs quotes"
        return text

    def secrets(self, loc: Loc) -> tuple[tuple[str, str], ...]:
        """The references in the value at this path, each with its secret, the longest secret first."""
        return tuple(sorted(set(self._secrets(loc)), key=lambda pair: -len(pair[1])))

    def _at(self, loc: Loc) -> Node | None:
        node: Node | None = self._root
        for part in loc:
            node = node.child(part) if node else None
        return node

    def _secrets(self, loc: Loc) -> Iterator[tuple[str, str]]:
        node = self._at(loc)
        return node.all_secrets() if node else iter(())


def masked(text: str, secrets: Iterable[tuple[str, str]]) -> str:
    """The text with the reference in place of each of these secrets."""
    for reference, secret in secrets:
        for form in {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quoted(secret)[1:-1]} - {""}:
            # a secret as short as "5" is masked only as a word of its own: else "5s" in a sentence would suffer
            pattern = re.escape(form) if len(form) >= 6 else rf"(?<!\w){re.escape(form)}(?!\w)"
            text = re.sub(pattern, reference.replace("\\", r"\\"), text, flags=re.IGNORECASE)
    return text


def _mapping(data: Data) -> dict[str, Any]:
    assert isinstance(data, dict)
    return data
