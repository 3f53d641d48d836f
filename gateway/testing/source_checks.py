"""The contract of sources, as checks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gateway.links import peer_error_in
from gateway.message import Accepted, Deferred, Message, Outcome, Refused
from gateway.ports import Deliver, Source
from gateway.settings import Settings
from gateway.testing.benches import IN_FLIGHT, Check, SourceBench, needs
from gateway.testing.fakes import Inbox, OfferInbox, running, settle, until
from gateway.testing.leaks import nothing_left

QUIET_S = 0.05
"""How long nothing must happen for it to count as not happening."""
STOOD_S = 0.2
"""How long a flood must not get on for it to count as held up."""
STOP_S = 5.0
"""How long a component may take to stop: it may say goodbye to a peer that does not answer any more."""
STEPS = (*range(24), *range(24, 240, 12))
"""After how many turns of the loop a cancellation comes."""


class Held:
    """Outcomes that the check gives when it likes, by the order of arrival."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[Outcome]] = []

    def __call__(self, message: Message) -> asyncio.Future[Outcome]:
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.waiting.append(outcome)
        return outcome


async def quiet() -> None:
    """Gives what should not happen the time to happen."""
    await asyncio.sleep(QUIET_S)
    await settle()


async def stood(flooding: asyncio.Task[None], count: Callable[[], int]) -> None:
    """Returns once what is counted has not grown for a while, or the flood is over."""
    before = -1
    while before != (before := count()):
        await asyncio.wait({flooding}, timeout=STOOD_S)
    await quiet()


async def ended(task: asyncio.Task[None]) -> None:
    """Cancels a task: it must end soon, with nothing but its cancellation or a loss of its link."""
    task.cancel()
    await asyncio.wait({task}, timeout=STOP_S)
    assert task.done(), f"it did not end within {STOP_S:g} s of its cancellation"
    error = None if task.cancelled() else task.exception()
    assert error is None or peer_error_in(error) is not None, f"cancelled, it raised {error!r}"


@asynccontextmanager
async def kept(bench: SourceBench, deliver: Deliver) -> AsyncIterator[asyncio.Task[None]]:
    """Runs the source as the engine does: again whenever its peer is lost. Entered once it is ready."""
    ready = asyncio.Event()

    async def keep() -> None:
        source = bench.source()
        while True:
            try:
                await source.run(bench.host, deliver, ready.set)
            except Exception as error:
                if peer_error_in(error) is None:
                    raise
            await asyncio.sleep(0.01)

    task = asyncio.create_task(keep())
    try:
        await until(lambda: ready.is_set() or task.done())
        yield task
    finally:
        failed = task.done()
        await ended(task)
        if failed:
            await task


async def is_a_documented_settings_class(bench: SourceBench) -> None:
    """It is a frozen settings class with a docstring, all fields are described, and it says whether it answers."""
    source = bench.source()
    assert isinstance(source, Source)
    documented(source)
    assert isinstance(source.answers, bool)
    assert source.answers is False or bench.acknowledges
    assert source == bench.source()


def documented(component: object) -> None:
    """It is a frozen settings class, documented as a whole and in each field, which forbids unknown keys."""
    assert isinstance(component, Settings)
    kind = type(component)
    assert kind.model_config.get("frozen"), "it is not frozen"
    assert kind.model_config.get("extra") == "forbid", "it does not refuse unknown keys"
    assert kind.__doc__, "it has no docstring"
    for name, field in kind.model_fields.items():
        assert field.description, f"{name} has no description"


async def opens_and_closes(bench: SourceBench) -> None:
    """It says once that it is ready, runs until cancelled, and leaves no task and no socket."""
    async with nothing_left(bench.leave):
        times = 0

        def ready() -> None:
            nonlocal times
            times += 1

        task = asyncio.create_task(bench.source().run(bench.host, Inbox(bench.host), ready))
        await until(lambda: times or task.done())
        assert not task.done(), "it ended by itself"
        await ended(task)
        assert times == 1
    async with nothing_left(bench.leave), running(bench.source(), Inbox(bench.host), bench.host):
        pass


async def takes_in_order(bench: SourceBench) -> None:
    """Messages that come one after the other are handed over in that order."""
    inbox = Inbox(bench.host)
    async with running(bench.source(), inbox, bench.host):
        for number in range(20):
            await bench.send(bench.body(number))
        await inbox.wait(20)
        if bench.acknowledges:
            await until(lambda: len(bench.accepted()) >= 20)
            assert bench.accepted() == [bench.body(number) for number in range(20)]
    assert [message.body for message in inbox.messages] == [bench.body(number) for number in range(20)]


