"""The `framing:` setting: `framing: line`, or `framing: {length: {bytes: 2, order: big}}`."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from adapters import _frames
from adapters._frames import Framer
from adapters._frames_fix import Fix
from adapters._frames_mllp import Mllp
from gateway import Settings

_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|.?)", re.DOTALL)
_ESCAPED = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}
_UNESCAPED = {value[0]: f"\\{sign}" for sign, value in _ESCAPED.items()}


def _marker(text: object) -> bytes:
    """The bytes of a text such as `|`, `\\r` or `\\x03`."""
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str) or not text or not text.isascii():
        raise ValueError(
            f"expected one or more bytes as ASCII text such as '|', '\\r' or '\\x03', got {text!r}; "
            "write others as '\\xHH' in single quotes"
        )
    found = bytearray()
    at = 0
    for escape in _ESCAPE.finditer(text):
        found += text[at : escape.start()].encode()
        what = escape[1]
        if what.startswith("x") and len(what) == 3:
            found.append(int(what[1:], 16))
        elif what in _ESCAPED:
            found += _ESCAPED[what]
        else:
            raise ValueError(f"no such escape: {escape[0]!r}; there are \\r \\n \\t \\0 \\\\ and \\xHH")
        at = escape.end()
    return bytes(found + text[at:].encode())


def _shown(marker: bytes) -> str:
    return "".join(_UNESCAPED.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}") for byte in marker)


Marker = Annotated[
    bytes,
    PlainValidator(_marker),
    PlainSerializer(_shown, return_type=str),
    WithJsonSchema({"type": "string", "minLength": 1, "examples": ["\\r", "\\x03"]}),
]
"""Bytes that mark where a frame starts or ends, as text with the escapes \\r \\n \\t \\0 \\\\ \\xHH."""


class LineFraming(Settings):
    """Lines: LF and CR LF both end one; a body can't contain a line feed."""

    ending: Literal["lf", "crlf"] = Field("lf", description="what is written after each line")

    def framer(self, max_frame_bytes: int) -> Framer:
        return _frames.Line(b"\n" if self.ending == "lf" else b"\r\n", max_frame_bytes=max_frame_bytes)


class DelimiterFraming(Settings):
    """Bodies that end with a delimiter, which they can't contain."""

    end: Marker = Field(description="the bytes after each body, such as '\\r' or '\\x03'")

    def framer(self, max_frame_bytes: int) -> Framer:
        return _frames.Delimited(self.end, max_frame_bytes=max_frame_bytes)


class LengthFraming(Settings):
    """Bodies after their length, as a binary number of `bytes` bytes or as `digits` decimal digits."""

    bytes: Literal[1, 2, 4] | None = Field(None, description="width of a binary length; 4 unless `digits` is given")
    order: Literal["big", "little"] = Field("big", description="byte order of a binary length")
    digits: int | None = Field(None, ge=1, le=10, description="width of a length in decimal digits, such as 0042")
    includes_itself: bool = Field(default=False, description="whether the length counts its own bytes, too")

    @model_validator(mode="after")
    def _is_one_kind(self) -> LengthFraming:
        if self.digits is not None and (self.bytes is not None or "order" in self.model_fields_set):
            raise ValueError("expected either `digits` or `bytes` with `order`, got both; remove one")
        return self

    def framer(self, max_frame_bytes: int) -> Framer:
        return _frames.LengthPrefixed(
            self.digits or self.bytes or 4,
            self.order,
            digits=self.digits is not None,
            includes_itself=self.includes_itself,
            max_frame_bytes=max_frame_bytes,
        )


class StxEtxFraming(Settings):
    """Bodies between a start and an end, which they can't contain; what is outside is skipped.

    A body that another start cuts is skipped, too, logged and counted as dropped.
    """

    start: Marker = Field(b"\x02", description="the bytes before each body")
    end: Marker = Field(b"\x03", description="the bytes after each body")

    @model_validator(mode="after")
    def _differ(self) -> StxEtxFraming:
        if self.start.startswith(self.end) or self.end.startswith(self.start):
            raise ValueError("expected a start and an end that differ; choose delimiter where there is only an end")
        return self

    def framer(self, max_frame_bytes: int) -> Framer:
        return _frames.Enclosed(self.start, self.end, max_frame_bytes=max_frame_bytes)


