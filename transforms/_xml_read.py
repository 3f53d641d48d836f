"""An XML document as a tree, by the convention that `transforms/xml.py` describes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from lxml import etree

from gateway import MessageError

XSI = "http://www.w3.org/2001/XMLSchema-instance"
_XML = "http://www.w3.org/XML/1998/namespace"
_NIL = f"{{{XSI}}}nil"
_SPACE = " \t\r\n"  # what XML calls white space; str.isspace knows more

Scope = Mapping[str | None, str]
"""Prefixes and the URIs that they stand for; None is the default namespace."""


class Below(dict[str, "Below"]):
    """Paths of elements that are always lists, as a tree of names; `many` marks where one ends."""

    many = False

    @classmethod
    def of(cls, paths: Iterable[str]) -> Below:
        """The tree of paths such as `Order.lines`."""
        top = cls()
        for path in paths:
            below = top
            for name in path.split("."):
                below = below.setdefault(name, cls())
            below.many = True
        return top


_NOTHING = Below()


class Reader:
    """Reads one document.

    prefixes: URI → the prefix that the tree shall use.
    nil: `xsi:nil="true"` is None, and an empty element is an empty text.
    plain: the document has no namespaces, which is three times faster.
    """

    __slots__ = ("_empty", "_nil", "_plain", "_prefixes")

    def __init__(self, prefixes: Mapping[str, str], *, nil: bool, plain: bool) -> None:
        self._prefixes = prefixes
        self._nil = nil
        self._plain = plain
        self._empty = "" if nil else None

    def document(self, root: etree._Element, arrays: Below) -> tuple[str, Any]:
        """The name and the value of the root element."""
        name = self._name(root)
        return name, self._value(root, arrays.get(name, _NOTHING), {})

    def _value(self, element: etree._Element, below: Below, scope: Scope) -> Any:
        made: dict[str, Any] = {}
        attributes = cast("list[tuple[str, str]]", element.items())
        if not self._plain:
            inner = element.nsmap
            if inner != scope:
                self._declare(made, inner, scope)
                scope = inner
            if self._nil and element.get(_NIL) in ("true", "1") and len(attributes) == 1 and not made:
                return None
        for key, value in attributes:
            made["@" + (self._attribute(key, scope) if key.startswith("{") else key)] = value
        text = element.text
        if len(element):
            made.update(self._children(element, text, below, scope))
        else:
            blank = not text or not text.strip(_SPACE)
            if not made and not below:
                return self._empty if blank else text
            if not blank:
                made["#text"] = text
        if below and "#mixed" not in made:
            for name, child in below.items():
                if child.many and name not in made:
                    made[name] = []
        return made

    def _children(self, element: etree._Element, text: str | None, below: Below, scope: Scope) -> dict[str, Any]:
        made: dict[str, Any] = {}
        mixed = text is not None and text.strip(_SPACE) != ""
        plain = self._plain
        for child in element:
            name = child.tag if plain else self._name(child)
            inner = below.get(name, _NOTHING) if below else _NOTHING
            if plain and not len(child) and not child.items() and not inner:
                # nearly all elements of nearly all documents
                value = child.text
                if value is None or not value.strip(_SPACE):
                    value = self._empty
            else:
                value = self._value(child, inner, scope)
            if name not in made:
                made[name] = [value] if inner.many else value
            elif type(made[name]) is list:
                made[name].append(value)
            else:
                made[name] = [made[name], value]
            tail = child.tail
            if tail is not None and tail.strip(_SPACE):
                mixed = True
        return {"#mixed": self._in_order(element, text, made)} if mixed else made

    def _in_order(self, element: etree._Element, text: str | None, made: dict[str, Any]) -> list[Any]:
        """The values of the children between the texts that surround them."""
        values = {name: iter(value if type(value) is list else [value]) for name, value in made.items()}
        pieces: list[Any] = [text] if text else []
        for child in element:
            name = child.tag if self._plain else self._name(child)
            pieces.append({name: next(values[name])})
            if child.tail:
                pieces.append(child.tail)
        return pieces

    def _name(self, element: etree._Element) -> str:
        tag = str(element.tag)
        if not tag.startswith("{"):
            if "" in self._prefixes.values():
                raise MessageError(
                    f"xml: {tag!r:.60} is in no namespace, which a name without prefix can't say while namespaces: "
                    'has ""; give that one a prefix',
                    code="malformed",
                )
            return tag
        uri, _, local = tag[1:].partition("}")
        prefix = self._prefixes.get(uri, element.prefix)
        return f"{prefix}:{local}" if prefix else local

    def _attribute(self, key: str, scope: Scope) -> str:
        uri, _, local = key[1:].partition("}")
        if uri == _XML:
            return f"xml:{local}"
        prefix = self._prefixes.get(uri)
        if prefix == "":
            raise MessageError(
                f"xml: the attribute {local!r:.60} is in a namespace that namespaces: gives no prefix, as an attribute "
                "needs one; give it one",
                code="malformed",
            )
        prefix = prefix or next(known for known, its in scope.items() if its == uri and known)
        return f"{prefix}:{local}"

    def _declare(self, made: dict[str, Any], inner: Scope, outer: Scope) -> None:
        for prefix, uri in inner.items():
            if outer.get(prefix, "") == uri or uri in self._prefixes:
                continue
            if self._prefixes and (prefix or "") in self._prefixes.values():
                raise MessageError(
                    f'xml: the document calls {uri!r:.80} "{prefix or ""}", which namespaces: says of another; '
                    "name it there too",
                    code="malformed",
                )
            made[f"@xmlns:{prefix}" if prefix else "@xmlns"] = uri
