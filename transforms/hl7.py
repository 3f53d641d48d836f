r"""HL7 v2 in ER7 encoding, `MSH|^~\&|…`: lossless tree and back, and two filters for expressions.

    steps:
      - map: {patient: "{{ body | hl7('PID-3.1') }}", results: "{{ body | hl7('OBX[*]-5') }}"}

The tree, `{"delimiters": "|^~\\&", "segments": [["PID", null, …], …]}`, each field as
[repetition][component][subcomponent], null where nothing stands, keeps all that came, byte for byte, but for blanks
and NUL before the first segment, and line ends that are CR LF among others that are CR. The filters:

`hl7(path)` reads as engineers say it, counting from 1: `PID-3`, `PID-3[2].4.1`, `OBX[3]-5`, `ZPI-3`. An occurrence,
repetition, component or subcomponent that is not said is the first, as the standard has it for fields that grew
parts later. What is absent is None, so `| default('', true)` works; `""` (delete) is that text. With `[*]` it is a
list: `OBX[*]-5` of all such segments (None where one has no such value), `PID-3[*].1` of all repetitions.

`hl7_time` turns a time such as `20240131093000+0100` into RFC 3339 text, as exact as it was: `2024-01-31`. Without an
offset it stays local time, unless `hl7_time('Europe/Berlin')` says whose.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator

from gateway import Limits, MessageError, Settings, Tree
from transforms._hl7 import STANDARD, Er7, codec, delimiters_of, er7
from transforms._hl7_tree import charset_of, format_er7, parse_er7


class Format(Settings):
    """HL7 v2 messages (ER7), as a lossless tree."""

    content_types: ClassVar[tuple[str, ...]] = ("application/hl7-v2", "x-application/hl7-v2+er7")

    charset: str | None = Field(
        None,
        description="what the bytes are, named as in HL7 table 0211 or by its usual name, whatever the content type "
        "and MSH-18 say; default: the content type's charset, else MSH-18, else UTF-8",
    )

    @field_validator("charset")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        if name is not None and codec(name) is None:
            raise ValueError(f'expected a charset such as 8859/1, UNICODE UTF-8 or windows-1252, got "{name}"')
        return name

    def parse(self, body: bytes, content_type: str, limits: Limits) -> Tree:
        """The lossless tree of a message, or of a batch whose messages have the same delimiters.

        Raises:
            MessageError: code "malformed": it does not begin with a header, or its bytes are not of its charset.
        """
        del limits  # its depth is fixed, and its size is that of the message
        return parse_er7(body, (codec(self.charset) if self.charset else None) or _charset_parameter(content_type))

    def format(self, tree: Tree) -> bytes:
        """The message that this tree is. A field may be written as one text, for its only value.

        Raises:
            MessageError: it is not such a tree, or its charset has no sign for some character.
        """
        return format_er7(tree, codec(self.charset) if self.charset else None)


@lru_cache(64)
def _charset_parameter(content_type: str) -> str | None:
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            known = codec(value.strip().strip('"'))
            if known is None:
                raise MessageError(
                    f"hl7: the content type's charset {value.strip()[:40]!r} is not known; expected one such as utf-8",
                    code="malformed",
                )
            return known
    return None


class Path(NamedTuple):
    """A place in a message. Numbers count from 1; None: all (`[*]`)."""

    segment: str
    occurrence: int | None
    field: int
    repetition: int | None
    component: int
    subcomponent: int


_PATH = re.compile(
    r"([A-Z][A-Z0-9]{2})(?:\[(\*|[1-9]\d{0,5})\])?-([1-9]\d{0,3})(?:\[(\*|[1-9]\d{0,5})\])?"
    r"(?:\.([1-9]\d{0,3}))?(?:\.([1-9]\d{0,3}))?"
)


@lru_cache(1024)
def path(text: str) -> Path:
    """The place that a text such as `PID-3[1].1.2` or `OBX[*]-5` names.

    Raises:
        MessageError: it is not such a text.
    """
    found = _PATH.fullmatch(text)
    if found is None:
        raise MessageError(
            f"hl7: the path is {text!r:.60}, expected a segment, a field and perhaps parts of it, "
            "counted from 1, such as PID-3, PID-3[2].4.1, OBX[*]-5 or ZPI-3"
        )
    occurrence, repetition = (None if part == "*" else int(part or 1) for part in (found[2], found[4]))
    return Path(found[1], occurrence, int(found[3]), repetition, int(found[5] or 1), int(found[6] or 1))


def hl7(tree: Tree, where: str) -> str | list[str | None] | None:
    """The text at a path of a message's tree; None: absent. With `[*]`, the texts of all places, absent ones as None.

    Raises:
        MessageError: this is not the tree of an HL7 message, or not a path.
    """
    place = path(where) if isinstance(where, str) else path(repr(where))
    segments = tree.get("segments") if isinstance(tree, dict) else None
    if not isinstance(tree, dict) or not isinstance(segments, list):
        raise MessageError(
            f"hl7: {where} is looked for in {type(tree).__name__}, expected the tree of an HL7 message; "
            "is the content type application/hl7-v2?"
        )
    name, occurrence = place.segment, place.occurrence
    named = [segment for segment in segments if isinstance(segment, list) and segment[:1] == [name]]
    if occurrence is not None:
        if occurrence <= len(named):
            return _in_segment(tree, named[occurrence - 1], place)
        return None if place.repetition is not None else []
    found: list[str | None] = []
    for segment in named:
        value = _in_segment(tree, segment, place)
        found += value if isinstance(value, list) else [value]
    return found


def _in_segment(tree: dict[str, Any], segment: list[Any], place: Path) -> str | list[str | None] | None:
    field = segment[place.field] if place.field < len(segment) else None
    if not isinstance(field, list):
        field = [] if field is None else [field]
    if place.repetition is None:
        return [_value(tree, repetition, place) for repetition in field]
    return _value(tree, field[place.repetition - 1], place) if place.repetition <= len(field) else None


def _value(tree: dict[str, Any], value: Any, place: Path) -> str | None:
    for number in (place.component, place.subcomponent):
        if isinstance(value, list):
            value = value[number - 1] if number <= len(value) else None
        elif number > 1:
            return None
    if value is None or isinstance(value, str):
        return value
    return _escaping(tree).unescape(str(value.get("raw", ""))) if isinstance(value, dict) else str(value)


def _escaping(tree: dict[str, Any]) -> Er7:
    return er7(delimiters_of(f"MSH{tree.get('delimiters', STANDARD)}"), charset_of(tree))


_TIME = re.compile(
    r"(\d{4})(?:(\d\d)(?:(\d\d)(?:(\d\d)(?:(\d\d)(?:(\d\d)(?:\.(\d{1,9}))?)?)?)?)?)?(?:([+-])(\d\d)(\d\d))?"
)


def hl7_time(value: Any, zone: str | None = None) -> str | None:
    """A time of HL7 (DTM, TS: `YYYY[MM[DD[HH[MM[SS[.S…]]]]]][+ZZZZ]`) as RFC 3339 text, as exact as it was.

    A year, a month or a day stays one: `2024`, `2024-01`, `2024-01-31`. Without an offset the time is local, and
    stays so (`2024-01-31T09:30:00`) unless `zone` says where: an IANA name, or an offset such as `+01:00`. None, an
    empty text and `""` (delete) give None.

    Raises:
        MessageError: this is no such time, or no such zone.
    """
    text = "" if value is None else str(value).strip()
    if text in ("", '""'):
        return None
    found = _TIME.fullmatch(text)
    try:
        if found is None:
            raise ValueError("it is of another form")
        year, month, day, hour, minute, second, fraction, sign, hours, minutes = found.groups()
        moment = datetime(int(year), int(month or 1), int(day or 1), int(hour or 0), int(minute or 0), int(second or 0))
        if hour is None:
            return "-".join(part for part in (year, month, day) if part)
        offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
        where = timezone(-offset if sign == "-" else offset) if sign else _zone(zone)
        written = moment.replace(tzinfo=where).isoformat()
    except ValueError as error:
        raise MessageError(
            f"hl7_time: found {text!r:.40} ({error}), expected a time such as 20240131 or 20240131093000+0100"
        ) from None
    whole = written[:19] + (f".{fraction}" if fraction else "") + written[19:]
    return whole.removesuffix("+00:00") + "Z" if whole.endswith("+00:00") else whole


@lru_cache(64)
def _zone(name: str | None) -> tzinfo | None:
    if name is None:
        return None
    try:
        if name[:1] in "+-Z":
            return datetime.fromisoformat(f"2000-01-01T00:00:00{name}").tzinfo
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise MessageError(
            f"hl7_time: the zone is {name!r:.40}, expected one such as Europe/Berlin, +01:00 or Z"
        ) from None


filters: dict[str, Callable[..., Any]] = {"hl7": hl7, "hl7_time": hl7_time}
"""What `body | hl7('PID-3.1')` calls."""
