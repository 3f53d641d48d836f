"""Finds the class behind a word of `routes.yaml`: by file, then by entry point. Imports only what is named.

A module holds at most one class of each kind, called by its kind: `adapters/mqtt.py` has `Source`, `Sink` and
`Connection`, `transforms/xml.py` has `Format` or `Step`. Nothing registers itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType, ModuleType
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import GetJsonSchemaHandler, ValidationError, ValidationInfo
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema
from pydantic_core.core_schema import ErrorType

from gateway.documents import shown_value
from gateway.errors import ConfigError
from gateway.expressions import plug_filters
from gateway.ports import Format
from gateway.settings import Loading, Settings

S = TypeVar("S", bound=Settings)
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
    found += [entry.name for entry in plugged(group) if hasattr(entry.load(), kind)]
    return sorted(found)


def component(kind: Kind, word: str, more: tuple[str, ...] = ()) -> type[Settings]:
    """The class of this kind that the word names.

    Raises:
        ConfigError: there is none, or its client library is not installed.
    """
    group = _GROUPS[kind]
    found = getattr(module(group, word), kind, None) if word.isidentifier() else None
    if found is None:
        known = sorted({*words(kind), *more})
        near = get_close_matches(word, known, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(known)}"
        raise ConfigError(f'no {kind.lower()} is called "{word}"{hint}')
    assert isinstance(found, type)
    assert issubclass(found, Settings)
    return found


def module(group: Literal["adapters", "transforms"], word: str) -> ModuleType | None:
    """The module of a word, bundled or from an entry point; None: there is none.

    Raises:
        ConfigError: the module is there and its client library is not; or a plug-in takes a bundled name.
    """
    entries = [entry for entry in plugged(group) if entry.name == word]
    if word in _bundled(group):
        if entries:
            raise ConfigError(f'the plug-in {entries[0].value} calls itself "{word}", a bundled name; rename it')
        return _imported(f"{group}.{word}", word)
    if len(entries) > 1:
        both = " and ".join(entry.value for entry in entries)
        raise ConfigError(f'the plug-ins {both} both call themselves "{word}"; remove one')
    if entries:
        loaded = entries[0].load()
        assert isinstance(loaded, ModuleType)
        return loaded
    return None


def read_component(
    kind: Kind, value: object, context: object = None, more: Mapping[str, type[Settings]] = MappingProxyType({})
) -> Settings:
    """The component that a YAML value names: `word`, `{word: settings}`, or `{word: value}` where it is nameless.

    One that has a `short` is written both ways: a value that is no mapping is the setting of that name.

    context: the `Loading` that its fields may need. more: words of the language itself, such as the patterns.

    Raises:
        ValidationError: its settings are wrong; places start with the word, and name no nameless setting.
        ValueError: there is no such component, or the value is not of that form.
    """
    word, given = _split(kind, value)
    try:
        if word in more and (clashing := [entry.value for entry in plugged(_GROUPS[kind]) if entry.name == word]):
            raise ConfigError(f'the plug-in {clashing[0]} calls itself "{word}", a word of the language; rename it')
        found = more.get(word) or component(kind, word, tuple(more))
    except ConfigError as error:
        if given is _BARE:
            raise ValueError(str(error)) from error
        raise _wrong((word,), str(error), kind=UNKNOWN) from error
    nameless = getattr(found, "nameless", None)
    if nameless is None and given is not None and given is not _BARE and not isinstance(given, dict):
        nameless = getattr(found, "short", None)
    if nameless is not None:
        if given is _BARE:
            raise _wrong((), f"{word} needs a value: write {word}: …; gateway doc {word} shows which")
        settings = {nameless: given}
    elif given is _BARE:
        settings = {}
    elif isinstance(given, dict):
        settings = given
    else:
        raise _wrong((word,), _no_settings(word, given, found))
    try:
        if "connection" in found.model_fields:
            settings = _with_connection(found, word, settings, context)
        return found.model_validate(settings, context=context)
    except ValidationError as error:
        raise _placed(error, word, nameless, found) from error


def _no_settings(word: str, given: object, found: type[Settings]) -> str:
    required = [field.alias or name for name, field in found.model_fields.items() if field.is_required()]
    such = f", such as {word}: {{{required[0]}: …}}" if required else ""
    then = f"; write {word}: {{}} for none" if given is None and not required else ""
    return f"expected the settings of {word} as key: value{such}, got {shown_value(given)}{then}"


def _with_connection(found: type[Settings], word: str, settings: dict[str, Any], context: object) -> dict[str, Any]:
    """The settings with a Connection object in `connection`: the one it names, or one made of those written inline."""
    kind = component("Connection", word)
    inline = {
        key: value for key, value in settings.items() if key in kind.model_fields and key not in found.model_fields
    }
    named = settings.get("connection")
    if named is None:
        needed = [name for name, field in kind.model_fields.items() if field.is_required()]
        if needed and not inline:
            raise _wrong(
                ("connection",),
                f"a required key is missing: connection (a name under connections:), or {', '.join(needed)}",
            )
        rest = {key: value for key, value in settings.items() if key not in inline}
        return {**rest, "connection": kind.model_validate(inline, context=context)}
    if inline:
        raise _wrong(
            (next(iter(inline)),), f"{next(iter(inline))} belongs to the connection; write it under connections.{named}"
        )
    known = context.connections if isinstance(context, Loading) else {}
    connection = known.get(named) if isinstance(named, str) else None
    if connection is None and named in known:
        raise _wrong(("connection",), BROKEN_CONNECTION)
    if connection is None:
        near = get_close_matches(str(named), known, 1)
        hint = f"; did you mean {near[0]}?" if near else "; name an entry of connections:"
        raise _wrong(("connection",), f'no connection is called "{named}"{hint}')
    if not isinstance(connection, kind):
        other = type(connection).__module__.rpartition(".")[2]
        raise _wrong(("connection",), f"the connection {named} is {other}, expected {word}; name another")
    if isinstance(context, Loading):
        context.used.add(f"connections.{named}")
    return {**settings, "connection": connection}


def component_in(found: type[S], field: str, kind: Kind, value: Any, handler: Callable[[Any], S], context: object) -> S:
    """Reads settings that hold one component beside their own keys: `{http: {…}, name: crm, when: …}`.

    found: the class read; field: its field for the component; handler: pydantic's own reading of the rest.

    Raises:
        ValidationError: of the component and of the other keys, all at once.
    """
    if isinstance(value, found):
        return value
    bare = isinstance(value, str)
    if bare:
        value = {value: None}
    if not isinstance(value, dict):
        raise ValueError(f"expected the name of a {kind.lower()}, or name: settings, got {value!r:.60}")
    if field in value:
        return handler(value)
    own = {name for name in found.model_fields if name != field}
    foreign = [key for key in value if key not in own]
    lines, foreign = _odd_keys(foreign, kind, value, sorted(own))
    rest: dict[str, Any] = {key: value[key] for key in value if key in own}
    if foreign and "name" in own:
        rest.setdefault("name", foreign[0])
    try:
        if not foreign:
            raise ValueError(
                f"a {kind.lower()} is missing: write its name with its settings, such as {words(kind)[0]}: {{…}}"
            )
        rest[field] = read_component(kind, foreign[0] if bare else {foreign[0]: value[foreign[0]]}, context)
    except ValidationError as error:
        lines += [_outside(line, own) for line in _lines(error)]
    except ValueError as error:
        at = () if bare else tuple(foreign[:1])
        lines.append(
            InitErrorDetails(type=PydanticCustomError("settings", "{text}", {"text": str(error)}), loc=at, input=None)
        )
    try:
        read = handler(rest)
    except ValidationError as error:
        lines += [line for line in _lines(error) if line.get("loc") != (field,) or not lines]
        raise ValidationError.from_exception_data(error.title, lines) from error
    if lines:
        raise ValidationError.from_exception_data(found.__name__, lines)
    return read


def _outside(line: InitErrorDetails, own: set[str]) -> InitErrorDetails:
    """The complaint about a key of a component that belongs beside the component."""
    place = line.get("loc", ())
    if getattr(line["type"], "type", "") == UNKNOWN and len(place) == 2 and place[1] in own:
        text = f'unknown key "{place[1]}"; write it beside {place[0]}, not in it'
        return {**line, "type": _complaint(text, UNKNOWN)}
    return line


def _odd_keys(
    foreign: list[Any], kind: Kind, value: dict[Any, Any], own: list[str]
) -> tuple[list[InitErrorDetails], list[Any]]:
    """The complaints about keys beside a component that are none of those that may, and what is left: the component.

    Raises:
        ValidationError: what the component is, or what is in it, nobody can say.
    """
    if len(foreign) < 2:
        return [], foreign
    known = [key for key in foreign if key in words(kind)]
    odd = [key for key in foreign if key not in known] or foreign[1:]
    lines = [
        InitErrorDetails(type=_complaint(_odd_key(str(key), kind, known, value, own), UNKNOWN), loc=(key,), input=None)
        for key in odd
    ]
    if len(known) != 1 or value[known[0]] is None:
        raise ValidationError.from_exception_data("settings", lines[:1])
    return lines, known


def _odd_key(odd: str, kind: Kind, known: list[str], value: dict[Any, Any], own: list[str]) -> str:
    """What to say of a key that stands beside a component and is none of those that may."""
    if odd in known:
        return f'a second {kind.lower()}, "{odd}": write each in an entry of its own, after a dash'
    near = get_close_matches(odd, own, 1)
    if near:
        return f'unknown key "{odd}"; did you mean {near[0]}?'
    above = next((key for key in known if value[key] is None), None)
    if above is not None:
        return f'unknown key "{odd}"; if it is a setting of {above}, indent it below {above}'
    return f'unknown key "{odd}"; beside the {kind.lower()} there may be {", ".join(own)}'


BROKEN_CONNECTION = "what is wrong with this connection is said where it stands"
"""The text of a complaint that only follows from another one."""
UNKNOWN = "unknown_name"
"""The type of complaints that are about a key, not about its value."""


def _complaint(text: str, kind: str) -> PydanticCustomError:
    # pydantic wants its type as a literal
    return PydanticCustomError("unknown_name" if kind == UNKNOWN else "settings", "{text}", {"text": text})


def _wrong(place: tuple[str | int, ...], text: str, *, kind: str = "settings") -> ValidationError:
    line = InitErrorDetails(type=_complaint(text, kind), loc=place, input=None)
    return ValidationError.from_exception_data("settings", [line])


_BARE = object()


def _split(kind: Kind, value: object) -> tuple[str, object]:
    if isinstance(value, str):
        return value, _BARE
    if not isinstance(value, dict) or not value:
        raise ValueError(f"expected the name of a {kind.lower()}, or name: settings, got {value!r:.60}")
    if len(value) > 1:
        first = next(iter(value))
        hint = f"indent the settings of {first} below it" if value[first] is None else "write each after a dash"
        raise ValueError(f"expected one {kind.lower()}, got {len(value)} keys: {', '.join(map(str, value))}; {hint}")
    ((word, given),) = value.items()
    return str(word), given


_KNOWN = frozenset(get_args(ErrorType))


def _placed(error: ValidationError, word: str, nameless: str | None, found: type[Settings]) -> ValidationError:
    """The same complaints, at places as the file has them: below the word, without the setting that has no name."""
    lines = _lines(with_hints(error, word, found))
    for line in lines:
        place = line.get("loc", ())
        line["loc"] = (word, *(place[1:] if nameless is not None and place[:1] == (nameless,) else place))
    return ValidationError.from_exception_data(error.title, lines)


def with_hints(error: ValidationError, word: str, found: type[Settings]) -> ValidationError:
    """The same complaints; of each key that the class does not have, with the one that was meant."""
    lines = _lines(error)
    for line in lines:
        place = line.get("loc", ())
        inside = _inside(found, place[:-1]) if line["type"] == "extra_forbidden" else None
        if inside is not None:
            line["type"] = _unknown_key(str(place[-1]), str((word, *place)[-2]), _keys(inside))
    return ValidationError.from_exception_data(error.title, lines)


def _inside(found: type[Settings], place: tuple[str | int, ...]) -> type[Settings] | None:
    """The class of the settings at this place in a component; None: there may be several."""
    for part in place:
        if isinstance(part, int) or part == found.__name__:  # the place in a list, or which one of a union
            continue
        fields = {field.alias or name: field for name, field in found.model_fields.items()}
        inner = list(_classes(fields[part].annotation)) if part in fields else []
        if len(inner) != 1:
            return None
        found = inner[0]
    return found


def _classes(annotation: object) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for argument in get_args(annotation):
        yield from _classes(argument)


def _keys(found: type[Settings]) -> list[str]:
    keys = [field.alias or name for name, field in found.model_fields.items()]
    connection = found.model_fields.get("connection")
    inner = connection.annotation if connection is not None else None
    return sorted({*keys, *(inner.model_fields if isinstance(inner, type) and issubclass(inner, Settings) else ())})


def _unknown_key(key: str, word: str, known: list[str]) -> PydanticCustomError:
    near = get_close_matches(key.lower().replace("-", "_"), known, 1)
    hint = f"; did you mean {near[0]}?" if near else f"; {word} has {', '.join(known) or 'no settings'}"
    return _complaint(f'unknown key "{key}"{hint}', UNKNOWN)


def _lines(error: ValidationError) -> list[InitErrorDetails]:
    lines = []
    for line in error.errors(include_url=False):
        kind: str | PydanticCustomError = line["type"]
        if kind not in _KNOWN:
            kind = _complaint(line["msg"], line["type"])
        lines.append(InitErrorDetails(type=kind, loc=line["loc"], input=line["input"], ctx=line.get("ctx", {})))
    return lines


class ComponentField:
    """What makes a pydantic field of one component: `Annotated[Sink, ComponentField("Sink")]`."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        def read(value: object, info: ValidationInfo) -> object:
            return value if isinstance(value, Settings) else read_component(self.kind, value, info.context)

        return core_schema.with_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(_written)
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"x-component": self.kind}  # gateway/schema.py puts all components of the kind there


def _written(value: Settings) -> object:
    word = type(value).__module__.rpartition(".")[2]
    settings = value.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    nameless = getattr(value, "nameless", None)
    if nameless is not None:
        return {word: settings.get(nameless)}
    return {word: settings} if settings else word


def component_field(kind: Kind) -> ComponentField:
    """The mark of a field that holds a component of this kind, written as in `read_component`."""
    return ComponentField(kind)


FormatField = Annotated[Format, component_field("Format")]
"""The field type of a setting that names a format: `xml`, or `{xml: {root: Order}}`."""


@cache
def plugged(group: Literal["adapters", "transforms"]) -> tuple[EntryPoint, ...]:
    """The plug-ins that are installed. Looked up once: it reads the metadata of every installed package."""
    return tuple(entry_points(group=f"gateway.{group}"))


@cache
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


def _filter(name: str) -> Callable[..., Any] | None:
    """A filter that a format lends to expressions: `hl7` and `hl7_time` are in `filters` of `transforms/hl7.py`."""
    found = module("transforms", name.partition("_")[0])
    filters: dict[str, Callable[..., Any]] = getattr(found, "filters", {})
    return filters.get(name)


plug_filters(_filter)
