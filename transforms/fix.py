r"""FIX messages in tag=value encoding: a mapping of tags to texts and back, and filters for expressions.

    steps:
      - map: {symbol: "{{ body | fix(55) }}", at: "{{ body | fix(52) | fix_time }}"}

The tree, `{"8": "FIX.4.4", "35": "D", "55": "MSFT", …}`, has all fields in their order, but for BodyLength (9),
CheckSum (10) and the lengths of data fields, which are put in when it is written. A group that `groups` names is a
list of mappings; a tag of any other that comes more than once has the list of its values, and can't be written. Data
(96, 355 and their like) may hold any byte: what is no text is `{"base64": …}`.

Messages are one by one: a session (logon, sequence numbers, resends) is not kept. The filters:

`fix(tag)` is what a tag has: a text, a list, or None where the message has no such tag.

`fix_time` turns `20260131-09:30:00.123` into RFC 3339 text, and `fix_timestamp` RFC 3339 text into that, in UTC.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import Field as Described
from pydantic import field_validator

from gateway import Limits, MessageError, Settings, Tree
from transforms._charset import Charset, encoded
from transforms._fix import LENGTHS, Field, field, read, write

Tag = Annotated[int, Described(ge=1, lt=1_000_000_000)]
Count = Annotated[str, Described(pattern="^[1-9][0-9]{0,8}$")]
"""The tag that has the number of entries, as a key."""
_COMPUTED = ("9", "10", *LENGTHS.values())


class Format(Settings):
    """FIX messages, as a mapping of tags to texts."""

    content_types: ClassVar[tuple[str, ...]] = ("application/x-fix",)

    groups: dict[Count, tuple[Tag, ...]] = Described(
        {},
        description="repeating groups: by the tag of their number of entries, the tags of an entry, the one that "
        'begins it first: `{"453": [448, 447, 452]}`; a group in another is one of its tags, and named by itself, too',
    )
    charset: Charset = Described("utf-8", description="what the texts of fields are")
    verify: bool = Described(
        default=True,
        description="whether BodyLength, CheckSum and the order of 8, 9, 35 and 10 have to be right when it is read",
    )

    @field_validator("groups")
    @classmethod
    def _are_groups(cls, groups: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        for tag, members in groups.items():
            if not members or len(set(members)) != len(members):
                raise ValueError(f"{tag}: expected the tags of an entry, each once")
            if str(members[0]) in groups:
                raise ValueError(f"{tag}: its first tag, {members[0]}, begins each entry, and can't be a group")
            if _within(tag, tag, groups, set()):
                raise ValueError(f"{tag}: the group would be within itself")
        return groups

    def parse(self, body: bytes, content_type: str, limits: Limits) -> Tree:
        """The mapping of one message.

        Raises:
            MessageError: code "malformed": it is no FIX message, a number of its verification is wrong, or a group is
                not as `groups` says.
        """
        del content_type, limits  # its depth is that of `groups`, and its size that of the message
        fields = _Fields(read(body, verify=self.verify), self._groups)
        tree: dict[str, Any] = {}
        for tag, value in fields.entry(None):
            if tag not in tree:
                tree[tag] = value
            elif isinstance(tree[tag], list) and tag not in self._groups:
                tree[tag].append(value)
            elif tag in self._groups:
                raise MessageError(f"fix: the group {tag} comes twice", code="malformed")
            else:
                tree[tag] = [tree[tag], value]
        return {tag: self._read(tag, value) for tag, value in tree.items()}

    @cached_property
    def _groups(self) -> dict[str, tuple[str, ...]]:
        return {tag: tuple(map(str, members)) for tag, members in self.groups.items()}

    def _read(self, tag: str, value: Any) -> Any:
        if isinstance(value, list):
            return [self._read(tag, one) for one in value]
        if isinstance(value, dict):
            return {inner: self._read(inner, one) for inner, one in value.items()}
        try:
            return value.decode(self.charset)
        except UnicodeDecodeError as error:
            if tag in LENGTHS:
                return {"base64": base64.b64encode(value).decode()}
            raise MessageError(
                f"fix: tag {tag}: byte 0x{value[error.start]:02x} is not {self.charset}; set charset: to what is sent, "
                "such as iso-8859-1",
                code="malformed",
            ) from None

    def format(self, tree: Tree) -> bytes:
        """The message of a mapping, with its BodyLength, CheckSum and the lengths of data, whatever the mapping says.

        The header comes first and the trailer last. Null leaves a field out; true and false are Y and N.

        Raises:
            MessageError: it is no such mapping, or a value can't be said in FIX.
        """
        if not isinstance(tree, dict):
            raise MessageError("fix: expected a mapping of tags to values, such as {'35': 'D'}; make one with map:")
        parts = dict(self._parts(tree, ""))
        for tag, name in (("8", "BeginString, such as FIX.4.4"), ("35", "MsgType, such as D")):
            if tag not in parts:
                raise MessageError(f"fix: tag {tag} is missing, expected the {name}")
        return write(parts.items())

    def _parts(self, entry: Mapping[Any, Any], group: str) -> Iterator[tuple[str, bytes]]:
        """By tag, what is written of a message, or of an entry of a group. group: where, for errors."""
        for key, value in entry.items():
            tag = str(key)
            if not (tag.isascii() and tag.isdigit()) or tag[0] == "0":
                raise MessageError(f"fix: {group}found the key {tag!r:.60}, expected a tag, such as 55")
            if value is None or tag in _COMPUTED:
                continue
            if tag in self._groups:
                yield tag, self._group(tag, value, group)
            else:
                yield tag, field(tag, self._written(tag, value, group))

    def _group(self, tag: str, value: Any, group: str) -> bytes:
        members = self._groups[tag]
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise MessageError(f"fix: {group}tag {tag} is a group, expected a list of mappings of tags to values")
        parts = [field(tag, b"%d" % len(value))]
        for number, entry in enumerate(value, 1):
            where = f"{group}group {tag}, entry {number}: "
            said = {str(key): one for key, one in entry.items() if one is not None}
            if members[0] not in said:
                raise MessageError(f"fix: {where}tag {members[0]}, which begins an entry, is missing")
            odd = next((one for one in said if one not in members and one not in _COMPUTED), None)
            if odd is not None:
                raise MessageError(f"fix: {where}found tag {odd:.60}, expected {', '.join(members)}")
            in_order = {one: said[one] for one in members if one in said}
            parts += [written for _, written in self._parts(in_order, where)]
        return b"".join(parts)

    def _written(self, tag: str, value: Any, group: str) -> bytes:
        if isinstance(value, dict) and tag in LENGTHS and list(value) == ["base64"]:
            try:
                return base64.b64decode(str(value["base64"]), validate=True)
            except (binascii.Error, ValueError):
                raise MessageError(f"fix: {group}tag {tag}: what base64 has is not in Base64") from None
        if isinstance(value, dict | list):
            raise MessageError(
                f"fix: {group}tag {tag} has {'several values' if isinstance(value, list) else 'a mapping'}, expected "
                "one; of a repeating group, name its tags in groups:"
            )
        text = _text(value)
        if not text or ("\x01" in text and tag not in LENGTHS):
            found = "the byte 01 in it" if text else "no value"
            raise MessageError(f"fix: {group}tag {tag} has {found}, which FIX can't say; null leaves a field out")
        return encoded(f"fix: {group}tag {tag}", text, self.charset)


class _Fields:
    """The fields of a message, taken one after the other."""

    def __init__(self, fields: list[Field], groups: Mapping[str, tuple[str, ...]]) -> None:
        self._fields = fields
        self._groups = groups
        self._at = 0

    def entry(self, members: tuple[str, ...] | None) -> Iterator[tuple[str, Any]]:
        """The fields of the next entry of a group with these members; None: of the message."""
        seen = set()
        while self._at < len(self._fields):
            tag, value = self._fields[self._at]
            if members is not None and (tag not in members or tag in seen):
                return
            seen.add(tag)
            self._at += 1
            yield tag, self._entries(tag, value) if tag in self._groups else value

    def _entries(self, tag: str, count: bytes) -> list[dict[str, Any]]:
        members = self._groups[tag]
        entries: list[dict[str, Any]] = []
        while self._at < len(self._fields) and self._fields[self._at][0] == members[0]:
            entries.append(dict(self.entry(members)))
        if count != b"%d" % len(entries):
            said = count[:20].decode("latin-1")
            raise MessageError(
                f"fix: tag {tag} says {said!r} entries, found {len(entries)} that begin with tag {members[0]}; "
                "are all their tags in groups?",
                code="malformed",
            )
        return entries


def _within(tag: str, group: str, groups: Mapping[str, tuple[int, ...]], seen: set[str]) -> bool:
    """Whether a tag is a member of a group, or of one in it."""
    if group in seen:
        return False
    seen.add(group)
    members = [str(member) for member in groups[group]]
    return tag in members or any(_within(tag, one, groups, seen) for one in members if one in groups)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "Y" if value else "N"
    if isinstance(value, float):
        value = Decimal(repr(value))
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def fix(tree: Tree, tag: int | str) -> Any:
    """What a tag of a message has: a text, the list of a group or of several values; None: it is not there.

    Raises:
        MessageError: this is not the tree of a FIX message.
    """
    if not isinstance(tree, dict):
        raise MessageError(
            f"fix: tag {tag!s:.20} is looked for in {type(tree).__name__}, expected the tree of a FIX message; "
            "is the content type application/x-fix?"
        )
    return tree.get(str(tag))


_TIME = re.compile(r"(\d{4})(\d\d)(\d\d)(?:-(\d\d:\d\d)(:\d\d(?:\.\d{1,12})?)?(Z|[+-]\d\d(?::?\d\d)?)?)?")


def fix_time(value: Any) -> str | None:
    """A UTCTimestamp, TZTimestamp or UTCDateOnly as RFC 3339 text, as exact as it was; None and an empty text: None.

    Raises:
        MessageError: this is no such time.
    """
    text = "" if value is None else str(value).strip()
    if not text:
        return None
    found = _TIME.fullmatch(text)
    try:
        if found is None:
            raise ValueError("it is of another form")
        year, month, day, clock, seconds, offset = found.groups()
        date, fraction = f"{year}-{month}-{day}", (seconds or ":00")[3:]
        datetime.fromisoformat(f"{date}T{clock or '00:00'}{(seconds or ':00')[:3]}")
    except ValueError as error:
        raise MessageError(
            f"fix_time: found {text!r:.40} ({error}), expected a time such as 20260131-09:30:00.123 or 20260131"
        ) from None
    if clock is None:
        return date
    if offset and offset != "Z":
        offset = f"{offset[:3]}:{offset[3:].lstrip(':') or '00'}"
    return f"{date}T{clock}{(seconds or ':00')[:3]}{fraction}{offset or 'Z'}"


def fix_timestamp(value: Any) -> str:
    """An RFC 3339 time as a UTCTimestamp: with milliseconds, or microseconds where it has some.

    Raises:
        MessageError: this is no such time, or one without an offset.
    """
    try:
        moment = datetime.fromisoformat(str(value))
        if moment.tzinfo is None:
            raise ValueError("it has no offset")
    except ValueError as error:
        raise MessageError(
            f"fix_timestamp: found {str(value)!r:.40} ({error!s:.60}), expected a time such as 2026-01-31T09:30:00.123Z"
        ) from None
    moment = moment.astimezone(UTC)
    exact = "microseconds" if moment.microsecond % 1000 else "milliseconds"
    date, clock = moment.replace(tzinfo=None).isoformat(timespec=exact).split("T")
    return f"{date.replace('-', '')}-{clock}"


filters: dict[str, Callable[..., Any]] = {"fix": fix, "fix_time": fix_time, "fix_timestamp": fix_timestamp}
"""What `body | fix(55)` calls."""
