from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cloudevents import STRUCTURED, from_http, from_json, is_event, sender_id, to_http_headers, to_json
from gateway.errors import MessageError
from gateway.formats import formats_with
from gateway.limits import Limits
from gateway.message import Formats, Message, new_id

# The events of section 3.2 of the JSON format, and 3.1.4 of the HTTP binding, of CloudEvents 1.0.2. The binary one
# shows no real base64 there.
COMMON = {
    "specversion": "1.0",
    "type": "com.example.someevent",
    "source": "/mycontext",
    "time": "2018-04-05T17:31:00Z",
    "comexampleextension1": "value",
    "comexampleothervalue": 5,
}
BINARY = {
    **COMMON,
    "id": "A234-1234-1234",
    "datacontenttype": "application/vnd.apache.thrift.binary",
    "data_base64": base64.b64encode(b"\x80\x01\x00\x00").decode(),
}
XML = {
    **COMMON,
    "id": "B234-1234-1234",
    "unsetextension": None,
    "datacontenttype": "application/xml",
    "data": '<much wow="xml"/>',
}
OBJECT = {
    **COMMON,
    "subject": None,
    "id": "C234-1234-1234",
    "datacontenttype": "application/json",
    "data": {"appinfoA": "abc", "appinfoB": 123, "appinfoC": True},
}
STRING = {**COMMON, "subject": None, "id": "D234-1234-1234", "data": "I'm just a string"}
CE_HEADERS = {
    "ce-specversion": "1.0",
    "ce-type": "com.example.someevent",
    "ce-source": "/mycontext",
    "ce-time": "2018-04-05T17:31:00Z",
    "ce-comexampleextension1": "value",
    "ce-comexampleothervalue": "5",
}
EXAMPLES = [
    pytest.param(BINARY, b"\x80\x01\x00\x00", "application/vnd.apache.thrift.binary", id="binary"),
    pytest.param(XML, b'<much wow="xml"/>', "application/xml", id="xml"),
    pytest.param(OBJECT, b'{"appinfoA": "abc", "appinfoB": 123, "appinfoC": true}', "application/json", id="object"),
    pytest.param(STRING, b'"I\'m just a string"', "application/json", id="string"),
]


def event(**changes: Any) -> bytes:
    whole = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", **changes}
    return json.dumps({name: value for name, value in whole.items() if value is not ...}).encode()


def formats() -> Formats:
    return formats_with(Limits())


@pytest.mark.parametrize(("example", "body", "content_type"), EXAMPLES)
def test_the_examples_of_the_json_format_are_read(example: dict[str, Any], body: bytes, content_type: str) -> None:
    message = from_json(json.dumps(example).encode(), formats=formats())
    assert (message.body, message.content_type) == (body, content_type)
    assert (message.type, message.subject, message.source) == ("com.example.someevent", None, "")
    assert message.sender_id == f"/mycontext#{example['id']}"
    assert message.id != example["id"]
    assert message.headers == {
        "ce-id": example["id"],
        "ce-source": "/mycontext",
        "ce-time": "2018-04-05T17:31:00Z",
        "ce-comexampleextension1": "value",
        "ce-comexampleothervalue": "5",
    }


@pytest.mark.parametrize(("example", "body", "content_type"), EXAMPLES)
def test_the_same_examples_in_binary_mode_are_the_same_messages(
    example: dict[str, Any], body: bytes, content_type: str
) -> None:
    structured = from_json(json.dumps(example).encode())
    binary = from_http({**CE_HEADERS, "ce-id": example["id"], "content-type": content_type}, body)
    for name in ("body", "content_type", "type", "subject", "schema", "sender_id", "key", "expires_at_s"):
        assert getattr(structured, name) == getattr(binary, name), name
    assert {**structured.headers, "content-type": content_type} == binary.headers


@pytest.mark.parametrize(("example", "body", "content_type"), EXAMPLES)
def test_the_examples_are_written_with_the_same_data(example: dict[str, Any], body: bytes, content_type: str) -> None:
    written = json.loads(to_json(from_json(json.dumps(example).encode())))
    assert written.get("data", ...) == example.get("data", ...)
    assert written.get("data_base64") == example.get("data_base64")
    assert written["datacontenttype"] == content_type


