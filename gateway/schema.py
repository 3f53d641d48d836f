"""The JSON Schema of `routes.yaml`, made from the classes behind it: what `gateway schema` prints, for editors.

It knows keys, types, defaults and bounds. What depends on other files or on other parts of the file (a connection
that does not exist, an expression that can't be compiled) is left to `gateway check`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from gateway.language import NAME, File, Target
from gateway.patterns import PATTERNS, Call
from gateway.registry import Kind, component, words
from gateway.settings import ServerTls, Settings
from gateway.units import shown_duration, shown_rate, shown_size

Schema = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_KINDS: tuple[Kind, ...] = ("Source", "Sink", "Connection", "Format", "Step")
_UNITS: dict[str, Callable[[Any], str]] = {"duration": shown_duration, "size": shown_size, "rate": shown_rate}
_BOUNDS = ((Ge, "ge", "at least"), (Gt, "gt", "more than"), (Le, "le", "at most"), (Lt, "lt", "less than"))
_ADDRESS = r"^.+:\d{1,5}$"
_REFERENCE = r"^\$\{(env|file):.+\}$"


def schema() -> Schema:
    """The whole schema, draft 2020-12."""
    return _Language().schema()


def components(kind: Kind) -> dict[str, type[Settings]]:
    """All components of a kind by their words, the patterns among the steps."""
    found = {word: component(kind, word) for word in words(kind)}
    return found | PATTERNS if kind == "Step" else found


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, with defaults as users write them and without titles made from names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def is_instance_schema(self, schema: core_schema.IsInstanceSchema) -> JsonSchemaValue:
        return {"x-component": schema["cls"].__name__}

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])  # model_schema puts the default, as users write it

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        found = super().model_schema(schema)
        kind: type[BaseModel] = schema["cls"]
        found.pop("title", None)
        defaults = _defaults(kind)
        for name, field in kind.model_fields.items():
            key = field.alias or name
            written = found["properties"][key]
            if key in defaults:
                written["default"] = defaults[key]
            bounds = _bounds(written, field)
            if bounds and " at most" not in written.get("description", ""):
                written["description"] = f"{written.get('description', '')} ({bounds})"
        return found


def _defaults(kind: type[BaseModel]) -> dict[str, Any]:
    """The defaults that say something, as they would be written."""
    values = {name: field.get_default(call_default_factory=True) for name, field in kind.model_fields.items()}
    known = kind.model_construct(
        **{name: value for name, value in values.items() if repr(value) != "PydanticUndefined"}
    )
    written = kind.__pydantic_serializer__.to_python(known, mode="json", by_alias=True, warnings=False)
    defaults = {}
    for name, value in values.items():
        key = kind.model_fields[name].alias or name
        shown = written.get(key)
        if isinstance(value, BaseModel) and isinstance(shown, dict):
            shown = value.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        if shown not in (None, "", [], {}, ()) and not isinstance(value, SecretStr):
            defaults[key] = shown
    return defaults


def _bounds(written: Schema, field: FieldInfo) -> str:
    """The bounds of a duration, size or rate, which JSON Schema can't say."""
    kinds = [written, *written.get("anyOf", [])]
    show = next((_UNITS[kind["title"]] for kind in kinds if kind.get("title") in _UNITS), None)
    if show is None:
        return ""
    said = []
    for each in field.metadata:
        for mark, name, text in _BOUNDS:
            if isinstance(each, mark) and getattr(each, name) != 0:
                said.append(f"{text} {show(getattr(each, name))}")
    return ", ".join(said)


