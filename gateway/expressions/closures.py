"""Turns Jinja2's syntax trees into functions. A kind of node that has no method here is refused at load.

Nothing is generated, compiled or evaluated as Python: each node becomes a closure over those of its parts. A function
is called with the message and the other names; one that spends needs a Scope as names (`Compiler.scoped` says so).
A value that is not there is a Missing only where somebody asked for it (lenient); else it is a MessageError at once.
"""

# ruff: noqa: FBT001 - the methods of all nodes are called alike
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import nodes

from gateway.errors import ConfigError
from gateway.expressions.arithmetic import BINARY, UNARY, compare, effort
from gateway.expressions.conditions import SCOPELESS
from gateway.expressions.filters import FILTERS
from gateway.expressions.methods import call_method
from gateway.expressions.paths import MESSAGE, ROOTS, Key, Run, against, among, body_against, exact, quick, root
from gateway.expressions.sandbox import FaultError, Missing, fits, get, text
from gateway.expressions.syntax import source
from gateway.expressions.vocabulary import (
    FUNCTIONS,
    apply_by_name,
    filter_called,
    instead,
    refuse_arguments,
    refuse_private,
    refuse_unknown_method,
    test_called,
)
from gateway.message import derived_id, rfc3339

PLACE = "#place"
"""A name that a caller may give along, not readable in expressions: it tells apart the `uuid()` of one message that
come from several evaluations, such as those of each element of a list. Without it, the first `uuid()` of each text is
the same within one message."""

_NOT_CONSTANT = object()
_FALSE = nodes.Const(False)  # noqa: FBT003 - Jinja2's own way


