"""Plain text: the tree is one text."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from gateway import Limits, MessageError, Settings, Tree
from transforms._charset import Charset, decoded, encoded, scalar


class Format(Settings):
    """Text in the charset of the content type. A number or boolean is written as JSON would."""

    content_types: ClassVar[tuple[str, ...]] = ("text/plain",)

    charset: Charset = Field("utf-8", description="how to write, and how to read what does not say its charset")

    def parse(self, body: bytes, content_type: str, limits: Limits) -> Tree:
        return decoded("text", body, content_type, self.charset)

    def format(self, tree: Tree) -> bytes:
        text = scalar(tree)
        if text is None:
            kind = "mapping" if isinstance(tree, dict) else "list"
            raise MessageError(f"text: the tree is a {kind}, expected one text; make it one with template:")
        return encoded("text", text, self.charset)
