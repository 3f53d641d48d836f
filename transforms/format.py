"""`format: {xml: {root: Order}}`: the body is written in this format."""

from __future__ import annotations

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
        content_type = self.format.content_types[0]
        charset = getattr(self.format, "charset", None)  # of formats whose bytes don't say it themselves
        if charset is not None:
            content_type += f"; charset={charset}"
        return message.with_body(self.format.format(message.tree), content_type)
