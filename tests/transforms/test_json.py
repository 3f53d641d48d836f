from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import Limits, MessageError, Tree
from transforms.json import Format

LIMITS = Limits()


def parse(body: bytes, content_type: str = "application/json", limits: Limits = LIMITS) -> Tree:
    return Format().parse(body, content_type, limits)


def refusal(body: bytes, content_type: str = "application/json", limits: Limits = LIMITS) -> MessageError:
    with pytest.raises(MessageError) as refused:
        parse(body, content_type, limits)
    return refused.value


def test_a_number_with_a_point_is_an_exact_decimal_and_is_written_as_it_was() -> None:
    tree = parse(b'{"price":12.10,"big":123456789012345678901234567890,"n":-0.5e3}')
    assert tree == {"price": Decimal("12.10"), "big": 123456789012345678901234567890, "n": Decimal("-500")}
    assert Format().format(tree) == b'{"price":12.10,"big":123456789012345678901234567890,"n":-5E+2}'


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse(b"\xef\xbb\xbf[1]") == [1]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", 'application/json; charset="UTF-8"'])
def test_the_charset_may_say_utf_8(content_type: str) -> None:
    assert parse('["é"]'.encode(), content_type) == ["é"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "json: the body is empty; expected a JSON value"),
        (b" \n", "json: the body is empty; expected a JSON value"),
        (b"[1", "json: malformed at line 1 column 3: the text ends too early"),
        (b'["a\\ud800"]', "json: malformed at line 1 column 4: half a surrogate pair, which is no character"),
        (b'["\\\\ud800", 1', "json: malformed at line 1 column 14: the text ends too early"),
        (b'["a\\ud800', "json: malformed at line 1 column 10: the text ends too early"),
        (b'{"a":\n 1,}', "json: malformed at line 2 column 4: trailing comma in object"),
        (b"[1 2]", "json: malformed at line 1 column 4: expected ',' or ']'"),
        (b'{"a" 1}', "json: malformed at line 1 column 6: expected ':'"),
        (b"{1:2}", "json: malformed at line 1 column 2: object keys must be strings"),
        (b"NaN", "json: malformed at line 1 column 1: invalid character"),
        (b'{"a":-Infinity}', "json: malformed at line 1 column 7: invalid character"),
        (b"[01]", "json: malformed at line 1 column 3: invalid number"),
        (b'"\xff"', "json: malformed at line 1 column 2: byte 0xff is not UTF-8"),
        (b'{"a":"\xc3\xa9\xe9"}', "json: malformed at line 1 column 9: byte 0xe9 is not UTF-8"),
        (b'{"a":1,"b":2,"a":3}', "json: the name 'a' comes twice in one object; send it once"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else None,
)
def test_a_broken_body_is_malformed_and_the_text_says_where(body: bytes, text: str) -> None:
    error = refusal(body)
    assert (error.code, str(error)) == ("malformed", text)


def test_another_charset_is_unsupported() -> None:
    error = refusal(b"[1]", "application/json; charset=utf-16")
    assert error.code == "unsupported"
    assert str(error) == "json: charset is 'utf-16'; JSON is UTF-8 (RFC 8259 section 8.1): send it so"


def test_no_complaint_shows_a_value() -> None:
    assert "hunter2" not in str(refusal(b'{"password": "hunter2", }'))


@pytest.mark.parametrize(
    "body",
    [b'{"a":1,"a":2}', b'{"a":1,"a" :2}', b'{"a":{"b":1},"a":":"}', rb'{"a\u003a":1,"a:":2}', b'[[{"a":{},"a":{}}]]'],
    ids=["plain", "space", "colon in text", "escaped", "deep"],
)
def test_a_name_that_comes_twice_is_refused_however_it_is_written(body: bytes) -> None:
    assert "comes twice" in str(refusal(body))


def test_the_last_of_two_names_wins_where_asked_for() -> None:
    assert Format(duplicates="last").parse(b'{"a":1,"a":2}', "", LIMITS) == {"a": 2}


@pytest.mark.parametrize("body", [rb'{"a\u003a":1,"b":"\u003a:"}', b'{"a":":::","b":{"a":1}}', rb'{"a\\":1,"b":2}'])
def test_colons_in_texts_are_no_names(body: bytes) -> None:
    assert parse(body) == json.loads(body)


@pytest.mark.parametrize("opener", [b"[", b'{"a":'], ids=["lists", "mappings"])
def test_depth_is_allowed_up_to_its_limit(opener: bytes) -> None:
    closer = b"]" if opener == b"[" else b"}"
    limits = Limits(json_depth=64)
    parse(opener * 64 + b"1" + closer * 64, limits=limits)
    error = refusal(opener * 65 + b"1" + closer * 65, limits=limits)
    assert (error.code, str(error)) == ("malformed", "json: nested more than 64 deep (limits.json_depth)")


