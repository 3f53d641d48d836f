"""The contract of sinks, as checks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.errors import MessageError, PeerError
from gateway.links import peer_error_in
from gateway.message import Message
from gateway.ports import Send, Sink
from gateway.testing.benches import Check, SinkBench, needs
from gateway.testing.fakes import settle, until
from gateway.testing.leaks import nothing_left
from gateway.testing.source_checks import STEPS, documented, ended, quiet


class Opened:
    """A sink that is held open in a task of its own, as the engine does."""

    def __init__(self, sink: Sink, bench: SinkBench) -> None:
        self.send: Send | None = None
        self.task = asyncio.create_task(self._hold(sink, bench))

    async def _hold(self, sink: Sink, bench: SinkBench) -> None:
        async with sink.open(bench.host) as self.send:
            await asyncio.get_running_loop().create_future()


@asynccontextmanager
async def held(bench: SinkBench) -> AsyncIterator[Opened]:
    """The sink of the bench, open."""
    opened = Opened(bench.sink(), bench)
    try:
        await until(lambda: opened.send is not None or opened.task.done())
        if opened.task.done():
            await opened.task
        yield opened
    finally:
        await ended(opened.task)


@asynccontextmanager
async def kept_open(bench: SinkBench) -> AsyncIterator[Send]:
    """A send that opens the sink again whenever its link is lost, and tries until the message is delivered."""
    opened = Opened(bench.sink(), bench)

    async def send(message: Message) -> Message | None:
        nonlocal opened
        while True:
            used, lost = opened, opened.task.done()
            try:
                if used.send is not None and not lost:
                    return await used.send(message)
            except PeerError as error:
                lost = error.reconnect
            if (lost or used.task.done()) and used is opened:
                opened = Opened(bench.sink(), bench)
                await ended(used.task)
            await asyncio.sleep(0.005)

    try:
        yield send
    finally:
        await ended(opened.task)


async def _sent(opened: Opened, message: Message) -> Message | None:
    assert opened.send is not None
    return await asyncio.wait_for(asyncio.ensure_future(opened.send(message)), 10)


async def is_a_documented_settings_class(bench: SinkBench) -> None:
    """It is a frozen settings class with a docstring, and all fields are described."""
    sink = bench.sink()
    assert isinstance(sink, Sink)
    documented(sink)
    assert sink == bench.sink()


async def opens_and_closes(bench: SinkBench) -> None:
    """Again and again, used or not, it leaves no task and no socket."""
    async with nothing_left(bench.leave):
        async with held(bench):
            pass
        async with held(bench) as opened:
            await _sent(opened, bench.message(bench.body(1)))
    async with held(bench) as opened:
        await _sent(opened, bench.message(bench.body(2)))
    await until(lambda: len(bench.received()) >= 2)


async def sends_in_order(bench: SinkBench) -> None:
    """Messages sent one after the other arrive in that order."""
    sent = [bench.body(number) for number in range(20)]
    async with held(bench) as opened:
        for body in sent:
            await _sent(opened, bench.message(body))
        await until(lambda: len(bench.received()) >= len(sent))
    assert bench.received() == sent


async def sends_a_batch(bench: SinkBench) -> None:
    """Hundreds of messages at once all arrive, once each; in order where order is kept."""
    sent = [bench.body(number) for number in range(bench.batch)]
    async with held(bench) as opened:
        await asyncio.gather(*(_sent(opened, bench.message(body)) for body in sent))
        await until(lambda: len(bench.received()) >= len(sent))
    assert sorted(bench.received()) == sorted(sent)
    if bench.ordered:
        assert bench.received() == sent


@needs("carries")
async def bodies_arrive_as_they_are(bench: SinkBench) -> None:
    """Empty ones, any bytes, UTF-8 and large ones."""
    async with held(bench) as opened:
        for count, (name, body) in enumerate(bench.bodies().items(), 1):
            await _sent(opened, bench.message(body))
            await until(lambda count=count: len(bench.received()) >= count)  # type: ignore[misc]
            assert bench.received()[-1] == body, f"a body that is {name} did not arrive as it was"


@needs("headers")
async def headers_arrive(bench: SinkBench) -> None:
    """What its `headers:` name is what the peer sees, and nothing else of the message's own."""
    async with held(bench) as opened:
        await _sent(opened, bench.message(bench.body(1), {"x-check": "one; two", "x-secret": "theirs"}))
        await until(lambda: len(bench.received()) >= 1)
        assert bench.received_headers()["x-check"] == "one; two"
        assert "x-secret" not in bench.received_headers()


