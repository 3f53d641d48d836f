"""`log: "order {{ body.id }}"`: a line in the gateway's log where the message passes. It changes nothing."""

from __future__ import annotations

import logging
from decimal import Decimal
from math import isfinite
from typing import Any, ClassVar, Literal

from pydantic import Field

from gateway import Message, MessageError, Settings, Template

log = logging.getLogger("gateway.messages")

MOST_TEXT = 2000
"""Characters of one text in a line; of a longer one the beginning is logged."""
_MOST_FIELDS = 50
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}


class Step(Settings):
    """Writes one line to the gateway's log: route, id, type, and what `text` and `fields` say, no more of the body.

    A text of more than 2000 characters is cut. What can't be filled refuses the message, whatever level the log has. A
    message whose steps run again after a crash is logged again.
    """

    short: ClassVar[str] = "text"
    acts: ClassVar[bool] = True

    text: Template = Field(description="what to say, such as `order {{ body.id }}`")
    level: Literal["info", "warning", "debug"] = Field(
        "info", description="the level of the line; debug is seen with --log-level debug only"
    )
    fields: dict[str, Template] = Field(
        {},
        max_length=_MOST_FIELDS,
        description="name: value. More to find the line by, under `fields` of the line; numbers, true, false and null "
        "stay what they are, all else is text",
    )

    def __call__(self, message: Message) -> Message:
        # Filled before the level is looked at: what becomes of a message does not depend on what is logged
        said: dict[str, Any] = {"text": _cut(self.text.text_of(message))}
        if self.fields:
            said["fields"] = {name: _field(name, template, message) for name, template in self.fields.items()}
        level = _LEVELS[self.level]
        if log.isEnabledFor(level):
            route = message.source.rpartition("/")[2]
            log.log(level, "step", extra={"route": route, "message_id": message.id, "type": message.type, **said})
        return message


def _field(name: str, template: Template, message: Message) -> str | int | float | bool | None:
    try:
        value = template(message)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | float | Decimal):
            return _number(value)
        return _cut(value if isinstance(value, str) else template.text_of(message))
    except MessageError as error:
        if error.code != "refused":  # a body that can't be parsed is wrong as a whole
            raise
        raise MessageError(f"log.fields.{name}: {error}") from error


def _number(value: float | Decimal) -> int | float | str:
    """The number as a JSON number of 64 bits, or its text where it is too large to be one."""
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    try:
        number = float(value)
    except OverflowError:
        return _cut(str(value))
    return number if isfinite(number) else _cut(str(value))


def _cut(text: str) -> str:
    if len(text) > MOST_TEXT:
        text = text[: MOST_TEXT - 1] + "…"
    # Half a surrogate pair can't be written in UTF-8, and the line would be lost
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
