"""What pydantic finds wrong with a document, in the words of a person."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import UnionType
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core.core_schema import ErrorType

from gateway.documents.complaints import Complaint, Loc, did_you_mean, quoted
from gateway.documents.document import Document
from gateway.units import duration, rate, shown_duration, shown_size, size

Detail: TypeAlias = Mapping[str, Any]
"""Pydantic's own account of one fault."""

_TYPES = {
    "text": ("string_type", "string_sub_type", "string_unicode", "bytes_type"),
    "a whole number": ("int_type", "int_parsing", "int_from_float", "int_parsing_size"),
    "a number": ("float_type", "float_parsing", "finite_number", "decimal_type", "decimal_parsing"),
    "true or false": ("bool_type", "bool_parsing"),
    "a list": ("list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type", "sequence_type"),
    "a mapping": ("dict_type", "mapping_type", "model_type", "model_attributes_type", "dataclass_type"),
    "a path": ("path_type",),
    "nothing": ("none_required",),
}
_WANTED = {kind: phrase for phrase, kinds in _TYPES.items() for kind in kinds}
_LIMITS = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}
_UNITS: tuple[tuple[Callable[[object], float], Callable[[Any], str]], ...] = (
    (duration, shown_duration),
    (size, shown_size),
    (rate, lambda per_second: f"{per_second:g}/s"),
)
_KINDS_OF_PYDANTIC = frozenset(get_args(ErrorType))
_LITERAL = re.compile(r"'((?:[^'\\]|\\.)*)'|(?<![^\s,])((?!or\b)[^\s',]+)")
_EXPECTED = re.compile(r"expected (.*?), got ", re.DOTALL)

_Fault: TypeAlias = tuple[Loc, Loc, Detail]
"""Where it is in the document, what pydantic's path says beyond that, and the account."""


def complaints_of(
    error: ValidationError,
    document: Document,
    prefix: Loc = (),
    model: type[BaseModel] | None = None,
    *,
    keys_at: Callable[[Loc], Iterable[str]] | None = None,
) -> list[Complaint]:
    """What pydantic found wrong, one complaint for each value or key, without its secrets.

    prefix: where in the document the validated data stands.
    model: what it was validated by: gives the keys that exist, and both bounds of a number.
    keys_at: the keys that the mapping at a place may have, the place being the whole path; asked before the model.
    """
    wording = _Wording(document, _Types(model, prefix), keys_at)
    faults = [(prefix, detail["loc"], detail) for detail in error.errors(include_url=False)]
    settled = _settled(document, faults)
    return [wording.complaint(loc, details) for loc, details in settled if not _follows(document, loc, details)]


def _settled(document: Document, faults: Iterable[_Fault]) -> list[tuple[Loc, list[Detail]]]:
    """Each place with what is wrong there; of a union, that of the member which is nearest to what is written."""
    settled: list[tuple[Loc, list[Detail]]] = []
    unions: dict[Loc, dict[str | int, list[_Fault]]] = {}
    for loc, rest, detail in faults:
        while rest and document.has((*loc, rest[0])):
            loc, rest = (*loc, rest[0]), rest[1:]
        if not rest or rest == ("[key]",) or (len(rest) == 1 and detail["type"] == "missing"):
            settled.append((loc, [detail]))
        else:
            # what pydantic's path names and the document does not have is a member of a union, or a validator
            unions.setdefault(loc, {}).setdefault(rest[0], []).append((loc, rest[1:], detail))
    for loc, members in unions.items():
        settled += _nearest(loc, [_settled(document, member) for member in members.values()])
    return settled


def _nearest(loc: Loc, members: list[list[tuple[Loc, list[Detail]]]]) -> list[tuple[Loc, list[Detail]]]:
    inside = [
        member
        for member in members
        if all(at != loc or detail["type"] == "missing" for at, details in member for detail in details)
    ]
    if inside:
        return min(inside, key=len)
    return [(loc, [detail for member in members for at, details in member if at == loc for detail in details])]


def _follows(document: Document, loc: Loc, details: list[Detail]) -> bool:
    """Whether it is only that pydantic does not count entries which are wrong themselves, and complained about."""
    written = document.value(loc)
    return isinstance(written, list) and all(
        detail["type"] == "too_short" and detail["ctx"]["min_length"] <= len(written) for detail in details
    )


class _Types:
    """What a model's fields are at a place in the document: types, each with what pydantic annotates it with."""

    def __init__(self, model: type[BaseModel] | None, prefix: Loc) -> None:
        self._model = model
        self._prefix = prefix

    def at(self, loc: Loc) -> list[tuple[Any, tuple[Any, ...]]]:
        """The types that a value there may have, one of them; none where the model leaves it open."""
        found = _members(self._model, ())
        for part in loc[len(self._prefix) :]:
            found = [inner for outer, _ in found for inner in _below(outer, part)]
        return found

    def keys(self, loc: Loc) -> list[str]:
        """The keys of the mapping there, sorted."""
        return sorted({name for kind, _ in self.at(loc) if _is_model(kind) for name in _fields(kind)})

    def range(self, loc: Loc) -> str | None:
        """Such as `a whole number from 1 to 100`; None: no number is expected there."""
        for kind, bounds in self.at(loc):
            if kind in (int, float):
                return _range("a whole number" if kind is int else "a number", bounds)
        return None


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _members(kind: Any, metadata: tuple[Any, ...]) -> list[tuple[Any, tuple[Any, ...]]]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _members(arguments[0], (*metadata, *arguments[1:]))
    if origin in (Union, UnionType):
        return [member for argument in arguments for member in _members(argument, metadata)]
    return [(kind, metadata)]


