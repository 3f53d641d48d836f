"""The AMQP adapter when RabbitMQ refuses, blocks, goes away, comes back or is killed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
import uvloop

from adapters import amqp
from adapters._amqp_declare import ExchangeDeclaration, QueueDeclaration
from gateway import Accepted, Limits, Message, Outcome, PeerError, Template
from gateway.testing import FakeHost, Inbox, arriving, running, until
from tests.brokers.amqp_peer import (
    awaited,
    broker,
    count,
    failing,
    make_queue,
    peer,
    put,
    take_all,
    unique,
    until_recovered,
)
from tests.brokers.proxy import proxied
from tests.brokers.rabbitmq import RabbitMq

pytestmark = pytest.mark.broker


# --- faults, each a clear sentence


async def test_an_exchange_that_is_not_there_is_named(rabbitmq: RabbitMq) -> None:
    host = FakeHost()
    with pytest.raises(PeerError, match=r"NOT_FOUND - no exchange 'no-such' in vhost '/'") as caught:
        async with amqp.Sink(connection=broker(rabbitmq), exchange="no-such").open(host):
            pass
    assert caught.value.reconnect


async def test_an_exchange_that_goes_ends_the_channel_and_all_that_waited(rabbitmq: RabbitMq) -> None:
    host, exchange, queue = FakeHost(), unique("exchange"), unique("queue")
    connection = broker(rabbitmq)
    sink = amqp.Sink(connection=connection, exchange=exchange, declare=ExchangeDeclaration(type="fanout"))
    other = amqp.Sink(connection=connection, routing_key=Template(await make_queue(rabbitmq, queue)))
    sends: list[asyncio.Task[Any]] = []

    async def work() -> None:
        async with sink.open(host) as send:
            async with peer(rabbitmq) as channel:
                await channel.exchange_delete(exchange)
            sends.extend(asyncio.create_task(awaited(send(arriving(host)))) for _ in range(5))
            await asyncio.get_running_loop().create_future()

    async with other.open(host) as send_other:
        with pytest.raises(PeerError, match=r"the broker closed the channel .404 NOT_FOUND - no exchange"):
            await asyncio.wait_for(work(), 5)
        results = await asyncio.gather(*sends, return_exceptions=True)
        assert [isinstance(result, PeerError) and result.reconnect for result in results] == [True] * 5
        await send_other(arriving(host))  # the link and its other channels stay


async def test_a_queue_that_is_not_there_is_named(rabbitmq: RabbitMq) -> None:
    error = await failing(FakeHost())(amqp.Source(connection=broker(rabbitmq), queue="no-such"))
    assert str(error) == (
        f"{rabbitmq.url}: the broker closed the channel (404 NOT_FOUND - no queue 'no-such' in vhost '/')"
    )


async def test_a_queue_that_is_deleted_ends_its_source(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    async with running(amqp.Source(connection=broker(rabbitmq), queue=queue), Inbox(host), host) as task:
        async with peer(rabbitmq) as channel:
            await channel.queue_delete(queue)
        with pytest.raises(PeerError, match=r"the broker cancelled the consumer; was its queue deleted?"):
            await asyncio.wait_for(task, 5)


async def test_a_queue_declared_otherwise_is_a_clear_sentence(rabbitmq: RabbitMq) -> None:
    queue = await make_queue(rabbitmq)
    error = await failing(FakeHost())(
        amqp.Source(connection=broker(rabbitmq), queue=queue, declare=QueueDeclaration(durable=False))
    )
    assert "406 PRECONDITION_FAILED - inequivalent arg 'durable' for queue" in str(error)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"password": "wrong"}, "user 'guest' was refused; check username and password"),
        ({"username": "nobody"}, "user 'nobody' was refused; check username and password"),
        (
            {"url": "{url}/no-vhost"},
            "vhost 'no-vhost' was refused to user 'guest' (NOT_ALLOWED - vhost no-vhost not found)",
        ),
        ({"url": "amqp://127.0.0.1:1"}, "nothing listens there (connection refused); is the broker running?"),
        ({"url": "amqp://no-such-host.invalid"}, "no connection ("),
        ({"url": "amqp://127.0.0.1:{tls_port}"}, "what answered does not speak AMQP 0-9-1"),
        ({"url": "amqps://127.0.0.1:{tls_port}"}, "the broker's certificate was refused ("),
        ({"url": "amqps://127.0.0.1:{port}"}, "TLS failed (WRONG_VERSION_NUMBER)"),
        (
            {"url": "amqps://127.0.0.1:{tls_port}", "tls": {"ca": "{ca}", "server_name": "erp.example"}},
            "certificate is not valid for 'erp.example'",
        ),
    ],
    ids=["password", "user", "vhost", "port", "host", "not amqp", "unknown authority", "not tls", "wrong name"],
)
async def test_what_keeps_a_link_from_opening_is_a_clear_sentence(
    rabbitmq: RabbitMq, settings: dict[str, Any], text: str
) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: filled(inner) for name, inner in value.items()}
        return value.format(url=rabbitmq.url, port=rabbitmq.port, tls_port=rabbitmq.tls_port, ca=rabbitmq.authority.ca)

    with pytest.raises(PeerError) as caught:
        async with broker(rabbitmq, **filled(settings)).open(FakeHost()):
            pass
    assert text in str(caught.value)
    assert "guest:guest" not in str(caught.value)
    assert caught.value.reconnect


async def test_a_user_without_permission_reads_which(rabbitmq: RabbitMq) -> None:
    queue, user = await make_queue(rabbitmq), unique("reader")
    await asyncio.to_thread(rabbitmq.add_user, user, "secret", read="^$")
    error = await failing(FakeHost())(
        amqp.Source(connection=broker(rabbitmq, username=user, password="secret"), queue=queue)
    )
    assert f"403 ACCESS_REFUSED - access to queue '{queue}' in vhost '/' refused for user '{user}'" in str(error)


async def test_tls_and_a_vhost_with_a_slash_work(rabbitmq: RabbitMq) -> None:
    host, vhost = FakeHost(), unique("a/b")
    await asyncio.to_thread(rabbitmq.add_vhost, vhost)
    pair = rabbitmq.authority.issue("client", subject="gateway")
    connection = broker(
        rabbitmq,
        url=f"{rabbitmq.tls_url}/{vhost.replace('/', '%2F')}",
        tls={"ca": rabbitmq.authority.ca, "certificate": pair.certificate, "private_key": pair.private_key},
    )
    inbox = Inbox(host)
    source = amqp.Source(connection=connection, queue="q", declare=QueueDeclaration())
    async with (
        running(source, inbox, host),
        amqp.Sink(connection=connection, routing_key=Template("q")).open(host) as send,
    ):
        await send(arriving(host, b"x" * 300_000))
        (got,) = await inbox.wait(1)
    assert len(got.body) == 300_000


async def test_two_users_of_a_connection_share_two_links(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    async with proxied(rabbitmq.port) as proxy:
        connection = broker(rabbitmq, url=f"amqp://127.0.0.1:{proxy.port}")
        sink = amqp.Sink(connection=connection, routing_key=Template(queue))
        source = amqp.Source(connection=connection, queue=queue)
        async with (
            sink.open(host),
            sink.open(host),
            running(source, Inbox(host), host),
            running(source, Inbox(host), host),
        ):
            assert proxy.accepted == 2


async def test_a_link_that_is_cut_while_idle_ends_at_once(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    async with proxied(rabbitmq.port) as proxy:
        connection = broker(rabbitmq, url=f"amqp://127.0.0.1:{proxy.port}")

        async def idle() -> None:
            async with amqp.Sink(connection=connection, routing_key=Template(queue)).open(host):
                opened.set()
                await asyncio.get_running_loop().create_future()

        opened = asyncio.Event()
        task = asyncio.create_task(idle())
        async with running(amqp.Source(connection=connection, queue=queue), Inbox(host), host) as source:
            await opened.wait()
            proxy.cut()
            for each in (task, source):
                with pytest.raises(PeerError, match=r"the connection was") as caught:
                    await asyncio.wait_for(each, 1)
                assert caught.value.reconnect


async def test_a_link_cut_before_the_confirm_is_a_failed_attempt(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    async with proxied(rabbitmq.port) as proxy:
        connection = broker(rabbitmq, url=f"amqp://127.0.0.1:{proxy.port}")
        sends: list[asyncio.Task[Any]] = []

        async def work() -> None:
            async with amqp.Sink(connection=connection, routing_key=Template(queue)).open(host) as send:
                await send(arriving(host, b"before"))
                proxy.hold_answers()
                before = proxy.bytes_up
                sends.extend(asyncio.create_task(awaited(send(arriving(host, b"cut")))) for _ in range(3))
                await until(lambda: proxy.bytes_up > before)
                proxy.cut()
                await asyncio.get_running_loop().create_future()

        with pytest.raises(PeerError, match=r"the connection was"):
            await asyncio.wait_for(work(), 5)
        results = await asyncio.gather(*sends, return_exceptions=True)
    assert [isinstance(result, PeerError) and result.reconnect for result in results] == [True] * 3
    bodies = [got.body for got in await take_all(rabbitmq, queue)]
    assert bodies.count(b"before") == 1  # the broker may have taken the others: the stable id tells


async def test_a_confirm_that_does_not_come_is_waited_for_as_long_as_told(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    async with proxied(rabbitmq.port) as proxy:
        connection = broker(rabbitmq, url=f"amqp://127.0.0.1:{proxy.port}")
        sink = amqp.Sink(connection=connection, routing_key=Template(queue), timeout="300ms")
        async with sink.open(host) as send:
            proxy.hold_answers()
            with pytest.raises(PeerError, match=r"no confirm came within 0.3 s") as caught:
                await send(arriving(host))
            assert caught.value.too_late
            assert not caught.value.reconnect
            proxy.resume()
            await send(arriving(host))


@pytest.mark.slow
async def test_a_half_open_link_is_noticed_by_missing_heartbeats(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    async with proxied(rabbitmq.port) as proxy:
        connection = broker(rabbitmq, url=f"amqp://127.0.0.1:{proxy.port}", heartbeat="1s")
        async with running(amqp.Source(connection=connection, queue=queue), Inbox(host), host) as task:
            proxy.stall()
            with pytest.raises(PeerError):
                await asyncio.wait_for(task, 10)


async def test_a_broker_that_accepts_and_never_answers_is_given_up() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(PeerError, match=r"no answer within 0.2 s; is a broker there"):
            async with amqp.Connection(url=f"amqp://127.0.0.1:{port}").open(FakeHost(limits=Limits(handshake="200ms"))):
                pass


async def test_a_blocked_broker_is_waited_for_and_then_named(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    connection = broker(rabbitmq)
    inbox = Inbox(host)
    sink = amqp.Sink(connection=connection, routing_key=Template(queue), timeout="500ms")
    async with sink.open(host) as send, running(amqp.Source(connection=connection, queue=queue), inbox, host):
        await send(arriving(host, b"before"))
        await inbox.wait(1)
        await asyncio.to_thread(rabbitmq.set_memory_watermark, "1kB")
        try:
            with pytest.raises(PeerError, match=r"no confirm came within 0.5 s: the broker blocks publishers") as first:
                await send(arriving(host, b"blocked"))
            assert first.value.too_late
            with pytest.raises(PeerError, match=r"nothing could be sent within 0.5 s") as second:
                await send(arriving(host, b"held back"))
            assert not second.value.too_late
        finally:
            await asyncio.to_thread(rabbitmq.set_memory_watermark, "2GiB")
        await send(arriving(host, b"after"))
        got = await inbox.wait(3)
    assert [message.body for message in got] == [b"before", b"blocked", b"after"]


# --- the broker goes and comes


async def persistently(source: amqp.Source, deliver: Inbox, host: FakeHost) -> None:
    """Runs a source again whenever it is lost, as the engine does."""
    while True:
        with contextlib.suppress(PeerError):
            await source.run(host, deliver, lambda: None)
        await asyncio.sleep(0.1)


async def test_a_source_starts_before_its_broker(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    inbox = Inbox(host)
    source = amqp.Source(connection=broker(rabbitmq), queue=queue)
    await put(rabbitmq, queue, b"waiting")
    await asyncio.to_thread(rabbitmq.stop_app)
    try:
        error = await failing(host)(source)
        assert "nothing listens there (connection refused)" in str(error)
        task = asyncio.create_task(persistently(source, inbox, host))
    finally:
        await asyncio.to_thread(rabbitmq.start_app)
    (got,) = await inbox.wait(1)
    assert got.body == b"waiting"
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_a_broker_that_closes_its_connections_says_so(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    async with running(amqp.Source(connection=broker(rabbitmq), queue=queue), Inbox(host), host) as task:
        await asyncio.to_thread(rabbitmq.ctl, "close_all_connections", "maintenance")
        with pytest.raises(
            PeerError, match=r"the broker closed the connection \(320 CONNECTION_FORCED - maintenance\)"
        ):
            await asyncio.wait_for(task, 5)


@pytest.mark.slow
async def test_what_was_not_acknowledged_comes_again_after_kill_9(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    await asyncio.to_thread(rabbitmq.keep)
    await put(rabbitmq, queue, *(str(at).encode() for at in range(60)))
    go = asyncio.Event()

    async def every_other(message: Message) -> Outcome:
        if int(message.body) % 2:
            await go.wait()
        return Accepted(message.id)

    first = Inbox(host, every_other)
    source = amqp.Source(connection=broker(rabbitmq), queue=queue)
    task = asyncio.create_task(source.run(host, first, lambda: None))
    await first.wait(60)
    rabbitmq.kill()
    go.set()  # outcomes that can't be reported any more are let go
    with pytest.raises(PeerError):
        await asyncio.wait_for(task, 5)
    await asyncio.to_thread(rabbitmq.start)
    await until_recovered(rabbitmq, queue)
    again = Inbox(host)
    async with running(source, again, host):
        await until(lambda: {int(message.body) for message in again.messages} >= set(range(1, 60, 2)))
    assert all(message.transport["redelivered"] for message in again.messages if int(message.body) % 2)
    assert await count(rabbitmq, queue) == 0


def test_a_link_on_uvloop_carries_ends_and_opens_again(rabbitmq: RabbitMq) -> None:
    async def work() -> None:
        queue, host = await make_queue(rabbitmq), FakeHost()
        connection = broker(rabbitmq)
        inbox = Inbox(host)
        source = amqp.Source(connection=connection, queue=queue)
        sink = amqp.Sink(connection=connection, routing_key=Template(queue))
        for _ in range(2):
            async with running(source, inbox, host) as task:
                async with sink.open(host) as send:
                    await asyncio.gather(*(send(arriving(host, b"x" * 200_000)) for _ in range(10)))
                await asyncio.to_thread(rabbitmq.ctl, "close_all_connections", "maintenance")
                with pytest.raises(PeerError, match=r"320 CONNECTION_FORCED - maintenance"):
                    await asyncio.wait_for(task, 5)
        assert {len(message.body) for message in inbox.messages} == {200_000}
        assert len({message.sender_id for message in inbox.messages}) == 20

    uvloop.run(work())
