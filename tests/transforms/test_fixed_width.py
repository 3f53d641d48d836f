from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway import Limits, MessageError, Tree
from transforms.fixed_width import Format

LIMITS = Limits()

ACCOUNT = {"name": "account", "width": 6}
AMOUNT = {"name": "amount", "width": 7, "type": "number", "decimals": 2}
CURRENCY = {"name": "currency", "width": 3}
PAYMENT = [ACCOUNT, AMOUNT, CURRENCY]
KINDS = [
    {"name": "header", "fields": [{"constant": "H"}, {"name": "date", "width": 8}]},
    {"name": "payment", "fields": [{"constant": "D"}, *PAYMENT]},
    {"name": "trailer", "fields": [{"constant": "T"}, {"name": "count", "width": 3, "type": "number"}]},
]
WITH_A_REST = [
    {"name": "end", "fields": [{"name": "n", "width": 1, "type": "number"}, {"constant": "END"}]},
    {"name": "line", "fields": [{"name": "text", "width": 4}]},
]


def one_of(name: str, *fields: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "fields": fields}


def made(**settings: Any) -> Format:
    return Format.model_validate(settings)


def parse(body: bytes, content_type: str = "application/x-fixed-width", **settings: Any) -> Any:
    return made(**settings).parse(body, content_type, LIMITS)


def read(text: str, **field: Any) -> Any:
    """The value of one field that is as wide as this text."""
    (row,) = parse(text.encode(), fields=[{"name": "a", "width": len(text), **field}], ending="none")
    return row["a"]


def write(value: Any, width: int, **field: Any) -> str:
    return made(fields=[{"name": "a", "width": width, **field}], ending="none").format([{"a": value}]).decode()


# --- reading


def test_each_field_is_read_from_its_place() -> None:
    assert parse(b"A1    0012345CHF\r\nA2    -000700EUR\n", fields=PAYMENT) == [
        {"account": "A1", "amount": Decimal("123.45"), "currency": "CHF"},
        {"account": "A2", "amount": Decimal("-7.00"), "currency": "EUR"},
    ]


def test_the_last_line_needs_no_end_and_empty_ones_are_skipped() -> None:
    rows = [{"currency": "CHF"}, {"currency": "EUR"}]
    assert parse(b"\nCHF\n\r\nEUR", fields=[CURRENCY]) == rows
    assert parse(b"", fields=[CURRENCY]) == []
    assert parse(b"", fields=[CURRENCY], ending="none") == []


def test_a_gap_is_skipped_whatever_stands_there() -> None:
    assert parse(b"ab??CHF", fields=[{"name": "a", "width": 2}, {"width": 2}, CURRENCY]) == [
        {"a": "ab", "currency": "CHF"}
    ]


def test_widths_are_characters_and_not_bytes() -> None:
    assert parse("grüße 0000100CHF".encode(), fields=PAYMENT)[0]["account"] == "grüße"


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("  ab ", {}, "  ab"),
        ("  ab ", {"align": "right"}, "ab "),
        ("ab...", {"pad": "."}, "ab"),
        ("00ab0", {"pad": "0", "align": "right"}, "ab0"),
        ("     ", {}, ""),
        (" ab  ", {"trim": False}, " ab  "),
    ],
)
def test_padding_is_taken_off_text_on_its_side(text: str, field: dict[str, Any], value: str) -> None:
    assert read(text, **field) == value


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("00042", {}, 42),
        ("   42", {}, 42),
        ("42   ", {}, 42),
        ("-0042", {}, -42),
        ("+0042", {}, 42),
        ("0042-", {}, -42),
        ("0042+", {}, 42),
        ("0042 ", {}, 42),
        ("00000", {}, 0),
        ("-0000", {}, 0),
        ("     ", {}, None),
        ("**-42", {"pad": "*"}, -42),
        ("42***", {"pad": "*", "align": "left"}, 42),
        ("*****", {"pad": "*"}, None),
        ("00042", {"decimals": 2}, Decimal("0.42")),
        ("4200-", {"decimals": 2}, Decimal("-42.00")),
        ("00000", {"decimals": 5}, Decimal("0.00000")),
        ("-0000", {"decimals": 2}, Decimal("0.00")),
        ("1" * 400, {"decimals": 2}, Decimal("1" * 398 + ".11")),
    ],
)
def test_numbers_are_whole_or_exact_decimals_and_blanks_are_null(text: str, field: dict[str, Any], value: Any) -> None:
    found = read(text, type="number", **field)
    assert (type(found), str(found)) == (type(value), str(value))


