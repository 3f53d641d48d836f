from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gateway import Message, MessageError
from gateway.registry import read_component
from gateway.testing import FakeHost, arriving

HOST = FakeHost()
BODY = b'{"id": "A1", "customer": {"name": "Ann", "tier": 2}, "lines": [1], "note": null}'


def changed(settings: dict[str, Any], raw: bytes = BODY, **fields: Any) -> Message:
    message = read_component("Step", {"set": settings})(arriving(HOST, raw, **fields))  # type: ignore[operator]
    assert isinstance(message, Message)
    return message


def failure(settings: dict[str, Any], raw: bytes = BODY) -> str:
    with pytest.raises(MessageError) as refused:
        changed(settings, raw)
    return str(refused.value)


def test_attributes_are_set_and_all_others_kept() -> None:
    message = changed(
        {
            "type": "order.placed",
            "subject": "{{ body.id }}",
            "schema": "https://example.com/{{ body.customer.tier }}",
            "correlation_id": "{{ message.id }}",
            "priority": "{{ body.customer.tier }}",
            "expires_after": "90s",
        },
        id="m1",
        time_s=1000.0,
        headers={"x": "y"},
    )
    assert (message.type, message.subject, message.schema) == ("order.placed", "A1", "https://example.com/2")
    assert (message.correlation_id, message.priority, message.expires_at_s) == ("m1", 2, 1090.0)
    assert (message.id, message.headers, message.body) == ("m1", {"x": "y"}, BODY)


def test_an_expression_that_gives_null_clears_an_attribute() -> None:
    assert changed({"subject": "{{ body.note }}"}, subject="before").subject is None


def test_null_clears_an_attribute() -> None:
    message = changed(
        {"subject": None, "schema": None, "expires_after": None}, subject="x", schema="y", expires_at_s=1.0
    )
    assert (message.subject, message.schema, message.expires_at_s) == (None, None, None)


def test_a_number_becomes_text() -> None:
    assert changed({"subject": "{{ body.customer.tier }}"}).subject == "2"


def test_the_content_type_changes_the_label_and_not_the_bytes() -> None:
    message = changed({"content_type": "application/vnd.acme+json"})
    assert (message.body, message.content_type) == (BODY, "application/vnd.acme+json")
    relabelled = changed({"content_type": "text/plain"})
    assert relabelled.tree == BODY.decode()


def test_a_body_that_was_mapped_keeps_its_bytes_under_a_new_label() -> None:
    mapped = Message(parsed={"a": 1}, formats=HOST.formats)
    message = read_component("Step", {"set": {"content_type": "text/x-log"}})(mapped)  # type: ignore[operator]
    assert (message.body, message.content_type) == (b'{"a":1}', "text/x-log")


def test_values_of_the_body_are_set_by_path_and_the_rest_is_kept() -> None:
    came = arriving(HOST, BODY)
    before = came.tree
    step = read_component(
        "Step",
        {"set": {"body": {"customer.name": "{{ body.id }}", "a.b": [1, {"c": "{{ body.lines }}"}], "note.x": True}}},
    )
    went = step(came)  # type: ignore[operator]
    assert went.tree == {
        "id": "A1",
        "customer": {"name": "A1", "tier": 2},
        "lines": [1],
        "note": {"x": True},
        "a": {"b": [1, {"c": [1]}]},
    }
    assert came.tree is before
    assert before == {"id": "A1", "customer": {"name": "Ann", "tier": 2}, "lines": [1], "note": None}
    assert went.content_type == came.content_type


def test_paths_are_removed_before_others_are_set() -> None:
    message = changed({"remove": ["customer.name", "lines", "nothing.here"], "body": {"lines": 0}})
    assert message.tree == {"id": "A1", "customer": {"tier": 2}, "note": None, "lines": 0}


def test_all_templates_see_the_message_as_it_came() -> None:
    message = changed({"type": "new", "body": {"id": "{{ message.type }}", "old": "{{ body.id }}"}}, type="old")
    assert isinstance(message.tree, dict)
    assert (message.tree["id"], message.tree["old"]) == ("old", "A1")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"subject": "{{ body.customer }}"}, "set.subject: expected a text, got a mapping"),
        ({"type": "{{ body.lines }}"}, "set.type: expected a text, got a list"),
        ({"priority": "{{ 10 }}"}, "set.priority: expected 0 to 9, got 10"),
        ({"priority": "high"}, "set.priority: expected 0 to 9, got 'high'"),
        ({"priority": "{{ true }}"}, "set.priority: expected 0 to 9, got True"),
        ({"content_type": "no type"}, "set.content_type: expected one such as text/plain, got 'no type'"),
        ({"content_type": "{{ 'a/b\\r\\nx: y' }}"}, "set.content_type: expected one such as text/plain"),
        ({"body": {"id.x": 1}}, "set.body.id.x: body.id is no mapping, so it can hold no 'x'"),
        ({"body": {"lines.0": 1}}, "set.body.lines.0: body.lines is no mapping, so it can hold no '0'"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(settings: dict[str, Any], text: str) -> None:
    assert failure(settings).startswith(text)


def test_a_body_that_is_no_mapping_can_hold_no_names() -> None:
    assert failure({"body": {"a": 1}}, b"[1]") == "set.body.a: body is no mapping, so it can hold no 'a'"


def test_an_undefined_value_names_its_place() -> None:
    assert failure({"body": {"a.b": {"c": "{{ body.nothing }}"}}}).startswith("set.body.c: ")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"headers": {"x": "y"}},
        {"transport": {}},
        {"id": "x"},
        {"body": {"a..b": 1}},
        {"remove": [""]},
        {"body": {"a": "{{ x }}"}},
        {"type": None},
    ],
    ids=["nothing", "headers", "transport", "id", "path", "remove", "name", "null"],
)
def test_what_can_not_work_is_refused_at_load(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read_component("Step", {"set": settings})
