from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import new_id
from transforms._hl7_ack import Fault, ack_id, acknowledge, read_answer, read_header

CASES = sorted(Path(__file__).parents[1].joinpath("cases/hl7").glob("ack_*.txt"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_an_answer_is_made_of_the_senders_own_header(case: Path) -> None:
    message, *answers = re.split(r"(?m)^---", case.read_text(encoding="utf-8"))
    header = read_header(message.replace("\n", "\r").encode())
    for answer in answers:
        said, _, expected = answer.partition("\n")
        code, _, text = said.partition(" ")
        made = acknowledge(header, code, b"OWN", text).decode()
        assert re.sub(r"\d{14}\+0000", "TIME", made).replace("\r", "\n") == expected


def test_bytes_that_no_charset_explains_come_back_as_they_were() -> None:
    header = read_header(b"MSH|^~\\&|\xff\xfe|||||||ID\xfc\x81|P|2.3||||||SECRET 7\r")
    made = acknowledge(header, "AE", b"OWN", "größer")
    assert b"||\xff\xfe||" in made
    assert made.endswith(b"||||||SECRET 7\rMSA|AE|ID\xfc\x81|gr??er\r")


@given(st.text())
def test_a_reason_of_any_kind_fits_in_its_field(text: str) -> None:
    header = read_header(b"MSH|^~\\&|A||||||ADT^A01|7|P|2.3||||||UNICODE UTF-8\r")
    made = acknowledge(header, "AE", b"OWN", text)
    answer = read_answer(made)
    assert answer is not None
    assert answer.control_id == b"7"
    assert len(made.decode().split("\r")[1].removeprefix("MSA|AE|7").removeprefix("|")) <= 80
    assert made.count(b"\r") == 2
    assert not re.search(rb"[\x00-\x08\n-\x0c\x0e-\x1f]", made)


def test_a_reason_that_is_too_long_is_cut_between_escapes() -> None:
    made = acknowledge(read_header(b"MSH|^~\\&|A\r"), "AE", b"OWN", "|" * 100)
    assert made.split(b"|")[-1] == b"\\F\\" * 26 + b"\r"


def test_delimiters_that_mean_two_things_leave_a_reason_of_words() -> None:
    made = acknowledge(read_header(b"MSH|^^^^|A\r"), "AE", b"OWN", "a|b^ c")
    assert made.endswith(b"MSA|AE||ab c\r")


def test_a_peer_that_sent_no_header_gets_one_of_ours() -> None:
    made = acknowledge(None, "AR", b"OWN", "no HL7")
    assert re.sub(rb"\d{14}\+0000", b"TIME", made) == (
        b"MSH|^~\\&|||||TIME||ACK|OWN|P|2.5\rMSA|AR||no HL7\rERR|||207^Application internal error^HL70357|E||||no HL7\r"
    )


def test_what_is_not_taken_at_all_is_error_200() -> None:
    header = read_header(b"MSH|^~\\&|A||||||ADT^A01|7|P|2.5\r")
    assert b"\rERR|||200^Unsupported message type^HL70357|E|" in acknowledge(header, "AR", b"OWN", fault=Fault.KIND)


def test_what_is_wrong_in_the_content_is_error_102() -> None:
    header = read_header(b"MSH|^~\\&|A||||||ADT^A01|7|P|2.5\r")
    assert b"\rERR|||102^Data type error^HL70357|E|" in acknowledge(header, "AE", b"OWN", "no id", fault=Fault.DATA)


def test_an_answers_own_id_is_short_and_its_own() -> None:
    ids = {ack_id(new_id()) for _ in range(10_000)}
    assert len(ids) == 10_000
    assert {len(own) for own in ids} == {20}


@pytest.mark.parametrize(
    ("payload", "type_", "control_id", "version"),
    [
        (b"MSH|^~\\&|||||||ADT^A01^ADT_A01|MSG1|P|2.3.1^DEU", "ADT^A01", "MSG1", (2, 3, 1)),
        (b"\r\n MSH|^~\\&|||||||ACK| M |P|\r", "ACK", "M", ()),
        (b"\xef\xbb\xbfMSH|^~\\&|||||||ADT^A01|1|P|2.x", "ADT^A01", "1", ()),
        (b"FHS|^~\\&|\rBHS|^~\\&\rMSH|^~\\&|||||||ADT^A01|1|P|2.3\rMSH|^~\\&|||||||ADT^A02|2", "ADT^A01", "1", (2, 3)),
        (b"MSH|^~\\&\nPID|1", "", "", ()),
        (b"MSH|^~\\&|||||||\xe4^A01|\xfc", "ä^A01", "ü", ()),
        (b"MSH|^~\\&|||||||ADT^A01|1|P|2.3\nMSH|^~\\&|x\r", "ADT^A01", "1", (2, 3)),
    ],
)
def test_the_header_is_read_alone(payload: bytes, type_: str, control_id: str, version: tuple[int, ...]) -> None:
    header = read_header(payload)
    assert header is not None
    assert (header.type, header.control_id, header.version) == (type_, control_id, version)


@pytest.mark.parametrize(
    "payload", [b"", b"MSH", b"MSHX^~", b"MSH ^~", b"PID|1\rMSH|^~\\&|", b"FHS|^~\\&|\r", b"<ADT/>"]
)
def test_what_has_no_header_has_none(payload: bytes) -> None:
    assert read_header(payload) is None


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"MSH|^~\\&|\rMSA|AA|7|fine\r", ("AA", b"7", "fine")),
        (b"MSH|^~\\&|\nMSA|ae| 7 ", ("AE", b"7", "")),
        (b"MSH|^~\\&|\r\nMSA|AA|7\r\n", ("AA", b"7", "")),
        (b"MSH#^~\\&#\rMSA#AR#7\rERR###207##E###what to say#x", ("AR", b"7", "what to say")),
        (b"MSH|^~\\&|x\rNTE|1|\nMSA|AA|7 is no segment\rMSA|AE|8", ("AE", b"8", "")),
        (b"MSH|^~\\&|a\\F\\MSA|AA|7\rMSAX|AA|7", None),
        (b"MSH|^~\\&|\r", None),
        (b"MSA|AA|7\r", None),
        (b"\x06", None),
    ],
)
def test_an_answer_is_read_from_its_segment(payload: bytes, expected: tuple[str, bytes, str] | None) -> None:
    assert read_answer(payload) == expected
