"""The reference of the components in Markdown, made from their classes: what `gateway doc` prints."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gateway.registry import Kind
from gateway.schema import components, schema
from gateway.settings import Settings

Schema = Mapping[str, Any]

KINDS: tuple[Kind, ...] = ("Source", "Sink", "Connection", "Format", "Step")
_TITLES = {
    "Source": "as a source (`from`)",
    "Sink": "as a sink (`to`, `call`, `tap`)",
    "Connection": "as a connection (`connections`)",
    "Format": "as a format (`parse`, `format`)",
    "Step": "as a step",
}
_EXAMPLES = {
    "Source": ("from-", ""),
    "Sink": ("to-", ""),
    "Connection": (),
    "Format": ("format-",),
    "Step": ("step-", "pattern-"),
}
_PARTS = {
    "Route": "A route",
    "target": "A target of a route",
    "Retry": "`retry`",
    "Circuit": "`circuit`",
    "Gateway": "The gateway",
    "Retention": "`gateway.retention`",
    "Limits": "`limits`",
    "ServerTls": "`tls` of `listeners`",
}
_HEAD = """# Reference

Everything that `routes.yaml` may hold, made from the classes behind it by `gateway doc --all`: don't edit this page.

A component is written `name` where it needs no settings, and `name: {settings}` where it does. **Bold** settings are
required. Durations are such as `250ms 5s 2m 1h 7d`, sizes `64KiB 1MiB`, rates `100/s 10/m`; a number alone is refused,
because nobody could know its unit. Text values may hold `${env:NAME}` and `${file:/path}`.
"""
_MOST_CHOICES = 12


@dataclass(frozen=True)
class Row:
    """One setting."""

    name: str
    type: str
    default: str
    description: str
    required: bool


def summary(found: type[Settings]) -> str:
    """The first sentence of what a component is, without its marks."""
    paragraph = inspect.cleandoc(found.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    return paragraph.partition(". ")[0].removesuffix(".").removesuffix(":")


def listed(kind: Kind) -> list[tuple[str, str]]:
    """The words of a kind, sorted, each with its summary."""
    return sorted((word, summary(found)) for word, found in components(kind).items())


class Reference:
    """The pages of all components."""

    def __init__(self, examples: Path | None = None) -> None:
        self._examples = examples

    @cached_property
    def _schema(self) -> dict[str, Any]:
        return schema()

    @cached_property
    def words(self) -> dict[str, list[Kind]]:
        """Each word with what it can be."""
        found: dict[str, list[Kind]] = {}
        for kind in KINDS:
            for word in components(kind):
                found.setdefault(word, []).append(kind)
        return dict(sorted(found.items()))

    @cached_property
    def choices(self) -> dict[str, Schema]:
        """The settings that are a choice of words with settings of their own, such as `framing`, with those words."""
        found = {}
        for shape in self._schema["$defs"].values():
            for name, setting in shape.get("properties", {}).items():
                words = next((form["properties"] for form in self._forms(setting) if _is_choice(form)), None)
                if words is not None:
                    found[name] = words
        return found

    def page(self, word: str, *, level: int = 1, examples: bool = True) -> str:
        """One component with all that it can be, and with its examples or with links to them; or one of `choices`."""
        if word in self.choices:
            return self._choice_page(word, level)
        lines = [f"{'#' * level} {word}", ""]
        for kind in self.words[word]:
            lines += self._section(kind, word, level + 1)
            lines += self._example(kind, word, whole=examples)
        return "\n".join(lines).rstrip() + "\n"

    def whole(self) -> str:
        """The page with everything."""
        adapters = [word for word, kinds in self.words.items() if {"Source", "Sink"} & {*kinds}]
        formats = [word for word, kinds in self.words.items() if "Format" in kinds]
        steps = [word for word, kinds in self.words.items() if "Step" in kinds and word not in adapters]
        parts = [_HEAD, "## routes.yaml\n", *self._parts()]
        for title, words in (("Sources and sinks", adapters), ("Formats", formats), ("Steps and patterns", steps)):
            parts += [f"## {title}\n", *(self.page(word, level=3, examples=False) for word in words)]
        both = ", ".join(f"`{word}`" for word in adapters if "Step" in self.words[word])
        parts += [f"Also a step, and described among the sinks: {both}.\n"] if both else []
        parts += ["## Settings that are a choice\n", *(self.page(name, level=3) for name in sorted(self.choices))]
        return "\n".join(parts)

    def _choice_page(self, name: str, level: int) -> str:
        lines = [
            f"{'#' * level} {name}",
            "",
            f"`{name}: word` where it needs no settings, else `{name}: {{word: …}}`.",
            "",
        ]
        for word, shape in self.choices[name].items():
            rows = [*self._rows(shape)]
            lines += [f"{'#' * (level + 1)} {name}: {word}", "", shape.get("description", ""), ""]
            lines += _table(rows) if rows else ["It has no settings.", ""]
        return "\n".join(lines).rstrip() + "\n"

    def _parts(self) -> Iterator[str]:
        for name, title in _PARTS.items():
            found = self._schema["$defs"][name]
            found = next((form for form in found.get("anyOf", []) if "properties" in form), found)
            sinks = components("Sink") if name == "target" else {}
            properties = {key: value for key, value in found["properties"].items() if key not in sinks}
            text = self._schema["$defs"][name].get("description", "")
            rows = _table([*self._rows({**found, "properties": properties}, deep=False)])
            yield "\n".join([f"### {title}", "", text, "", *rows])

    def _section(self, kind: Kind, word: str, level: int) -> list[str]:
        found = components(kind)[word]
        lines = [f"{'#' * level} {word} {_TITLES[kind]}", "", inspect.cleandoc(found.__doc__ or ""), ""]
        shape = self._schema["$defs"][f"{kind.lower()}-{word}"]
        nameless = getattr(found, "nameless", None)
        if nameless is not None:
            said = found.model_fields[nameless].description
            return [*lines, f"Its value, `{word}: …`: {said} ({self._type(shape)})", ""]
        short = getattr(found, "short", None)
        if short is not None:
            lines += [f"`{word}: …` is short for `{word}: {{{short}: …}}`.", ""]
        forms = [form for form in shape.get("anyOf", []) if "properties" in form]
        if forms:
            sinks = components("Sink")
            mine = {key: value for key, value in forms[0]["properties"].items() if key not in sinks}
            shape = {**forms[0], "properties": mine}
        connection = self._inline(kind, word)
        own = {key: value for key, value in shape.get("properties", {}).items() if key not in connection}
        rows = [*self._rows({**shape, "properties": own})]
        lines += [*_table(rows)] if rows else ["It has no settings.", ""]
        for name in own:
            if name in self.choices:
                lines += [f"What each `{name}` is, with its settings: `gateway doc {name}`.", ""]
        if connection:
            lines += [f"Without `connection`, the settings of {word} as a connection may stand here.", ""]
        return lines

    def _inline(self, kind: Kind, word: str) -> set[str]:
        found = components(kind)[word]
        if "connection" not in found.model_fields:
            return set()
        return set(components("Connection")[word].model_fields) - set(found.model_fields)

    def _rows(self, shape: Schema, prefix: str = "", *, deep: bool = True) -> Iterator[Row]:
        required = shape.get("required", [])
        for name, setting in shape.get("properties", {}).items():
            yield Row(
                prefix + name,
                self._type(setting),
                _written(setting["default"]) if "default" in setting else "",
                setting.get("description", ""),
                name in required,
            )
            inner = self._inner(setting)
            several = "[]" if setting.get("type") == "array" else ""
            within_another = several and "[]" in prefix  # it is described where its class stands first
            if deep and inner is not None and prefix.count(".") < 2 and not within_another:
                yield from self._rows(inner, f"{prefix}{name}{several}.")

    def _inner(self, setting: Schema) -> Schema | None:
        """The settings below this one, or of each of its list, if they are of exactly one kind and no component."""
        if setting.get("type") == "array":
            setting = setting.get("items", {})
        forms = [form for form in self._forms(setting) if "properties" in form and "maxProperties" not in form]
        return forms[0] if len(forms) == 1 else None

    def _forms(self, setting: Schema) -> Iterator[Schema]:
        reference = setting.get("$ref")
        if reference is not None:
            name = reference.removeprefix("#/$defs/")
            if name.lower() != name:  # those in lower case are the components themselves
                yield from self._forms(self._schema["$defs"][name])
        elif "anyOf" in setting and "properties" not in setting:
            for form in setting["anyOf"]:
                yield from self._forms(form)
        else:
            yield setting

    def _type(self, setting: Schema) -> str:
        if "$ref" in setting:
            name = setting["$ref"].removeprefix("#/$defs/")
            return name if name.islower() else self._type(self._schema["$defs"][name])
        if "anyOf" in setting and "properties" not in setting:
            kinds = [self._type(form) for form in setting["anyOf"] if form.get("type") != "null"]
            if len(kinds) == 2 and kinds[1] == f"list of {kinds[0]}":
                return f"{kinds[0]}, or a list of them"
            return " or ".join(dict.fromkeys(kinds))
        if "enum" in setting:
            return self._choices(setting["enum"])
        if "const" in setting:
            return f"`{_plain(setting['const'])}`"
        if "title" in setting:
            return str(setting["title"])
        return self._by_type(setting)

    def _choices(self, values: list[Any]) -> str:
        return " ".join(f"`{_plain(value)}`" for value in values[:_MOST_CHOICES])

    def _by_type(self, setting: Schema) -> str:
        kind = setting.get("type")
        kind = kind[0] if isinstance(kind, list) else kind
        if kind == "array":
            return f"list of {self._type(setting.get('items', {}))}"
        if _is_choice(setting):
            return " ".join(f"`{name}:`" for name in setting["properties"])
        if kind == "object" and isinstance(setting.get("additionalProperties"), Mapping):
            return f"name: {self._type(setting['additionalProperties'])}"
        if setting.get("format") == "password":
            return "secret"
        words = {"integer": "whole number", "boolean": "true or false", "string": "text", "object": "settings"}
        return words.get(str(kind), "number" if kind == "number" else "any value") + _range(setting)

    def _example(self, kind: Kind, word: str, *, whole: bool) -> list[str]:
        """Where an example is, and with `whole` the example itself."""
        name = next((name for name in _example_names(kind, word) if self._has_example(name)), None)
        if name is None or self._examples is None:
            return []
        lines = [f"Example: [examples/{name}](../examples/{name})", ""]
        if not whole:
            return lines
        return [*lines, "```yaml", (self._examples / name).read_text(encoding="utf-8").rstrip(), "```", ""]

    def _has_example(self, name: str) -> bool:
        return self._examples is not None and (self._examples / name).is_file()


def _is_choice(form: Schema) -> bool:
    """Whether it is `{word: settings}` with one of some words."""
    return form.get("maxProperties") == 1 and "properties" in form


def _example_names(kind: Kind, word: str) -> Iterator[str]:
    for prefix in _EXAMPLES[kind]:
        yield f"{prefix}{word}.yaml"


def _range(setting: Schema) -> str:
    low, high = setting.get("minimum"), setting.get("maximum")
    if low is not None and high is not None:
        return f", {low:g} to {high:,}" if high >= 100_000 else f", {low:g} to {high:g}"
    if low is not None:
        return f", {low:g} or more"
    return "" if high is None else f", at most {high:g}"


def _table(rows: list[Row]) -> list[str]:
    lines = ["| setting | type | default | |", "|---|---|---|---|"]
    for row in rows:
        name = f"**`{row.name}`**" if row.required and "." not in row.name else f"`{row.name}`"
        cells = (name, row.type, row.default, row.description)
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return [*lines, ""]


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")


def _written(value: Any) -> str:
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
