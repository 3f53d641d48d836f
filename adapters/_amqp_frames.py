"""AMQP 0-9-1 frames of the data path, as bytes and back, without I/O. All others are the client library's.

Source: AMQP 0-9-1 sections 2.3 (framing), 4.2 (wire format) and the basic class; field types as RabbitMQ reads them
(its "AMQP 0-9-1 errata").
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from msgspec import Struct
from pamqp import encode

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END = 0xCE
FRAME_OVERHEAD_BYTES = 8
HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"

# Class and method ids in one number.
CONNECTION_CLOSE = 10 << 16 | 50
CONNECTION_BLOCKED = 10 << 16 | 60
CONNECTION_UNBLOCKED = 10 << 16 | 61
CHANNEL_CLOSE = 20 << 16 | 40
BASIC_CANCEL = 60 << 16 | 30
BASIC_RETURN = 60 << 16 | 50
BASIC_DELIVER = 60 << 16 | 60
BASIC_ACK = 60 << 16 | 80
BASIC_NACK = 60 << 16 | 120

_SHORT_BYTES = 255
_TABLE_DEPTH = 16
UNREADABLE = {"amqp-properties": "unreadable"}
"""What stands for headers that can't be read."""

head = struct.Struct(">BHI")
"""The first seven bytes of a frame: its type, its channel, the size of its payload."""
method_id = struct.Struct(">I")
tag_and_bits = struct.Struct(">QB")
body_size = struct.Struct(">HHQ")

_settle = struct.Struct(">BHIHHQBB")
_publish_start = struct.Struct(">HHH")
_code = struct.Struct(">H")
_uint32 = struct.Struct(">I")
_double = struct.Struct(">d")
_uint64 = struct.Struct(">Q")


class Properties(Struct, kw_only=True):
    """What travels beside a body. All but the headers are texts or numbers as the sender wrote them."""

    content_type: str | None = None
    content_encoding: str | None = None
    headers: dict[str, Any] | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None


class Delivery(Struct):
    """A message that the broker handed to a consumer, whole."""

    tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    properties: Properties
    body: bytes = b""


class Returned(Struct):
    """The first frame of a message that the broker could not route."""

    text: str
    properties: Properties


def ack(channel: int, tag: int) -> bytes:
    """The frame that settles a delivery as done."""
    return _settle.pack(METHOD, channel, 13, 60, 80, tag, 0, FRAME_END)


def nack(channel: int, tag: int, *, requeue: bool) -> bytes:
    """The frame that gives a delivery back; without `requeue` it goes to the dead-letter exchange of its queue."""
    return _settle.pack(METHOD, channel, 13, 60, 120, tag, 2 if requeue else 0, FRAME_END)


def publish(
    channel: int, exchange: str, routing_key: str, properties: bytes, body: bytes, *, mandatory: bool, frame_max: int
) -> bytes:
    """The frames of one message: method, header, body in as many pieces as `frame_max` asks for.

    Raises:
        ValueError: the exchange or the routing key is longer than 255 bytes, or the properties than a frame.
    """
    method = _publish_start.pack(60, 40, 0) + short(exchange) + short(routing_key) + (b"\x01" if mandatory else b"\0")
    header = body_size.pack(60, 0, len(body)) + properties
    piece_bytes = frame_max - FRAME_OVERHEAD_BYTES
    if len(header) > piece_bytes:  # only a body is cut into frames; the broker would end the link
        most = piece_bytes - body_size.size
        raise ValueError(f"properties and headers take {len(properties)} bytes, the broker takes at most {most}")
    parts = [
        head.pack(METHOD, channel, len(method)),
        method,
        b"\xce",
        head.pack(HEADER, channel, len(header)),
        header,
        b"\xce",
    ]
    for at in range(0, len(body), piece_bytes):
        piece = body[at : at + piece_bytes]
        parts += (head.pack(BODY, channel, len(piece)), piece, b"\xce")
    return b"".join(parts)


