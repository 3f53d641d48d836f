"""Reads the text of expressions and templates into Jinja2's syntax trees, within bounds; evaluates nothing."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.lexer import Lexer, Token
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.errors import ConfigError
from gateway.expressions.sandbox import DIGITS_MAX

TEXT_MAX = 64 * 1024
"""Characters of one expression or template."""
NODES_MAX = 2000
"""Parts (names, fields, operators …) of one expression or template."""
DEPTH_MAX = 100
"""How deep those parts may nest."""


class _ExactLexer(Lexer):
    """Jinja2's lexer, with fractions as the Decimals that are written."""

    def wrap(
        self, stream: Iterable[tuple[int, str, str]], name: str | None = None, filename: str | None = None
    ) -> Iterator[Token]:
        fractions: deque[str] = deque()

        def noted() -> Iterator[tuple[int, str, str]]:
            for item in stream:
                if item[1] == "float":
                    fractions.append(item[2].replace("_", ""))
                yield item

        for token in super().wrap(noted(), name, filename):
            if token.type == "float":
                exact: Any = Decimal(fractions.popleft())
                yield Token(token.lineno, token.type, exact)
            else:
                yield token


class _Parsing(ImmutableSandboxedEnvironment):
    """Jinja2 as far as its syntax goes: it has no filters, globals or loader, and never compiles or renders."""

    def __init__(self) -> None:
        super().__init__(autoescape=False, keep_trailing_newline=True)
        self.globals.clear()
        self.filters.clear()
        self.tests.clear()
        self._lexer = _ExactLexer(self)

    @property
    def lexer(self) -> Lexer:
        return self._lexer


_PARSING = _Parsing()


_LITERAL = re.compile(r"""(?<!\w\[)('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""", re.DOTALL)


def shown(text: str) -> str:
    """An expression as errors show it: on one line, cut when it is long, its texts left out but for keys.

    A reference such as ${env:TOKEN} is replaced before expressions are read, so a text may be a secret.
    """
    line = _LITERAL.sub("'…'", " ".join(text.split())) or "''"
    return line if len(line) <= 200 else f"{line[:199]}…"


@contextmanager
def located(text: str) -> Iterator[None]:
    """Puts the text of an expression in front of what a ConfigError says."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{shown(text)}: {error}") from error


def parse_expression(text: str) -> nodes.Expr:
    """The tree of a bare expression. Raises ConfigError."""
    if text.strip().startswith(("{{", "{%")):
        raise ConfigError("an expression is written bare here, without {{ }}")
    try:
        _refuse_long(text)
        parser = Parser(_PARSING, text, state="variable")
        found = parser.parse_expression()
        if not parser.stream.eos:
            token = parser.stream.current
            seen = "text" if token.type == "string" else repr(str(token.value))
            raise ConfigError(f"unexpected {seen} after the expression")
    except (TemplateSyntaxError, ValueError, SyntaxError, InvalidOperation, RecursionError) as error:
        raise _unreadable(error) from error
    _refuse_large(found)
    return found


def parse_template(text: str) -> nodes.Template:
    """The tree of a text with `{{ }}` and `{% %}`. Line breaks stay as they are. Raises ConfigError."""
    try:
        _refuse_long(text)
        # Jinja2 makes every line break a \n; old systems tell \r from \n, so \r goes through as another sign
        stand_in = next(sign for sign in map(chr, range(0xE000, 0xF8FF)) if sign not in text)
        found = _PARSING.parse(text.replace("\r", stand_in))
    except (TemplateSyntaxError, ValueError, SyntaxError, InvalidOperation, RecursionError) as error:
        raise _unreadable(error) from error
    _refuse_large(found)
    for data in found.find_all(nodes.TemplateData):
        data.data = data.data.replace(stand_in, "\r")
    for constant in found.find_all(nodes.Const):
        if isinstance(constant.value, str):
            constant.value = constant.value.replace(stand_in, "\r")
    return found


def pieces(text: str) -> list[str]:
    """The texts within each `{{ }}` of a template that parses, in their order."""
    found: list[str] = []
    within: list[str] | None = None
    for _, sign, value in _PARSING.lexer.tokeniter(text, None):
        if sign == "variable_begin":
            within = []
        elif sign == "variable_end" and within is not None:
            found.append("".join(within).strip())
            within = None
        elif within is not None:
            within.append(value)
    return found


_ENDS = {
    "'end of template'": "end of the text",
    "end of template": "end of the text",
    "'end of print statement'": "}}",
    "'end of statement block'": "%}",
}


def _unreadable(error: Exception) -> ConfigError:
    if isinstance(error, TemplateSyntaxError):
        said = (error.message or "it is no expression").rstrip(".")
        for theirs, ours in _ENDS.items():
            said = said.replace(theirs, ours)
        return ConfigError(f"{said[0].lower()}{said[1:]}")
    why = "it nests too deep" if isinstance(error, RecursionError) else f"a number has more than {DIGITS_MAX} digits"
    return ConfigError(why)


def _refuse_long(text: str) -> None:
    if len(text) > TEXT_MAX:
        raise ConfigError(f"it has {len(text)} characters, at most {TEXT_MAX} are allowed")


def _refuse_large(root: nodes.Node) -> None:
    waiting: list[tuple[nodes.Node, int]] = [(root, 0)]
    count = 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if depth > DEPTH_MAX:
            raise ConfigError(f"it nests more than {DEPTH_MAX} deep; split it into several")
        if count > NODES_MAX:
            raise ConfigError(f"it has more than {NODES_MAX} parts; split it into several")
        waiting.extend((child, depth + 1) for child in node.iter_child_nodes())


def _key(node: nodes.Node) -> str:
    return repr(node.value) if isinstance(node, nodes.Const) else source(node)


def source(node: nodes.Node) -> str:
    """About the text that a part was written as, for errors."""
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Const):
        return "'…'" if isinstance(node.value, str) else str(node.value).lower()
    if isinstance(node, nodes.Getattr):
        return f"{source(node.node)}.{node.attr}"
    if isinstance(node, nodes.Getitem):
        return f"{source(node.node)}[{_key(node.arg)}]"
    if isinstance(node, nodes.Filter) and node.node is not None:
        return f"{source(node.node)} | {node.name}"
    if isinstance(node, nodes.Test):
        return f"{source(node.node)} is {node.name}"
    if isinstance(node, nodes.Call):
        return f"{source(node.node)}({'…' if node.args else ''})"
    if isinstance(node, nodes.Slice):
        return "…:…"
    return "[…]" if isinstance(node, nodes.List) else "{…}" if isinstance(node, nodes.Dict) else "(…)"
