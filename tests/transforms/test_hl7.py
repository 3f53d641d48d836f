from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gateway import Limits, MessageError
from gateway.formats import formats_with
from transforms.hl7 import Format, filters, hl7, hl7_time

BODY = "\r".join(
    (
        "MSH|^~\\&|ADT1|GHH^1.2^ISO|||20240131093000+0100||ADT^A01^ADT_A01|MSG1|P|2.5||||||UNICODE UTF-8",
        'PID|1||4711^5^M11^ADT1&1.2.3&ISO~8812^^^USSSA||Müller^Zoë||19610615|""|||A \\T\\ B',
        "OBX|1|NM|718-7^Hb||13.4",
        "OBX|2|TX|X",
        "OBX|3|TX|Y||C:\\temp",
        "ZPI|a|b|c",
        "",
    )
).encode()


@pytest.fixture
def tree() -> Any:
    return Format().parse(BODY, "application/hl7-v2", Limits())


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("MSH-1", "|"),
        ("MSH-2", "^~\\&"),
        ("MSH-9.2", "A01"),
        ("PID-3", "4711"),
        ("PID-3.1", "4711"),
        ("PID-3[1].4.2", "1.2.3"),
        ("PID-3[2].4", "USSSA"),
        ("PID-3.4", "ADT1"),  # its first subcomponent
        ("PID-5.2", "Zoë"),
        ("PID-8", '""'),
        ("PID-11", "A & B"),
        ("ZPI-3", "c"),
        ("OBX[2]-3", "X"),
        ("OBX[3]-5", "C:\\temp"),
        ("PID-2", None),
        ("PID-40", None),
        ("PID-3[3]", None),
        ("PID-5.1.2", None),
        ("PID-5.9", None),
        ("OBX[4]-1", None),
        ("PV1-2", None),
        ("OBX[*]-5", ["13.4", None, "C:\\temp"]),
        ("OBX[*]-3.2", ["Hb", None, None]),
        ("PID-3[*].1", ["4711", "8812"]),
        ("PID-2[*]", []),
        ("OBX[*]-5[*]", ["13.4", "C:\\temp"]),
        ("PV1[*]-2", []),
        ("PV1-2[*]", []),
    ],
)
def test_a_path_says_what_engineers_mean_by_it(tree: Any, path: str, expected: Any) -> None:
    assert hl7(tree, path) == expected


@pytest.mark.parametrize("path", ["PID", "PID.3", "PID-0", "PID-3[0]", "pid-3", "PID-3.1.2.3", "PID-3[x]", "", 3])
def test_a_path_that_is_none_is_told_what_to_write(tree: Any, path: Any) -> None:
    with pytest.raises(MessageError, match=r"hl7: the path is .*, expected a segment, a field .* such as PID-3, "):
        hl7(tree, path)


@pytest.mark.parametrize("body", [None, [], {}, "MSH|", {"segments": "x"}])
def test_what_is_no_tree_of_a_message_is_said(body: Any) -> None:
    with pytest.raises(MessageError, match=r"hl7: PID-3 is looked for in .*, expected the tree of an HL7 message"):
        hl7(body, "PID-3")


def test_a_tree_made_by_hand_is_read_too() -> None:
    made: Any = {"segments": [["PID", 1, "x", [["a"], None]], "noise", []]}
    assert hl7(made, "PID-1") == "1"
    assert hl7(made, "PID-2") == "x"
    assert hl7(made, "PID-3[*]") == ["a", None]
    assert hl7(made, "PID-2.2") is None


@pytest.mark.parametrize("content_type", ["application/hl7-v2", "x-application/hl7-v2+er7; charset=utf-8"])
def test_the_content_types_of_hl7_find_the_format(content_type: str) -> None:
    formats = formats_with(Limits())
    tree = formats.parse(BODY, content_type)
    assert hl7(tree, "PID-5") == "Müller"
    assert formats.format(tree, content_type) == BODY


def test_the_charset_of_the_content_type_says_what_the_bytes_are() -> None:
    body = BODY.decode().encode("latin-1")
    tree = Format().parse(body, 'application/hl7-v2; Charset="ISO-8859-1"', Limits())
    assert hl7(tree, "PID-5") == "Müller"
    assert Format().format(tree) == body
    with pytest.raises(MessageError, match=r"hl7: the content type's charset 'klingon' is not known"):
        Format().parse(body, "application/hl7-v2; charset=klingon", Limits())


def test_the_charset_of_the_settings_wins() -> None:
    body = BODY.decode().encode("cp1252")
    format_ = Format(charset="windows-1252")
    tree = format_.parse(body, "application/hl7-v2; charset=utf-8", Limits())
    assert hl7(tree, "PID-5") == "Müller"
    assert format_.format(tree) == body


def test_a_charset_that_is_not_known_stops_the_start() -> None:
    with pytest.raises(ValidationError, match=r'expected a charset such as 8859/1, .* got "klingon"'):
        Format(charset="klingon")


@pytest.mark.parametrize(
    ("value", "zone", "expected"),
    [
        ("2024", None, "2024"),
        ("202401", None, "2024-01"),
        ("20240131", None, "2024-01-31"),
        ("2024013109", None, "2024-01-31T09:00:00"),
        ("202401310930", None, "2024-01-31T09:30:00"),
        ("20240131093015", None, "2024-01-31T09:30:15"),
        ("20240131093015.1234", None, "2024-01-31T09:30:15.1234"),
        ("20240131093015+0100", None, "2024-01-31T09:30:15+01:00"),
        ("20240131093015.5-0330", None, "2024-01-31T09:30:15.5-03:30"),
        ("20240131093015+0000", None, "2024-01-31T09:30:15Z"),
        ("20240731093015", "Europe/Berlin", "2024-07-31T09:30:15+02:00"),
        ("20240731093015-0500", "Europe/Berlin", "2024-07-31T09:30:15-05:00"),
        ("20240131093015", "+01:00", "2024-01-31T09:30:15+01:00"),
        ("20240131093015", "Z", "2024-01-31T09:30:15Z"),
        (" 20240131 ", None, "2024-01-31"),
        ('""', None, None),
        ("", None, None),
        (None, None, None),
    ],
)
def test_a_time_becomes_rfc_3339_as_exact_as_it_was(value: Any, zone: str | None, expected: str | None) -> None:
    assert hl7_time(value, zone) == expected


@pytest.mark.parametrize("value", ["31.01.2024", "20241301", "20240230", "2024013125", "x", "20240131093015+9900"])
def test_a_time_that_is_none_is_said(value: str) -> None:
    with pytest.raises(MessageError, match=r"hl7_time: found .*, expected a time such as 20240131 or"):
        hl7_time(value)


@pytest.mark.parametrize("zone", ["Mars/Base", "+1", "../etc/passwd"])
def test_a_zone_that_is_none_is_said(zone: str) -> None:
    with pytest.raises(MessageError, match=r"hl7_time: the zone is .*, expected one such as Europe/Berlin"):
        hl7_time("20240131093015", zone)


def test_expressions_find_both_filters() -> None:
    assert filters == {"hl7": hl7, "hl7_time": hl7_time}