def test_the_example_of_the_http_binding_is_read() -> None:
    message = from_http(
        {
            "host": "webhook.example.com",
            "ce-specversion": "1.0",
            "ce-type": "com.example.someevent",
            "ce-time": "2018-04-05T03:56:24Z",
            "ce-id": "1234-1234-1234",
            "ce-source": "/mycontext/subcontext",
            "content-type": "application/json; charset=utf-8",
        },
        b'{"a": 1}',
        formats=formats(),
    )
    assert message.sender_id == "/mycontext/subcontext#1234-1234-1234"
    assert message.content_type == "application/json; charset=utf-8"
    assert message.tree == {"a": 1}
    assert message.headers["host"] == "webhook.example.com"
    assert message.headers["ce-time"] == "2018-04-05T03:56:24Z"


def test_structured_mode_over_http_is_told_by_the_content_type() -> None:
    headers = {"content-type": "application/cloudevents+json; charset=UTF-8", "ce-id": "not this one", "x-y": "z"}
    message = from_http(headers, event(data=[1], datacontenttype="application/json"))
    assert (message.sender_id, message.body) == ("/s#1", b"[1]")
    assert message.headers["x-y"] == "z"
    assert message.headers["ce-id"] == "1"


def test_the_example_of_percent_encoding_is_written_and_read() -> None:
    message = Message(type="t", source="/s", subject="Euro € 😀", raw=b"1")
    headers = to_http_headers(message)
    assert headers["ce-subject"] == "Euro%20%E2%82%AC%20%F0%9F%98%80"
    assert from_http(headers, b"1").subject == "Euro € 😀"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("plain", "plain"),
        ("%61%62", "ab"),
        ("%e2%82%ac", "€"),
        ("100%", "100%"),
        ("%2541", "%41"),
        ('"quoted text"', "quoted text"),
        (r'"with \"quotes\" and \\"', 'with "quotes" and \\'),
        ('a "b c" d', "a b c d"),
        ('"%22"', '"'),
    ],
)
def test_header_values_are_unquoted_and_then_decoded_once(written: str, read: str) -> None:
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t", "ce-subject": written}
    assert from_http(headers, b"").subject == read


@pytest.mark.parametrize("written", ["%C0%A0", "%ff", "%ED%A0%80", "%E2%82x"])
def test_header_values_that_are_not_encoded_from_utf8_are_refused(written: str) -> None:
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t", "ce-subject": written}
    with pytest.raises(MessageError, match="'ce-subject' is percent-encoded, but not from UTF-8") as raised:
        from_http(headers, b"")
    assert raised.value.code == "malformed"


def test_fields_of_a_message_are_attributes_and_come_back() -> None:
    message = Message(
        source="/plant-7/orders",
        type="order.placed",
        subject="A1",
        time_s=1_732_156_481.5,
        schema="https://example.com/order.json",
        raw=b'{"total": 1.10}',
        key="C9",
        expires_at_s=1_732_160_081.25,
        correlation_id="conversation",
        causation_id=new_id(),
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        headers={"authorization": "never sent"},
    )
    written = to_json(message)
    assert json.loads(written) == {
        "specversion": "1.0",
        "id": message.id,
        "source": "/plant-7/orders",
        "time": "2024-11-21T02:34:41.500Z",
        "type": "order.placed",
        "subject": "A1",
        "dataschema": "https://example.com/order.json",
        "partitionkey": "C9",
        "expirytime": "2024-11-21T03:34:41.250Z",
        "correlationid": "conversation",
        "causationid": message.causation_id,
        "traceparent": message.traceparent,
        "datacontenttype": "application/json",
        "data": {"total": 1.1},
    }
    assert b'"data":{"total": 1.10}' in written
    headers = to_http_headers(message)
    assert headers["ce-partitionkey"] == "C9"
    assert "authorization" not in headers
    for again in (from_json(written), from_http(headers, message.body)):
        for name in ("type", "subject", "schema", "key", "expires_at_s", "correlation_id", "causation_id"):
            assert getattr(again, name) == getattr(message, name), name
        assert again.traceparent == message.traceparent
        assert again.body == message.body
        assert again.sender_id == f"/plant-7/orders#{message.id}"


