"""`format: {xml: {root: Order}}`: the body is written in this format."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from pydantic import Field

from gateway import FormatField, Message, Settings


class Step(Settings):
    """Writes the body's tree as bytes of a format; the content type becomes that format's.

    A later step that reads the body parses those bytes.
    """

    nameless: ClassVar[str] = "format"

    format: FormatField = Field(description="the format, with its settings: `json`, or `xml: {root: Order}`")

    def __call__(self, message: Message) -> Message:
        return message.with_body(self.format.format(message.tree), self._content_type)

    @cached_property
    def _content_type(self) -> str:
        content_type = self.format.content_types[0]
        charset = getattr(self.format, "charset", None)  # of formats whose bytes don't say it themselves
        return content_type if charset is None else f"{content_type}; charset={charset}"