class FixedFraming(Settings):
    """Bodies that all have the same number of bytes."""

    bytes: int = Field(ge=1, le=64 * 1024**2, description="bytes of each body")

    def framer(self, max_frame_bytes: int) -> Framer:
        return _frames.Fixed(self.bytes)


class RawFraming(Settings):
    """No framing: what one read gives, wherever the network cuts it, or all that one connection sends."""

    until: Literal["read", "close"] = Field("read", description="close: one body a connection, whole at its end")

    def framer(self, max_frame_bytes: int) -> Framer:
        return _frames.Raw(whole=self.until == "close", max_frame_bytes=max_frame_bytes)


class MllpFraming(Settings):
    """HL7's lower layer: 0B, body, 1C 0D. Without acknowledgements: those are what `mllp` does."""

    def framer(self, max_frame_bytes: int) -> Framer:
        return Mllp(max_frame_bytes=max_frame_bytes)


class FixFraming(Settings):
    """Whole FIX messages, from `8=` to their checksum; garbled ones are skipped, logged and counted as dropped."""

    def framer(self, max_frame_bytes: int) -> Framer:
        return Fix(max_frame_bytes=max_frame_bytes)


AnyFraming = (
    LineFraming
    | DelimiterFraming
    | LengthFraming
    | StxEtxFraming
    | FixedFraming
    | RawFraming
    | MllpFraming
    | FixFraming
)
_CLASSES: dict[str, type[AnyFraming]] = {
    "line": LineFraming,
    "delimiter": DelimiterFraming,
    "length": LengthFraming,
    "stx_etx": StxEtxFraming,
    "fixed": FixedFraming,
    "raw": RawFraming,
    "mllp": MllpFraming,
    "fix": FixFraming,
}
_NAMES: dict[type[AnyFraming], str] = {found: name for name, found in _CLASSES.items()}


def _framing(value: Any, info: ValidationInfo) -> AnyFraming:
    if isinstance(value, AnyFraming):
        return value
    settings: Any = {}
    if isinstance(value, str):
        name = value
    elif isinstance(value, dict) and len(value) == 1:
        ((name, settings),) = value.items()
    else:
        raise ValueError(f"expected a framing such as line or {{length: {{bytes: 2}}}}, got {value!r}")
    found = _CLASSES.get(name)
    if found is None:
        near = get_close_matches(str(name), _CLASSES, 1)
        hint = f'did you mean "{near[0]}"?' if near else f"there are: {', '.join(_CLASSES)}"
        raise ValueError(f'no framing is called "{name}"; {hint}')
    try:
        return found.model_validate({} if settings is None else settings, context=info.context)
    except ValidationError as error:
        raise _at(name, error) from error


def _at(name: str, error: ValidationError) -> ValidationError:
    """The same complaints, each one place deeper: at `framing.length.bytes` rather than at `framing.bytes`."""
    return ValidationError.from_exception_data(
        error.title,
        [
            InitErrorDetails(
                type=PydanticCustomError("value_error", "{text}", {"text": found["msg"], "of": found["type"]})
                if found["type"] == "value_error"
                else found["type"],
                loc=(name, *found["loc"]),
                input=found["input"],
                ctx=found.get("ctx", {}),
            )
            for found in error.errors()
        ],
    )


def _written(framing: AnyFraming) -> Any:
    settings = framing.model_dump(mode="json", exclude_defaults=True)
    name = _NAMES[type(framing)]
    return {name: settings} if settings else name


class _Choice:
    """How pydantic describes a framing: its name where it needs no settings, or its name with its settings."""

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        needy = {name for name, kind in _CLASSES.items() if any(f.is_required() for f in kind.model_fields.values())}
        named = {name: handler(kind.__pydantic_core_schema__) for name, kind in _CLASSES.items()}
        mapping = {"type": "object", "properties": named, "additionalProperties": False}
        bare = [name for name in _CLASSES if name not in needy]
        return {"anyOf": [{"enum": bare}, {**mapping, "minProperties": 1, "maxProperties": 1}]}


Framing = Annotated[AnyFraming, PlainValidator(_framing), PlainSerializer(_written), _Choice()]
"""The field type of `framing:`: a name, or a name with its settings. `value.framer(max_frame_bytes)` makes a framer."""
