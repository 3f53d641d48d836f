"""The MQTT adapter against a real Mosquitto: the contract, and what happens when either side dies."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adapters._mqtt_packets import Outgoing, Version
from adapters.mqtt import Connection, LastWill, Sink, Source
from gateway import (
    Accepted,
    Deferred,
    Message,
    MessageError,
    Outcome,
    PeerError,
    Refused,
    Send,
    Template,
    TopicTemplate,
)
from gateway.settings import ClientTls
from gateway.testing import FakeHost, Inbox, arriving, opened, running, until
from tests.brokers.mosquitto import Mosquitto, mosquitto
from tests.certificates import Authority

pytestmark = pytest.mark.broker

VERSIONS: list[Version] = [5, "3.1.1"]


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    async with mosquitto(tmp_path) as started:
        yield started


@pytest.fixture(params=VERSIONS, ids=["mqtt5", "mqtt311"])
def connection(request: pytest.FixtureRequest, broker: Mosquitto) -> Connection:
    return Connection(url=broker.url, client_id="gateway", version=request.param)


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


def source(connection: Connection, topic: str = "plant/#", **settings: Any) -> Source:
    return Source(connection=connection, topic=topic, **settings)


def sink(connection: Connection, topic: str = "plant/1", **settings: Any) -> Sink:
    return Sink(connection=connection, topic=TopicTemplate(topic), **settings)


def other(connection: Connection) -> Connection:
    """The same broker as somebody else."""
    return connection.model_copy(update={"client_id": "somebody-else"})


async def publish(connection: Connection, *bodies: bytes, topic: str = "plant/1", qos: int = 1, **more: Any) -> None:
    """Publishes over a link of its own."""
    async with other(connection).publishing.open(FakeHost()) as link:
        for body in bodies:
            await link.publish(Outgoing(topic.encode(), body, qos, retain=False, properties=more), 10)


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_what_is_sent_arrives_with_topic_qos_and_retain(connection: Connection, host: FakeHost, qos: int) -> None:
    inbox = Inbox(host)
    async with running(source(connection, qos=qos), inbox, host), opened(sink(connection, qos=qos), host) as send:
        assert await send(arriving(host, b'{"a": 1}')) is None
        (message,) = await inbox.wait(1)
    assert message.body == b'{"a": 1}'
    assert message.transport == {"topic": "plant/1", "qos": qos, "retain": False, "redelivered": False}
    assert message.type == "mqtt.message"


async def test_a_batch_of_1000_keeps_its_order(connection: Connection, host: FakeHost) -> None:
    inbox = Inbox(host)
    bodies = [b"%d" % number for number in range(1000)]
    async with running(source(connection), inbox, host), opened(sink(connection), host) as send:
        await asyncio.gather(*[send(arriving(host, body)) for body in bodies])
        await inbox.wait(1000)
    assert [message.body for message in inbox.messages] == bodies


@pytest.mark.parametrize(
    "body",
    [b"", b"\x00\xff\x0b\x1c\r\n", "grüße, 世界 🌍".encode(), os.urandom(1024**2)],
    ids=["empty", "binary", "utf8", "1MiB"],
)
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_body_arrives_as_it_was_sent(connection: Connection, host: FakeHost, qos: int, body: bytes) -> None:
    inbox = Inbox(host)
    async with running(source(connection, qos=qos), inbox, host), opened(sink(connection, qos=qos), host) as send:
        await send(arriving(host, body))
        (message,) = await inbox.wait(1)
    assert message.body == body


async def test_headers_content_type_id_and_expiry_make_the_round_trip(broker: Mosquitto, host: FakeHost) -> None:
    connection = Connection(url=broker.url, client_id="gateway")
    inbox = Inbox(host)
    to = sink(
        connection, "plant/{{ body.line }}/größe", headers={"X-Line": Template("{{ body.line }} ü")}, expires="90s"
    )
    async with running(source(connection), inbox, host), opened(to, host) as send:
        sent = arriving(host, b'{"line": 7}', content_type="application/json; charset=utf-8")
        await send(sent)
        (message,) = await inbox.wait(1)
    assert message.transport["topic"] == "plant/7/größe"
    assert message.headers == {"id": f"{sent.id}.target", "x-line": "7 ü"}
    assert message.sender_id == f"{sent.id}.target"
    assert message.content_type == "application/json; charset=utf-8"
    assert message.expires_at_s is not None
    assert 80 < message.expires_at_s - sent.time_s < 95


async def test_a_retained_message_says_so(connection: Connection, host: FakeHost) -> None:
    async with opened(sink(connection, retain=True), host) as send:
        await send(arriving(host, b"last"))
    inbox = Inbox(host)
    async with running(source(connection), inbox, host):
        (message,) = await inbox.wait(1)
    assert message.transport["retain"] is True


async def test_a_shared_group_gives_each_message_to_one_of_its_members(connection: Connection) -> None:
    first, second = FakeHost(), FakeHost()
    one, two = Inbox(first), Inbox(second)
    bodies = {b"%d" % number for number in range(50)}
    async with (
        running(source(connection, shared_group="g"), one, first),
        running(source(other(connection), shared_group="g"), two, second),
    ):
        await publish(connection.model_copy(update={"client_id": "third"}), *bodies)
        await until(lambda: len(one.messages) + len(two.messages) >= 50)
    assert len(one.messages) + len(two.messages) == 50
    assert {message.body for message in one.messages + two.messages} == bodies


async def test_two_members_of_a_shared_group_on_one_connection_get_each_message_once(
    connection: Connection, host: FakeHost
) -> None:
    one, two, all_of_it = Inbox(host), Inbox(host), Inbox(host)
    async with (
        running(source(connection, shared_group="workers"), one, host),
        running(source(connection, shared_group="workers"), two, host),
        running(source(connection, topic="plant/+"), all_of_it, host),
    ):
        await publish(connection, *(b"%d" % number for number in range(20)))
        await until(lambda: len(one.messages) + len(two.messages) >= 20)
        await all_of_it.wait(20)
        await publish(connection, b"last", topic="plant/last")
        await until(lambda: len(one.messages) + len(two.messages) >= 21)
    assert len(one.messages) + len(two.messages) == 21
    assert min(len(one.messages), len(two.messages)) >= 5


async def test_two_routes_of_one_connection_share_a_link_and_get_only_their_own(
    connection: Connection, host: FakeHost
) -> None:
    one, all_of_them = Inbox(host), Inbox(host)
    async with (
        running(source(connection, "plant/1"), one, host),
        running(source(connection, "plant/#"), all_of_them, host),
    ):
        await publish(connection, b"a", topic="plant/1")
        await publish(connection, b"b", topic="plant/2")
        await one.wait(1)
        await until(lambda: {message.body for message in all_of_them.messages} == {b"a", b"b"})
    assert {message.body for message in one.messages} == {b"a"}


async def test_nothing_is_acknowledged_before_its_outcome(
    connection: Connection, host: FakeHost, broker: Mosquitto
) -> None:
    outcome = asyncio.Event()

    async def later(message: Message) -> Outcome:
        await outcome.wait()
        return Accepted(message.id)

    inbox = Inbox(host, later)
    async with running(source(connection), inbox, host):
        await publish(connection, b"a")
        await inbox.wait(1)
        await publish(connection, b"b")  # what Mosquitto logs of b, it logs after all that it heard of a
        await inbox.wait(2)
        assert "Received PUBACK from gateway " not in broker.log
        outcome.set()
        await until(lambda: broker.log.count("Received PUBACK from gateway ") == 2)


async def test_what_was_not_acknowledged_comes_again_after_a_reconnect(connection: Connection, host: FakeHost) -> None:
    async def never(message: Message) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError

    stuck = Inbox(host, never)
    async with running(source(connection), stuck, host):
        await publish(connection, b"a", b"b")
        await stuck.wait(2)
    inbox = Inbox(host)
    async with running(source(connection), inbox, host):
        messages = await inbox.wait(2)
    assert [message.body for message in messages] == [b"a", b"b"]
    assert all(message.transport["redelivered"] for message in messages)


async def test_what_came_while_we_were_away_is_waiting(connection: Connection, host: FakeHost) -> None:
    inbox = Inbox(host)
    async with running(source(connection), inbox, host):
        pass
    await publish(connection, b"while away")
    async with running(source(connection), inbox, host):
        (message,) = await inbox.wait(1)
    assert message.body == b"while away"


async def test_a_refused_message_is_acknowledged_and_a_deferred_one_delivered_again(
    connection: Connection, host: FakeHost
) -> None:
    outcomes = {b"refused": 0, b"deferred": 0}

    def outcome(message: Message) -> Outcome:
        outcomes[message.body] += 1
        if message.body == b"refused":
            return Refused(message.id, "no")
        return Deferred(message.id, "busy", wait_s=0.01) if outcomes[message.body] < 3 else Accepted(message.id)

    inbox = Inbox(host, outcome)
    async with running(source(connection), inbox, host):
        await publish(connection, b"refused", b"deferred")
        await inbox.wait(4)
        await until(lambda: outcomes == {b"refused": 1, b"deferred": 3})
        assert len({message.id for message in inbox.messages}) == 2
    again = Inbox(host)
    async with running(source(connection), again, host):
        await publish(connection, b"new")
        (message,) = await again.wait(1)
    assert message.body == b"new"


async def test_no_more_is_received_than_receive_maximum_allows(
    broker: Mosquitto, connection: Connection, host: FakeHost
) -> None:
    connection = connection.model_copy(update={"receive_maximum": 5})
    outcome = asyncio.Event()

    async def later(message: Message) -> Outcome:
        await outcome.wait()
        return Accepted(message.id)

    inbox = Inbox(host, later)
    async with running(source(connection), inbox, host):
        await publish(connection, *[b"%d" % number for number in range(40)])
        await until(lambda: broker.log.count("Received PUBLISH from somebody-else") == 40)
        assert len(inbox.messages) <= (5 if connection.version == 5 else 21)
        outcome.set()
        await inbox.wait(40)
    assert [message.body for message in inbox.messages] == [b"%d" % number for number in range(40)]


async def run_until_lost(source: Source, host: FakeHost, then: Callable[[], None]) -> None:
    async with running(source, Inbox(host), host) as task:
        then()
        await task


async def hold_until_lost(sink: Sink, host: FakeHost, then: Callable[[], None]) -> None:
    async with opened(sink, host):
        then()
        await asyncio.Event().wait()


async def test_a_broker_that_dies_is_heard_at_once_by_source_and_sink(
    connection: Connection, host: FakeHost, broker: Mosquitto
) -> None:
    with pytest.raises(PeerError) as lost:
        await run_until_lost(source(connection), host, broker.kill)
    assert lost.value.reconnect
    await broker.start()
    with pytest.raises(PeerError, match="closed the connection") as lost:
        await hold_until_lost(sink(connection), host, broker.kill)
    assert lost.value.reconnect


@pytest.mark.parametrize("forgets", [False, True], ids=["with its session", "without its session"])
async def test_after_a_restart_of_the_broker_a_source_receives_again(
    connection: Connection, host: FakeHost, broker: Mosquitto, forgets: bool
) -> None:
    inbox = Inbox(host)
    with pytest.raises(PeerError):
        await run_until_lost(source(connection), host, broker.kill if forgets else broker.stop)
    await broker.start()
    async with running(source(connection), inbox, host):
        await publish(connection, b"again")
        (message,) = await inbox.wait(1)
    assert message.body == b"again"


async def test_a_broker_that_starts_after_us_is_found(tmp_path: Path, host: FakeHost) -> None:
    broker = Mosquitto(tmp_path)
    connection = Connection(url=broker.url, client_id="gateway")
    with pytest.raises(PeerError, match=f"127.0.0.1:{broker.port}: .*(refused|connect call failed|listens)"):
        async with opened(sink(connection), host):
            pass
    await broker.start()
    try:
        async with opened(sink(connection), host) as send:
            await send(arriving(host))
    finally:
        broker.kill()


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_wrong_password_is_a_sentence(tmp_path: Path, host: FakeHost, version: Version) -> None:
    async with mosquitto(tmp_path, users={"gw": "right"}) as broker:
        connection = Connection(url=broker.url, client_id="g", username="gw", password="wrong", version=version)
        with pytest.raises(PeerError, match=r"not authorised|bad user name or password") as refused:
            async with opened(sink(connection), host):
                pass
        assert "check username: and password:" in str(refused.value)
        right = connection.model_copy(
            update={"password": Connection(url=broker.url, username="gw", password="right").password}
        )
        async with opened(sink(right), host) as send:
            await send(arriving(host))


async def test_a_refused_subscription_is_a_sentence(tmp_path: Path, host: FakeHost) -> None:
    allowed = tmp_path / "acl"
    allowed.write_text("topic readwrite open/#\n")
    async with mosquitto(tmp_path, settings=[f"acl_file {allowed}"]) as broker:
        connection = Connection(url=broker.url, client_id="g")
        async with running(source(connection, "open/#"), Inbox(host), host):
            pass
        with pytest.raises((PeerError, MessageError), match="not authorised"):
            async with opened(sink(connection, "closed/1"), host) as send:
                await send(arriving(host))


async def test_tls_checks_the_certificate_and_shows_our_own(tmp_path: Path, host: FakeHost) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    server, client = authority.issue("server"), authority.issue("client", subject="gw")
    async with mosquitto(tmp_path, tls=server, client_ca=authority.ca) as broker:
        tls = ClientTls(ca=authority.ca, certificate=client.certificate, private_key=client.private_key)
        trusted = Connection(url=broker.url, client_id="g", tls=tls)
        inbox = Inbox(host)
        async with running(source(trusted), inbox, host), opened(sink(trusted), host) as send:
            await send(arriving(host, b"secret"))
            await inbox.wait(1)
        unknown = Connection(url=broker.url, client_id="g", tls=tls.model_copy(update={"ca": stranger.ca}))
        with pytest.raises(PeerError, match="by an unknown authority"):
            async with opened(sink(unknown), host):
                pass
        misnamed = Connection(
            url=broker.url, client_id="g", tls=tls.model_copy(update={"server_name": "broker.example"})
        )
        with pytest.raises(PeerError, match="for another host"):
            async with opened(sink(misnamed), host):
                pass
        naked = Connection(url=broker.url, client_id="g", tls=ClientTls(ca=authority.ca))
        with pytest.raises(PeerError, match=r"client certificate|closed the connection|reset"):
            async with opened(sink(naked), host):
                pass


async def vanish(connection: Connection, host: FakeHost) -> None:
    async with connection.publishing.open(host) as link:
        link.lose(PeerError("cut"))
        await asyncio.Event().wait()


async def test_the_will_is_published_when_we_vanish_and_not_when_we_leave(broker: Mosquitto, host: FakeHost) -> None:
    watcher = Connection(url=broker.url, client_id="watcher")
    mortal = Connection(url=broker.url, client_id="g", will=LastWill(topic="plant/status", payload="größer", qos=1))
    inbox = Inbox(host)
    async with running(source(watcher), inbox, host):
        async with mortal.publishing.open(host):
            pass
        with pytest.raises(PeerError):
            await vanish(mortal, host)
        (message,) = await inbox.wait(1)
    assert message.body == "größer".encode()


async def test_a_reply_goes_to_the_response_topic_with_the_correlation_data(broker: Mosquitto, host: FakeHost) -> None:
    connection = Connection(url=broker.url, client_id="gateway")

    def answered(message: Message) -> Outcome:
        return Accepted(message.id, reply=message.with_body(b"reply to " + message.body))

    requests, replies = Inbox(host, answered), Inbox(host)
    async with (
        running(source(connection, "ask/#"), requests, host),
        running(source(other(connection), "answers/#"), replies, host),
    ):
        third = connection.model_copy(update={"client_id": "third"})
        await publish(third, b"1", topic="ask/x", response_topic="answers/me", correlation_data=b"\x00\xff")
        await publish(third, b"2", topic="ask/x", response_topic="answers/me", correlation_data=b"c-2")
        await publish(third, b"3", topic="ask/x")
        first, second = await replies.wait(2)
        await requests.wait(3)
    assert (first.body, second.body) == (b"reply to 1", b"reply to 2")
    assert (first.correlation_id, second.correlation_id) == ("AP8=", "c-2")
    assert requests.messages[1].transport["response_topic"] == "answers/me"


async def test_a_reply_that_the_broker_never_takes_holds_up_none_behind_it(broker: Mosquitto, host: FakeHost) -> None:
    def answered(message: Message) -> Outcome:
        return Accepted(message.id, reply=message.with_body(b"reply to " + message.body))

    connection = Connection(url=broker.url, client_id="gateway", receive_maximum=1)
    requests, replies = Inbox(host, answered), Inbox(host)
    async with (
        running(source(connection, "ask/#"), requests, host),
        running(source(other(connection), "answers/#"), replies, host),
    ):
        third = connection.model_copy(update={"client_id": "third"})
        await publish(third, b"1", topic="ask/x", response_topic="$SYS/x")
        await publish(third, b"2", topic="ask/x", response_topic="answers/me")
        (reply,) = await replies.wait(1)
    assert reply.body == b"reply to 2"
    assert host.drops == {"reply refused": 1}


@pytest.mark.parametrize("text", ["a\tb", "a\x7fb", "a\x85b", "a\ufdd0b", "a\ufffeb", "a\U0001ffffb"])
async def test_a_sign_for_which_the_broker_would_end_the_link_is_refused(
    connection: Connection, host: FakeHost, text: str
) -> None:
    inbox = Inbox(host)
    async with running(source(connection, "#"), inbox, host), opened(sink(connection, "{{ body.x }}"), host) as send:
        with pytest.raises(MessageError, match=r"holds U\+[0-9A-F]{4,5}, for which a broker may end the link"):
            await send(arriving(host, json.dumps({"x": text}).encode()))
        if connection.version == 5:
            for refused in (
                sink(connection, headers={"n": Template("{{ body.x }}")}),
                sink(connection, headers={text: Template("v")}),
            ):
                async with opened(refused, host) as send_refused:
                    with pytest.raises(MessageError):
                        await send_refused(arriving(host, json.dumps({"x": text}).encode()))
            with pytest.raises(MessageError):
                await send(arriving(host, b'{"x": "plant"}', content_type=text))
        await send(arriving(host, b'{"x": "plant/\xc5\xbe"}'))
        (message,) = await inbox.wait(1)
    assert message.transport["topic"] == "plant/ž"


async def send_to_the_frozen(sink: Sink, host: FakeHost, broker: Mosquitto) -> None:
    async with opened(sink, host) as send:
        broker.freeze()
        await send(arriving(host))


async def test_a_frozen_broker_fails_the_send_in_time_and_the_link_with_it(
    connection: Connection, host: FakeHost, broker: Mosquitto
) -> None:
    with pytest.raises(PeerError, match="did not answer a packet in time") as late:
        await send_to_the_frozen(sink(connection, timeout="200ms"), host, broker)
    assert late.value.reconnect
    broker.thaw()


async def test_cancelling_a_send_leaves_the_link_to_the_others(
    connection: Connection, host: FakeHost, broker: Mosquitto
) -> None:
    async with opened(sink(connection), host) as send:
        broker.freeze()
        given_up = asyncio.ensure_future(send(arriving(host, b"1")))
        kept = asyncio.ensure_future(send(arriving(host, b"2")))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait({given_up})
        assert given_up.cancelled()
        broker.thaw()
        await kept
        await send(arriving(host, b"3"))


async def test_cancelling_at_any_moment_leaves_nothing_behind(connection: Connection, host: FakeHost) -> None:
    async def use() -> None:
        async with opened(sink(connection), host) as send:
            await send(arriving(host, b"x" * 100_000))
            await source(connection).run(host, Inbox(host), lambda: None)

    before = asyncio.all_tasks()
    for steps in range(0, 90, 3):
        task = asyncio.create_task(use())
        for _ in range(steps):
            await asyncio.sleep(0.0002)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
    assert asyncio.all_tasks() == before
    async with opened(sink(connection), host) as send:
        await send(arriving(host, b"still works"))


async def test_a_route_that_ends_leaves_what_it_had_to_the_next_one(connection: Connection, host: FakeHost) -> None:
    async def never(message: Message) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError

    stuck, neighbour, inbox = Inbox(host, never), Inbox(host), Inbox(host)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(source(connection, "neighbour"), neighbour, host))
        async with running(source(connection, "plant/#"), stuck, host):
            await publish(connection, b"a")
            await stuck.wait(1)
        async with running(source(connection, "plant/#"), inbox, host):
            (message,) = await inbox.wait(1)
            await publish(connection, b"b", topic="neighbour")
            await neighbour.wait(1)
    assert message.body == b"a"


class Transfer:
    """Bodies that go through sink, broker and source, while the links are made anew as the engine does it."""

    def __init__(self, connection: Connection, host: FakeHost, bodies: list[bytes]) -> None:
        self.confirmed: set[bytes] = set()
        self.inbox = Inbox(host)
        self.subscribed = asyncio.Event()
        self._connection = connection
        self._host = host
        self._pending = deque(bodies)

    async def receive(self) -> None:
        while True:
            try:
                await source(self._connection).run(self._host, self.inbox, self.subscribed.set)
            except PeerError:
                self.subscribed.clear()
                await asyncio.sleep(0.01)

    async def transmit(self) -> None:
        while self._pending:
            await self.subscribed.wait()  # a broker that forgot the session takes what nobody is subscribed to
            try:
                async with opened(sink(self._connection), self._host) as send, asyncio.TaskGroup() as tasks:
                    for _ in range(16):
                        tasks.create_task(self._sender(send))
            except* PeerError:
                await asyncio.sleep(0.01)

    async def _sender(self, send: Send) -> None:
        while self._pending:
            body = self._pending.popleft()
            try:
                await send(arriving(self._host, body))
            except BaseException:
                self._pending.append(body)
                raise
            self.confirmed.add(body)

    async def quiet(self) -> None:
        """Returns once nothing has arrived for a while."""
        seen = -1
        while seen != len(self.inbox.messages):
            seen = len(self.inbox.messages)
            await asyncio.sleep(0.3)


async def test_every_id_survives_kills_of_the_broker_but_those_that_it_forgot_after_its_own_ack(
    connection: Connection, host: FakeHost, broker: Mosquitto, capsys: pytest.CaptureFixture[str]
) -> None:
    """What Mosquitto had acknowledged and held in memory only when it was killed is its own loss, and counted apart."""
    bodies = [b"%d" % number for number in range(10_000)]
    transfer = Transfer(connection, host, bodies)
    async with asyncio.TaskGroup() as tasks:
        receiver = tasks.create_task(transfer.receive())
        transmitter = tasks.create_task(transfer.transmit())
        for killed_at in (2_500, 6_000):
            await until(partial(_reached, transfer.confirmed, killed_at))
            broker.kill()
            await broker.start()
        await transmitter
        await transfer.quiet()
        receiver.cancel()
    confirmed, received = transfer.confirmed, {message.body for message in transfer.inbox.messages}
    forgotten = confirmed - received
    with capsys.disabled():
        sys.stdout.write(
            f"\nmosquitto killed twice, MQTT {connection.version}: {len(confirmed)} acknowledged, "
            f"{len(confirmed & received)} received, {len(transfer.inbox.messages) - len(received)} duplicates, "
            f"{len(forgotten)} forgotten by mosquitto after its own PUBACK\n"
        )
    assert confirmed == set(bodies)
    assert received <= set(bodies)
    # Only what was between its PUBACK and its delivery at a kill: two windows of senders, and what lay in sockets.
    assert len(forgotten) < 500


def _reached(these: set[bytes], count: int) -> bool:
    return len(these) >= count
