"""What stands between the network and amqtt's broker: whole packets, checked, within limits of size and time.

amqtt 0.12.1 reads packets field by field without any limit, takes bad UTF-8 for text, goes on after a length that can't
be, and lets a client be silent for ever. Here each packet is read whole and checked before amqtt sees it; what breaks
the rules is the end of the connection.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import ssl
from collections.abc import Mapping
from typing import cast

from amqtt.adapters import ReaderAdapter, WriterAdapter
from msgspec import Struct

from adapters._mqtt_packets import PacketError, read_publish
from gateway import Clock, Limits

CONNECT, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = 0x10, 0x30, 0x40, 0x50, 0x60, 0x70
SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT = 0x82, 0xA2, 0xC0, 0xE0

SUBSCRIPTIONS = 1_000
"""Topic filters of one client, and of one packet, at most."""
_OTHER_BYTES = 128 * 1024
"""What a packet may hold beside the body of a message: its topic, or the fields of CONNECT or SUBSCRIBE."""
_GOODBYE_S = 1.0
_FAILURES, _WITHIN_S, _SHUT_S, _MOST_SHUT_S, _REMEMBERED = 10, 60.0, 300.0, 3600.0, 10_000


class Connect(Struct, frozen=True):
    """What a client says of itself in its first packet."""

    level: int
    client_id: str = ""
    clean: bool = True
    keep_alive_s: int = 0
    username: str | None = None
    password: str | None = None
    will_topic: str | None = None
    will_body: bytes = b""
    will_qos: int = 0
    will_retain: bool = False


class _Fields:
    """Reads the fields of a packet's body. Every read raises PacketError beyond its end."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._body):
            raise PacketError("a packet ends too early")
        found, self._at = self._body[self._at : end], end
        return found

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def data(self) -> bytes:
        return self.take(self.number(2))

    def text(self) -> str:
        try:
            found = self.data().decode()
        except UnicodeDecodeError as error:
            raise PacketError("a text is not UTF-8") from error
        if "\0" in found:
            raise PacketError("a text holds NUL")
        return found

    @property
    def left(self) -> int:
        return len(self._body) - self._at

    def end(self) -> None:
        if self.left:
            raise PacketError("a packet holds more than it should")


def read_connect(body: bytes) -> Connect:
    """The CONNECT with this body. Only `level` holds something when it is not 4.

    Raises:
        PacketError: it is not well-formed.
    Source: MQTT 3.1.1 section 3.1.
    """
    fields = _Fields(body)
    protocol, level = fields.text(), fields.number(1)
    if protocol != "MQTT" and (protocol, level) != ("MQIsdp", 3):
        raise PacketError("the first packet is of another protocol")
    if level != 4:
        return Connect(level)
    flags, keep_alive_s, client_id = fields.number(1), fields.number(2), fields.text()
    has_will, will_qos = bool(flags & 0x04), flags >> 3 & 3
    if flags & 1 or will_qos == 3 or (not has_will and flags & 0x38) or (flags & 0x40 and not flags & 0x80):
        raise PacketError("the flags of a CONNECT contradict each other")
    will_topic = fields.text() if has_will else None
    will_body = fields.data() if has_will else b""
    if has_will and (not will_topic or any(sign in will_topic for sign in "+#")):
        raise PacketError("a will has no topic, or one with a wildcard")
    username = fields.text() if flags & 0x80 else None
    password = fields.text() if flags & 0x40 else None
    fields.end()
    return Connect(
        level,
        client_id,
        bool(flags & 2),
        keep_alive_s,
        username,
        password,
        will_topic,
        will_body,
        will_qos,
        bool(flags & 0x20),
    )


