"""Messages as CloudEvents 1.0 and back: JSON (structured mode), and HTTP headers with a body (binary mode).

Out: `id`, `source` and `time` are the message's own. In: they are the sender's, and never become ours: `sender_id` is
made of its source and id (see `sender_id`), and all three are in the headers `ce-id`, `ce-source` and `ce-time`.
Attributes that no field of a message stands for are headers too, `ce-` before their name, in both modes.

| attribute | field |
|---|---|
| type, subject, dataschema, datacontenttype | type, subject, schema, content_type |
| partitionkey, expirytime | key, expires_at_s |
| correlationid, causationid, traceparent | correlation_id, causation_id, traceparent |

Source: CloudEvents 1.0.2, its JSON event format and HTTP protocol binding; documented extensions.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeAlias

import msgspec

from gateway.errors import MessageError
from gateway.message import JSON, Formats, Message, rfc3339

STRUCTURED = "application/cloudevents+json"
"""The content type of one event as JSON."""
_BATCH = "application/cloudevents-batch"
_EVENT = "application/cloudevents"

Attributes: TypeAlias = dict[str, str | int | bool]

_FIELDS = {
    "type": "type",
    "subject": "subject",
    "dataschema": "schema",
    "partitionkey": "key",
    "correlationid": "correlation_id",
    "causationid": "causation_id",
}
_NAME = re.compile(r"[a-z0-9]+")
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+*-]+/[\w!#$&^.+*-]+\s*(;.*)?", re.ASCII)
_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([^\s;\"]+)\"?", re.IGNORECASE)
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:)(\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
# CloudEvents 1.0.2, type system, String: no control characters, no surrogates, no noncharacters.
_REFUSED = re.compile(
    "[\0-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane * 0x10000 + last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)


def to_json(message: Message) -> bytes:
    """The message as one event in JSON, to be sent as `STRUCTURED`.

    The body is a JSON value if its type says JSON and it is; a string if its type is one of text and it can be read
    in its charset; else, and whenever it is not what its type says, base64. An empty body is left out.

    Raises:
        MessageError: the body's tree can't be written in its content type.
    Source: JSON event format, section 3.1.1.
    """
    event: dict[str, Any] = {**_attributes(message), "datacontenttype": message.content_type}
    body = message.body
    if body:
        member, value = _data(body, message.content_type)
        event[member] = value
    try:
        return msgspec.json.encode(event)
    except UnicodeEncodeError as error:
        raise MessageError(
            "cloudevents: an attribute holds half of a surrogate pair, which UTF-8 can't carry"
        ) from error


def from_json(body: bytes, *, formats: Formats | None = None) -> Message:
    """The message of one event in JSON. Its body is the event's data as JSON bytes as they came, text or bytes.

    formats: when given, the whole JSON is first held against its limits, and the message is lent it.

    Raises:
        MessageError: it is no JSON, or no event of CloudEvents 1.0 (code "malformed").
    """
    if formats is not None:
        formats.parse(body, JSON)
    try:
        body.decode()
        members = msgspec.json.decode(
            body.removeprefix(b"\xef\xbb\xbf"), type=dict[str, msgspec.Raw] | list[msgspec.Raw]
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(f"expected a JSON object, got something else: {error}") from error
    if isinstance(members, list):
        raise _malformed("expected one event, got a JSON array; a batch is not taken: send one event at a time")
    data, data_base64 = members.pop("data", None), members.pop("data_base64", None)
    attributes = {name: value for name, raw in members.items() if (value := _value(name, raw)) is not None}
    content_type = _text(attributes, "datacontenttype") or JSON
    attributes.pop("datacontenttype", None)
    if data_base64 is not None and bytes(data_base64) != b"null":
        if data is not None:
            raise _malformed("data and data_base64 are both there; expected one of them")
        raw = _from_base64(data_base64)
    else:
        raw, content_type = _from_data(data, content_type)
    message = _message(attributes, content_type, raw, {})
    return message if formats is None else message.replace(formats=formats)


def to_http_headers(message: Message) -> dict[str, str]:
    """The headers of the message as one event in binary mode: `content-type`, and `ce-` ones. The body goes as it is.

    Raises:
        MessageError: an attribute can't be written as UTF-8.
    """
    headers = {f"ce-{name}": _encoded(value) for name, value in _attributes(message).items()}
    headers["content-type"] = message.content_type
    return headers


def is_event(headers: Mapping[str, str]) -> bool:
    """Whether an HTTP message with these headers (names in lower case) says that it is an event, in any mode."""
    return "ce-specversion" in headers or headers.get("content-type", "").lower().startswith(_EVENT)


def from_http(headers: Mapping[str, str], body: bytes, *, formats: Formats | None = None) -> Message:
    """The message of an HTTP request or response that is an event, in binary or structured mode.

    headers: names in lower case. Those that are no attributes become headers of the message as they are.

    Raises:
        MessageError: it is no event of CloudEvents 1.0 (code "malformed"); a batch, or an event in another format than
            JSON (code "unsupported").
    Source: HTTP protocol binding, section 3.
    """
    others = {name: value for name, value in headers.items() if not name.startswith("ce-")}
    content_type = headers.get("content-type", JSON)
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type.startswith(_BATCH):
        raise MessageError("cloudevents: a batch is not taken; send one event at a time", code="unsupported")
    if media_type == STRUCTURED:
        charset = _CHARSET.search(content_type)
        if charset is not None and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
            raise MessageError(f"cloudevents: expected JSON in UTF-8, got {charset[1]!r}", code="unsupported")
        message = from_json(body, formats=formats)
        return message.replace(headers={**others, **message.headers})
    if media_type.startswith(_EVENT):
        raise MessageError(f"cloudevents: {media_type!r} is not taken; send {STRUCTURED}", code="unsupported")
    if "ce-datacontenttype" in headers:
        raise _malformed("the header ce-datacontenttype is there; expected content-type alone to say it")
    attributes: Attributes = {
        name[3:]: _decoded(name, value) for name, value in headers.items() if name.startswith("ce-")
    }
    message = _message(attributes, content_type, body, others)
    own = others.get("traceparent", "")
    if _TRACEPARENT.fullmatch(own):
        message = message.replace(traceparent=own)  # that of this hop; the attribute is of where the event began
    return message if formats is None else message.replace(formats=formats)


def sender_id(source: str, event_id: str) -> str:
    """What the sender called an event, as one text: its source, `#` and its id; `%` and `#` of the source escaped.

    Different pairs give different texts: the id is what follows the first `#`.
    """
    return f"{source.replace('%', '%25').replace('#', '%23')}#{event_id}"


def _malformed(text: str) -> MessageError:
    return MessageError(f"cloudevents: {text}", code="malformed")


def _attributes(message: Message) -> dict[str, str]:
    """All but datacontenttype. What an event must have and the message has not is `/` or `message`."""
    expires_at_s = message.expires_at_s
    found = {
        "specversion": "1.0",
        "id": message.id,
        "source": message.source or "/",
        "time": rfc3339(message.time_s),
        **{name: getattr(message, field) for name, field in _FIELDS.items()},
        "type": message.type or "message",
        "expirytime": None if expires_at_s is None else rfc3339(expires_at_s),
        "traceparent": message.traceparent,
    }
    return {name: value for name, value in found.items() if value}


def _message(attributes: Attributes, content_type: str, raw: bytes, headers: Mapping[str, str]) -> Message:
    """A message with these attributes; datacontenttype is not one of them."""
    _check(attributes, content_type)
    known: dict[str, Any] = {
        field: text for name, field in _FIELDS.items() if (text := _text(attributes, name)) is not None
    }
    expires_at = _text(attributes, "expirytime")
    traceparent = _text(attributes, "traceparent") or ""
    consumed = {"specversion", "expirytime", "traceparent", *_FIELDS}
    kept = {f"ce-{name}": _canonical(value) for name, value in attributes.items() if name not in consumed}
    return Message(
        raw=raw,
        content_type=content_type,
        headers={**headers, **kept},
        sender_id=sender_id(str(attributes["source"]), str(attributes["id"])),
        expires_at_s=None if expires_at is None else _seconds("expirytime", expires_at),
        # W3C trace context, section 3.2: one that can't be read is as if it were not there
        traceparent=traceparent if _TRACEPARENT.fullmatch(traceparent) else None,
        **known,
    )


def _check(attributes: Attributes, content_type: str) -> None:
    version = attributes.get("specversion")
    if version != "1.0":
        got = "none" if version is None else repr(version)
        raise _malformed(f'expected specversion "1.0", got {got}')
    for name, value in attributes.items():
        if not _NAME.fullmatch(name):
            raise _malformed(f"the attribute name {name!r:.60} is not made of lower-case letters and digits")
        if isinstance(value, str) and _REFUSED.search(value):
            raise _malformed(f"{name} holds a control character, or what is no character; leave it out")
        if isinstance(value, int) and not -(2**31) <= value < 2**31:
            raise _malformed(f"{name} is a whole number of more than 32 bits; send it as text")
    for name in ("id", "source", "type"):
        if _text(attributes, name) is None:
            raise _malformed(f"the required attribute {name} is missing")
    time = _text(attributes, "time")
    if time is not None:
        _seconds("time", time)
    if not _MEDIA_TYPE.fullmatch(content_type) or _REFUSED.search(content_type):
        raise _malformed(f"expected datacontenttype such as {JSON}, got {content_type!r:.80}")


def _text(attributes: Attributes, name: str) -> str | None:
    value = attributes.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise _malformed(f"expected {name} to be text that is not empty, got {value!r:.60}")
    return value


def _canonical(value: object) -> str:
    """Source: CloudEvents 1.0.2, type system: the canonical string of each type."""
    return value if isinstance(value, str) else str(value).lower()


def _seconds(name: str, text: str) -> float:
    """Seconds since 1970-01-01 UTC of a time as RFC 3339 writes it."""
    found = _TIME.fullmatch(text.upper())
    if found is not None:
        minute, second, fraction, zone = found.groups(default="")
        try:
            moment = datetime.fromisoformat(f"{minute}00{fraction[:7]}{zone}")
            if int(second) <= 60:  # 60: a leap second
                return moment.timestamp() + int(second)
        except ValueError:
            pass
    raise _malformed(f"expected {name} such as 2026-11-21T02:34:41Z, got {text!r:.60}")


def _value(name: str, raw: msgspec.Raw) -> str | int | bool | None:
    try:
        return msgspec.json.decode(raw, type=str | bool | int | None)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _malformed(f"expected the attribute {name!r:.60} to be text, true, false or a whole number") from error


def _is_json(content_type: str) -> bool:
    _, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return subtype == "json" or subtype.endswith("+json")


_TEXT_TYPES = ("application/xml", "application/x-www-form-urlencoded", "application/hl7-v2", "application/yaml")


def _is_text(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type.startswith("text/") or media_type.endswith(("+xml", "+er7")) or media_type in _TEXT_TYPES


def _charset(content_type: str) -> str:
    found = _CHARSET.search(content_type)
    return found[1] if found else "utf-8"


# floats stay text: whether one fits into 64 bits is no question of JSON
_JSON = msgspec.json.Decoder(float_hook=str)


def _data(body: bytes, content_type: str) -> tuple[str, Any]:
    """The member that carries a body, and its value."""
    if _is_json(content_type):
        try:
            _JSON.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # not what it says it is: that is for the receiver to see
        else:
            return "data", msgspec.Raw(body)
    elif _is_text(content_type):
        charset = _charset(content_type)
        try:
            text = body.decode(charset)
            if text.encode(charset) == body:
                return "data", text
        except (LookupError, ValueError):
            pass
    return "data_base64", base64.b64encode(body).decode()


def _from_data(data: msgspec.Raw | None, content_type: str) -> tuple[bytes, str]:
    """The body that a `data` member stands for, and its content type. Source: JSON event format, section 3.1.2."""
    if _is_json(content_type):
        # the value is UTF-8 here, whatever it was where it came from
        return bytes(data or b""), _CHARSET.sub("", content_type)
    if data is None:
        return b"", content_type
    try:
        return msgspec.json.decode(data, type=str).encode(_charset(content_type)), content_type
    except msgspec.MsgspecError as error:
        raise _malformed(f"expected data to be a string, as datacontenttype is {content_type!r:.80}") from error
    except (LookupError, ValueError) as error:
        raise _malformed(f"data can't be written in the charset of {content_type!r:.80}") from error


def _from_base64(data: msgspec.Raw) -> bytes:
    try:
        return base64.b64decode(msgspec.json.decode(data, type=str), validate=True)
    except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
        raise _malformed("expected data_base64 to be a string in base64") from error


_TO_ENCODE = re.compile(r"[^\x21\x23\x24\x26-\x7e]+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ENCODED = re.compile(r"(?:%[0-9A-Fa-f]{2})+")


def _encoded(text: str) -> str:
    """Source: HTTP protocol binding, section 3.1.3.2."""
    try:
        return _TO_ENCODE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), text)
    except UnicodeEncodeError as error:
        raise MessageError(
            "cloudevents: an attribute holds half of a surrogate pair, which UTF-8 can't carry"
        ) from error


def _decoded(name: str, text: str) -> str:
    """Source: HTTP protocol binding, section 3.1.3.2: quotes first, then one round of percent-decoding."""
    if '"' in text:
        text = _QUOTED.sub(lambda found: re.sub(r"\\(.)", r"\1", found[1]), text)
    try:
        return _ENCODED.sub(lambda found: bytes.fromhex(found[0].replace("%", "")).decode(), text)
    except UnicodeDecodeError as error:
        raise _malformed(f"the header {name!r:.60} is percent-encoded, but not from UTF-8") from error
