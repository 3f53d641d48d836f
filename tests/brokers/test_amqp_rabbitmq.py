"""The AMQP adapter against a real RabbitMQ: contract, faults, and what is lost when the broker is killed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from adapters import amqp
from adapters._amqp_declare import ExchangeDeclaration, QueueDeclaration
from gateway import Accepted, Deferred, Limits, Message, MessageError, Outcome, PeerError, Refused, Template
from gateway.testing import FakeHost, Inbox, ManualClock, arriving, running, until
from tests.brokers.proxy import proxied
from tests.brokers.rabbitmq import RabbitMq

pytestmark = pytest.mark.broker

_numbers = itertools.count()


def unique(what: str) -> str:
    return f"{what}-{next(_numbers)}"


def broker(rabbitmq: RabbitMq, **settings: Any) -> amqp.Connection:
    return amqp.Connection(**{"url": rabbitmq.url, **settings})


@asynccontextmanager
async def peer(rabbitmq: RabbitMq) -> AsyncIterator[AbstractChannel]:
    """Another client, of other people: what it sees is what the broker has."""
    connection = await aio_pika.connect(f"amqp://guest:guest@127.0.0.1:{rabbitmq.port}/")
    async with connection:
        yield await connection.channel(publisher_confirms=True, on_return_raises=True)


async def make_queue(rabbitmq: RabbitMq, name: str = "", **settings: Any) -> str:
    name = name or unique("queue")
    async with peer(rabbitmq) as channel:
        await channel.declare_queue(name, durable=True, **settings)
    return name


async def put(rabbitmq: RabbitMq, queue: str, *bodies: bytes, **properties: Any) -> None:
    async with peer(rabbitmq) as channel:
        for body in bodies:
            await channel.default_exchange.publish(
                aio_pika.Message(body, delivery_mode=2, **properties), routing_key=queue
            )


async def take_all(rabbitmq: RabbitMq, queue: str) -> list[AbstractIncomingMessage]:
    """What is in a queue, taken out of it."""
    taken = []
    async with peer(rabbitmq) as channel:
        found = await channel.declare_queue(queue, passive=True)
        while (message := await found.get(no_ack=True, fail=False)) is not None:
            taken.append(message)
    return taken


async def count(rabbitmq: RabbitMq, queue: str) -> int:
    async with peer(rabbitmq) as channel:
        found = await channel.declare_queue(queue, passive=True)
        return found.declaration_result.message_count or 0


def failing(host: FakeHost) -> Callable[[amqp.Source], Awaitable[PeerError]]:
    async def failure(source: amqp.Source) -> PeerError:
        with pytest.raises(PeerError) as caught:
            await asyncio.wait_for(source.run(host, Inbox(host), lambda: None), 10)
        return caught.value

    return failure


# --- the sink


async def test_a_sink_opens_sends_and_closes(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost(target="erp")
    sink = amqp.Sink(connection=broker(rabbitmq), routing_key=Template(queue))
    message = arriving(
        host, b'{"n": 1}', correlation_id="c-1", priority=4, traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    )
    async with sink.open(host) as send:
        assert await send(message) is None
    (got,) = await take_all(rabbitmq, queue)
    assert got.body == b'{"n": 1}'
    assert got.message_id == f"{message.id}.erp"
    assert (got.content_type, got.correlation_id, got.priority) == ("application/json", "c-1", 4)
    assert got.delivery_mode == 2
    assert got.timestamp is not None
    assert got.headers == {"traceparent": message.traceparent}


@pytest.mark.parametrize(
    "body",
    [b"", b"\x00\xff\x80\xce", "žluťoučký kůň".encode(), bytes(range(256)) * 4096],
    ids=["empty", "binary", "utf-8", "one mebibyte"],
)
async def test_bodies_arrive_as_they_were_sent(rabbitmq: RabbitMq, body: bytes) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    connection = broker(rabbitmq)
    sink = amqp.Sink(connection=connection, routing_key=Template(queue))
    inbox = Inbox(host)
    async with sink.open(host) as send, running(amqp.Source(connection=connection, queue=queue), inbox, host):
        await send(arriving(host, body, content_type="application/octet-stream"))
        (got,) = await inbox.wait(1)
    assert got.body == body
    assert got.content_type == "application/octet-stream"


async def test_two_thousand_messages_sent_one_by_one_or_at_once_all_arrive_in_order(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    sink = amqp.Sink(connection=broker(rabbitmq), routing_key=Template(queue))
    async with sink.open(host) as send:
        for at in range(100):
            await send(arriving(host, str(at).encode()))
        await asyncio.gather(*(send(arriving(host, str(at).encode())) for at in range(100, 2000)))
    assert [int(got.body) for got in await take_all(rabbitmq, queue)] == list(range(2000))


async def test_headers_are_templates_that_keep_their_type(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    sink = amqp.Sink(
        connection=broker(rabbitmq),
        routing_key=Template(queue),
        headers={
            "customer": Template("{{ body.customer }}"),
            "total": Template("{{ body.total }}"),
            "plant": Template("7"),
        },
        expiration="1h",
        type=Template("order.placed"),
        persistent=False,
    )
    async with sink.open(host) as send:
        await send(arriving(host, b'{"customer": "C\xc5\xbe", "total": 12}'))
    (got,) = await take_all(rabbitmq, queue)
    assert got.headers == {"customer": "Cž", "total": 12, "plant": "7"}
    assert got.expiration == 3600.0
    assert got.type == "order.placed"
    assert got.delivery_mode == 1


async def test_what_no_queue_takes_is_not_delivered(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    sink = amqp.Sink(connection=broker(rabbitmq), routing_key=Template("{{ body.to }}"))
    async with sink.open(host) as send:
        lost, kept = await asyncio.gather(
            send(arriving(host, b'{"to": "nowhere"}')),
            send(arriving(host, json.dumps({"to": queue}).encode())),
            return_exceptions=True,
        )
    assert isinstance(lost, PeerError)
    assert not lost.reconnect
    assert str(lost).endswith(
        "no queue took the message (NO_ROUTE); bind one, or say mandatory: false; exchange '', routing key 'nowhere'"
    )
    assert kept is None


async def test_what_need_not_be_taken_is_delivered_when_confirmed(rabbitmq: RabbitMq) -> None:
    host = FakeHost()
    sink = amqp.Sink(connection=broker(rabbitmq), routing_key=Template("nowhere"), mandatory=False)
    async with sink.open(host) as send:
        assert await send(arriving(host)) is None


async def test_a_full_queue_refuses_and_the_link_stays(rabbitmq: RabbitMq) -> None:
    queue, host = (
        await make_queue(rabbitmq, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}),
        FakeHost(),
    )
    sink = amqp.Sink(connection=broker(rabbitmq), routing_key=Template(queue))
    async with sink.open(host) as send:
        await send(arriving(host))
        with pytest.raises(PeerError, match=r"the broker refused the message \(basic.nack\)") as caught:
            await send(arriving(host))
        assert not caught.value.reconnect
        await take_all(rabbitmq, queue)
        await send(arriving(host))


async def test_a_message_that_amqp_cannot_carry_is_refused_and_the_others_pass(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    sink = amqp.Sink(
        connection=broker(rabbitmq), exchange="amq.topic", routing_key=Template("{{ body.key }}"), mandatory=False
    )
    async with sink.open(host) as send:
        with pytest.raises(MessageError, match=r"is 300 bytes long, AMQP carries 255"):
            await send(arriving(host, json.dumps({"key": "k" * 300}).encode()))
        await send(arriving(host, json.dumps({"key": queue}).encode()))


async def test_a_declared_exchange_and_queue_are_made_and_bound(rabbitmq: RabbitMq) -> None:
    host, exchange, queue = FakeHost(), unique("orders"), unique("queue")
    connection = broker(rabbitmq)
    source = amqp.Source(
        connection=connection,
        queue=queue,
        declare=QueueDeclaration(
            exchange=exchange, type="topic", routing_keys=("order.*",), arguments={"x-max-length": 10}
        ),
    )
    sink = amqp.Sink(
        connection=connection,
        exchange=exchange,
        routing_key=Template("order.{{ body.customer }}"),
        declare=ExchangeDeclaration(),
    )
    inbox = Inbox(host)
    async with running(source, inbox, host), sink.open(host) as send:
        await send(arriving(host, b'{"customer": "C9"}'))
        (got,) = await inbox.wait(1)
    assert got.transport["exchange"] == exchange
    assert got.transport["routing_key"] == "order.C9"


async def test_a_queue_of_our_own_is_named_by_the_broker(rabbitmq: RabbitMq) -> None:
    host = FakeHost()
    connection = broker(rabbitmq)
    source = amqp.Source(
        connection=connection,
        queue="",
        declare=QueueDeclaration(exclusive=True, durable=False, exchange="amq.fanout"),
    )
    inbox = Inbox(host)
    async with running(source, inbox, host), amqp.Sink(connection=connection, exchange="amq.fanout").open(host) as send:
        await send(arriving(host))
        (got,) = await inbox.wait(1)
    assert got.transport["queue"].startswith("amq.gen-")


# --- the source


async def test_what_a_sender_wrote_is_in_the_message(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq, arguments={"x-max-priority": 9}), FakeHost(clock=ManualClock(1000.0))
    inbox = Inbox(host)
    await put(
        rabbitmq,
        queue,
        b"<a/>",
        content_type="application/xml",
        headers={"Customer": "C9", "n": 7, "ok": True, "nested": {"a": [1, "x"]}},
        correlation_id="c-1",
        message_id="m-1",
        reply_to="answers",
        expiration=60,
        priority=3,
        type="order.placed",
        app_id="erp",
        timestamp=1_700_000_000,
    )
    async with running(amqp.Source(connection=broker(rabbitmq), queue=queue), inbox, host):
        (got,) = await inbox.wait(1)
    assert got.body == b"<a/>"
    assert (got.content_type, got.type, got.priority) == ("application/xml", "order.placed", 3)
    assert got.headers == {"customer": "C9", "n": "7", "ok": "true", "nested": '{"a":[1,"x"]}'}
    assert (got.correlation_id, got.sender_id, got.expires_at_s) == ("c-1", "m-1", 1060.0)
    assert got.transport == {
        "exchange": "",
        "routing_key": queue,
        "redelivered": False,
        "queue": queue,
        "reply_to": "answers",
        "app_id": "erp",
        "timestamp": 1_700_000_000,
    }


async def test_outcomes_settle_in_any_order(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    released: dict[bytes, asyncio.Event] = {body: asyncio.Event() for body in (b"1", b"2", b"3")}

    async def held(message: Message) -> Outcome:
        await released[message.body].wait()
        return Accepted(message.id)

    inbox = Inbox(host, held)
    await put(rabbitmq, queue, b"1", b"2", b"3")
    async with running(amqp.Source(connection=broker(rabbitmq), queue=queue), inbox, host):
        await inbox.wait(3)
        released[b"3"].set()
        released[b"1"].set()
    assert [got.body for got in await take_all(rabbitmq, queue)] == [b"2"]


async def test_no_more_than_the_prefetch_is_taken(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    go = asyncio.Event()

    async def held(message: Message) -> Outcome:
        await go.wait()
        return Accepted(message.id)

    inbox = Inbox(host, held)
    await put(rabbitmq, queue, *(str(at).encode() for at in range(20)))
    async with running(amqp.Source(connection=broker(rabbitmq), queue=queue, prefetch=4), inbox, host):
        await inbox.wait(4)
        assert await count(rabbitmq, queue) == 16
        assert len(inbox.messages) == 4
        go.set()
        await inbox.wait(20)
    assert [int(got.body) for got in inbox.messages] == list(range(20))


@pytest.mark.parametrize(("refused", "buried"), [("dead_letter", 0), ("reject", 1)])
async def test_a_refused_message_leaves_the_queue(rabbitmq: RabbitMq, refused: Any, buried: int) -> None:
    dead = await make_queue(rabbitmq)
    queue = await make_queue(rabbitmq, arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead})
    host = FakeHost()
    inbox = Inbox(host, lambda message: Refused(message.id, "no customer"))
    await put(rabbitmq, queue, b"{}")
    async with running(amqp.Source(connection=broker(rabbitmq), queue=queue, refused=refused), inbox, host):
        await inbox.wait(1)
    assert await count(rabbitmq, queue) == 0
    assert await count(rabbitmq, dead) == buried


async def test_a_message_that_was_dead_lettered_before_says_how_often(rabbitmq: RabbitMq) -> None:
    dead = await make_queue(rabbitmq)
    queue = await make_queue(rabbitmq, arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead})
    host = FakeHost()
    await put(rabbitmq, queue, b"{}")
    refusing = Inbox(host, lambda message: Refused(message.id, "no"))
    async with running(amqp.Source(connection=broker(rabbitmq), queue=queue, refused="reject"), refusing, host):
        await refusing.wait(1)
    inbox = Inbox(host)
    async with running(amqp.Source(connection=broker(rabbitmq), queue=dead), inbox, host):
        (got,) = await inbox.wait(1)
    assert got.transport["x_death_count"] == 1
    assert got.transport["x_death_reason"] == "rejected"
    assert got.transport["x_death_queue"] == queue
    assert json.loads(got.headers["x-death"])[0]["count"] == 1


async def test_a_deferred_poison_message_comes_back_only_after_its_wait(rabbitmq: RabbitMq) -> None:
    queue, clock = await make_queue(rabbitmq), ManualClock()
    host = FakeHost(clock=clock)
    inbox = Inbox(host, lambda message: Deferred(message.id, "the target is away", 5.0))
    await put(rabbitmq, queue, b"poison")
    async with running(amqp.Source(connection=broker(rabbitmq), queue=queue), inbox, host):
        await inbox.wait(1)
        await clock.advance(4.9)
        assert await count(rabbitmq, queue) == 0  # ours, unacknowledged: nobody hot-loops on it
        assert len(inbox.messages) == 1
        await clock.advance(0.2)
        _, again = await inbox.wait(2)
    assert again.transport["redelivered"] is True
    assert await count(rabbitmq, queue) == 1


async def test_a_cancelled_source_gives_back_what_it_has_not_settled(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()

    async def never(message: Message) -> Outcome:
        await asyncio.get_running_loop().create_future()
        return Accepted(message.id)

    inbox = Inbox(host, never)
    await put(rabbitmq, queue, b"1", b"2")
    async with running(amqp.Source(connection=broker(rabbitmq), queue=queue), inbox, host) as task:
        await inbox.wait(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await count(rabbitmq, queue) == 2


async def test_a_cancelled_send_leaves_the_link_to_the_others(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    sink = amqp.Sink(connection=broker(rabbitmq), routing_key=Template(queue))
    async with sink.open(host) as send:
        given_up = asyncio.create_task(_awaited(send(arriving(host, b"1"))))
        await asyncio.sleep(0)
        given_up.cancel()
        await send(arriving(host, b"2"))
        with pytest.raises(asyncio.CancelledError):
            await given_up
        await asyncio.gather(*(send(arriving(host, b"3")) for _ in range(50)))
    assert (await count(rabbitmq, queue)) >= 51


async def _awaited(what: Awaitable[Any]) -> Any:
    return await what


# --- asking and being asked


async def test_a_sink_with_reply_returns_what_was_answered(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost(target="crm")
    sink = amqp.Sink(connection=broker(rabbitmq), routing_key=Template(queue), reply=amqp.Reply())
    async with peer(rabbitmq) as channel:
        asked = await channel.get_queue(queue)

        async def answer(question: AbstractIncomingMessage) -> None:
            await channel.default_exchange.publish(
                aio_pika.Message(
                    b"re: " + question.body, correlation_id=question.correlation_id, content_type="text/plain"
                ),
                routing_key=question.reply_to or "",
            )
            await question.ack()

        await asked.consume(answer)
        async with sink.open(host) as send:
            messages = [arriving(host, str(at).encode(), correlation_id="theirs") for at in range(20)]
            replies = await asyncio.gather(*(send(message) for message in messages))
    assert [reply.body for reply in replies if reply] == [f"re: {at}".encode() for at in range(20)]
    assert replies[0] is not None
    assert replies[0].content_type == "text/plain"
    assert replies[0].correlation_id == f"{messages[0].id}.crm"


async def test_no_reply_in_time_is_a_peer_that_may_have_acted(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    sink = amqp.Sink(
        connection=broker(rabbitmq),
        routing_key=Template(queue),
        reply=amqp.Reply(timeout="200ms"),
    )
    async with sink.open(host) as send:
        with pytest.raises(PeerError, match=f"no reply came within 0.2 s from who takes '{queue}'") as caught:
            await send(arriving(host))
    assert caught.value.too_late


async def test_a_reply_goes_to_who_asked_before_the_question_is_acknowledged(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    inbox = Inbox(
        host,
        lambda message: Accepted(message.id, message.with_body(b"re: " + message.body, "text/plain")),
    )
    source = amqp.Source(connection=broker(rabbitmq), queue=queue)
    asking = amqp.Sink(connection=broker(rabbitmq, name="asking"), routing_key=Template(queue), reply=amqp.Reply())
    async with running(source, inbox, host), asking.open(host) as ask:
        replies = await asyncio.gather(*(ask(arriving(host, str(at).encode())) for at in range(10)))
        gone = arriving(host, b"gone")
        await put(rabbitmq, queue, gone.body, reply_to="amq.rabbitmq.reply-to.nobody", correlation_id="x")
        await put(rabbitmq, queue, b"nowhere", reply_to="no-such-queue", correlation_id="x")
        await inbox.wait(12)
    assert [reply.body for reply in replies if reply] == [f"re: {at}".encode() for at in range(10)]
    assert await count(rabbitmq, queue) == 0


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
            sends.extend(asyncio.create_task(_awaited(send(arriving(host)))) for _ in range(5))
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
                sends.extend(asyncio.create_task(_awaited(send(arriving(host, b"cut")))) for _ in range(3))
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
async def test_what_was_reported_delivered_survives_kill_9(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost(target="erp")
    sink = amqp.Sink(connection=broker(rabbitmq), routing_key=Template(queue))
    delivered: set[str] = set()
    failed: list[PeerError] = []

    async def sender(send: Callable[[Message], Awaitable[Message | None]]) -> None:
        while not failed:
            message = arriving(host, b"x" * 500)
            try:
                await send(message)
                delivered.add(f"{message.id}.erp")
            except PeerError as error:
                failed.append(error)

    async def work() -> None:
        async with sink.open(host) as send:
            senders.extend(asyncio.create_task(sender(send)) for _ in range(64))
            await until(lambda: len(delivered) > 5_000)
            rabbitmq.kill()
            await asyncio.get_running_loop().create_future()

    senders: list[asyncio.Task[None]] = []
    with pytest.raises(PeerError):
        await asyncio.wait_for(work(), 30)
    await asyncio.gather(*senders)
    assert all(error.reconnect for error in failed)
    await asyncio.to_thread(rabbitmq.start)
    kept = [got.message_id for got in await take_all(rabbitmq, queue)]
    missing = delivered - set(kept)
    assert len(delivered) > 5_000
    assert not missing
    assert len(kept) == len(set(kept))


@pytest.mark.slow
async def test_what_was_not_acknowledged_comes_again_after_kill_9(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
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
    again = Inbox(host)
    async with running(source, again, host):
        await until(lambda: {int(message.body) for message in again.messages} >= set(range(1, 60, 2)))
    assert all(message.transport["redelivered"] for message in again.messages if int(message.body) % 2)
    assert await count(rabbitmq, queue) == 0