def test_a_message_without_source_and_type_is_an_event_all_the_same() -> None:
    assert from_json(to_json(Message(raw=b""))).sender_id
    assert "data" not in json.loads(to_json(Message(raw=b"")))


def test_a_tree_is_written_in_its_content_type() -> None:
    message = Message(parsed={"a": None}, formats=formats())
    assert json.loads(to_json(message))["data"] == {"a": None}


def test_no_data_is_not_null_data() -> None:
    assert from_json(event()).body == b""
    assert from_json(event(data=None)).body == b"null"
    assert json.loads(to_json(from_json(event(data=None))))["data"] is None


@pytest.mark.parametrize(
    ("content_type", "body", "member", "value"),
    [
        ("application/json", b' {"a": 1} ', "data", {"a": 1}),
        ("application/vnd.x+json; v=1", b"1e999", "data", float("inf")),
        ("application/json", b"{broken", "data_base64", "e2Jyb2tlbg=="),
        ("application/json", b'"\xff"', "data_base64", "Iv8i"),
        ("text/plain", "é".encode(), "data", "é"),
        ("text/plain; charset=iso-8859-1", b"\xe9", "data", "é"),
        ('text/csv; charset="utf-8"', b"a,b", "data", "a,b"),
        ("text/plain", b"\xe9", "data_base64", "6Q=="),
        ("text/plain; charset=nonsense", b"a", "data_base64", "YQ=="),
        ("text/plain; charset=base64", b"YQ==", "data_base64", "WVE9PQ=="),
        ("image/svg+xml", b"<svg/>", "data", "<svg/>"),
        ("x-application/hl7-v2+er7", b"MSH|^~\\&\rPID", "data", "MSH|^~\\&\rPID"),
        ("application/octet-stream", b"text", "data_base64", "dGV4dA=="),
    ],
)
def test_data_is_a_value_a_string_or_base64_by_its_type(
    content_type: str, body: bytes, member: str, value: object
) -> None:
    written = to_json(Message(raw=body, content_type=content_type))
    whole = json.loads(written)
    assert whole.get(member) == value
    assert ("data" in whole) != ("data_base64" in whole)
    assert from_json(written).body == body.strip()


def test_json_data_is_utf8_whatever_the_sender_had() -> None:
    message = from_json(event(data={"a": "é"}, datacontenttype='application/json; charset="utf-16"; v=1'))
    assert message.content_type == "application/json; v=1"
    assert json.loads(message.body) == {"a": "é"}


def test_text_data_is_written_in_its_charset() -> None:
    assert from_json(event(data="é", datacontenttype="text/plain; charset=iso-8859-1")).body == b"\xe9"


