from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gateway import Message, MessageError
from gateway.registry import read_component
from gateway.testing import FakeHost, arriving

HOST = FakeHost()
BODY = b'{"id": "A1", "total": 100, "lines": []}'


def run(value: Any) -> Message | None:
    return read_component("Step", value)(arriving(HOST, BODY))  # type: ignore[operator,no-any-return]


@pytest.mark.parametrize(
    ("condition", "passes"),
    [("body.total >= 100", True), ("body.total > 100", False), ("body.lines", False), ("body.id is string", True)],
)
def test_only_what_fulfils_the_condition_goes_on(condition: str, passes: bool) -> None:
    assert (run({"filter": condition}) is not None) == passes


def test_a_message_that_goes_on_is_the_same_message() -> None:
    came = arriving(HOST, BODY)
    assert read_component("Step", {"filter": "true"})(came) is came  # type: ignore[operator]


def test_a_condition_on_what_is_not_there_is_refused() -> None:
    with pytest.raises(MessageError, match=r"body\.nothing|nothing"):
        run({"filter": "body.nothing > 1"})


def test_a_condition_that_can_not_be_compiled_is_refused_at_load() -> None:
    with pytest.raises(ValidationError) as refused:
        run({"filter": "body.total >"})
    assert refused.value.errors()[0]["loc"] == ("filter",)


def test_a_template_makes_plain_text() -> None:
    message = run({"template": "{{ body.id }}: {{ body.total }} é"})
    assert message is not None
    assert (message.body, message.content_type) == ("A1: 100 é".encode(), "text/plain; charset=utf-8")
    assert message.tree == "A1: 100 é"


def test_a_template_of_one_expression_is_text_all_the_same() -> None:
    message = run({"template": "{{ body.total }}"})
    assert message is not None
    assert message.tree == "100"