def test_a_line_is_of_the_first_record_whose_constants_it_has() -> None:
    assert parse(b"H20260131\nDA1    0012345CHF\nT001\n", records=KINDS) == [
        {"record": "header", "date": "20260131"},
        {"record": "payment", "account": "A1", "amount": Decimal("123.45"), "currency": "CHF"},
        {"record": "trailer", "count": 1},
    ]


def test_constants_may_stand_anywhere_and_one_record_may_have_none() -> None:
    assert parse(b"2END\n2END", records=WITH_A_REST, record_key="kind") == [{"kind": "end", "n": 2}] * 2
    assert parse(b"2BAD", records=WITH_A_REST) == [{"record": "line", "text": "2BAD"}]


def test_records_without_line_ends_follow_each_other_also_those_of_several_kinds() -> None:
    assert parse(b"CHFEUR", fields=[CURRENCY], ending="none") == [{"currency": "CHF"}, {"currency": "EUR"}]
    body = b"H20260131DA1    0012345CHFT001"
    assert [row["record"] for row in parse(body, records=KINDS, ending="none")] == ["header", "payment", "trailer"]


@pytest.mark.parametrize(
    ("line", "fields", "row"),
    [
        (b"ab", [{"name": "a", "width": 4}], {"a": "ab"}),
        (b"ab", [{"name": "a", "width": 2}, {"name": "b", "width": 2}, {"width": 9}], {"a": "ab", "b": ""}),
        (
            b"ab",
            [{"name": "a", "width": 2}, {"name": "n", "width": 2, "type": "number", "pad": " "}],
            {"a": "ab", "n": None},
        ),
        (b"ab  ", [{"name": "a", "width": 2}, {"name": "b", "width": 5, "align": "right"}], {"a": "ab", "b": ""}),
        (b"ab", [{"name": "a", "width": 2}, {"constant": "  "}], {"a": "ab"}),
    ],
)
def test_a_line_whose_last_blanks_were_stripped_is_taken(line: bytes, fields: Any, row: Any) -> None:
    assert parse(line, fields=fields) == [row]


def test_ebcdic_is_read_with_each_of_its_line_ends() -> None:
    rows = [{"currency": "CHF"}, {"currency": "EUR"}]
    for charset in ("cp037", "cp500", "cp1140"):
        for end in (b"\x15", b"\x25", b"\x0d\x25"):
            body = "CHF".encode(charset) + end + "EUR".encode(charset) + end
            assert parse(body, fields=[CURRENCY], charset=charset) == rows
            assert parse(body, f"application/x-fixed-width; charset={charset}", fields=[CURRENCY]) == rows


def test_outside_of_ebcdic_nel_is_a_character() -> None:
    assert parse(b"A\x85B\n", fields=[CURRENCY], charset="latin-1") == [{"currency": "A\x85B"}]


