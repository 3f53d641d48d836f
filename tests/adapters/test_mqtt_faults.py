"""The MQTT client against brokers that misbehave: each is a server of the test that says what it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters._mqtt_packets import Packets, Version
from adapters.mqtt import Connection, Sink, Source
from gateway import Accepted, Limits, Message, MessageError, Outcome, PeerError, TopicTemplate
from gateway.config import load
from gateway.testing import FakeHost, Inbox, arriving, opened, running, until
from gateway.trial import trials

CONNECTED = b"\x20\x03\x00\x00\x00"
CONNECT, PUBLISH, SUBSCRIBE, UNSUBSCRIBE, PING = 0x10, 0x30, 0x80, 0xA0, 0xC0


class Peer:
    """One connection of a scripted broker."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._packets = Packets()
        self._ready: list[tuple[int, bytes]] = []

    async def packet(self) -> tuple[int, bytes]:
        while not self._ready:
            data = await self._reader.read(65536)
            if not data:
                raise EOFError
            self._ready += self._packets.feed(data)
        return self._ready.pop(0)

    async def expect(self, kind: int) -> bytes:
        first, body = await self.packet()
        assert first & 0xF0 == kind
        return body

    def say(self, data: bytes) -> None:
        self._writer.write(data)


@asynccontextmanager
async def broker(script: Callable[[Peer], Awaitable[None]], **settings: Any) -> AsyncIterator[Connection]:
    """A broker that does what the script says with each connection, and then closes it."""
    failures: list[BaseException] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(Peer(reader, writer))
        except (EOFError, ConnectionError):
            pass
        except AssertionError as error:
            failures.append(error)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield Connection(**{"url": f"mqtt://127.0.0.1:{port}", "client_id": "g", **settings})
        assert not failures, failures[0]


async def forever(peer: Peer) -> None:
    while True:
        await peer.packet()


@pytest.fixture
def host() -> FakeHost:
    return FakeHost(limits=Limits(handshake="1s"))


def sink(connection: Connection, **settings: Any) -> Sink:
    return Sink(connection=connection, topic=TopicTemplate("t"), **settings)


async def sent(connection: Connection, host: FakeHost, body: bytes = b"x", **settings: Any) -> None:
    async with opened(sink(connection, **settings), host) as send:
        await send(arriving(host, body))


@pytest.mark.parametrize(
    ("version", "connack", "complaint"),
    [
        (5, b"\x20\x03\x00\x86\x00", "bad user name or password; check username:"),
        (5, b"\x20\x03\x00\x85\x00", "it refused the client id; check client_id:"),
        (5, b"\x20\x03\x00\x87\x00", "not authorised; check username:"),
        (5, b"\x20\x03\x00\x9f\x00", "too many connections within a time"),
        (5, b"\x20\x02\x00\x01", "it does not speak MQTT 5; say version: 3.1.1"),
        (5, b"\x20\x09\x00\x97\x06\x1f\x00\x03bah", r"a quota is used up \(it says: \"bah\"\)"),
        (5, b"\x20\x03\x00\xf3\x00", "code 243"),
        ("3.1.1", b"\x20\x02\x00\x04", "bad user name or password; check username:"),
        ("3.1.1", b"\x20\x02\x00\x02", "it refused the client id; check client_id:"),
        ("3.1.1", b"\x20\x02\x00\x05", "not authorised; check username:"),
    ],
)
async def test_a_refused_login_is_a_sentence(host: FakeHost, version: Version, connack: bytes, complaint: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(connack)

    async with broker(script, version=version) as connection:
        with pytest.raises(PeerError, match=complaint) as refused:
            await sent(connection, host)
        assert refused.value.reconnect


async def test_a_broker_that_accepts_and_never_answers_is_given_up(host: FakeHost) -> None:
    host.limits = Limits(handshake="50ms")
    async with broker(forever) as connection:
        with pytest.raises(PeerError, match=r"did not answer the login within 0.05 s"):
            await sent(connection, host)


async def test_a_broker_that_closes_instead_of_answering_is_heard(host: FakeHost) -> None:
    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)

    async with broker(script) as connection:
        with pytest.raises(PeerError, match="closed the connection"):
            await sent(connection, host)


