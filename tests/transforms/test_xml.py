from __future__ import annotations

import codecs
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway import Limits, MessageError, Tree
from transforms.xml import Format

LIMITS = Limits()
XSI = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'


def parse(body: str | bytes, content_type: str = "application/xml", limits: Limits = LIMITS, **settings: Any) -> Tree:
    return Format(**settings).parse(body.encode() if isinstance(body, str) else body, content_type, limits)


def write(tree: Any, **settings: Any) -> str:
    return Format(**{"declaration": False, **settings}).format(tree).decode()


def refusal(body: str | bytes, content_type: str = "", limits: Limits = LIMITS, **settings: Any) -> MessageError:
    with pytest.raises(MessageError) as refused:
        parse(body, content_type, limits, **settings)
    return refused.value


def unwritable(tree: Any, **settings: Any) -> str:
    with pytest.raises(MessageError) as refused:
        write(tree, **settings)
    return str(refused.value)


def test_a_document_becomes_a_tree_of_texts() -> None:
    body = '<order id="7"><sku>X</sku><qty>2</qty><note/><line>a</line><line>b</line></order>'
    assert parse(body) == {"order": {"@id": "7", "sku": "X", "qty": "2", "note": None, "line": ["a", "b"]}}


def test_text_beside_attributes_is_under_its_own_key() -> None:
    assert parse('<price currency="EUR">12.10</price>') == {"price": {"@currency": "EUR", "#text": "12.10"}}


def test_space_between_elements_is_dropped_and_space_in_text_is_kept() -> None:
    assert parse("<a>\n  <b> x </b>\n  <c>\n</c>\n</a>\n") == {"a": {"b": " x ", "c": None}}


def test_a_no_break_space_is_text() -> None:
    assert parse("<a>\u00a0</a>") == {"a": "\u00a0"}


def test_comments_and_instructions_are_dropped_and_cdata_is_text() -> None:
    assert parse("<?go now?><a>x<!-- no -->y<?pi z?><![CDATA[<&>]]></a>") == {"a": "xy<&>"}


def test_mixed_content_keeps_its_order() -> None:
    body = "<p>Dear <b>Ann</b>, see <i>this</i> <b>now</b>!</p>"
    assert parse(body) == {"p": {"#mixed": ["Dear ", {"b": "Ann"}, ", see ", {"i": "this"}, " ", {"b": "now"}, "!"]}}
    assert write(parse(body)) == body


def test_declared_arrays_are_lists_however_often_they_come() -> None:
    arrays = ("Order.line", "Order.line.tag")
    assert parse("<Order/>", arrays=arrays) == {"Order": {"line": []}}
    assert parse("<Order><line/></Order>", arrays=arrays) == {"Order": {"line": [{"tag": []}]}}
    assert parse("<Order><line><sku>a</sku></line></Order>", arrays=("Order.line",)) == {
        "Order": {"line": [{"sku": "a"}]}
    }
    assert parse("<Order><line><tag>a</tag></line></Order>", arrays=arrays) == {"Order": {"line": [{"tag": ["a"]}]}}


def test_a_named_root_is_left_out_of_the_tree_in_both_directions() -> None:
    assert parse("<Order><id>1</id></Order>", root="Order") == {"id": "1"}
    assert write({"id": "1"}, root="Order") == "<Order><id>1</id></Order>"
    assert str(refusal("<Invoice/>", root="Order")) == "xml: the root element is 'Invoice', expected 'Order'"


def test_a_list_at_the_root_has_a_name_for_its_elements() -> None:
    assert parse("<skus><sku>a</sku></skus>", root="skus", item="sku") == ["a"]
    assert parse("<skus/>", root="skus", item="sku") == []
    assert write(["a", {"@n": 1}], root="skus", item="sku") == '<skus><sku>a</sku><sku n="1"/></skus>'
    assert str(refusal("<skus><other/></skus>", root="skus", item="sku")).endswith(
        "skus holds 'other' where only sku is expected (item:)"
    )
    assert unwritable({"a": 1}, root="skus", item="sku") == "xml: with item: the tree is a list, got a mapping"


