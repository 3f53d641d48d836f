"""Framers are plain objects: bytes in, payloads out, in whatever pieces the bytes come."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters._frames import Delimited, Enclosed, Fixed, Framer, LengthPrefixed, Line, Raw
from adapters._frames_fix import Fix
from adapters._frames_mllp import Mllp
from gateway import MessageError

MAX = 1000

FRAMERS: dict[str, Callable[[], Framer]] = {
    "line": lambda: Line(max_frame_bytes=MAX),
    "crlf": lambda: Line(b"\r\n", max_frame_bytes=MAX),
    "one-byte-delimiter": lambda: Delimited(b"|", max_frame_bytes=MAX),
    "long-delimiter": lambda: Delimited(b"--aa", max_frame_bytes=MAX),
    "length-1": lambda: LengthPrefixed(1, max_frame_bytes=MAX),
    "length-2-little": lambda: LengthPrefixed(2, "little", max_frame_bytes=MAX),
    "length-4-itself": lambda: LengthPrefixed(4, includes_itself=True, max_frame_bytes=MAX),
    "digits": lambda: LengthPrefixed(4, digits=True, max_frame_bytes=MAX),
    "stx-etx": lambda: Enclosed(max_frame_bytes=MAX),
    "long-marks": lambda: Enclosed(b"<<a", b"a>>", max_frame_bytes=MAX),
    "mllp": lambda: Mllp(max_frame_bytes=MAX),
}


def fix(body: bytes, begin: bytes = b"FIX.4.4") -> bytes:
    head = b"8=%b\x019=%d\x01%b" % (begin, len(body), body)
    return head + b"10=%03d\x01" % (sum(head) % 256)


def heard(framer: Framer, pieces: list[bytes]) -> tuple[list[bytes], str]:
    """The payloads of these pieces, and the code of the error that ended them."""
    payloads: list[bytes] = []
    try:
        for piece in pieces:
            payloads.extend(framer.feed(piece))
        last = framer.eof()
    except MessageError as error:
        return payloads, error.code
    return payloads + ([] if last is None else [last]), ""


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(at)]


alphabet = st.sampled_from(
    [b"\n", b"\r", b"|", b"-", b"a", b"<", b">", b"\x02", b"\x03", b"\x0b", b"\x1c", b"\0", b"7"]
)
streams = st.lists(alphabet | st.binary(max_size=5), max_size=60).map(b"".join)
bodies = st.lists(st.lists(alphabet | st.binary(max_size=5), max_size=10).map(b"".join), max_size=6)
cuts = st.lists(st.integers(0, 10_000), max_size=12)


@pytest.mark.parametrize("make", FRAMERS.values(), ids=FRAMERS)
@given(sent=bodies, at=cuts)
@settings(max_examples=60, deadline=None)
def test_what_is_framed_is_heard_in_whatever_pieces(
    make: Callable[[], Framer], sent: list[bytes], at: list[int]
) -> None:
    carried: list[bytes] = []
    stream = b""
    for body in sent:
        try:
            stream += make().frame(body)
        except MessageError:
            continue
        carried.append(body)
    assert heard(make(), pieces_of(stream, at)) == (carried, "")


@pytest.mark.parametrize("make", FRAMERS.values(), ids=FRAMERS)
@given(stream=streams, at=cuts)
@settings(max_examples=80, deadline=None)
def test_any_bytes_mean_the_same_in_whatever_pieces(make: Callable[[], Framer], stream: bytes, at: list[int]) -> None:
    whole, cut, byte_by_byte = make(), make(), make()
    expected = heard(whole, [stream])
    assert heard(cut, pieces_of(stream, at)) == expected
    assert heard(byte_by_byte, [stream[i : i + 1] for i in range(len(stream))]) == expected
    if not expected[1]:
        assert (cut.pending, cut.skipped) == (whole.pending, whole.skipped)


@pytest.mark.parametrize("make", FRAMERS.values(), ids=FRAMERS)
@given(stream=st.lists(streams | st.binary(min_size=200, max_size=700), max_size=8).map(b"".join), at=cuts)
@settings(max_examples=40, deadline=None)
def test_frames_near_the_limit_mean_the_same_in_whatever_pieces(
    make: Callable[[], Framer], stream: bytes, at: list[int]
) -> None:
    assert heard(make(), pieces_of(stream, at)) == heard(make(), [stream])


@given(
    parts=st.lists(
        st.binary(max_size=20).map(lambda text: fix(b"35=0\x0158=" + text + b"\x01"))
        | st.sampled_from([b"8=FIX", b"8=FIX.4.4\x019=9999\x01", b"\x01", b"8=FIX.4.4\x019=5\x0135=0\x0110=000\x01"])
        | st.binary(max_size=9),
        max_size=8,
    ),
    at=cuts,
)
@settings(max_examples=200, deadline=None)
def test_fix_streams_mean_the_same_in_whatever_pieces(parts: list[bytes], at: list[int]) -> None:
    stream = b"".join(parts)
    whole, cut = Fix(max_frame_bytes=MAX), Fix(max_frame_bytes=MAX)
    expected = heard(whole, [stream])
    assert heard(cut, pieces_of(stream, at)) == expected
    if not expected[1]:
        assert (cut.pending, cut.skipped) == (whole.pending, whole.skipped)


BIG = 1 << 18


@pytest.mark.parametrize(
    "framer",
    [
        Line(max_frame_bytes=BIG),
        Delimited(b"--aa", max_frame_bytes=BIG),
        LengthPrefixed(4, max_frame_bytes=BIG),
        Enclosed(b"<<a", b"a>>", max_frame_bytes=BIG),
        Mllp(max_frame_bytes=BIG),
        Fixed(BIG),
    ],
    ids=lambda framer: type(framer).__name__,
)
def test_a_large_frame_that_comes_byte_by_byte_costs_no_square(framer: Framer) -> None:
    body = b"x" * BIG
    stream = framer.frame(body)
    began = time.process_time()
    payloads = [payload for at in range(len(stream)) for payload in framer.feed(stream[at : at + 1])]
    assert payloads == [body]
    assert time.process_time() - began < 3


@pytest.mark.parametrize("make", FRAMERS.values(), ids=FRAMERS)
def test_many_small_frames_in_one_read_cost_no_square(make: Callable[[], Framer]) -> None:
    framer = make()
    stream = framer.frame(b"") * (BIG // 4)
    began = time.process_time()
    assert sum(1 for _ in framer.feed(stream)) == BIG // 4
    assert time.process_time() - began < 3


@pytest.mark.parametrize("make", FRAMERS.values(), ids=FRAMERS)
def test_a_frame_at_the_limit_passes_and_one_byte_more_is_too_large(make: Callable[[], Framer]) -> None:
    largest = min(MAX, 255) if make is FRAMERS["length-1"] else MAX
    assert heard(make(), [make().frame(b"x" * largest)]) == ([b"x" * largest], "")
    if make is FRAMERS["length-1"]:
        with pytest.raises(MessageError, match="expected at most 255") as caught:
            make().frame(b"x" * 256)
        assert caught.value.code == "too_large"
    else:
        assert heard(make(), [make().frame(b"a"), make().frame(b"x" * (MAX + 1))]) == ([b"a"], "too_large")


@pytest.mark.parametrize("line", [b"x" * (MAX + 1) + b"\n", b"x" * (MAX + 1) + b"\r\n", b"x" * (MAX + 50)])
def test_a_line_that_is_too_long_is_told_the_limit_itself(line: bytes) -> None:
    with pytest.raises(MessageError, match=f"expected at most {MAX};"):
        list(Line(max_frame_bytes=MAX).feed(line))


@pytest.mark.parametrize("make", FRAMERS.values(), ids=FRAMERS)
def test_a_frame_without_an_end_is_not_kept_beyond_the_limit(make: Callable[[], Framer]) -> None:
    framer = make()
    begin = framer.frame(b"")[:3] if make is FRAMERS["long-marks"] else framer.frame(b"")[:1]
    if isinstance(framer, LengthPrefixed):
        begin = b"9999" if make is FRAMERS["digits"] else b"\x7f\x7f\x7f\x7f"
    elif isinstance(framer, Line | Delimited):
        begin = b""
    if make is FRAMERS["length-1"]:
        return
    assert heard(framer, [begin] + [b"x" * 50] * 30) == ([], "too_large")


@pytest.mark.parametrize(
    ("framer", "body"),
    [
        (Line(max_frame_bytes=MAX), b"two\nlines"),
        (Line(max_frame_bytes=MAX), b"ends with cr\r"),
        (Line(b"\r\n", max_frame_bytes=MAX), b"two\nlines"),
        (Delimited(b"--", max_frame_bytes=MAX), b"a--b"),
        (Delimited(b"--", max_frame_bytes=MAX), b"one dash at the end-"),
        (Enclosed(max_frame_bytes=MAX), b"\x03"),
        (Enclosed(max_frame_bytes=MAX), b"a\x02b"),
        (Mllp(max_frame_bytes=MAX), b"MSH|\x1c|"),
        (Mllp(max_frame_bytes=MAX), b"\x0bMSH"),
        (Fixed(4), b"three"),
        (LengthPrefixed(1, includes_itself=True, max_frame_bytes=MAX), b"x" * 255),
        (LengthPrefixed(2, digits=True, max_frame_bytes=MAX), b"x" * 100),
        (Fix(max_frame_bytes=MAX), b"8=FIX.4.4\x019=5\x0135=0\x0110=000\x01"),
        (Fix(max_frame_bytes=MAX), fix(b"35=0\x01") * 2),
        (Fix(max_frame_bytes=MAX), b""),
    ],
    ids=repr,
)
def test_a_body_that_the_framing_cannot_carry_is_refused(framer: Framer, body: bytes) -> None:
    with pytest.raises(MessageError):
        framer.frame(body)


def test_lines_end_with_lf_or_crlf_and_keep_other_carriage_returns() -> None:
    assert heard(Line(max_frame_bytes=MAX), [b"a\nb\r\n\r\n\nc\rd\n"]) == ([b"a", b"b", b"", b"", b"c\rd"], "")


@pytest.mark.parametrize("make", FRAMERS.values(), ids=FRAMERS)
def test_a_stream_that_ends_within_a_frame_says_so(make: Callable[[], Framer]) -> None:
    framer = make()
    assert list(framer.feed(framer.frame(b"whole") + framer.frame(b"cut in half")[:-4])) == [b"whole"]
    assert framer.pending
    with pytest.raises(MessageError, match="ended after") as caught:
        framer.eof()
    assert caught.value.code == "malformed"


def test_a_length_that_is_no_number_is_malformed() -> None:
    assert heard(LengthPrefixed(4, digits=True, max_frame_bytes=MAX), [b"12x4abc"]) == ([], "malformed")


def test_a_length_less_than_its_own_bytes_is_malformed() -> None:
    assert heard(LengthPrefixed(2, includes_itself=True, max_frame_bytes=MAX), [b"\0\x01"]) == ([], "malformed")


def test_lengths_are_written_as_the_settings_say() -> None:
    assert LengthPrefixed(2, max_frame_bytes=MAX).frame(b"abc") == b"\0\x03abc"
    assert LengthPrefixed(2, "little", max_frame_bytes=MAX).frame(b"abc") == b"\x03\0abc"
    assert LengthPrefixed(4, digits=True, includes_itself=True, max_frame_bytes=MAX).frame(b"abc") == b"0007abc"


def test_noise_between_enclosed_frames_and_cut_ones_are_skipped_and_counted() -> None:
    framer = Enclosed(max_frame_bytes=MAX)
    assert list(framer.feed(b"noise\x02a\x03\r\n\x02cut\x02b\x03")) == [b"a", b"b"]
    assert framer.skipped == 5 + 2 + 4
    assert framer.pending == 0


def test_raw_takes_each_read_as_it_is() -> None:
    framer = Raw(max_frame_bytes=4)
    assert list(framer.feed(b"abc")) == [b"abc"]
    assert framer.pending == 0
    assert framer.eof() is None
    assert heard(framer, [b"abcde"]) == ([], "too_large")


def test_raw_takes_all_that_a_connection_sent_at_its_end() -> None:
    assert heard(Raw(whole=True, max_frame_bytes=4), [b"ab", b"cd"]) == ([b"abcd"], "")
    assert heard(Raw(whole=True, max_frame_bytes=4), []) == ([], "")
    assert heard(Raw(whole=True, max_frame_bytes=4), [b"ab", b"cde"]) == ([], "too_large")


def test_fixed_frames_are_cut_by_their_size() -> None:
    assert heard(Fixed(3), [b"ab", b"cdef"]) == ([b"abc", b"def"], "")
    assert Fixed(3).frame(b"abc") == b"abc"


class TestMllp:
    @pytest.mark.parametrize(
        ("stream", "payloads", "skipped"),
        [
            (b"\x0bA\x1c\r\x0bB\x1c\r", [b"A", b"B"], 0),
            (b"hello\r\n\x0bA\x1c\r", [b"A"], 7),
            (b"\x0b\x0b\x0bA\x1c\r", [b"A"], 2),
            (b"\x0bA\x1c\r\0\0\0\x0bB\x1c\r", [b"A", b"B"], 3),
            (b"\x0bA\x1c\x0bB\x1c\r", [b"A", b"B"], 0),
            (b"\x0bA\x1c\0\x0bB\x1c\n\x0bC\x1c", [b"A", b"B", b"C"], 2),
            (b"\x0bA\x1cB\x1c\r", [b"A\x1cB"], 0),
            (b"\x0bA\x0bB\x1c\r", [b"A\x0bB"], 0),
            (b"\x0b\x1c\r", [b""], 0),
            (b"\x0bA\x1c\x1c\r", [b"A\x1c"], 0),
        ],
        ids=[
            "many",
            "noise-before",
            "doubled-0b",
            "nuls-between",
            "no-0d-before-0b",
            "no-0d-before-others",
            "1c-inside",
            "0b-inside",
            "empty",
            "doubled-1c",
        ],
    )
    def test_what_is_met_in_the_field_is_heard(self, stream: bytes, payloads: list[bytes], skipped: int) -> None:
        framer = Mllp(max_frame_bytes=MAX)
        assert heard(framer, [stream]) == (payloads, "")
        assert framer.skipped == skipped

    def test_the_byte_after_1c_decides(self) -> None:
        framer = Mllp(max_frame_bytes=MAX)
        assert list(framer.feed(b"\x0bMSH|1\x1c")) == []
        assert framer.ended
        assert list(framer.feed(b"\r")) == [b"MSH|1"]
        assert not framer.ended

    def test_an_end_without_0d_is_heard_when_somebody_decides_and_a_late_0d_is_noise(self) -> None:
        framer = Mllp(max_frame_bytes=MAX)
        assert list(framer.feed(b"\x0bA\x1c")) == []
        assert framer.eof() == b"A"
        assert list(framer.feed(b"\r\x0bB\x1c\r")) == [b"B"]
        assert framer.skipped == 1


class TestFix:
    def test_a_data_field_may_hold_what_looks_like_a_trailer(self) -> None:
        message = fix(b"35=B\x0195=9\x0196=a\x0110=000\x01\x01")
        assert heard(Fix(max_frame_bytes=MAX), [message + fix(b"35=0\x01", b"FIXT.1.1")]) == (
            [message, fix(b"35=0\x01", b"FIXT.1.1")],
            "",
        )

    @pytest.mark.parametrize(
        "garbled",
        [
            b"noise",
            fix(b"35=0\x01")[:-2] + b"x\x01",
            fix(b"35=0\x01").replace(b"35=0", b"35=1"),
            fix(b"35=0\x01").replace(b"9=5", b"9=7"),
            fix(b"35=0\x01").replace(b"9=5", b"9=30"),
            b"8=FIX.4.4\x0135=0\x01",
            b"8=FIX" + b"x" * 40,
            b"8=FIX.4.4\x019=" + b"1" * 40,
        ],
        ids=[
            "noise",
            "checksum-no-number",
            "checksum",
            "length-long",
            "length-over-next",
            "no-length",
            "begin",
            "digits",
        ],
    )
    def test_a_garbled_message_is_skipped_up_to_the_next(self, garbled: bytes) -> None:
        framer = Fix(max_frame_bytes=MAX)
        good = fix(b"35=0\x0134=7\x01")
        assert list(framer.feed(garbled + good + good)) == [good, good]
        assert framer.skipped == len(garbled)

    def test_a_message_over_the_limit_is_too_large_before_it_has_come(self) -> None:
        assert heard(Fix(max_frame_bytes=MAX), [b"8=FIX.4.4\x019=5000\x01"]) == ([], "too_large")

    def test_many_beginnings_that_name_one_end_cost_no_square(self) -> None:
        ends = b"".join(b"8=FIX.4.4\x019=%06d\x01" % max(0, 199_978 - at * 20) for at in range(10_000))
        began = time.process_time()
        list(Fix(max_frame_bytes=1 << 20).feed(ends + b"10=000\x01" * 3))
        assert time.process_time() - began < 2

    def test_a_whole_message_is_written_as_it_is(self) -> None:
        assert Fix(max_frame_bytes=MAX).frame(fix(b"35=0\x01")) == fix(b"35=0\x01")

    def test_a_cut_message_is_said_at_the_end(self) -> None:
        assert heard(Fix(max_frame_bytes=MAX), [fix(b"35=0\x01")[:-3]]) == ([], "malformed")
