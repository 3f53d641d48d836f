from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import MessageError
from transforms._hl7 import codec, er7
from transforms._hl7_tree import format_er7, parse_er7

CASES = sorted(Path(__file__).parents[1].joinpath("cases/hl7").glob("tree_*.txt"))
MSH = b"MSH|^~\\&|LAB||||1||ADT^A01|7|P|2.5"


def segments(tree: Any) -> Any:
    return tree["segments"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_a_message_becomes_its_tree_and_back(case: Path) -> None:
    given_text, expected = case.read_text(encoding="utf-8").split("---\n")
    body = given_text.replace("\n", "\r").encode()
    tree = parse_er7(body)
    assert tree == json.loads(expected)
    assert format_er7(tree) == body


@pytest.mark.parametrize("terminator", ["\r", "\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "end"])
def test_line_ends_come_back_as_they_were(terminator: str, last: str) -> None:
    lines = [MSH.decode(), "PID|1||x", "", "OBX|a|b||"]
    body = (terminator.join(lines) + (terminator if last else "")).encode()
    tree: Any = parse_er7(body)
    assert [segment[0] for segment in tree["segments"]] == ["MSH", "PID", "", "OBX"]
    assert format_er7(tree) == body


def test_only_a_carriage_return_ends_a_segment_where_there_is_one() -> None:
    body = MSH + "\rNTE|1||a\nb\x0bc\x0cd\x1ce\x85f\u2028g\r".encode()
    tree: Any = parse_er7(body)
    assert len(segments(tree)) == 2
    assert format_er7(tree) == body


def test_a_line_feed_after_some_of_the_carriage_returns_is_dropped() -> None:
    tree: Any = parse_er7(MSH + b"\r\nPID|1\rPV1|1\r\n")
    assert format_er7(tree) == MSH + b"\rPID|1\rPV1|1\r"


def test_blanks_before_the_header_are_no_segment() -> None:
    assert segments(parse_er7(b"\r\n " + MSH))[0][0] == "MSH"


def test_absent_and_deleted_stay_different() -> None:
    tree: Any = parse_er7(MSH + b'\rPID|||""\r')
    assert segments(tree)[1] == ["PID", None, None, [[['""']]]]


@pytest.mark.parametrize(
    ("charset", "python"),
    [
        ("", "utf-8"),
        ("ASCII", "utf-8"),
        ("UNICODE UTF-8", "utf-8"),
        ("8859/1", "iso8859-1"),
        ("8859/15", "iso8859-15"),
        ("windows-1252", "cp1252"),
    ],
)
def test_msh_18_says_how_bytes_are_read_and_written(charset: str, python: str) -> None:
    body = MSH + b"||||||" + charset.encode() + "\rPID|||||Müller^Zoë\r".encode(python)
    tree: Any = parse_er7(body)
    assert segments(tree)[1][5] == [[["Müller"], ["Zoë"]]]
    assert "charset" not in tree
    assert format_er7(tree) == body


@pytest.mark.parametrize(
    ("charset", "python", "text"),
    [
        ("~ISO IR87", "iso2022_jp", "山田^太郎"),
        ("ISO IR6~ISO IR87", "iso2022_jp", "山田^太郎"),
        ("GB 18030-2000", "gb18030", "亅亊"),  # their bytes contain those of the delimiters
        ("BIG-5", "big5", "功許"),  # 5C: the escape character
        ("KS X 1001", "euc_kr", "홍길동"),
    ],
)
def test_bytes_of_double_byte_charsets_are_decoded_before_they_are_split(charset: str, python: str, text: str) -> None:
    body = MSH + f"||||||{charset}\rPID|||||{text}|end\r".encode(python)
    tree: Any = parse_er7(body)
    assert segments(tree)[1][5] == [[[part] for part in text.split("^")]]
    assert segments(tree)[1][6] == [[["end"]]]
    assert format_er7(tree) == body


def test_a_charset_said_from_outside_wins_and_is_remembered() -> None:
    body = MSH + "||||||UNICODE UTF-8\rPID|Müller\r".encode("latin-1")
    tree: Any = parse_er7(body, "iso8859-1")
    assert tree["charset"] == "iso8859-1"
    assert segments(tree)[1][1] == [[["Müller"]]]
    assert format_er7(tree) == body


def test_a_byte_order_mark_comes_back() -> None:
    body = b"\xef\xbb\xbf" + MSH + "\rPID|Müller\r".encode()
    assert format_er7(parse_er7(body)) == body


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", r"hl7: the first segment is '', expected MSH, FHS or BHS"),
        (b"{}", r"hl7: the first segment is '{}', expected MSH"),
        (b"PID|1\rMSH|", r"hl7: the first segment is 'PID'"),
        (b"MSH", r"hl7: the delimiters after MSH are '', expected different signs such as '\|\^"),
        (b"MSHA^~\\&A", r"hl7: the delimiters after MSH are 'A"),
        (b"MSH|^^\\&|", r"hl7: the delimiters after MSH are '\|\^\^"),
        (MSH + b"\rMSH|*~\\&|", r"hl7: MSH-2 is '\*~.*' and the message began with the delimiters"),
        (MSH + b"\rPID|M\xfcller", r"hl7: byte 0xFC at 40 is not utf-8.* set charset: .* parse: {hl7: {charset: "),
        (MSH + b"||||||8859/99\rPID|M\xfcller", r"hl7: MSH-18 names the charset '8859/99', which is not known; set"),
        (MSH + b"||||||UNICODE UTF-8\rPID|M\xfcller", r"hl7: byte 0xFC at 59 is not utf-8"),
        (MSH + b"|" * 300_001, r"hl7: found more than 300000 values"),
    ],
)
def test_what_is_no_message_is_malformed(body: bytes, text: str) -> None:
    with pytest.raises(MessageError, match=text) as caught:
        parse_er7(body)
    assert caught.value.code == "malformed"


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ([], r"hl7.format: expected {\"delimiters\""),
        ({"segments": []}, r"with a segment or more"),
        ({"segments": ["MSH"]}, r"hl7.format: a segment is 'MSH', expected a list such as"),
        ({"segments": [["P|D"]]}, r"hl7.format: a segment is \['P\|D'\]"),
        ({"segments": [["PID", True]]}, r"hl7.format: PID-1: found True, expected text, null or lists"),
        ({"segments": [["PID", None, [[[["deep"]]]]]]}, r"hl7.format: PID-2: found \['deep'\]"),
        ({"segments": [["PID", {"raw": "a|b"}]]}, r"hl7.format: PID-1: raw is 'a\|b', expected a value whose"),
        ({"delimiters": "|^^~&", "segments": [["PID"]]}, r"hl7: the delimiters after MSH are"),
        ({"delimiters": "|^", "segments": [["PID"]]}, r"hl7.format: delimiters are '\|\^', expected five signs"),
        ({"segments": [["MSH", "|", "*"]]}, r"hl7.format: MSH-2 is '\*' and delimiters is"),
        ({"terminator": "x", "segments": [["PID"]]}, r"hl7.format: terminator is 'x', expected CR, LF or CR LF"),
        ({"charset": "EBCDIC", "segments": [["PID"]]}, r"hl7.format: the charset 'EBCDIC' is not known"),
        ({"charset": "8859/1", "segments": [["PID", "€"]]}, r"iso8859-1 has no sign for '€'; set MSH-18"),
        ({"terminator": "\n", "segments": [["PID", {"raw": "a\nb"}]]}, r"hl7.format: PID holds a line end"),
    ],
)
def test_what_no_message_can_carry_is_said_with_its_place(tree: Any, text: str) -> None:
    with pytest.raises(MessageError, match=text):
        format_er7(tree)


