"""FIX in tag=value encoding: mappings and back, groups, data, and every refusal by its text."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway import Limits, MessageError
from transforms.fix import Format, fix, fix_time, fix_timestamp

TYPE = "application/x-fix"
PARTIES = {"453": [448, 447, 452, 802], "802": [523, 803]}
HEAD = ("35=D", "49=BUYER", "56=SELLER", "34=2", "52=20260131-09:30:00.123")


def encoded(*fields: str, charset: str = "utf-8") -> bytes:
    """A whole message of FIX 4.4: BodyLength and CheckSum are right."""
    content = b"".join(field.encode(charset) + b"\x01" for field in fields)
    message = b"8=FIX.4.4\x019=%d\x01%b" % (len(content), content)
    return b"%b10=%03d\x01" % (message, sum(message) % 256)


def parsed(body: bytes, **settings: Any) -> Any:
    return Format.model_validate(settings).parse(body, TYPE, Limits())


def written(tree: Any, **settings: Any) -> bytes:
    return Format.model_validate(settings).format(tree)


def test_a_message_is_a_mapping_of_tags_to_texts_and_comes_back_byte_for_byte() -> None:
    body = encoded(*HEAD, "11=A1", "55=MSFT", "38=100", "44=410.250", "58=")
    tree = parsed(body)
    assert tree == {
        "8": "FIX.4.4",
        "35": "D",
        "49": "BUYER",
        "56": "SELLER",
        "34": "2",
        "52": "20260131-09:30:00.123",
        "11": "A1",
        "55": "MSFT",
        "38": "100",
        "44": "410.250",
        "58": "",
    }
    del tree["58"]
    assert written(tree) == encoded(*HEAD, "11=A1", "55=MSFT", "38=100", "44=410.250")


def test_groups_are_lists_of_mappings_also_within_each_other() -> None:
    parties = ("453=2", "448=ACME", "447=D", "452=1", "802=2", "523=A", "803=1", "523=B", "448=X", "447=D", "452=3")
    body = encoded(*HEAD, "11=A1", *parties, "55=MSFT")
    tree = parsed(body, groups=PARTIES)
    assert tree["453"] == [
        {"448": "ACME", "447": "D", "452": "1", "802": [{"523": "A", "803": "1"}, {"523": "B"}]},
        {"448": "X", "447": "D", "452": "3"},
    ]
    assert tree["55"] == "MSFT"
    assert written(tree, groups=PARTIES) == body


def test_an_empty_group_is_an_empty_list() -> None:
    body = encoded("35=D", "453=0", "55=MSFT")
    assert parsed(body, groups=PARTIES) == {"8": "FIX.4.4", "35": "D", "453": [], "55": "MSFT"}
    assert written(parsed(body, groups=PARTIES), groups=PARTIES) == body


def test_a_tag_that_comes_again_without_its_group_has_all_its_values() -> None:
    tree = parsed(encoded("35=D", "453=3", "448=A", "447=D", "448=B", "447=D", "448=C"))
    assert (tree["453"], tree["448"], tree["447"]) == ("3", ["A", "B", "C"], ["D", "D"])


def test_data_may_hold_any_byte_and_its_length_is_put_in() -> None:
    body = encoded("35=B", "148=x", "95=5", "96=a\x01b=\x01", "354=2", "355=hi")
    tree = parsed(body)
    assert tree == {"8": "FIX.4.4", "35": "B", "148": "x", "96": "a\x01b=\x01", "355": "hi"}
    assert written(tree) == body
    binary = encoded("35=B", "95=3", "96=\xff\x01\xfe", charset="latin-1")
    assert parsed(binary) == {"8": "FIX.4.4", "35": "B", "96": {"base64": "/wH+"}}
    assert written(parsed(binary)) == binary


def test_data_of_no_bytes_may_be_left_out() -> None:
    assert parsed(encoded("35=B", "95=0", "58=x")) == {"8": "FIX.4.4", "35": "B", "58": "x"}


def test_a_written_message_has_header_body_and_trailer_in_their_order() -> None:
    tree = {
        "55": "MSFT",
        "89": "sig",
        49: "BUYER",
        "35": "D",
        "34": 2,
        "8": "FIX.4.4",
        "54": "1",
        "9": "7",
        "10": "000",
    }
    assert written(tree) == encoded("35=D", "49=BUYER", "34=2", "55=MSFT", "54=1", "93=3", "89=sig")


def test_a_group_of_a_message_is_in_the_order_of_its_settings() -> None:
    tree = {"8": "FIX.4.4", "35": "D", "453": [{"452": 1, "448": "ACME", "447": None}]}
    assert written(tree, groups=PARTIES) == encoded("35=D", "453=1", "448=ACME", "452=1")


@pytest.mark.parametrize(
    ("value", "said"),
    [(True, "Y"), (False, "N"), (100, "100"), (1e22, "10000000000000000000000"), (0.1, "0.1"), ("grün", "grün")],
)
def test_values_are_said_as_fix_has_them(value: object, said: str) -> None:
    assert written({"8": "FIX.4.4", "35": "D", "58": value, "1": None}) == encoded("35=D", f"58={said}")


def test_texts_are_of_the_charset() -> None:
    body = encoded("35=B", "58=grün", charset="latin-1")
    assert parsed(body, charset="iso-8859-1")["58"] == "grün"
    assert written({"8": "FIX.4.4", "35": "B", "58": "grün"}, charset="iso-8859-1") == body


WHOLE = encoded("35=D", "55=MSFT")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "fix: the body is empty, expected a message, 8=FIX first"),
        (b"{}", "fix: found b'{}' at 0, expected a tag such as 35, a =, and its value"),
        (b"08=x\x01", "fix: found b'08=x\\x01' at 0, expected a tag such as 35, a =, and its value"),
        (WHOLE[:-1], "fix: tag 10 at 28: expected SOH, byte 01, at the end of its value"),
        (WHOLE.replace(b"MSFT", b"MSFU"), "fix: CheckSum, tag 10, is '200', expected 201"),
        (WHOLE.replace(b"9=13", b"9=14"), "fix: BodyLength, tag 9, is '14', expected 13"),
        (b"8=FIX.4.4\x0135=D\x01", "fix: the tags are 8, 35 to 35, expected 8, 9, 35 to 10"),
        (encoded("35=B", "95=9", "96=abc"), "fix: tag 96 at 25: expected SOH, byte 01, at the end of its value of 9 "),
        (encoded("35=B", "95=3", "58=abc"), "fix: tag 58 at 25 stands behind the length of tag 96, expected that tag"),
        (encoded("35=B", "95=x", "96=abc"), "fix: tag 95 at 20: found b'x', expected the number of bytes of tag 96"),
        (b"8=FIX.4.4\x0195=4\x01", "fix: the last field is the length of tag 96, expected that tag behind it"),
        (b"1=\x01" * 100_001, "fix: more than 100000 fields"),
        (
            encoded("35=B", "58=\xfc", charset="latin-1"),
            "fix: tag 58: byte 0xfc is not utf-8; set charset: to what is ",
        ),
    ],
)
def test_what_is_no_message_is_said_with_its_place(body: bytes, text: str) -> None:
    with pytest.raises(MessageError, match=re.escape(text)) as caught:
        parsed(body)
    assert caught.value.code == "malformed"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (("453=2", "448=A"), "fix: tag 453 says '2' entries, found 1 that begin with tag 448; are all their tags in "),
        (("453=1", "447=A"), "fix: tag 453 says '1' entries, found 0 that begin with tag 448"),
        (("453=2", "448=A", "55=x", "448=B"), "fix: tag 453 says '2' entries, found 1"),
        (("453=1", "448=A", "453=1", "448=B"), "fix: the group 453 comes twice"),
    ],
)
def test_a_group_that_is_not_as_its_settings_say_is_refused(fields: tuple[str, ...], text: str) -> None:
    with pytest.raises(MessageError, match=re.escape(text)) as caught:
        parsed(encoded("35=D", *fields), groups=PARTIES)
    assert caught.value.code == "malformed"


def test_without_verification_numbers_and_order_may_be_wrong() -> None:
    assert parsed(b"35=D\x018=FIX.4.4\x019=1\x0110=1\x0155=x\x01", verify=False) == {
        "35": "D",
        "8": "FIX.4.4",
        "55": "x",
    }


ORDER = {"8": "FIX.4.4", "35": "D"}


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ([], "fix: expected a mapping of tags to values, such as {'35': 'D'}; make one with map:"),
        ({"35": "D"}, "fix: tag 8 is missing, expected the BeginString, such as FIX.4.4"),
        ({"8": "FIX.4.4"}, "fix: tag 35 is missing, expected the MsgType, such as D"),
        ({**ORDER, "symbol": "x"}, "fix: found the key 'symbol', expected a tag, such as 55"),
        ({**ORDER, "58": ""}, "fix: tag 58 has no value, which FIX can't say; null leaves a field out"),
        ({**ORDER, "58": "a\x01b"}, "fix: tag 58 has the byte 01 in it, which FIX can't say"),
        (
            {**ORDER, "58": ["a"]},
            "fix: tag 58 has several values, expected one; of a repeating group, name its tags in ",
        ),
        (
            {**ORDER, "58": {}},
            "fix: tag 58 has a mapping, expected one; of a repeating group, name its tags in groups:",
        ),
        ({**ORDER, "96": {"base64": "?"}}, "fix: tag 96: what base64 has is not in Base64"),
        ({**ORDER, "453": "1"}, "fix: tag 453 is a group, expected a list of mappings of tags to values"),
        ({**ORDER, "453": [{"447": "D"}]}, "fix: group 453, entry 1: tag 448, which begins an entry, is missing"),
        (
            {**ORDER, "453": [{"448": "A", "55": "x"}]},
            "fix: group 453, entry 1: found tag 55, expected 448, 447, 452, 802",
        ),
        (
            {**ORDER, "453": [{"448": "A"}, {"448": "A", "802": [{"523": ""}]}]},
            "fix: group 453, entry 2: group 802, entry 1: tag 523 has no value",
        ),
    ],
)
def test_what_fix_can_not_say_is_refused_with_its_tag(tree: Any, text: str) -> None:
    with pytest.raises(MessageError, match=re.escape(text)):
        written(tree, groups=PARTIES)


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ({"453": []}, "453: expected the tags of an entry, each once"),
        ({"453": [448, 448]}, "453: expected the tags of an entry, each once"),
        ({"453": [802], "802": [523]}, "453: its first tag, 802, begins each entry, and can't be a group"),
        ({"453": [448, 802], "802": [523, 453]}, "453: the group would be within itself"),
        ({"x": [448]}, "should match pattern"),
    ],
)
def test_groups_that_can_not_be_are_complaints(groups: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(text)):
        Format.model_validate({"groups": groups})


def test_the_filter_gives_what_a_tag_has() -> None:
    tree = parsed(encoded("35=D", "55=MSFT"))
    assert (fix(tree, 55), fix(tree, "55"), fix(tree, 44)) == ("MSFT", "MSFT", None)
    with pytest.raises(MessageError, match=r"fix: tag 55 is looked for in list, expected the tree of a FIX message"):
        fix([], 55)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("20260131-09:30:00", "2026-01-31T09:30:00Z"),
        ("20260131-09:30:00.123456789", "2026-01-31T09:30:00.123456789Z"),
        ("20260131-09:30Z", "2026-01-31T09:30:00Z"),
        ("20260131-09:30:00.5-05", "2026-01-31T09:30:00.5-05:00"),
        ("20260131-09:30:00+05:30", "2026-01-31T09:30:00+05:30"),
        ("20260131", "2026-01-31"),
        ("", None),
        (None, None),
    ],
)
def test_times_of_fix_are_read_as_exact_as_they_are(given: object, expected: str | None) -> None:
    assert fix_time(given) == expected


@pytest.mark.parametrize("given", ["2026-01-31", "20261301", "20260131-25:00:00", "20260131-09", "soon", 7])
def test_what_is_no_time_of_fix_is_refused(given: object) -> None:
    with pytest.raises(
        MessageError, match=r"^fix_time: found .* expected a time such as 20260131-09:30:00.123 or 2026"
    ):
        fix_time(given)


def test_times_are_written_in_utc() -> None:
    assert fix_timestamp("2026-01-31T10:30:00+01:00") == "20260131-09:30:00.000"
    assert fix_timestamp("2026-01-31T09:30:00.123Z") == "20260131-09:30:00.123"
    assert fix_timestamp("2026-01-31T09:30:00.123456Z") == "20260131-09:30:00.123456"
    for text in ("2026-01-31T09:30:00", "soon", None):
        with pytest.raises(MessageError, match=r"^fix_timestamp: found .* expected a time such as 2026-01-31T09:30:00"):
            fix_timestamp(text)


tags = st.integers(1, 2000).map(str).filter(lambda tag: tag not in ("8", "9", "35", "10"))
values = st.text(st.characters(exclude_characters="\x01", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(st.dictionaries(tags, values, max_size=20))
def test_what_is_written_is_read_again(fields: dict[str, str]) -> None:
    tree = {"8": "FIX.4.4", "35": "D", **fields}
    body = written(tree)
    again = parsed(body)
    assert written(again) == body
    lengths = {
        "90",
        "93",
        "95",
        "212",
        "445",
        "618",
        "621",
        "1184",
        "1277",
        "1280",
        "1282",
        "1397",
        "1401",
        "1403",
        "1468",
    }
    lengths |= {str(tag) for tag in range(348, 365, 2)}
    assert again == {tag: value for tag, value in tree.items() if tag not in lengths}