class Compiler:
    """Compiles the expressions of one text; ConfigErrors say what is wrong and leave it to the caller to say where."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        self.scoped = False
        self.looping = False

    def __call__(self, node: nodes.Node, *, lenient: bool = False) -> Run:
        """The function that gives the value of this expression."""
        known: Callable[[Any, bool], Run] | None = getattr(self, f"_{type(node).__name__.lower()}", None)
        if known is None:
            raise ConfigError(f"{type(node).__name__.lower()} is not part of the expression language here")
        return known(node, lenient)

    # --- constants and names

    def constant(self, node: nodes.Node) -> Any:
        """The value of a literal, nested ones included; else _NOT_CONSTANT."""
        if isinstance(node, nodes.Const):
            return node.value
        if isinstance(node, nodes.List | nodes.Tuple):
            values = [self.constant(item) for item in node.items]
            return _NOT_CONSTANT if any(value is _NOT_CONSTANT for value in values) else values
        if isinstance(node, nodes.Dict):
            pairs = [(self.constant(pair.key), self.constant(pair.value)) for pair in node.items]
            if any(_NOT_CONSTANT in pair or not isinstance(pair[0], str | int) for pair in pairs):
                return _NOT_CONSTANT
            return dict(pairs)
        return _NOT_CONSTANT

    def _const(self, node: nodes.Expr, lenient: bool) -> Run:
        value = self.constant(node)
        return lambda message, names: value

    def _name(self, node: nodes.Name, lenient: bool) -> Run:
        given = self._given(node.name)
        start = root(node.name, given=given)
        return exact(start, [], node.name, lenient=lenient) if given else start

    def _given(self, name: str) -> bool:
        """Whether a name was given along, rather than being a usual one. Raises ConfigError when it is neither."""
        if name in self.names:
            return True
        if name in FUNCTIONS:
            raise ConfigError(f"{name} is a function: write {name}()")
        if name not in ROOTS:
            raise ConfigError(f"there is no name {name!r}{instead(name, {*ROOTS, *FUNCTIONS, *self.names})}")
        return False

    # --- paths

    def _getattr(self, node: nodes.Getattr | nodes.Getitem, lenient: bool) -> Run:
        keys = _keys(node)
        start = keys[0][0] if keys else node
        if keys and isinstance(start, nodes.Name):
            return self._path(start.name, [key for _, key in keys], source(node), lenient=lenient)
        return self._lookup(node, lenient=lenient)

    _getitem = _getattr

    def _path(self, name: str, keys: list[Key], path: str, *, lenient: bool) -> Run:
        given = self._given(name)
        if name != "message" or given:
            slow = exact(root(name, given=given), keys, path, lenient=lenient)
            return quick(name, given=given, keys=keys, slow=slow)
        read = MESSAGE.get(str(keys[0].key))
        if read is None:
            raise ConfigError(f"message has no {keys[0].key!r}{instead(str(keys[0].key), MESSAGE)}")
        found = read
        if len(keys) == 1:
            return lambda message, names: found(message)
        return exact(lambda message, names: found(message), keys[1:], path, lenient=lenient)

    def _lookup(self, node: nodes.Getattr | nodes.Getitem, *, lenient: bool) -> Run:
        """A field of something computed, or by a computed key."""
        whole = self(node.node, lenient=True)
        owner, path = source(node.node), source(node)
        if isinstance(node, nodes.Getattr):
            refuse_private(node.attr)
            attr = node.attr
            key: Run = lambda message, names: attr  # noqa: E731
            label = repr(attr)
        else:
            key, label = self._key(node.arg), f"[{source(node.arg)}]"

        def run(message: Any, names: Any) -> Any:
            value = get(whole(message, names), key(message, names), label=label, owner=owner, path=path)
            if value.__class__ is Missing and not lenient:
                raise value.error()
            return value

        return run

    def _key(self, node: nodes.Expr) -> Run:
        if not isinstance(node, nodes.Slice):
            return self(node)
        parts = [self(part) if part is not None else None for part in (node.start, node.stop, node.step)]

        def run(message: Any, names: Any) -> slice:
            return slice(*(part(message, names) if part else None for part in parts))

        return run

    # --- calls, filters, tests

    def _arguments(self, node: Any) -> tuple[list[Run], dict[str, Run]]:
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise ConfigError("arguments can't be unpacked with * here")
        return [self(arg) for arg in node.args], {pair.key: self(pair.value) for pair in node.kwargs}

    def _call(self, node: nodes.Call, lenient: bool) -> Run:
        args, named = self._arguments(node)
        if isinstance(node.node, nodes.Name) and node.node.name in FUNCTIONS:
            if args or named:
                raise ConfigError(f"{node.node.name}() takes no arguments")
            return self._function(node.node.name)
        if not isinstance(node.node, nodes.Getattr) or named:
            raise ConfigError(f"{source(node)}: only methods of text and numbers, now() and uuid() can be called")
        name, owner, path = node.node.attr, source(node.node.node), source(node.node)
        refuse_private(name)
        refuse_unknown_method(name)
        whole = self(node.node.node)
        self.scoped = True

        def run(message: Any, names: Any) -> Any:
            value = whole(message, names)
            if isinstance(value, Mapping):
                field = get(value, name, label=repr(name), owner=owner, path=path)
                raise field.error() if isinstance(field, Missing) else FaultError(f"{path} is a field, no method")
            return call_method(names, value, name, owner, [arg(message, names) for arg in args])

        return run

    def _function(self, name: str) -> Run:
        if name == "now":
            return lambda message, names: rfc3339(message.time_s)
        self.scoped = True

        def run(message: Any, names: Any) -> str:
            names.uuids += 1
            return derived_id(message.id, f"uuid{names.get(PLACE, '')}", names.uuids - 1)

        return run

    def _filter(self, node: nodes.Filter, lenient: bool) -> Run:
        if node.node is None:
            raise ConfigError("{% filter %} is not part of the template language here")
        if node.name in ("default", "d"):
            return self._default(node, lenient=lenient)
        apply = filter_called(node.name)
        apply_by_name(node)
        args, named = self._arguments(node)
        refuse_arguments(node, apply)
        return self._applied(node, apply, self(node.node), (args, named), lenient=lenient)

    def _applied(
        self,
        node: Any,
        apply: Callable[..., Any],
        inner: Run,
        given: tuple[list[Run], dict[str, Run]],
        *,
        lenient: bool,
    ) -> Run:
        args, named = given
        place = source(node)
        self.scoped = True

        def run(message: Any, names: Any) -> Any:
            value = inner(message, names)
            values = [arg(message, names) for arg in args]
            try:
                found = apply(names, value, *values, **{key: arg(message, names) for key, arg in named.items()})
            except FaultError as error:
                error.place = error.place or place
                raise
            if found.__class__ is Missing:
                found = found.below(place)
                if not lenient:
                    raise found.error()
            return found

        return run

    def _default(self, node: nodes.Filter, *, lenient: bool) -> Run:
        refuse_arguments(node, FILTERS["default"])
        assert node.node is not None
        inner = self(node.node, lenient=True)
        named: dict[Any, nodes.Expr] = {pair.key: pair.value for pair in node.kwargs}
        value = node.args[0] if node.args else named.get("default_value", nodes.Const(""))
        falsy = node.args[1] if len(node.args) > 1 else named.get("boolean", _FALSE)
        other, also = self(value, lenient=lenient), self(falsy)
        if self.constant(falsy) is False:

            def run(message: Any, names: Any) -> Any:
                found = inner(message, names)
                return other(message, names) if found.__class__ is Missing else found
        else:

            def run(message: Any, names: Any) -> Any:
                found = inner(message, names)
                if found.__class__ is Missing or (not found and also(message, names)):
                    return other(message, names)
                return found

        return run

    def _test(self, node: nodes.Test, lenient: bool) -> Run:
        check = test_called(node.name)
        inner = self(node.node, lenient=node.name in ("defined", "undefined"))
        if node.name in SCOPELESS and not node.args and not node.kwargs:
            return lambda message, names: check(names, inner(message, names))
        args, named = self._arguments(node)
        refuse_arguments(node, check)
        return self._applied(node, check, inner, (args, named), lenient=False)

    # --- operators

    def _compare(self, node: nodes.Compare, lenient: bool) -> Run:
        if len(node.ops) == 1:
            return self._compared(node.expr, node.ops[0])
        operands = [self(node.expr), *(self(operation.expr) for operation in node.ops)]
        words = [operation.op for operation in node.ops]

        def run(message: Any, names: Any) -> bool:
            left = operands[0](message, names)
            for word, operand in zip(words, operands[1:], strict=True):
                right = operand(message, names)
                if not compare(word, left, right):
                    return False
                left = right
            return True

        return run

    def _compared(self, expr: nodes.Expr, operation: nodes.Operand) -> Run:
        word, left = operation.op, self(expr)
        constant = self.constant(operation.expr)
        if constant is not _NOT_CONSTANT and not isinstance(constant, list | dict) and word not in ("in", "notin"):
            slow = against(word, left, constant)
            keys = [key for _, key in _keys(expr)] if isinstance(expr, nodes.Getattr | nodes.Getitem) else []
            of_body = bool(keys) and source(expr).startswith(("body.", "body[")) and "body" not in self.names
            if len(keys) == 1 and of_body and isinstance(constant, int | str):
                return body_against(word, keys[0].key, constant, slow)
            return slow
        if (
            isinstance(constant, list)
            and word in ("in", "notin")
            and not any(isinstance(one, list | dict) for one in constant)
        ):
            return among(word, left, constant)
        right = self(operation.expr)
        if not self.looping:
            return lambda message, names: compare(word, left(message, names), right(message, names))
        self.scoped = True

        def run(message: Any, names: Any) -> bool:
            one, other = left(message, names), right(message, names)
            names.spend(effort(one, other))
            return compare(word, one, other)

        return run

    def _and(self, node: nodes.And, lenient: bool) -> Run:
        left, right = self(node.left), self(node.right)
        return lambda message, names: left(message, names) and right(message, names)

    def _or(self, node: nodes.Or, lenient: bool) -> Run:
        left, right = self(node.left), self(node.right)
        return lambda message, names: left(message, names) or right(message, names)

    def _not(self, node: nodes.Not, lenient: bool) -> Run:
        inner = self(node.node)
        return lambda message, names: not inner(message, names)

    def _add(self, node: nodes.BinExpr, lenient: bool) -> Run:
        compute = BINARY[node.operator]
        left, right = self(node.left), self(node.right)
        self.scoped = True
        return lambda message, names: compute(names, left(message, names), right(message, names))

    _sub = _mul = _div = _floordiv = _mod = _pow = _add

    def _neg(self, node: nodes.UnaryExpr, lenient: bool) -> Run:
        compute = UNARY[node.operator]
        inner = self(node.node)
        self.scoped = True
        return lambda message, names: compute(names, inner(message, names))

    _pos = _neg

    def _concat(self, node: nodes.Concat, lenient: bool) -> Run:
        parts = [self(part) for part in node.nodes]
        places = [source(part) for part in node.nodes]
        self.scoped = self.scoped or self.looping
        looping = self.looping

        def run(message: Any, names: Any) -> str:
            texts = []
            length = 0
            for part, place in zip(parts, places, strict=True):
                try:
                    texts.append(text(part(message, names)))
                except FaultError as error:
                    error.place = error.place or place
                    raise
                length += len(texts[-1])
            fits(length)
            if looping:
                names.spend(length)
            return "".join(texts)

        return run

    def _condexpr(self, node: nodes.CondExpr, lenient: bool) -> Run:
        if node.expr2 is None and not lenient:
            raise ConfigError("an if without else has no value when it does not hold: add an else")
        test, yes = self(node.test), self(node.expr1, lenient=lenient)
        no: Run = lambda message, names: Missing("if", "it has no else")  # noqa: E731
        if node.expr2 is not None:
            no = self(node.expr2, lenient=lenient)
        return lambda message, names: yes(message, names) if test(message, names) else no(message, names)

    def _list(self, node: nodes.List | nodes.Tuple, lenient: bool) -> Run:
        if self.constant(node) is not _NOT_CONSTANT:
            return self._const(node, lenient)
        items = [self(item) for item in node.items]
        self.scoped = True
        return lambda message, names: names.built([item(message, names) for item in items])

    _tuple = _list

    def _dict(self, node: nodes.Dict, lenient: bool) -> Run:
        if self.constant(node) is not _NOT_CONSTANT:
            return self._const(node, lenient)
        pairs = [(self(pair.key), self(pair.value)) for pair in node.items]
        self.scoped = True

        def run(message: Any, names: Any) -> Any:
            keys = [key(message, names) for key, _ in pairs]
            if not all(isinstance(key, str | int) for key in keys):
                raise FaultError("a key of an object is text or a whole number")
            return names.built({key: value(message, names) for key, (_, value) in zip(keys, pairs, strict=True)})

        return run


def _keys(node: nodes.Node) -> list[tuple[nodes.Node, Key]]:
    """The constant keys of a path from its start, each with the node that it is looked up in; else nothing."""
    found: list[tuple[nodes.Node, Key]] = []
    while isinstance(node, nodes.Getattr | nodes.Getitem):
        key: Any = node.attr if isinstance(node, nodes.Getattr) else getattr(node.arg, "value", None)
        if type(key) not in (str, int):
            return []
        refuse_private(key)
        label = repr(key) if isinstance(key, str) else str(key)
        found.append((node.node, Key(key, label, source(node.node))))
        node = node.node
    return found[::-1]
