"""The AMQP adapter over a socket to a server of this process, which plays along or breaks the rules."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pamqp import commands as spec
from pamqp.base import Frame
from pamqp.header import ContentHeader

from adapters import _amqp_frames as frames
from adapters import amqp
from adapters._amqp import ends_with
from gateway import Accepted, Deferred, Limits, Message, MessageError, Outcome, PeerError, Refused, Template
from gateway.testing import FakeHost, Inbox, ManualClock, arriving, running, settle, until
from tests.adapters.amqp_fake import ALL, FakeBroker


@pytest.fixture
async def broker() -> AsyncIterator[FakeBroker]:
    async with FakeBroker().running() as running_broker:
        yield running_broker


# --- a link to a server that plays along


async def test_what_is_published_is_what_the_server_reads(broker: FakeBroker) -> None:
    host = FakeHost(target="erp")
    sink = amqp.Sink(connection=amqp.Connection(url=broker.url), exchange="orders", routing_key=Template("k"))
    messages = [arriving(host, bytes([at]) * 200_000) for at in range(3)]
    async with sink.open(host) as send:
        await asyncio.gather(*(send(message) for message in messages))
    assert [body for _, _, body in broker.published] == [message.body for message in messages]
    publish, header, _ = broker.published[0]
    assert (publish.exchange, publish.routing_key, publish.mandatory) == ("orders", "k", True)
    assert header.properties.message_id == f"{messages[0].id}.erp"
    assert any(isinstance(frame, spec.Exchange.Declare) and frame.passive for frame in broker.seen)


async def consuming(broker: FakeBroker, **settings: Any) -> amqp.Source:
    return amqp.Source(connection=amqp.Connection(url=broker.url), queue="q", **settings)


@pytest.mark.parametrize("pieces", [1, 2, 7])
async def test_a_body_is_put_together_from_its_frames(broker: FakeBroker, pieces: int) -> None:
    host = FakeHost()
    inbox = Inbox(host)
    async with running(await consuming(broker), inbox, host):
        await broker.consumed.wait()
        broker.deliver(b"0123456789" * 50, pieces=pieces)
        broker.deliver(b"")
        first, second = await inbox.wait(2)
    assert (first.body, second.body) == (b"0123456789" * 50, b"")


@pytest.mark.parametrize(("size", "kept"), [(1000, 1000), (1001, 1001), (500_000, 1001)])
@pytest.mark.parametrize("pieces", [1, 7, 100])
async def test_of_a_body_over_the_limit_only_the_beginning_is_kept(
    broker: FakeBroker, size: int, kept: int, pieces: int
) -> None:
    host = FakeHost(limits=Limits.model_validate({"message": "1000B"}))
    inbox = Inbox(host)
    body = bytes(at % 251 for at in range(size))
    async with running(await consuming(broker), inbox, host):
        await broker.consumed.wait()
        broker.deliver(body, pieces=max(pieces, -(-size // 131_000)))
        broker.deliver(b"next")
        first, second = await inbox.wait(2)
    assert (first.body, second.body) == (body[:kept], b"next")


async def test_a_server_that_does_not_keep_to_the_prefetch_fills_no_memory(broker: FakeBroker) -> None:
    async def later(message: Message) -> Outcome:
        if len(inbox.messages) > 10:
            await asyncio.get_running_loop().create_future()
        return Accepted(message.id)

    host = FakeHost()
    inbox = Inbox(host, later)
    run = asyncio.create_task((await consuming(broker, prefetch=5)).run(host, inbox, lambda: None))
    await broker.consumed.wait()
    for number in range(10):
        broker.deliver(b"kept")
        await until(lambda number=number: len(broker.settled) == number + 1)  # type: ignore[misc]
    for _ in range(1000):
        broker.deliver(b"flood")
    with pytest.raises(PeerError, match="the broker sends far more than the prefetch"):
        await asyncio.wait_for(run, 5)
    assert len(inbox.messages) <= 15


async def test_frames_cut_at_every_byte_are_the_same_frames(broker: FakeBroker) -> None:
    host = FakeHost()
    inbox = Inbox(host)
    held: list[bytes] = []
    async with running(await consuming(broker), inbox, host):
        await broker.consumed.wait()
        with broker.holding(held):
            for at in range(3):
                broker.deliver(f"body {at}".encode(), ALL)
        data = b"".join(held)
        for at in range(len(data)):
            broker.send_raw(data[at : at + 1])
            await asyncio.sleep(0)
        got = await inbox.wait(3)
    assert [message.body for message in got] == [b"body 0", b"body 1", b"body 2"]


async def test_each_outcome_settles_its_own_delivery(broker: FakeBroker) -> None:
    clock = ManualClock()
    host = FakeHost(clock=clock)
    outcomes: dict[bytes, Outcome] = {
        b"good": Accepted("1"),
        b"bad": Refused("2", "no"),
        b"later": Deferred("3", "away", 5.0),
    }
    inbox = Inbox(host, lambda message: outcomes[message.body])
    async with running(await consuming(broker, refused="reject"), inbox, host):
        await broker.consumed.wait()
        for body in (b"later", b"bad", b"good"):
            broker.deliver(body)
        await until(lambda: len(broker.settled) == 2)
        await clock.advance(5.0)
        await until(lambda: len(broker.settled) == 3)
    bad, good, later = broker.settled
    assert isinstance(bad, spec.Basic.Nack)
    assert (bad.delivery_tag, bad.requeue) == (2, False)
    assert isinstance(good, spec.Basic.Ack)
    assert (good.delivery_tag, good.multiple) == (3, False)
    assert isinstance(later, spec.Basic.Nack)
    assert (later.delivery_tag, later.requeue) == (1, True)


@pytest.mark.parametrize("refusals", [2, 3])
async def test_a_reply_that_the_broker_refuses_is_tried_again_and_its_question_never_runs_again(
    broker: FakeBroker, refusals: int
) -> None:
    clock = ManualClock()
    host = FakeHost(clock=clock)
    broker.confirms = False
    inbox = Inbox(host, lambda message: Accepted(message.id, reply=Message(raw=b"pong")))
    async with running(await consuming(broker), inbox, host):
        await broker.consumed.wait()
        broker.deliver(b"ping", spec.Basic.Properties(reply_to="answers", correlation_id="c"))
        for attempt in range(1, refusals + 1):
            await until(lambda attempt=attempt: len(broker.published) == attempt)  # type: ignore[misc]
            broker.send(1, spec.Basic.Nack(delivery_tag=attempt))
            if attempt < 3:
                await until(lambda: clock.sleeping == 1)
                await clock.advance(1.0)
        if refusals < 3:
            await until(lambda: len(broker.published) == 3)
            broker.send(1, spec.Basic.Ack(delivery_tag=3))
        await until(lambda: len(broker.settled) == 1)
    assert isinstance(broker.settled[0], spec.Basic.Ack)
    assert len(inbox.messages) == 1
    assert host.drops == ({"reply refused": 1} if refusals == 3 else {})


async def test_an_odd_sender_does_not_end_the_link_of_the_others(broker: FakeBroker) -> None:
    host = FakeHost()
    inbox = Inbox(host)
    header = ContentHeader(body_size=2, properties=spec.Basic.Properties()).marshal()
    odd = header[:-2] + b"\x20\x00" + b"\x00\x00\x00\x06\x01a?xyz"  # a header of a type that does not exist
    async with running(await consuming(broker), inbox, host):
        await broker.consumed.wait()
        number = broker.consumer_channel
        broker.send(number, spec.Basic.Deliver(consumer_tag="c", delivery_tag=1, exchange="x", routing_key="k"))
        broker.send_raw(frames.head.pack(frames.HEADER, number, len(odd)) + odd + b"\xce")
        broker.send_raw(frames.head.pack(frames.BODY, number, 2) + b"{}\xce")
        broker.deliver(b"after")
        first, second = await inbox.wait(2)
    assert first.headers == {"amqp-properties": "unreadable"}
    assert (first.body, second.body) == (b"{}", b"after")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x01\x00\x01\x00\x00\x00\x01\x00\x00", "sent what is not AMQP 0-9-1 (a frame without its end)"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "sent what is not AMQP 0-9-1 (a frame of type 72)"),
        (b"\x01\x00\x01\x7f\xff\xff\xff", "sent what is not AMQP 0-9-1 (a frame of 2147483647 bytes)"),
    ],
    ids=["no frame end", "another protocol", "endless frame"],
)
async def test_a_server_that_breaks_the_rules_loses_its_link(broker: FakeBroker, data: bytes, text: str) -> None:
    host = FakeHost()
    async with running(await consuming(broker), Inbox(host), host) as task:
        await broker.consumed.wait()
        broker.send_raw(data + bytes(8))
        with pytest.raises(PeerError, match=re.escape(text)):
            await asyncio.wait_for(task, 5)


@pytest.mark.parametrize(
    "answer",
    [b"AMQP\x00\x01\x00\x00", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02F", b""],
    ids=["AMQP 1.0", "http", "tls alert", "hangs up"],
)
async def test_a_server_of_another_kind_is_a_clear_sentence(answer: bytes) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(other, "127.0.0.1", 0)
    async with server:
        url = f"amqp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(PeerError, match="what answered does not speak AMQP 0-9-1, or hung up"):
            async with amqp.Connection(url=url).open(FakeHost()):
                pass


async def test_confirms_of_many_at_once_out_of_order_and_refused_reach_their_own(broker: FakeBroker) -> None:
    host = FakeHost()
    broker.confirms = False
    sink = amqp.Sink(connection=amqp.Connection(url=broker.url), routing_key=Template("q"))
    async with sink.open(host) as send:
        sends = [asyncio.create_task(_awaited(send(arriving(host, str(at).encode())))) for at in range(6)]
        await until(lambda: len(broker.published) == 6)
        broker.send(1, spec.Basic.Ack(delivery_tag=5), spec.Basic.Nack(delivery_tag=2), spec.Basic.Ack(delivery_tag=99))
        broker.send(1, spec.Basic.Ack(delivery_tag=4, multiple=True))
        await asyncio.wait(sends[:5])
        assert not sends[5].done()
        broker.send(1, spec.Basic.Ack(delivery_tag=6))
        results = await asyncio.gather(*sends, return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["NoneType", "PeerError", *["NoneType"] * 4]


@pytest.mark.parametrize("tag", [0, 3, 2**40])
async def test_a_confirm_of_all_so_far_is_of_those_and_costs_no_more_than_there_are(
    broker: FakeBroker, tag: int
) -> None:
    broker.confirms = False
    host = FakeHost()
    sink = amqp.Sink(connection=amqp.Connection(url=broker.url), routing_key=Template("q"))
    async with sink.open(host) as send:
        sends = [asyncio.create_task(_awaited(send(arriving(host)))) for _ in range(3)]
        await until(lambda: len(broker.published) == 3)
        broker.send(1, spec.Basic.Ack(delivery_tag=tag, multiple=True))
        assert await asyncio.wait_for(asyncio.gather(*sends), 5) == [None] * 3


@pytest.mark.slow
async def test_a_link_stays_while_only_messages_come_and_no_heartbeats(broker: FakeBroker) -> None:
    host = FakeHost()
    inbox = Inbox(host)
    source = amqp.Source(connection=amqp.Connection(url=broker.url, heartbeat="1s"), queue="q")
    async with running(source, inbox, host) as task:
        await broker.consumed.wait()
        # A silent second connection would be given up after 4 s: here only deliveries tell that the peer lives.
        async with asyncio.timeout(10):
            until_s = asyncio.get_running_loop().time() + 4.5
            while asyncio.get_running_loop().time() < until_s:
                broker.deliver(b"tick")
                await inbox.wait(len(inbox.messages) + 1)
                await asyncio.sleep(0.05)
        assert not task.done()


async def test_a_message_that_cannot_be_written_is_refused(broker: FakeBroker) -> None:
    host = FakeHost()
    sink = amqp.Sink(
        connection=amqp.Connection(url=broker.url),
        routing_key=Template("q"),
        headers={"n": Template("{{ body.n }}")},
    )
    async with sink.open(host) as send:
        with pytest.raises(MessageError, match="amqp: headers"):
            await send(arriving(host, b'{"n": 123456789012345678901234567890}'))
        with pytest.raises(MessageError, match="is 300 bytes long, AMQP carries 255"):
            await send(arriving(host, b'{"n": 1}', correlation_id="c" * 300))
        with pytest.raises(MessageError, match=r"properties and headers take 131[0-9]+ bytes, the broker takes"):
            await send(arriving(host, b'{"n": "%b"}' % (b"x" * 131_000)))
        await send(arriving(host, b'{"n": 1.5}'))
    assert len(broker.published) == 1


@pytest.mark.parametrize(
    ("expiration", "left_s", "sent"),
    [
        (None, None, None),
        ("1h", None, "3600000"),
        (None, 5.0, "5000"),
        ("1s", 5.0, "1000"),
        ("1h", 5.0, "5000"),
        (None, -3.0, "1"),
        (None, 1e10, "4294967295"),
    ],
)
async def test_a_message_waits_in_a_queue_no_longer_than_it_says_and_the_sink_allows(
    broker: FakeBroker, expiration: str | None, left_s: float | None, sent: str | None
) -> None:
    clock = ManualClock()
    host = FakeHost(clock=clock)
    sink = amqp.Sink(connection=amqp.Connection(url=broker.url), routing_key=Template("q"), expiration=expiration)
    expires_at_s = None if left_s is None else clock.time() + left_s
    async with sink.open(host) as send:
        await send(arriving(host, expires_at_s=expires_at_s))
    ((_, header, _),) = broker.published
    assert header.properties.expiration == sent


@pytest.mark.parametrize("asked", [spec.Channel.Open, spec.Confirm.Select, spec.Exchange.Declare])
async def test_a_server_that_never_answers_what_a_sink_asks_for_is_given_up(
    broker: FakeBroker, asked: type[Frame]
) -> None:
    broker.silent_about = asked
    sink = amqp.Sink(connection=amqp.Connection(url=broker.url), exchange="orders")
    with pytest.raises(PeerError, match=r"^amqp://127.0.0.1:[0-9]+: the broker did not answer within 1 s$") as caught:
        async with sink.open(FakeHost(limits=Limits(handshake="1s"))):
            pass
    assert caught.value.reconnect


async def test_a_cancelled_open_leaves_nothing_behind() -> None:
    connected = asyncio.Event()
    closed = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read(-1)
        closed.set()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        url = f"amqp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        source = amqp.Source(connection=amqp.Connection(url=url), queue="q")
        host = FakeHost()
        task = asyncio.create_task(source.run(host, Inbox(host), lambda: None))
        await connected.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(closed.wait(), 2)


@pytest.mark.parametrize("turns", range(0, 60, 4))
async def test_a_source_cancelled_at_any_moment_is_cancelled(broker: FakeBroker, turns: int) -> None:
    host = FakeHost()
    source = await consuming(broker)
    task = asyncio.create_task(source.run(host, Inbox(host), lambda: None))
    await settle(turns)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)


async def _awaited(what: Any) -> Any:
    return await what


# --- how a loss ends what uses the link


async def test_a_loss_ends_a_body_that_only_waits_through_two_contexts_at_once() -> None:
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lost.set_result, "gone")
    with pytest.raises(PeerError, match="gone"):
        async with ends_with(lost), ends_with(lost):
            await asyncio.get_running_loop().create_future()
    await asyncio.sleep(0)  # no cancellation is left over
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_loss_as_the_body_ends_cancels_nothing_after_it(turns: int) -> None:
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    with contextlib.suppress(PeerError):
        async with ends_with(lost):
            lost.set_result("gone")
            with contextlib.suppress(asyncio.CancelledError):
                await settle(turns)
    await settle(3)
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_an_error_of_the_body_is_kept_when_the_link_is_lost_too() -> None:
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        async with ends_with(lost):
            lost.set_result("gone")
            try:
                await settle(2)
            finally:
                raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await work()
    await settle(3)


async def test_who_is_cancelled_as_the_link_is_lost_stays_cancelled() -> None:
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        async with ends_with(lost):
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(work())
    await settle(2)
    lost.set_result("gone")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
