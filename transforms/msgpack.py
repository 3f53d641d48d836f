"""MessagePack: like JSON in kind, in binary. Bytes become base64 text, timestamps RFC 3339 text."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar, Literal

import msgspec
from pydantic import Field

from gateway import Limits, MessageError, Settings, Tree

_DECODER = msgspec.msgpack.Decoder()


class Format(Settings):
    """MessagePack. Keys that are no text, and extension types other than timestamps, are refused."""

    content_types: ClassVar[tuple[str, ...]] = (
        "application/msgpack",
        "application/vnd.msgpack",
        "application/x-msgpack",
    )

    decimals: Literal["float", "text"] = Field(
        "float",
        description="how an exact decimal (a JSON number with a point) is written: as a 64-bit float, where a number "
        "that has more digits than a float holds is refused, or as text",
    )

    def parse(self, body: bytes, content_type: str, limits: Limits) -> Tree:
        try:
            tree = _DECODER.decode(body)
        except RecursionError:
            raise _too_deep(limits.json_depth) from None
        except UnicodeDecodeError:
            raise MessageError("msgpack: a text is not UTF-8", code="malformed") from None
        except (msgspec.MsgspecError, ValueError, OverflowError) as error:
            raise MessageError(f"msgpack: {error!s:.120}", code="malformed") from None
        plain: Tree = _plain(tree, "body", 0, limits.json_depth)
        return plain

    def format(self, tree: Tree) -> bytes:
        try:
            return msgspec.msgpack.encode(self._writable(tree, "body"))
        except OverflowError:
            raise MessageError("msgpack: an integer needs more than 64 bits, which MessagePack can't carry") from None
        except RecursionError:
            raise MessageError("msgpack: the tree is nested too deeply to be written") from None
        except UnicodeEncodeError:
            raise MessageError("msgpack: a text holds half of a surrogate pair, which UTF-8 can't carry") from None
        except (TypeError, ValueError) as error:
            raise MessageError(f"msgpack: the tree can't be written: {error}") from error

    def _writable(self, tree: Any, path: str) -> Any:
        if isinstance(tree, dict):
            return {key: self._writable(value, f"{path}.{key}") for key, value in tree.items()}
        if isinstance(tree, list):
            return [self._writable(value, path) for value in tree]
        if isinstance(tree, Decimal):
            if self.decimals == "text":
                return str(tree)
            number = float(tree)
            if Decimal(repr(number)) != tree:
                raise MessageError(f"msgpack: {path} has more digits than a float holds; say decimals: text")
            return number
        return tree


def _plain(value: Any, path: str, depth: int, limit: int) -> Any:
    """The same as JSON-shaped data, at most `limit` levels deep."""
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, bytes):
        return b64encode(value).decode("ascii")
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if depth == limit and isinstance(value, dict | list):
        raise _too_deep(limit)
    if isinstance(value, list):
        return [_plain(item, path, depth + 1, limit) for item in value]
    if not isinstance(value, dict):
        raise MessageError(f"msgpack: {path:.100} has an extension type, which no tree can hold", code="malformed")
    for key in value:
        if not isinstance(key, str):
            raise MessageError(
                f"msgpack: {path:.100} has a key of type {type(key).__name__}, expected text", code="malformed"
            )
    return {key: _plain(item, f"{path}.{key}", depth + 1, limit) for key, item in value.items()}


def _too_deep(limit: int) -> MessageError:
    return MessageError(f"msgpack: nested more than {limit} deep (limits.json_depth)", code="malformed")