class _Language:
    """The definitions of one schema."""

    def __init__(self) -> None:
        self._found = {kind: components(kind) for kind in _KINDS}
        classes: list[type[BaseModel]] = [File, Target, ServerTls]
        classes += [found for by_word in self._found.values() for found in by_word.values()]
        unique = [(found, "validation") for found in dict.fromkeys(classes)]
        refs, whole = models_json_schema(
            unique,  # type: ignore[arg-type]
            by_alias=True,
            ref_template="#/$defs/{model}",
            schema_generator=_Generator,
        )
        self._defs: dict[str, Schema] = whole["$defs"]
        self._names = {found: ref["$ref"].rpartition("/")[2] for (found, _), ref in refs.items()}

    def schema(self) -> Schema:
        defs = self._defs
        made = {
            f"{kind.lower()}-{word}": self._settings(kind, word, found)
            for kind, by_word in self._found.items()
            for word, found in by_word.items()
        }
        made |= {kind.lower(): self._named(kind) for kind in _KINDS}
        made["target"] = self._with_sink(Target)
        self._put_route()
        self._put_gateway()
        file = copy.deepcopy(defs[self._names[File]])
        file["required"] = ["version", "routes"]
        properties = file["properties"]
        properties["connections"]["additionalProperties"] = {"$ref": "#/$defs/connection"}
        properties["listeners"] |= {
            "propertyNames": {"pattern": _ADDRESS},
            "additionalProperties": {
                "type": "object",
                "properties": {"tls": {"$ref": f"#/$defs/{self._names[ServerTls]}"}},
                "additionalProperties": False,
            },
        }
        for section in ("connections", "routes"):
            properties[section]["propertyNames"] = {"pattern": NAME}
        properties["routes"]["minProperties"] = 1
        whole = {"$schema": DRAFT, "title": "routes.yaml of the gateway", **file, "$defs": {**defs, **made}}
        return _without_unused(_finished(whole))

    def _named(self, kind: Kind) -> Schema:
        """`word`, where it needs no settings, or `{word: settings}`."""
        found = self._found[kind]
        settings = {word: {"$ref": f"#/$defs/{kind.lower()}-{word}"} for word in found}
        bare = [word for word, each in found.items() if not self._needs_settings(kind, word, each)]
        mapping = {
            "type": "object",
            "properties": settings,
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
        }
        return {"anyOf": [{"enum": bare}, mapping]} if bare else mapping

    def _needs_settings(self, kind: Kind, word: str, found: type[Settings]) -> bool:
        required = {name for name, field in found.model_fields.items() if field.is_required()}
        if "connection" in required:
            required.remove("connection")
            required |= {n for n, field in component("Connection", word).model_fields.items() if field.is_required()}
        return bool(required)

    def _settings(self, kind: Kind, word: str, found: type[Settings]) -> Schema:
        """What stands after `word:`."""
        if found is Call:
            return self._with_sink(found)
        nameless = getattr(found, "nameless", None)
        if nameless is not None:
            value = copy.deepcopy(self._defs[self._names[found]]["properties"][nameless])
            return {**value, "description": _doc(found) + f"\n\nIts value: {value.get('description', '')}"}
        if "connection" in found.model_fields:
            return self._with_connection(word, found)
        own = self._defs[self._names[found]]
        short = getattr(found, "short", None)
        return own if short is None else {"anyOf": [own["properties"][short], own], "description": _doc(found)}

    def _with_connection(self, word: str, found: type[Settings]) -> Schema:
        """Its own settings, with the name of a connection or with the settings of one."""
        own = copy.deepcopy(self._defs[self._names[found]])
        kind = component("Connection", word)
        inner = copy.deepcopy(self._defs[self._names[kind]])
        inline = {key: value for key, value in inner["properties"].items() if key not in own["properties"]}
        own["required"] = [key for key in own.get("required", []) if key != "connection"]
        own["properties"] = {
            "connection": {"type": "string", "description": "the name of an entry of `connections:`"},
            **{key: value for key, value in own["properties"].items() if key != "connection"},
            **inline,
        }
        own["dependentSchemas"] = {"connection": {"properties": dict.fromkeys(inline, False)}}
        needed = [key for key in inner.get("required", []) if key in inline]
        if needed:
            own["anyOf"] = [{"required": ["connection"]}, {"required": needed}]
        return own

    def _with_sink(self, found: type[Settings]) -> Schema:
        """A component beside keys of its own: `{http: {…}, name: crm}`."""
        own = copy.deepcopy(self._defs[self._names[found]])
        del own["properties"]["sink"]
        sinks = {word: {"$ref": f"#/$defs/sink-{word}"} for word in self._found["Sink"]}
        bare = [word for word, each in self._found["Sink"].items() if not self._needs_settings("Sink", word, each)]
        clash = own["properties"].keys() & sinks.keys()
        assert not clash, f"a sink may not be called as a key of a target: {clash}"
        own["required"] = [key for key in own.get("required", []) if key != "sink"]
        own["properties"] = {**sinks, **own["properties"]}
        own["oneOf"] = [{"required": [word]} for word in sinks]
        return {"anyOf": [{"enum": bare}, own], "description": own.pop("description", "")}

    def _put_route(self) -> None:
        """One or a list, where the class has a list; and `store`, which the class has as nothing."""
        route = self._defs["Route"]["properties"]
        for key, name in (("from", "source"), ("to", "target")):
            one = {"$ref": f"#/$defs/{name}"}
            route[key] = {
                "description": route[key]["description"],
                "anyOf": [one, {"type": "array", "items": one, "minItems": 1}],
            }
        route["dead_letter"] = {
            "description": route["dead_letter"]["description"],
            "anyOf": [{"const": "store"}, {"$ref": "#/$defs/target"}],
            "default": "store",
        }

    def _put_gateway(self) -> None:
        gateway = self._defs["Gateway"]
        gateway["required"] = []
        for key, value in gateway["properties"].items():
            default = self._found_default(key)
            if default is not None:
                value["default"] = default

    def _found_default(self, key: str) -> str | None:
        from gateway.language import Gateway

        return Gateway.defaults.get(key)


