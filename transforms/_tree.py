"""A tree of templates, as `map` and `set` have it: compiled at load to functions that make a tree of values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Annotated, Any, NoReturn

from pydantic import PlainSerializer, PlainValidator, ValidationError, ValidationInfo, WithJsonSchema
from pydantic_core import InitErrorDetails, PydanticCustomError

from gateway import PLACE, ConfigError, Expression, Message, MessageError, Template, Tree, loading

Names = Mapping[str, Any]
_Make = Callable[[Message, Names], Any]

_NO_NAMES: Names = {}
_LOOP = frozenset({"each", "as", "do"})


class _PlacedError(MessageError):
    """Already says at which key it happened."""


def _place(place: str, error: MessageError, at: str = "") -> NoReturn:
    """Raises the error with its place, once; a body that can't be parsed is wrong as a whole, whoever needs it."""
    if error.code != "refused" or (isinstance(error, _PlacedError) and not at):
        raise error
    text = str(error) if isinstance(error, _PlacedError) else f"{place}: {error}"
    raise _PlacedError(text + at) from error


_Loc = tuple[str | int, ...]


class _FaultsError(ConfigError):
    """What can't be compiled: each fault with its place in the tree."""

    def __init__(self, faults: list[tuple[_Loc, str]], place: str = "") -> None:
        self.faults = faults
        super().__init__("; ".join(f"{place}{_path(loc)}: {text}" for loc, text in faults))


def _path(loc: _Loc) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)


def _fault(text: str, *loc: str | int) -> _FaultsError:
    return _FaultsError([(loc, text)])


class TreeTemplate:
    """Nested mappings and lists of templates and constants, and loops: `{each: expression, as: name, do: tree}`.

    Called with a message it gives the tree of values.

    Raises:
        MessageError: a value is undefined, or can't be computed; says at which key.
    """

    def __init__(self, value: Any, names: frozenset[str] = frozenset(), *, place: str = "map") -> None:
        """Compiles; `names` may be used beside the usual ones, `place` starts the texts of errors.

        Raises:
            ConfigError: an expression can't be compiled, or a loop lacks a part; says at which key.
        """
        self.value = value
        try:
            self._make = _compiled(value, names, place)
        except _FaultsError as error:
            raise _FaultsError(error.faults, place) from error

    def __call__(self, message: Message, names: Names = _NO_NAMES) -> Tree:
        tree: Tree = self._make(message, names)
        return tree

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TreeTemplate) and self.value == other.value

    def __hash__(self) -> int:
        return hash(repr(self.value))

    def __repr__(self) -> str:
        return f"TreeTemplate({self.value!r})"


def _reader(place: str) -> PlainValidator:
    def read(value: object, info: ValidationInfo) -> TreeTemplate:
        if isinstance(value, TreeTemplate):
            return value
        try:
            return TreeTemplate(value, loading(info).names, place=place)
        except _FaultsError as error:
            raise _at_their_places(error) from error

    return PlainValidator(read)


def _at_their_places(error: _FaultsError) -> ValidationError:
    lines = [
        InitErrorDetails(type=PydanticCustomError("template", "{text}", {"text": text}), loc=loc, input=None)
        for loc, text in error.faults
    ]
    return ValidationError.from_exception_data("template", lines)


_WRITER = PlainSerializer(lambda tree: tree.value)
_SCHEMA = WithJsonSchema({"description": "a mapping, a list, a number or a text with {{ expressions }}"})

MapTree = Annotated[TreeTemplate, _reader("map"), _WRITER, _SCHEMA]
"""The field type of the tree that `map` makes."""
SetTree = Annotated[TreeTemplate, _reader("set.body"), _WRITER, _SCHEMA]
"""The field type of the values that `set` puts into the body."""


def _compiled(value: Any, names: frozenset[str], place: str) -> _Make:
    if isinstance(value, dict):
        if "each" in value and "do" in value:
            return _loop(value, names, place)
        return _mapping(value, names, place)
    if isinstance(value, list):
        return _list(value, names, place)
    if isinstance(value, str):
        return _leaf(value, names, place)
    if value is None or isinstance(value, bool | int | float | Decimal):
        return lambda message, names: value
    raise _fault(f"expected a text, a number, a mapping or a list, got {type(value).__name__}")


def _parts(parts: Iterable[tuple[str | int, Any]], names: frozenset[str], place: str) -> list[_Make]:
    """All of them compiled, or all of their faults."""
    makers: list[_Make] = []
    faults: list[tuple[_Loc, str]] = []
    for part, item in parts:
        try:
            makers.append(_compiled(item, names, place + _path((part,))))
        except _FaultsError as error:
            faults += [((part, *loc), text) for loc, text in error.faults]
    if faults:
        raise _FaultsError(faults)
    return makers


def _leaf(text: str, names: frozenset[str], place: str) -> _Make:
    try:
        template = Template(text, names)
    except ConfigError as error:
        raise _fault(str(error)) from error
    if template.constant:
        return lambda message, names: text
    make: _Make = template
    return make


def _mapping(value: dict[Any, Any], names: frozenset[str], place: str) -> _Make:
    for key in value:
        if not isinstance(key, str):
            raise _fault(f"the key {key!r} is no text; put it in quotes")
        if "{{" in key:
            raise _fault(f'the key "{key}" is a template; only values can be')
    makers = list(zip(value, _parts(value.items(), names, place), strict=True))

    def make(message: Message, names: Names) -> dict[str, Any]:
        made = {}
        key = ""
        try:
            for key, maker in makers:
                made[key] = maker(message, names)
        except MessageError as error:
            _place(f"{place}.{key}", error)
        return made

    return make


def _list(value: list[Any], names: frozenset[str], place: str) -> _Make:
    makers = _parts(enumerate(value), names, place)

    def make(message: Message, names: Names) -> list[Any]:
        made: list[Any] = []
        try:
            for maker in makers:
                made.append(maker(message, names))
        except MessageError as error:
            _place(f"{place}[{len(made)}]", error)
        return made

    return make


def _loop(value: dict[str, Any], names: frozenset[str], place: str) -> _Make:
    unknown = [key for key in value if key not in _LOOP]
    if unknown:
        raise _fault(f"a loop has each:, as: and do:, got {unknown[0]}: as well")
    name = value.get("as", "item")
    if not isinstance(name, str) or not name.isidentifier():
        raise _fault(f"expected a name, got {name!r}", "as")
    if not isinstance(value["each"], str):
        raise _fault("expected an expression, such as body.lines", "each")
    try:
        each = Expression(value["each"], names)
    except ConfigError as error:
        raise _fault(str(error), "each") from error
    (do,) = _parts([("do", value["do"])], names | {name, "index"}, place)

    def make(message: Message, names: Names) -> list[Any]:
        try:
            items = each(message, names)
        except MessageError as error:
            _place(f"{place}.each", error)
        if items is None:
            return []
        if not isinstance(items, list | tuple):
            kind = "a mapping" if isinstance(items, Mapping) else type(items).__name__
            raise _PlacedError(
                f"{place}.each: {each.text} is {kind}, expected a list; of XML, arrays: makes an element always a list"
            )
        inner = dict(names)
        made: list[Any] = []
        try:
            for index, item in enumerate(items):
                inner[name] = item
                inner["index"] = index
                inner[PLACE] = f"{names.get(PLACE, '')}/{index}"  # so that uuid() differs from element to element
                made.append(do(message, inner))
        except MessageError as error:
            _place(f"{place}.do", error, f" (at index {len(made)})")
        return made

    return make
