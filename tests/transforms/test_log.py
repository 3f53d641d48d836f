from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from pydantic import ValidationError

from gateway import Message, MessageError
from gateway.logs import JsonLines
from gateway.registry import read_component
from gateway.testing import FakeHost, arriving
from transforms.log import MOST_TEXT

HOST = FakeHost()
BODY = b'{"id": "A1", "total": 1100.10, "n": 7, "ok": true, "note": null, "lines": [{"sku": "X"}], "card": "4111"}'


def run(value: Any, body: bytes = BODY) -> Message:
    came = arriving(HOST, body).replace(source="/plant/orders", type="order.placed")
    step: Any = read_component("Step", {"log": value})
    passed: Message = step(came)
    assert passed is came
    return passed


def logged(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    ((record),) = caplog.records
    line: dict[str, Any] = json.loads(JsonLines().format(record))
    return line


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "gateway")


def test_a_line_says_what_the_text_says_and_the_message_goes_on_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    message = run("order {{ body.id }}")
    line = logged(caplog)
    del line["time"]
    assert line == {
        "level": "info",
        "logger": "gateway.messages",
        "event": "step",
        "route": "orders",
        "message_id": message.id,
        "type": "order.placed",
        "text": "order A1",
    }


@pytest.mark.parametrize("level", ["debug", "info", "warning"])
def test_the_line_has_the_level_that_it_is_given(caplog: pytest.LogCaptureFixture, level: str) -> None:
    run({"text": "seen", "level": level})
    assert logged(caplog)["level"] == level


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ body.id }}", "A1"),
        ("id {{ body.id }}", "id A1"),
        ("{{ body.total }}", 1100.1),
        ("{{ body.n }}", 7),
        ("{{ body.ok }}", True),
        ("{{ body.note }}", None),
        ("{{ body.lines }}", '[{"sku":"X"}]'),
        (5, 5),
        ("{{ body.n * 10 ** 30 }}", 7e30),
    ],
)
def test_a_field_is_a_number_where_it_is_one(caplog: pytest.LogCaptureFixture, template: Any, value: object) -> None:
    run({"text": "seen", "fields": {"level": template}})
    assert logged(caplog)["fields"] == {"level": value}
    assert logged(caplog)["level"] == "info"


def test_a_number_that_is_too_large_for_64_bits_is_text(caplog: pytest.LogCaptureFixture) -> None:
    run({"text": "seen", "fields": {"n": "{{ body }}"}}, b"1" + b"0" * 399)
    assert logged(caplog)["fields"]["n"] == "1" + "0" * 399


@pytest.mark.parametrize(
    "hostile",
    [
        '"}\n{"level":"error","event":"all is lost"}',
        "\x00\x07\x1b[2J",
        "\x9b2J\x85 \u2028\u2029",
        "\u202egnp.exe\u2066",
        "half \ud800",
    ],
)
def test_a_body_can_not_write_a_line_of_its_own(caplog: pytest.LogCaptureFixture, hostile: str) -> None:
    came = arriving(HOST, b"x").with_tree({"id": hostile})
    read_component("Step", {"log": {"text": "{{ body.id }}", "fields": {"id": "{{ body.id }}"}}})(came)  # type: ignore[operator]
    ((record),) = caplog.records
    line = JsonLines().format(record)
    assert line.isprintable()
    assert json.loads(line)["text"] == hostile.replace("\ud800", "?")
    assert json.loads(line)["fields"] == {"id": hostile.replace("\ud800", "?")}


def test_a_long_text_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    run({"text": "{{ body.id }}", "fields": {"id": "{{ body.id }}"}}, json.dumps({"id": "x" * 100_000}).encode())
    assert logged(caplog)["text"] == logged(caplog)["fields"]["id"] == "x" * (MOST_TEXT - 1) + "…"


def test_nothing_of_the_body_is_logged_that_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    run({"text": "seen", "fields": {"id": "{{ body.id }}"}})
    assert "4111" not in json.dumps(logged(caplog))


@pytest.mark.parametrize("level", [logging.DEBUG, logging.CRITICAL])
@pytest.mark.parametrize(
    ("value", "body", "code", "text"),
    [
        ("{{ body.gift }}", BODY, "refused", "body.gift: 'gift' is not there; body has id"),
        (
            {"text": "a", "fields": {"gift": "{{ body.gift }}"}},
            BODY,
            "refused",
            "log.fields.gift: body.gift: 'gift' is not there",
        ),
        ("{{ body.note }}", BODY, "refused", "body.note: it is null where text is expected"),
        ("{{ body.id }}", b"{", "malformed", "json: "),
        ({"text": "a", "fields": {"id": "{{ body.id }}"}}, b"{", "malformed", "json: "),
    ],
)
def test_what_can_not_be_filled_refuses_the_message_whatever_is_logged(
    caplog: pytest.LogCaptureFixture, level: int, value: Any, body: bytes, code: str, text: str
) -> None:
    caplog.set_level(level, "gateway")
    with pytest.raises(MessageError) as refused:
        run(value, body)
    assert refused.value.code == code
    assert str(refused.value).startswith(text)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("value", "place", "text"),
    [
        ("{{ body. }}", ("log",), "expected name or number"),
        ({"text": "{{ body. }}"}, ("log", "text"), "expected name or number"),
        ({"text": "a", "level": "error"}, ("log", "level"), "Input should be 'info', 'warning' or 'debug'"),
        ({"text": "a", "fields": {"id": "{{ body. }}"}}, ("log", "fields", "id"), "expected name or number"),
        ({"text": "a", "fields": {str(n): n for n in range(51)}}, ("log", "fields"), "at most 50 items"),
        ({"text": "a", "lvl": "info"}, ("log", "lvl"), 'unknown key "lvl"; did you mean level?'),
        ({"level": "info"}, ("log", "text"), "Field required"),
        (["a"], ("log",), "expected text, a number, true, false or null, got a list"),
        (None, ("log",), "expected the settings of log as key: value, such as log: {text: …}, got nothing"),
    ],
)
def test_a_mistake_is_told_at_its_place(value: Any, place: tuple[str, ...], text: str) -> None:
    with pytest.raises(ValidationError) as refused:
        read_component("Step", {"log": value})
    ((error),) = refused.value.errors()
    assert error["loc"] == place
    assert text in error["msg"]


def test_a_bare_log_says_what_is_missing() -> None:
    with pytest.raises(ValidationError) as refused:
        read_component("Step", "log")
    ((error),) = refused.value.errors()
    assert (error["loc"], error["type"]) == (("log", "text"), "missing")
