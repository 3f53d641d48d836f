from __future__ import annotations

import codecs
from typing import Any

import pytest
from pydantic import ValidationError

from gateway import Limits, MessageError
from transforms.text import Format

LIMITS = Limits()


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        ("é".encode(), "text/plain", "é"),
        (codecs.BOM_UTF8 + "é".encode(), "text/plain", "é"),
        (b"\xe9", "text/plain; charset=ISO-8859-1", "é"),
        ("é".encode("utf-16"), 'text/plain; format=flowed; charset="utf-16"', "é"),
        (b"", "text/plain", ""),
    ],
)
def test_text_is_read_in_the_charset_that_it_says(body: bytes, content_type: str, text: str) -> None:
    assert Format().parse(body, content_type, LIMITS) == text


def test_the_setting_says_the_charset_where_the_sender_does_not() -> None:
    latin = Format(charset="latin-1")
    assert latin.parse(b"\xe9", "text/plain", LIMITS) == "é"
    assert latin.parse("é".encode(), "text/plain; charset=utf-8", LIMITS) == "é"
    assert latin.format("é") == b"\xe9"


@pytest.mark.parametrize(
    ("body", "content_type", "code", "text"),
    [
        (
            b"ab\xff",
            "text/plain",
            "malformed",
            "text: byte 0xff at offset 2 is not utf-8; is the charset of the content type right?",
        ),
        (b"a", "text/plain; charset=klingon", "unsupported", "body: charset 'klingon' is not known; UTF-8 always is"),
        (b"YQ==", "text/plain; charset=base64", "unsupported", "body: charset 'base64' is not known; UTF-8 always is"),
    ],
)
def test_bytes_that_are_not_text_are_refused(body: bytes, content_type: str, code: str, text: str) -> None:
    with pytest.raises(MessageError) as refused:
        Format().parse(body, content_type, LIMITS)
    assert (refused.value.code, str(refused.value)) == (code, text)


@pytest.mark.parametrize(("tree", "body"), [("a", b"a"), (None, b""), (True, b"true"), (1.5, b"1.5"), (7, b"7")])
def test_a_single_value_is_written_as_text(tree: Any, body: bytes) -> None:
    assert Format().format(tree) == body


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({}, "text: the tree is a mapping, expected one text; make it one with template:"),
        ([], "text: the tree is a list, expected one text; make it one with template:"),
        ("a€", "text: iso8859-1 has no character U+20AC (at offset 1); use utf-8"),
    ],
    ids=["mapping", "list", "character"],
)
def test_what_is_no_text_is_refused(tree: Any, text: str) -> None:
    with pytest.raises(MessageError) as refused:
        Format(charset="latin-1").format(tree)
    assert str(refused.value) == text


def test_an_unknown_charset_is_refused_at_load() -> None:
    with pytest.raises(ValidationError, match='no charset is called "klingon"'):
        Format(charset="klingon")
