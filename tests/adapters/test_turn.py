"""Reads and writes of one turn of the loop: in order, none lost, and one connection's fault is its own."""

from __future__ import annotations

import asyncio

import pytest

from adapters._turn import Turn


class Reader:
    """Notes what it was given."""

    def __init__(self, *, broken: bool = False) -> None:
        self.taken: list[bytes] = []
        self.aborted = False
        self._broken = broken

    def take(self, data: bytes) -> None:
        if self._broken:
            raise RuntimeError("a bug")
        self.taken.append(data)

    def abort(self) -> None:
        self.aborted = True


class Wire(asyncio.Transport):
    """Notes what is written, until it is closing."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closing


async def test_what_was_read_is_taken_in_order_at_the_end_of_the_turn() -> None:
    turn, reader = Turn(), Reader()
    turn.read(reader, b"a")
    turn.read(reader, b"b")
    assert reader.taken == []
    await asyncio.sleep(0)
    assert reader.taken == [b"a", b"b"]


async def test_what_is_taken_early_is_not_taken_twice() -> None:
    turn, reader = Turn(), Reader()
    turn.read(reader, b"a")
    turn.take()
    turn.read(reader, b"b")
    await asyncio.sleep(0)
    assert reader.taken == [b"a", b"b"]


async def test_what_was_written_goes_out_in_order_and_not_to_who_is_closing() -> None:
    turn, wire, gone = Turn(), Wire(), Wire()
    turn.write(wire, b"a")
    turn.write(gone, b"x")
    turn.write(wire, b"b")
    gone.closing = True
    await asyncio.sleep(0)
    assert (wire.written, gone.written) == ([b"a", b"b"], [])


async def test_a_connection_that_fails_is_cut_and_takes_nothing_from_others(caplog: pytest.LogCaptureFixture) -> None:
    turn, broken, sound = Turn(), Reader(broken=True), Reader()
    turn.read(broken, b"a")
    turn.read(sound, b"b")
    await asyncio.sleep(0)
    assert (broken.aborted, sound.taken) == (True, [b"b"])
    assert "connection failed" in caplog.text
