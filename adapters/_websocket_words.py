"""What the two sides of a WebSocket with `confirm: true` say to each other, as JSON in text frames. No I/O.

{"id": "7", "data": {"any": "JSON"}}       a message; "data_base64" instead of "data": one that is not text
{"ack": "7"}                               it is safe; with `ack: reply` the reply is beside it, as data
{"nack": "7", "reason": "…", "code": "…"}  it can't pass
{"retry": "7", "after_s": 5}               not now, nothing was taken
"""

from __future__ import annotations

import base64
import binascii

from msgspec import DecodeError, Raw, Struct, ValidationError
from msgspec.json import Decoder, Encoder

from gateway import JSON, Message, MessageError

MOST_ID = 200
"""Characters of the longest id."""
BINARY = "application/octet-stream"

_encode = Encoder().encode
_NOTHING = Raw(b"")


class Envelope(Struct, forbid_unknown_fields=True):
    """A message with the sender's own id."""

    id: str | int
    data: Raw = _NOTHING
    data_base64: str | None = None


class Verdict(Struct):
    """What became of a message that we sent: one of `ack`, `nack` and `retry` is its id."""

    ack: str | None = None
    nack: str | None = None
    retry: str | None = None
    reason: str = ""
    code: str = ""
    after_s: float = 1.0
    data: Raw = _NOTHING
    data_base64: str | None = None


_envelopes = Decoder(Envelope)
_verdicts = Decoder(Verdict)
_values = Decoder(Raw)
_texts = Decoder(str)


def opened(text: bytes) -> Envelope | None:
    """The envelope that a text frame holds; None: it holds none, so that all of it is the message."""
    try:
        found = _envelopes.decode(text)
    except (DecodeError, ValidationError, RecursionError):
        return None
    return found if bytes(found.data) or found.data_base64 is not None else None


def body_of(envelope: Envelope, content_type: str | None) -> tuple[bytes, str]:
    """The body in an envelope, and its content type; given one that is not JSON, `data` has to be a text.

    Raises:
        MessageError: code "malformed".
    """
    if isinstance(envelope.id, str) and len(envelope.id) > MOST_ID:
        raise MessageError(f"id: {len(envelope.id)} characters, at most {MOST_ID} are taken", code="malformed")
    if envelope.data_base64 is not None:
        if bytes(envelope.data):
            raise MessageError("data: expected either data or data_base64, got both", code="malformed")
        return _from_base64(envelope.data_base64), content_type or BINARY
    data = bytes(envelope.data)
    if content_type is None or is_json(content_type):
        return data, content_type or JSON
    try:
        return _texts.decode(data).encode(), content_type
    except (DecodeError, ValidationError, UnicodeEncodeError):
        raise MessageError(f"data: expected a text, which holds the {content_type}", code="malformed") from None


def verdict(text: bytes) -> Verdict | None:
    """What a peer says of a message of ours; None: it speaks of something else."""
    try:
        found = _verdicts.decode(text)
    except (DecodeError, ValidationError, RecursionError):
        return None
    return found if (found.ack, found.nack, found.retry) != (None, None, None) else None


def reply_in(found: Verdict, content_type: str | None) -> Message | None:
    """The reply that came with an ack; None: there is none.

    Raises:
        MessageError: what came is no reply.
    """
    if not bytes(found.data) and found.data_base64 is None:
        return None
    body, type_ = body_of(Envelope("", found.data, found.data_base64), content_type)
    return Message(raw=body, content_type=type_)


def enveloped(id: str, body: bytes, content_type: str) -> bytes:
    """A message with its id.

    Raises:
        MessageError: the body is not the JSON that its content type says.
    """
    return b'{"id":%b,%b}' % (_encode(id), _data(body, content_type))


def ack(mark: bytes, reply: Message | None = None) -> bytes:
    """It is safe. mark: the id as JSON, see `mark_of`.

    Raises:
        MessageError: the reply is not the JSON that its content type says.
    """
    if reply is None:
        return b'{"ack":%b}' % mark
    return b'{"ack":%b,%b}' % (mark, _data(reply.body, reply.content_type))


def nack(mark: bytes, reason: str, code: str) -> bytes:
    """It can't pass."""
    return b'{"nack":%b,"reason":%b,"code":%b}' % (mark, _text(reason), _encode(code))


def retry(mark: bytes, after_s: float) -> bytes:
    """Not now."""
    return b'{"retry":%b,"after_s":%b}' % (mark, _encode(_round(after_s)))


def error(reason: str, code: str, after_s: float | None = None) -> bytes:
    """In the place of a reply, where messages have no ids."""
    if after_s is None:
        return b'{"error":%b,"code":%b}' % (_text(reason), _encode(code))
    return b'{"error":%b,"code":%b,"after_s":%b}' % (_text(reason), _encode(code), _encode(_round(after_s)))


def mark_of(id: str | int, number: int | None = None) -> bytes:
    """An id as JSON. number: of the message on its connection, from 1, where the sender gave no id to know it by."""
    return _encode(id) if number is None else b'%b,"number":%d' % (_encode(id), number)


def is_json(content_type: str) -> bool:
    """Whether bodies of this type are JSON."""
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type in (JSON, "text/json") or media_type.endswith("+json")


def is_text(body: bytes, content_type: str) -> bool:
    """Whether a body goes into a text frame: one of a type that people read, in UTF-8."""
    media_type = content_type.partition(";")[0].strip().lower()
    readable = media_type.startswith("text/") or media_type.endswith(("json", "xml", "urlencoded", "er7"))
    return readable and is_utf8(body)


def is_utf8(body: bytes) -> bool:
    """Whether these bytes are UTF-8."""
    if body.isascii():
        return True
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _data(body: bytes, content_type: str) -> bytes:
    if is_json(content_type):
        if not is_utf8(body):
            raise MessageError("body: it is not JSON (not UTF-8)", code="malformed")
        try:
            # What only calls itself JSON could end the object that it stands in and begin another.
            return b'"data":%b' % bytes(_values.decode(body))
        except (DecodeError, RecursionError) as error:
            raise MessageError(f"body: it is not JSON ({error})", code="malformed") from None
    if is_utf8(body):
        return b'"data":%b' % _encode(body.decode())
    return b'"data_base64":"%b"' % base64.b64encode(body)


def _text(text: str) -> bytes:
    return _encode(text.encode(errors="replace").decode())


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise MessageError("data_base64: it is not base64", code="malformed") from None


def _round(seconds: float) -> float | int:
    return int(seconds) if seconds == int(seconds) else round(seconds, 3)