async def takes_a_batch(bench: SourceBench) -> None:
    """Hundreds of messages at once are all taken, once each, and all acknowledged."""
    inbox = Inbox(bench.host)
    sent = [bench.body(number) for number in range(bench.batch)]
    async with running(bench.source(), inbox, bench.host):
        for body in sent:
            await bench.send(body)
        await inbox.wait(len(sent), timeout_s=20)
        if bench.acknowledges:
            await until(lambda: len(bench.accepted()) >= len(sent))
            assert sorted(bench.accepted()) == sorted(sent)
    assert sorted(message.body for message in inbox.messages) == sorted(sent)


@needs("carries")
async def bodies_arrive_as_they_are(bench: SourceBench) -> None:
    """Empty ones, any bytes, UTF-8 and large ones."""
    for name, body in bench.bodies().items():
        inbox = Inbox(bench.host)
        async with running(bench.source(), inbox, bench.host):
            await bench.send(body)
            (message,) = await inbox.wait(1)
            assert message.body == body, f"a body that is {name} did not arrive as it was"
            if bench.acknowledges:
                await until(lambda body=body: body in bench.accepted())  # type: ignore[misc]


@needs("headers")
async def headers_arrive(bench: SourceBench) -> None:
    """What the peer says beside the body is in `headers`, names in lower case."""
    inbox = Inbox(bench.host)
    async with running(bench.source(), inbox, bench.host):
        await bench.send(bench.body(1), {"X-Check": "one; two"})
        (message,) = await inbox.wait(1)
        assert message.headers["x-check"] == "one; two"


@needs("acknowledges")
async def no_acknowledgement_goes_out_before_the_outcome(bench: SourceBench) -> None:
    """While the outcome is not known the peer hears nothing: the worst thing to get wrong."""
    held = Held()
    inbox = Inbox(bench.host, held)
    async with running(bench.source(), inbox, bench.host):
        await bench.send(bench.body(1))
        await inbox.wait(1)
        await quiet()
        assert (bench.accepted(), bench.refused()) == ([], []), "it was acknowledged before its outcome"
        held.waiting[0].set_result(Accepted(inbox.messages[0].id))
        await until(lambda: bench.accepted() == [bench.body(1)])


@needs("acknowledges")
async def an_outcome_acknowledges_its_own_message_alone(bench: SourceBench) -> None:
    """When later messages are safe before an earlier one, the earlier one is not acknowledged with them."""
    held = Held()
    inbox = Inbox(bench.host, held)
    async with running(bench.source(), inbox, bench.host):
        for number in range(2):
            await bench.send(bench.body(number))
        await quiet()
        if len(held.waiting) < 2:  # one at a time: then nothing is to be seen here
            return
        held.waiting[1].set_result(Accepted(inbox.messages[1].id))
        await quiet()
        first = inbox.messages[0].body
        assert first not in bench.accepted(), "another message's outcome has acknowledged it"
        held.waiting[0].set_result(Accepted(inbox.messages[0].id))
        await until(lambda: len(bench.accepted()) == 2)


async def a_stop_acknowledges_nothing(bench: SourceBench) -> None:
    """What has no outcome when the source is stopped is not acknowledged by the stop."""
    held = Held()
    inbox = Inbox(bench.host, held)
    async with running(bench.source(), inbox, bench.host):
        await bench.send(bench.body(1))
        await inbox.wait(1)
    await quiet()
    if bench.acknowledges:
        assert bench.accepted() == [], "it was acknowledged by the stop"


@needs("acknowledges")
async def what_it_offers_is_acknowledged_once_it_is_safe(bench: SourceBench) -> None:
    """A message may be taken without a task that waits: its order and its acknowledgement are the same."""
    turns = iter(range(1000))
    inbox = OfferInbox(bench.host, lambda message: next(turns) % 3 > 0)
    sent = [bench.body(number) for number in range(9)]
    async with running(bench.source(), inbox, bench.host):
        for number, body in enumerate(sent):
            await bench.send(body)
            await inbox.wait(number + 1)
            await quiet()
            if inbox.settle():
                assert body not in bench.accepted(), "it was acknowledged before its outcome"
            await until(lambda body=body: body in bench.accepted())  # type: ignore[misc]
        for number in range(9, 15):
            sent.append(bench.body(number))
            await bench.send(sent[-1])
        await until(lambda: (inbox.settle() or True) and len(bench.accepted()) == 15)
    assert [message.body for message in inbox.messages] == sent
    assert sorted(bench.accepted()) == sorted(sent)


