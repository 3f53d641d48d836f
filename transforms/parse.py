"""`parse: xml`: the body is read in this format, whatever its content type says."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from gateway import FormatField, Message, Settings


class Step(Settings):
    """Parses the body. Its bytes stay as they came until a step changes the tree.

    The content type becomes the format's, unless it already is one of them. A tree that is changed afterwards is
    written by its content type, with that format's defaults; where they don't do, write it with `format`.
    """

    nameless: ClassVar[str] = "format"

    format: FormatField = Field(description="the format, with its settings: `xml`, or `csv: {delimiter: ;}`")

    def __call__(self, message: Message) -> Message:
        given = message.content_type
        raw = message.body
        tree = self.format.parse(raw, given, message.formats.limits)
        media_type, semicolon, parameters = given.partition(";")
        known = self.format.content_types
        if media_type.strip().lower() not in known:
            given = known[0] + semicolon + parameters
        return message.replace(raw=raw, parsed=tree, content_type=given)
