"""Paths such as `body.customer.name` as functions: optimistic where that is quick, exact where it fails.

The optimistic function subscripts and hopes; when that raises, the exact one does it again by the rules of `get` and
says what is missing. Both read only, so doing it twice is harmless.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec import UNSET

from gateway.expressions.arithmetic import ORDER, compare
from gateway.expressions.sandbox import Missing, decimal, get
from gateway.message import Message, rfc3339

Run = Callable[[Any, Any], Any]
"""Called with the message and the other names (a Scope where the function spends); returns the value."""

UNLUCKY = (KeyError, IndexError, TypeError)


class Key(NamedTuple):
    """One step of a path: the key, and how errors name it and what it is looked up in."""

    key: str | int
    label: str
    owner: str


MESSAGE: dict[str, Callable[[Message], Any]] = {
    "id": lambda message: message.id,
    "source": lambda message: message.source,
    "type": lambda message: message.type,
    "subject": lambda message: message.subject,
    "time": lambda message: rfc3339(message.time_s),
    "key": lambda message: message.key,
    "sender_id": lambda message: message.sender_id,
    "correlation_id": lambda message: message.correlation_id,
    "causation_id": lambda message: message.causation_id,
    "content_type": lambda message: message.content_type,
    "schema": lambda message: message.schema,
    "priority": lambda message: message.priority,
    "expires_at": lambda message: None if message.expires_at_s is None else rfc3339(message.expires_at_s),
    "principal": lambda message: None if message.principal is None else message.principal.name,
}
"""What `message.` has in expressions."""

ROOTS: dict[str, Callable[[Message], Any]] = {
    "body": lambda message: message.tree,
    "headers": lambda message: message.headers,
    "transport": lambda message: message.transport,
    "message": lambda message: {name: read(message) for name, read in MESSAGE.items()},
    "context": lambda message: message.context,
}
"""The names that are always there."""


def root(name: str, *, given: bool) -> Run:
    """The value of a name: a usual one, or one that was given along."""
    if not given:
        read = ROOTS[name]
        return lambda message, names: read(message)

    def run(message: Any, names: Any) -> Any:
        try:
            return names[name]
        except KeyError:
            return Missing(name, "it was not given here")

    return run


def exact(start: Run, keys: list[Key], path: str, *, lenient: bool) -> Run:
    """Follows the path by all rules; lenient: what is not there is a Missing, else a MessageError."""

    def run(message: Any, names: Any) -> Any:
        value = start(message, names)
        for key, label, owner in keys:
            value = get(value, key, label=label, owner=owner, path=path)
        if value.__class__ is Missing and not lenient:
            raise value.error()
        return value

    return run


def quick(name: str, *, given: bool, keys: list[Key], slow: Run) -> Run:
    """The same as `slow`, quicker when all is there."""
    plain = [key.key for key in keys]
    if given:
        return _quick_given(name, plain, slow)
    if name == "body":
        return _quick_body(plain, slow)
    attribute = {"headers": _headers, "transport": _transport}.get(name)
    return slow if attribute is None else attribute(plain, slow)


def _quick_body(keys: list[Any], slow: Run) -> Run:
    first, *more = keys
    if not more:

        def one(message: Any, names: Any) -> Any:
            parsed = message.parsed  # `tree` of one that is there already costs a call
            try:
                return (message.tree if parsed is UNSET else parsed)[first]
            except UNLUCKY:
                return slow(message, names)

        return one
    if len(more) == 1:
        (second,) = more

        def two(message: Any, names: Any) -> Any:
            parsed = message.parsed
            try:
                return (message.tree if parsed is UNSET else parsed)[first][second]
            except UNLUCKY:
                return slow(message, names)

        return two

    def many(message: Any, names: Any) -> Any:
        try:
            value = message.tree
            for key in keys:
                value = value[key]
        except UNLUCKY:
            return slow(message, names)
        return value

    return many


def _headers(keys: list[Any], slow: Run) -> Run:
    def run(message: Any, names: Any) -> Any:
        try:
            value = message.headers
            for key in keys:
                value = value[key]
        except UNLUCKY:
            return slow(message, names)
        return value

    return run


def _transport(keys: list[Any], slow: Run) -> Run:
    def run(message: Any, names: Any) -> Any:
        try:
            value = message.transport
            for key in keys:
                value = value[key]
        except UNLUCKY:
            return slow(message, names)
        return value

    return run


def _quick_given(name: str, keys: list[Any], slow: Run) -> Run:
    first, *more = keys
    if not more:

        def one(message: Any, names: Any) -> Any:
            try:
                return names[name][first]
            except UNLUCKY:
                return slow(message, names)

        return one

    def many(message: Any, names: Any) -> Any:
        try:
            value = names[name]
            for key in keys:
                value = value[key]
        except UNLUCKY:
            return slow(message, names)
        return value

    return many


def against(word: str, left: Run, constant: Any) -> Run:
    """A comparison with a constant number or text."""
    apply = ORDER[word]
    fraction = not isinstance(constant, int | str)

    def run(message: Any, names: Any) -> Any:
        value = left(message, names)
        if fraction and value.__class__ is float:
            value = decimal(value)
        try:
            return apply(value, constant)
        except TypeError:
            return compare(word, value, constant)

    return run


def among(word: str, left: Run, constants: list[Any]) -> Run:
    """Whether a value is, or is not, one of some constants."""
    inside = word == "in"

    def run(message: Any, names: Any) -> bool:
        value = left(message, names)
        if value.__class__ is float:
            value = decimal(value)
        return (value in constants) is inside

    return run


def body_against(word: str, key: str | int, constant: int | str, slow: Run) -> Run:
    """A comparison of one field of the body with a whole number or a text: what most routes decide by."""
    apply = ORDER[word]

    def run(message: Any, names: Any) -> Any:
        parsed = message.parsed
        try:
            return apply((message.tree if parsed is UNSET else parsed)[key], constant)
        except UNLUCKY:
            return slow(message, names)

    return run