def test_a_new_message_may_be_written_shorter() -> None:
    tree = {"segments": [["MSH", None, None, "GW"], ["PID", 1, None, [["4711", None, ["a", "b"]], "x|y"], 2.5, "a\nb"]]}
    assert format_er7(tree) == b"MSH||GW\rPID|1||4711^^a&b~x\\F\\y|2.5|a\\X0A\\b\r"
    assert format_er7({"segments": [["MSH"], ["PID"]]}) == b"MSH\rPID\r"
    assert format_er7({"segments": [["MSH", "|"]]}) == b"MSH|^~\\&\r"


def test_a_peer_that_invents_charsets_fills_no_memory() -> None:
    import encodings

    assert codec("no such charset 4711") is None
    assert not any("4711" in name for name in encodings._cache)


@given(st.text(), st.sampled_from(["|^~\\&", "|^~\\&#", "#*+!%", ".+-\\&"]))
def test_any_text_survives_its_escaping(text: str, delimiters: str) -> None:
    how = er7(delimiters)
    escaped = how.escape(text)
    assert how.unescape(escaped) == text
    assert not any(sign in escaped for sign in delimiters[:3] + delimiters[4] + "\r\n\x0b\x1c") or "\\" in escaped


_SIGNS = st.text(st.sampled_from('|^~\\&FSTREXHNZ.br01dA "é\t\n\x0b'), max_size=60)


@given(st.lists(_SIGNS.map(lambda text: "PID|" + text), max_size=4), st.booleans())
def test_any_message_comes_back_byte_for_byte(lines: list[str], ended: bool) -> None:
    body = (MSH.decode() + "".join("\r" + line for line in lines) + ("\r" if ended else "")).encode()
    tree = parse_er7(body)
    assert format_er7(tree) == body
    assert format_er7(json.loads(json.dumps(tree))) == body


@given(st.recursive(st.none() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=8))
def test_any_field_that_can_be_written_is_read_as_what_was_written(field: Any) -> None:
    try:
        body = format_er7({"segments": [["MSH", "|", "^~\\&"], ["ZZZ", field]]})
    except MessageError:
        return
    assert format_er7(parse_er7(body)) == body


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parser(body: bytes) -> None:
    for start in (b"", b"MSH", MSH + b"\r"):
        with suppress(MessageError):
            parse_er7(start + body)