@needs("acknowledges")
async def what_it_offered_may_be_settled_after_its_stop(bench: SourceBench) -> None:
    """The commit goes on when the source is gone: nobody is told any more, and nothing breaks."""
    inbox = OfferInbox(bench.host)
    async with nothing_left(bench.leave):
        async with running(bench.source(), inbox, bench.host):
            await bench.send(bench.body(1))
            await inbox.wait(1)
        if not inbox.offers:  # it does not offer
            return
        assert bench.accepted() == [], "it was acknowledged by the stop"
        inbox.settle()
        await quiet()
        assert bench.accepted() == []


async def a_refusal_is_told_or_settled(bench: SourceBench) -> None:
    """Who is answered hears of a refusal; for who is not, its dead letter is safe, and the message is settled."""
    inbox = Inbox(bench.host, lambda message: Refused(message.id, "no"))
    source = bench.source()
    async with running(source, inbox, bench.host) as task:
        await bench.send(bench.body(1))
        await inbox.wait(1)
        if source.answers:
            await until(lambda: bench.refused() == [bench.body(1)])
            assert bench.accepted() == []
        elif bench.acknowledges:
            await until(lambda: bench.accepted() == [bench.body(1)])
        await quiet()
        assert not task.done()
    assert len(inbox.messages) == 1, "a refused message came again"


async def a_deferred_message_is_told_or_comes_again(bench: SourceBench) -> None:
    """Who is answered hears that it was not taken; for who is not, the source or its peer hands it over again."""
    outcomes: list[Callable[[str], Outcome]] = [lambda name: Deferred(name, "not now", 0.01), Accepted]
    inbox = Inbox(bench.host, lambda message: (outcomes.pop(0) if len(outcomes) > 1 else outcomes[0])(message.id))
    source = bench.source()
    async with running(source, inbox, bench.host):
        await bench.send(bench.body(1))
        await inbox.wait(1)
        if source.answers:
            await until(lambda: bench.refused() == [bench.body(1)])
            assert bench.accepted() == []
        else:
            first, again = await inbox.wait(2)
            assert first.body == again.body
            if bench.acknowledges:
                await until(lambda: bench.accepted() == [bench.body(1)])


@needs("connects")
async def a_lost_peer_is_noticed_while_idle(bench: SourceBench) -> None:
    """Within a second, as a PeerError, without anything being sent."""
    async with nothing_left(bench.leave), running(bench.source(), Inbox(bench.host), bench.host) as task:
        await bench.lose()
        await asyncio.wait({task}, timeout=1)
        assert task.done(), "it did not notice within a second"
        error = task.exception()
        assert error is not None
        assert peer_error_in(error) is not None, f"it raised {error!r}, expected a PeerError"
    await bench.come_back()


@needs("connects")
async def a_peer_that_is_not_there_is_a_peer_error(bench: SourceBench) -> None:
    """A source whose peer is away raises PeerError and leaves nothing behind."""
    await bench.lose()
    async with nothing_left(bench.leave):
        task = asyncio.create_task(bench.source().run(bench.host, Inbox(bench.host), lambda: None))
        await asyncio.wait({task}, timeout=5)
        assert task.done(), "it did not give up within 5 s"
        error = task.exception()
        assert error is not None
        assert peer_error_in(error) is not None, f"it raised {error!r}, expected a PeerError"
    await bench.come_back()


@needs("has_peer")
async def it_goes_on_when_its_peer_comes_back(bench: SourceBench) -> None:
    """Run again, or never stopped, it takes messages as before."""
    inbox = Inbox(bench.host)
    async with kept(bench, inbox):
        await bench.send(bench.body(1))
        await inbox.wait(1)
        await bench.lose()
        await bench.come_back()
        await bench.send(bench.body(2))
        await until(lambda: bench.body(2) in [message.body for message in inbox.messages])


