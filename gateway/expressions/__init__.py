"""The one expression language: Jinja2, sandboxed, compiled at load, evaluated per message."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import quote, urlsplit

from jinja2 import StrictUndefined, TemplateError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic_core import core_schema

from gateway.errors import ConfigError, MessageError
from gateway.message import Message, derived_id, rfc3339

_NAMES = frozenset({"body", "headers", "transport", "message", "context", "now", "uuid"})


class _Environment(ImmutableSandboxedEnvironment):
    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping):
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    getitem = getattr


_environment = _Environment(undefined=StrictUndefined, autoescape=False)
_environment.globals.clear()


def plug_filters(find: Callable[[str], Callable[..., Any] | None]) -> None:
    """Lends filters: asked for a name that is not built in, when an expression is compiled."""
    global _find_filter  # noqa: PLW0603
    _find_filter = find


_find_filter: Callable[[str], Callable[..., Any] | None] = lambda name: None  # noqa: E731


class _View:
    __slots__ = ("_message",)

    def __init__(self, message: Message) -> None:
        self._message = message

    def __getitem__(self, name: str) -> Any:
        if name == "time":
            return rfc3339(self._message.time_s)
        if name == "expires_at":
            return None if self._message.expires_at_s is None else rfc3339(self._message.expires_at_s)
        if name == "principal":
            return None if self._message.principal is None else self._message.principal.name
        return getattr(self._message, name)


def _variables(used: frozenset[str], message: Message, names: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "headers": message.headers,
        "transport": message.transport,
        "message": _View(message),
        "context": {},
        "now": lambda: rfc3339(message.time_s),
        "uuid": lambda: derived_id(message.id, "uuid"),
    }
    if "body" in used:
        found["body"] = message.tree
    found.update(names)
    return found


class _Text:
    """What expressions and templates have in common: a text, the names that it may use, and pydantic's hooks."""

    _description: ClassVar[str] = ""

    def __init__(self, text: Any, names: frozenset[str] = frozenset()) -> None:
        self.text = text
        self.names = names

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and (self.text, self.names) == (other.text, other.names)  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self), self.text, self.names))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        def compiled(value: Any, info: core_schema.ValidationInfo) -> Self:
            if isinstance(value, cls):
                return value
            try:
                return cls(value, getattr(info.context, "names", frozenset()))
            except ConfigError as error:
                raise ValueError(str(error)) from error

        return core_schema.with_info_plain_validator_function(
            compiled, serialization=core_schema.plain_serializer_function_ser_schema(lambda v: v.text)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: core_schema.CoreSchema, handler: Any) -> dict[str, Any]:
        return {"type": "string", "description": cls._description}

    def _check(self, tree: nodes.Template) -> frozenset[str]:
        for name in {node.name for node in tree.find_all(nodes.Filter)} - set(_environment.filters):
            found = _find_filter(name)
            if found is None:
                raise ConfigError(f"{self.text}: no filter is called {name!r}")
            _environment.filters[name] = found
        used = frozenset(meta.find_undeclared_variables(tree))
        unknown = used - _NAMES - self.names
        if unknown:
            raise ConfigError(f"{self.text}: {sorted(unknown)[0]!r} is not a name here")
        return used


class Expression(_Text):
    """A bare Jinja2 expression such as `body.total > 100`."""

    _description = "a Jinja2 expression, such as body.total > 100"

    def __init__(self, text: str, names: frozenset[str] = frozenset()) -> None:
        super().__init__(text, names)
        if not isinstance(text, str):
            raise ConfigError(f"expected an expression, got {text!r}")
        try:
            self._used = self._check(_environment.parse("{{" + text + "}}"))
            self._run = _environment.compile_expression(text, undefined_to_none=False)
        except TemplateError as error:
            raise ConfigError(f"{text}: {error}") from error

    def __call__(self, message: Message, names: Mapping[str, Any] = {}) -> Any:  # noqa: B006
        """Raises MessageError."""
        try:
            value = self._run(_variables(self._used, message, names))
            if isinstance(value, StrictUndefined):
                str(value)
            return value
        except MessageError:
            raise
        except Exception as error:
            raise MessageError(f"{self.text}: {error}") from error

    def holds(self, message: Message, names: Mapping[str, Any] = {}) -> bool:  # noqa: B006
        """Whether it is true."""
        return bool(self(message, names))


class Template(_Text):
    """Text with `{{ expressions }}`; exactly one expression keeps its type."""

    _description = "text with {{ expressions }}"

    def __init__(self, text: Any, names: frozenset[str] = frozenset()) -> None:
        super().__init__(text, names)
        self.constant = not isinstance(text, str) or not any(mark in text for mark in ("{{", "{%", "{#"))
        self._whole: Expression | None = None
        if self.constant:
            return
        try:
            tree = _environment.parse(text)
            self._used = self._check(tree)
            self._template = _environment.from_string(text)
        except TemplateError as error:
            raise ConfigError(f"{text}: {error}") from error
        stripped = text.strip()
        if len(tree.body) == 1 and isinstance(tree.body[0], nodes.Output) and len(tree.body[0].nodes) == 1:
            self._whole = Expression(stripped[2:-2].strip("-+"), names)

    def __call__(self, message: Message, names: Mapping[str, Any] = {}) -> Any:  # noqa: B006
        """Raises MessageError."""
        if self.constant:
            return self.text
        if self._whole is not None:
            return self._whole(message, names)
        return self.text_of(message, names)

    def text_of(self, message: Message, names: Mapping[str, Any] = {}) -> str:  # noqa: B006
        """The same, always as text."""
        if self.constant:
            return _text(self.text)
        if self._whole is not None:
            return self._placed(_text(self._whole(message, names)))
        _environment.finalize = lambda value: self._placed(_text(value))
        try:
            return self._template.render(_variables(self._used, message, names))
        except MessageError:
            raise
        except Exception as error:
            raise MessageError(f"{self.text}: {error}") from error

    def _placed(self, value: str) -> str:
        return value


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise MessageError("a value is null where text is expected")
    if isinstance(value, StrictUndefined):
        return str(value)
    if isinstance(value, bool | list | dict):
        return json.dumps(value, default=_number)
    return str(value)


def _number(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    raise TypeError


class UrlTemplate(Template):
    """A URL; each value is percent-encoded."""

    def __init__(self, text: Any, names: frozenset[str] = frozenset()) -> None:
        super().__init__(text, names)
        parts = urlsplit(str(text))
        if not parts.scheme or not parts.netloc or "{" in parts.netloc or "@" in parts.netloc:
            raise ConfigError(f"{text}: expected a URL with a constant scheme and host")

    def _placed(self, value: str) -> str:
        return quote(value, safe="")

    def __call__(self, message: Message, names: Mapping[str, Any] = {}) -> str:  # noqa: B006
        return self.text_of(message, names)


class PathTemplate(Template):
    """A file path."""

    def __call__(self, message: Message, names: Mapping[str, Any] = {}) -> str:  # noqa: B006
        return str(Path(self.text_of(message, names)))

    def _placed(self, value: str) -> str:
        if value in ("", ".", "..") or any(sign in value for sign in "/\\\0"):
            raise MessageError(f"{self.text}: a value is no file name")
        return value


class TopicTemplate(Template):
    """An MQTT topic."""

    def __call__(self, message: Message, names: Mapping[str, Any] = {}) -> str:  # noqa: B006
        return self.text_of(message, names)

    def _placed(self, value: str) -> str:
        if any(sign in value for sign in "+#\0"):
            raise MessageError(f"{self.text}: a value holds + # or NUL")
        return value
