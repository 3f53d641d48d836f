"""The statements of templates: text, `{{ }}`, `{% for %}`, `{% if %}` and `{% set %}`. There are no others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import nodes

from gateway.errors import ConfigError
from gateway.expressions.closures import Compiler
from gateway.expressions.paths import ROOTS, Run
from gateway.expressions.sandbox import FaultError, Scope, fits, kind, text
from gateway.expressions.syntax import located, shown, source
from gateway.expressions.vocabulary import FUNCTIONS

Write = Callable[[str], None]
Block = Callable[[Any, Scope, Write], None]
"""Called with the message, the scope and where to write."""


class Output:
    """What a template has written so far. Raises FaultError as soon as it is too much."""

    __slots__ = ("_length", "_most", "_parts")

    def __init__(self, most: int) -> None:
        self._most = most
        self._parts: list[str] = []
        self._length = 0

    def write(self, written: str) -> None:
        self._length += len(written)
        fits(self._length, self._most)
        self._parts.append(written)

    def __str__(self) -> str:
        return "".join(self._parts)


_WORDS = {
    "filterblock": "filter",
    "callblock": "call",
    "assignblock": "set … %}…{% endset",
    "scope": "autoescape",
    "fromimport": "from",
}


class Statements:
    """Compiles the statements of one template; `texts` are those within its `{{ }}`, in their order."""

    def __init__(self, compiler: Compiler, texts: Iterator[str]) -> None:
        self._compiler = compiler
        self._texts = texts

    def block(self, body: Iterable[nodes.Node]) -> Block:
        """The function that writes these statements."""
        blocks = [block for node in body for block in self._statement(node)]

        def run(message: Any, scope: Scope, write: Write) -> None:
            for block in blocks:
                block(message, scope, write)

        return run

    def _statement(self, node: nodes.Node) -> list[Block]:
        if isinstance(node, nodes.Output):
            return [self._output(part) for part in node.nodes]
        if isinstance(node, nodes.If):
            return [self._if(node)]
        if isinstance(node, nodes.For):
            return [self._for(node)]
        if isinstance(node, nodes.Assign):
            return [self._set(node)]
        word = type(node).__name__.lower()
        raise ConfigError(f"{{% {_WORDS.get(word, word)} %}} is not here; there are: for, if, set")

    def _output(self, node: nodes.Expr) -> Block:
        if isinstance(node, nodes.TemplateData):
            data = node.data
            return lambda message, scope, write: write(data)
        written = next(self._texts)
        place = shown(written)
        with located(written):
            run = self._compiler(node)

        def output(message: Any, scope: Scope, write: Write) -> None:
            try:
                write(text(run(message, scope)))
            except FaultError as error:
                error.place = error.place or place
                raise

        return output

    def _if(self, node: nodes.If) -> Block:
        test, then = self._compiler(node.test), self.block(node.body)
        branches = [(test, then), *((self._compiler(other.test), self.block(other.body)) for other in node.elif_)]
        otherwise = self.block(node.else_)

        def run(message: Any, scope: Scope, write: Write) -> None:
            for test, then in branches:
                if test(message, scope):
                    then(message, scope, write)
                    return
            otherwise(message, scope, write)

        return run

    def _set(self, node: nodes.Assign) -> Block:
        name = _target(node.target)
        value = self._compiler(node.node)
        self._compiler.names |= {name}

        def run(message: Any, scope: Scope, write: Write) -> None:
            scope[name] = value(message, scope)

        return run

    def _for(self, node: nodes.For) -> Block:
        if node.recursive:
            raise ConfigError("{% for … recursive %} is not here")
        targets = [_target(item) for item in node.target.items] if isinstance(node.target, nodes.Tuple) else None
        bind = _binder(targets or _target(node.target), source(node.iter))
        values = self._compiler(node.iter)
        before, looping = self._compiler.names, self._compiler.looping
        self._compiler.names = before | {*(targets or [_target(node.target)])}
        self._compiler.looping = True
        chosen = self._compiler(node.test) if node.test is not None else None
        self._compiler.names |= {"loop"}
        body = self.block(node.body)
        self._compiler.names, self._compiler.looping = before, looping
        work = sum(1 for part in node.body for _ in part.find_all(nodes.Node)) + len(node.body)
        counting = any(name.name == "loop" for part in node.body for name in part.find_all(nodes.Name))
        return _loop(
            values, bind, chosen, body, self.block(node.else_), work=work, counting=counting, place=source(node.iter)
        )


def _loop(
    values: Run,
    bind: Callable[[Scope, Any], None],
    chosen: Run | None,
    body: Block,
    otherwise: Block,
    *,
    work: int,
    counting: bool,
    place: str,
) -> Block:
    def run(message: Any, scope: Scope, write: Write) -> None:
        elements = _elements(values(message, scope), place)
        outside = dict(scope)
        if chosen is not None:
            kept = []
            for element in elements:
                scope.turn(work)
                bind(scope, element)
                if chosen(message, scope):
                    kept.append(element)
            elements = kept
        for index, element in enumerate(elements):
            scope.turn(work)
            bind(scope, element)
            if counting:
                scope["loop"] = _counted(index, len(elements))
            body(message, scope, write)
            scope.clear()
            scope.update(outside)
        scope.clear()
        scope.update(outside)
        if not elements:
            otherwise(message, scope, write)

    return run


def _elements(values: Any, place: str) -> list[Any]:
    if not isinstance(values, list | tuple | Mapping):
        fault = FaultError(f"it is {kind(values)}, expected a list")
        fault.place = place
        raise fault
    return list(values)


def _counted(index: int, length: int) -> dict[str, Any]:
    return {
        "index": index + 1,
        "index0": index,
        "revindex": length - index,
        "revindex0": length - index - 1,
        "first": index == 0,
        "last": index == length - 1,
        "length": length,
    }


def _target(node: nodes.Node) -> str:
    if not isinstance(node, nodes.Name):
        raise ConfigError("only a plain name can be set")
    if node.name in ROOTS or node.name in FUNCTIONS or node.name.startswith("_"):
        raise ConfigError(f"the name {node.name} is taken: choose another one")
    return node.name


def _binder(targets: str | list[str], place: str) -> Callable[[Scope, Any], None]:
    def one(scope: Scope, element: Any) -> None:
        assert isinstance(targets, str)
        scope[targets] = element

    def several(scope: Scope, element: Any) -> None:
        if not isinstance(element, list | tuple) or len(element) != len(targets):
            fault = FaultError(f"an element is {kind(element)}, expected a list of {len(targets)}")
            fault.place = place
            raise fault
        scope.update(zip(targets, element, strict=True))

    return one if isinstance(targets, str) else several