def test_numbers_of_data_stay_as_they_are_written() -> None:
    message = from_json(b'{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"n": 1.10, "m": 1e400}}')
    assert message.body == b'{"n": 1.10, "m": 1e400}'


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"specversion": ...}, 'expected specversion "1.0", got none'),
        ({"specversion": "0.3"}, "expected specversion \"1.0\", got '0.3'"),
        ({"specversion": 1.0}, "expected the attribute 'specversion' to be text"),
        ({"id": ...}, "the required attribute id is missing"),
        ({"source": None}, "the required attribute source is missing"),
        ({"type": ""}, "expected type to be text that is not empty, got ''"),
        ({"id": 5}, "expected id to be text that is not empty, got 5"),
        ({"subject": ""}, "expected subject to be text that is not empty"),
        ({"time": "yesterday"}, "expected time such as 2026-11-21T02:34:41Z, got 'yesterday'"),
        ({"time": "2026-02-30T00:00:00Z"}, "expected time such as"),
        ({"time": "2026-11-21 02:34:41Z"}, "expected time such as"),
        ({"time": "2026-11-21T02:34:61Z"}, "expected time such as"),
        ({"time": "2026-11-21T02:34:41"}, "expected time such as"),
        ({"expirytime": "2026-11-21T02:34:41+24:00"}, "expected expirytime such as"),
        ({"comExample": "x"}, "the attribute name 'comExample' is not made of lower-case letters and digits"),
        ({"com_example": "x"}, "the attribute name 'com_example' is not made of"),
        ({"ext": {"a": 1}}, "expected the attribute 'ext' to be text, true, false or a whole number"),
        ({"ext": 1.5}, "expected the attribute 'ext' to be text, true, false or a whole number"),
        ({"ext": 2**31}, "ext is a whole number of more than 32 bits; send it as text"),
        ({"ext": "a\nb"}, "ext holds a control character"),
        ({"ext": "\ufffe"}, "ext holds a control character, or what is no character"),
        ({"datacontenttype": "json"}, "expected datacontenttype such as application/json, got 'json'"),
        ({"datacontenttype": "a/b\n"}, "expected datacontenttype such as"),
        ({"datacontenttype": "text/plain", "data": {"a": 1}}, "expected data to be a string, as datacontenttype is"),
        ({"datacontenttype": "text/plain; charset=ascii", "data": "é"}, "data can't be written in the charset"),
        ({"datacontenttype": "text/plain; charset=rot13", "data": "a"}, "data can't be written in the charset"),
        ({"data": 1, "data_base64": "YQ=="}, "data and data_base64 are both there"),
        ({"data_base64": "a b"}, "expected data_base64 to be a string in base64"),
        ({"data_base64": "é"}, "expected data_base64 to be a string in base64"),
        ({"data_base64": 5}, "expected data_base64 to be a string in base64"),
        ({"partitionkey": ""}, "expected partitionkey to be text that is not empty"),
    ],
)
def test_what_is_no_event_is_malformed(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(MessageError) as raised:
        from_json(event(**changes))
    assert text in str(raised.value)
    assert raised.value.code == "malformed"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"5", b'"x"', b"\xff", b"[" * 1_000_000, b'{"a":' * 100_000, b'{"a": "\xff"}']
)
def test_what_is_no_json_object_is_malformed(body: bytes) -> None:
    with pytest.raises(MessageError) as raised:
        from_json(body)
    assert raised.value.code == "malformed"


def test_a_batch_is_refused_with_a_sentence() -> None:
    with pytest.raises(MessageError, match="a batch is not taken: send one event at a time"):
        from_json(b"[" + event() + b"]")
    with pytest.raises(MessageError, match="a batch is not taken; send one event at a time") as raised:
        from_http({"content-type": "application/cloudevents-batch+json"}, b"[]")
    assert raised.value.code == "unsupported"


def test_other_event_formats_and_charsets_are_refused_by_name() -> None:
    with pytest.raises(
        MessageError, match=r"'application/cloudevents\+avro' is not taken; send application/cloud"
    ) as raised:
        from_http({"content-type": "application/cloudevents+avro"}, b"")
    assert raised.value.code == "unsupported"
    with pytest.raises(MessageError, match="expected JSON in UTF-8, got 'utf-16'"):
        from_http({"content-type": f"{STRUCTURED}; charset=utf-16"}, event())


def test_the_content_type_is_said_in_one_place_only() -> None:
    with pytest.raises(MessageError, match="expected content-type alone to say it"):
        from_http({"ce-datacontenttype": "text/plain"}, b"")


def test_limits_hold_for_the_whole_event() -> None:
    deep = b'{"specversion":"1.0","id":"1","source":"/s","type":"t","data":' + b"[" * 100 + b"]" * 100 + b"}"
    assert from_json(deep).body.startswith(b"[[")
    with pytest.raises(MessageError) as raised:
        from_json(deep, formats=formats())
    assert raised.value.code in ("malformed", "too_large")


def test_a_name_that_comes_twice_is_refused_where_the_route_checks_it() -> None:
    twice = event()[:-1] + b', "id": "2"}'
    with pytest.raises(MessageError):
        from_json(twice, formats=formats())


def test_a_trace_that_can_not_be_read_is_as_if_it_were_not_there() -> None:
    assert from_json(event(traceparent="nonsense")).traceparent is None
    assert from_json(event(traceparent="00-" + "0" * 32 + "-00f067aa0ba902b7-01")).traceparent is None