def test_brackets_in_texts_count_for_no_depth() -> None:
    assert parse(b'["' + b"[{" * 500 + b'","\\"' + b"[" * 500 + b'"]')


def test_brackets_in_texts_hide_no_depth() -> None:
    assert "nested" in str(refusal(b'["]",' * 70 + b"1" + b"]" * 70))
    assert "nested" in str(refusal(b'["\\"]",' * 70 + b"1" + b"]" * 70))


def test_wide_bodies_are_not_deep() -> None:
    assert len(parse(b"[" + b",".join([b'{"a":[{}]}'] * 1000) + b"]")) == 1000  # type: ignore[arg-type]


def test_a_body_nested_beyond_all_measure_is_refused_quickly() -> None:
    assert "nested" in str(refusal(b"[" * 1_000_000))


@pytest.mark.parametrize("sign", [b"", b"-", b"0."], ids=["integer", "negative", "fraction"])
def test_digits_are_allowed_up_to_their_limit(sign: bytes) -> None:
    parse(b"[" + sign + b"1" * 399 + b"]")
    error = refusal(b"[" + sign + b"1" * 401 + b"]")
    assert (error.code, str(error)) == ("malformed", "json: a number needs more than 400 digits (limits.json_digits)")


def test_four_hundred_digits_pass_and_one_more_does_not() -> None:
    assert parse(b"9" * 400) == int("9" * 400)
    assert "400 digits" in str(refusal(b"9" * 401))
    assert "400 digits" in str(refusal(b'{"a":"' + b"x" * 777 + b'","n":' + b"9" * 401 + b"}"))
    assert "400 digits" in str(refusal(b"9" * 5000))


def test_digits_in_a_text_are_no_number() -> None:
    assert parse(b'["' + b"1" * 5000 + b'"]') == ["1" * 5000]


@pytest.mark.parametrize("body", [b"1e999999999", b"1e-999999999", b"-1E+401", b"1e-401"])
def test_an_exponent_is_bounded_like_digits(body: bytes) -> None:
    assert "400 digits" in str(refusal(body))


def test_strings_are_allowed_up_to_their_limit() -> None:
    limits = Limits.model_validate({"json_string": "16B"})
    assert parse(b'["' + b"x" * 16 + b'", "y"]', limits=limits) == ["x" * 16, "y"]
    error = refusal(b'["y",\n"' + b"x" * 17 + b'"]', limits=limits)
    assert str(error) == "json: a string is longer than 16 bytes (limits.json_string), at line 2 column 1"


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"a": [1, float("nan")]}, "json: body.a[1] is nan, which JSON can't carry"),
        ([float("-inf")], "json: body[0] is -inf, which JSON can't carry"),
        ({"a": Decimal("Infinity")}, "json: body.a is Infinity, which JSON can't carry"),
        ("\ud800", "json: a text holds half of a surrogate pair, which UTF-8 can't carry"),
        ({"a": object()}, "json: the tree can't be written: Encoding objects of type object is unsupported"),
    ],
    ids=["nan", "inf", "decimal", "surrogate", "object"],
)
def test_what_json_can_not_carry_is_refused(tree: Any, text: str) -> None:
    with pytest.raises(MessageError) as refused:
        Format().format(tree)
    assert str(refused.value) == text


def test_null_is_written_as_null_and_texts_that_look_like_nan_are_texts() -> None:
    assert Format().format([None, "NaN", "Infinity"]) == b'[null,"NaN","Infinity"]'


def test_a_tree_that_contains_itself_is_refused() -> None:
    tree: list[Any] = []
    tree.append(tree)
    with pytest.raises(MessageError, match="nested too deeply"):
        Format().format(tree)


def test_indent_spreads_over_lines() -> None:
    assert Format(indent=2).format({"a": [1]}) == b'{\n  "a": [\n    1\n  ]\n}'


trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(trees)
def test_every_tree_survives_a_round_trip(tree: Any) -> None:
    assert parse(Format().format(tree)) == tree


@given(st.binary(max_size=40) | st.text(alphabet='[]{}":,\\u0a1e-. ', max_size=30).map(str.encode))
def test_any_bytes_are_a_tree_or_a_refusal(body: bytes) -> None:
    try:
        tree = parse(body, limits=Limits(json_depth=5, json_digits=6))
    except MessageError:
        return
    assert parse(Format().format(tree)) == tree
