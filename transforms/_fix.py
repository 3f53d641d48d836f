"""FIX in tag=value encoding: fields of a message, read and written without a dictionary.

Source: FIX TagValue Encoding 1.0; FIX.5.0 SP2 volume 1, "Standard Message Header" and "Standard Message Trailer".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from gateway import MessageError

SOH = b"\x01"
_MOST_FIELDS = 100_000
"""A field costs about 200 bytes once it is in a tree: a body of empty ones must not fill memory."""
_LONGEST_TAG = 9

_HEADER = (
    "8 9 35 1128 1156 1129 49 56 115 128 90 91 34 50 142 57 143 116 144 129 145 43 97 52 122 212 213 347 369 370 627 "
    "628 629 630"
)
HEADER = frozenset(_HEADER.split())
"""Tags of the standard header, which stands before all others. 627 to 630: the group of hops."""
TRAILER = ("93", "89", "10")
"""Tags of the standard trailer, in their order."""

# The tag of a length, and that of the data with so many bytes, which stands right behind it and may hold any byte.
_BEFORE = (90, 95, 212, *range(348, 365, 2), 445, 618, 621, 1184, 1277, 1280, 1282, 1397, 1401, 1403, 1468)
_DATA = {"93": "89", **{str(length): str(length + 1) for length in _BEFORE}}
LENGTHS = {data: length for length, data in _DATA.items()}
"""By the tag of data, that of its length."""

Field = tuple[str, bytes]


def read(body: bytes, *, verify: bool) -> list[Field]:
    """The fields of one message, in their order, without BodyLength, CheckSum and the lengths of data.

    verify: BodyLength, CheckSum, and the places of tags 8, 9, 35 and 10 must be right.

    Raises:
        MessageError: code "malformed".
    """
    fields: list[Field] = []
    at, length, data = 0, 0, ""
    while at < len(body):
        equals = body.find(b"=", at, at + _LONGEST_TAG + 1)
        tag = body[at:equals].decode("latin-1") if equals > at else ""
        if not (tag.isascii() and tag.isdigit()) or tag[0] == "0":
            _refuse(f"found {body[at : at + 20]!r} at {at}, expected a tag such as 35, a =, and its value")
        start = equals + 1
        if data and tag != data:
            if length:
                _refuse(f"tag {tag} at {at} stands behind the length of tag {data}, expected that tag")
            data = ""
        end = start + length if data else body.find(SOH, start)
        if end < 0 or body[end : end + 1] != SOH:
            _refuse(f"tag {tag} at {at}: expected SOH, byte 01, at the end of its value{_as_long(data, length)}")
        value = body[start:end]
        data = _DATA.get(tag, "")
        if data:
            if not value.isdigit() or len(value) > _LONGEST_TAG:
                _refuse(f"tag {tag} at {at}: found {value[:20]!r}, expected the number of bytes of tag {data}")
            length = int(value)
        else:
            length = 0
        fields.append((tag, value))
        if len(fields) > _MOST_FIELDS:
            _refuse(f"more than {_MOST_FIELDS} fields")
        at = end + 1
    if data and length:
        _refuse(f"the last field is the length of tag {data}, expected that tag behind it")
    if not fields:
        _refuse("the body is empty, expected a message, 8=FIX first")
    if verify:
        _verify(body, fields)
    return [field for field in fields if field[0] not in ("9", "10") and field[0] not in _DATA]


def _as_long(data: str, length: int) -> str:
    return f" of {length} bytes, as its length says" if data else ""


def _verify(body: bytes, fields: list[Field]) -> None:
    tags = [tag for tag, _ in fields]
    if tags[:3] != ["8", "9", "35"] or tags[-1] != "10":
        _refuse(f"the tags are {', '.join(tags[:3])} to {tags[-1]}, expected 8, 9, 35 to 10")
    trailer = len(body) - len(fields[-1][1]) - 4
    length = trailer - len(b"8=" + fields[0][1] + b"\x019=" + fields[1][1] + SOH)
    if fields[1][1] != b"%d" % length:
        _refuse(f"BodyLength, tag 9, is {_shown(fields[1][1])}, expected {length}")
    checksum = sum(body[:trailer]) % 256
    if fields[-1][1] != b"%03d" % checksum:
        _refuse(f"CheckSum, tag 10, is {_shown(fields[-1][1])}, expected {checksum:03}")


def field(tag: str, value: bytes) -> bytes:
    """A field as it is written; data with its length before it."""
    length = b"%b=%d\x01" % (LENGTHS[tag].encode(), len(value)) if tag in LENGTHS else b""
    return b"%b%b=%b\x01" % (length, tag.encode(), value)


def write(parts: Iterable[tuple[str, bytes]]) -> bytes:
    """One message of these, each a tag and what is written for it: 8 and 35 first, the header, the body, the trailer.

    BodyLength and CheckSum are put in; within header, body and trailer they keep their order.
    """
    begin, kind = b"", b""
    header: list[bytes] = []
    body: list[bytes] = []
    trailer: list[bytes] = []
    for tag, written in parts:
        if tag == "8":
            begin = written
        elif tag == "35":
            kind = written
        else:
            (header if tag in HEADER else trailer if tag in TRAILER else body).append(written)
    content = b"".join((kind, *header, *body, *trailer))
    message = b"%b9=%d\x01%b" % (begin, len(content), content)
    return b"%b10=%03d\x01" % (message, sum(message) % 256)


def _shown(value: bytes) -> str:
    return repr(value[:20])[1:]


def _refuse(text: str) -> NoReturn:
    raise MessageError(f"fix: {text}", code="malformed")
