"""The AMQP adapter against a real RabbitMQ: what it sends, takes, asks and answers."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from adapters import amqp
from adapters._amqp_declare import ExchangeDeclaration, QueueDeclaration
from gateway import Accepted, Deferred, Message, MessageError, Outcome, PeerError, Refused, Template
from gateway.testing import FakeHost, Inbox, ManualClock, arriving, running, until
from tests.brokers.amqp_peer import awaited, broker, count, make_queue, peer, put, take_all, unique
from tests.brokers.rabbitmq import RabbitMq

pytestmark = pytest.mark.broker


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
            "price": Template("{{ body.price }}"),
            "lines": Template("{{ body.lines }}"),
        },
        expiration="1h",
        type=Template("order.placed"),
        persistent=False,
    )
    async with sink.open(host) as send:
        await send(
            arriving(
                host,
                b'{"customer": "C\xc5\xbe", "total": 12, "price": 19.99, "lines": [{"latitude": 52.3702157123, "weight": 0.1}]}',
            )
        )
    (got,) = await take_all(rabbitmq, queue)
    assert got.headers == {
        "customer": "Cž",
        "total": 12,
        "plant": "7",
        "price": Decimal("19.99"),
        "lines": [{"latitude": 52.3702157123, "weight": Decimal("0.1")}],
    }
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


async def test_what_no_queue_takes_is_not_delivered_however_deep_its_headers(rabbitmq: RabbitMq) -> None:
    """What comes back is told by its message-id, which lies behind the headers."""
    host, deep = FakeHost(), b"[" * 40 + b"]" * 40
    sink = amqp.Sink(
        connection=broker(rabbitmq), routing_key=Template("none"), headers={"deep": Template("{{ body }}")}
    )
    async with sink.open(host) as send:
        with pytest.raises(PeerError, match="no queue took the message"):
            await send(arriving(host, deep))


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
        large = sink.model_copy(update={"headers": {"x": Template("{{ body.key }}")}, "routing_key": Template("k")})
        async with large.open(host) as send_large:
            with pytest.raises(MessageError, match="properties and headers take"):
                await send_large(arriving(host, json.dumps({"key": "k" * 200_000}).encode()))
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
        given_up = asyncio.create_task(awaited(send(arriving(host, b"1"))))
        await asyncio.sleep(0)
        given_up.cancel()
        await send(arriving(host, b"2"))
        with pytest.raises(asyncio.CancelledError):
            await given_up
        await asyncio.gather(*(send(arriving(host, b"3")) for _ in range(50)))
    assert (await count(rabbitmq, queue)) >= 51


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


def answering(rabbitmq: RabbitMq, queue: str, host: FakeHost) -> tuple[Inbox, amqp.Source, amqp.Sink]:
    """A source of questions with an inbox that answers `re: …`, and a sink that asks."""
    inbox = Inbox(
        host,
        lambda message: Accepted(message.id, message.with_body(b"re: " + message.body, "text/plain")),
    )
    source = amqp.Source(connection=broker(rabbitmq), queue=queue)
    asking = amqp.Sink(connection=broker(rabbitmq, name="asking"), routing_key=Template(queue), reply=amqp.Reply())
    return inbox, source, asking


async def test_a_reply_goes_to_who_asked_before_the_question_is_acknowledged(rabbitmq: RabbitMq) -> None:
    queue, host = await make_queue(rabbitmq), FakeHost()
    inbox, source, asking = answering(rabbitmq, queue, host)
    async with running(source, inbox, host), asking.open(host) as ask:
        replies = await asyncio.gather(*(ask(arriving(host, str(at).encode())) for at in range(10)))
        gone = arriving(host, b"gone")
        await put(rabbitmq, queue, gone.body, reply_to="amq.rabbitmq.reply-to.nobody", correlation_id="x")
        await put(rabbitmq, queue, b"nowhere", reply_to="no-such-queue", correlation_id="x")
        await inbox.wait(12)
    assert [reply.body for reply in replies if reply] == [f"re: {at}".encode() for at in range(10)]
    assert await count(rabbitmq, queue) == 0


async def test_a_question_whose_reply_ends_the_link_each_time_does_not_come_for_ever(rabbitmq: RabbitMq) -> None:
    """RabbitMQ 3.10 answers a pseudo-queue that it can't decode with 541 INTERNAL_ERROR; anybody may write one."""
    queue, host = await make_queue(rabbitmq), FakeHost()
    inbox, source, asking = answering(rabbitmq, queue, host)
    async with running(source, inbox, host), asking.open(FakeHost()) as ask:
        await put(rabbitmq, queue, b"odd", reply_to="amq.rabbitmq.reply-to.g1h2AA.b", correlation_id="x")
        await until(lambda: bool(host.drops))
        reply = await ask(arriving(host, b"next"))
    assert reply is not None
    assert reply.body == b"re: next"
    assert [message.body for message in inbox.messages] == [b"odd", b"next"]
    assert host.drops == {"reply refused": 1}
    assert await count(rabbitmq, queue) == 0
