"""What an AMQP 0-9-1 delivery is as a message: properties and headers to the envelope, without I/O."""

from __future__ import annotations

import re
import zlib
from datetime import datetime
from typing import Any

import msgspec

from adapters._amqp_frames import Delivery, Properties
from gateway import CUT, JSON, Limits, Message, rfc3339

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_encode = msgspec.json.Encoder(enc_hook=str).encode
_COMPRESSED = {"gzip": "application/gzip", "x-gzip": "application/gzip", "deflate": "application/zlib"}
_AUTOMATIC_WINDOW = 32 + zlib.MAX_WBITS  # takes the gzip and the zlib form


def message_of(delivery: Delivery, *, queue: str, content_type: str | None, limits: Limits, now_s: float) -> Message:
    """The message that a consumer got. Never fails: what a sender wrote oddly is left out or passed on as it is.

    now_s: when it was received, seconds since 1970. An `expiration` counts from then: while a message is in a queue
    the broker sees to it.
    """
    properties = delivery.properties
    table = properties.headers or _NO_HEADERS
    headers = {name.lower(): text_of(value) for name, value in table.items()} if table else {}
    transport: dict[str, Any] = {
        "exchange": delivery.exchange,
        "routing_key": delivery.routing_key,
        "redelivered": delivery.redelivered,
        "queue": queue,
    }
    for name in ("reply_to", "user_id", "app_id", "timestamp"):
        value = getattr(properties, name)
        if value is not None:
            transport[name] = value
    if len(delivery.body) > limits.message:
        transport[CUT] = True
    if "x-death" in table:
        transport |= deaths(table["x-death"])
    body, said = delivery.body, content_type or properties.content_type or JSON
    if properties.content_encoding:
        transport["content_encoding"] = properties.content_encoding
        body, said = _decoded(body, properties.content_encoding.lower(), said, limits)
    traceparent = headers.get("traceparent")
    return Message(
        type=properties.type or "amqp.message",
        time_s=now_s,
        content_type=said,
        raw=body,
        headers=headers,
        transport=transport,
        sender_id=properties.message_id,
        priority=min(properties.priority or 0, 9),
        expires_at_s=_expires_at_s(properties, now_s),
        correlation_id=properties.correlation_id,
        traceparent=traceparent if traceparent and _TRACEPARENT.fullmatch(traceparent) else None,
    )


_NO_HEADERS: dict[str, Any] = {}


def text_of(value: Any) -> str:
    """A header's value as text: moments as RFC 3339, tables and arrays as JSON, bytes as UTF-8 where they are."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case None:
            return ""
        case bytes():
            return value.decode("utf-8", "backslashreplace")
        case datetime():
            return rfc3339(value.timestamp())
        case dict() | list():
            return _encode(_plain(value)).decode()
        case _:
            return str(value)


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {name: _plain(inner) for name, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
        case bytes() | datetime():
            return text_of(value)
        case _:
            return value


def deaths(table: Any) -> dict[str, Any]:
    """How often a message was dead-lettered before, and why and where last, from its `x-death` header.

    The header is as good as whoever may publish to the queue. Source: RabbitMQ, "Dead Letter Exchanges".
    """
    entries = [entry for entry in table if isinstance(entry, dict)] if isinstance(table, list) else []
    counts = [entry.get("count") for entry in entries]
    found: dict[str, Any] = {"x_death_count": sum(count for count in counts if type(count) is int)}
    if entries:
        found["x_death_reason"] = text_of(entries[0].get("reason"))
        found["x_death_queue"] = text_of(entries[0].get("queue"))
    return found


def _expires_at_s(properties: Properties, now_s: float) -> float | None:
    lifetime_ms = properties.expiration
    if lifetime_ms is None or not (lifetime_ms.isascii() and lifetime_ms.isdigit()):
        return None
    return now_s + min(int(lifetime_ms[:18]), 10**14) / 1000


def _decoded(body: bytes, encoding: str, content_type: str, limits: Limits) -> tuple[bytes, str]:
    """The body without its compression, within the limits; else as it came, named as what it is."""
    compressed = _COMPRESSED.get(encoding)
    if compressed is None:
        return body, content_type if encoding in ("utf-8", "identity") else "application/octet-stream"
    most_bytes = min(limits.message, limits.decompressed_ratio * max(len(body), 1))
    inflate = zlib.decompressobj(_AUTOMATIC_WINDOW)
    try:
        whole = inflate.decompress(body, most_bytes)
    except zlib.error:
        return body, compressed
    return (whole, content_type) if inflate.eof and not inflate.unused_data else (body, compressed)
