"""What a row of the journal holds, as bytes: envelopes, bodies, traces and reasons, each with a way back."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from msgspec import MsgspecError, msgpack

from gateway.journal import CREDENTIALS, Attempt, Hop, Reason, State
from gateway.message import Message, Principal

VERSION = 1
"""Of the envelope's layout: the first field of each."""
STATES: tuple[State, ...] = ("stored", "pending", "delivered", "filtered", "expired", "dead", "discarded")
CODES: dict[str, int] = {state: code for code, state in enumerate(STATES)}
STORED, PENDING, DELIVERED, FILTERED, EXPIRED, DEAD, DISCARDED = range(7)
GRAVITY = (DEAD, EXPIRED, DISCARDED, DELIVERED, FILTERED)
"""The state of a message whose deliveries are final: the first of these that one of them has."""
MAX_ATTEMPTS = 200
MAX_TRACE_BYTES = 1 << 20
"""What is kept of one message's history."""

_DECIMAL, _BIG = 1, 2
_NOTHING: Mapping[str, Any] = {}
Key = bytes | str
"""An id as the journal keeps it: the 16 bytes of a UUID, else its text."""


class DamagedError(ValueError):
    """The bytes of a row are not those that were written."""


def id_key(id: str) -> Key:
    """The shortest form of an id from which `id_text` makes it again."""
    if len(id) == 36 and id[8:24:5] == "----":
        digits = id.replace("-", "")
        try:
            key = bytes.fromhex(digits)
        except ValueError:
            return id
        if len(key) == 16 and key.hex() == digits:
            return key
    return id