class TestNamespaces:
    BODY = '<o:order xmlns:o="urn:o" xmlns="urn:d"><line o:n="1" xml:lang="en"><x xmlns=""/></line></o:order>'

    def test_the_documents_own_prefixes_are_kept(self) -> None:
        assert parse(self.BODY) == {
            "o:order": {
                "@xmlns:o": "urn:o",
                "@xmlns": "urn:d",
                "line": {"@o:n": "1", "@xml:lang": "en", "x": {"@xmlns": ""}},
            }
        }

    def test_prefixes_of_the_settings_win_over_the_documents(self) -> None:
        tree = parse(self.BODY, namespaces={"a": "urn:o", "b": "urn:d"})
        assert tree == {"a:order": {"b:line": {"@a:n": "1", "@xml:lang": "en", "x": {"@xmlns": ""}}}}

    def test_a_default_namespace_gives_names_without_prefix(self) -> None:
        namespaces = {"": "urn:o"}
        tree = parse('<p:order xmlns:p="urn:o"><p:id>1</p:id></p:order>', namespaces=namespaces)
        assert tree == {"order": {"id": "1"}}
        assert write(tree, namespaces=namespaces) == '<order xmlns="urn:o"><id>1</id></order>'

    def test_prefixes_of_the_settings_are_declared_at_the_root(self) -> None:
        written = write({"a:order": {"b:line": None}}, namespaces={"a": "urn:o", "b": "urn:d"})
        assert written == '<a:order xmlns:a="urn:o" xmlns:b="urn:d"><b:line/></a:order>'

    def test_what_the_tree_declares_is_not_declared_again(self) -> None:
        tree = {"a:order": {"@xmlns:a": "urn:mine"}}
        assert write(tree, namespaces={"a": "urn:o"}) == '<a:order xmlns:a="urn:mine"/>'

    @pytest.mark.parametrize(
        ("tree", "place"),
        [
            ({"p:a": 1}, "p:a"),
            ({"a": {"b": [None, {"@p:c": "1"}]}}, "a.b.@p:c"),
            ({"a": {"b": {"@xmlns:p": "u", "p:x": 1}, "c": {"p:x": 1}}}, "a.c.p:x"),
            ({"a": {"#mixed": ["x", {"p:b": 1}]}}, "a.p:b"),
        ],
        ids=["root", "attribute", "out of scope", "mixed"],
    )
    def test_a_prefix_that_nothing_declares_is_refused(self, tree: Any, place: str) -> None:
        assert unwritable(tree) == (
            f"xml: {place} has the prefix p, which nothing declares; "
            "declare it in namespaces:, or with @xmlns:p in the tree"
        )

    def test_a_prefix_that_means_two_things_is_refused(self) -> None:
        error = refusal('<a:x xmlns:a="urn:other"/>', namespaces={"a": "urn:o"})
        assert str(error).startswith("xml: the document calls 'urn:other' \"a\", which namespaces: says of another")

    def test_a_name_in_no_namespace_is_refused_where_the_default_one_is_taken(self) -> None:
        assert str(refusal("<a/>", namespaces={"": "urn:o"})).startswith("xml: 'a' is in no namespace")

    def test_namespaces_are_seen_in_utf_16_too(self) -> None:
        assert parse(self.BODY.encode("utf-16")) == parse(self.BODY)


class TestNil:
    BODY = f'<a {XSI}><b xsi:nil="true"/><c/><d xsi:nil="true" n="1"/></a>'

    def test_nil_is_an_attribute_unless_asked_for(self) -> None:
        tree = parse(self.BODY, root="a")
        assert isinstance(tree, dict)
        assert (tree["b"], tree["c"]) == ({"@xsi:nil": "true"}, None)

    def test_nil_tells_null_from_empty_in_both_directions(self) -> None:
        tree = parse(self.BODY, nil=True)
        assert tree == {"a": {"b": None, "c": "", "d": {"@xsi:nil": "true", "@n": "1"}}}
        assert write({"a": {"b": None, "c": ""}}, nil=True) == f'<a {XSI}><b xsi:nil="true"/><c></c></a>'


