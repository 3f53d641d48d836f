"""Web forms, `application/x-www-form-urlencoded`: a mapping of texts, a repeated name is a list.

Source: WHATWG URL standard, "application/x-www-form-urlencoded".
"""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlencode

from gateway import Limits, MessageError, Settings, Tree
from transforms._charset import scalar

_MAX_FIELDS = 10_000


class Format(Settings):
    """A web form in UTF-8, at most 10,000 fields. All values that are read are texts."""

    content_types: ClassVar[tuple[str, ...]] = ("application/x-www-form-urlencoded",)

    def parse(self, body: bytes, content_type: str, limits: Limits) -> Tree:
        if body.count(b"&") >= _MAX_FIELDS:
            raise MessageError(f"form: more than {_MAX_FIELDS} fields", code="malformed")
        try:
            pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, errors="strict")
        except UnicodeDecodeError:
            raise MessageError("form: a name or value is not UTF-8", code="malformed") from None
        tree: dict[str, Any] = {}
        for name, value in pairs:
            if name not in tree:
                tree[name] = value
            elif type(tree[name]) is list:
                tree[name].append(value)
            else:
                tree[name] = [tree[name], value]
        return tree

    def format(self, tree: Tree) -> bytes:
        if not isinstance(tree, dict):
            raise MessageError("form: expected a mapping of names to values; make one with map:")
        pairs = []
        for name, value in tree.items():
            for one in value if isinstance(value, list) else [value]:
                text = scalar(one)
                if text is None:
                    raise MessageError(f"form: {name} holds a mapping or a list in a list; a field is one text")
                pairs.append((name, text))
        try:
            return urlencode(pairs).encode("ascii")
        except UnicodeEncodeError:
            raise MessageError("form: a text holds half of a surrogate pair, which UTF-8 can't carry") from None