def id_text(key: Key) -> str:
    """The id of such a key."""
    if isinstance(key, str):
        return key
    digits = key.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _unknown(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


_encode = msgpack.Encoder(enc_hook=_unknown).encode


def _ext(code: int, data: memoryview) -> Any:
    text = bytes(data).decode()
    return Decimal(text) if code == _DECIMAL else int(text)


_decode = msgpack.Decoder(ext_hook=_ext).decode


def _plain(value: Any) -> Any:
    """The same value in types that msgpack carries without loss; what UTF-8 can't say becomes `?`."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Decimal):
        return msgpack.Ext(_DECIMAL, str(value).encode())
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        return msgpack.Ext(_BIG, str(value).encode())
    if isinstance(value, Mapping):
        return {_plain(str(name)): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def envelope_of(message: Message) -> bytes:
    """Everything of a message but its body."""
    principal = message.principal
    context = message.context
    fields = (
        VERSION,
        message.id,
        message.source,
        message.type,
        message.subject,
        message.time_s,
        message.content_type,
        message.schema,
        message.headers,
        message.transport,
        message.sender_id,
        message.key,
        message.priority,
        message.expires_at_s,
        message.correlation_id,
        message.causation_id,
        message.traceparent,
        None if principal is None else (principal.name, principal.roles),
        _plain(context) if context else None,
    )
    try:
        return _encode(fields)
    except (OverflowError, UnicodeEncodeError, MsgspecError, TypeError):
        return _encode(_plain(fields))


def message_of(envelope: bytes, body: bytes | None) -> Message:
    """The message of an envelope and a body.

    Raises:
        DamagedError: these bytes are no envelope.
    """
    try:
        fields = _decode(envelope)
        version, *fields = fields
        if version != VERSION or len(fields) != 18:
            raise DamagedError(f"envelope of version {version!r} with {len(fields)} fields")
        principal = fields[16]
        return Message(
            id=fields[0],
            source=fields[1],
            type=fields[2],
            subject=fields[3],
            time_s=fields[4],
            content_type=fields[5],
            schema=fields[6],
            raw=body,
            headers=fields[7] or _NOTHING,
            transport=fields[8] or _NOTHING,
            sender_id=fields[9],
            key=fields[10],
            priority=fields[11],
            expires_at_s=fields[12],
            correlation_id=fields[13],
            causation_id=fields[14],
            traceparent=fields[15],
            principal=None if principal is None else Principal(principal[0], tuple(principal[1])),
            context=fields[17] or _NOTHING,
        )
    except (MsgspecError, TypeError, ValueError, IndexError) as error:
        raise DamagedError(str(error)) from error


def checksum(route_crc: int, envelope: bytes, body: bytes) -> int:
    """CRC-32 of a record: its envelope and its body, begun with that of its route's name."""
    return zlib.crc32(body, zlib.crc32(envelope, route_crc))


def sound_message(route: str, key: Key, crc: int, envelope: bytes, body: bytes) -> Message:
    """The message of a row.

    Raises:
        DamagedError: the row is not as it was written.
    """
    if checksum(zlib.crc32(route.encode("utf-8", "replace")), envelope, body) != crc:
        raise DamagedError("its checksum is wrong")
    message = message_of(envelope, body)
    if id_key(message.id) != key:
        raise DamagedError("its id is not the one that it was stored under")
    return message


def replayed(message: Message, since: float, again: int | None) -> Message:
    """The message as it is given out. again: None: it was never replayed. A replay is not bound by its deadline."""
    message.since = since
    if again is not None:
        message.again = again
        message.expires_at_s = None
    return message


def search_text(message: Message) -> str:
    """What the text of a filter is looked for in, in lower case."""
    parts = [message.id, message.type]
    parts += [part for part in (message.key, message.subject, message.sender_id, message.correlation_id) if part]
    parts += [f"{name}: {value}" for name, value in message.headers.items() if name not in CREDENTIALS]
    return "\n".join(parts).lower()


def trace_of(hops: Sequence[Hop], attempts: Sequence[Attempt]) -> bytes | None:
    """A piece of a message's history; None: there is nothing in it."""
    if not hops:
        if not attempts:
            return None
        if len(attempts) == 1 and attempts[0].answer is None and attempts[0].error is None:
            only = attempts[0]
            return _encode(((), ((only.target, only.number, only.at_s, only.took_s, None, None),)))
    kept = [(hop.place, hop.outcome, hop.before, hop.after) for hop in hops[:MAX_ATTEMPTS]] if hops else []
    if kept and sum(len(hop[2] or b"") + len(hop[3] or b"") for hop in kept) > MAX_TRACE_BYTES:
        kept = _within_bounds(kept)
    tries = [(one.target, one.number, one.at_s, one.took_s, one.error, one.answer) for one in attempts[-MAX_ATTEMPTS:]]
    try:
        return _encode((kept, tries))
    except UnicodeEncodeError:
        return _encode(_plain((kept, tries)))


def _within_bounds(hops: list[Any]) -> list[Any]:
    left = MAX_TRACE_BYTES
    kept = []
    for place, outcome, before, after in hops:
        left -= len(before or b"") + len(after or b"")
        kept.append((place, outcome, before, after) if left >= 0 else (place, outcome, None, None))
    return kept


def read_trace(blob: bytes) -> tuple[list[Hop], list[Attempt]]:
    """The hops and attempts of such a piece; none when it is damaged."""
    try:
        hops, attempts = _decode(blob)
        return [Hop(*hop) for hop in hops], [Attempt(*attempt) for attempt in attempts]
    except (MsgspecError, TypeError, ValueError):
        return [], []


def reason_blob(reason: Reason | None) -> bytes | None:
    """A reason as bytes."""
    if reason is None:
        return None
    told = () if reason.told is None else (reason.told,)
    return _encode(_plain((reason.kind, reason.text, reason.place, *told)))


def read_reason(blob: bytes | None) -> Reason | None:
    """The reason of such bytes; None when they are damaged."""
    if blob is None:
        return None
    try:
        return Reason(*_decode(blob))
    except (MsgspecError, TypeError, ValueError):
        return None
