"""What an MQTT broker's codes mean, as sentences, and who must act. Source: MQTT 5.0 section 2.4, 3.1.1 table 3.1."""

from __future__ import annotations

from adapters._mqtt_packets import Answer, Version
from gateway import MessageError, PeerError

_CONNECT_311 = {
    1: "it does not speak MQTT 3.1.1; say version: 5",
    2: "it refused the client id; check client_id:",
    3: "it is not available now",
    4: "bad user name or password; check username: and password:",
    5: "not authorised; check username: and password:, and what the broker allows them",
}
_CONNECT_5 = {
    1: "it does not speak MQTT 5; say version: 3.1.1",
    0x84: "it does not speak MQTT 5; say version: 3.1.1",
    0x85: "it refused the client id; check client_id:",
    0x86: "bad user name or password; check username: and password:",
    0x87: "not authorised; check username: and password:, and what the broker allows them",
    0x88: "it is not available now",
    0x89: "it is busy",
    0x8A: "this client is banned; ask whoever runs it",
    0x8C: "it wants another way to log in than user name and password",
    0x90: "it refused the topic of the will; check will:",
    0x95: "our first packet is too large for it; check will:",
    0x97: "a quota is used up",
    0x99: "it refused the payload of the will; check will:",
    0x9A: "it can't retain; check will:",
    0x9B: "it does not support the QoS of the will; check will:",
    0x9C: "it says to use another server",
    0x9D: "it says that the server moved",
    0x9F: "too many connections within a time",
}
_REASON = {
    0x04: "the client's will is wanted",
    0x80: "it gives no reason",
    0x81: "it says that a packet was malformed",
    0x82: "it says that the protocol was violated",
    0x83: "a reason of its own",
    0x87: "not authorised; check what the broker allows this user",
    0x89: "it is busy",
    0x8B: "it is shutting down",
    0x8D: "it heard nothing from us within the keep-alive time",
    0x8E: "another client took the client id over; give every client its own client_id:",
    0x8F: "it refused the topic filter; check topic:",
    0x90: "it refused the topic name",
    0x91: "the packet id is in use",
    0x93: "too many messages at once",
    0x95: "a packet is too large for it",
    0x96: "too many messages within a time",
    0x97: "a quota is used up",
    0x98: "an operator of the broker ended it",
    0x99: "it refused the payload as not of the format that was said",
    0x9A: "it can't retain; say retain: false",
    0x9B: "it does not support this QoS; say a lower qos:",
    0x9E: "it does not support shared subscriptions; leave shared_group: out",
    0xA1: "it does not support subscription identifiers",
    0xA2: "it does not support wildcards; say a topic: without + and #",
}
# What is wrong with this message stays wrong. What an operator of the broker can change is not here.
_MESSAGE_CODES = {0x90, 0x95, 0x99}
_BROKEN_LINK_CODES = {0x91}


def connect_refused(peer: str, answer: Answer, version: Version) -> PeerError:
    """The error for a CONNACK that refuses."""
    table = _CONNECT_5 if version == 5 else _CONNECT_311
    text = table.get(answer.code) or _REASON.get(answer.code) or f"code {answer.code}"
    return PeerError(f"{peer}: the broker refused the connection: {text}{_said(answer)}", reconnect=True)


def subscribe_refused(peer: str, topic_filter: str, answer: Answer, code: int) -> PeerError:
    """The error for a SUBACK that refuses, which in MQTT 3.1.1 never says why."""
    text = _REASON.get(code, f"code {code}") if code != 0x80 else "check topic: and what the broker allows this user"
    return PeerError(f"{peer}: the broker refused the subscription to {topic_filter!r}: {text}{_said(answer)}")


def publish_refused(peer: str, topic: str, answer: Answer) -> MessageError | PeerError:
    """The error for a PUBACK, PUBREC or PUBCOMP that refuses."""
    text = f"{peer}: the broker refused the message to {topic!r}: {_reason(answer)}"
    if answer.code in _MESSAGE_CODES:
        return MessageError(text, code="too_large" if answer.code == 0x95 else "refused")
    return PeerError(text, reconnect=answer.code in _BROKEN_LINK_CODES)


def disconnected(peer: str, answer: Answer) -> PeerError:
    """The error for a DISCONNECT that the broker sends (MQTT 5)."""
    return PeerError(f"{peer}: the broker closed the connection: {_reason(answer)}", reconnect=True)


def _reason(answer: Answer) -> str:
    return _REASON.get(answer.code, f"code {answer.code}") + _said(answer)


def _said(answer: Answer) -> str:
    said = answer.properties.get("reason_string")
    return f' (it says: "{said[:200]}")' if said else ""
