"""A value that keeps to a JSON Schema, to show what a message may look like. Not a fuzzer: one plain value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_DEPTH = 16
_FORMATS = {
    "date-time": "2026-01-31T12:00:00Z",
    "date": "2026-01-31",
    "time": "12:00:00Z",
    "email": "someone@example.com",
    "uri": "https://example.com/",
    "uuid": "018f2d5e-7b5a-7000-8000-000000000000",
    "ipv4": "192.0.2.1",
}


def sample(schema: object) -> Any:
    """A value for this schema: its example, constant, first choice or default, else made of its parts.

    What it does not follow: patterns, conditions, and references out of the schema.
    """
    return _sample(schema, schema, 0)


def _sample(schema: object, root: object, depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > _DEPTH:
        return None
    for word in ("examples", "enum"):
        if isinstance(schema.get(word), list) and schema[word]:
            return schema[word][0]
    for word in ("const", "default"):
        if word in schema:
            return schema[word]
    if isinstance(schema.get("$ref"), str):
        return _sample(_within(root, schema["$ref"]), root, depth + 1)
    for word in ("anyOf", "oneOf"):
        if isinstance(schema.get(word), list) and schema[word]:
            return _sample(schema[word][0], root, depth + 1)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind is None:
        kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
    make = _MAKERS.get(str(kind))
    return make(schema, root, depth) if make else None


def _object(schema: Mapping[str, Any], root: object, depth: int) -> dict[str, Any]:
    properties = schema.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    wanted = schema.get("required") or list(properties)
    return {name: _sample(properties.get(name, {}), root, depth + 1) for name in wanted}


def _array(schema: Mapping[str, Any], root: object, depth: int) -> list[Any]:
    count = min(max(int(schema.get("minItems", 1)), 1), 10)
    return [_sample(schema.get("items", {}), root, depth + 1) for _ in range(count)]


def _string(schema: Mapping[str, Any], root: object, depth: int) -> str:
    text = _FORMATS.get(str(schema.get("format")), "text")
    text = text.ljust(int(schema.get("minLength", 0)), "x")
    return text[: int(schema["maxLength"])] if "maxLength" in schema else text


def _number(schema: Mapping[str, Any], root: object, depth: int) -> int | float:
    """Large, where it may be: examples of routes like to look at large amounts."""
    value: int | float = 1000
    value = max(value, schema.get("minimum", value), schema.get("exclusiveMinimum", value - 1) + 1)
    value = min(value, schema.get("maximum", value), schema.get("exclusiveMaximum", value + 1) - 1)
    step = schema.get("multipleOf")
    return value // step * step if step else value


_MAKERS: dict[str, Callable[[Mapping[str, Any], object, int], Any]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "number": _number,
    "integer": _number,
    "boolean": lambda schema, root, depth: True,
}


def _within(root: object, reference: str) -> object:
    """What a `#/…` reference of the schema names; None: it leaves the schema."""
    if not reference.startswith("#"):
        return None
    found: Any = root
    for part in reference[1:].strip("/").split("/") if reference != "#" else []:
        name = part.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
