"""Expressions as fields of settings: text that is compiled at load and evaluated for each message."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic_core import core_schema

from gateway.errors import ConfigError, MessageError
from gateway.expressions.closures import Compiler
from gateway.expressions.paths import Run
from gateway.expressions.sandbox import FaultError, Scope, kind
from gateway.expressions.syntax import located, parse_expression, shown
from gateway.message import Message

NO_NAMES: Mapping[str, Any] = {}


def refusal(text: str, error: Exception) -> MessageError:
    """The error for a message that an expression could not be evaluated for. It shows no value of the message."""
    if isinstance(error, FaultError):
        return MessageError(f"{error.place or shown(text)}: {error}")
    if isinstance(error, ZeroDivisionError):
        return MessageError(f"{shown(text)}: it divides by zero")
    if isinstance(error, ArithmeticError):
        return MessageError(f"{shown(text)}: a number is too large")
    return MessageError(f"{shown(text)}: it can't be computed from these values ({type(error).__name__})")


def in_scope(run: Run, *, scoped: bool) -> Run:
    """The function with a Scope of its own for each evaluation, if it needs one."""
    return (lambda message, names: run(message, Scope(names))) if scoped else run


class Written:
    """What expressions and templates have in common: a text, the names that it may use, equality, pydantic's hooks."""

    __slots__ = ("_key", "names", "text")

    schema: ClassVar[dict[str, Any]] = {}

    def __init__(self, text: Any, names: frozenset[str]) -> None:
        self.text: Any = text
        self.names = names
        self._key: tuple[Any, ...] = (type(self), type(text), text, names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Written) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def shown(self) -> str:
        """The text as errors show it: on one line, its constant texts left out, as one may be a secret."""
        return shown(str(self.text))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shown})"

    @classmethod
    def read(cls, text: Any, names: frozenset[str], folder: Path | None) -> Self:
        """Compiles what stands in a file of that folder. Raises ConfigError."""
        raise NotImplementedError

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        def compiled(value: Any, info: core_schema.ValidationInfo) -> Any:
            if isinstance(value, cls):
                return value
            value = str(value) if isinstance(value, str) else value  # not a reference's own kind of text
            names: frozenset[str] = getattr(info.context, "names", frozenset())
            try:
                return cls.read(value, names, getattr(info.context, "folder", None))
            except ConfigError as error:
                raise ValueError(str(error)) from error

        written = core_schema.plain_serializer_function_ser_schema(lambda value: value.text)
        return core_schema.with_info_plain_validator_function(compiled, serialization=written)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: core_schema.CoreSchema, handler: Any) -> dict[str, Any]:
        return dict(cls.schema)


class Expression(Written):
    """A bare Jinja2 expression such as `body.total >= 1000`.

    Called with a message, and a value for each of `names`, it gives a value with its type. Fractions are Decimals.
    Evaluating is bounded in work and size, reads nothing but the message and the names, and gives the same each time.

    Raises:
        ConfigError: when made: it can't be compiled.
        MessageError: when called: something is not there, or is not what the expression needs.
    """

    __slots__ = ("_run",)

    schema: ClassVar[dict[str, Any]] = {
        "title": "expression",
        "type": "string",
        "description": "an expression in Jinja2, without {{ }}",
        "examples": ["body.total >= 1000"],
    }

    def __init__(self, text: str, names: frozenset[str] = frozenset()) -> None:
        super().__init__(text, names)
        if not isinstance(text, str):
            got = "nothing" if text is None else kind(text) if isinstance(text, dict | list) else repr(text)
            raise ConfigError(f"expected an expression such as body.total >= 1000, got {got}")
        compiler = Compiler(names)
        with located(text):
            run = compiler(parse_expression(text))
        self._run = in_scope(run, scoped=compiler.scoped)

    @classmethod
    def read(cls, text: Any, names: frozenset[str], folder: Path | None) -> Self:
        return cls(text, names)

    def __call__(self, message: Message, names: Mapping[str, Any] = NO_NAMES) -> Any:
        """The value for this message."""
        try:
            return self._run(message, names)
        except MessageError:
            raise
        except Exception as error:
            raise refusal(self.text, error) from error

    def holds(self, message: Message, names: Mapping[str, Any] = NO_NAMES) -> bool:
        """Whether the value is true: not false, null, zero or empty."""
        try:
            return bool(self._run(message, names))
        except MessageError:
            raise
        except Exception as error:
            raise refusal(self.text, error) from error
