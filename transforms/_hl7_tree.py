r"""HL7 v2 (ER7) to a lossless tree and back, byte for byte.

    {"delimiters": "|^~\\&", "segments": [["MSH", …], ["PID", None, None, [[["555-44-4444"]]], …]]}

A segment is its name and its fields, so that `segment[3]` is field 3 (of MSH too, whose first field is the separator).
A field has a fixed depth, [repetition][component][subcomponent]; None is absent at every level. A value is text with
its escapes resolved; `""` (two quotes, "delete this") stays that text. A value that our own way of escaping would not
write as it came is {"raw": …}, as it came. Three keys are there only when they say something: `charset` (a Python
codec, when it is not what MSH-18 says), `terminator` (when not CR), `unterminated` (the last segment has none).

Byte for byte, but for line ends that are CR here and CR LF there, and blanks and NUL before the first segment.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from gateway import MessageError, Tree
from transforms._hl7 import HEADERS, STANDARD, Er7, codec_of_names, delimiters_of, er7

# A value costs about 200 bytes once it is a list in a list in a list: a body of separators alone must not fill memory.
_MOST_VALUES = 300_000
# A source's setting is for what comes from then on: what is stored has its content type, and needs the step.
_SAY_CHARSET = (
    "set charset: to what the sender really sends, such as 8859/1; for what is stored already, "
    "as a step: parse: {hl7: {charset: 8859/1}}"
)
# Those that our own escaping would have written as \Xhh\, but for line ends.
_CONTROLS = bytes(code for code in range(32) if code not in b"\t\r\n") + b"\x7f"


def parse_er7(body: bytes, charset: str | None = None) -> Tree:
    """The tree of a message, or of a batch of messages with the same delimiters.

    charset: a Python codec; None: what MSH-18 says.

    Raises:
        MessageError: code "malformed": no header, delimiters that can't be, or bytes that are not of the charset.
    """
    natural = natural_codec(body)
    used = charset or natural
    text = _decoded(body, used)
    if text[:3] not in HEADERS:
        text = text.lstrip("\r\n \t\0")
        if text[:3] not in HEADERS:
            raise MessageError(
                f"hl7: the first segment is {text[:3]!r}, expected MSH, FHS or BHS; is it HL7 v2 in ER7 encoding?",
                code="malformed",
            )
    delimiters = delimiters_of(text)
    if sum(map(text.count, delimiters[:3] + delimiters[4])) > _MOST_VALUES:
        raise MessageError(f"hl7: found more than {_MOST_VALUES} values, expected fewer; split it", code="malformed")
    terminator = _terminator(text)
    lines = text.split(terminator)
    if terminator == "\r" and "\n" in text:
        lines = [line.removeprefix("\n") for line in lines]
    ended = not lines[-1]
    if ended:
        lines.pop()
    how = er7(delimiters, used)
    suspect = "\n" in text or len(body.translate(None, _CONTROLS)) != len(body)
    tree: dict[str, Any] = {"delimiters": delimiters}
    tree["segments"] = [_segment(how, line, suspect=suspect) for line in lines]
    if used != natural or used == "utf-8-sig":
        tree["charset"] = used
    if terminator != "\r":
        tree["terminator"] = terminator
    if not ended:
        tree["unterminated"] = True
    return tree


def natural_codec(body: bytes) -> str:
    """The Python codec that a message's own MSH-18 names.

    Raises:
        MessageError: code "malformed": it is not known.
    """
    if body.startswith(b"\xef\xbb\xbf"):
        return "utf-8-sig"
    # In a batch the charset is said by its messages, not by its header.
    start = body.find(b"MSH") if body[:3] in (b"FHS", b"BHS") else 0
    line = body[max(start, 0) :].split(b"\r", 1)[0].split(b"\n", 1)[0]
    fields = line.split(line[3:4] or b"|", 18)
    if len(fields) < 18 or not fields[17]:
        return "utf-8"
    repetition = (line[5:6] if line[5:6] != line[3:4] else b"") or b"~"
    names = [name.decode("latin-1") for name in fields[17].split(repetition)]
    known = codec_of_names(names)
    if known is None:
        raise MessageError(
            f"hl7: MSH-18 names the charset {names[0][:40]!r}, which is not known; {_SAY_CHARSET}",
            code="malformed",
        )
    return known


def _decoded(body: bytes, charset: str) -> str:
    try:
        return body.decode(charset)
    except UnicodeDecodeError as error:
        raise MessageError(
            f"hl7: byte 0x{body[error.start]:02X} at {error.start} is not {charset}, which MSH-18 or the content type "
            f"says (no charset said: utf-8); {_SAY_CHARSET}",
            code="malformed",
        ) from error


def _terminator(text: str) -> str:
    returns = text.count("\r")
    if returns:
        return "\r\n" if text.count("\r\n") == returns else "\r"
    return "\n" if "\n" in text else "\r"


def _segment(how: Er7, line: str, *, suspect: bool) -> list[Any]:
    parts = line.split(how.field)
    segment: list[Any] = [parts[0]]
    first = 1
    if parts[0] in HEADERS and len(parts) > 1:
        if not how.delimiters.startswith(how.field + parts[1][:5]):
            raise MessageError(
                f"hl7: {parts[0]}-2 is {parts[1][:10]!r} and the message began with the delimiters {how.delimiters!r}; "
                "messages with different delimiters can't be in one body",
                code="malformed",
            )
        segment += [[[[how.field]]], [[[parts[1]]]] if parts[1] else None]
        first = 2
    component, repetition, subcomponent = how.component, how.repetition, how.subcomponent
    escaped = suspect or how.escape_mark in line or (how.truncation != "" and how.truncation in line)
    append = segment.append
    for part in parts[first:]:
        if not part:
            append(None)
        elif escaped:
            append([_escaped(how, one) for one in part.split(repetition)])
        elif repetition in part or subcomponent in part:
            append([_plain(one, component, subcomponent) for one in part.split(repetition)])
        elif component in part:
            append([[[one] if one else None for one in part.split(component)]])
        else:
            append([[[part]]])
    return segment


def _plain(text: str, component: str, subcomponent: str) -> list[Any] | None:
    if not text:
        return None
    return [[leaf or None for leaf in one.split(subcomponent)] if one else None for one in text.split(component)]


def _escaped(how: Er7, text: str) -> list[Any] | None:
    if not text:
        return None
    return [
        [_leaf(how, leaf) for leaf in one.split(how.subcomponent)] if one else None for one in text.split(how.component)
    ]


def _leaf(how: Er7, raw: str) -> Tree:
    if not raw:
        return None
    text = how.unescape(raw)
    return text if how.escape(text) == raw else {"raw": raw}


def format_er7(tree: Tree, charset: str | None = None) -> bytes:
    """The bytes of such a tree: exactly what was parsed, or a new message.

    A new one may be written shorter: a field, repetition or component that is text or a number is its only value.
    charset: a Python codec; None: what the tree or its MSH-18 says.

    Raises:
        MessageError: it is not such a tree, or the charset has no sign for some character.
    """
    segments = tree.get("segments") if isinstance(tree, dict) else None
    if not isinstance(tree, dict) or not isinstance(segments, list) or not segments:
        raise MessageError('hl7.format: expected {"delimiters": …, "segments": [["MSH", …], …]} with a segment or more')
    delimiters = tree.get("delimiters", STANDARD)
    if not isinstance(delimiters, str) or delimiters_of("MSH" + delimiters) != delimiters:
        raise MessageError(f"hl7.format: delimiters are {delimiters!r}, expected five signs such as {STANDARD!r}")
    terminator = tree.get("terminator", "\r")
    if terminator not in ("\r", "\n", "\r\n"):
        raise MessageError(f"hl7.format: terminator is {terminator!r}, expected CR, LF or CR LF, or leave it out")
    used = charset or charset_of(tree)
    how = er7(delimiters, used)
    text: str = terminator.join([_line(how, segment, terminator) for segment in segments])
    try:
        return (text if tree.get("unterminated") is True else text + terminator).encode(used)
    except UnicodeEncodeError as error:
        raise MessageError(
            f"hl7.format: {used} has no sign for {text[error.start]!r}; set MSH-18 to UNICODE UTF-8, or say charset:"
        ) from error


def charset_of(tree: dict[str, Any]) -> str:
    """The Python codec that a tree says, in its `charset` or its MSH-18.

    Raises:
        MessageError: it is not known.
    """
    said: Any = tree.get("charset")
    if said is None:
        header: list[Any] = next((one for one in tree["segments"] if isinstance(one, list) and one[:1] == ["MSH"]), [])
        field = header[18] if len(header) > 18 else None
        names = [str(first_value(one) or "") for one in field] if isinstance(field, list) else [str(field or "")]
        said = "~".join(names)
    known = codec_of_names(str(said).split("~"))
    if known is None:
        raise MessageError(f"hl7.format: the charset {said!r:.60} is not known; set MSH-18 to UNICODE UTF-8")
    return known


def first_value(value: Any) -> Any:
    """The first value of a field or of a part of it."""
    while isinstance(value, list):
        value = value[0] if value else None
    return value


def _line(how: Er7, segment: Any, terminator: str) -> str:
    name = segment[0] if isinstance(segment, list) and segment else None
    if not isinstance(name, str) or how.field in name or "\r" in name or terminator in name:
        raise MessageError(f'hl7.format: a segment is {segment!r:.60}, expected a list such as ["PID", null, …]')
    parts = [name]
    first = 1
    if name in HEADERS and len(segment) > 1:
        signs = first_value(segment[2]) if len(segment) > 2 else how.delimiters[1:]
        signs = "" if signs is None else str(signs)
        if not how.delimiters.startswith(how.field + signs[:5]):
            raise MessageError(
                f"hl7.format: {name}-2 is {signs!r} and delimiters is {how.delimiters!r}; write the same signs in both"
            )
        parts.append(signs)
        first = 3
    marks = (how.repetition, how.component, how.subcomponent)
    for number, value in enumerate(segment[first:], first):
        try:
            parts.append("" if value is None else _joined(how, value, marks))
        except (TypeError, ValueError) as error:
            raise MessageError(f"hl7.format: {name}-{number}: {error}") from None
    line = how.field.join(parts)
    if terminator in line:
        raise MessageError(f"hl7.format: {name} holds a line end, which only escaped text can: write text, not raw")
    return line


def _joined(how: Er7, value: Any, marks: tuple[str, ...]) -> str:
    if isinstance(value, str):
        return value if value.isalnum() else how.escape(value)
    if value is None:
        return ""
    if isinstance(value, list) and marks:
        if len(value) == 1:
            return _joined(how, value[0], marks[1:])
        return marks[0].join([_joined(how, one, marks[1:]) for one in value])
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return how.escape(str(value))
    if isinstance(value, dict) and isinstance(value.get("raw"), str) and len(value) == 1:
        raw: str = value["raw"]
        if any(sign in raw for sign in (how.field, how.repetition, how.component, how.subcomponent, "\r")):
            raise ValueError(f"raw is {raw!r:.60}, expected a value whose delimiters are escaped")
        return raw
    raise TypeError(f"found {value!r:.60}, expected text, null or lists [repetition][component][subcomponent]")
