from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import Limits, MessageError, Tree
from transforms.msgpack import Format

LIMITS = Limits()


def parse(body: bytes, limits: Limits = LIMITS) -> Tree:
    return Format().parse(body, "application/msgpack", limits)


def refusal(body: bytes) -> str:
    with pytest.raises(MessageError) as refused:
        parse(body)
    assert refused.value.code == "malformed"
    return str(refused.value)


def test_bytes_become_base64_and_timestamps_rfc_3339() -> None:
    moment = datetime(2026, 11, 21, 2, 34, 41, 123000, UTC)
    tree = parse(msgspec.msgpack.encode({"b": b"\x00\xff", "t": moment, "l": [1, None, True, 1.5]}))
    assert tree == {"b": "AP8=", "t": "2026-11-21T02:34:41.123000Z", "l": [1, None, True, 1.5]}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "msgpack: Input data was truncated"),
        (b"\xdd\xff\xff\xff\xff", "msgpack: Input data was truncated"),
        (b"\x01\x02", "msgpack: MessagePack data is malformed: trailing characters (byte 1)"),
        (b"\xa1\xff", "msgpack: a text is not UTF-8"),
        (b"\x81\x01\x02", "msgpack: body has a key of type int, expected text"),
        (b"\x81\xa1a\x91\x81\xc4\x01a\x02", "msgpack: body.a has a key of type bytes, expected text"),
        (b"\x81\xa1a\xd4\x05a", "msgpack: body.a has an extension type, which no tree can hold"),
        (b"\x91" * 100_000, "msgpack: nested more than 64 deep (limits.json_depth)"),
    ],
    ids=["empty", "length", "trailing", "utf-8", "key", "bytes key", "extension", "deep"],
)
def test_what_is_no_tree_is_malformed(body: bytes, text: str) -> None:
    assert refusal(body) == text


def test_depth_is_allowed_up_to_its_limit() -> None:
    parse(b"\x91" * 64 + b"\x01")
    assert "nested more than 64 deep" in refusal(b"\x91" * 65 + b"\x01")


def test_a_decimal_is_a_float_where_that_is_exact_and_text_where_asked_for() -> None:
    tree = {"price": [Decimal("12.10")]}
    assert msgspec.msgpack.decode(Format().format(tree)) == {"price": [12.1]}
    assert msgspec.msgpack.decode(Format(decimals="text").format(tree)) == {"price": ["12.10"]}


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (
            {"a": [Decimal("0.1234567890123456789")]},
            "msgpack: body.a has more digits than a float holds; say decimals: text",
        ),
        ([2**64], "msgpack: an integer needs more than 64 bits, which MessagePack can't carry"),
        ("\ud800", "msgpack: a text holds half of a surrogate pair, which UTF-8 can't carry"),
        ([object()], "msgpack: the tree can't be written: Encoding objects of type object is unsupported"),
    ],
    ids=["digits", "integer", "surrogate", "object"],
)
def test_what_msgpack_can_not_carry_is_refused(tree: Any, text: str) -> None:
    with pytest.raises(MessageError) as refused:
        Format().format(tree)
    assert str(refused.value) == text


trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(trees)
def test_every_tree_survives_a_round_trip(tree: Any) -> None:
    assert parse(Format().format(tree)) == tree


@given(st.binary(max_size=60))
def test_any_bytes_are_a_tree_or_a_refusal(body: bytes) -> None:
    try:
        parse(body)
    except MessageError:
        return
