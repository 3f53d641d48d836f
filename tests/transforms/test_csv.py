from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway import Limits, MessageError, Tree
from transforms.csv import Format

LIMITS = Limits()


def parse(body: bytes, content_type: str = "text/csv", **settings: Any) -> Tree:
    return Format(**settings).parse(body, content_type, LIMITS)


def test_the_first_line_names_the_columns() -> None:
    body = b'\xef\xbb\xbfsku,note\r\nA1,"a ""b"", c\r\nd"\n\n A2 ,\n'
    assert parse(body) == [{"sku": "A1", "note": 'a "b", c\r\nd'}, {"sku": " A2 ", "note": ""}]


def test_names_of_the_settings_stand_for_a_header_line() -> None:
    assert parse(b"A1;7", header=("sku", "qty"), delimiter=";") == [{"sku": "A1", "qty": "7"}]


def test_without_header_a_row_is_a_list() -> None:
    assert parse(b"a,b\nc\n", header=False) == [["a", "b"], ["c"]]
    assert parse(b"", header=False) == []


def test_no_rows_are_an_empty_body_and_no_empty_line() -> None:
    assert Format().format([]) == b""


def test_quote_and_charset_can_be_said() -> None:
    assert parse(b"a\n'\xe9,x'\n", "text/csv; charset=latin-1", quote="'") == [{"a": "é,x"}]
    assert parse(b"a\n\xe9\n", charset="latin-1") == [{"a": "é"}]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "csv: the body is empty; expected a header line"),
        (
            b"a,b\n1,2\n\n3\n",
            "csv: row 3 has 1 fields, expected 2; is the delimiter ',', and a field that holds it quoted?",
        ),
        (
            b"a\n1,2\n",
            "csv: row 2 has 2 fields, expected 1; is the delimiter ',', and a field that holds it quoted?",
        ),
        (b'a\n"x', "csv: row 2 (line 2): unexpected end of data"),
        (b'a\n"x"y\n', "csv: row 2 (line 2): ',' expected after '\"'"),
        (b"a,a\n", "csv: the header line names 'a' twice"),
        (b"a, \n", "csv: a column of the header line has no name"),
        (b"a\n" + b"x" * 131_073, "csv: row 2 (line 2): field larger than field limit (131072)"),
        (b"a\n\xff", "csv: byte 0xff at offset 2 is not utf-8; is the charset of the content type right?"),
    ],
    ids=["empty", "short", "long", "open", "after quote", "twice", "nameless", "large", "charset"],
)
def test_a_broken_table_is_malformed_and_the_text_says_where(body: bytes, text: str) -> None:
    with pytest.raises(MessageError) as refused:
        parse(body)
    assert (refused.value.code, str(refused.value)) == ("malformed", text)


def test_rows_are_written_by_the_columns_of_the_first() -> None:
    tree = [{"sku": 'A "1"', "qty": 2}, {"qty": None, "sku": "a,b"}, {"sku": True}]
    assert Format().format(tree) == b'sku,qty\r\n"A ""1""",2\r\n"a,b",\r\ntrue,\r\n'


def test_columns_of_the_settings_say_the_order_and_write_no_header_line() -> None:
    assert Format(header=("b", "a")).format([{"a": 1, "b": 2}]) == b"2,1\r\n"


def test_lists_are_written_without_header() -> None:
    assert Format(header=False, delimiter="\t").format([[1, "x"], []]) == b"1\tx\r\n\r\n"


def test_texts_that_a_spreadsheet_would_run_are_guarded_where_asked_for() -> None:
    tree = [{"a": "=1+1", "b": -5, "c": "@x"}]
    assert Format().format(tree) == b"a,b,c\r\n=1+1,-5,@x\r\n"
    assert Format(guard_formulas=True).format(tree) == b"a,b,c\r\n'=1+1,-5,'@x\r\n"


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({}, "csv: expected a list of rows; make one with map:"),
        ([[1]], "csv: row 1 is no mapping of column names to values"),
        ([{"a": 1}, {"b": 1}], "csv: row 2 has the column 'b', which the header lacks"),
        ([{"a": [1]}], "csv: row 1, column a: a field is one text, got a mapping or a list"),
    ],
    ids=["mapping", "list", "column", "nested"],
)
def test_what_a_table_can_not_carry_is_refused(tree: Any, text: str) -> None:
    with pytest.raises(MessageError) as refused:
        Format().format(tree)
    assert str(refused.value) == text


@pytest.mark.parametrize(
    "settings", [{"delimiter": "\n"}, {"quote": "''"}, {"header": ()}, {"header": ("a", "a")}, {"charset": "base64"}]
)
def test_settings_that_can_not_work_are_refused_at_load(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Format(**settings)


cells = st.text(st.characters(codec="utf-8"), max_size=6)


@given(
    st.lists(st.fixed_dictionaries({"a": cells, "b;": cells}), min_size=1, max_size=4),
    st.sampled_from([",", ";", "\t"]),
)
def test_tables_survive_a_round_trip(tree: list[Any], delimiter: str) -> None:
    table = Format(delimiter=delimiter)
    assert table.parse(table.format(tree), "text/csv", LIMITS) == tree
