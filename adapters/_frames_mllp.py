"""The framing of MLLP without I/O."""

from __future__ import annotations

from collections.abc import Iterator

from adapters._frames import cut, too_large, uncarried

_VT, _FS, _CR = 0x0B, 0x1C, 0x0D
_BETWEEN = frozenset((0x00, 0x0A, _VT))


class Mllp:
    """HL7's minimal lower layer: each payload stands between 0B and 1C 0D. Source: MLLP release 1.

    Heard as well: bytes before 0B (skipped, counted), 0B more than once, NULs and line ends between frames, an end
    without its 0D when NUL, LF, a new 0B or the end of the stream comes instead. Any other byte after 1C makes both
    part of the payload: a frame is never cut in two. `ended` says that 1C was the last byte heard, which a peer that
    leaves 0D out and waits for its answer needs somebody to act upon.
    """

    garbled = 0

    def __init__(self, *, max_frame_bytes: int) -> None:
        self.skipped = 0
        self._max = max_frame_bytes
        self._buffer = bytearray()
        self._inside = False
        self._scanned = 0

    @property
    def pending(self) -> int:
        return len(self._buffer) + 1 if self._inside else 0

    @property
    def ended(self) -> bool:
        return self._inside and self._scanned < len(self._buffer)

    def feed(self, data: bytes) -> Iterator[bytes]:
        buffer = self._buffer
        buffer += data
        at = 0
        while self._inside or (at := self._begin(at)) >= 0:
            if buffer[at : at + 1] == b"\x0b":
                at += 1
                self.skipped += 1
                self._scanned = max(self._scanned, at)
                continue
            end = self._end(at)
            if end < 0:
                break
            if end - at > self._max:
                del buffer[:at]  # so that it begins with the frame that is refused
                raise too_large(end - at, self._max)
            yield bytes(buffer[at:end])
            at = end + 2 if buffer[end + 1] == _CR else end + 1
            self._inside = False
        if self._inside:
            del buffer[:at]
            self._scanned -= at
            if self._scanned > self._max:
                raise too_large(self._scanned, self._max)
        else:
            buffer.clear()

    def _begin(self, at: int) -> int:
        """Where the payload begins, -1: what is left is noise."""
        start = self._buffer.find(_VT, at)
        self.skipped += (len(self._buffer) if start < 0 else start) - at
        if start < 0:
            return -1
        self._inside = True
        self._scanned = start + 1
        return start + 1

    def _end(self, at: int) -> int:
        """Where the payload that begins at `at` ends, -1: not yet."""
        buffer = self._buffer
        while (end := buffer.find(_FS, self._scanned)) >= 0:
            self._scanned = end
            if end + 1 == len(buffer):
                return -1
            if buffer[end + 1] == _CR or buffer[end + 1] in _BETWEEN:
                return end
            self._scanned = end + 1
        self._scanned = len(buffer)
        return -1

    def eof(self) -> bytes | None:
        if not self._inside:
            return None
        if not self.ended:
            raise cut(len(self._buffer) + 1)
        payload = bytes(self._buffer[: self._scanned])
        self._buffer.clear()
        self._inside = False
        return payload

    def frame(self, payload: bytes) -> bytes:
        if _FS in payload or payload[:1] == b"\x0b":
            raise uncarried("contains 1C or begins with 0B, which end and start an MLLP frame", "leave them out")
        return b"\x0b%b\x1c\r" % payload