def short(text: str) -> bytes:
    """A short string.

    Raises:
        ValueError: it is longer than 255 bytes.
    """
    encoded = text.encode()
    if len(encoded) > _SHORT_BYTES:
        raise ValueError(f"{text[:40]!r}… is {len(encoded)} bytes long, AMQP carries {_SHORT_BYTES}")
    return bytes((len(encoded),)) + encoded


def written(properties: Properties) -> bytes:
    """The property flags and the properties that are set.

    Raises:
        ValueError: a text is longer than 255 bytes, or a header can't be carried.
    """
    flags = 0
    parts: list[bytes] = []
    if properties.content_type:
        flags |= 0x8000
        parts.append(short(properties.content_type))
    if properties.headers:
        flags |= 0x2000
        parts.append(_table_written(properties.headers))
    if properties.delivery_mode:
        flags |= 0x1000
        parts.append(bytes((properties.delivery_mode,)))
    if properties.priority:
        flags |= 0x0800
        parts.append(bytes((properties.priority,)))
    for flag, text in (
        (0x0400, properties.correlation_id),
        (0x0200, properties.reply_to),
        (0x0100, properties.expiration),
        (0x0080, properties.message_id),
    ):
        if text:
            flags |= flag
            parts.append(short(text))
    if properties.timestamp:
        flags |= 0x0040
        parts.append(_uint64.pack(properties.timestamp))
    if properties.type:
        flags |= 0x0020
        parts.append(short(properties.type))
    return _code.pack(flags) + b"".join(parts)


def _table_written(table: dict[str, Any]) -> bytes:
    try:
        return _value_written(table)[1:]
    except (TypeError, ValueError, struct.error) as error:
        raise ValueError(f"headers: {error}") from error


def _value_written(value: Any) -> bytes:
    # Not all by the library: it writes numbers with a fraction in single precision, and cuts long names.
    match value:
        case float():
            return b"d" + _double.pack(value)
        case Decimal():
            return _decimal_written(value)
        case dict():
            inner = b"".join(short(name) + _value_written(one) for name, one in value.items())
            return b"F" + _uint32.pack(len(inner)) + inner
        case list():
            inner = b"".join(map(_value_written, value))
            return b"A" + _uint32.pack(len(inner)) + inner
        case _:
            return encode.encode_table_value(value)


def _decimal_written(number: Decimal) -> bytes:
    try:
        return encode.encode_table_value(number)
    except TypeError:  # it holds 32 bits; a double holds 15 digits, and all that a sender's double was
        if Decimal(repr(float(number))) != number:
            raise
        return b"d" + _double.pack(number)


def read_short(buffer: bytes, at: int) -> tuple[str, int]:
    """A short string, and where it ends. What is not UTF-8 is replaced: a sender's bytes never end a link."""
    end = at + 1 + buffer[at]
    return buffer[at + 1 : end].decode("utf-8", "replace"), end


def read_deliver(buffer: bytes, at: int) -> Delivery:
    """The arguments of basic.deliver; properties and body follow in frames of their own."""
    at += 1 + buffer[at]  # the consumer tag: we have one consumer a channel
    tag, redelivered = tag_and_bits.unpack_from(buffer, at)
    exchange, at = read_short(buffer, at + 9)
    routing_key, _ = read_short(buffer, at)
    return Delivery(tag, bool(redelivered & 1), exchange, routing_key, _NO_PROPERTIES)


def read_close(buffer: bytes, at: int) -> tuple[int, str]:
    """The code and the text of channel.close, connection.close and basic.return."""
    return _code.unpack_from(buffer, at)[0], read_short(buffer, at + 2)[0]