class TestEncodings:
    @pytest.mark.parametrize(
        ("body", "content_type"),
        [
            ("<a>é</a>".encode(), "application/xml"),
            (codecs.BOM_UTF8 + "<a>é</a>".encode(), "text/xml; charset=latin-1"),
            ("<a>é</a>".encode("utf-16"), "text/xml; charset=utf-8"),
            ("<a>é</a>".encode("latin-1"), 'text/xml; charset="iso-8859-1"'),
            ('<?xml version="1.0" encoding="iso-8859-1"?><a>é</a>'.encode("latin-1"), "text/xml"),
            ('<?xml version="1.0" encoding="utf-8"?><a>é</a>'.encode("cp1252"), "text/xml; charset=windows-1252"),
        ],
        ids=["default", "mark over charset", "utf-16", "charset", "declared", "charset over declared"],
    )
    def test_mark_then_charset_then_declaration_says_the_encoding(self, body: bytes, content_type: str) -> None:
        assert parse(body, content_type) == {"a": "é"}

    @pytest.mark.parametrize(
        ("body", "content_type", "code"),
        [
            (b"<a>\xe9</a>", "text/xml", "malformed"),
            (b"<a/>", "text/xml; charset=klingon", "unsupported"),
            (b"<a/>", "text/xml; charset=base64", "unsupported"),
            (b"<a/>", "text/xml; charset=idna", "unsupported"),
            (b"<a/>", "text/xml; charset=utf-7", "unsupported"),
            (b'<?xml version="1.0" encoding="UTF-7"?><a>+ADw-b/+AD4-</a>', "text/xml", "unsupported"),
        ],
    )
    def test_bytes_in_no_encoding_of_xml_are_refused(self, body: bytes, content_type: str, code: str) -> None:
        assert refusal(body, content_type).code == code


class TestHostile:
    @pytest.mark.parametrize(
        "body",
        [
            "<!DOCTYPE a><a/>",
            '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd"><a/>',
            '<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>',
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
            '<!DOCTYPE a [<!ENTITY % x SYSTEM "http://127.0.0.1:9/"> %x;]><a/>',
            '<!DOCTYPE a [<!ATTLIST a b CDATA "injected">]><a/>',
        ],
        ids=["bare", "external", "entity", "file", "parameter", "default attribute"],
    )
    def test_a_document_with_a_dtd_is_refused(self, body: str) -> None:
        error = refusal(body)
        assert (error.code, str(error)) == (
            "malformed",
            "xml: the document has a DTD (<!DOCTYPE …>), which is refused; send it without",
        )

    def test_a_dtd_in_utf_16_is_refused_too(self) -> None:
        assert "DTD" in str(refusal("<!DOCTYPE a><a/>".encode("utf-16")))

    def test_an_entity_bomb_is_refused(self) -> None:
        levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
        bomb = f'<!DOCTYPE a [<!ENTITY l0 "ha">{levels}]><a b="&l9;">&l9;</a>'
        assert refusal(bomb).code == "malformed"

    def test_a_doctype_in_a_comment_or_cdata_is_none(self) -> None:
        assert parse("<!-- <!DOCTYPE a> --><a><![CDATA[<!DOCTYPE a>]]></a>") == {"a": "<!DOCTYPE a>"}

    def test_depth_is_allowed_up_to_its_limit(self) -> None:
        parse("<a>" * 64 + "</a>" * 64)
        assert str(refusal("<a>" * 65 + "</a>" * 65)) == "xml: nested more than 64 deep (limits.xml_depth)"
        assert "nested" in str(refusal("<a>" * 100_000))

    def test_elements_are_allowed_up_to_their_limit(self) -> None:
        limits = Limits(xml_elements=10)
        parse("<a>" + "<b/>" * 9 + "</a>", limits=limits)
        error = refusal("<a>" + "<b/>" * 10 + "</a>", limits=limits)
        assert str(error) == "xml: more than 10 elements (limits.xml_elements)"

    def test_attributes_are_allowed_up_to_their_limit(self) -> None:
        def body(count: int) -> str:
            attributes = " ".join(f'x{n}="1"' for n in range(count))
            return f"<a><b {attributes}/></a>"

        parse(body(128))
        error = refusal(body(129))
        assert str(error) == "xml: an element has more than 128 attributes (limits.xml_attributes)"

    def test_deeply_nested_mixed_content_takes_no_exponential_time(self) -> None:
        assert write(parse("<a>x" * 60 + "</a>" * 60)) == "<a>x" * 60 + "</a>" * 60

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            ("", "xml: the body is empty; expected an XML document"),
            ("<a><b></a>", "xml: malformed at line 1 column 11: Opening and ending tag mismatch: b line 1 and a"),
            ('{"a": 1}', "xml: malformed at line 1 column 1: Start tag expected, '<' not found"),
            ("<a>&x;</a>", "xml: malformed at line 1 column 7: Entity 'x' not defined"),
            ("<x:a/>", "xml: malformed at line 1 column 5: Namespace prefix x on a is not defined"),
            ("<a>\x01</a>", "xml: malformed at line 1 column 4: PCDATA invalid Char value 1"),
            ("<a/><b/>", "xml: malformed at line 1 column 5: Extra content at the end of the document"),
        ],
        ids=lambda value: value[:8],
    )
    def test_what_is_not_well_formed_is_malformed_and_the_text_says_where(self, body: str, text: str) -> None:
        error = refusal(body)
        assert (error.code, str(error)) == ("malformed", text)


