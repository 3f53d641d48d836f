"""MQTT 3.1.1 and 5 packets without I/O: bytes to packets, and the packets that a client sends as bytes.

What is sent is written by gmqtt's packet layer; what arrives is read here, strictly, because gmqtt reads packets inside
of its session. Source: OASIS MQTT 3.1.1 and 5.0.
"""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Mapping
from typing import Any, Literal

from gmqtt.mqtt.constants import MQTTv50, MQTTv311
from gmqtt.mqtt.package import (
    DisconnectPacket,
    LoginPackageFactor,
    PublishPacket,
    SubscribePacket,
    UnsubscribePacket,
)
from gmqtt.mqtt.property import PROPERTIES_BY_ID
from gmqtt.subscription import Subscription
from msgspec import Struct

Version = Literal[5, "3.1.1"]
"""As written in YAML."""

CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = 0x20, 0x30, 0x40, 0x50, 0x60, 0x70
SUBACK, UNSUBACK, PINGRESP, DISCONNECT, AUTH = 0x90, 0xB0, 0xD0, 0xE0, 0xF0
PINGREQ = b"\xc0\x00"

MAX_PACKET_BYTES = 64 * 1024**2 + 256 * 1024
"""The largest body that a route may take (64 MiB), with room for topic and properties."""

logging.getLogger("gmqtt").setLevel(logging.WARNING)  # a line for each subscription

_NOTHING: Mapping[str, Any] = {}
_U16 = struct.Struct("!H")
_ACK = struct.Struct("!BBH")


class PacketError(Exception):
    """These bytes are no packet that MQTT allows here. The text says why, without a subject."""


class Publish(Struct, gc=False):
    """A PUBLISH as received. `packet_id` is 0 for QoS 0."""

    topic: str
    body: bytes
    qos: int
    retain: bool
    redelivered: bool
    packet_id: int
    properties: Mapping[str, Any]
    size: int
    """Bytes of all that came: topic, properties and body."""


class Outgoing(Struct, gc=False):
    """A PUBLISH to send, with the attributes that gmqtt's packet layer reads."""

    topic: bytes
    payload: bytes
    qos: int
    retain: bool
    properties: Mapping[str, Any]
    dup: bool = False

    @property
    def payload_size(self) -> int:
        """Bytes of the payload."""
        return len(self.payload)


_BEYOND = "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17))
_ODD = re.compile(f"[\0-\x1f\x7f-\x9f\ufdd0-\ufdef{_BEYOND}]")


def odd_sign(message: Outgoing) -> str | None:
    """The first sign of its texts that a broker may take for a malformed packet. Source: MQTT 5 section 1.5.4."""
    properties = message.properties
    texts = [message.topic.decode(), properties.get("content_type") or ""]
    for name, value in properties.get("user_property", ()):
        texts += (name, value)
    found = _ODD.search("".join(texts))
    return found[0] if found else None


class Will(Struct, frozen=True):
    """What the broker publishes when the link is lost without a goodbye."""

    topic: bytes
    payload: bytes
    qos: int
    retain: bool
    properties: Mapping[str, Any] = _NOTHING


