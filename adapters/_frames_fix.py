"""FIX framing without I/O: messages found by their BodyLength, not by a search for their trailer."""

from __future__ import annotations

from collections.abc import Iterator

from adapters._frames import too_large
from gateway import MessageError

_BEGIN = b"8=FIX"
_SOH = 0x01
_LONGEST_BEGIN = 24
"""`8=FIXT.1.1` has ten bytes; more than this before the first SOH is no BeginString."""
_LONGEST_LENGTH = 12
_TRAILER = 7
"""`10=nnn` and SOH."""


class Fix:
    """Each payload is a FIX message from `8=` to the SOH after its CheckSum, whole.

    A garbled one (BodyLength, CheckSum or trailer wrong) is skipped and counted, as the session protocol says: it goes
    on at the next `8=FIX`. Source: FIX session protocol, "BodyLength", "CheckSum", "garbled message".
    """

    ended = False

    def __init__(self, *, max_frame_bytes: int) -> None:
        self.skipped = 0
        self.garbled = 0
        self._max = max_frame_bytes
        self._buffer = bytearray()
        self._needed = 0
        """Bytes of the buffer before anything more can be said."""

    @property
    def pending(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[bytes]:
        buffer = self._buffer
        buffer += data
        if len(buffer) < self._needed:
            return
        at = 0
        self._needed = 0
        while (at := self._begin(at)) + len(_BEGIN) <= len(buffer):
            end = self._end(at)
            if end > len(buffer):
                self._needed = end - at
                break
            if end < 0 or not _has_trailer(buffer, end):
                self.skipped += 1
                self.garbled += 1
                at += 1
                continue
            message = bytes(buffer[at:end])
            if _checksum_holds(message):
                yield message
            else:  # but its end is known: to look within it again would cost a square of its length
                self.skipped += len(message)
                self.garbled += 1
            at = end
        del buffer[:at]

    def _begin(self, at: int) -> int:
        """Where the next message begins, or may begin when more has come."""
        start = self._buffer.find(_BEGIN, at)
        if start < 0:
            start = len(self._buffer)
            for count in range(min(len(_BEGIN) - 1, start - at), 0, -1):
                if self._buffer.endswith(_BEGIN[:count]):
                    start -= count
                    break
        self.skipped += start - at
        return start

    def _end(self, at: int) -> int:
        """Where the message at `at` ends by its BodyLength; beyond the buffer: more is needed; -1: garbled.

        Raises:
            MessageError: code "too_large".
        """
        buffer = self._buffer
        begin = buffer.find(_SOH, at, at + _LONGEST_BEGIN)
        if begin < 0:
            return -1 if len(buffer) >= at + _LONGEST_BEGIN else len(buffer) + 1
        body = buffer.find(_SOH, begin + 1, begin + 1 + _LONGEST_LENGTH)
        if body < 0:
            return -1 if len(buffer) >= begin + 1 + _LONGEST_LENGTH else len(buffer) + 1
        digits = buffer[begin + 3 : body]
        if buffer[begin + 1 : begin + 3] != b"9=" or not digits.isdigit():
            return -1
        end = body + 1 + int(digits) + _TRAILER
        if end - at > self._max:
            raise too_large(end - at, self._max)
        return end

    def eof(self) -> bytes | None:
        if self._buffer:
            raise MessageError(
                f"frame: the connection ended after {len(self._buffer)} bytes of a FIX message, expected its trailer",
                code="malformed",
            )
        return None

    def frame(self, payload: bytes) -> bytes:
        whole = Fix(max_frame_bytes=len(payload))
        try:
            found = list(whole.feed(payload))
        except MessageError:
            found = []
        if found != [payload]:
            raise MessageError(
                f"frame: the body begins {payload[:20]!r} and is not one whole FIX message (8=, 9= its length, …, 10= "
                "its checksum); add the step format: fix, or choose another framing",
                code="malformed",
            )
        return payload


def _has_trailer(buffer: bytearray, end: int) -> bool:
    """Whether the message that should end here has its trailer there."""
    trailer = end - _TRAILER
    return (
        buffer[trailer - 1] == _SOH
        and buffer[trailer : trailer + 3] == b"10="
        and buffer[trailer + 3 : end - 1].isdigit()
        and buffer[end - 1] == _SOH
    )


def _checksum_holds(message: bytes) -> bool:
    return int(message[-4:-1]) == sum(message[:-_TRAILER]) % 256