class TestWriting:
    def test_values_are_written_plainly(self) -> None:
        tree: Tree = {
            "a": {"t": True, "f": False, "n": None, "i": 10**30, "d": Decimal("1E+3"), "x": 1.5, "m": {}, "l": []}
        }
        assert write(tree) == (
            "<a><t>true</t><f>false</f><n/><i>1000000000000000000000000000000</i><d>1000</d><x>1.5</x><m/></a>"
        )

    def test_the_declaration_says_utf_8(self) -> None:
        assert Format().format({"a": "é"}) == '<?xml version="1.0" encoding="UTF-8"?><a>é</a>'.encode()

    def test_markup_in_values_is_escaped(self) -> None:
        tree = {"a": {"@x": "<\"'&>\t\n\r", "#text": "]]> & <b>\r\n"}}
        assert write(tree) == '<a x="&lt;&quot;\'&amp;>&#9;&#10;&#13;">]]&gt; &amp; &lt;b&gt;&#13;\n</a>'
        assert parse(write(tree)) == tree

    def test_attributes_may_come_after_elements_in_the_tree_and_null_ones_are_left_out(self) -> None:
        assert write({"a": {"b": 1, "@x": True, "@y": None}}) == '<a x="true"><b>1</b></a>'

    def test_an_exponent_writes_no_pages_of_zeros(self) -> None:
        assert write({"a": Decimal("1E+999999")}) == "<a>1E+999999</a>"

    @pytest.mark.parametrize(
        ("tree", "text"),
        [
            ({}, "xml: a document has one root element, the tree has 0 keys; say root:"),
            ({"a": 1, "b": 2}, "xml: a document has one root element, the tree has 2 keys; say root:"),
            ([1], "xml: a document has one root element, the tree has a list; say root:"),
            (None, "xml: a document has one root element, the tree has no elements; say root:"),
            (
                {"a": [1]},
                "xml: a is a list where XML has one element; name the elements: item: for a root, else map it",
            ),
            (
                {"a": {"b": [[1]]}},
                "xml: a.b[0] is a list where XML has one element; name the elements: item: for a root, else map it",
            ),
            ({"a": {"b": [0, {"c": b"x"}]}}, "xml: a.b[1].c is a bytes, which has no text"),
            ({"a": {"b": float("nan")}}, "xml: a.b is nan, which is no number"),
            ({"a": {"@b": {}}}, "xml: a.@b is a dict, which has no text"),
            ({"a": {"#mixed": [{"b": 1, "c": 2}]}}, "xml: a.#mixed has at 0 neither a text nor one {name: value}"),
            ({"a": {"#mixed": "x"}}, "xml: a.#mixed is not a list of texts and {name: value}"),
            ({"#text": "x"}, "xml: #text can't be the root element; name it with root:"),
            ({"a": {1: 2}}, "xml: a.1 is no text, as the name of an element must be"),
            ({"a": {"xmlns:b": 1}}, "xml: a.xmlns:b is a name that XML keeps for itself"),
            ({"a": {"@xmlns:b": ""}}, "xml: a.@xmlns:b is empty; a prefix stands for a namespace"),
        ],
        ids=repr,
    )
    def test_what_xml_can_not_carry_is_refused_with_its_place(self, tree: Any, text: str) -> None:
        assert unwritable(tree) == text

    @pytest.mark.parametrize(
        "name", ["", "1a", "a b", "a<b", "a>b", "a/b", "-a", "a:b:c", ":a", "a:", "a\n", "a=", "x" * 1001]
    )
    def test_a_key_that_is_no_name_never_becomes_markup(self, name: str) -> None:
        for tree in ({"a": {name: 1}}, {"a": {"@" + name: 1}}, {name: 1}, {"a": {"#mixed": [{name: 1}]}}):
            assert "is no name that XML allows" in unwritable(tree)

    @pytest.mark.parametrize("name", ["é", "a-b", "_a.1", "日本", "a·b", "p:q"])
    def test_a_key_that_is_a_name_is_written(self, name: str) -> None:
        assert parse(write({"r": {"@xmlns:p": "u", name: "1"}})) == {"r": {"@xmlns:p": "u", name: "1"}}

    @pytest.mark.parametrize("sign", ["\x00", "\x1f", "\x0b", "\ufffe", "\uffff", "\ud800"], ids=ascii)
    def test_a_character_that_xml_lacks_is_refused_with_its_place(self, sign: str) -> None:
        for tree in ({"a": {"b": ["x", f"y{sign}"]}}, {"a": {"b": ["x", {"@c": sign}]}}):
            assert unwritable(tree).startswith("xml: a.b[1]")
            assert unwritable(tree).endswith(
                "holds a character that XML can't carry, such as a control character; remove it"
            )

    def test_a_tree_that_contains_itself_is_refused(self) -> None:
        tree: dict[str, Any] = {}
        tree["a"] = tree
        assert unwritable(tree) == "xml: the tree is nested too deeply to be written"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"item": "a"}, "say root: too"),
        ({"root": "a b"}, 'expected the name of an XML element, got "a b"'),
        ({"namespaces": {"xmlns": "u"}}, "expected prefix: URI"),
        ({"namespaces": {"a": ""}}, "expected prefix: URI"),
        ({"namespaces": {"a": "u", "b": "u"}}, "two prefixes for one URI"),
    ],
)
def test_settings_that_can_not_work_are_refused_at_load(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        Format(**settings)


def test_equal_settings_are_one_for_a_set() -> None:
    assert len({Format(namespaces={"a": "u"}), Format(namespaces={"a": "u"}), Format()}) == 2


def test_lxml_parses_in_one_place_only() -> None:
    """Any other parser would lack the hardening of transforms/_xml.py."""
    root = Path(__file__).parents[2]
    callers = ("XMLParser(", "etree.fromstring(", "etree.XML(", "iterparse(", "XMLPullParser(", "HTMLParser(")
    found = {
        path.relative_to(root).as_posix()
        for folder in ("gateway", "adapters", "transforms")
        for path in (root / folder).rglob("*.py")
        if any(caller in path.read_text() for caller in callers)
    }
    assert found <= {"transforms/_xml.py"}