@needs("has_peer", "acknowledges")
async def nothing_is_lost_when_its_peer_dies_mid_flight(bench: SourceBench) -> None:
    """At least once, counted: what was acknowledged had been accepted, and all is accepted in the end."""
    accepted: set[bytes] = set()
    begun: list[bytes] = []
    go = asyncio.Event()
    go.set()

    async def outcome(message: Message) -> Outcome:
        begun.append(message.body)
        await go.wait()
        accepted.add(message.body)
        return Accepted(message.id)

    sent = {bench.body(number) for number in range(100)}
    async with kept(bench, Inbox(bench.host, outcome)):
        for number in range(100):
            if number in (30, 60, 90):
                go.clear()
                begun.clear()
            await bench.send(bench.body(number))
            if number in (35, 65, 95):
                await until(lambda: begun)  # some are on their way now, without an outcome
                await bench.lose()
                await quiet()
                assert set(bench.accepted()) <= accepted, "what was not accepted was acknowledged"
                go.set()
                await bench.come_back()
        await bench.send_again()
        await until(lambda: set(bench.accepted()) == sent)
        assert accepted == sent


@needs("bounds")
async def saturated_it_takes_no_more_than_its_window(bench: SourceBench) -> None:
    """While nothing gets through, no more than its window is taken, and a stop is a stop."""
    async with nothing_left(bench.leave):
        inbox = Inbox(bench.host, Held())

        async def flood() -> None:
            for number in range(10 * IN_FLIGHT * max(1, bench.window // IN_FLIGHT)):
                await bench.send(bench.body(number))

        async with running(bench.source(), inbox, bench.host) as task:
            flooding = asyncio.create_task(flood())
            await until(lambda: inbox.messages)
            await stood(flooding, lambda: len(inbox.messages))
            assert 0 < len(inbox.messages) <= bench.window, f"{len(inbox.messages)} were taken"
            assert not task.done()
            await ended(task)
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)


@needs("pushes_back")
async def saturated_it_keeps_its_peer_from_sending(bench: SourceBench) -> None:
    """What is not taken stays with the peer, not in our memory."""
    inbox = Inbox(bench.host, Held())
    body = b"x" * 65_536
    sent = 0

    async def flood() -> None:
        nonlocal sent
        for sent in range(1000):  # noqa: B007 - how far it came
            await bench.send(body)

    async with running(bench.source(), inbox, bench.host):
        flooding = asyncio.create_task(flood())
        await until(lambda: sent)
        await stood(flooding, lambda: sent)
        assert not flooding.done(), "64 MiB were taken while nothing got through"
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)


async def it_can_be_cancelled_while_it_starts(bench: SourceBench) -> None:
    """After any number of turns of the loop: it ends, and nothing is left."""
    async with nothing_left(bench.leave):
        for turns in STEPS:
            task = asyncio.create_task(bench.source().run(bench.host, Inbox(bench.host), lambda: None))
            await settle(turns)
            await ended(task)


async def it_can_be_cancelled_while_it_works(bench: SourceBench) -> None:
    """With messages at every stage of their way: it ends, and nothing is left."""
    async with nothing_left(bench.leave):
        for turns in STEPS[::3]:
            inbox = Inbox(bench.host, _after_two_turns)
            async with running(bench.source(), inbox, bench.host) as task:
                for number in range(3):
                    await bench.send(bench.body(number))
                await settle(turns)
                await ended(task)
            await bench.leave()


async def _after_two_turns(message: Message) -> Outcome:
    await settle(2)
    return Accepted(message.id)


SOURCE_CHECKS: list[Check] = [
    is_a_documented_settings_class,
    opens_and_closes,
    takes_in_order,
    takes_a_batch,
    bodies_arrive_as_they_are,
    headers_arrive,
    no_acknowledgement_goes_out_before_the_outcome,
    an_outcome_acknowledges_its_own_message_alone,
    a_stop_acknowledges_nothing,
    what_it_offers_is_acknowledged_once_it_is_safe,
    what_it_offered_may_be_settled_after_its_stop,
    a_refusal_is_told_or_settled,
    a_deferred_message_is_told_or_comes_again,
    a_lost_peer_is_noticed_while_idle,
    a_peer_that_is_not_there_is_a_peer_error,
    it_goes_on_when_its_peer_comes_back,
    nothing_is_lost_when_its_peer_dies_mid_flight,
    saturated_it_takes_no_more_than_its_window,
    saturated_it_keeps_its_peer_from_sending,
    it_can_be_cancelled_while_it_starts,
    it_can_be_cancelled_while_it_works,
]
"""What every source keeps to; `checks_for` chooses those that fit a bench."""
