from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import Limits, MessageError
from transforms.form import Format

LIMITS = Limits()
KIND = "application/x-www-form-urlencoded"


def test_a_form_becomes_a_mapping_and_a_repeated_name_a_list() -> None:
    assert Format().parse(b"a=1&b=x+y%26&a=2&c=&a=3&d", KIND, LIMITS) == {
        "a": ["1", "2", "3"],
        "b": "x y&",
        "c": "",
        "d": "",
    }


def test_an_empty_body_is_an_empty_form() -> None:
    assert Format().parse(b"", KIND, LIMITS) == {}


@pytest.mark.parametrize("body", [b"a=%ff", b"\xff=1", b"a%e9=1"])
def test_bytes_that_are_not_utf_8_are_malformed(body: bytes) -> None:
    with pytest.raises(MessageError, match="is not UTF-8") as refused:
        Format().parse(body, KIND, LIMITS)
    assert refused.value.code == "malformed"


def test_ten_thousand_fields_pass_and_one_more_does_not() -> None:
    assert Format().parse(b"&".join([b"a=1"] * 10_000), KIND, LIMITS) == {"a": ["1"] * 10_000}
    with pytest.raises(MessageError, match="more than 10000 fields"):
        Format().parse(b"&".join([b"a=1"] * 10_001), KIND, LIMITS)


def test_values_are_written_as_text() -> None:
    tree = {"a": ["é", 2], "b": True, "c": None, "x y": "&="}
    assert Format().format(tree) == b"a=%C3%A9&a=2&b=true&c=&x+y=%26%3D"


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ([], "form: expected a mapping of names to values; make one with map:"),
        ({"a": {}}, "form: a holds a mapping or a list in a list; a field is one text"),
        ({"a": [[]]}, "form: a holds a mapping or a list in a list; a field is one text"),
        ({"a": "\ud800"}, "form: a text holds half of a surrogate pair, which UTF-8 can't carry"),
    ],
    ids=["list", "mapping", "nested", "surrogate"],
)
def test_what_a_form_can_not_carry_is_refused(tree: Any, text: str) -> None:
    with pytest.raises(MessageError) as refused:
        Format().format(tree)
    assert str(refused.value) == text


texts = st.text(st.characters(codec="utf-8"), max_size=6)


@given(st.dictionaries(texts, texts | st.lists(texts, min_size=2, max_size=3), max_size=4))
def test_forms_survive_a_round_trip(tree: dict[str, Any]) -> None:
    assert Format().parse(Format().format(tree), KIND, LIMITS) == tree
