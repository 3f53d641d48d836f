"""What goes through XML comes back, for whatever hypothesis thinks of; xmltodict-like trees on one side, C14N on the other."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from gateway import Limits, MessageError
from transforms._xml import parser
from transforms.xml import Format

LIMITS = Limits()

names = st.sampled_from(["a", "b", "line", "é", "x-1", "Order"])
texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="\ufffe\uffff"), min_size=1
).filter(lambda text: text.strip(" \t\r\n"))
any_texts = st.text("ab<>&\"'\r\n\t \u00a0é]", max_size=8)


def elements(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    children = st.dictionaries(names, inner | st.lists(inner, min_size=2, max_size=3), min_size=1, max_size=3)
    attributes = st.dictionaries(names.map("@{}".format), any_texts, max_size=2)
    leaf = st.builds(lambda found, text: {**found, "#text": text} if found else text, attributes, texts)
    return leaf | st.builds(lambda found, nested: {**found, **nested}, attributes, children)


values = st.recursive(st.none() | texts, elements, max_leaves=12)


@given(st.dictionaries(names, values, min_size=1, max_size=1))
def test_tree_to_xml_to_tree(tree: dict[str, Any]) -> None:
    written = Format()
    assert written.parse(written.format(tree), "", LIMITS) == tree


@given(
    st.lists(texts | st.none(), max_size=3),
    st.lists(st.dictionaries(st.just("tag"), st.lists(texts, max_size=3)), max_size=3),
)
def test_declared_arrays_come_back_as_lists(skus: list[Any], lines: list[Any]) -> None:
    tree = {"Order": {"sku": skus, "line": [{"tag": [], **line} for line in lines]}}
    written = Format(arrays=("Order.sku", "Order.line", "Order.line.tag"))
    assert written.parse(written.format(tree), "", LIMITS) == tree


@st.composite
def documents(draw: st.DrawFn, depth: int = 2) -> etree._Element:
    """An element whose children of one name stand together, as the convention needs; mixed ones in any order."""
    spaces = {"p": "urn:p", None: "urn:d"}
    uri = draw(st.sampled_from(["", "{urn:p}", "{urn:d}"]))
    element = etree.Element(uri + draw(names), nsmap=spaces if draw(st.booleans()) or uri else None)  # type: ignore[arg-type]
    for name in draw(st.lists(names, max_size=2, unique=True)):
        element.set(draw(st.sampled_from(["", "{urn:p}"])) + name, draw(any_texts))
    children = draw(st.lists(documents(depth=depth - 1), max_size=3)) if depth else []
    if draw(st.booleans()) and children:
        element.text = draw(texts)
        for child in children:
            child.tail = draw(texts | st.none())
        element.extend(children)
    else:
        element.extend(sorted(children, key=lambda child: (child.tag, child.prefix or "")))
        if not children:
            element.text = draw(texts | st.none())
    return element


def canonical(body: bytes) -> bytes:
    return etree.tostring(etree.fromstring(body, parser()), method="c14n2")


def gathered(body: bytes) -> bool:
    """Whether elements of one name stand together, as the convention needs where there is no text between them."""
    for each in etree.fromstring(body, parser()).iter():
        if each.text or any(child.tail for child in each):
            continue
        for names in ([child.tag for child in each], [(child.prefix, etree.QName(child).localname) for child in each]):
            runs = [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]
            if len(runs) != len(set(runs)):
                return False
    return True


bodies = documents().map(lambda element: etree.tostring(element, encoding="utf-8")).filter(gathered)


@settings(max_examples=150)
@given(bodies)
def test_xml_to_tree_to_xml_is_the_same_document(body: bytes) -> None:
    written = Format()
    assert canonical(written.format(written.parse(body, "", LIMITS))) == canonical(body)


@settings(max_examples=150)
@given(bodies)
def test_mapped_namespaces_name_the_same_elements(body: bytes) -> None:
    written = Format(namespaces={"one": "urn:p", "two": "urn:d"})
    before = etree.fromstring(body, parser())
    after = etree.fromstring(written.format(written.parse(body, "", LIMITS)), parser())
    assert [(each.tag, dict(each.attrib), each.text or "") for each in before.iter()] == [
        (each.tag, dict(each.attrib), each.text or "") for each in after.iter()
    ]


@given(st.binary(max_size=60) | st.text("<>/ab=\"'&;!?[] \n", max_size=40).map(str.encode))
def test_any_bytes_are_a_tree_or_a_refusal(body: bytes) -> None:
    try:
        tree = Format().parse(body, "", LIMITS)
    except MessageError:
        return
    assert canonical(Format().format(tree))
