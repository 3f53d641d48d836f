"""Schemas, compiled at load: JSON Schema and XSD. Neither ever fetches anything from a network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import jsonschema_rs
from lxml import etree

from gateway import Message, MessageError, Tree
from transforms._xml import SameFolder, parser, root_of

_SHOWN = 60
_2020 = "https://json-schema.org/draft/2020-12/schema"


class Schema(Protocol):
    """A compiled schema."""

    path: Path

    def check(self, message: Message) -> None:
        """Returns if the message's body keeps to it.

        Raises:
            MessageError: the first place that does not, and why.
        """
        ...


def schema_of(path: Path) -> Schema:
    """The schema in a file: `.json` is JSON Schema, `.xsd` is XML Schema 1.0.

    Raises:
        ValueError: it is broken, refers to what is not in its folder, or is of another kind.
    """
    kind = path.suffix.lower()
    if kind == ".json":
        return JsonSchema(path)
    if kind == ".xsd":
        return XmlSchema(path)
    raise ValueError(f"expected a schema in a .json or .xsd file, got {path.name}")


class JsonSchema:
    """JSON Schema, of the draft that `$schema` names, 2020-12 if it names none. Formats are asserted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = path.parent.resolve()
        self._not_found: str | None = None
        schema = _read(path)
        if isinstance(schema, dict):
            schema.setdefault("$schema", _2020)
        try:
            self._validator = jsonschema_rs.validator_for(
                schema,
                validate_formats=True,
                retriever=self._retrieve,
                base_uri=path.resolve().as_uri(),
                mask="it",
            )
        except jsonschema_rs.ValidationError as error:
            place = _path("schema", error.instance_path)
            text = self._not_found or f"{place}: {_short(error.message)}"
            raise ValueError(f"{path.name} is no JSON Schema to use: {text}") from None
        except (ValueError, jsonschema_rs.ReferencingError) as error:
            raise ValueError(f"{path.name} is no JSON Schema to use: {self._not_found or _short(str(error))}") from None

    def check(self, message: Message) -> None:
        tree = message.tree
        try:
            if self._validator.is_valid(tree):
                return
            failure = next(iter(self._validator.iter_errors(tree)))
        except ValueError as error:
            raise MessageError(f"validate: {self.path.name} can't be applied: {_short(str(error))}") from None
        raise MessageError(f"validate: {self._text(failure, tree)}")

    def _text(self, error: jsonschema_rs.ValidationError, tree: Tree) -> str:
        name, place = self.path.name, _path("body", error.instance_path)
        kind: Any = error.kind  # each keyword has a class of its own, with fields of its own
        keyword = kind.name
        if keyword == "required":
            missing = _path(place, [kind.property])
            return f"{missing} is missing; {name} requires it"
        if keyword in ("additionalProperties", "unevaluatedProperties"):
            unexpected = _path(place, kind.unexpected[:1])
            return f"{unexpected} is unexpected; {name} does not know it"
        if keyword == "falseSchema":
            return f"{place} is unexpected; {name} allows nothing there"
        found: Any = tree  # the engine's own copy has lost the digits of a long number
        for step in error.instance_path:
            found = found[step]
        return f"{place} is {_shown(found)}; {name} says: {_short(error.message)}"

    def _retrieve(self, uri: str) -> Any:
        """The schema that a `$ref` names: only ever a file in the folder of the one that names it."""
        try:
            return _read(self._file_of(uri))
        except ValueError as error:
            self._not_found = str(error)
            raise

    def _file_of(self, uri: str) -> Path:
        parts = urlsplit(uri)
        if parts.scheme == "file":
            path = Path(unquote(parts.path)).resolve()
            if not path.is_relative_to(self._folder):
                raise ValueError(
                    f"it refers to {path.name} outside of its own folder; keep what it refers to beside it"
                )
            if not path.is_file():
                raise ValueError(f"it refers to {path.relative_to(self._folder)}, and there is no such file beside it")
            return path
        for path in sorted(self._folder.glob("*.json")):
            try:
                schema = _read(path)
            except ValueError:
                continue  # a neighbour that is none of this schema's business
            if isinstance(schema, dict) and str(schema.get("$id", "")).rstrip("#") == uri:
                return path
        raise ValueError(
            f"it refers to {_short(uri)}, which is never fetched; keep that schema beside it, with this as its $id"
        )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is no JSON: {_short(str(error))}") from None


class XmlSchema:
    """XML Schema 1.0; what it includes or imports is in its own folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        reader = parser()
        neighbours = SameFolder(path, "schema")
        reader.resolvers.add(neighbours)
        try:
            self._schema = etree.XMLSchema(etree.parse(path, reader))
        except etree.LxmlError as error:
            raise ValueError(f"{path.name} is no XML Schema: {neighbours.refused or _short(str(error))}") from None
        except OSError as error:
            raise ValueError(f"{path.name} can't be read: {error.strerror or 'not found'}") from None

    def check(self, message: Message) -> None:
        media_type = message.content_type.partition(";")[0].strip().lower()
        if not media_type.endswith(("/xml", "+xml")):
            raise MessageError(f"validate: {self.path.name} checks XML, the body is {media_type:.60}")
        root = root_of(message.body, message.content_type, message.formats.limits)
        if self._schema.validate(root):
            return
        error: Any = next(iter(self._schema.error_log))  # type: ignore[call-overload]  # the stubs lack __iter__
        text = re.sub(rf"'([^']{{{_SHOWN}}})[^']*'", r"'\1…'", error.message or "is not valid").rstrip(".")
        raise MessageError(f"validate: line {error.line}: {_short(text)} ({self.path.name})")


def _path(root: str, steps: Any) -> str:
    path = root
    for step in steps:
        path += f"[{step}]" if isinstance(step, int) else f".{_short(str(step))}"
    return path


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str) or value is None or isinstance(value, bool):
        text = json.dumps(value, ensure_ascii=False)
    else:
        text = str(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:199] + "…"
