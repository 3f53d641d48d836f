"""`template: "…"`: the body becomes the text of a Jinja2 template."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from gateway import Message, Settings, Template

_PLAIN_TEXT = "text/plain; charset=utf-8"


class Step(Settings):
    """Makes the body a plain text in UTF-8. For another kind of text, say so next: `set: {content_type: text/html}`."""

    nameless: ClassVar[str] = "text"

    text: Template = Field(description="text with {{ expressions }}, such as `Order {{ body.id }} was placed`")

    def __call__(self, message: Message) -> Message:
        return message.with_tree(self.text.text_of(message), _PLAIN_TEXT)
