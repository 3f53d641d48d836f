"""A tree of templates, as `map` and `set` have it: compiled at load to functions that make a tree of values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Annotated, Any, NoReturn

from pydantic import PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

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
        self._make = _compiled(value, names, place)

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
        except ConfigError as error:
            raise ValueError(str(error)) from error

    return PlainValidator(read)


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
    raise ConfigError(f"{place}: expected a text, a number, a mapping or a list, got {type(value).__name__}")


def _leaf(text: str, names: frozenset[str], place: str) -> _Make:
    try:
        template = Template(text, names)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    if template.constant:
        return lambda message, names: text
    make: _Make = template
    return make


def _mapping(value: dict[Any, Any], names: frozenset[str], place: str) -> _Make:
    makers = []
    for key, item in value.items():
        if not isinstance(key, str):
            raise ConfigError(f"{place}: the key {key!r} is no text; put it in quotes")
        if "{{" in key:
            raise ConfigError(f'{place}: the key "{key}" is a template; only values can be')
        makers.append((key, _compiled(item, names, f"{place}.{key}")))

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
    makers = [_compiled(item, names, f"{place}[{index}]") for index, item in enumerate(value)]

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
        raise ConfigError(f"{place}: a loop has each:, as: and do:, got {unknown[0]}: as well")
    name = value.get("as", "item")
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigError(f"{place}.as: expected a name, got {name!r}")
    if not isinstance(value["each"], str):
        raise ConfigError(f"{place}.each: expected an expression, such as body.lines")
    try:
        each = Expression(value["each"], names)
    except ConfigError as error:
        raise ConfigError(f"{place}.each: {error}") from error
    do = _compiled(value["do"], names | {name, "index"}, f"{place}.do")

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