def _below(kind: Any, part: str | int) -> list[tuple[Any, tuple[Any, ...]]]:
    if _is_model(kind):
        field = _fields(kind).get(str(part))
        return _members(field.annotation, tuple(field.metadata)) if field else []
    arguments = get_args(kind)
    if not arguments:
        return []
    if isinstance(part, str):
        return _members(arguments[-1], ()) if get_origin(kind) in (dict, Mapping) else []
    return _members(arguments[0], ())


def _range(word: str, metadata: tuple[Any, ...]) -> str:
    limits = {name: getattr(each, name) for each in metadata for name in _LIMITS if hasattr(each, name)}
    if limits.keys() == {"ge", "le"}:
        return f"{word} from {_number(limits['ge'])} to {_number(limits['le'])}"
    bounds = " and ".join(f"{_LIMITS[name]} {_number(limit)}" for name, limit in limits.items())
    return f"{word} {bounds}".rstrip()


class _Wording:
    """Pydantic's accounts in our words."""

    def __init__(self, document: Document, types: _Types, keys_at: Callable[[Loc], Iterable[str]] | None) -> None:
        self._document = document
        self._types = types
        self._keys_at = keys_at

    def complaint(self, loc: Loc, details: list[Detail]) -> Complaint:
        texts = list(dict.fromkeys(self._text(loc, detail) for detail in details))
        wanted = [found[1] for text in texts if (found := _EXPECTED.match(text))]
        if len(wanted) > 1:
            either = (", or " if any("," in phrase for phrase in wanted) else " or ").join(wanted)
            texts = [f"expected {either}, got {self._document.shown(loc)}"]
        key = details[0]["type"] in ("missing", "extra_forbidden", "unknown_name") or _is_key(details[0])
        return self._document.complaint(loc, texts[0], key=key)

    def _text(self, loc: Loc, detail: Detail) -> str:
        kind, context = detail["type"], detail.get("ctx", {})
        if kind == "missing":
            return f"a required key is missing: {detail['loc'][-1]}"
        if kind == "extra_forbidden":
            return f"unknown key {quoted(str(loc[-1]))}{self._known_keys(loc)}"
        if kind in ("value_error", "assertion_error"):
            return str(context["error"])
        got = f"{quoted(str(loc[-1]))} as a key" if _is_key(detail) else self._document.shown(loc)
        if kind in ("literal_error", "enum"):
            return self._choice(loc, context["expected"], got)
        wanted = self._wanted(loc, kind, context)
        if kind in ("too_short", "too_long"):
            got = _entries(context["actual_length"])
        if wanted is not None:
            return f"expected {wanted}, got {got}"
        message = str(detail["msg"])
        if kind not in _KINDS_OF_PYDANTIC:
            return message
        message = message.replace("Input should be", "expected", 1)
        return f"{message[:1].lower()}{message[1:]}, got {got}"

    def _choice(self, loc: Loc, expected: str, got: str) -> str:
        choices = [quoted or bare for quoted, bare in _LITERAL.findall(expected)]
        wanted = f"one of {', '.join(choices)}" if len(choices) > 1 else "".join(choices)
        near = "" if self._document.is_secret(loc) else did_you_mean(got.split('"')[1] if '"' in got else got, choices)
        return f"expected {wanted}, got {got}{near}"

    def _wanted(self, loc: Loc, kind: str, context: Mapping[str, Any]) -> str | None:
        if kind in _BOUNDS:
            return self._bound(loc, kind, context)
        if kind in ("too_short", "too_long", "string_too_short", "string_too_long"):
            return _length(kind, context)
        if kind == "string_pattern_mismatch":
            return f"text that matches {context['pattern']}"
        wanted = _WANTED.get(kind)
        if wanted in ("a whole number", "a number"):
            return self._types.range(loc) or wanted
        return wanted

    def _known_keys(self, loc: Loc) -> str:
        if self._keys_at is not None:
            keys = sorted(self._keys_at(loc[:-1]))
        else:
            keys = self._types.keys(loc[:-1])
        return did_you_mean(str(loc[-1]), keys) or (f"; there are: {', '.join(keys)}" if keys else "")

    def _bound(self, loc: Loc, kind: str, context: Mapping[str, Any]) -> str:
        words, name = _BOUNDS[kind]
        for read, show in _UNITS:
            with suppress(ValueError):
                read(self._document.value(loc))
                return f"{words} {show(context[name])}"
        return self._types.range(loc) or f"{words} {_number(context[name])}"


def _length(kind: str, context: Mapping[str, Any]) -> str:
    words, count = ("at least", context["min_length"]) if "short" in kind else ("at most", context["max_length"])
    if kind.startswith("string"):
        return f"text of {words} {count} character{'' if count == 1 else 's'}"
    return f"{words} {_entries(count)}"


def _entries(count: int | None) -> str:
    return "more entries" if count is None else f"{count} {'entry' if count == 1 else 'entries'}"


def _is_key(detail: Detail) -> bool:
    return bool(detail["loc"][-1:] == ("[key]",))


def _number(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else str(number)
