"""`filter: body.total > 100`: only what fulfils the condition goes on."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from gateway import Expression, Message, Settings


class Step(Settings):
    """Lets a message go on if the condition holds; else it ends here, and counts as handled."""

    nameless: ClassVar[str] = "condition"

    condition: Expression = Field(description="an expression: `body.total > 100`, `message.type == 'ADT^A01'`")

    def __call__(self, message: Message) -> Message | None:
        return message if self.condition(message) else None
