"""Numbers and truth values are taken as YAML writes them: text is none of them, unless it came from a reference."""

from __future__ import annotations

import re
from typing import Any

from pydantic_core import core_schema

_NUMBERS = {"int": re.compile(r"[-+]?[0-9]{1,400}"), "float": re.compile(r"[-+]?[0-9]{1,400}(\.[0-9]{1,400})?")}
_TRUTHS = {"true": True, "false": False}
_NO_SCHEMAS = frozenset({"default", "metadata", "serialization", "function", "config", "cls", "expected", "ref"})


class Referenced(str):
    """The value of a reference such as `${env:CONCURRENCY}`: always text, so it may stand for a number, too."""

    __slots__ = ()


def exact(schema: Any) -> Any:
    """The same core schema, in which whole numbers, numbers and truth values are no longer made of other types."""
    if isinstance(schema, list):
        return [exact(each) for each in schema]
    if isinstance(schema, tuple):
        return tuple(exact(each) for each in schema)
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind in _READS and not schema.get("strict"):
        return core_schema.no_info_before_validator_function(_READS[kind], {**schema, "strict": True})
    if kind == "model-fields":
        return {**schema, "fields": {name: exact(field) for name, field in schema["fields"].items()}}
    return {key: value if key in _NO_SCHEMAS else exact(value) for key, value in schema.items()}


def _bool(value: Any) -> Any:
    return _TRUTHS.get(value.strip().lower(), value) if isinstance(value, Referenced) else value


def _int(value: Any) -> Any:
    return int(value) if isinstance(value, Referenced) and _NUMBERS["int"].fullmatch(value) else value


def _float(value: Any) -> Any:
    return float(value) if isinstance(value, Referenced) and _NUMBERS["float"].fullmatch(value) else value


_READS = {"bool": _bool, "int": _int, "float": _float}
