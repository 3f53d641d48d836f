"""The contract of formats, as checks."""

from __future__ import annotations

import random
from copy import deepcopy

from gateway.errors import MessageError
from gateway.limits import Limits
from gateway.ports import Format
from gateway.testing.benches import Check, FormatBench, needs
from gateway.testing.source_checks import documented

LIMITS = Limits(json_depth=16, xml_depth=16)


def _parsed(bench: FormatBench, body: bytes) -> object:
    """The tree, or the MessageError; nothing else may come out."""
    try:
        return bench.format().parse(body, bench.format().content_types[0], LIMITS)
    except MessageError as error:
        return error


async def is_a_documented_settings_class(bench: FormatBench) -> None:
    """It is a frozen settings class with a docstring, and content types in lower case without parameters."""
    kind = bench.format()
    assert isinstance(kind, Format)
    documented(kind)
    assert kind.content_types
    for content_type in kind.content_types:
        assert content_type == content_type.strip().lower()
        assert content_type.count("/") == 1
        assert ";" not in content_type


async def trees_come_back_as_they_were(bench: FormatBench) -> None:
    """Formatted and parsed again, and the tree that was given is not touched."""
    kind = bench.format()
    for tree in bench.trees():
        before = deepcopy(tree)
        body = kind.format(tree)
        assert isinstance(body, bytes)
        assert tree == before, "it changed the tree that it was given"
        assert kind.parse(body, kind.content_types[0], LIMITS) == tree
        if bench.exact:
            assert kind.format(tree) == body


async def what_is_malformed_is_said(bench: FormatBench) -> None:
    """As a MessageError with the code that lets a sender hear 400."""
    for body in bench.malformed():
        error = _parsed(bench, body)
        assert isinstance(error, MessageError), f"{body!r:.60} was taken as {error!r:.60}"
        assert error.code == "malformed", f"{body!r:.60}: the code is {error.code}"
        assert str(error)


async def what_it_can_not_carry_is_refused(bench: FormatBench) -> None:
    """As a MessageError, not as half of it."""
    for tree in bench.foreign():
        refused = False
        try:
            bench.format().format(tree)
        except MessageError:
            refused = True
        assert refused, f"it wrote {tree!r:.60}"


async def no_bytes_break_it(bench: FormatBench) -> None:
    """Whatever comes is a tree or a MessageError: every beginning of good bytes, and those with one byte changed."""
    luck = random.Random(7)
    for tree in bench.trees():
        body = bench.format().format(tree)
        for end in range(min(len(body), 400)):
            _parsed(bench, body[:end])
        for _ in range(200):
            changed = bytearray(body or b"\0")
            changed[luck.randrange(len(changed))] = luck.randrange(256)
            _parsed(bench, bytes(changed))
    for _ in range(200):
        _parsed(bench, luck.randbytes(luck.randrange(64)))


@needs("limited")
async def depth_is_limited(bench: FormatBench) -> None:
    """One level over the limit is malformed, and a hundred thousand are no stack overflow."""
    assert not isinstance(_parsed(bench, bench.deep(LIMITS.json_depth - 1)), MessageError)
    for levels in (LIMITS.json_depth + 1, 100_000):
        error = _parsed(bench, bench.deep(levels))
        assert isinstance(error, MessageError), f"{levels} levels were taken"


FORMAT_CHECKS: list[Check] = [
    is_a_documented_settings_class,
    trees_come_back_as_they_were,
    what_is_malformed_is_said,
    what_it_can_not_carry_is_refused,
    no_bytes_break_it,
    depth_is_limited,
]
"""What every format keeps to; `checks_for` chooses those that fit a bench."""
