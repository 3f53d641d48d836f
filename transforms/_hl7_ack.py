r"""HL7 v2 acknowledgements: reads the header of a message as bytes, writes and reads its MSH and MSA.

Nothing here decodes or splits a body: bytes that are copied stay what they were, in whatever charset.

Source: HL7 v2.5.1 chapter 2, sections 2.9.2 (original mode), 2.9.3 (enhanced mode), 2.14 (MSH, MSA, ERR).
"""

from __future__ import annotations

import time
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from gateway import MessageError
from transforms._hl7 import codec_of_names, delimiters_of, er7

_MOST_TEXT = 80
_BLANKS = b"\r\n \t\0"


_CONDITIONS = frozenset((b"AL", b"NE", b"ER", b"SU"))
"""HL7 table 0155. Anything else, such as the two quotes of HL7's null, asks for nothing: it is no wish for silence."""


class Header(NamedTuple):
    """The MSH of a message, its fields as bytes: `fields[9]` is MSH-10."""

    fields: list[bytes]
    separator: bytes
    component: bytes

    def field(self, number: int) -> bytes:
        """MSH-`number` as it stands; empty when it is absent."""
        return self.fields[number - 1] if number <= len(self.fields) else b""

    def part(self, number: int, component: int) -> bytes:
        """A component of MSH-`number`."""
        parts = self.field(number).split(self.component)
        return parts[component - 1] if component <= len(parts) else b""

    @property
    def control_id(self) -> str:
        """MSH-10 as text."""
        return _text(self.field(10))

    @property
    def type(self) -> str:
        """Message code and trigger event, such as `ADT^A01`; empty when MSH-9 is."""
        code, *more = self.field(9).split(self.component, 2)
        event = _text(more[0]) if more else ""
        return f"{_text(code)}^{event}" if event else _text(code)

    @property
    def version(self) -> tuple[int, ...]:
        """MSH-12 as numbers, such as (2, 3, 1); empty when it is none."""
        return _version(self.part(12, 1))

    @property
    def enhanced(self) -> bool:
        """Whether the sender asks for enhanced mode: it says a word of HL7 table 0155 in MSH-15 or MSH-16."""
        return any(field.strip().upper() in _CONDITIONS for field in self.fields[14:16])

    @property
    def codec(self) -> str:
        """The Python codec for texts of an answer: that of MSH-18; ASCII when it says none, or one we don't know."""
        names = self.field(18)
        repetition = self.field(2)[1:2] or b"~"
        return (codec_of_names([_text(name) for name in names.split(repetition)]) or "ascii") if names else "ascii"


def read_header(payload: bytes) -> Header | None:
    """The first MSH of a payload, which may come after blanks or batch headers; None: there is none."""
    if payload[:3] != b"MSH":
        start = payload.lstrip(b"\xef\xbb\xbf").lstrip(_BLANKS)
        if start[:3] in (b"FHS", b"BHS"):
            start = _segment(start, b"MSH" + start[3:4]) or b""
        if start[:3] != b"MSH":
            return None
        payload = start
    separator = payload[3:4]
    if not separator or separator.isalnum() or separator in _BLANKS:
        return None
    line = _first_line(payload)
    fields = line.split(separator)
    fields[0] = separator
    if len(fields) < 2:
        return None
    return Header(fields, separator, fields[1][:1] or b"^")


def _first_line(payload: bytes) -> bytes:
    end = payload.find(b"\r")
    line = payload if end < 0 else payload[:end]
    end = line.find(b"\n")
    return line if end < 0 else line[:end]


def _segment(payload: bytes, start: bytes) -> bytes | None:
    """What begins with the first segment that begins so; None: there is none."""
    if payload.startswith(start):
        return payload
    ends = (b"\r", b"\r\n") if b"\r" in payload else (b"\n",)
    places = [at + len(end) for end in ends if (at := payload.find(end + start)) >= 0]
    return payload[min(places) :] if places else None


def _text(field: bytes) -> str:
    try:
        return field.decode().strip()
    except UnicodeDecodeError:
        return field.decode("latin-1").strip()


@lru_cache(32)
def _version(text: bytes) -> tuple[int, ...]:
    numbers = text.strip().split(b".")
    return tuple(map(int, numbers)) if len(text) < 16 and all(number.isdigit() for number in numbers) else ()


