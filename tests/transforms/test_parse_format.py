from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gateway import Limits, Message, MessageError
from gateway.registry import read_component
from gateway.testing import FakeHost, arriving

HOST = FakeHost()


def step(value: Any) -> Any:
    return read_component("Step", value)


def through(value: Any, raw: bytes, content_type: str = "application/json", host: FakeHost = HOST) -> Message:
    message = step(value)(arriving(host, raw, content_type=content_type))
    assert isinstance(message, Message)
    return message


def test_parse_reads_the_body_whatever_its_type_and_keeps_its_bytes() -> None:
    message = through({"parse": "xml"}, b"<a> <b>1</b></a>", "application/octet-stream")
    assert message.tree == {"a": {"b": "1"}}
    assert (message.body, message.content_type) == (b"<a> <b>1</b></a>", "application/xml")


@pytest.mark.parametrize(
    ("given", "after"),
    [
        ("text/xml", "text/xml"),
        ("Text/XML; charset=latin-1", "Text/XML; charset=latin-1"),
        ("text/plain; charset=latin-1", "application/xml; charset=latin-1"),
    ],
)
def test_parse_keeps_what_the_content_type_says_of_the_bytes(given: str, after: str) -> None:
    message = through({"parse": "xml"}, b"<a>\xe9</a>" if "latin" in given else b"<a>e</a>", given)
    assert message.content_type == after


def test_parse_takes_settings() -> None:
    message = through({"parse": {"csv": {"delimiter": ";"}}}, b"a;b\n1;2\n", "text/plain")
    assert message.tree == [{"a": "1", "b": "2"}]


def test_parse_keeps_to_the_limits_of_the_route() -> None:
    host = FakeHost(limits=Limits(json_depth=2))
    through({"parse": "json"}, b"[[1]]", host=host)
    with pytest.raises(MessageError, match="nested more than 2 deep"):
        through({"parse": "json"}, b"[[[1]]]", host=host)


def test_parse_reads_a_tree_that_was_never_bytes() -> None:
    message = step({"parse": "text"})(Message(parsed={"a": 1}, formats=HOST.formats))
    assert message.tree == '{"a":1}'


def test_format_writes_the_tree_and_says_so() -> None:
    message = through({"format": {"xml": {"root": "Order"}}}, b'{"id":"A1","total":12.10}')
    assert message.body == b'<?xml version="1.0" encoding="UTF-8"?><Order><id>A1</id><total>12.10</total></Order>'
    assert message.content_type == "application/xml"
    assert message.tree == {"Order": {"id": "A1", "total": "12.10"}}


def test_format_says_the_charset_where_the_bytes_do_not() -> None:
    message = through({"format": {"text": {"charset": "latin-1"}}}, '"é"'.encode())
    assert (message.body, message.content_type) == (b"\xe9", "text/plain; charset=iso8859-1")
    assert message.tree == "é"


@pytest.mark.parametrize("word", ["json", "msgpack", "form", "xml"])
def test_what_is_written_can_be_read_by_its_content_type(word: str) -> None:
    message = through({"format": word}, b'{"a":{"b":"1"}}' if word != "form" else b'{"a":"1"}')
    assert message.tree == ({"a": {"b": "1"}} if word != "form" else {"a": "1"})


def complaints(value: Any) -> list[tuple[tuple[int | str, ...], str]]:
    with pytest.raises(ValidationError) as refused:
        step(value)
    return [(error["loc"], error["msg"]) for error in refused.value.errors()]


class TestPlacesOfComplaints:
    """A place is where the file has it: the setting that has no name is not in it."""

    def test_a_wrong_setting_of_the_format(self) -> None:
        ((place, _),) = complaints({"parse": {"csv": {"delimter": ";"}}})
        assert place == ("parse", "csv", "delimter")

    def test_a_wrong_value_of_the_format(self) -> None:
        assert complaints({"format": {"xml": {"root": "a b"}}}) == [
            (("format", "xml", "root"), 'Value error, expected the name of an XML element, got "a b"')
        ]

    def test_several_at_once(self) -> None:
        found = complaints({"format": {"json": {"indent": 9, "duplicates": "first"}}})
        assert [place for place, _ in found] == [("format", "json", "indent"), ("format", "json", "duplicates")]

    def test_an_unknown_format(self) -> None:
        ((place, text),) = complaints({"parse": "xlm"})
        assert place == ("parse",)
        assert text == 'Value error, no format is called "xlm"; did you mean xml?'

    def test_two_formats(self) -> None:
        assert complaints({"parse": {"xml": {}, "json": {}}}) == [
            (("parse",), "Value error, expected one format, got 2 keys: xml, json; write each after a dash")
        ]

    @pytest.mark.parametrize("value", [None, 7, []])
    def test_no_format(self, value: Any) -> None:
        ((place, text),) = complaints({"parse": value})
        assert (place, text.split(",")[1]) == (("parse",), " expected the name of a format")

    @pytest.mark.parametrize(("value", "shown"), [(None, "nothing; write xml: {} for none"), (7, "7")])
    def test_settings_that_are_none(self, value: Any, shown: str) -> None:
        assert complaints({"parse": {"xml": value}}) == [
            (("parse", "xml"), f"expected the settings of xml as key: value, got {shown}")
        ]

    def test_a_word_that_needs_a_value(self) -> None:
        ((place, text),) = complaints("filter")
        assert (place, text) == ((), "filter needs a value: write filter: …; gateway doc filter shows which")


def test_a_component_is_written_back_as_it_was_read() -> None:
    value = {"format": {"xml": {"root": "Order"}}}
    assert step(value).model_dump(mode="json") == {"format": {"xml": {"root": "Order"}}}
    assert step({"parse": "json"}).model_dump(mode="json") == {"format": "json"}