@pytest.mark.parametrize(
    ("body", "settings", "text"),
    [
        (
            b"A1    0012345CHF\n\nA2    0012345CHF?\n",
            {},
            "line 3 has 17 characters, expected 16; what begins in column 17 is in no field: "
            "add one without a name to skip it",
        ),
        (
            b"A1    00123",
            {},
            "line 1 has 11 characters, expected 16; it ends before the end of field amount (columns 7 to 13), "
            "and only blanks that pad it may be missing",
        ),
        (
            b"A1",
            {"fields": [ACCOUNT, {"width": 2, "pad": "."}]},
            "line 1 has 2 characters, expected 8; it ends before the end of the gap (columns 7 to 8), "
            "and only blanks that pad it may be missing",
        ),
        (
            b"A1    7",
            {"fields": [ACCOUNT, {"name": "b", "width": 2, "align": "right"}]},
            "line 1 has 7 characters, expected 8; it ends before the end of field b (columns 7 to 8), "
            "and only blanks that pad it may be missing",
        ),
        (
            b"A1    00123.5CHF",
            {},
            "line 1, field amount (columns 7 to 13): found '00123.5', expected digits with a sign before or behind "
            "them, or blanks; what has a point of its own is type: text",
        ),
        (
            b"A1    -00123-CHF",
            {},
            "line 1, field amount (columns 7 to 13): found '-00123-', expected digits with a sign before or behind "
            "them, or blanks; what has a point of its own is type: text",
        ),
        (
            "A1    ٠٠٠٠٠٠٧CHF".encode(),
            {},
            "line 1, field amount (columns 7 to 13): found '٠٠٠٠٠٠٧', expected digits with a sign before or behind "
            "them, or blanks; what has a point of its own is type: text",
        ),
        (
            b"CHFEU",
            {"fields": [CURRENCY], "ending": "none"},
            "record 2 has 2 characters, expected 3; is the body cut, or has it lines, so that ending: lf belongs there?",
        ),
        (
            b"H20260131\nX??",
            {"fields": [], "records": KINDS},
            "line 2 begins with 'X??', expected 'H' in column 1 (header), or 'D' in column 1 (payment), "
            "or 'T' in column 1 (trailer)",
        ),
        (
            b"A1-7",
            {"fields": [{"name": "a", "width": 2}, {"constant": "/"}, {"name": "b", "width": 1}]},
            "line 1 begins with 'A1-7', expected '/' in column 3",
        ),
        (
            b"\xff",
            {},
            "byte 0xff at offset 0 is not utf-8; is the charset of the content type right?",
        ),
    ],
)
def test_what_is_no_such_record_is_malformed_and_the_text_says_where(
    body: bytes, settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(MessageError) as refused:
        parse(body, **{"fields": PAYMENT, **settings})
    assert (refused.value.code, str(refused.value)) == ("malformed", f"fixed_width: {text}")


# --- writing


def test_rows_are_written_by_the_places_of_their_fields() -> None:
    rows = [{"currency": "CHF", "amount": Decimal("-123.45"), "account": "A1"}, {"account": None}]
    assert made(fields=PAYMENT).format(rows) == b"A1    -012345CHF\n" + b" " * 16 + b"\n"


@pytest.mark.parametrize(
    ("settings", "body"),
    [
        ({"ending": "lf"}, b"CHF\nEUR\n"),
        ({"ending": "crlf"}, b"CHF\r\nEUR\r\n"),
        ({"ending": "none"}, b"CHFEUR"),
        ({"ending": "lf", "charset": "cp037"}, b"\xc3\xc8\xc6\x25\xc5\xe4\xd9\x25"),
        ({"ending": "crlf", "charset": "cp037"}, b"\xc3\xc8\xc6\x0d\x25\xc5\xe4\xd9\x0d\x25"),
        ({"ending": "nel", "charset": "cp500"}, b"\xc3\xc8\xc6\x15\xc5\xe4\xd9\x15"),
    ],
)
def test_each_record_ends_as_the_settings_say(settings: dict[str, Any], body: bytes) -> None:
    kind = made(fields=[CURRENCY], **settings)
    rows: Tree = [{"currency": "CHF"}, {"currency": "EUR"}]
    assert kind.format(rows) == body
    assert kind.parse(body, "application/x-fixed-width", LIMITS) == rows
    assert kind.format([]) == b""


def test_gaps_and_constants_are_written_without_a_value() -> None:
    fields = [{"constant": "H"}, {"width": 2}, CURRENCY, {"width": 2, "pad": "."}]
    assert made(fields=fields).format([{"currency": "CHF"}]) == b"H  CHF..\n"


def test_the_kind_of_a_row_says_which_record_it_is() -> None:
    rows = [{"record": "trailer", "count": 2}, {"record": "header"}]
    assert made(records=KINDS).format(rows) == b"T002\nH        \n"


@pytest.mark.parametrize(
    ("value", "width", "field", "text"),
    [
        ("ab", 4, {}, "ab  "),
        ("ab", 4, {"align": "right", "pad": "."}, "..ab"),
        (None, 4, {"pad": "."}, "...."),
        (True, 4, {}, "true"),
        (Decimal("1.10"), 4, {}, "1.10"),
    ],
)
def test_text_is_padded_on_its_side(value: Any, width: int, field: dict[str, Any], text: str) -> None:
    assert write(value, width, **field) == text


@pytest.mark.parametrize(
    ("value", "field", "text"),
    [
        (42, {}, "000042"),
        (-42, {}, "-00042"),
        (0, {}, "000000"),
        (None, {}, "      "),
        ("", {}, "      "),
        ("-42", {}, "-00042"),
        (42, {"pad": " "}, "    42"),
        (-42, {"pad": "*"}, "***-42"),
        (-42, {"pad": " ", "align": "left"}, "-42   "),
        (42, {"sign": "leading"}, "+00042"),
        (-42, {"sign": "leading"}, "-00042"),
        (42, {"sign": "trailing"}, "00042+"),
        (-42, {"sign": "trailing"}, "00042-"),
        (42, {"sign": "trailing_minus"}, "00042 "),
        (-42, {"sign": "trailing_minus", "pad": " "}, "   42-"),
        (Decimal("1.5"), {"decimals": 2}, "000150"),
        (Decimal("1.500"), {"decimals": 2}, "000150"),
        (Decimal("-0.05"), {"decimals": 2}, "-00005"),
        (Decimal("-0.00"), {"decimals": 2}, "000000"),
        (Decimal("1E+2"), {"decimals": 2}, "010000"),
        (Decimal("0E+999999"), {"decimals": 2}, "000000"),
        (Decimal("0E-999999"), {"decimals": 2}, "000000"),
        (1.1, {"decimals": 2}, "000110"),
        ("12.50", {"decimals": 2}, "001250"),
        (7, {"decimals": 2}, "000700"),
        (999999, {}, "999999"),
    ],
)
def test_numbers_are_written_exactly(value: Any, field: dict[str, Any], text: str) -> None:
    assert write(value, 6, type="number", **field) == text


FITS = "shorten it before, or widen the field"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, f"found 7 characters, expected at most 6; {FITS}"),
        (-123456, f"found 7 characters, expected at most 6; {FITS}"),
        (10**5000, f"found 5001 characters, expected at most 6; {FITS}"),
        (Decimal("1E+999999"), f"found 1000000 characters, expected at most 6; {FITS}"),
        (Decimal("1.05"), "found 1.05, expected at most 0 decimals; round it before"),
        (Decimal("1E-999999"), "found 1E-999999, expected at most 0 decimals; round it before"),
        (0.5, "found 0.5, expected at most 0 decimals; round it before"),
        ("many", "found 'many', expected a number such as -12.50"),
        ("1e5", "found '1e5', expected a number such as -12.50"),
        (True, "found True, expected a number such as -12.50"),
        (float("nan"), "found nan, expected a number such as -12.50"),
        (Decimal("Infinity"), "found Decimal('Infinity'), expected a number such as -12.50"),
        ([1], "found a mapping or a list, expected a number such as -12.50"),
    ],
    ids=lambda value: str(value)[:20] if not isinstance(value, int) else "int",
)
def test_a_number_that_does_not_fit_is_refused_and_never_cut(value: Any, text: str) -> None:
    with pytest.raises(MessageError) as refused:
        write(value, 6, type="number")
    assert str(refused.value) == f"fixed_width: row 1, field a (columns 1 to 6): {text}"