def check(first: int, body: bytes, limits: Limits) -> None:
    """Looks at a packet that comes after CONNECT, so that amqtt reads exactly what is there.

    Raises:
        PacketError: it is not well-formed, may not come here, or its body is over the limit.
    """
    if first & 0xF0 == PUBLISH:
        publish = read_publish(first, body, "3.1.1")
        if len(publish.body) > limits.message:
            raise PacketError(f"a message has {len(publish.body)} bytes, expected at most {limits.message}")
        if publish.topic.startswith("$"):
            raise PacketError("a PUBLISH to a topic that begins with $, which is the broker's own")
        return
    fields = _Fields(body)
    if first in {PUBACK, PUBREC, PUBREL | 2, PUBCOMP}:
        fields.number(2)
    elif first in {SUBSCRIBE, UNSUBSCRIBE}:
        if not fields.number(2) or not fields.left:
            raise PacketError("a SUBSCRIBE or UNSUBSCRIBE has no packet id or no topic filter")
        asked = 0
        while fields.left:
            topic_filter = fields.text()
            asked += 1
            if asked > SUBSCRIPTIONS:
                raise PacketError(f"a packet has more than {SUBSCRIPTIONS} topic filters")
            if not topic_filter or (first == SUBSCRIBE and fields.number(1) > 2):
                raise PacketError("a SUBSCRIBE has an empty topic filter or a QoS that is none")
    elif first not in {PINGREQ, DISCONNECT}:
        raise PacketError(f"a packet of type {first >> 4} with flags {first & 15}, which no client may send here")
    fields.end()


