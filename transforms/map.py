"""`map: {…}`: a new JSON body, made of templates.

map:
  id: "{{ body.id }}"
  lines: {each: body.items, as: item, do: {sku: "{{ item.sku }}", place: "{{ index }}"}}
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from gateway import JSON, Message, Settings
from transforms._tree import MapTree


class Step(Settings):
    """Makes the body a new tree, as JSON.

    A value that is exactly one `{{ expression }}` keeps its type; what is undefined is an error unless it has a
    `| default(…)`. A mapping with `each` and `do` is a loop: it becomes a list, with one `do` for each element, which
    `as` names (`item` if left out) and whose place is `index`, from 0. Null has no elements. A mapping that itself
    needs the keys each and do is written as one expression: `"{{ {'each': 1, 'do': 2} }}"`.
    """

    nameless: ClassVar[str] = "tree"

    tree: MapTree = Field(description="the new body")

    def __call__(self, message: Message) -> Message:
        return message.with_tree(self.tree(message), JSON)
