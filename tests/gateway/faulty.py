"""`faulty`, a plug-in step of the tests: it has a bug."""

from __future__ import annotations

from gateway import Message, Settings


class Step(Settings):
    """Fails as only bugs do, on bodies whose `bug` is true."""

    def __call__(self, message: Message, /) -> Message | None:
        tree = message.tree
        if isinstance(tree, dict) and tree.get("bug"):
            raise ZeroDivisionError("a bug")
        return message
