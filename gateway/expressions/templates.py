"""Text with `{{ expressions }}` as fields of settings. Templates typed by their place are in places.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from jinja2 import nodes

from gateway.errors import ConfigError, MessageError
from gateway.expressions.closures import Compiler
from gateway.expressions.expression import NO_NAMES, Written, in_scope, refusal
from gateway.expressions.paths import Run
from gateway.expressions.sandbox import FaultError, Scope, fits, kind, text
from gateway.expressions.statements import Block, Output, Statements
from gateway.expressions.syntax import located, parse_template, pieces, shown
from gateway.message import Message


class Hole(NamedTuple):
    """One `{{ }}` of a template."""

    text: str
    run: Run


Part = str | Hole


def hole(written: str, node: nodes.Node, compiler: Compiler) -> Hole:
    """A hole, compiled. Raises ConfigError, which names it."""
    with located(written):
        return Hole(shown(written), compiler(node))


def about_the_message(error: MessageError) -> MessageError:
    """The error, told to the sender in full also where a target's setting finds it: no target refused anything."""
    error.told = error.told or str(error)
    return error


class Template(Written):
    """Text with `{{ expressions }}`, and `{% for %}`, `{% if %}`, `{% set %}` in text of many lines.

    Called with a message it gives text; one that is exactly one `{{ expression }}` gives the value with its type, and
    a bare number, true, false or null is that constant. `text_of` always gives text: true and false, numbers without
    exponent, lists and objects as JSON. At most `limits.template_output` characters.

    Raises:
        ConfigError: when made: it can't be compiled.
        MessageError: when called: something is not there, or is null where text is expected.
    """

    __slots__ = ("_label", "_value", "_write", "constant")

    schema: ClassVar[dict[str, Any]] = {
        "title": "template",
        "type": ["string", "number", "boolean", "null"],
        "description": "text with {{ expressions }} in Jinja2; exactly one keeps the type of its value",
        "examples": ["order.{{ body.customer }}"],
    }

    def __init__(self, text: Any, names: frozenset[str] = frozenset()) -> None:
        super().__init__(text, names)
        self.constant: bool = True
        """Whether it is the same for each message."""
        self._value: Run | None = None
        self._write: Run = _refused_null
        self._label = type(self).__name__.lower()
        self._compile(text)

    @classmethod
    def read(cls, text: Any, names: frozenset[str], folder: Path | None) -> Self:
        return cls(text, names)

    def __call__(self, message: Message, names: Mapping[str, Any] = NO_NAMES) -> Any:
        """The value for this message: with its type where the template is exactly one `{{ expression }}`."""
        try:
            return (self._value or self._write)(message, names)
        except MessageError as error:
            about_the_message(error)
            raise
        except Exception as error:
            raise about_the_message(refusal(self._label, error)) from error

    def text_of(self, message: Message, names: Mapping[str, Any] = NO_NAMES) -> str:
        """The value for this message as text."""
        try:
            written: str = self._write(message, names)
        except MessageError as error:
            about_the_message(error)
            raise
        except Exception as error:
            raise about_the_message(refusal(self._label, error)) from error
        return written

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._label})"

    def _compile(self, written: Any) -> None:
        if not isinstance(written, str):
            self._keep(written)
            return
        tree = parse_template(written)
        self._label = (
            shown(" ".join(f"{{{{ {piece} }}}}" for piece in pieces(written))) if "{{" in written else self._label
        )
        compiler = Compiler(self.names)
        if all(isinstance(node, nodes.Output) for node in tree.body):
            parts = _parts(tree, compiler, written)
            self._join(parts, scoped=compiler.scoped)
        else:
            self.constant = False
            self._state(Statements(compiler, iter(pieces(written))).block(tree.body))

    def _keep(self, value: Any) -> None:
        """Takes a bare value of the file as it is."""
        if not isinstance(value, bool | int | float | Decimal | None):
            raise ConfigError(f"expected text, a number, true, false or null, got {kind(value)}")
        self._value = lambda message, names: value
        if value is not None:
            written = text(value)
            self._write = lambda message, names: written

    def _state(self, block: Block) -> None:
        """Writes what has `{% %}` in it."""

        def write(message: Any, names: Any) -> str:
            output = Output(message.formats.limits.template_output)
            block(message, Scope(names), output.write)
            return str(output)

        self._write = write

    def _join(self, parts: list[Part], *, scoped: bool) -> None:
        """Writes what is text and `{{ }}` alone."""
        if all(isinstance(part, str) for part in parts):
            whole = "".join(str(part) for part in parts)
            self._write = lambda message, names: whole
            return
        self.constant = False
        if len(parts) == 1 and isinstance(parts[0], Hole):
            self._value = in_scope(_bounded(parts[0].run) if scoped else parts[0].run, scoped=scoped)
        self._write = in_scope(joined(parts, text_in), scoped=scoped)


def _bounded(run: Run) -> Run:
    """The same for a value that was made here, which may be a text that is too long for the route."""

    def bounded(message: Any, names: Any) -> Any:
        value = run(message, names)
        if isinstance(value, str):
            fits(len(value), message.formats.limits.template_output)
        return value

    return bounded


def _refused_null(message: Any, names: Any) -> str:
    raise FaultError("it is null where text is expected")


def _parts(tree: nodes.Template, compiler: Compiler, written: str) -> list[Part]:
    texts = iter(pieces(written))
    found: list[Part] = []
    for output in tree.body:
        assert isinstance(output, nodes.Output)
        for node in output.nodes:
            found.append(node.data if isinstance(node, nodes.TemplateData) else hole(next(texts), node, compiler))
    return found


def text_in(value: Any, hole: Hole) -> str:
    """The text of a value; a fault names the hole that it stands in."""
    if value.__class__ is str:
        found: str = value
        return found
    try:
        return text(value)
    except FaultError as error:
        error.place = error.place or hole.text
        raise


def joined(parts: list[Part], put: Callable[[Any, Hole], str]) -> Run:
    """Writes the parts one after the other; `put` makes the text of a value in its hole."""
    if len(parts) == 2 and isinstance(parts[0], str) and isinstance(parts[1], Hole):
        return _ended(parts[0], parts[1], put)

    def run(message: Any, names: Any) -> str:
        texts = []
        length = 0
        for part in parts:
            written = part if isinstance(part, str) else _filled(part, put, message, names)
            length += len(written)
            texts.append(written)
        if length > message.formats.limits.template_output:
            fits(length, message.formats.limits.template_output)
        return "".join(texts)

    return run


def _ended(prefix: str, hole: Hole, put: Callable[[Any, Hole], str]) -> Run:
    """The same for text that ends with its only hole, as routing keys and URLs do."""

    def run(message: Any, names: Any) -> str:
        written = prefix + _filled(hole, put, message, names)
        if len(written) > message.formats.limits.template_output:
            fits(len(written), message.formats.limits.template_output)
        return written

    return run


def _filled(hole: Hole, put: Callable[[Any, Hole], str], message: Any, names: Any) -> str:
    try:
        value = hole.run(message, names)
    except FaultError as error:
        error.place = error.place or hole.text
        raise
    return put(value, hole)