@pytest.mark.parametrize(
    ("tree", "settings", "text"),
    [
        ({}, {}, "expected a list of rows; make one with map:"),
        ([["A1"]], {}, "row 1 is no mapping of field names to values"),
        (
            [{"account": "A1"}, {"acount": "A2"}],
            {},
            "row 2 has the key 'acount', which no field is called; leave it out in map:, or add a field",
        ),
        (
            [{"account": "A123456"}],
            {},
            f"row 1, field account (columns 1 to 6): found 7 characters, expected at most 6; {FITS}",
        ),
        (
            [{"currency": ["CHF"]}],
            {},
            "row 1, field currency (columns 14 to 16): found a mapping or a list, expected one text",
        ),
        (
            [{"account": "A\r1"}],
            {},
            "row 1, field account (columns 1 to 6): found the end of a line, expected text in one line; "
            "replace it before",
        ),
        (
            [{"account": "A\x851"}],
            {"charset": "cp037"},
            "row 1, field account (columns 1 to 6): found the end of a line, expected text in one line; "
            "replace it before",
        ),
        (
            [{"account": "A1"}],
            {"fields": [], "records": KINDS},
            "row 1 has None as its record, expected one of header, payment, trailer",
        ),
        (
            [{"record": "footer"}],
            {"fields": [], "records": KINDS},
            "row 1 has 'footer' as its record, expected one of header, payment, trailer",
        ),
        (
            [{"record": "header", "account": "A1"}],
            {"fields": [], "records": KINDS},
            "row 1 has the key 'account', which no field is called; leave it out in map:, or add a field",
        ),
        (
            [{"record": "end"}, {"record": "line", "text": "2END"}],
            {"fields": [], "records": WITH_A_REST},
            "row 2 is line, but would be read as end, as it has 'END' in column 2; write another value there",
        ),
        (
            [{"record": "b", "x": "1"}],
            {
                "fields": [],
                "records": [one_of("a", {"width": 1}, {"constant": " "}), one_of("b", {"name": "x", "width": 1})],
            },
            "row 1 is b, but would be read as a, as it has ' ' in column 2; write another value there",
        ),
        (
            [{"account": "A1", "currency": "€"}],
            {"charset": "latin-1"},
            "iso8859-1 has no character U+20AC (at offset 13); use utf-8",
        ),
    ],
)
def test_rows_that_the_fields_can_not_carry_are_refused(tree: Any, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(MessageError) as refused:
        made(**{"fields": PAYMENT, **settings}).format(tree)
    assert str(refused.value) == f"fixed_width: {text}"


def test_without_lines_a_value_may_hold_the_end_of_one() -> None:
    kind = made(fields=[CURRENCY], ending="none")
    assert kind.parse(kind.format([{"currency": "a\nb"}]), "", LIMITS) == [{"currency": "a\nb"}]


# --- settings


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ({"name": "a"}, "a field needs its width; write how many characters it has, such as width: 10"),
        ({"constant": "H", "name": "a"}, "a constant is written as it stands, and is not in the row; remove name"),
        ({"constant": "H", "width": 2}, "a constant is written as it stands, and is not in the row; remove width"),
        ({"constant": "a\nb"}, "expected text without the end of a line; where lines end is for ending: to say"),
        ({"constant": 1}, 'expected text, got a number or a truth value; write it in quotes, such as "0"'),
        (
            {"name": "a", "width": 2, "pad": 0},
            'expected text, got a number or a truth value; write it in quotes, such as "0"',
        ),
        (
            {"name": "a", "width": 2, "pad": "\r"},
            "expected text without the end of a line; where lines end is for ending: to say",
        ),
        (
            {"width": 2, "type": "number", "align": "left"},
            "a field without a name is a gap, with width and pad alone; remove align, type",
        ),
        ({"name": "a", "width": 2, "decimals": 2}, "this field is text; write type: number, or remove decimals"),
        (
            {"name": "a", "width": 2, "type": "text", "sign": "minus"},
            "this field is text; write type: number, or remove sign",
        ),
        (
            {"name": "a", "width": 2, "type": "number", "trim": True},
            "a number is always read without its padding; remove trim",
        ),
        (
            {"name": "a", "width": 500, "type": "number"},
            "a number has at most 400 characters, got width: 500; write type: text",
        ),
        ({"name": "a", "width": 2, "type": "number", "decimals": 3}, "expected decimals: 2 at most, the width, got 3"),
        (
            {"name": "a", "width": 2, "type": "number", "pad": "7"},
            'a pad of "7" would be read as part of the number; write "0", " " or "*"',
        ),
        (
            {"name": "a", "width": 2, "type": "number", "align": "left"},
            'zeros behind a number make another of it; write pad: " ", or align: right',
        ),
    ],
)
def test_a_field_that_can_not_work_is_a_complaint_that_says_what_to_write(field: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as refused:
        made(fields=[field])
    assert [error["msg"] for error in refused.value.errors()] == [f"Value error, {text}"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "no field is named; write fields: [{name: account, width: 10}, …], or records: with those of each"),
        (
            {"fields": PAYMENT, "records": KINDS},
            "expected either fields: or records:, got both; keep records: where lines are of several kinds",
        ),
        (
            {"fields": PAYMENT, "record_key": "kind"},
            "record_key belongs to records:, of which there are none; remove it",
        ),
        (
            {"fields": [ACCOUNT, ACCOUNT]},
            'fields: the name "account" comes twice; leave it out where a gap is skipped',
        ),
        (
            {"records": [KINDS[0], one_of("line", {"constant": "L"}, ACCOUNT, ACCOUNT)]},
            'fields of line: the name "account" comes twice; leave it out where a gap is skipped',
        ),
        (
            {"records": [KINDS[0], KINDS[0]]},
            'records: the name "header" comes twice; call each kind otherwise',
        ),
        (
            {"records": [one_of("a", {"name": "record", "width": 2})]},
            "fields of a: record is the key of a row that holds its kind; call this field otherwise, "
            "or write another record_key:",
        ),
        (
            {"records": [one_of("a", ACCOUNT), one_of("b", {"constant": "B"})]},
            'records: no line is ever "b", as "a" takes each of them before; '
            "write it first, or give the other a constant that it has not",
        ),
        (
            {"records": [one_of("a", {"width": 1}, {"constant": "1"}), one_of("b", {"constant": "B1"})]},
            'records: no line is ever "b", as "a" takes each of them before; '
            "write it first, or give the other a constant that it has not",
        ),
        (
            {"fields": [{"name": "a", "width": 2, "pad": "€"}], "charset": "latin-1"},
            "fields: iso8859-1 has no '€'; write what it has",
        ),
        (
            {"fields": [{"constant": "€"}], "charset": "cp037"},
            "fields: cp037 has no '€'; write what it has",
        ),
        (
            {"records": [one_of("a", ACCOUNT, {"constant": "A"}), one_of("b", {"constant": "B"})], "ending": "none"},
            'records: a constant of "a" ends in column 7, but "b" has 1 columns; '
            "without line ends, write gaps that make all of them as long",
        ),
        (
            {"fields": PAYMENT, "ending": "nel"},
            "nel ends lines of EBCDIC, such as cp037, and not of utf-8; write lf or crlf",
        ),
        (
            {"fields": PAYMENT, "charset": "base64"},
            'no charset is called "base64"; expected one such as utf-8, iso-8859-1 or cp1252',
        ),
    ],
)
def test_settings_that_can_not_work_are_complaints_that_say_what_to_write(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as refused:
        made(**settings)
    assert [error["msg"] for error in refused.value.errors()] == [f"Value error, {text}"]


@pytest.mark.parametrize(
    "field",
    [
        {"width": 0},
        {"width": 40_000},
        {"name": "", "width": 1},
        {"constant": ""},
        {"name": "a", "width": 2, "pad": ".."},
    ],
)
def test_settings_out_of_bounds_are_refused_at_load(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        made(fields=[field])


# --- there and back


def characters(charset: str) -> st.SearchStrategy[str]:
    """All but what ends lines, pads the fields below, or is a byte order mark."""
    return st.characters(codec=charset, exclude_characters=" .\r\n\x85\ufeff")


def tables(charset: str) -> st.SearchStrategy[list[Any]]:
    text = st.text(characters(charset), max_size=4)
    cents = st.integers(-99_999, 99_999).map(lambda number: Decimal(number).scaleb(-2))
    row = {"text": text, "right": text, "cents": st.none() | cents, "whole": st.none() | st.integers(-99, 999)}
    return st.lists(st.fixed_dictionaries(row), max_size=4)


@pytest.mark.parametrize("several", [False, True], ids=["fields", "records"])
@pytest.mark.parametrize(
    ("charset", "ending"), [("utf-8", "lf"), ("utf-16", "crlf"), ("utf-8", "none"), ("cp500", "nel"), ("cp037", "lf")]
)
@given(data=st.data())
def test_what_is_written_is_read_back_the_same(charset: str, ending: str, several: bool, data: st.DataObject) -> None:
    sign = data.draw(st.sampled_from(["minus", "leading", "trailing", "trailing_minus"]))
    fields = [
        {"name": "text", "width": 4},
        {"name": "right", "width": 5, "align": "right", "pad": "."},
        {
            "name": "cents",
            "width": 6,
            "type": "number",
            "decimals": 2,
            "sign": sign,
            "pad": data.draw(st.sampled_from("0 *")),
        },
        {"width": 2, "pad": "-"},
        {"name": "whole", "width": 3, "type": "number"},
    ]
    settings: dict[str, Any] = {"fields": fields}
    tree = data.draw(tables(charset))
    if several:
        settings = {"records": [{"name": mark, "fields": [{"constant": mark}, *fields]} for mark in "ab"]}
        tree = [{"record": data.draw(st.sampled_from("ab")), **row} for row in tree]
    kind = made(charset=charset, ending=ending, **settings)
    body = kind.format(tree)
    assert kind.parse(body, "application/x-fixed-width", LIMITS) == tree
    assert kind.format(kind.parse(body, "application/x-fixed-width", LIMITS)) == body


@given(st.binary(max_size=60), st.sampled_from(["lf", "none"]), st.sampled_from(["utf-8", "cp037", "latin-1"]))
def test_any_bytes_are_rows_or_malformed(body: bytes, ending: str, charset: str) -> None:
    try:
        outcome = type(parse(body, records=KINDS, ending=ending, charset=charset)).__name__
    except MessageError as error:
        outcome = error.code
    assert outcome in ("list", "malformed")
