"""JSON, RFC 8259: numbers with a point are exact decimals, integers are exact at any length, UTF-8 only."""

from __future__ import annotations

import re
from decimal import Context, Decimal, DecimalException, Inexact, InvalidOperation, Overflow, Subnormal, Underflow
from functools import lru_cache
from math import isfinite
from typing import Any, ClassVar, Literal, NoReturn

import msgspec
from pydantic import Field

from gateway import Limits, MessageError, Settings, Tree

_ENCODER = msgspec.json.Encoder(decimal_format="number")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NOT_MARKS = bytes(set(range(256)) - set(b"{[:"))
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'{}[]"'))
_NUMERIC = b"0123456789+-.eE"
_WHERE = re.compile(r"(?:JSON is malformed: )?(.*?)(?: \(byte (\d+)\))?")
_HALF_PAIR = re.compile(rb"(?<!\\)(?:\\\\)*(\\u[dD][89abAB][0-9a-fA-F]{2})(?!\\u[dD][c-fC-F])")


class Format(Settings):
    """JSON. Broken UTF-8, NaN, Infinity, and what is over `limits` are refused."""

    content_types: ClassVar[tuple[str, ...]] = ("application/json", "text/json")

    indent: int = Field(0, ge=0, le=8, description="spaces per level when writing; 0: everything on one line")
    duplicates: Literal["refuse", "last"] = Field(
        "refuse",
        description="a name that comes twice in one object: refuse the body, or let the last one win. "
        "Two readers may choose differently, so what `validate` saw need not be what the target sees",
    )

    def parse(self, body: bytes, content_type: str, limits: Limits) -> Tree:
        if ";" in content_type:
            _check_charset(content_type)
        if body.startswith(b"\xef\xbb\xbf"):
            body = body[3:]
        marks = body.translate(None, _NOT_MARKS)
        if len(marks) > limits.json_depth and len(marks) - marks.count(b":") > limits.json_depth:
            _check_depth(body, limits.json_depth)
        if len(body) > limits.json_digits:
            _check_digits(body, limits.json_digits)
        if len(body) > limits.json_string:
            _check_strings(body, limits.json_string)
        try:
            tree: Tree = _decoder(limits.json_digits).decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, DecimalException) as error:
            _refuse(error, body, limits)
        if len(marks) > 2 and self.duplicates == "refuse":
            _check_duplicates(body, tree, marks)
        return tree

    def format(self, tree: Tree) -> bytes:
        try:
            written = _ENCODER.encode(tree)
        except UnicodeEncodeError:
            raise MessageError("json: a text holds half of a surrogate pair, which UTF-8 can't carry") from None
        except RecursionError:
            raise MessageError("json: the tree is nested too deeply to be written") from None
        except (TypeError, ValueError, OverflowError) as error:
            raise MessageError(f"json: the tree can't be written: {error}") from error
        if b"null" in written or b"N" in written or b"I" in written:
            _check_finite(tree, "body")
        return msgspec.json.format(written, indent=self.indent) if self.indent else written


@lru_cache(maxsize=64)
def _decoder(digits: int) -> msgspec.json.Decoder[Any]:
    # A context's create_decimal is as fast as Decimal and bounds the exponent: 1e999999999 costs nothing to read and
    # a gigabyte to print.
    context = Context(
        prec=digits,
        Emax=digits,
        Emin=-digits,
        traps=[Inexact, InvalidOperation, Overflow, Underflow, Subnormal],
    )
    return msgspec.json.Decoder(float_hook=context.create_decimal)


def _check_charset(content_type: str) -> None:
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        charset = value.strip().strip('"').lower()
        if name.strip().lower() == "charset" and charset not in ("utf-8", "utf8", "us-ascii", ""):
            raise MessageError(
                f"json: charset is {charset!r:.40}; JSON is UTF-8 (RFC 8259 section 8.1): send it so",
                code="unsupported",
            )


def _check_depth(body: bytes, limit: int) -> None:
    """Exact on well-formed JSON: brackets in strings don't count."""
    if b"\\" in body:
        body = _STRING.sub(b"", body)
    structure = body.translate(None, _NOT_STRUCTURE)
    # Removing two neighbouring quotes removes an empty string or joins two: what is outside of strings stays outside.
    structure = structure.replace(b'""', b"")
    if b'"' in structure:
        structure = _STRING.sub(b"", body).translate(None, _NOT_STRUCTURE)
    for _ in range(limit):
        before = len(structure)
        structure = structure.replace(b"{}", b"").replace(b"[]", b"")
        if len(structure) == before:
            break
    if b"{" in structure or b"[" in structure:
        raise _too_deep(limit)


