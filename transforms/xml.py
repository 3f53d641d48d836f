"""XML, as a tree: `@name` is an attribute, `#text` the text beside attributes, a repeated element is a list.

    <order id="7"><line>a</line><line>b</line><note/></order>
    {"order": {"@id": "7", "line": ["a", "b"], "note": null}}

What to know of the tree: all values are text. An element without content is null, whitespace between elements is
dropped, comments and processing instructions too. Text and elements mixed are an ordered list under `#mixed`.
Elements of one name are gathered in one list even when others stand between them. A document with a DTD is refused.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from gateway import Limits, MessageError, Settings, Tree
from transforms._xml import prefix_of, root_of
from transforms._xml_read import XSI, Below, Reader
from transforms._xml_write import encoded, written

_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>'


class Format(Settings):
    """XML without DTD, entities and network, in any encoding that it declares; written in UTF-8."""

    content_types: ClassVar[tuple[str, ...]] = ("application/xml", "text/xml")

    root: str | None = Field(
        None,
        description="the root element, which the tree then leaves out: it wraps what is written and must be what is "
        "read; without it the tree has one key, the root",
    )
    item: str | None = Field(
        None, description="with root: the tree is a list, and this is the name of the elements that it consists of"
    )
    arrays: tuple[str, ...] = Field(
        (),
        description="elements that are lists however often they come, as paths from the root such as Order.lines; "
        "one that is not there is an empty list",
    )
    namespaces: dict[str, str] = Field(
        {},
        description="prefix: URI. Names in the tree have these prefixes whatever the document calls them, and what is "
        'written declares them; "" is the default namespace. Without it the document\'s own prefixes and '
        "@xmlns attributes are kept",
    )
    declaration: bool = Field(default=True, description="start with <?xml …?> when writing")
    nil: bool = Field(
        default=False,
        description='null is xsi:nil="true", and an empty element an empty text; else an empty element is null',
    )

    def __hash__(self) -> int:
        return hash((self.root, self.item, self.arrays, *self.namespaces.items(), self.declaration, self.nil))

    @field_validator("root", "item")
    @classmethod
    def _is_name(cls, name: str | None) -> str | None:
        if name is not None and prefix_of(name) is None:
            raise ValueError(f'expected the name of an XML element, got "{name}"')
        return name

    @model_validator(mode="after")
    def _fits(self) -> Format:
        if self.item is not None and self.root is None:
            raise ValueError("item: names the elements of a list; say root: too, the element that holds them")
        for prefix, uri in self.namespaces.items():
            if (prefix and prefix_of(prefix) != "") or not uri or prefix in ("xml", "xmlns"):
                raise ValueError(f'namespaces: expected prefix: URI, got "{prefix}": "{uri}"')
        if len(set(self.namespaces.values())) != len(self.namespaces):
            raise ValueError("namespaces: two prefixes for one URI; keep one")
        return self

    @cached_property
    def _arrays(self) -> Below:
        return Below.of([*self.arrays, f"{self.root}.{self.item}"] if self.item else self.arrays)

    @cached_property
    def _prefixes(self) -> dict[str, str]:
        prefixes = {uri: prefix for prefix, uri in self.namespaces.items()}
        if self.nil:
            prefixes.setdefault(XSI, "xsi")
        return prefixes

    def parse(self, body: bytes, content_type: str, limits: Limits) -> Tree:
        element = root_of(body, content_type, limits)
        # What is not in an ASCII-compatible encoding holds NULs: there a declaration could not be seen
        plain = b"xmlns" not in body and b"\0" not in body and not self._prefixes
        name, value = Reader(self._prefixes, nil=self.nil, plain=plain).document(element, self._arrays)
        if self.root is None:
            return {name: value}
        if name != self.root:
            raise MessageError(f"xml: the root element is {name!r:.60}, expected {self.root!r}")
        return self._items(value) if self.item else value

    def _items(self, value: Any) -> list[Any]:
        other = [key for key in value if key != self.item and not key.startswith("@")]
        if other:
            raise MessageError(f"xml: {self.root} holds {other[0]!r:.60} where only {self.item} is expected (item:)")
        items: list[Any] = value[self.item]
        return items

    def format(self, tree: Tree) -> bytes:
        name, value = self._wrapped(tree)
        text = written(name, value, self.namespaces, nil=self.nil)
        return encoded(_DECLARATION + text if self.declaration else text, name, value)

    def _wrapped(self, tree: Tree) -> tuple[str, Tree]:
        if self.root is not None and self.item is not None:
            if not isinstance(tree, list):
                raise MessageError(f"xml: with item: the tree is a list, got {_kind(tree)}")
            return self.root, {self.item: tree}
        if self.root is not None:
            return self.root, tree
        if isinstance(tree, dict) and len(tree) == 1:
            ((name, value),) = tree.items()
            return name, value
        found = f"{len(tree)} keys" if isinstance(tree, dict) else _kind(tree)
        raise MessageError(f"xml: a document has one root element, the tree has {found}; say root:")


def _kind(tree: Tree) -> str:
    return "a mapping" if isinstance(tree, dict) else "a list" if isinstance(tree, list) else "no elements"