@needs("stable_ids")
async def the_stable_id_is_the_same_on_every_attempt(bench: SinkBench) -> None:
    """It is the id of the message, a dot, and the name of the target."""
    async with held(bench) as opened:
        message = bench.message(bench.body(1))
        for _ in range(2):
            await _sent(opened, message)
        await until(lambda: len(bench.ids()) >= 2)
    assert bench.ids() == [f"{message.id}.{bench.host.target}"] * 2


@needs("refuses")
async def what_it_can_not_carry_is_refused(bench: SinkBench) -> None:
    """As a MessageError, and other messages pass before and after."""
    async with held(bench) as opened:
        for number in range(3):
            refused: Exception | None = None
            try:
                await _sent(opened, bench.uncarried())
            except (MessageError, PeerError) as error:
                refused = error
            assert isinstance(refused, MessageError), f"it raised {refused!r}, expected a MessageError"
            await _sent(opened, bench.message(bench.body(number)))
        assert not opened.task.done()
        await until(lambda: len(bench.received()) >= 3)
    assert bench.received() == [bench.body(number) for number in range(3)]


@needs("confirms")
async def nothing_is_delivered_before_the_peer_says_so(bench: SinkBench) -> None:
    """While the peer holds its confirmation back, the send has not returned."""
    async with held(bench) as opened:
        bench.hold()
        sending = asyncio.create_task(_sent(opened, bench.message(bench.body(1))))
        await until(lambda: len(bench.received()) >= 1)
        await quiet()
        assert not sending.done(), "it was called delivered before the peer said so"
        bench.release()
        await asyncio.wait_for(sending, 2)


@needs("connects")
async def a_lost_peer_is_noticed_while_idle(bench: SinkBench) -> None:
    """Within a second, as a PeerError out of the context, without anything being sent."""
    async with nothing_left(bench.leave), held(bench) as opened:
        await bench.lose()
        await asyncio.wait({opened.task}, timeout=1)
        assert opened.task.done(), "it did not notice within a second"
        error = opened.task.exception()
        assert error is not None
        assert peer_error_in(error) is not None, f"it raised {error!r}, expected a PeerError"
    await bench.come_back()


@needs("has_peer")
async def a_send_to_a_lost_peer_is_a_peer_error(bench: SinkBench) -> None:
    """Opening or sending raises PeerError while the peer is away, within five seconds, and leaves nothing behind."""
    async with nothing_left(bench.leave):
        async with held(bench) as opened:
            await _sent(opened, bench.message(bench.body(1)))
            await bench.lose()
            error: Exception | None = None
            try:
                for _ in range(3):  # what is only written may be on its way before a loss shows
                    assert opened.send is not None
                    await asyncio.wait_for(asyncio.ensure_future(opened.send(bench.message(bench.body(2)))), 5)
                    await quiet()
            except PeerError as raised:
                error = raised
            assert error is not None, "sends to a lost peer were called delivered"
        task = Opened(bench.sink(), bench).task
        await asyncio.wait({task}, timeout=0.2)
        if task.done():
            failed = task.exception()
            assert failed is not None
            assert peer_error_in(failed) is not None, f"opened to a lost peer, it raised {failed!r}"
        await ended(task)
    await bench.come_back()


