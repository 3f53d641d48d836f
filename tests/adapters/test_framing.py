"""The `framing:` setting: one spelling, complaints at their place, and a schema that says the same."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from pydantic import Field, ValidationError

from adapters._framing import Framing, LineFraming
from gateway import Settings


class Component(Settings):
    framing: Framing = Field(LineFraming(), description="the field under test")


def schema() -> dict[str, Any]:
    return Component.model_json_schema()


@pytest.mark.parametrize(
    ("written", "framed"),
    [
        ("line", b"a\n"),
        ({"line": {"ending": "crlf"}}, b"a\r\n"),
        ({"delimiter": {"end": "\\r"}}, b"a\r"),
        ({"delimiter": {"end": "\r"}}, b"a\r"),
        ({"delimiter": {"end": "|\\x03\\0\\n\\t\\\\"}}, b"a|\x03\0\n\t\\"),
        ("length", b"\0\0\0\x01a"),
        ({"length": {"bytes": 2}}, b"\0\x01a"),
        ({"length": {"bytes": 2, "order": "little"}}, b"\x01\0a"),
        ({"length": {"bytes": 1, "includes_itself": True}}, b"\x02a"),
        ({"length": {"digits": 4}}, b"0001a"),
        ("stx_etx", b"\x02a\x03"),
        ({"stx_etx": {"start": "<", "end": ">"}}, b"<a>"),
        ({"fixed": {"bytes": 1}}, b"a"),
        ("raw", b"a"),
        ({"raw": {"until": "close"}}, b"a"),
        ("mllp", b"\x0ba\x1c\r"),
    ],
    ids=str,
)
def test_a_framing_is_a_name_or_a_name_with_settings(written: Any, framed: bytes) -> None:
    component = Component(framing=written)
    assert component.framing.framer(100).frame(b"a") == framed
    again = component.model_dump(mode="json")
    assert Component(**again) == component
    assert hash(Component(**again)) == hash(component)
    jsonschema.validate({"framing": written}, schema())
    jsonschema.validate(again, schema())


@pytest.mark.parametrize(
    ("written", "place", "text"),
    [
        ("lines", (), 'did you mean "line"?'),
        ("morse", (), "there are: line, delimiter, length"),
        (7, (), "expected a framing such as line or {length: {bytes: 2}}, got 7"),
        ({"line": {}, "raw": {}}, (), "expected a framing"),
        ({"length": {"bytes": 3}}, ("length", "bytes"), "1, 2 or 4"),
        ({"length": {"byte": 2}}, ("length", "byte"), "not permitted"),
        ({"length": {"bytes": 2, "digits": 4}}, ("length",), "got both; remove one"),
        ("delimiter", ("delimiter", "end"), "required"),
        ({"delimiter": {"end": ""}}, ("delimiter", "end"), "one or more bytes"),
        ({"delimiter": {"end": "\\q"}}, ("delimiter", "end"), "no such escape"),
        ({"delimiter": {"end": "é"}}, ("delimiter", "end"), "single quotes"),
        ({"stx_etx": {"start": "<", "end": "<"}}, ("stx_etx",), "differ"),
        ({"fixed": {"bytes": 0}}, ("fixed", "bytes"), "greater than or equal to 1"),
        ({"line": {"ending": "cr"}}, ("line", "ending"), "'lf' or 'crlf'"),
    ],
    ids=str,
)
def test_a_wrong_framing_is_said_at_its_place(written: Any, place: tuple[str, ...], text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Component(framing=written)
    (complaint,) = caught.value.errors()
    assert complaint["loc"] == ("framing", *place)
    assert text in complaint["msg"]


@pytest.mark.parametrize("written", ["lines", "delimiter", {"length": {"bytes": 3}}, {"line": {}, "raw": {}}], ids=str)
def test_the_schema_refuses_what_the_class_refuses(written: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"framing": written}, schema())
