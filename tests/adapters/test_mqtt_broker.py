"""The embedded broker, spoken to by our MQTT client and by clients that break the rules byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from amqtt.mqtt.protocol.broker_handler import Subscription
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from adapters import mqtt, mqtt_broker
from adapters._broker_client import IN_FLIGHT, QUEUED
from adapters._broker_door import check, read_connect
from adapters._mqtt_packets import Outgoing, PacketError, Packets, Will, Writer
from gateway import (
    Accepted,
    ConfigError,
    Deferred,
    Limits,
    ListenAt,
    Message,
    Outcome,
    PeerError,
    Principal,
    Refused,
    TopicTemplate,
)
from gateway.settings import Address, ClientTls, ServerTls
from gateway.testing import FakeHost, Inbox, ManualClock, arriving, opened, running, until
from tests.certificates import Authority

CONNACK, PUBLISH, PUBACK, PUBREC, PUBCOMP, SUBACK, PINGRESP = 0x20, 0x30, 0x40, 0x50, 0x70, 0x90, 0xD0
AUTH = {"users": {"ann": "a-secret", "bob": "b-secret"}}
ANYWHERE = ListenAt(Address("127.0.0.1", 0))


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


def at(**settings: Any) -> mqtt_broker.Connection:
    return mqtt_broker.Connection(**{"listen": ANYWHERE, **settings})


def source(connection: mqtt_broker.Connection, *topics: str) -> mqtt_broker.Source:
    return mqtt_broker.Source(connection=connection, topics=topics or ("plant/#",))


class Client:
    """An MQTT 3.1.1 client that can also say what no client should."""

    writer = Writer("3.1.1")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._stream = writer
        self._packets = Packets()
        self._ready: list[tuple[int, bytes]] = []

    def deafen(self) -> None:
        self._stream.transport.pause_reading()  # type: ignore[attr-defined]

    def say(self, data: bytes) -> None:
        self._stream.write(data)

    async def packet(self) -> tuple[int, bytes]:
        async with asyncio.timeout(5):
            while not self._ready:
                data = await self._reader.read(65536)
                if not data:
                    raise EOFError
                self._ready += self._packets.feed(data)
        return self._ready.pop(0)

    async def expect(self, kind: int) -> bytes:
        first, body = await self.packet()
        assert first & 0xF0 == kind, hex(first)
        return body

    async def is_closed(self) -> bool:
        try:
            while True:
                await self.packet()
        except (EOFError, ConnectionError):
            return True

    def connect(
        self,
        client_id: str = "c",
        username: str | None = None,
        password: str | None = None,
        *,
        clean: bool = True,
        keep_alive_s: int = 60,
        will: Will | None = None,
    ) -> None:
        self.say(
            self.writer.connect(
                client_id, username, password, clean=clean, keep_alive_s=keep_alive_s, will=will, properties={}
            )
        )

    async def login(self, *names: str, **settings: Any) -> bytes:
        self.connect(*names, **settings)
        return await self.expect(CONNACK)

    async def subscribe(self, topic_filter: str, qos: int = 0) -> int:
        self.say(self.writer.subscribe(9, topic_filter, qos, None))
        return (await self.expect(SUBACK))[-1]

    def publish(
        self, topic: str, body: bytes = b"x", *, qos: int = 0, packet_id: int = 1, retain: bool = False
    ) -> None:
        self.say(self.writer.publish(packet_id, Outgoing(topic.encode(), body, qos, retain=retain, properties={})))

    async def ping(self) -> None:
        self.say(b"\xc0\x00")
        await self.expect(PINGRESP)


@asynccontextmanager
async def client(address: Address) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def broker(host: FakeHost, **settings: Any) -> AsyncIterator[mqtt_broker.RunningBroker]:
    async with host.share(at(**settings)) as found:
        yield found


def reached(address: Address, **settings: Any) -> mqtt.Connection:
    return mqtt.Connection(**{"url": f"mqtt://{address}", "client_id": "gateway", "version": "3.1.1", **settings})


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("body", [b"", b"\x00\xff\r\n", b"x" * 1024**2], ids=["empty", "binary", "1MiB"])
async def test_what_a_client_publishes_reaches_the_route_and_other_clients(
    host: FakeHost, qos: int, body: bytes
) -> None:
    connection = at()
    inbox, other = Inbox(host), Inbox(host)
    async with running(source(connection), inbox, host), host.share(connection) as found:
        theirs = reached(found.address)
        listening = mqtt.Source(connection=theirs, topic="plant/#", qos=qos)
        async with (
            running(listening, other, host),
            opened(mqtt.Sink(connection=theirs, topic=TopicTemplate("plant/ü"), qos=qos), host) as send,
        ):
            await send(arriving(host, body))
            (taken,) = await inbox.wait(1)
            (heard,) = await other.wait(1)
    assert taken.body == heard.body == body
    assert taken.transport["topic"] == heard.transport["topic"] == "plant/ü"
    assert (taken.transport["qos"], taken.transport["client_id"]) == (qos, "gateway-pub")


async def test_a_batch_of_1000_keeps_its_order(host: FakeHost) -> None:
    connection = at()
    inbox = Inbox(host)
    async with running(source(connection), inbox, host), host.share(connection) as found:
        sink = mqtt.Sink(connection=reached(found.address), topic=TopicTemplate("plant/1"))
        async with opened(sink, host) as send:
            await asyncio.gather(*[send(arriving(host, b"%d" % number)) for number in range(1000)])
            await inbox.wait(1000)
    assert [message.body for message in inbox.messages] == [b"%d" % number for number in range(1000)]


async def test_the_sink_reaches_subscribed_clients_and_is_delivered_without_any(host: FakeHost) -> None:
    connection = at()
    inbox = Inbox(host)
    sink = mqtt_broker.Sink(connection=connection, topic=TopicTemplate("plant/{{ body.n }}"), qos=1)
    async with opened(sink, host) as send, host.share(connection) as found:
        await send(arriving(host, b'{"n": 0}'))
        listening = mqtt.Source(connection=reached(found.address), topic="plant/+")
        async with running(listening, inbox, host):
            for number in range(1, 51):
                await send(arriving(host, b'{"n": %d}' % number))
            messages = await inbox.wait(50)
    assert [message.transport["topic"] for message in messages] == [f"plant/{number}" for number in range(1, 51)]


@pytest.mark.parametrize(("qos", "ack"), [(1, PUBACK), (2, PUBREC)])
async def test_a_client_is_acknowledged_after_the_outcome_and_in_the_order_of_receipt(
    host: FakeHost, qos: int, ack: int
) -> None:
    outcomes = {number: asyncio.Event() for number in (b"1", b"2")}

    async def outcome(message: Message) -> Outcome:
        await outcomes[message.body].wait()
        return Accepted(message.id)

    connection = at()
    inbox = Inbox(host, outcome)
    async with running(source(connection), inbox, host), host.share(connection) as found, client(found.address) as one:
        await one.login()
        one.publish("plant/1", b"1", qos=qos, packet_id=7)
        one.publish("plant/1", b"2", qos=qos, packet_id=8)
        await inbox.wait(2)
        outcomes[b"2"].set()
        await one.ping()  # the next packet is its answer: nothing was acknowledged
        outcomes[b"1"].set()
        assert [await one.expect(ack), await one.expect(ack)] == [b"\x00\x07", b"\x00\x08"]
        if qos == 2:
            one.say(b"\x62\x02\x00\x07")
            assert await one.expect(PUBCOMP) == b"\x00\x07"


async def test_a_refused_message_is_acknowledged_and_a_deferred_one_delivered_again(host: FakeHost) -> None:
    seen: list[bytes] = []

    def outcome(message: Message) -> Outcome:
        seen.append(message.body)
        if message.body == b"refused":
            return Refused(message.id, "no")
        return Deferred(message.id, "busy", wait_s=0.01) if seen.count(b"deferred") < 3 else Accepted(message.id)

    connection = at()
    async with (
        running(source(connection), Inbox(host, outcome), host),
        host.share(connection) as found,
        client(found.address) as one,
    ):
        await one.login()
        one.publish("plant/1", b"refused", qos=1, packet_id=1)
        one.publish("plant/1", b"deferred", qos=1, packet_id=2)
        assert [await one.expect(PUBACK), await one.expect(PUBACK)] == [b"\x00\x01", b"\x00\x02"]
    assert seen == [b"refused", b"deferred", b"deferred", b"deferred"]


async def test_a_message_waits_for_a_route_that_is_being_replaced(host: FakeHost) -> None:
    connection = at()
    inbox = Inbox(host)
    async with host.share(connection) as found, client(found.address) as one:
        async with running(source(connection), Inbox(host), host):
            pass
        await one.login()
        one.publish("plant/1", qos=1)
        await one.ping()
        async with running(source(connection), inbox, host):
            await inbox.wait(1)
            assert await one.expect(PUBACK) == b"\x00\x01"


async def test_a_lower_qos_wins_on_the_way_out(host: FakeHost) -> None:
    async with broker(host) as found, client(found.address) as one:
        await one.login()
        assert await one.subscribe("a", qos=1) == 1
        found.broker.publish("a", b"0", 0, retain=False)
        assert (await one.packet())[0] == 0x30
        found.broker.publish("a", b"2", 2, retain=False)
        assert (await one.packet())[0] == 0x32


async def test_a_retained_message_reaches_a_later_subscriber_and_an_empty_one_removes_it(host: FakeHost) -> None:
    async with broker(host) as found, client(found.address) as one:
        await one.login()
        one.publish("a/1", b"kept", retain=True)
        one.publish("a/2", b"removed", retain=True)
        one.publish("a/2", b"", retain=True)
        await until(lambda: list(found.broker.retained_messages) == ["a/1"])
        await one.subscribe("a/#")
        assert await one.packet() == (0x31, b"\x00\x03a/1kept")


async def test_a_client_that_is_away_finds_what_came_and_what_it_did_not_acknowledge(host: FakeHost) -> None:
    async with broker(host) as found:
        async with client(found.address) as one:
            assert await one.login("c", clean=False) == b"\x00\x00"
            await one.subscribe("a", qos=1)
            found.broker.publish("a", b"unacknowledged", 1, retain=False)
            await one.expect(PUBLISH)
        await until(lambda: found.broker.sessions["c"][0].transitions.state == "disconnected")
        found.broker.publish("a", b"while away", 1, retain=False)
        async with client(found.address) as one:
            assert await one.login("c", clean=False) == b"\x01\x00"
            for body in (b"unacknowledged", b"while away"):
                packet = await one.expect(PUBLISH)
                assert packet[5:] == body
                one.say(b"\x40\x02" + packet[3:5])


async def test_a_shared_subscription_is_refused(host: FakeHost) -> None:
    async with broker(host) as found, client(found.address) as one:
        await one.login()
        assert await one.subscribe("$share/g/a") == 0x80


async def test_the_will_goes_out_when_a_client_vanishes(host: FakeHost) -> None:
    connection = at()
    inbox = Inbox(host)
    async with running(source(connection), inbox, host), host.share(connection) as found:
        async with client(found.address) as one:
            await one.login("mortal", will=Will(b"plant/gone", b"gone", 1, retain=False))
        (message,) = await inbox.wait(1)
    assert (message.body, message.transport["client_id"]) == (b"gone", "mortal")


async def test_a_wrong_password_with_the_client_id_of_another_does_not_evict_it(host: FakeHost) -> None:
    async with broker(host, auth=AUTH) as found, client(found.address) as victim:
        assert await victim.login("plc-1", "ann", "a-secret", clean=False) == b"\x00\x00"
        assert await victim.subscribe("a", qos=1) == 1
        for clean in (True, False):
            async with client(found.address) as thief:
                assert await thief.login("plc-1", "ann", "guessed", clean=clean) == b"\x00\x05"
                assert await thief.is_closed()
            async with client(found.address) as thief:  # knows a password, but not that of this client id's user
                assert await thief.login("plc-1", "bob", "b-secret", clean=clean) == b"\x00\x02"
                assert await thief.is_closed()
        found.broker.publish("a", b"still there", 0, retain=False)
        assert (await victim.expect(PUBLISH))[3:] == b"still there"
        assert list(found.broker.sessions) == ["plc-1"]


@pytest.mark.parametrize("clean", [False, True])
async def test_the_same_user_takes_its_client_id_over(host: FakeHost, clean: bool) -> None:
    async with broker(host, auth=AUTH) as found, client(found.address) as old, client(found.address) as new:
        await old.login("plc-1", "ann", "a-secret", clean=clean)
        assert await new.login("plc-1", "ann", "a-secret", clean=clean) == (b"\x00\x00" if clean else b"\x01\x00")
        assert await old.is_closed()
        await new.ping()


async def test_the_principal_is_who_logged_in(host: FakeHost) -> None:
    connection = at(auth=AUTH)
    inbox = Inbox(host)
    async with running(source(connection), inbox, host), host.share(connection) as found, client(found.address) as one:
        await one.login("c", "ann", "a-secret")
        one.publish("plant/1")
        (message,) = await inbox.wait(1)
    assert message.principal == Principal("ann")


async def test_ten_wrong_passwords_shut_a_user_out_and_leave_no_session(host: FakeHost) -> None:
    async with broker(host, auth=AUTH) as found:
        for _ in range(10):
            async with client(found.address) as one:
                assert await one.login("c", "ann", "wrong") == b"\x00\x05"
        async with client(found.address) as one:
            assert await one.login("c", "ann", "a-secret") == b"\x00\x05"
        async with client(found.address) as one:
            assert await one.login("c", "bob", "b-secret") == b"\x00\x00"
            assert list(found.broker.sessions) == ["c"]


async def test_nine_wrong_passwords_shut_nobody_out(host: FakeHost) -> None:
    async with broker(host, auth=AUTH) as found:
        for password, answer in [*[("wrong", b"\x00\x05")] * 9, ("a-secret", b"\x00\x00")] * 2:
            async with client(found.address) as one:
                assert await one.login("c", "ann", password) == answer


async def test_each_time_a_user_is_shut_out_it_is_for_twice_as_long_and_an_hour_at_most() -> None:
    clock = ManualClock()
    host = FakeHost(clock=clock)
    async with broker(host, auth=AUTH) as found:

        async def code(password: str) -> bytes:
            async with client(found.address) as one:
                return (await one.login("c", "ann", password))[1:]

        for minutes in (5, 10, 20, 40, 60, 60):
            assert [await code("wrong") for _ in range(10)] == [b"\x05"] * 10
            await clock.advance(60 * minutes - 0.1)
            assert await code("a-secret") == b"\x05"
            await clock.advance(0.2)
        assert await code("a-secret") == b"\x00"
        assert [await code("wrong") for _ in range(10)] == [b"\x05"] * 10
        await clock.advance(301)
        assert await code("a-secret") == b"\x00"


@pytest.mark.parametrize(
    "data",
    [
        b"\x30\xff\xff\xff\xff\x01",
        b"\x30\xff\xff\xff\x7f",
        b"\x32\x07\x00\x02\xff\xfe\x00\x01x",
        b"\x32\x08\x00\x03a/#\x00\x01x",
        b"\x32\x08\x00\x03a/+\x00\x01x",
        b"\x32\x08\x00\x03$SY\x00\x01x",
        b"\x36\x06\x00\x01a\x00\x01x",
        b"\x82\x06\x00\x01\x00\x01a\x03",
        b"\x82\x02\x00\x01",
        b"\x80\x06\x00\x01\x00\x01a\x00",
        b"\x82\x09\x00\x01\x00\x20a\x00xxx",
        b"\x90\x03\x00\x01\x00",
        b"\xf0\x00",
        b"\x00\x00",
        b"\xc0\x01x",
    ],
    ids=[
        "length of 4 x FF",
        "256 MiB",
        "bad UTF-8 topic",
        "publish to #",
        "publish to +",
        "publish to $",
        "QoS 3",
        "subscribe with QoS 3",
        "subscribe to nothing",
        "subscribe with wrong flags",
        "subscribe beyond its end",
        "SUBACK",
        "type 15",
        "type 0",
        "PINGREQ with a body",
    ],
)
async def test_a_packet_that_breaks_the_rules_ends_its_connection_and_no_other(host: FakeHost, data: bytes) -> None:
    connection = at()
    inbox = Inbox(host)
    async with (
        running(source(connection, "#"), inbox, host),
        host.share(connection) as found,
        client(found.address) as good,
        client(found.address) as bad,
    ):
        await good.login("good")
        await bad.login("bad")
        bad.say(data)
        assert await bad.is_closed()
        await good.ping()
        await until(lambda: list(found.broker.sessions) == ["good"])
    assert inbox.messages == []


@given(st.binary(max_size=60), st.integers(0, 255))
def test_no_bytes_get_past_the_door_with_another_error(body: bytes, first: int) -> None:
    with contextlib.suppress(PacketError):
        check(first, body, Limits())
    with contextlib.suppress(PacketError):
        read_connect(body)
    with contextlib.suppress(PacketError):
        read_connect(b"\x00\x04MQTT\x04" + body)


async def test_a_second_connect_ends_the_connection(host: FakeHost) -> None:
    async with broker(host) as found, client(found.address) as one:
        await one.login("c")
        one.connect("c")
        assert await one.is_closed()


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"\xc0\x00", b""),
        (b"\x10\x02\x00\x09", b""),
        (b"\x10\x0c\x00\x04MQTT\x04\x01\x00\x00\x00\x00", b""),
        (b"\x10\x0c\x00\x04MQTT\x04\x18\x00\x00\x00\x00", b""),
        (b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x00\x00\x02\xff\xfe", b""),
        (b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x00", b"\x20\x02\x00\x01"),
        (b"\x10\x0c\x00\x04MQTT\x04\x00\x00\x00\x00\x00", b"\x20\x02\x00\x02"),
    ],
    ids=["no CONNECT", "cut", "reserved flag", "will QoS 3", "bad UTF-8", "MQTT 5", "no client id and a session"],
)
async def test_a_bad_first_packet_is_refused(host: FakeHost, data: bytes, answer: bytes) -> None:
    async with broker(host) as found:
        reader, writer = await asyncio.open_connection(*found.address)
        writer.write(data)
        async with asyncio.timeout(5):
            assert await reader.read() == answer
        writer.close()
        assert found.broker.sessions == {}


async def test_who_says_nothing_within_the_time_for_a_handshake_is_cut() -> None:
    host = FakeHost(limits=Limits(handshake="50ms"))
    async with broker(host) as found, client(found.address) as one:
        assert await one.is_closed()


async def test_who_stops_within_a_packet_is_cut() -> None:
    host = FakeHost(limits=Limits(frame="50ms"))
    async with broker(host) as found, client(found.address) as one:
        await one.login()
        one.say(b"\x30\x10\x00")
        assert await one.is_closed()


async def test_who_is_silent_beyond_its_keep_alive_time_is_cut(host: FakeHost) -> None:
    async with broker(host) as found, client(found.address) as one:
        await one.login(keep_alive_s=1)
        assert await one.is_closed()


@pytest.mark.parametrize(("over", "taken"), [(0, 1), (1, 0)])
async def test_a_body_may_be_as_large_as_the_limit_and_not_a_byte_more(over: int, taken: int) -> None:
    host = FakeHost(limits=Limits(message="1KiB"))
    connection = at()
    inbox = Inbox(host)
    async with running(source(connection), inbox, host), host.share(connection) as found, client(found.address) as one:
        await one.login()
        one.publish("plant/1", b"x" * (1024 + over), qos=1)
        if taken:
            await one.expect(PUBACK)
        else:
            assert await one.is_closed()
    assert len(inbox.messages) == taken


async def test_no_more_connections_than_the_limit_are_served() -> None:
    host = FakeHost(limits=Limits(connections=1))
    async with broker(host) as found, client(found.address) as one:
        await one.login()
        async with client(found.address) as two:
            assert await two.is_closed()
        await one.ping()


async def test_a_flood_in_flight_is_not_read_beyond_the_window(host: FakeHost) -> None:
    outcome = asyncio.Event()

    async def later(message: Message) -> Outcome:
        await outcome.wait()
        return Accepted(message.id)

    connection = at()
    inbox = Inbox(host, later)
    async with running(source(connection), inbox, host), host.share(connection) as found, client(found.address) as one:
        await one.login()
        for number in range(1, 3 * IN_FLIGHT + 1):
            one.publish("plant/1", qos=1, packet_id=number)
        await inbox.wait(IN_FLIGHT)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(inbox.messages) == IN_FLIGHT
        outcome.set()
        for number in range(1, 3 * IN_FLIGHT + 1):
            assert await one.expect(PUBACK) == number.to_bytes(2, "big")


async def test_a_message_that_waits_for_its_route_keeps_nothing_of_the_pings_behind_it(host: FakeHost) -> None:
    async def never(message: Message) -> Outcome:
        await asyncio.get_running_loop().create_future()
        return Accepted(message.id)

    connection = at()
    inbox = Inbox(host, never)
    async with running(source(connection), inbox, host), host.share(connection) as found, client(found.address) as one:
        await one.login()
        one.publish("plant/1", qos=1)
        await inbox.wait(1)
        before = count_tasks()
        for _ in range(500):
            await one.ping()
        assert count_tasks() < before + 50


@pytest.mark.parametrize("packet", [b"\xc0\x00", b"\x62\x02\x00\x01", b"\x82\x08\x00\x09\x00\x03a/b\x00"])
async def test_a_client_that_reads_nothing_is_not_read_either(host: FakeHost, packet: bytes) -> None:
    async with broker(host) as found, client(found.address) as one:
        await one.login()
        await one.subscribe("plant/1")
        one.deafen()
        for _ in range(12):
            found.broker.publish("plant/1", b"x" * 1024**2, 0, retain=False)
        one.say(packet * 5000)
        for _ in range(500):
            await asyncio.sleep(0.001)
        assert len(asyncio.all_tasks()) < 150
        assert sum(isinstance(kept, Subscription) for kept in gc.get_objects()) < 150


async def test_acknowledgements_of_nothing_write_no_lines_to_the_log(
    host: FakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    async with broker(host) as found, client(found.address) as one:
        await one.login()
        for kind in (PUBACK, PUBREC, PUBCOMP):
            one.say(bytes([kind, 2, 0, 7]) * 10)
        await one.ping()
    assert [record for record in caplog.records if record.name.startswith("amqtt")] == []


def count_tasks() -> int:
    """Those that are done, too, as long as somebody keeps them."""
    gc.collect()
    return sum(isinstance(one, asyncio.Task) for one in gc.get_objects())


def subscribing(*topic_filters: str) -> bytes:
    """The body of a SUBSCRIBE."""
    wanted = (one.encode() for one in topic_filters)
    return b"\x00\x09" + b"".join(len(one).to_bytes(2, "big") + one + b"\x00" for one in wanted)


async def test_a_client_has_so_many_subscriptions_and_no_more_and_may_repeat_each(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters._broker.SUBSCRIPTIONS", 3)
    async with broker(host) as found, client(found.address) as one:
        await one.login()
        assert [await one.subscribe(f"plant/{number}") for number in range(4)] == [0, 0, 0, 0x80]
        assert await one.subscribe("plant/1", qos=1) == 1
        one.say(one.writer.unsubscribe(7, "plant/2"))
        await one.expect(0xB0)
        assert await one.subscribe("plant/4") == 0


async def test_a_packet_of_more_topic_filters_than_a_client_may_have_is_the_end_of_its_connection() -> None:
    filters = [f"{number}" for number in range(1001)]
    check(0x82, subscribing(*filters[:1000]), Limits())
    with pytest.raises(PacketError, match="a packet has more than 1000 topic filters"):
        check(0x82, subscribing(*filters), Limits())


async def test_many_subscriptions_at_once_leave_the_others_their_turn(host: FakeHost) -> None:
    async with broker(host) as found, client(found.address) as one:
        for number in range(1000):
            found.broker.publish(f"plant/{number}", b"x", 0, retain=True)
        await one.login()
        turns = 0

        async def ticking() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(ticking())
        body = subscribing(*(f"plant/+/{number}" for number in range(500)), "plant/999")
        one.say(b"\x82" + bytes([len(body) & 127 | 128, len(body) >> 7]) + body)
        await one.expect(SUBACK)
        begun = turns
        await one.expect(PUBLISH)
        assert turns - begun > 400
        ticker.cancel()


async def test_a_topic_filter_that_nobody_has_any_more_is_forgotten(host: FakeHost) -> None:
    async with broker(host) as found, client(found.address) as one:
        await one.login()
        await one.subscribe("plant/1")
        one.say(one.writer.unsubscribe(7, "plant/1"))
        await one.expect(0xB0)
        assert not found.broker.subscriptions


async def test_a_session_that_expires_is_forgotten_with_its_topic_filters(host: FakeHost) -> None:
    async with broker(host, session_expiry="1s") as found, client(found.address) as stays:
        await stays.login("stays")
        await stays.subscribe("plant/1")
        for name in ("one", "two"):
            async with client(found.address) as one:
                await one.login(name, clean=False)
                for number in range(3):
                    await one.subscribe(f"plant/{number}")
        assert set(found.broker.subscriptions) == {"plant/0", "plant/1", "plant/2"}
        await until(lambda: set(found.broker.sessions) == {"stays"})
        assert [len(who) for who in found.broker.subscriptions.values()] == [1]


async def test_what_is_retained_counts_with_its_topic(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters._broker.RETAINED_BYTES", 1000)
    async with broker(host) as found, client(found.address) as one:
        await one.login()
        for number in range(12):
            one.publish(f"{number:099}", b"x", retain=True)
        one.publish(f"{0:099}", b"", retain=True)
        one.publish(f"{12:099}", b"x", retain=True)
        await one.ping()
        await until(lambda: f"{12:099}" in found.broker.retained_messages)
        assert len(found.broker.retained_messages) == 10
    assert host.drops == {"retained full": 2}


async def test_a_client_that_does_not_acknowledge_keeps_its_place_and_costs_no_more_than_its_queue(
    host: FakeHost,
) -> None:
    async with broker(host) as found, client(found.address) as slow, client(found.address) as quick:
        await slow.login("slow")
        await quick.login("quick")
        await slow.subscribe("a", qos=1)
        await quick.subscribe("b")
        for number in range(QUEUED + 20):
            found.broker.publish("a", b"%d" % number, 1, retain=False)
        found.broker.publish("b", b"quick", 0, retain=False)
        await quick.expect(PUBLISH)
        assert host.drops == {"full": 20}
        first = await slow.expect(PUBLISH)
        slow.say(b"\x40\x02" + first[3:5])
        assert (await slow.expect(PUBLISH))[5:] == b"1"


async def test_tls_and_client_certificates_open_the_broker_to_other_machines(tmp_path: Path, host: FakeHost) -> None:
    authority = Authority(tmp_path)
    server, ours = authority.issue("server"), authority.issue("client")
    tls = ServerTls(certificate=server.certificate, private_key=server.private_key, client_ca=authority.ca)
    connection = at(listen=ListenAt(Address("127.0.0.1", 0), tls))
    inbox = Inbox(host)
    async with running(source(connection), inbox, host), host.share(connection) as found:
        trust = ClientTls(ca=authority.ca, certificate=ours.certificate, private_key=ours.private_key)
        theirs = reached(found.address, url=f"mqtts://{found.address}", tls=trust)
        async with opened(mqtt.Sink(connection=theirs, topic=TopicTemplate("plant/1")), host) as send:
            await send(arriving(host, b"secret"))
        naked = reached(found.address, url=f"mqtts://{found.address}", tls=ClientTls(ca=authority.ca))
        with pytest.raises(PeerError):
            async with opened(mqtt.Sink(connection=naked, topic=TopicTemplate("plant/1")), host):
                pass
    assert [message.body for message in inbox.messages] == [b"secret"]


async def test_an_address_in_use_is_a_sentence(host: FakeHost) -> None:
    async with broker(host) as found:
        taken = at(listen=ListenAt(found.address))
        with pytest.raises(ConfigError, match="mqtt_broker: can't listen: "):
            async with taken.open(host):
                pass


def test_everybody_may_come_in_on_loopback_only() -> None:
    assert at().auth is None
    with pytest.raises(ValidationError, match="open to other machines"):
        at(listen="0.0.0.0:1883")
    assert at(listen="0.0.0.0:1883", auth=AUTH).auth is not None


def test_equal_settings_are_one_broker_and_passwords_are_not_shown() -> None:
    assert at(auth=AUTH) == at(auth=AUTH)
    assert hash(at(auth=AUTH)) == hash(at(auth=AUTH))
    assert "secret" not in repr(at(auth=AUTH)) + str(at(auth=AUTH).model_dump(mode="json"))


async def test_a_message_that_a_leaving_route_still_takes_does_not_go_to_its_successor_too(host: FakeHost) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def slow(message: Message) -> Outcome:
        begun.set()
        await release.wait()
        return Accepted(message.id)

    connection = at()
    before, after = Inbox(host, slow), Inbox(host)
    async with host.share(connection) as found, client(found.address) as one:
        await one.login()
        async with running(source(connection), before, host):
            one.publish("plant/1", b"1", qos=1, packet_id=1)
            await begun.wait()
        async with running(source(connection), after, host):
            release.set()
            assert await one.expect(PUBACK) == b"\x00\x01"
            one.publish("plant/1", b"2", qos=1, packet_id=2)
            assert await one.expect(PUBACK) == b"\x00\x02"
    assert [message.body for message in before.messages] == [b"1"]
    assert [message.body for message in after.messages] == [b"2"]


async def test_what_one_of_two_routes_could_not_take_goes_to_its_successor(host: FakeHost) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def away(message: Message) -> Outcome:
        begun.set()
        await release.wait()
        return Deferred(message.id, "the route is stopping")

    connection = at()
    other, after = Inbox(host), Inbox(host)
    async with (
        host.share(connection) as found,
        running(source(connection), other, host),
        client(found.address) as one,
    ):
        await one.login()
        async with running(source(connection), Inbox(host, away), host):
            one.publish("plant/1", b"1", qos=1, packet_id=1)
            await begun.wait()
        release.set()
        await one.ping()
        async with running(source(connection), after, host):
            assert await one.expect(PUBACK) == b"\x00\x01"
    assert [message.body for message in other.messages] == [b"1"]
    assert [message.body for message in after.messages] == [b"1"]