@needs("has_peer", "confirms")
async def opened_again_it_sends_as_before(bench: SinkBench) -> None:
    """After its peer has come back."""
    async with held(bench) as opened:
        await _sent(opened, bench.message(bench.body(1)))
    await bench.lose()
    await bench.come_back()
    async with held(bench) as opened:
        await _sent(opened, bench.message(bench.body(2)))
    await until(lambda: bench.received()[-1:] == [bench.body(2)])


@needs("has_peer", "confirms")
async def nothing_is_lost_when_its_peer_dies_mid_flight(bench: SinkBench) -> None:
    """At least once, counted: what was called delivered was received, and all is in the end."""
    delivered: set[bytes] = set()
    sent = {bench.body(number) for number in range(100)}

    async with kept_open(bench) as send:

        async def deliver(body: bytes) -> None:
            await send(bench.message(body))
            delivered.add(body)

        sending = [asyncio.create_task(deliver(body)) for body in sorted(sent)]
        for threshold in (5, 40, 70):
            await until(lambda threshold=threshold: len(delivered) >= threshold)  # type: ignore[misc]
            await bench.lose()
            so_far = set(delivered)
            await until(lambda so_far=so_far: so_far <= set(bench.received()))  # type: ignore[misc]
            await bench.come_back()
        await asyncio.wait_for(asyncio.gather(*sending), 20)
    assert set(bench.received()) == sent


@needs("confirms")
async def a_peer_that_never_confirms_can_be_given_up(bench: SinkBench) -> None:
    """A hundred sends wait; cancelled they end, the sink closes, and nothing is left."""
    async with nothing_left(bench.leave):
        async with held(bench) as opened:
            bench.hold()
            sending = [asyncio.create_task(_sent(opened, bench.message(bench.body(n)))) for n in range(100)]
            await until(lambda: len(bench.received()) >= 1)
            await quiet()
            assert not any(task.done() and not task.cancelled() and task.exception() is None for task in sending)
            for task in sending:
                task.cancel()
            await asyncio.wait(sending, timeout=2)
            assert all(task.done() for task in sending), "a cancelled send went on waiting"
        bench.release()


async def its_opening_can_be_cancelled(bench: SinkBench) -> None:
    """After any number of turns of the loop: it ends, and nothing is left."""
    async with nothing_left(bench.leave):
        for turns in STEPS:
            task = Opened(bench.sink(), bench).task
            await settle(turns)
            await ended(task)


async def a_send_can_be_cancelled(bench: SinkBench) -> None:
    """After any number of turns of the loop; those after it are delivered, over a new link at worst."""
    async with nothing_left(bench.leave), kept_open(bench) as send:
        for number, turns in enumerate(STEPS[::3]):
            task = asyncio.create_task(_nothing(send, bench.message(bench.body(number))))
            await settle(turns)
            await ended(task)
            last = bench.body(1000 + number)
            await asyncio.wait_for(asyncio.ensure_future(send(bench.message(last))), 5)
            await until(lambda last=last: last in bench.received())  # type: ignore[misc]


async def _nothing(send: Send, message: Message) -> None:
    await send(message)


SINK_CHECKS: list[Check] = [
    is_a_documented_settings_class,
    opens_and_closes,
    sends_in_order,
    sends_a_batch,
    bodies_arrive_as_they_are,
    headers_arrive,
    the_stable_id_is_the_same_on_every_attempt,
    what_it_can_not_carry_is_refused,
    nothing_is_delivered_before_the_peer_says_so,
    a_lost_peer_is_noticed_while_idle,
    a_send_to_a_lost_peer_is_a_peer_error,
    opened_again_it_sends_as_before,
    nothing_is_lost_when_its_peer_dies_mid_flight,
    a_peer_that_never_confirms_can_be_given_up,
    its_opening_can_be_cancelled,
    a_send_can_be_cancelled,
]
"""What every sink keeps to; `checks_for` chooses those that fit a bench."""
