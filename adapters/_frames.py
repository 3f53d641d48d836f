"""Wire framing without I/O: feed bytes as they come, get payloads; frame a payload, get bytes.

A framer serves one direction of one connection. None holds more than `max_frame_bytes` and one read, and each is
linear in what it is fed, in whatever pieces it comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

from gateway import MessageError


class Framer(Protocol):
    """What cuts a stream of bytes into payloads. After an error it is of no more use: the connection ends."""

    skipped: int
    """Bytes so far that belonged to no frame: noise between frames, frames that were garbled."""
    garbled: int
    """Frames so far that began and were skipped: their length, checksum or end is wrong."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The payloads that these bytes complete, in order, each as it was sent. Take them all before feeding again.

        Raises:
            MessageError: after the payloads before it: code "too_large": a frame is over the limit; code
                "malformed": the bytes break the framing.
        """
        ...

    def eof(self) -> bytes | None:
        """The payload that the end of the stream completes, or None when it came between two frames.

        Raises:
            MessageError: code "malformed": the stream ended within a frame.
        """
        ...

    @property
    def pending(self) -> int:
        """Bytes of a frame that has begun and not ended; 0: between two frames."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the frame has its end, and only a further byte could say that it goes on: `eof` would give it."""
        ...

    def frame(self, payload: bytes) -> bytes:
        """The bytes that send this payload.

        Raises:
            MessageError: this framing can't carry it: it contains the delimiter, or its length does not fit.
        """
        ...


def too_large(found: int, most: int) -> MessageError:
    """The refusal of a frame over the limit, `found` bytes of it being known so far."""
    return MessageError(
        f"frame: {found} bytes, expected at most {most}; send less, or raise limits.message", code="too_large"
    )


def cut(count: int) -> MessageError:
    """The end of a stream that came within a frame, after so many bytes of it."""
    return MessageError(
        f"frame: the connection ended after {count} bytes of a frame, expected its end; send it whole",
        code="malformed",
    )


def uncarried(what: str, advice: str) -> MessageError:
    """A body that a framing can't carry: it `what`; `advice` says what to do instead."""
    return MessageError(f"frame: the body {what}; {advice}")


class Delimited:
    """Each payload ends with a delimiter, which it can't contain."""

    ended = False
    garbled = 0

    def __init__(self, delimiter: bytes, *, max_frame_bytes: int, beside: int = 0) -> None:
        """beside: bytes of a payload that do not count, such as the CR of a line."""
        self.skipped = 0
        self._delimiter = delimiter
        self._said = max_frame_bytes
        self._max = max_frame_bytes + beside
        self._most_unfinished = self._max + len(delimiter) - 1
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[bytes]:
        buffer, delimiter = self._buffer, self._delimiter
        if buffer:
            unseen = max(0, len(buffer) - len(delimiter) + 1)
            buffer += data
            if buffer.find(delimiter, unseen) < 0:
                data = b""
            else:
                data = bytes(buffer)
                buffer.clear()
        *payloads, rest = data.split(delimiter)
        for payload in payloads:
            if len(payload) > self._max:
                raise too_large(len(payload), self._said)
            yield payload
        buffer += rest
        if len(buffer) > self._most_unfinished:
            raise too_large(len(buffer), self._said)

    def eof(self) -> bytes | None:
        if self._buffer:
            raise cut(len(self._buffer))
        return None

    def frame(self, payload: bytes) -> bytes:
        framed = payload + self._delimiter
        # A payload such as "a-" before the delimiter "--" would end one byte too early.
        if framed.find(self._delimiter) != len(payload):
            raise uncarried(f"contains the delimiter {self._delimiter!r}", "choose another framing, such as length")
        return framed


class Line:
    """Each payload is a line. LF and CR LF both end it; written with `ending`."""

    ended = False
    garbled = 0

    def __init__(self, ending: bytes = b"\n", *, max_frame_bytes: int) -> None:
        self._lines = Delimited(b"\n", max_frame_bytes=max_frame_bytes, beside=1)
        self._max = max_frame_bytes
        self._ending = ending
        self.skipped = 0

    @property
    def pending(self) -> int:
        return self._lines.pending

    def feed(self, data: bytes) -> Iterator[bytes]:
        for line in self._lines.feed(data):
            payload = line[:-1] if line.endswith(b"\r") else line
            if len(payload) > self._max:
                raise too_large(len(payload), self._max)
            yield payload

    def eof(self) -> bytes | None:
        return self._lines.eof()

    def frame(self, payload: bytes) -> bytes:
        if b"\n" in payload:
            raise uncarried("contains a line feed", "write it on one line, or choose another framing, such as length")
        if self._ending == b"\n" and payload.endswith(b"\r"):
            raise uncarried("ends with a carriage return, which the line ending would take in", "leave it out")
        return payload + self._ending


