from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from gateway import JSON, Message, MessageError
from gateway.registry import read_component
from gateway.testing import FakeHost, arriving

HOST = FakeHost()
ORDER = b"""{"id": "A1", "total": 12.10, "open": true, "note": null, "tags": ["x", "y"],
             "items": [{"sku": "X", "qty": "2", "parts": [1, 2]}, {"sku": "Y", "qty": "1", "parts": []}]}"""


def mapped(tree: Any, raw: bytes = ORDER) -> Any:
    message = read_component("Step", {"map": tree})(arriving(HOST, raw))  # type: ignore[operator]
    assert isinstance(message, Message)
    assert message.content_type == JSON
    return message.tree


def failure(tree: Any) -> str:
    with pytest.raises(MessageError) as refused:
        mapped(tree)
    return str(refused.value)


def test_a_value_that_is_one_expression_keeps_its_type() -> None:
    tree = {
        "total": "{{ body.total }}",
        "open": "{{ body.open }}",
        "tags": "{{ body.tags }}",
        "note": "{{ body.note }}",
    }
    assert mapped(tree) == {"total": Decimal("12.10"), "open": True, "tags": ["x", "y"], "note": None}


def test_anything_else_is_text_or_a_constant() -> None:
    tree = {"text": "order {{ body.id }}!", "word": "plain", "n": 1, "x": 1.5, "t": True, "nothing": None}
    assert mapped(tree) == {"text": "order A1!", "word": "plain", "n": 1, "x": 1.5, "t": True, "nothing": None}


def test_mappings_and_lists_nest() -> None:
    assert mapped({"a": [{"b": "{{ body.id }}"}, "{{ body.total }}", []], "c": {}}) == {
        "a": [{"b": "A1"}, Decimal("12.10"), []],
        "c": {},
    }


def test_the_whole_body_may_be_one_value() -> None:
    assert mapped("{{ body.tags }}") == ["x", "y"]


def test_a_loop_makes_one_element_of_each() -> None:
    lines = {
        "each": "body.items",
        "as": "line",
        "do": {"sku": "{{ line.sku }}", "at": "{{ index }}", "id": "{{ body.id }}"},
    }
    assert mapped({"lines": lines}) == {"lines": [{"sku": "X", "at": 0, "id": "A1"}, {"sku": "Y", "at": 1, "id": "A1"}]}


def test_an_element_is_called_item_unless_said_otherwise() -> None:
    assert mapped({"each": "body.tags", "do": "{{ item }}!"}) == ["x!", "y!"]


def test_loops_nest_and_the_inner_one_sees_the_outer_element() -> None:
    inner = {"each": "line.parts", "as": "part", "do": "{{ line.sku }}{{ part }}"}
    assert mapped({"each": "body.items", "as": "line", "do": inner}) == [["X1", "X2"], []]


def test_null_has_no_elements() -> None:
    assert mapped({"each": "body.note", "do": "{{ item }}"}) == []


def test_each_alone_is_an_ordinary_key() -> None:
    assert mapped({"each": "body.tags", "as": "x"}) == {"each": "body.tags", "as": "x"}


def test_the_bytes_that_came_are_replaced_and_the_message_that_came_is_not() -> None:
    came = arriving(HOST, ORDER)
    went = read_component("Step", {"map": {"id": "{{ body.id }}"}})(came)  # type: ignore[operator]
    assert (went.body, came.body, went.id) == (b'{"id":"A1"}', ORDER, came.id)


@pytest.mark.parametrize(
    ("tree", "place"),
    [
        ({"a": "{{ body.nothing }}"}, "map.a: "),
        ({"a": {"b": ["x", "{{ body.nothing }}"]}}, "map.a.b[1]: "),
        ({"l": {"each": "body.nothing", "do": 1}}, "map.l.each: "),
        ({"l": {"each": "body.items", "do": {"x": "{{ item.parts[1] }}"}}}, "map.l.do.x: "),
        ({"l": {"each": "body.items", "do": "{{ item.nothing }}"}}, "map.l.do: "),
    ],
    ids=["key", "list", "each", "in loop", "loop leaf"],
)
def test_what_is_undefined_is_an_error_that_names_the_key(tree: Any, place: str) -> None:
    assert failure(tree).startswith(place)


def test_an_error_in_a_loop_names_the_element() -> None:
    text = failure({"each": "body.items", "do": {"x": "{{ item.parts[1] }}"}})
    assert text.endswith("(at index 1)")


@pytest.mark.parametrize(
    ("each", "text"),
    [
        ("body", "map.each: body is a mapping, expected a list; of XML, arrays: makes an element always a list"),
        ("body.id", "map.each: body.id is str, expected a list; of XML, arrays: makes an element always a list"),
    ],
)
def test_a_loop_over_what_is_no_list_is_an_error(each: str, text: str) -> None:
    assert failure({"each": each, "do": 1}) == text


def test_a_default_stands_for_what_is_undefined() -> None:
    assert mapped({"a": "{{ body.nothing | default('none') }}"}) == {"a": "none"}


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"a": "{{ body. }}"}, "a: "),
        ({"a": ["{{ nobody }}"]}, "a.0: "),
        ({"a": "{{ item.x }}"}, "a: "),
        ({"each": "body.(", "do": 1}, "each: "),
        ({"each": "body.x", "do": "{{ other }}", "as": "one"}, "do: "),
        ({"each": "body.x", "do": 1, "where": "x"}, ": a loop has each:, as: and do:, got where: as well"),
        ({"each": "body.x", "do": 1, "as": "a b"}, "as: expected a name, got 'a b'"),
        ({"each": ["body.x"], "do": 1}, "each: expected an expression, such as body.lines"),
        ({"{{ body.id }}": 1}, ': the key "{{ body.id }}" is a template; only values can be'),
        ({1: "x"}, ": the key 1 is no text; put it in quotes"),
        ({"a": {"b": object()}}, "a.b: expected a text, a number, a mapping or a list, got object"),
    ],
    ids=["syntax", "name", "no loop", "each", "do", "loop key", "as", "each type", "key template", "key", "type"],
)
def test_what_can_not_work_is_refused_at_load_with_its_place(tree: Any, text: str) -> None:
    with pytest.raises(ValidationError) as refused:
        read_component("Step", {"map": tree})
    (error,) = refused.value.errors()
    word, *place = error["loc"]
    assert word == "map"
    assert f"{'.'.join(map(str, place))}: {error['msg']}".startswith(text)


def test_all_that_can_not_work_is_told_at_once() -> None:
    with pytest.raises(ValidationError) as refused:
        read_component("Step", {"map": {"a": "{{ nobody }}", "b": [1, "{{ body. }}"], "c": "{{ body.c }}"}})
    assert [error["loc"] for error in refused.value.errors()] == [("map", "a"), ("map", "b", 1)]
