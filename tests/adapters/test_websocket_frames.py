"""Frames without I/O, against the package websockets as a second codec."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from adapters._websocket_frames import BINARY, CLOSE, PING, TEXT, Fault, Frames, framed


def cut(data: bytes, *, masked: bool = True, max_size: int = 1_000_000, pieces: int = 0) -> list[tuple[int, bytes]]:
    """All that comes out of these bytes; fed in pieces of so many, or at once."""
    frames = Frames(masked=masked, max_size=max_size)
    found = []
    step = pieces or max(len(data), 1)
    for at in range(0, len(data), step):
        frames.feed(data[at : at + step])
        while (one := frames.next()) is not None:
            found.append(one)
    assert not frames.pending
    return found


def made(opcode: Opcode, payload: bytes = b"", *, final: bool = True, mask: bool = True) -> bytes:
    return Frame(opcode, payload, final).serialize(mask=mask)


MESSAGES = st.lists(
    st.tuples(st.booleans(), st.lists(st.text(max_size=300), min_size=1, max_size=4), st.booleans()), max_size=8
)


@given(messages=MESSAGES, mask=st.booleans(), pieces=st.integers(min_value=0, max_value=700))
def test_what_websockets_writes_is_read_however_it_is_cut(
    messages: list[tuple[bool, list[str], bool]], mask: bool, pieces: int
) -> None:
    data, expected = b"", []
    for text, parts, pinged in messages:
        for index, part in enumerate(parts):
            opcode = Opcode.CONT if index else Opcode.TEXT if text else Opcode.BINARY
            data += made(opcode, part.encode(), final=index == len(parts) - 1, mask=mask)
            if pinged:  # a control frame may stand between fragments, and is handed on when it comes
                ping = made(Opcode.PING, b"p", mask=mask)
                data += ping
                if index < len(parts) - 1:
                    expected.append((PING, ping))
        expected.append((TEXT if text else BINARY, "".join(parts).encode()))
        if pinged:
            expected.append((PING, ping))
    assert cut(data, masked=mask, pieces=pieces) == expected


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 100_000])
@pytest.mark.parametrize("pieces", [0, 1000])
def test_all_three_ways_to_write_a_length_are_read(size: int, pieces: int) -> None:
    body = bytes(size)
    assert cut(made(Opcode.BINARY, body) * 3, pieces=pieces) == [(BINARY, body)] * 3
    assert framed(body, text=False) == made(Opcode.BINARY, body, mask=False)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(made(Opcode.TEXT, b"a", mask=False), 1002, id="unmasked"),
        pytest.param(b"\xc1\x80" + bytes(4), 1002, id="a reserved bit"),
        pytest.param(b"\x83\x80" + bytes(4), 1002, id="an unknown data opcode"),
        pytest.param(b"\x8b\x80" + bytes(4), 1002, id="an unknown control opcode"),
        pytest.param(b"\x89\xfe\x00\x7e", 1002, id="a ping of 126 bytes"),
        pytest.param(b"\x09\x80" + bytes(4), 1002, id="a ping in fragments"),
        pytest.param(b"\x82\xfe\x00\x7d", 1002, id="two bytes for a length that needs one"),
        pytest.param(b"\x82\xff\x00\x00\x00\x00\x00\x00\xff\xff", 1002, id="eight bytes for a length that needs two"),
        pytest.param(b"\x82\xff\x80\x00\x00\x00\x00\x00\x00\x00", 1009, id="2^63 bytes"),
        pytest.param(b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff", 1009, id="2^63 - 1 bytes"),
        pytest.param(b"\x82\xff\x00\x00\x00\x00\x00\x0f\x42\x41", 1009, id="one byte too many"),
        pytest.param(made(Opcode.CONT, b"a"), 1002, id="a continuation of nothing"),
        pytest.param(
            made(Opcode.TEXT, b"a", final=False) + made(Opcode.TEXT, b"b"), 1002, id="a message within another"
        ),
        pytest.param(made(Opcode.TEXT, b"\xff"), 1007, id="text that is not utf-8"),
        pytest.param(made(Opcode.TEXT, b"\xc3", final=False) + made(Opcode.CONT, b"("), 1007, id="so in fragments"),
        pytest.param(made(Opcode.TEXT, b"\xed\xa0\x80"), 1007, id="a surrogate"),
        pytest.param(
            made(Opcode.BINARY, bytes(600_000), final=False) + made(Opcode.CONT, bytes(400_001)),
            1009,
            id="too much in all",
        ),
        pytest.param(
            made(Opcode.TEXT, b"", final=False) + made(Opcode.CONT, b"", final=False) * 300, 1008, id="a flood"
        ),
    ],
)
@pytest.mark.parametrize("pieces", [0, 1, 1000])
def test_what_breaks_the_protocol_is_named_by_its_code(data: bytes, code: int, pieces: int) -> None:
    if pieces == 1 and len(data) > 2000:
        pieces = 999
    with pytest.raises(Fault) as fault:
        cut(data, pieces=pieces)
    assert fault.value.code == code
    assert len(fault.value.reason) < 120


def test_a_server_must_not_mask() -> None:
    with pytest.raises(Fault, match="masking"):
        cut(made(Opcode.TEXT, b"a", mask=True), masked=False)


def test_many_fragments_of_a_fair_size_are_one_message() -> None:
    parts = made(Opcode.TEXT, b"a" * 64, final=False) + made(Opcode.CONT, b"b" * 64, final=False) * 5000
    ((opcode, body),) = cut(parts + made(Opcode.CONT, b"c"), pieces=4096)
    assert opcode == TEXT
    assert len(body) == 64 * 5001 + 1


def test_a_limit_holds_for_small_messages_too() -> None:
    assert cut(made(Opcode.TEXT, b"12345"), max_size=5) == [(TEXT, b"12345")]
    with pytest.raises(Fault, match="more than 5 bytes"):
        cut(made(Opcode.TEXT, b"123456"), max_size=5)


def test_a_frame_or_message_that_has_begun_is_pending() -> None:
    frames = Frames(masked=True, max_size=1000)
    whole = made(Opcode.TEXT, b"abc")
    for data, pending in ((whole[:1], True), (whole[1:], False), (made(Opcode.TEXT, b"a", final=False), True)):
        frames.feed(data)
        while frames.next() is not None:
            pass
        assert frames.pending is pending
    frames.feed(made(Opcode.CONT, b"b"))
    assert frames.next() == (TEXT, b"ab")
    assert not frames.pending


def test_a_close_frame_is_handed_on_as_it_came() -> None:
    data = made(Opcode.CLOSE, b"\x03\xe8bye")
    assert cut(data) == [(CLOSE, data)]