class Window:
    """How many messages and requests of one client are read and not done with yet."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._freed = asyncio.Event()

    async def room(self) -> None:
        """Returns once there is room for one more."""
        while self._used >= self._size:
            self._freed.clear()
            await self._freed.wait()

    def take(self) -> None:
        """One was read."""
        self._used += 1

    def free(self) -> None:
        """One is done with."""
        self._used -= 1
        self._freed.set()


class Reader(ReaderAdapter):  # type: ignore[misc]
    """A stream as amqtt reads it: packet by packet, each checked. What breaks the rules is the end of the stream.

    While its window has no room nothing is read, so that a client can't have more in flight than it may; nor while it
    does not read what it is sent.
    """

    def __init__(self, stream: asyncio.StreamReader, writer: Writer, limits: Limits, window: Window) -> None:
        self._stream = stream
        self._writer = writer
        self._limits = limits
        self._packet = b""
        self._at = 0
        self._silence_s: float | None = None
        self._window = window
        self.broken: str | None = None
        """How the client broke the rules, once it did."""

    async def connect(self) -> Connect:
        """The first packet, which has to be there within the time for a handshake.

        Raises:
            PacketError: it is no CONNECT, or did not come in time.
        """
        try:
            async with asyncio.timeout(self._limits.handshake):
                first, body, _ = await self._next()
        except TimeoutError:
            raise PacketError(f"no CONNECT within {self._limits.handshake:g} s") from None
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise PacketError("closed before its CONNECT") from error
        if first != CONNECT:
            raise PacketError("the first packet is no CONNECT")
        found = read_connect(body)
        self._silence_s = found.keep_alive_s * 1.5 or None
        return found

    async def read(self, n: int = -1) -> bytes:
        """The next bytes of the packet that is being read, or of the next one."""
        if self._at >= len(self._packet):
            await self._fill()
        begin, self._at = self._at, self._at + n
        return self._packet[begin : self._at]

    def feed_eof(self) -> None:
        """Ends the stream."""
        self._stream.feed_eof()

    async def _fill(self) -> None:
        try:
            await self._window.room()
            await self._writer.drain()  # each answer that it does not read would wait in a task of its own
            first, body, length = await self._next()
            check(first, body, self._limits)
            if first & 0xF0 == PUBLISH or first in {SUBSCRIBE, UNSUBSCRIBE}:
                self._window.take()
        except PacketError as error:
            self.broken = self.broken or str(error)
            raise asyncio.IncompleteReadError(b"", None) from error
        self._packet = bytes([first]) + length + body
        self._at = 0

    async def _next(self) -> tuple[int, bytes, bytes]:
        try:
            async with asyncio.timeout(self._silence_s):
                first = (await self._stream.readexactly(1))[0]
        except TimeoutError:
            raise PacketError(f"silent for {self._silence_s:g} s, beyond its keep-alive time") from None
        try:
            async with asyncio.timeout(self._limits.frame):
                length, size = b"", 0
                while not length or length[-1] & 0x80:
                    if len(length) == 4:
                        raise PacketError("the length of a packet has more than four bytes")
                    length += await self._stream.readexactly(1)
                    size |= (length[-1] & 0x7F) << 7 * (len(length) - 1)
                most = (self._limits.message if first & 0xF0 == PUBLISH else 0) + _OTHER_BYTES
                if size > most:
                    raise PacketError(f"a packet has {size} bytes, expected at most {most}")
                return first, await self._stream.readexactly(size), length
        except TimeoutError:
            raise PacketError(f"a packet took more than {self._limits.frame:g} s") from None


class Writer(WriterAdapter):  # type: ignore[misc]
    """A stream as amqtt writes it. A client that does not read is cut, and never holds us up when we close."""

    def __init__(self, stream: asyncio.StreamWriter, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._closed = False

    def write(self, data: bytes) -> None:
        """Writes, unless closed."""
        if not self._closed and not self._stream.is_closing():
            self._stream.write(data)

    async def drain(self) -> None:
        """Returns when the client has read enough.

        Raises:
            ConnectionResetError: it did not within the time for a frame, and is cut.
        """
        if self._closed:
            return
        try:
            async with asyncio.timeout(self._limits.frame):
                await self._stream.drain()
        except TimeoutError as error:
            self._stream.transport.abort()
            raise ConnectionResetError("the client does not read") from error

    def get_peer_info(self) -> tuple[str, int] | None:
        """Address and port of the client."""
        peer = self._stream.get_extra_info("peername")
        return (peer[0], peer[1]) if peer else None

    def get_ssl_info(self) -> ssl.SSLObject | None:
        """The TLS of the connection, if it has any."""
        return cast("ssl.SSLObject | None", self._stream.get_extra_info("ssl_object"))

    async def close(self) -> None:
        """Says what is left to say for a second at most, then cuts."""
        if self._closed:
            return
        self._closed = True
        self._stream.close()
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await self._stream.wait_closed()
        except (TimeoutError, OSError):
            self._stream.transport.abort()


class _Failed:
    """The wrong passwords of one name from one address."""

    __slots__ = ("locks", "shut_until_s", "times_s")

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.shut_until_s = 0.0
        self.locks = 0


class Users:
    """Names and passwords. Ten failures a minute of one name from one address shut the two out for five minutes, then
    ten, up to an hour; a right password begins anew."""

    def __init__(self, passwords: Mapping[str, str], clock: Clock) -> None:
        self._salt = secrets.token_bytes(16)
        self._hashes = {name: self._hash(password) for name, password in passwords.items()}
        self._nobody = self._hash(secrets.token_hex())
        self._clock = clock
        self._failures: dict[tuple[str, str], _Failed] = {}

    def knows(self, name: str | None, password: str | None, address: str) -> bool:
        """Whether this is the password of this user."""
        who = (name or "", address)
        now_s = self._clock.monotonic()
        failed = self._failures.get(who)
        if failed is not None and now_s < failed.shut_until_s:
            return False
        expected = self._hashes.get(name or "", self._nobody)
        if hmac.compare_digest(expected, self._hash(password or "")) and name in self._hashes:
            self._failures.pop(who, None)
            return True
        if failed is None:
            if len(self._failures) >= _REMEMBERED:
                del self._failures[next(iter(self._failures))]
            failed = self._failures[who] = _Failed()
        failed.times_s = [at_s for at_s in failed.times_s if now_s - at_s < _WITHIN_S] + [now_s]
        if len(failed.times_s) >= _FAILURES:
            failed.shut_until_s = now_s + min(_SHUT_S * 2.0**failed.locks, _MOST_SHUT_S)
            failed.locks = min(failed.locks + 1, 10)
            failed.times_s = []
        return False

    def _hash(self, password: str) -> bytes:
        return hashlib.blake2b(password.encode(), key=self._salt).digest()
