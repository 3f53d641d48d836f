"""`set: {type: order.placed}`: attributes of the message, and single values of its body."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from pydantic import Field, field_validator, model_validator

from gateway import Duration, Message, MessageError, Settings, Template, Tree
from transforms._tree import SetTree

_MEDIA_TYPE = re.compile(r"[\w.+!#$&^-]+/[\w.+!#$&^*-]+ *(;[\x20-\x7e]*)?")


class Step(Settings):
    """Sets what is named and keeps the rest. All templates see the message as it came to this step.

    An attribute that is set to null is cleared. Headers and transport facts are the peer's and can't be set.
    """

    type: Template | None = Field(None, description="what the message is, such as `order.placed`")
    subject: Template | None = Field(None, description="what it is about, such as `{{ body.id }}`")
    schema_: Template | None = Field(None, alias="schema", description="the schema that the body keeps to, a URI")
    content_type: Template | None = Field(
        None, description="what the body's bytes are, where the sender did not say: the label changes, not the bytes"
    )
    correlation_id: Template | None = Field(None, description="the conversation that the message belongs to")
    priority: Template | None = Field(None, description="urgency, 0 (normal) to 9")
    expires_after: Duration | None = Field(None, description="how long after its receipt it is not sent any more")
    body: dict[str, SetTree] = Field(
        {},
        description="path: value. A value, as in `map`, for each dotted path such as `customer.name` in the body; "
        "mappings on the way are made",
    )
    remove: tuple[str, ...] = Field((), description="dotted paths in the body to leave out, before `body` is set")

    @field_validator("body", "remove")
    @classmethod
    def _are_paths(cls, paths: Any) -> Any:
        for path in paths:
            if not path or "" in path.split("."):
                raise ValueError(f'expected a path such as customer.name, got "{path}"')
        return paths

    @model_validator(mode="after")
    def _sets_something(self) -> Step:
        if not self.model_fields_set:
            raise ValueError("set names nothing; expected an attribute such as type:, or body:")
        for name in ("type", "content_type", "priority"):
            if name in self.model_fields_set and getattr(self, name) is None:
                raise ValueError(f"{name} can't be null: every message has one")
        return self

    @cached_property
    def _texts(self) -> tuple[tuple[str, Template], ...]:
        named = (
            ("type", self.type),
            ("subject", self.subject),
            ("schema", self.schema_),
            ("correlation_id", self.correlation_id),
        )
        return tuple((name, template) for name, template in named if template is not None)

    @cached_property
    def _cleared(self) -> dict[str, None]:
        fields = {"subject": "subject", "schema_": "schema", "correlation_id": "correlation_id"}
        fields["expires_after"] = "expires_at_s"
        return {fields[name]: None for name in self.model_fields_set & fields.keys() if getattr(self, name) is None}

    def __call__(self, message: Message) -> Message:
        changes: dict[str, Any] = {name: _text(name, template, message) for name, template in self._texts}
        if self._cleared:
            changes.update(self._cleared)
        if self.priority is not None:
            changes["priority"] = _priority(self.priority(message))
        if self.expires_after is not None:
            changes["expires_at_s"] = message.time_s + self.expires_after
        changed = message.replace(**changes) if changes else message
        if self.content_type is not None:
            media_type = _text("content_type", self.content_type, message)
            if not isinstance(media_type, str) or not _MEDIA_TYPE.fullmatch(media_type):
                raise MessageError(f"set.content_type: expected one such as text/plain, got {media_type!r:.60}")
            changed = changed.with_body(message.body, media_type)
        return self._with_body(message, changed) if self.body or self.remove else changed

    def _with_body(self, message: Message, changed: Message) -> Message:
        tree = changed.tree
        for path in self.remove:
            tree = _without(tree, path.split("."))
        for path, template in self.body.items():
            tree = _assigned(tree, path.split("."), template(message), path)
        return changed.with_tree(tree)


def _text(name: str, template: Template, message: Message) -> str | None:
    if template.constant:
        return template.text_of(message)
    value = template(message)
    if value is None and name != "type":
        return None
    if isinstance(value, dict | list):
        raise MessageError(f"set.{name}: expected a text, got a {'mapping' if isinstance(value, dict) else 'list'}")
    return template.text_of(message)


def _priority(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 9:
        raise MessageError(f"set.priority: expected 0 to 9, got {value!r:.40}")
    return value


def _assigned(tree: Tree, path: list[str], value: Tree, whole: str) -> Tree:
    """A copy of the tree with this value there; what is not on the way is shared with the old one."""
    if not path:
        return value
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        at = whole.split(".")[: len(whole.split(".")) - len(path)]
        place = ".".join(["body", *at])
        raise MessageError(f"set.body.{whole}: {place} is no mapping, so it can hold no {path[0]!r}")
    return {**tree, path[0]: _assigned(tree.get(path[0]), path[1:], value, whole)}


def _without(tree: Tree, path: list[str]) -> Tree:
    if not isinstance(tree, dict) or path[0] not in tree:
        return tree
    if len(path) == 1:
        return {key: value for key, value in tree.items() if key != path[0]}
    return {**tree, path[0]: _without(tree[path[0]], path[1:])}