class Packets:
    """Cuts a stream into packets. Holds at most one packet that is not complete."""

    def __init__(self, max_bytes: int = MAX_PACKET_BYTES) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._needed = 2
        self.count = 0
        """Packets that were complete."""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The packets that these bytes complete: first byte, and what follows the length.

        Raises:
            PacketError: a length of more than four bytes, or over the limit.
        """
        buffer = self._buffer
        buffer += data
        packets: list[tuple[int, bytes]] = []
        at, end = 0, len(buffer)
        while end - at >= self._needed:
            size, body = self._size(at, end)
            if size < 0 or body + size > end:
                break
            packets.append((buffer[at], bytes(buffer[body : body + size])))
            at = body + size
            self._needed = 2
            self.count += 1
        if at:
            del buffer[:at]
        return packets

    @property
    def pending(self) -> bool:
        """Whether a packet has begun that is not complete."""
        return bool(self._buffer)

    def _size(self, at: int, end: int) -> tuple[int, int]:
        """What the packet at this place holds after its length, and where that begins; -1 while the length is cut."""
        buffer = self._buffer
        size = shift = 0
        for place in range(at + 1, min(at + 5, end)):
            digit = buffer[place]
            size |= (digit & 0x7F) << shift
            if digit < 0x80:
                if size > self._max_bytes:
                    raise PacketError(f"a packet has {size} bytes, expected at most {self._max_bytes}")
                self._needed = place + 1 - at + size
                return size, place + 1
            shift += 7
        if end - at >= 5:
            raise PacketError("the length of a packet has more than four bytes")
        return -1, 0


def read_publish(first: int, body: bytes, version: Version) -> Publish:
    """The PUBLISH with this first byte and body.

    Raises:
        PacketError: it is not well-formed: QoS 3, no packet id, a topic that is not UTF-8 or holds a wildcard.
    """
    try:
        qos = first >> 1 & 3
        at = 2 + _U16.unpack_from(body)[0]
        topic = body[2:at].decode()
        packet_id = 0
        if qos:
            (packet_id,) = _U16.unpack_from(body, at)
            at += 2
        properties: Mapping[str, Any] = _NOTHING
        if version == 5:
            if body[at]:
                properties, at = read_properties(body, at)
            else:
                at += 1
    except (struct.error, IndexError) as error:
        raise PacketError("a PUBLISH ends too early") from error
    except UnicodeDecodeError as error:
        raise PacketError("a topic is not UTF-8") from error
    if qos == 3 or (qos and not packet_id) or at > len(body):
        raise PacketError("a PUBLISH has QoS 3, packet id 0 or a topic beyond its end")
    if not topic or "#" in topic or "+" in topic or "\0" in topic:
        raise PacketError("a PUBLISH has no topic, or one with a wildcard or NUL")
    return Publish(topic, body[at:], qos, bool(first & 1), bool(first & 8), packet_id, properties, len(body))


def read_properties(body: bytes, at: int) -> tuple[dict[str, Any], int]:
    """The properties that begin at this place, by gmqtt's names, and where they end.

    User properties and subscription identifiers are lists, as they may come more than once.

    Raises:
        PacketError: they are not well-formed, or there are some that MQTT 5 does not know.
    """
    length, at = _read_varint(body, at)
    end = at + length
    if end > len(body):
        raise PacketError("properties reach beyond the end of their packet")
    found: dict[str, Any] = {}
    while at < end:
        known = PROPERTIES_BY_ID.get(body[at])
        if known is None:
            raise PacketError(f"there is no property {body[at]}")
        value, at = _read_value(known.bytes_struct, body, at + 1)
        if known.name in {"user_property", "subscription_identifier"}:
            found.setdefault(known.name, []).append(value)
        else:
            found[known.name] = value
    if at != end:
        raise PacketError("a property reaches beyond the end of the properties")
    return found, end


def _read_value(kind: str, body: bytes, at: int) -> tuple[Any, int]:
    if kind == "u8x2":
        name, at = _read_value("u8", body, at)
        value, at = _read_value("u8", body, at)
        return (name, value), at
    if kind == "vbi":
        return _read_varint(body, at)
    if kind in {"u8", "b"}:
        end = at + 2 + _U16.unpack_from(body, at)[0]
        if end > len(body):
            raise PacketError("a property reaches beyond the end of its packet")
        value = body[at + 2 : end]
        return (value.decode() if kind == "u8" else value), end
    number = struct.Struct(kind)
    return number.unpack_from(body, at)[0], at + number.size


def _read_varint(body: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in (0, 7, 14, 21):
        digit = body[at]
        at += 1
        value |= (digit & 0x7F) << shift
        if digit < 0x80:
            return value, at
    raise PacketError("a number has more than four bytes")


class Answer(Struct, frozen=True):
    """CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK or DISCONNECT: what is common to them."""

    packet_id: int = 0
    code: int = 0
    codes: bytes = b""
    session_present: bool = False
    properties: Mapping[str, Any] = _NOTHING


def read_answer(first: int, body: bytes, version: Version) -> Answer:
    """The packet with this first byte and body; `first` is any but PUBLISH and PINGRESP.

    Raises:
        PacketError: it is not well-formed.
    """
    kind = first & 0xF0
    try:
        if kind == CONNACK:
            properties = read_properties(body, 2)[0] if version == 5 and len(body) > 2 else _NOTHING
            return Answer(code=body[1], session_present=bool(body[0] & 1), properties=properties)
        if kind == DISCONNECT:
            properties = read_properties(body, 1)[0] if len(body) > 1 else _NOTHING
            return Answer(code=body[0] if body else 0, properties=properties)
        (packet_id,) = _U16.unpack_from(body)
        if kind in {SUBACK, UNSUBACK}:
            properties, at = read_properties(body, 2) if version == 5 else (_NOTHING, 2)
            return Answer(packet_id, codes=body[at:], properties=properties)
        if len(body) == 2:
            return Answer(packet_id)
        properties = read_properties(body, 3)[0] if len(body) > 3 else _NOTHING
        return Answer(packet_id, body[2], properties=properties)
    except (struct.error, IndexError) as error:
        raise PacketError("a packet ends too early") from error
    except UnicodeDecodeError as error:
        raise PacketError("a text is not UTF-8") from error


class Writer:
    """Writes the packets of one version. Texts go in as UTF-8 bytes: gmqtt counts characters where bytes count."""

    proto_name = b"MQTT"

    def __init__(self, version: Version) -> None:
        self.proto_ver: int = MQTTv50 if version == 5 else MQTTv311
        self.id_generator = self
        self._packet_id = 0

    def next_id(self) -> int:
        """The packet id for the packet being written: gmqtt asks for it."""
        return self._packet_id

    def connect(
        self,
        client_id: str,
        username: str | None,
        password: str | None,
        *,
        clean: bool,
        keep_alive_s: int,
        will: Will | None,
        properties: Mapping[str, Any],
    ) -> bytes:
        """CONNECT."""
        return bytes(
            LoginPackageFactor.build_package(
                client_id.encode(),
                None if username is None else username.encode(),
                None if password is None else password.encode(),
                clean,
                keep_alive_s,
                self,
                will_message=will,
                **properties,
            )
        )

    def subscribe(self, packet_id: int, topic_filter: str, qos: int, identifier: int | None) -> bytes:
        """SUBSCRIBE to one filter; what the broker retained comes only when the subscription is new (MQTT 5)."""
        self._packet_id = packet_id
        handling = 1 if self.proto_ver == MQTTv50 else 0
        wanted = Subscription(
            topic_filter.encode(), qos, retain_handling_options=handling, subscription_identifier=identifier
        )
        return bytes(SubscribePacket.build_package([wanted], self)[1])

    def unsubscribe(self, packet_id: int, topic_filter: str) -> bytes:
        """UNSUBSCRIBE from one filter."""
        self._packet_id = packet_id
        return bytes(UnsubscribePacket.build_package([topic_filter.encode()], self)[1])

    def publish(self, packet_id: int, message: Outgoing) -> bytes:
        """PUBLISH. Raises struct.error for a topic or property of more than 65,535 bytes."""
        self._packet_id = packet_id
        return bytes(PublishPacket.build_package(message, self)[1])

    def ack(self, kind: int, packet_id: int) -> bytes:
        """PUBACK, PUBREC, PUBREL or PUBCOMP that says success: two bytes in both versions."""
        return _ACK.pack(kind | 2 if kind == PUBREL else kind, 2, packet_id)

    def disconnect(self) -> bytes:
        """DISCONNECT that says goodbye: no will is published."""
        return bytes(DisconnectPacket.build_package(self))
