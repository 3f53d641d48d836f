"""MQTT without a broker: packets, the order of acknowledgements, settings."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from adapters._mqtt_arrivals import Arrival, Arrivals, Subscription, matches
from adapters._mqtt_messages import Replies, message_of
from adapters._mqtt_packets import (
    PUBACK,
    PUBCOMP,
    PUBREC,
    PUBREL,
    Outgoing,
    PacketError,
    Packets,
    Publish,
    Version,
    Writer,
    read_answer,
    read_publish,
)
from adapters.mqtt import Connection, Sink, Source
from gateway import Message, Template, TopicTemplate
from gateway.settings import ClientTls
from gateway.testing import FakeHost

VERSIONS: list[Version] = [5, "3.1.1"]


def packets_of(data: bytes) -> list[tuple[int, bytes]]:
    return Packets().feed(data)


@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(1, 50), st.sampled_from(VERSIONS))
def test_publishes_survive_any_way_the_stream_is_cut(bodies: list[bytes], piece: int, version: Version) -> None:
    writer, packets = Writer(version), Packets()
    stream = b"".join(
        writer.publish(number, Outgoing("größe/1".encode(), body, 1, retain=False, properties={}))
        for number, body in enumerate(bodies, 1)
    )
    found = [packet for at in range(0, len(stream), piece) for packet in packets.feed(stream[at : at + piece])]
    read = [read_publish(first, body, version) for first, body in found]
    assert [(one.topic, one.body, one.packet_id) for one in read] == [
        ("größe/1", body, number) for number, body in enumerate(bodies, 1)
    ]


def test_properties_survive_writing_and_reading() -> None:
    properties = {
        "content_type": "text/plain; ü",
        "message_expiry_interval": 90,
        "response_topic": "answers/1",
        "correlation_data": b"\x00\xff",
        "user_property": [("a", "1"), ("a", "2")],
    }
    ((first, body),) = packets_of(Writer(5).publish(7, Outgoing(b"t", b"x", 2, retain=True, properties=properties)))
    read = read_publish(first, body, 5)
    assert read.properties == properties
    assert (read.qos, read.retain, read.redelivered, read.body) == (2, True, False, b"x")


@given(st.binary(max_size=100), st.integers(0, 255), st.sampled_from(VERSIONS))
def test_no_bytes_raise_anything_but_packet_errors(body: bytes, first: int, version: Version) -> None:
    for read in (read_publish, read_answer):
        with contextlib.suppress(PacketError):
            read(first, body, version)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\x30\xff\xff\xff\xff\x01", "more than four bytes"),
        (b"\x30\xff\xff\xff\x7f", "expected at most"),
    ],
    ids=["five length bytes", "256 MiB"],
)
def test_a_length_beyond_what_is_allowed_is_refused_unread(data: bytes, complaint: str) -> None:
    with pytest.raises(PacketError, match=complaint):
        Packets().feed(data)


@pytest.mark.parametrize(
    ("first", "body", "complaint"),
    [
        (0x32, b"\x00\x02\xff\xfe\x00\x01x", "not UTF-8"),
        (0x32, b"\x00\x03a/#\x00\x01x", "wildcard"),
        (0x32, b"\x00\x00\x00\x01x", "no topic"),
        (0x36, b"\x00\x01a\x00\x01x", "QoS 3"),
        (0x32, b"\x00\x01a\x00\x00x", "packet id 0"),
        (0x30, b"\x00\x09a", "beyond its end"),
        (0x30, b"", "too early"),
    ],
    ids=["bad UTF-8", "wildcard", "empty topic", "QoS 3", "id 0", "cut topic", "empty"],
)
def test_a_publish_that_is_not_well_formed_is_refused(first: int, body: bytes, complaint: str) -> None:
    with pytest.raises(PacketError, match=complaint):
        read_publish(first, body, "3.1.1")


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/c", False),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("+", "", True),
        ("a/+/c", "a//c", True),
    ],
)
def test_filters_match_as_the_standard_says(topic_filter: str, topic: str, expected: bool) -> None:
    assert matches(topic_filter.split("/"), topic) is expected


class Wire:
    """Arrivals, with what they write and drop."""

    def __init__(self, window: int = 10) -> None:
        self.written: list[bytes] = []
        self.dropped: list[tuple[str, str]] = []
        self.arrivals = Arrivals(
            Writer(5), self.written.append, window, lambda why, topic: self.dropped.append((why, topic))
        )
        self.taken: list[Arrival] = []
        self.subscription = Subscription("plant/#", self.taken.append)

    def publish(self, packet_id: int, *, qos: int = 1, topic: str = "plant/1", **properties: Any) -> None:
        self.arrivals.take(Publish(topic, b"x", qos, False, False, packet_id, properties, 1))

    @property
    def acks(self) -> list[tuple[int, int]]:
        return [(packet[0] & 0xF0, int.from_bytes(packet[2:4], "big")) for packet in self.written]


def test_acknowledgements_go_out_in_the_order_of_receipt() -> None:
    wire = Wire()
    wire.arrivals.join(wire.subscription)
    for packet_id in (7, 3, 9):
        wire.publish(packet_id)
    wire.taken[2].settle()
    wire.taken[1].settle()
    assert wire.acks == []
    wire.taken[0].settle()
    assert wire.acks == [(PUBACK, 7), (PUBACK, 3), (PUBACK, 9)]


def test_a_qos_2_message_is_delivered_once_on_a_link_however_often_it_is_sent() -> None:
    wire = Wire()
    wire.arrivals.join(wire.subscription)
    wire.publish(5, qos=2)
    wire.publish(5, qos=2)
    assert len(wire.taken) == 1
    wire.taken[0].settle()
    wire.publish(5, qos=2)
    assert len(wire.taken) == 1
    wire.arrivals.release(5)
    assert wire.acks == [(PUBREC, 5), (PUBREC, 5), (PUBCOMP, 5)]
    wire.publish(5, qos=2)
    assert len(wire.taken) == 2


def test_a_message_for_two_routes_is_acknowledged_when_both_are_done() -> None:
    wire = Wire()
    second: list[Arrival] = []
    wire.arrivals.join(wire.subscription)
    wire.arrivals.join(Subscription("plant/+", second.append))
    wire.publish(1)
    wire.taken[0].settle()
    assert wire.acks == []
    second[0].settle()
    assert wire.acks == [(PUBACK, 1)]


def test_a_subscription_identifier_says_whose_message_it_is() -> None:
    wire = Wire()
    second: list[Arrival] = []
    wire.arrivals.join(wire.subscription)
    other = Subscription("plant/+", second.append)
    wire.arrivals.join(other)
    wire.publish(1, subscription_identifier=[other.identifier])
    assert (len(wire.taken), len(second)) == (0, 1)


def test_what_nobody_takes_yet_waits_for_its_route_and_is_let_go_when_there_is_none() -> None:
    wire = Wire()
    wire.publish(1)
    wire.publish(2, topic="gone")
    assert wire.acks == []
    wire.arrivals.join(wire.subscription)
    wire.taken[0].settle()
    assert wire.acks == [(PUBACK, 1)]
    wire.arrivals.stop_waiting()
    wire.publish(3, topic="gone")
    assert wire.acks == [(PUBACK, 1), (PUBACK, 2), (PUBACK, 3)]
    assert wire.dropped == [("unclaimed", "gone")] * 2


def test_what_a_route_left_unsettled_goes_to_the_one_that_follows_it() -> None:
    wire = Wire()
    wire.arrivals.join(wire.subscription)
    wire.publish(1)
    wire.arrivals.leave(wire.subscription)
    wire.taken[0].settle()
    assert wire.acks == []
    following: list[Arrival] = []
    wire.arrivals.join(Subscription("plant/#", following.append))
    following[0].settle()
    assert wire.acks == [(PUBACK, 1)]


def test_qos_0_beyond_the_window_is_dropped_and_counted() -> None:
    wire = Wire(window=2)
    wire.arrivals.join(wire.subscription)
    for _ in range(3):
        wire.publish(0, qos=0)
    assert (len(wire.taken), wire.dropped) == (2, [("full", "plant/1")])
    wire.taken[0].settle()
    wire.publish(0, qos=0)
    assert len(wire.taken) == 3
    assert wire.acks == []


def test_qos_0_beyond_what_may_be_held_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters._mqtt_arrivals.MOST_BYTES", 1)
    wire = Wire(window=20)
    wire.arrivals.join(wire.subscription)
    for _ in range(3):
        wire.publish(0, qos=0)
    assert (len(wire.taken), wire.dropped) == (2, [("full", "plant/1")])
    wire.taken[0].settle()
    wire.publish(0, qos=0)
    assert len(wire.taken) == 3


def test_an_acknowledgement_is_four_bytes_and_a_release_carries_its_flag() -> None:
    assert Writer(5).ack(PUBACK, 258) == b"\x40\x02\x01\x02"
    assert Writer(5).ack(PUBREL, 258) == b"\x62\x02\x01\x02"


def test_user_properties_are_headers_and_the_rest_is_transport() -> None:
    publish = Publish(
        "t",
        b"x",
        1,
        retain=False,
        redelivered=True,
        packet_id=1,
        properties={"user_property": [("A", "1"), ("a", "2"), ("id", "m-1")], "content_type": "text/plain"},
        size=1,
    )
    message = message_of(publish, None)
    assert message.headers == {"a": "1, 2", "id": "m-1"}
    assert (message.sender_id, message.content_type, message.transport["redelivered"]) == ("m-1", "text/plain", True)
    assert message_of(publish, "text/csv").content_type == "text/csv"


def connection(**settings: Any) -> Connection:
    return Connection(**{"url": "mqtt://127.0.0.1", "client_id": "g", **settings})


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Source(connection=connection(client_id=None), topic="a"), "client_id: a source with qos 1 or 2"),
        (lambda: Source(connection=connection(), topic="a/#/b"), "is no topic filter"),
        (lambda: Source(connection=connection(), topic="a+"), "is no topic filter"),
        (lambda: Source(connection=connection(), topic="$share/g/a"), "write shared_group:"),
        (lambda: Sink.model_validate({"connection": connection(), "topic": "a/#"}), "holds no"),
        (
            lambda: Sink(
                connection=connection(version="3.1.1"), topic=TopicTemplate("a"), headers={"a": Template("b")}
            ),
            "need MQTT 5",
        ),
        (lambda: connection(tls=ClientTls()), "tls: is for mqtts://"),
        (lambda: connection(password="p"), "needs a username:"),
        (lambda: connection(url="http://127.0.0.1"), "expected a URL such as mqtt://"),
        (lambda: connection(keep_alive="100ms"), "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_what_to_write(make: Any, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        make()


def test_a_source_with_qos_0_needs_no_client_id() -> None:
    assert Source(connection=connection(client_id=None), topic="a", qos=0).topic_filter == "a"


def test_equal_connections_share_their_links_and_the_two_directions_do_not() -> None:
    one, two = connection(username="u", password="p"), connection(username="u", password="p")
    assert {one.consuming: 1}[two.consuming] == 1
    assert one.consuming != one.publishing
    assert connection(username="u", password="other").consuming != one.consuming


async def test_a_reply_is_asked_for_at_a_topic_without_wildcards() -> None:
    host = FakeHost()
    publishing = Connection(url="mqtt://127.0.0.1:1").publishing
    request = Publish(
        "ask", b"", 1, retain=False, redelivered=False, packet_id=7, properties={"response_topic": "a/#"}, size=7
    )
    async with Replies(publishing, host) as replies:
        await replies.publish(request, Message(raw=b"{}"))
    assert host.drops == {"reply refused": 1}