def test_the_trace_of_this_hop_goes_before_that_of_where_the_event_began() -> None:
    # the example of the distributed tracing extension
    headers = {
        "ce-id": "1",
        "ce-specversion": "1.0",
        "ce-type": "example",
        "ce-source": "http://localhost",
        "ce-traceparent": "00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    }
    assert from_http(headers, b"").traceparent == headers["traceparent"]
    del headers["traceparent"]
    assert from_http(headers, b"").traceparent == headers["ce-traceparent"]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("1970-01-01t00:00:01.5z", 1.5),
        ("1970-01-01T01:00:00+01:00", 0.0),
        ("1970-01-01T00:00:00.1234567899Z", 0.123456),
        ("1972-06-30T23:59:60Z", 78_796_800.0),
        ("0001-01-01T00:00:00+14:00", -62_135_647_200.0),
    ],
)
def test_times_are_read_as_rfc_3339_writes_them(written: str, seconds: float) -> None:
    assert from_json(event(expirytime=written)).expires_at_s == seconds


def test_different_senders_have_different_sender_ids() -> None:
    pairs = [("a#b", "c"), ("a", "b#c"), ("a%23b", "c"), ("a%", "23b#c")]
    assert len({sender_id(*pair) for pair in pairs}) == len(pairs)
    assert sender_id("/mycontext", "A#1") == "/mycontext#A#1"


def test_an_event_is_told_by_its_headers() -> None:
    assert is_event({"ce-specversion": "1.0"})
    assert is_event({"content-type": "Application/CloudEvents+json"})
    assert not is_event({"content-type": "application/json"})


def test_a_text_that_no_utf8_can_carry_is_refused_when_written() -> None:
    message = Message(subject="\ud800", raw=b"1")
    for write in (to_json, to_http_headers):
        with pytest.raises(MessageError, match="half of a surrogate pair"):
            write(message)


_WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cn", "Cs"]), min_size=1, max_size=12)
_MOMENTS = st.integers(-2_000_000_000, 4_000_000_000)
_MESSAGES = st.builds(
    Message,
    source=_WORDS,
    type=_WORDS,
    subject=st.none() | _WORDS,
    schema=st.none() | _WORDS,
    key=st.none() | _WORDS,
    correlation_id=st.none() | _WORDS,
    causation_id=st.none() | _WORDS,
    time_s=_MOMENTS,
    expires_at_s=st.none() | _MOMENTS,
    content_type=st.sampled_from(
        ["application/json", "text/plain", "text/plain; charset=utf-16", "application/octet-stream", "a/b+xml"]
    ),
    raw=st.binary(max_size=20) | st.text(max_size=10).map(str.encode) | st.sampled_from([b"null", b"[1.0]", b'"x"']),
)


@given(message=_MESSAGES)
def test_every_message_comes_back_from_both_modes(message: Message) -> None:
    headers = to_http_headers(message)
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    for again in (from_json(to_json(message)), from_http(headers, message.body)):
        for name in ("type", "subject", "schema", "key", "correlation_id", "causation_id", "expires_at_s"):
            assert getattr(again, name) == getattr(message, name), name
        assert (again.body, again.content_type) == (message.body, message.content_type)
        assert again.sender_id == sender_id(message.source, message.id)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
_NAMES = st.sampled_from(["id", "source", "type", "specversion", "time", "data", "data_base64", "datacontenttype"])


@given(changes=st.dictionaries(_NAMES | st.text(max_size=4), _VALUES, max_size=4), junk=st.binary(max_size=3))
def test_anything_is_a_message_or_refused(changes: dict[str, Any], junk: bytes) -> None:
    for body in (event(**changes), event(**changes)[:-1] + junk, junk):
        try:
            assert from_json(body).sender_id
        except MessageError as error:
            code = error.code
            assert code == "malformed"


@given(headers=st.dictionaries(st.text(max_size=6).map(lambda name: f"ce-{name}"), st.text(max_size=8), max_size=4))
def test_any_headers_are_a_message_or_refused(headers: dict[str, str]) -> None:
    required = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t"}
    try:
        assert from_http({**required, **headers}, b"x").body == b"x"
    except MessageError as error:
        assert error.code == "malformed"  # noqa: PT017 - either way is right