class LengthPrefixed:
    """Each payload comes after its length: `width` bytes of a binary number, or of decimal digits."""

    ended = False
    garbled = 0

    def __init__(
        self,
        width: int,
        order: Literal["big", "little"] = "big",
        *,
        digits: bool = False,
        includes_itself: bool = False,
        max_frame_bytes: int,
    ) -> None:
        self.skipped = 0
        self._width = width
        self._order = order
        self._digits = digits
        self._own = width if includes_itself else 0
        self._longest = 10**width - 1 if digits else 256**width - 1
        self._max = max_frame_bytes
        self._buffer = bytearray()
        self._needed = width
        """Bytes of the buffer before anything more can be said: a length, then a length and its payload."""

    @property
    def pending(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[bytes]:
        buffer, width = self._buffer, self._width
        buffer += data
        if len(buffer) < self._needed:
            return
        at = 0
        while len(buffer) - at >= width:
            start = at + width
            end = start + self._length(bytes(buffer[at:start]))
            if end > len(buffer):
                self._needed = end - at
                break
            yield bytes(buffer[start:end])
            at = end
        else:
            self._needed = width
        del buffer[:at]

    def _length(self, prefix: bytes) -> int:
        if not self._digits:
            length = int.from_bytes(prefix, self._order)
        elif prefix.isdigit():
            length = int(prefix)
        else:
            raise MessageError(
                f"frame: the length is {prefix!r}, expected {self._width} decimal digits; is the framing right?",
                code="malformed",
            )
        length -= self._own
        if length < 0:
            raise MessageError(
                f"frame: the length is {length + self._own}, expected at least {self._own}, its own bytes included",
                code="malformed",
            )
        if length > self._max:
            raise too_large(length, self._max)
        return length

    def eof(self) -> bytes | None:
        if self._buffer:
            raise cut(len(self._buffer))
        return None

    def frame(self, payload: bytes) -> bytes:
        length = len(payload) + self._own
        if length > self._longest:
            raise MessageError(
                f"frame: the body has {len(payload)} bytes, expected at most {self._longest - self._own}, the most "
                "that the length field can say; choose a wider one",
                code="too_large",
            )
        if self._digits:
            return b"%0*d%b" % (self._width, length, payload)
        return length.to_bytes(self._width, self._order) + payload


class Enclosed:
    """Each payload stands between a start and an end that it can't contain. What is outside is skipped and counted.

    A start within a frame means that the frame before it was cut: it is skipped and counted, too.
    """

    ended = False

    def __init__(self, start: bytes = b"\x02", end: bytes = b"\x03", *, max_frame_bytes: int) -> None:
        self.skipped = 0
        self.garbled = 0
        self._start = start
        self._end = end
        self._max = max_frame_bytes
        self._longest = max(len(start), len(end))
        self._buffer = bytearray()  # inside: what came after the start; outside: what may be half a start
        self._inside = False

    @property
    def pending(self) -> int:
        return len(self._buffer) + 1 if self._inside else 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        unseen = max(0, len(self._buffer) - self._longest + 1)
        self._buffer += data
        if self._inside and self._buffer.find(self._end, unseen) < 0 and self._buffer.find(self._start, unseen) < 0:
            self._bounded()
            return
        whole = bytes(self._buffer)
        at = 0
        while True:
            if not self._inside:
                start = whole.find(self._start, at)
                if start < 0:
                    kept = _half(whole[at:], self._start)
                    self.skipped += len(whole) - at - kept
                    at = len(whole) - kept
                    break
                self.skipped += start - at
                at = start + len(self._start)
                self._inside = True
            end = whole.find(self._end, at)
            until = end if end >= 0 else len(whole)
            while (again := whole.find(self._start, at, until)) >= 0:
                if again - at > self._max:
                    raise too_large(again - at, self._max)
                self.skipped += again - at + len(self._start)
                self.garbled += again > at
                at = again + len(self._start)
            if end < 0:
                break
            if end - at > self._max:
                raise too_large(end - at, self._max)
            yield whole[at:end]
            at = end + len(self._end)
            self._inside = False
        del self._buffer[:at]
        self._bounded()

    def _bounded(self) -> None:
        if len(self._buffer) > self._max + self._longest - 1:
            raise too_large(len(self._buffer), self._max)

    def eof(self) -> bytes | None:
        if self._inside:
            raise cut(len(self._buffer))
        return None

    def frame(self, payload: bytes) -> bytes:
        framed = self._start + payload + self._end
        after = len(self._start)
        if framed.find(self._end, after) != after + len(payload) or framed.find(self._start, 1) >= 0:
            raise uncarried(
                f"contains {self._start!r} or {self._end!r}, which start and end a frame",
                "choose another framing, such as length",
            )
        return framed


def _half(data: bytes, start: bytes) -> int:
    """How many bytes at the end of `data` may be the beginning of `start`."""
    for count in range(min(len(start) - 1, len(data)), 0, -1):
        if data.endswith(start[:count]):
            return count
    return 0


class Fixed:
    """Each payload has the same number of bytes."""

    ended = False
    garbled = 0

    def __init__(self, size: int) -> None:
        self.skipped = 0
        self._size = size
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[bytes]:
        buffer, size = self._buffer, self._size
        buffer += data
        whole = len(buffer) - len(buffer) % size
        for at in range(0, whole, size):
            yield bytes(buffer[at : at + size])
        del buffer[:whole]

    def eof(self) -> bytes | None:
        if self._buffer:
            raise cut(len(self._buffer))
        return None

    def frame(self, payload: bytes) -> bytes:
        if len(payload) != self._size:
            raise uncarried(f"has {len(payload)} bytes, expected {self._size}", "format it to that size")
        return payload


class Raw:
    """No framing: each read is one payload (where it is cut is up to the network), or `whole`: all until the end."""

    ended = False
    garbled = 0

    def __init__(self, *, whole: bool = False, max_frame_bytes: int) -> None:
        self.skipped = 0
        self._whole = whole
        self._max = max_frame_bytes
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[bytes]:
        found = len(self._buffer) + len(data)
        if found > self._max:
            raise too_large(found, self._max)
        if self._whole:
            self._buffer += data
        elif data:
            yield data

    def eof(self) -> bytes | None:
        payload = bytes(self._buffer)
        self._buffer.clear()
        return payload or None

    def frame(self, payload: bytes) -> bytes:
        return payload