async def test_a_peer_that_speaks_no_mqtt_is_a_sentence(host: FakeHost) -> None:
    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
        await forever(peer)

    async with broker(script) as connection:
        with pytest.raises(PeerError, match="does not keep to MQTT"):
            await sent(connection, host)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\x30\xff\xff\xff\xff\x01", "more than four bytes"),
        (b"\x30\x06\x00\x02\xff\xfe\x00x", "not UTF-8"),
        (b"\x30\x06\x00\x03a/#\x00", "wildcard"),
        (b"\x10\x00", "which no broker may send here"),
        (b"\x40\x01\x00", "too early"),
        (b"\xe0\x02\x8e\x00", "another client took the client id over"),
        (b"\xe0\x01\x8b", "it is shutting down"),
    ],
    ids=["length", "utf8", "wildcard", "connect", "cut", "taken over", "shutting down"],
)
async def test_a_broker_that_breaks_the_protocol_or_says_goodbye_ends_the_link(
    host: FakeHost, data: bytes, complaint: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(CONNECTED)
        await peer.expect(PUBLISH)
        peer.say(data)
        await forever(peer)

    async with broker(script) as connection:
        with pytest.raises(PeerError, match=complaint) as lost:
            await sent(connection, host)
        assert lost.value.reconnect


@pytest.mark.parametrize(
    ("code", "kind", "reconnect"),
    [
        (0x90, MessageError, False),
        (0x99, MessageError, False),
        (0x87, PeerError, False),
        (0x97, PeerError, False),
        (0x83, PeerError, False),
        (0x91, PeerError, True),
    ],
)
@pytest.mark.parametrize(("qos", "ack"), [(1, 0x40), (2, 0x50)])
async def test_a_refused_publish_is_the_senders_or_tried_again_by_its_code(
    host: FakeHost, qos: int, ack: int, code: int, kind: type[Exception], reconnect: bool
) -> None:
    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(CONNECTED)
        await peer.expect(PUBLISH)
        peer.say(bytes([ack, 4, 0, 1, code, 0]))
        await forever(peer)

    async with broker(script) as connection:
        with pytest.raises(kind, match="the broker refused the message to 't'") as refused:
            await sent(connection, host, qos=qos)
        assert getattr(refused.value, "reconnect", False) is reconnect


async def test_no_matching_subscriber_is_delivered_all_the_same(host: FakeHost) -> None:
    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(CONNECTED)
        await peer.expect(PUBLISH)
        peer.say(b"\x40\x03\x00\x01\x10")
        await forever(peer)

    async with broker(script) as connection:
        await sent(connection, host)


async def test_a_link_lost_before_the_acknowledgement_is_a_failed_attempt(host: FakeHost) -> None:
    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(CONNECTED)
        await peer.expect(PUBLISH)

    async with broker(script) as connection:
        with pytest.raises(PeerError) as lost:
            await sent(connection, host)
        assert lost.value.reconnect


async def test_a_send_under_way_when_the_link_is_closed_and_one_after_it_are_errors_at_once(host: FakeHost) -> None:
    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(CONNECTED)
        await forever(peer)

    async with broker(script) as connection:
        async with opened(sink(connection), host) as send:
            waiting = asyncio.ensure_future(send(arriving(host)))
            await asyncio.sleep(0)
        for sending in (waiting, send(arriving(host))):
            with pytest.raises(PeerError, match="the connection is closed") as closed:
                await asyncio.wait_for(sending, 2)
            assert closed.value.reconnect


async def test_a_message_larger_than_the_broker_takes_is_not_sent(host: FakeHost) -> None:
    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(b"\x20\x08\x00\x00\x05\x27\x00\x00\x00\xc8")  # maximum packet size 200
        first, _ = await peer.packet()
        assert first & 0xF0 == 0xE0

    async with broker(script) as connection:
        with pytest.raises(MessageError, match="the broker takes at most 200") as refused:
            await sent(connection, host, b"x" * 200)
        assert refused.value.code == "too_large"


@pytest.mark.parametrize(
    ("properties", "settings", "complaint"),
    [
        (b"\x24\x01", {"qos": 2}, "takes at most qos 1"),
        (b"\x25\x00", {"retain": True}, "can't retain"),
    ],
)
async def test_what_the_broker_says_it_can_not_is_said_at_once(
    host: FakeHost, properties: bytes, settings: dict[str, Any], complaint: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(b"\x20\x05\x00\x00\x02" + properties)
        await forever(peer)

    async with broker(script) as connection:
        with pytest.raises(PeerError, match=complaint):
            await sent(connection, host, **settings)


async def test_no_more_is_sent_than_the_brokers_receive_maximum_and_in_order(host: FakeHost) -> None:
    seen: list[int] = []
    may_answer = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(b"\x20\x06\x00\x00\x03\x21\x00\x02")
        for _ in range(5):
            body = await peer.expect(PUBLISH)
            seen.append(body[-1])
            if len(seen) == 2:
                await may_answer.wait()
                peer.say(b"\x40\x02\x00\x01")
            if len(seen) > 2:
                peer.say(bytes([0x40, 2, 0, len(seen) - 1]))
        peer.say(b"\x40\x02\x00\x05")
        await forever(peer)

    async with broker(script) as connection, opened(sink(connection), host) as send:
        sends = [asyncio.ensure_future(send(arriving(host, bytes([number])))) for number in range(5)]
        await until(lambda: len(seen) == 2)
        may_answer.set()
        await asyncio.gather(*sends)
    assert seen == [0, 1, 2, 3, 4]


async def test_a_send_that_finds_no_room_in_time_leaves_the_link_alone(host: FakeHost) -> None:
    answer = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(b"\x20\x06\x00\x00\x03\x21\x00\x01")
        await peer.expect(PUBLISH)
        await answer.wait()
        peer.say(b"\x40\x02\x00\x01")
        await forever(peer)

    async with broker(script) as connection, connection.publishing.open(host) as link:
        host_of_links = FakeHost()
        patient = sink(connection)._send(link, "t")
        hasty = sink(connection, timeout="50ms")._send(link, "t")
        first = asyncio.ensure_future(patient(arriving(host_of_links)))
        await asyncio.sleep(0)
        with pytest.raises(PeerError, match="the broker is slow: 1 packets wait") as slow:
            await hasty(arriving(host_of_links))
        assert not slow.value.reconnect
        answer.set()
        await first


async def test_a_broker_that_answers_no_ping_is_a_lost_link(host: FakeHost) -> None:
    pinged = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(CONNECTED)
        await peer.expect(PING)
        pinged.set()
        await forever(peer)

    async with broker(script, keep_alive="1s") as connection:
        with pytest.raises(PeerError, match="said nothing for"):
            await idle(connection, host)
    assert pinged.is_set()


async def idle(connection: Connection, host: FakeHost) -> None:
    async with opened(sink(connection), host):
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("suback", "complaint"),
    [
        (b"\x90\x04\x00\x01\x00\x87", "refused the subscription to 't': not authorised"),
        (b"\x90\x04\x00\x01\x00\x9e", "leave shared_group: out"),
        (b"\x90\x04\x00\x01\x00\x80", "check topic:"),
        (b"\x90\x04\x00\x01\x00\x00", "grants only QoS 0"),
    ],
)
async def test_a_refused_subscription_is_a_sentence(host: FakeHost, suback: bytes, complaint: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(CONNECTED)
        await peer.expect(SUBSCRIBE)
        peer.say(suback)
        await forever(peer)

    async with broker(script) as connection:
        with pytest.raises(PeerError, match=complaint) as refused:
            await Source(connection=connection, topic="t").run(host, Inbox(host), lambda: None)
        assert not refused.value.reconnect


async def test_check_connect_names_each_topic_filter_that_the_broker_refuses(tmp_path: Path) -> None:
    logins: list[bytes] = []

    async def script(peer: Peer) -> None:
        logins.append(await peer.expect(CONNECT))
        peer.say(CONNECTED)
        while True:
            first, body = await peer.packet()
            if first & 0xF0 == SUBSCRIBE:
                assert b"$share/" not in body
                peer.say(b"\x90\x04" + body[:2] + (b"\x00\x01" if b"open/" in body else b"\x00\x87"))

    async with broker(script) as peer:
        (tmp_path / "routes.yaml").write_text(
            f"""
version: 1
connections:
  plant: {{mqtt: {{url: "{peer.url}", client_id: gw}}}}
routes:
  a: {{from: {{mqtt: {{connection: plant, topic: open/1}}}}, to: drop}}
  b: {{from: {{mqtt: {{connection: plant, topic: closed/2}}}}, to: drop}}
  c: {{from: {{mqtt: {{connection: plant, topic: closed/3, shared_group: g}}}}, to: drop}}
  d: {{from: {{mqtt: {{connection: plant, topic: open/4}}}}, to: {{mqtt: {{connection: plant, topic: t}}}}}}
"""
        )
        (trial,) = await trials(load(tmp_path / "routes.yaml"))
    assert trial.routes == ("a", "b", "c", "d")
    problems = (trial.problem or "").split("; mqtt ")
    assert ["'closed/2'" in problems[0], "'closed/3'" in problems[1], len(problems)] == [True, True, 2]
    assert all("not authorised; check what the broker allows this user" in problem for problem in problems)
    assert len(logins) == 1
    assert b"gw-check" in logins[0]


async def test_a_session_that_is_kept_is_asked_for_and_its_messages_wait_for_the_subscription(host: FakeHost) -> None:
    acknowledged = asyncio.Event()

    async def script(peer: Peer) -> None:
        login = await peer.expect(CONNECT)
        assert login[7] & 0x02 == 0  # clean start is off
        assert b"\x11\x00\x01\x51\x80" in login  # session expiry: one day
        peer.say(b"\x20\x03\x01\x00\x00" + b"\x3a\x07\x00\x01t\x00\x09\x00x")
        subscribe = await peer.expect(SUBSCRIBE)
        peer.say(b"\x90\x04" + subscribe[:2] + b"\x00\x01")
        assert await peer.expect(0x40) == b"\x00\x09"
        acknowledged.set()
        await forever(peer)

    inbox = Inbox(host)
    async with broker(script) as connection, running(Source(connection=connection, topic="t"), inbox, host):
        (message,) = await inbox.wait(1)
        await acknowledged.wait()
    assert message.transport["redelivered"] is True


async def test_mqtt_311_stops_reading_when_too_much_is_unacknowledged(host: FakeHost) -> None:
    """Nothing in 3.1.1 tells a broker to wait: only a full socket does."""
    outcome = asyncio.Event()
    written = 0

    async def later(message: Message) -> Outcome:
        await outcome.wait()
        return Accepted(message.id)

    async def script(peer: Peer) -> None:
        nonlocal written
        await peer.expect(CONNECT)
        peer.say(b"\x20\x02\x00\x00")
        subscribe = await peer.expect(SUBSCRIBE)
        peer.say(b"\x90\x03" + subscribe[:2] + b"\x01")
        for number in range(1, 201):
            peer.say(b"\x32\x85\x80\x04\x00\x01t" + number.to_bytes(2, "big") + b"x" * 65_536)
            written += 1
        await forever(peer)

    inbox = Inbox(host, later)
    async with (
        broker(script, version="3.1.1", receive_maximum=8) as connection,
        running(Source(connection=connection, topic="t"), inbox, host),
    ):
        await until(lambda: written == 200 and len(inbox.messages) >= 9)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(inbox.messages) < 15
        outcome.set()
        await inbox.wait(200)


async def test_a_broker_that_sends_more_than_was_agreed_before_it_answers_a_subscription_is_read_all_the_same(
    host: FakeHost,
) -> None:
    """So Mosquitto 2.0.11 does with what a session had under way. A route takes nothing before all have subscribed."""
    ready = asyncio.Event()

    async def later(message: Message) -> Outcome:
        await ready.wait()
        return Accepted(message.id)

    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(CONNECTED)
        for number in range(1, 201):
            peer.say(b"\x32\x86\x80\x04\x00\x01t" + number.to_bytes(2, "big") + b"\x00" + b"x" * 65_536)
        subscribe = await peer.expect(SUBSCRIBE)
        peer.say(b"\x90\x04" + subscribe[:2] + b"\x00\x01")
        await forever(peer)

    inbox = Inbox(host, later)
    async with (
        broker(script, receive_maximum=8) as connection,
        running(Source(connection=connection, topic="t"), inbox, host),
    ):
        ready.set()
        await inbox.wait(200)


async def test_a_broker_that_floods_and_answers_no_subscription_is_read_up_to_a_limit_and_then_given_up(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message is a small body behind a large property: all that is held counts."""
    monkeypatch.setattr("adapters._mqtt_arrivals.MOST_BYTES", 1_000_000)
    properties = b"\x81\x80\x04\x26\x00\x01n\xff\xfb" + b"x" * 65_531
    flood = b"\x00\x01t%b" + properties

    async def never(message: Message) -> Outcome:
        await asyncio.get_running_loop().create_future()
        return Accepted(message.id)

    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(CONNECTED)
        await peer.expect(SUBSCRIBE)
        for number in range(1, 1001):
            packet = flood % number.to_bytes(2, "big")
            peer.say(
                b"\x32" + bytes([len(packet) & 127 | 128, len(packet) >> 7 & 127 | 128, len(packet) >> 14]) + packet
            )
        await forever(peer)

    inbox = Inbox(host, never)
    unread = "nothing more is read from it while [0-9]+ bytes of its messages wait for their routes"
    async with broker(script, receive_maximum=100) as connection:
        with pytest.raises(PeerError, match=f"did not answer a packet in time; {unread}") as lost:
            await asyncio.wait_for(Source(connection=connection, topic="t").run(host, inbox, lambda: None), 10)
    assert lost.value.reconnect
    assert 15 <= len(inbox.messages) < 30


async def test_a_broker_that_drips_one_packet_for_ever_is_a_lost_link() -> None:
    """Each byte is a sign of life, so that the keep-alive time alone would never end it."""
    host = FakeHost(limits=Limits(handshake="1s", frame="1s"))

    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(CONNECTED)
        subscribe = await peer.expect(SUBSCRIBE)
        peer.say(b"\x90\x04" + subscribe[:2] + b"\x00\x01" + b"\x32\xff\x7f\x00\x01t")
        while True:
            peer.say(b"x")
            await asyncio.sleep(0.05)

    async with broker(script, keep_alive="1s") as connection:
        inbox = Inbox(host)
        with pytest.raises(PeerError, match="takes more than 1 s for one packet") as lost:
            await asyncio.wait_for(Source(connection=connection, topic="t").run(host, inbox, lambda: None), 10)
    assert lost.value.reconnect
    assert inbox.messages == []


@pytest.mark.parametrize("version", [5, "3.1.1"])
async def test_a_link_that_holds_as_much_as_it_may_is_not_read(
    host: FakeHost, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters._mqtt_arrivals.MOST_BYTES", 1_000_000)
    held: list[asyncio.Future[Outcome]] = []

    async def later(message: Message) -> Outcome:
        held.append(asyncio.get_running_loop().create_future())
        return await held[-1]

    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(CONNECTED if version == 5 else b"\x20\x02\x00\x00")
        subscribe = await peer.expect(SUBSCRIBE)
        peer.say(b"\x90\x04" + subscribe[:2] + b"\x00\x01" if version == 5 else b"\x90\x03" + subscribe[:2] + b"\x01")
        none = b"\x00" if version == 5 else b"x"
        for number in range(1, 101):
            peer.say(b"\x32\x85\x80\x08\x00\x01t" + number.to_bytes(2, "big") + none + b"x" * 131_071)
        await forever(peer)

    inbox = Inbox(host, later)
    async with (
        broker(script, version=version, receive_maximum=100) as connection,
        running(Source(connection=connection, topic="t"), inbox, host),
    ):
        await inbox.wait(8)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(inbox.messages) < 12
        for number in range(100):
            await until(lambda number=number: len(held) > number)  # type: ignore[misc]
            held[number].set_result(Accepted("m"))
        await inbox.wait(100)


async def test_a_subscription_of_a_route_that_left_before_the_answer_is_given_up_too(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters._mqtt_link.PATIENCE_S", 0.05)
    asked, left, given_up = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(CONNECTED)
        subscribe = await peer.expect(SUBSCRIBE)
        peer.say(b"\x90\x04" + subscribe[:2] + b"\x00\x01")
        subscribe = await peer.expect(SUBSCRIBE)
        asked.set()
        await left.wait()
        peer.say(b"\x90\x04" + subscribe[:2] + b"\x00\x01")
        assert (await peer.expect(UNSUBSCRIBE)).endswith(b"\x00\x04gone")
        given_up.set()
        await forever(peer)

    async with broker(script) as connection, running(Source(connection=connection, topic="stays"), Inbox(host), host):
        gone = asyncio.create_task(Source(connection=connection, topic="gone").run(host, Inbox(host), lambda: None))
        await asked.wait()
        gone.cancel()
        await asyncio.wait({gone})
        left.set()
        await asyncio.wait_for(given_up.wait(), 5)


async def test_a_subscription_without_a_route_is_given_up_after_a_while(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters._mqtt_link.PATIENCE_S", 0.05)
    given_up = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.expect(CONNECT)
        peer.say(CONNECTED)
        for _ in range(2):
            subscribe = await peer.expect(SUBSCRIBE)
            peer.say(b"\x90\x04" + subscribe[:2] + b"\x00\x01")
        assert (await peer.expect(UNSUBSCRIBE)).endswith(b"\x00\x04gone")
        given_up.set()
        await forever(peer)

    async with broker(script) as connection, running(Source(connection=connection, topic="stays"), Inbox(host), host):
        async with running(Source(connection=connection, topic="gone"), Inbox(host), host):
            pass
        await given_up.wait()