def _too_deep(limit: int) -> MessageError:
    return MessageError(f"json: nested more than {limit} deep (limits.json_depth)", code="malformed")


def _check_digits(body: bytes, limit: int) -> None:
    """A number of more than `limit` characters covers one of every `limit + 1`: look there, and around."""
    for at in range(limit, len(body), limit + 1):
        if body[at] in _NUMERIC:
            before = body[at - limit : at]
            after = body[at : at + limit + 1]
            run = len(before) - len(before.rstrip(_NUMERIC)) + len(after) - len(after.lstrip(_NUMERIC))
            if run > limit:
                _check_digits_exactly(body, limit)
                return


def _check_digits_exactly(body: bytes, limit: int) -> None:
    for number in re.finditer(rb"[0-9+\-.eE]{%d,}" % (limit + 1), _STRING.sub(b" ", body)):
        if sum(number[0].count(digit) for digit in (b"%d" % value for value in range(10))) > limit:
            raise _too_many_digits(limit)


def _too_many_digits(limit: int) -> MessageError:
    return MessageError(f"json: a number needs more than {limit} digits (limits.json_digits)", code="malformed")


def _check_strings(body: bytes, limit: int) -> None:
    for string in _STRING.finditer(body):
        if string.end() - string.start() - 2 > limit:
            raise MessageError(
                f"json: a string is longer than {limit} bytes (limits.json_string), {_place(body, string.start())}",
                code="malformed",
            )


def _check_duplicates(body: bytes, tree: Tree, marks: bytes) -> None:
    """Writes the tree again: most bodies come out as they were. Else only a member that was dropped makes colons fewer.

    Colons in strings count on both sides, unless they came as an escape: then the names are looked at one by one.
    """
    try:
        written = _ENCODER.encode(tree)
    except (RecursionError, ValueError, TypeError):
        _decode_pairs(body)
        return
    if written != body and (b"\\u00" in body or written.count(b":") != marks.count(b":")):
        _decode_pairs(body)


def _decode_pairs(body: bytes) -> None:
    import json  # the slow reader that sees each pair; most processes never need it

    def pairs(found: list[tuple[str, Any]]) -> None:
        names: set[str] = set()
        for name, _ in found:
            if name in names:
                raise MessageError(
                    f"json: the name {name!r:.60} comes twice in one object; send it once", code="malformed"
                )
            names.add(name)

    json.loads(body, object_pairs_hook=pairs, parse_int=len, parse_float=len)


def _refuse(error: Exception, body: bytes, limits: Limits) -> NoReturn:
    if isinstance(error, RecursionError):
        raise _too_deep(limits.json_depth) from None
    if isinstance(error, DecimalException) or "out of range" in str(error):
        raise _too_many_digits(limits.json_digits) from None
    if isinstance(error, UnicodeDecodeError):
        try:
            body.decode()
        except UnicodeDecodeError as whole:
            found = f"byte 0x{body[whole.start]:02x} is not UTF-8"
            raise MessageError(f"json: malformed {_place(body, whole.start)}: {found}", code="malformed") from None
    if not body.strip():
        raise MessageError("json: the body is empty; expected a JSON value", code="malformed") from None
    text = str(error)
    if "truncated" in text:
        # msgspec also says so of a string that ends in half a surrogate pair
        half = _HALF_PAIR.search(body)
        if half is not None and half.end() < len(body):
            text = f"half a surrogate pair, which is no character (byte {half.start(1)})"
        else:
            text = f"the text ends too early (byte {len(body)})"
    found_at = _WHERE.fullmatch(text)
    assert found_at is not None
    place = f" {_place(body, int(found_at[2]))}" if found_at[2] else ""
    raise MessageError(f"json: malformed{place}: {found_at[1]}", code="malformed") from None


def _place(body: bytes, at: int) -> str:
    """Line and column of a byte, both from 1."""
    line = body.count(b"\n", 0, at) + 1
    column = at - (body.rfind(b"\n", 0, at) + 1) + 1
    return f"at line {line} column {column}"


def _check_finite(tree: Tree, path: str) -> None:
    if isinstance(tree, dict):
        for key, value in tree.items():
            _check_finite(value, f"{path}.{key}")
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            _check_finite(value, f"{path}[{index}]")
    elif (isinstance(tree, float) and not isfinite(tree)) or (isinstance(tree, Decimal) and not tree.is_finite()):
        raise MessageError(f"json: {path} is {tree}, which JSON can't carry")
