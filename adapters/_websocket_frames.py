"""WebSocket frames: bytes in, messages and control frames out, all of it bounded. No I/O. RFC 6455 section 5.

The package websockets makes the handshakes, answers pings and closes. Data frames are read here, because what is half
read, how many fragments there were, and where the next message begins has to be known at any moment.
"""

from __future__ import annotations

from websockets.frames import Frame, Opcode
from websockets.utils import apply_mask as _apply_mask_slowly

try:
    from websockets.speedups import apply_mask
except ImportError:  # a build of websockets without C
    apply_mask = _apply_mask_slowly

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_KNOWN = frozenset((CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG))

PROTOCOL_ERROR, INVALID_DATA, POLICY_VIOLATION, TOO_BIG = 1002, 1007, 1008, 1009

_PLAIN = frozenset((0x80 | TEXT, 0x80 | BINARY))
"""How whole messages begin."""
_MANY_FRAGMENTS = 256
_SMALL_FRAGMENT = 64
"""Of a message in more than 256 fragments these hold 64 bytes each on average: less is a flood."""


class Fault(Exception):  # noqa: N818 - named for what the peer did
    """The peer broke the protocol or a limit. `code` and `reason` are for the close frame."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Frames:
    """Cuts what one peer sends. `feed` bytes, then call `next` until it gives None.

    masked: whether the peer has to mask its frames: a client must, a server must not.
    max_size: bytes of one message, all its fragments together.
    """

    __slots__ = ("_at", "_count", "_data", "_length", "_masked", "_opcode", "_parts", "_start", "max_size")

    def __init__(self, *, masked: bool, max_size: int) -> None:
        self.max_size = max_size
        self._masked = 0x80 if masked else 0
        self._data: bytes | bytearray = b""
        self._at = 0  # where the next frame begins
        self._start = 0  # how far behind that its payload begins; 0: its head is not read
        self._length = 0  # of that payload
        self._opcode = 0  # of the message that came in part; 0: there is none
        self._parts = bytearray()
        self._count = 0

    @property
    def pending(self) -> bool:
        """Whether a message or a frame has begun and not ended. Ask it when `next` gave None."""
        return self._opcode != 0 or self._at < len(self._data)

    def feed(self, data: bytes) -> None:
        """Takes what came."""
        rest = self._data
        if self._at == len(rest):
            self._data = data
        elif isinstance(rest, bytearray):
            del rest[: self._at]
            rest += data
        else:
            rest = self._data = bytearray(memoryview(rest)[self._at :])
            rest += data
        self._at = 0

    def next(self) -> tuple[int, bytes] | None:
        """TEXT or BINARY with a whole message; CLOSE, PING or PONG with the whole frame as it came; None: feed more.

        Raises:
            Fault: nothing behind it can be understood.
        """
        while self._start or self._read_head():
            data, at = self._data, self._at
            start = at + self._start
            end = start + self._length
            if len(data) < end:
                return None
            self._at = end
            self._start = 0
            first = data[at]
            opcode = first & 0x0F
            if opcode >= CLOSE:
                return opcode, bytes(data[at:end])
            payload = bytes(data[start:end])
            if self._masked:
                payload = apply_mask(payload, bytes(data[start - 4 : start]))
            if not (first & 0x80 and opcode):
                whole = self._fragment(opcode, payload, final=first & 0x80)
                if whole is None:
                    continue
                opcode, payload = whole
            if opcode == TEXT and not payload.isascii():
                _check_text(payload)
            return opcode, payload
        return None

    def _read_head(self) -> bool:
        """Reads and checks what a frame begins with; False: it is not whole."""
        data, at = self._data, self._at
        size = len(data) - at
        if size < 2:
            return False
        first, length = data[at], data[at + 1]
        if first & 0x70 or first & 0x0F not in _KNOWN:
            raise Fault(PROTOCOL_ERROR, "reserved bits or an unknown opcode")
        if length & 0x80 != self._masked:
            raise Fault(PROTOCOL_ERROR, "incorrect masking")
        length &= 0x7F
        start = 2
        if length > 125:
            start = 4 if length == 126 else 10
            if size < start:
                return False
            length = int.from_bytes(data[at + 2 : at + start], "big")
            if length < (126 if start == 4 else 65536):
                raise Fault(PROTOCOL_ERROR, "a length in more bytes than it needs")
        if self._opcode or first not in _PLAIN or length > self.max_size:
            self._check(first, length)
        self._start = start + 4 if self._masked else start
        self._length = length
        return True

    def _check(self, first: int, length: int) -> None:
        opcode = first & 0x0F
        if opcode >= CLOSE:
            if length > 125 or not first & 0x80:
                raise Fault(PROTOCOL_ERROR, "a control frame that is too long or fragmented")
            return
        if (opcode == CONTINUATION) != (self._opcode != 0):
            wanted = "a continuation frame" if self._opcode else "no continuation frame"
            raise Fault(PROTOCOL_ERROR, f"expected {wanted}")
        if len(self._parts) + length > self.max_size:
            raise Fault(TOO_BIG, f"a message of more than {self.max_size} bytes")

    def _fragment(self, opcode: int, payload: bytes, *, final: int) -> tuple[int, bytes] | None:
        self._opcode = opcode or self._opcode
        self._parts += payload
        self._count += 1
        if not final:
            if self._count > _MANY_FRAGMENTS and len(self._parts) < self._count * _SMALL_FRAGMENT:
                raise Fault(POLICY_VIOLATION, "too many small fragments")
            return None
        whole = self._opcode, bytes(self._parts)
        self._opcode = self._count = 0
        self._parts = bytearray()
        return whole


def _check_text(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        raise Fault(INVALID_DATA, f"text is not UTF-8 at byte {error.start}") from None


def framed(payload: bytes, *, text: bool) -> bytes:
    """A message as one frame of a server."""
    return Frame(Opcode.TEXT if text else Opcode.BINARY, payload).serialize(mask=False)