def _doc(found: type[BaseModel]) -> str:
    return inspect.cleandoc(found.__doc__ or "")


_MAPS = ("properties", "$defs", "dependentSchemas")  # keywords that hold schemas by name
_VALUES = ("default", "examples", "enum", "const", "required")  # keywords that hold no schema


def _finished(node: Any) -> Any:
    """Marks become references; what `${env:…}` may stand for takes it; what says nothing is left out."""
    if isinstance(node, list):
        return [_finished(each) for each in node]
    if not isinstance(node, dict):
        return node
    done: Schema = {}
    for key, value in node.items():
        if key in _MAPS:
            done[key] = {name: _finished(each) for name, each in value.items()}
        elif key == "x-component":
            done["$ref"] = f"#/$defs/{value.lower()}"
        elif (key, value) == ("format", "path"):
            done["title"] = "path"
        elif (key, value) != ("required", []):
            done[key] = value if key in _VALUES else _finished(value)
    return _with_reference(done)


def _with_reference(node: Schema) -> Schema:
    """The schema of a setting, with `${env:…}` and `${file:…}` where it is no free text."""
    if "enum" in node or "const" in node:
        return node
    if node.get("type") == "string" and "pattern" in node:
        return {**node, "pattern": f"({node['pattern']})|({_REFERENCE})"}
    if node.get("type") in ("integer", "number", "boolean"):
        return {**node, "type": [node["type"], "string"], "pattern": _REFERENCE}
    return node


def _without_unused(whole: Schema) -> Schema:
    """The schema without definitions that nothing refers to."""
    needed: set[str] = set()
    ahead = list(_references({key: value for key, value in whole.items() if key != "$defs"}))
    while ahead:
        name = ahead.pop()
        if name not in needed:
            needed.add(name)
            ahead += _references(whole["$defs"][name])
    return {**whole, "$defs": {name: whole["$defs"][name] for name in sorted(needed)}}


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"].removeprefix("#/$defs/")
        for key, value in node.items():
            if key not in _VALUES:
                yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)