def read_properties(buffer: bytes, at: int, end: int) -> Properties:
    """The property flags and properties of a content header that ends at `end`.

    Raises:
        ValueError: they are not what their flags say.
    """
    flags: int = _code.unpack_from(buffer, at)[0]
    at += 2
    read = Properties()
    if flags & 0x8000:
        read.content_type, at = read_short(buffer, at)
    if flags & 0x4000:
        read.content_encoding, at = read_short(buffer, at)
    if flags & 0x2000:
        read.headers, at = _headers(buffer, at, end)
    if flags & 0x1000:
        read.delivery_mode = buffer[at]
        at += 1
    if flags & 0x0800:
        read.priority = buffer[at]
        at += 1
    if flags & 0x0400:
        read.correlation_id, at = read_short(buffer, at)
    if flags & 0x0200:
        read.reply_to, at = read_short(buffer, at)
    if flags & 0x0100:
        read.expiration, at = read_short(buffer, at)
    if flags & 0x0080:
        read.message_id, at = read_short(buffer, at)
    if flags & 0x0078:
        at = _read_last(read, flags, buffer, at)
    if at > end:
        raise ValueError("properties: they end before their last one")
    return read


def _read_last(read: Properties, flags: int, buffer: bytes, at: int) -> int:
    if flags & 0x0040:
        read.timestamp = _uint64.unpack_from(buffer, at)[0]
        at += 8
    if flags & 0x0020:
        read.type, at = read_short(buffer, at)
    if flags & 0x0010:
        read.user_id, at = read_short(buffer, at)
    if flags & 0x0008:
        read.app_id, at = read_short(buffer, at)
    return at


def _headers(buffer: bytes, at: int, end: int) -> tuple[dict[str, Any], int]:
    """The headers, and where they end. Ones that can't be read hide nothing of what lies behind them."""
    after: int = at + 4 + _uint32.unpack_from(buffer, at)[0]
    if after > end:
        raise ValueError("headers: they are cut short")
    try:
        return _table(buffer, at, _TABLE_DEPTH)[0], after
    except (ValueError, IndexError, struct.error):
        return dict(UNREADABLE), after


def _table(buffer: bytes, at: int, depth: int) -> tuple[dict[str, Any], int]:
    end = at + 4 + _uint32.unpack_from(buffer, at)[0]
    if end > len(buffer) or not depth:
        raise ValueError("headers: a table is cut short or nested too deeply")
    at += 4
    table: dict[str, Any] = {}
    while at < end:
        name, at = read_short(buffer, at)
        table[name], at = _value(buffer, at, depth)
    return table, end


def _array(buffer: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    end = at + 4 + _uint32.unpack_from(buffer, at)[0]
    if end > len(buffer) or not depth:
        raise ValueError("headers: an array is cut short or nested too deeply")
    at += 4
    values: list[Any] = []
    while at < end:
        value, at = _value(buffer, at, depth)
        values.append(value)
    return values, end


_NUMBERS = {
    kind: struct.Struct(f">{code}")
    for kind, code in {
        ord("b"): "b",
        ord("B"): "B",
        ord("s"): "h",
        ord("u"): "H",
        ord("I"): "i",
        ord("i"): "I",
        ord("l"): "q",
        ord("L"): "q",
        ord("f"): "f",
        ord("d"): "d",
    }.items()
}


def _value(buffer: bytes, at: int, depth: int) -> tuple[Any, int]:
    kind = buffer[at]
    at += 1
    if kind == 0x53 or kind == 0x78:  # S, x: long string, bytes
        end = at + 4 + _uint32.unpack_from(buffer, at)[0]
        if end > len(buffer):
            raise ValueError("headers: a text is cut short")
        raw = buffer[at + 4 : end]
        return raw.decode("utf-8", "replace") if kind == 0x53 else raw, end
    number = _NUMBERS.get(kind)
    if number is not None:
        return number.unpack_from(buffer, at)[0], at + number.size
    match chr(kind):
        case "t":
            return bool(buffer[at]), at + 1
        case "V":
            return None, at
        case "F":
            return _table(buffer, at, depth - 1)
        case "A":
            return _array(buffer, at, depth - 1)
        case "T":
            return _moment(_uint64.unpack_from(buffer, at)[0]), at + 8
        case "D":
            digits = struct.unpack_from(">i", buffer, at + 1)[0]
            return Decimal(digits).scaleb(-buffer[at]), at + 5
        case other:
            raise ValueError(f"headers: there is no field type {other!r}")


def _moment(seconds: int) -> datetime | int:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return seconds


_NO_PROPERTIES = Properties()
