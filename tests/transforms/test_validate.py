from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway import Limits, Loading, Message, MessageError
from gateway.registry import read_component
from gateway.testing import FakeHost, arriving
from transforms._schema import JsonSchema

HOST = FakeHost()
ORDER: dict[str, Any] = {
    "type": "object",
    "required": ["customer"],
    "additionalProperties": False,
    "properties": {
        "customer": {"type": "string", "maxLength": 5},
        "total": {"type": "number", "minimum": 1, "multipleOf": 0.01},
        "items": {"type": "array", "items": {"$ref": "item.json"}},
        "at": {"type": "string", "format": "date-time"},
        "kind": {"enum": ["web", "shop"]},
    },
}
ITEM = {"type": "object", "required": ["sku"], "properties": {"qty": {"type": "integer"}}}
XSD = """<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema">
  <xs:include schemaLocation="types.xsd"/>
  <xs:element name="order"><xs:complexType><xs:sequence>
    <xs:element name="qty" type="Qty"/>
  </xs:sequence></xs:complexType></xs:element>
</xs:schema>"""
TYPES = """<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema">
  <xs:simpleType name="Qty"><xs:restriction base="xs:integer"/></xs:simpleType>
</xs:schema>"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "schemas"
    folder.mkdir()
    (folder / "order.json").write_text(json.dumps(ORDER))
    (folder / "item.json").write_text(json.dumps(ITEM))
    (folder / "order.xsd").write_text(XSD)
    (folder / "types.xsd").write_text(TYPES)
    return folder


def step(folder: Path, name: str) -> Any:
    return read_component("Step", {"validate": {"schema": f"schemas/{name}"}}, Loading(folder=folder.parent))


def refusal(check: Any, raw: bytes, content_type: str = "application/json", host: FakeHost = HOST) -> MessageError:
    with pytest.raises(MessageError) as refused:
        check(arriving(host, raw, content_type=content_type))
    return refused.value


def complaint(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    with pytest.raises(ValidationError) as refused:
        step(folder, name)
    ((error),) = refused.value.errors()
    assert error["loc"] == ("validate", "schema")
    return error["msg"].removeprefix("Value error, ")


class TestJson:
    def test_a_body_that_keeps_to_the_schema_passes_as_it_is(self, folder: Path) -> None:
        came = arriving(HOST, b'{"customer": "C9", "total": 12.10, "items": [{"sku": "X", "qty": 2.0}], "kind": "web"}')
        assert step(folder, "order.json")(came) is came

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            ("{}", "validate: body.customer is missing; order.json requires it"),
            (
                '{"customer":"C","items":[{"sku":1},{}]}',
                "validate: body.items[1].sku is missing; order.json requires it",
            ),
            ('{"customer":"C","x":1}', "validate: body.x is unexpected; order.json does not know it"),
            ('{"customer":5}', 'validate: body.customer is 5; order.json says: it is not of type "string"'),
            (
                '{"customer":"C","total":0.50}',
                "validate: body.total is 0.50; order.json says: it is less than the minimum of 1",
            ),
            (
                '{"customer":"C","total":1.005}',
                "validate: body.total is 1.005; order.json says: it is not a multiple of 0.01",
            ),
            ('{"customer":"C","at":"noon"}', 'validate: body.at is "noon"; order.json says: it is not a "date-time"'),
            (
                '{"customer":"C","kind":null}',
                'validate: body.kind is null; order.json says: it is not one of "web" or "shop"',
            ),
            ("[1]", 'validate: body is a list of 1; order.json says: it is not of type "object"'),
            (
                '{"customer":"' + "x" * 100 + '"}',
                f'validate: body.customer is "{"x" * 58}…; order.json says: it is longer than 5 characters',
            ),
        ],
        ids=lambda value: value[:30],
    )
    def test_the_first_failure_is_told_with_its_place(self, folder: Path, body: str, text: str) -> None:
        error = refusal(step(folder, "order.json"), body.encode())
        assert (error.code, str(error)) == ("refused", text)

    def test_a_long_name_is_cut(self, folder: Path) -> None:
        assert len(str(refusal(step(folder, "order.json"), b'{"customer":"C","' + b"x" * 5000 + b'":1}'))) < 300

    def test_numbers_of_any_size_are_compared_exactly(self, folder: Path) -> None:
        check = step(folder, "order.json")
        for number in ("1" + "0" * 399, "1." + "0" * 20, "9007199254740993.01"):
            check(arriving(HOST, b'{"customer":"C","total":%s}' % number.encode()))
        assert "minimum" in str(refusal(check, b'{"customer":"C","total":0.99999999999999999999999999}'))

    def test_a_body_that_is_no_json_is_malformed(self, folder: Path) -> None:
        assert refusal(step(folder, "order.json"), b"{").code == "malformed"

    def test_the_draft_is_the_one_that_the_schema_names(self, folder: Path) -> None:
        four = {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}
        (folder / "four.json").write_text(json.dumps(four))
        assert "less than or equal" in str(refusal(step(folder, "four.json"), b"1"))

    def test_a_schema_beside_it_may_be_referred_to_by_its_id(self, folder: Path) -> None:
        (folder / "a.json").write_text('{"$id": "https://example.com/s/a.json", "$ref": "b.json#/$defs/t"}')
        (folder / "b.json").write_text('{"$id": "https://example.com/s/b.json", "$defs": {"t": {"type": "string"}}}')
        (folder / "broken.json").write_text("{")
        check = step(folder, "a.json")
        check(arriving(HOST, b'"x"'))
        refusal(check, b"1")

    @pytest.mark.parametrize(
        ("schema", "text"),
        [
            ('{"type":', "s.json is no JSON: Expecting value: line 1 column 9 (char 8)"),
            (
                '{"type": "strin"}',
                "s.json is no JSON Schema to use: schema.type: "
                "it is not valid under any of the schemas listed in the 'anyOf' keyword",
            ),
            ("[]", 's.json is no JSON Schema to use: schema: it is not of types "boolean", "object"'),
            (
                '{"$ref": "https://example.com/x.json"}',
                "s.json is no JSON Schema to use: it refers to https://example.com/x.json, which is never fetched; "
                "keep that schema beside it, with this as its $id",
            ),
            (
                '{"$ref": "../outside.json"}',
                "s.json is no JSON Schema to use: it refers to outside.json outside of its own folder; "
                "keep what it refers to beside it",
            ),
            (
                '{"$ref": "none.json"}',
                "s.json is no JSON Schema to use: it refers to none.json, and there is no such file beside it",
            ),
        ],
        ids=["json", "type", "list", "remote", "outside", "missing"],
    )
    def test_a_schema_that_can_not_be_used_is_refused_at_load(self, folder: Path, schema: str, text: str) -> None:
        (folder.parent / "outside.json").write_text("{}")
        assert complaint(folder, "s.json", schema) == text

    def test_a_link_out_of_the_folder_is_no_way_out(self, folder: Path) -> None:
        (folder.parent / "outside.json").write_text("{}")
        (folder / "link.json").symlink_to(folder.parent / "outside.json")
        assert "outside of its own folder" in complaint(folder, "s.json", '{"$ref": "link.json"}')

    def test_a_pattern_can_not_be_made_to_run_for_ever(self, folder: Path) -> None:
        (folder / "slow.json").write_text('{"type": "string", "pattern": "^(a+)+$"}')
        refusal(step(folder, "slow.json"), b'"' + b"a" * 50_000 + b'!"')


class TestXml:
    def test_a_document_that_keeps_to_the_schema_passes_as_it_is(self, folder: Path) -> None:
        came = arriving(HOST, b"<order><qty>1</qty></order>", content_type="text/xml; charset=utf-8")
        assert step(folder, "order.xsd")(came) is came

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            (
                b"<order>\n<qty>x</qty></order>",
                "validate: line 2: Element 'qty': 'x' is not a valid value of the atomic type 'Qty' (order.xsd)",
            ),
            (
                b"<order/>",
                "validate: line 1: Element 'order': Missing child element(s). Expected is ( qty ) (order.xsd)",
            ),
            (
                b"<order><qty>" + b"x" * 100 + b"</qty></order>",
                f"validate: line 1: Element 'qty': '{'x' * 60}…' is not a valid value of the atomic type 'Qty' "
                "(order.xsd)",
            ),
        ],
        ids=["type", "missing", "long"],
    )
    def test_the_first_failure_is_told_with_its_place(self, folder: Path, body: bytes, text: str) -> None:
        error = refusal(step(folder, "order.xsd"), body, "application/xml")
        assert (error.code, str(error)) == ("refused", text)

    def test_a_document_is_parsed_as_carefully_as_any(self, folder: Path) -> None:
        check = step(folder, "order.xsd")
        assert "DTD" in str(refusal(check, b"<!DOCTYPE order><order><qty>1</qty></order>", "application/xml"))
        shallow = FakeHost(limits=Limits(xml_depth=1))
        assert "nested" in str(refusal(check, b"<order><qty>1</qty></order>", "application/xml", shallow))

    def test_a_body_that_is_no_xml_is_refused(self, folder: Path) -> None:
        text = str(refusal(step(folder, "order.xsd"), b"{}"))
        assert text == "validate: order.xsd checks XML, the body is application/json"

    @pytest.mark.parametrize(
        ("location", "text"),
        [
            (
                "http://127.0.0.1:9/types.xsd",
                "it includes http://127.0.0.1:9/types.xsd, which is never fetched; keep that schema beside it",
            ),
            ("../types.xsd", "it includes types.xsd from outside of its own folder; keep that schema beside it"),
            ("none.xsd", "it includes none.xsd, and there is no such file beside it"),
        ],
        ids=["remote", "outside", "missing"],
    )
    def test_a_schema_that_includes_what_is_not_beside_it_is_refused_at_load(
        self, folder: Path, location: str, text: str
    ) -> None:
        (folder.parent / "types.xsd").write_text(TYPES)
        assert complaint(folder, "s.xsd", XSD.replace("types.xsd", location)) == f"s.xsd is no XML Schema: {text}"

    @pytest.mark.parametrize("text", ["<a", "<a/>", ""])
    def test_what_is_no_schema_is_refused_at_load(self, folder: Path, text: str) -> None:
        assert complaint(folder, "s.xsd", text).startswith("s.xsd is no XML Schema")


def test_a_file_of_another_kind_is_refused_at_load(folder: Path) -> None:
    assert complaint(folder, "s.yaml", "{}") == "expected a schema in a .json or .xsd file, got s.yaml"


def test_a_file_that_is_not_there_is_refused_at_load(folder: Path) -> None:
    with pytest.raises(ValidationError, match="no such file"):
        step(folder, "none.json")


KEYWORDS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["object", "array", "string", "number", "integer", "boolean", "null"]),
        "minimum": st.integers(-3, 3),
        "multipleOf": st.sampled_from([1, 2, 0.5]),
        "maxLength": st.integers(0, 3),
        "minItems": st.integers(0, 2),
        "uniqueItems": st.booleans(),
        "required": st.lists(st.sampled_from("ab"), unique=True),
        "enum": st.lists(st.integers(-2, 2) | st.text(max_size=2), min_size=1, max_size=3),
        "properties": st.fixed_dictionaries(
            {"a": st.fixed_dictionaries({"type": st.sampled_from(["string", "integer"])})}
        ),
        "additionalProperties": st.booleans(),
        "const": st.integers(-2, 2) | st.none(),
    },
)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.decimals(-5, 5, places=1) | st.text("ab€", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200)
@given(KEYWORDS, TREES)
def test_the_fast_engine_agrees_with_the_reference(tmp_path_factory: Any, schema: dict[str, Any], tree: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "agree.json"
    path.write_text(json.dumps(schema))
    message = Message(parsed=tree, formats=HOST.formats)
    try:
        JsonSchema(path).check(message)
        passes = True
    except MessageError:
        passes = False
    reference = jsonschema.Draft202012Validator(schema)
    assert passes == reference.is_valid(json.loads(message.body))
