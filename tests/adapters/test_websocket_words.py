"""What the two sides of a confirmed WebSocket say, without I/O."""

from __future__ import annotations

import json

import pytest

from adapters import _websocket_words as words
from gateway import Message, MessageError


@pytest.mark.parametrize(
    ("text", "content_type", "body", "found_type"),
    [
        pytest.param(
            b'{"id": "1", "data": {"a": [1, 2.50]}}', None, b'{"a": [1, 2.50]}', "application/json", id="json"
        ),
        pytest.param(b'{"data": null, "id": 7}', None, b"null", "application/json", id="null"),
        pytest.param(b'{"id": "1", "data": "<a/>"}', "application/xml", b"<a/>", "application/xml", id="text"),
        pytest.param(b'{"id": "1", "data": "a"}', "application/x+json", b'"a"', "application/x+json", id="a json text"),
        pytest.param(b'{"id":"1","data_base64":"AP8="}', None, b"\x00\xff", "application/octet-stream", id="binary"),
        pytest.param(b'{"id":"1","data_base64":"PGEvPg=="}', "text/xml", b"<a/>", "text/xml", id="binary of a type"),
    ],
)
def test_the_body_of_an_envelope_is_as_it_was_sent(
    text: bytes, content_type: str | None, body: bytes, found_type: str
) -> None:
    envelope = words.opened(text)
    assert envelope is not None
    assert words.body_of(envelope, content_type) == (body, found_type)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"hello",
        b"[1]",
        b'{"id": "1"}',
        b'{"data": 1}',
        b'{"id": "1", "data": 1, "more": 2}',
        b'{"id": 1.5, "data": 1}',
        b'{"id": null, "data": 1}',
        b'{"id": "1", "data": 1} and more',
        b'{"id": "1", "data": [1,}',
        b'{"id": "1", "data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=range(11),
)
def test_what_is_no_envelope_is_the_message_itself(text: bytes) -> None:
    assert words.opened(text) is None


@pytest.mark.parametrize(
    ("text", "content_type", "said"),
    [
        (b'{"id": "1", "data": {"a": 1}}', "text/xml", "expected a text"),
        (b'{"id": "1", "data_base64": "%"}', None, "not base64"),
        (b'{"id": "1", "data_base64": "AA==", "data": 1}', None, "got both"),
        (b'{"id": "' + b"1" * 201 + b'", "data": 1}', None, "201 characters, at most 200"),
    ],
    ids=["no text", "no base64", "both", "a long id"],
)
def test_an_envelope_that_holds_nothing_usable_is_refused(text: bytes, content_type: str | None, said: str) -> None:
    envelope = words.opened(text)
    assert envelope is not None
    with pytest.raises(MessageError, match=said) as error:
        words.body_of(envelope, content_type)
    assert error.value.code == "malformed"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b' {"a": 1.50}\n', "application/json"),
        ("grün".encode(), "text/plain"),
        (b"\x00\xff", "application/octet-stream"),
        (b'MSH|^~\\&|"', "application/hl7-v2"),
        (b"", "text/plain"),
    ],
)
def test_what_is_enveloped_is_found_again(body: bytes, content_type: str) -> None:
    envelope = words.opened(words.enveloped("a.b", body, content_type))
    assert envelope is not None
    assert envelope.id == "a.b"
    assert words.body_of(envelope, content_type)[0].strip() == body.strip()


@pytest.mark.parametrize("body", [b'1,"id":"2"', b"{", b"", b'"\xff"', b"1}"], ids=repr)
def test_what_only_calls_itself_json_never_ends_its_envelope(body: bytes) -> None:
    with pytest.raises(MessageError, match="it is not JSON"):
        words.enveloped("1", body, "application/json")


def test_verdicts_are_json_that_the_other_side_reads() -> None:
    mark = words.mark_of('a"b')
    reply = Message(raw=b'{"x": 1}')
    for text, expected in (
        (words.ack(mark), {"ack": 'a"b'}),
        (words.ack(mark, reply), {"ack": 'a"b', "data": {"x": 1}}),
        (words.nack(mark, "no ☹\ud800", "refused"), {"nack": 'a"b', "reason": "no ☹?", "code": "refused"}),
        (words.retry(mark, 2.0), {"retry": 'a"b', "after_s": 2}),
        (words.retry(mark, 0.25), {"retry": 'a"b', "after_s": 0.25}),
    ):
        assert json.loads(text) == expected
        assert words.verdict(text) is not None
    assert json.loads(words.ack(words.mark_of("1", 7))) == {"ack": "1", "number": 7}
    assert json.loads(words.ack(words.mark_of(12))) == {"ack": 12}


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"hello": 1}', b'{"ack": []}', b'{"ack": null}', b"\xff"])
def test_what_is_no_verdict_is_none(text: bytes) -> None:
    assert words.verdict(text) is None


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        (b"{}", "application/json", True),
        (b"<a/>", "application/soap+xml; charset=utf-8", True),
        (b"a", "text/csv", True),
        ("ü".encode("latin-1"), "text/plain; charset=latin-1", False),
        (b"a", "application/octet-stream", False),
        (b"a", "application/msgpack", False),
    ],
)
def test_readable_types_in_utf_8_go_into_text_frames(body: bytes, content_type: str, text: bool) -> None:
    assert words.is_text(body, content_type) is text