class Answer(NamedTuple):
    """What an acknowledgement says."""

    code: str
    """MSA-1, in upper case, such as AA."""
    control_id: bytes
    """MSA-2: which message it is about."""
    text: str
    """MSA-3, or ERR-8 where that is empty."""


def read_answer(payload: bytes) -> Answer | None:
    """The MSA of an acknowledgement, found as a segment and not as text somewhere; None: there is none."""
    header = read_header(payload)
    if header is None:
        return None
    found = _segment(payload, b"MSA" + header.separator)
    if found is None:
        return None
    fields = [*_first_line(found).split(header.separator), b"", b"", b""]
    text = _text(fields[3])
    if not text:
        error = _segment(payload, b"ERR" + header.separator)
        text = _text([*_first_line(error).split(header.separator), *[b""] * 9][8]) if error else ""
    return Answer(_text(fields[1]).upper(), fields[2].strip(), text)


def ack_id(message_id: str) -> bytes:
    """An MSH-10 of its own for an answer, from a message's id: its millisecond and 32 random bits, 20 characters."""
    return (message_id[:8] + message_id[9:13] + message_id[-8:]).encode()


class Fault(Enum):
    """What an ERR segment says is wrong. Source: HL7 table 0357, which has no word for what a check refuses."""

    DATA = (102, b"Data type error")
    """The content is not as it has to be."""
    KIND = (200, b"Unsupported message type")
    """It is the kind of message that is not taken, and not its content."""
    INTERNAL = (207, b"Application internal error")
    """It is not the message: not now, or a fault of ours."""


def acknowledge(
    header: Header | None, code: str, own_id: bytes, text: str = "", *, fault: Fault = Fault.INTERNAL
) -> bytes:
    """The acknowledgement of a message, with the sender's own delimiters and charset.

    header: of the message; None: it has none, and the answer goes to nobody by name.
    code: MSA-1. own_id: MSH-10 of the answer, 20 bytes at most. text: why not, cut to 80 characters.
    fault: ERR-3, for a code that is not A.
    """
    if header is None:
        header = Header([b"|", b"^~\\&", *[b""] * 8, b"P", b"2.5"], b"|", b"^")
    separator = header.separator
    fields = [b"MSH", header.field(2), header.field(5), header.field(6), header.field(3), header.field(4), _now(), b""]
    fields += (_type(header), own_id, header.field(11), header.field(12))
    if charset := header.field(18):
        fields += (b"", b"", b"", b"", b"", charset)
    shown = _escaped(header, text) if text else b""
    answer = (b"MSA", code.encode(), header.field(10), shown) if shown else (b"MSA", code.encode(), header.field(10))
    lines = [separator.join(fields), separator.join(answer)]
    if code[1] != "A" and header.version >= (2, 5):
        number, name = fault.value
        error = header.component.join((b"%d" % number, name, b"HL70357"))
        lines.append(separator.join((b"ERR", b"", b"", error, b"E", b"", b"", b"", shown)))
    return b"\r".join((*lines, b""))


def _type(header: Header) -> bytes:
    event = header.part(9, 2)
    if event and header.version >= (2, 4):
        return header.component.join((b"ACK", event, b"ACK"))
    return b"ACK"


def _escaped(header: Header, text: str) -> bytes:
    line = " ".join(text[: 4 * _MOST_TEXT].split())[:_MOST_TEXT]
    try:
        how = er7(delimiters_of((b"MSH" + header.separator + header.field(2) + header.separator).decode("latin-1")))
    except MessageError:  # such as one sign with two roles: then there is no escape, and signs are left out
        return "".join(sign for sign in line if sign.isalnum() or sign == " ")[:_MOST_TEXT].encode("ascii", "replace")
    while len(whole := how.escape(line)) > _MOST_TEXT:
        line = line[: len(line) - max(1, (len(whole) - _MOST_TEXT) // 5)]
    return whole.encode(header.codec, "replace")


_now_cached: tuple[int, bytes] = (0, b"")


def _now() -> bytes:
    global _now_cached  # noqa: PLW0603 - formatted once a second, not once an answer
    second = int(time.time())
    if second != _now_cached[0]:
        _now_cached = (second, time.strftime("%Y%m%d%H%M%S+0000", time.gmtime(second)).encode())
    return _now_cached[1]
