"""Who reconnects: links and sources that are lost and opened again, and things that several components share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gateway import ConfigError, Deliver, Host, Message, MessageError, PeerError, Send
from gateway import links as links_module
from gateway.links import Link, Shares, Waits, keep_running, peer_error_in
from gateway.observe import Observed, Peer
from gateway.testing import FakeHost, Inbox, ManualClock, settle

MESSAGE = Message(raw=b"x")
AWAY = PeerError("line: away")


class Line:
    """A sink whose link the test loses as it likes."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed = 0
        self.refusing: BaseException | None = None
        self.holding: asyncio.Event | None = None
        self.sends: list[Message] = []
        self.failing: Exception | None = None
        self.lost: asyncio.Future[None]
        self.closes_with: BaseException | None = None

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Send]:
        if self.holding is not None:
            await self.holding.wait()
        if self.refusing is not None:
            raise self.refusing
        self.opened += 1
        self.lost = asyncio.get_running_loop().create_future()

        async def send(message: Message) -> None:
            self.sends.append(message)
            if self.failing is not None:
                raise self.failing

        try:
            async with asyncio.TaskGroup() as tasks:
                noticing = tasks.create_task(self._noticing())
                try:
                    yield send
                finally:
                    noticing.cancel()
        finally:
            self.closed += 1
            if self.closes_with is not None:
                raise self.closes_with

    async def _noticing(self) -> None:
        await self.lost


class Held:
    """A link of the line, held on a clock that the test moves."""

    def __init__(self, line: Line, luck: float = 1.0) -> None:
        self.clock = ManualClock()
        self.observed = Observed(self.clock)
        self.peer = self.observed.peer("r", "line", "target")
        self.host = FakeHost(clock=self.clock, target="line")
        self.link = Link(line, self.host, self.peer, self.observed, lambda: luck)
        self.task = asyncio.create_task(self.link.hold())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task}, timeout=1)
        assert self.task.cancelled()


@asynccontextmanager
async def held(line: Line, luck: float = 1.0) -> AsyncIterator[Held]:
    one = Held(line, luck)
    await settle()
    try:
        yield one
    finally:
        await one.stop()


async def failure(link: Link) -> Exception:
    with pytest.raises(Exception) as caught:
        await link.send(MESSAGE)
    return caught.value


# --- links of sinks


async def test_a_link_is_opened_once_and_closed_when_it_is_stopped() -> None:
    line = Line()
    async with held(line) as one:
        assert (one.peer.state, line.opened) == ("up", 1)
        await one.link.send(MESSAGE)
        assert line.sends == [MESSAGE]
    assert (line.closed, one.peer.state) == (1, "stopped")
    assert str(await failure(one.link)) == "not connected: the route is stopping"


async def test_a_steady_link_that_is_lost_while_idle_is_opened_again_at_once() -> None:
    line = Line()
    async with held(line) as one:
        await one.clock.advance(5)
        line.lost.set_exception(PeerError("line: reset"))
        await settle()
        assert (line.opened, line.closed, one.peer.state, one.peer.losses) == (2, 1, "up", 1)
        assert one.clock.slept == []


async def test_a_broken_link_is_opened_again_once_for_all_sends_that_used_it() -> None:
    line = Line()
    async with held(line) as one:
        await one.clock.advance(5)
        line.failing = PeerError("line: reset", reconnect=True)
        failed = await asyncio.gather(*(one.link.send(MESSAGE) for _ in range(10)), return_exceptions=True)
        assert [str(error) for error in failed] == ["line: reset"] * 10
        line.failing = None
        await settle()
        assert (line.opened, line.closed) == (2, 1)
        await one.link.send(MESSAGE)


async def test_a_late_failure_of_a_lost_generation_leaves_the_new_one_alone() -> None:
    line = Line()
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @asynccontextmanager
    async def slow(host: Host) -> AsyncIterator[Send]:
        async with Line.open(line, host):

            async def send(message: Message) -> None:
                await answer

            yield send

    line.open = slow  # type: ignore[method-assign]
    async with held(line) as one:
        await one.clock.advance(5)
        sending = asyncio.create_task(one.link.send(MESSAGE))
        await settle()
        line.lost.set_exception(PeerError("line: reset"))
        await settle()
        assert line.opened == 2
        answer.set_exception(PeerError("line: reset", reconnect=True))
        await asyncio.wait({sending})
        await settle()
        assert isinstance(sending.exception(), PeerError)
        assert (line.opened, line.closed) == (2, 1)


@pytest.mark.parametrize(
    "error", [PeerError("busy"), PeerError("429", wait_s=9.0), MessageError("no"), ValueError("bug")]
)
async def test_errors_that_say_nothing_of_the_link_leave_it_open(error: Exception) -> None:
    line = Line()
    line.failing = error
    async with held(line) as one:
        assert await failure(one.link) is error
        await settle()
        assert (line.opened, line.closed) == (1, 0)


async def test_the_waits_between_failing_tries_grow_with_jitter_to_half_a_minute() -> None:
    line = Line()
    line.refusing = PeerError("line: refused")
    async with held(line, luck=1.0) as one:
        for _ in range(12):
            await one.clock.advance(30)
        assert one.clock.slept[:10] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0]
        assert set(one.clock.slept[10:]) == {30.0}
    async with held(line, luck=0.0) as one:
        assert one.clock.slept == [0.05]


async def test_a_peer_that_asks_for_a_longer_wait_gets_it_up_to_half_a_minute() -> None:
    line = Line()
    line.refusing = PeerError("line: busy", wait_s=7.0)
    async with held(line) as one:
        assert one.clock.slept == [7.0]
        line.refusing = PeerError("line: busy", wait_s=1e9)
        await one.clock.advance(7)
        assert one.clock.slept == [7.0, 30.0]


async def test_waits_begin_anew_once_a_link_was_steady() -> None:
    clock = ManualClock()
    waits = Waits(clock, lambda: 1.0)
    for held_s in (0.0, 4.9, 5.0, 0.0):
        waits.began()
        await clock.advance(held_s)
        waiting = asyncio.create_task(waits.after_failure(AWAY))
        await settle()
        await clock.advance(60)
        await waiting
    assert clock.slept == [0.1, 0.2, 0.1]


async def test_a_peer_that_ends_its_link_after_each_answer_is_asked_again_at_once() -> None:
    line = Line()
    async with held(line) as one:
        for sent in range(1, 4):
            await one.link.send(MESSAGE)
            line.lost.set_exception(PeerError("line: closed after one answer", answered=True))
            await settle()
            assert (line.opened, one.peer.state) == (sent + 1, "up")
        assert one.clock.slept == []
        line.lost.set_exception(PeerError("line: reset"))
        await settle()
        assert (one.peer.state, one.clock.sleeping) == ("down", 1)


async def test_a_link_that_flaps_is_not_tried_in_a_hot_loop() -> None:
    line = Line()
    async with held(line) as one:
        for wait_s in (0.1, 0.2, 0.4):
            line.lost.set_exception(PeerError("line: reset"))
            await settle()
            assert one.peer.reason == "line: reset"
            await one.clock.advance(wait_s)
            assert one.peer.state == "up"
        assert one.clock.slept == [0.1, 0.2, 0.4]


async def test_sends_wait_while_the_link_is_being_opened() -> None:
    line = Line()
    line.holding = asyncio.Event()
    async with held(line) as one:
        sending = asyncio.create_task(one.link.send(MESSAGE))
        await settle()
        assert not sending.done()
        line.holding.set()
        await asyncio.wait_for(sending, 1)
        assert line.sends == [MESSAGE]


async def test_sends_that_waited_hear_that_the_opening_failed() -> None:
    line = Line()
    line.holding = asyncio.Event()
    line.refusing = PeerError("line: refused")
    async with held(line) as one:
        sending = asyncio.create_task(failure(one.link))
        await settle()
        line.holding.set()
        assert str(await asyncio.wait_for(sending, 1)) == "not connected: line: refused"


async def test_sends_fail_at_once_while_the_link_is_down() -> None:
    line = Line()
    line.refusing = PeerError("line: refused")
    async with held(line) as one:
        error = await asyncio.wait_for(failure(one.link), 1)
        assert isinstance(error, PeerError)
        assert str(error) == "not connected: line: refused"
        assert not error.reconnect
        assert (one.peer.state, one.peer.reason) == ("down", "line: refused")


async def test_a_link_that_does_not_open_in_time_is_given_up_by_its_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_module, "OPENING_S", 0.01)
    line = Line()
    line.holding = asyncio.Event()
    async with held(line) as one:
        assert str(await failure(one.link)) == "not connected: line did not open within 0.01 s"


async def test_a_sink_that_can_not_be_opened_as_configured_says_so_and_is_tried_again() -> None:
    line = Line()
    line.refusing = ConfigError("tls: ca.pem can't be read: No such file")
    async with held(line) as one:
        assert one.peer.reason == "tls: ca.pem can't be read: No such file"
        line.refusing = None
        await one.clock.advance(0.1)
        assert one.peer.state == "up"


async def test_a_bug_in_a_sink_is_logged_once_and_it_is_opened_again(caplog: pytest.LogCaptureFixture) -> None:
    line = Line()
    line.refusing = ZeroDivisionError("bug")
    with caplog.at_level(logging.ERROR):
        async with held(line) as one:
            assert one.peer.reason == "line: the sink failed; see the log"
            line.refusing = None
            await one.clock.advance(0.1)
            assert one.peer.state == "up"
    assert [record.message for record in caplog.records] == ["sink failed"]


@pytest.mark.parametrize("raised", [PeerError("line: reset"), ValueError("bug"), None])
async def test_a_stop_is_a_stop_whatever_a_sink_makes_of_it(raised: Exception | None) -> None:
    class Stubborn(Line):
        @asynccontextmanager
        async def open(self, host: Host) -> AsyncIterator[Send]:
            self.opened += 1
            try:
                yield self._send
            except asyncio.CancelledError:
                if raised is not None:
                    raise raised from None

        async def _send(self, message: Message) -> None:
            return None

    line = Stubborn()
    async with held(line):
        assert line.opened == 1
    assert line.opened == 1


async def test_a_link_that_just_ends_is_a_lost_one() -> None:
    class Ending(Line):
        @asynccontextmanager
        async def open(self, host: Host) -> AsyncIterator[Send]:
            self.opened += 1
            try:
                yield self._send
            except PeerError:
                return  # it heard of the loss, and closed without a word

        async def _send(self, message: Message) -> None:
            raise PeerError("gone", reconnect=True)

    line = Ending()
    async with held(line) as one:
        await failure(one.link)
        await settle()
        assert one.peer.reason == "line: the link was lost"


def test_a_peer_error_is_found_in_groups_of_nothing_else() -> None:
    lost = PeerError("lost")
    assert peer_error_in(lost) is lost
    assert peer_error_in(ExceptionGroup("", [ExceptionGroup("", [lost]), PeerError("too")])) is lost
    assert peer_error_in(ExceptionGroup("", [lost, ValueError("bug")])) is None
    assert peer_error_in(ValueError("bug")) is None


# --- sources


class Feed:
    """A source that runs as the test says."""

    answers = True

    def __init__(self, *runs: BaseException | None, ready: bool = True) -> None:
        self.runs = list(runs)
        self.begun = 0
        self.ready = ready
        self.ends: asyncio.Future[None]

    async def run(self, host: Host, deliver: Deliver, ready: Callable[[], None]) -> None:
        self.begun += 1
        if self.runs:
            end = self.runs.pop(0)
            if end is not None:
                raise end
            return
        if self.ready:
            ready()
        self.ends = asyncio.get_running_loop().create_future()
        await self.ends


class Kept:
    def __init__(self, feed: Feed) -> None:
        self.clock = ManualClock()
        self.observed = Observed(self.clock)
        self.peer: Peer = self.observed.peer("r", "feed", "source")
        self.tried = 0
        host = FakeHost(clock=self.clock)
        self.task = asyncio.create_task(
            keep_running(feed, host, Inbox(host), self.peer, self.observed, lambda: 1.0, self._tried)
        )

    def _tried(self) -> None:
        self.tried += 1


@asynccontextmanager
async def kept(feed: Feed) -> AsyncIterator[Kept]:
    one = Kept(feed)
    await settle()
    try:
        yield one
    finally:
        one.task.cancel()
        await asyncio.gather(one.task, return_exceptions=True)


async def test_a_source_is_up_when_it_says_that_it_is_ready() -> None:
    feed = Feed()
    async with kept(feed) as one:
        assert (one.peer.state, one.tried) == ("up", 1)
    assert one.peer.state == "stopped"


async def test_a_source_that_loses_its_peer_is_run_again_after_growing_waits() -> None:
    feed = Feed(PeerError("broker: refused"), PeerError("broker: refused"))
    async with kept(feed) as one:
        assert (one.peer.state, one.peer.reason, one.tried) == ("down", "broker: refused", 1)
        await one.clock.advance(0.1)
        await one.clock.advance(0.2)
        assert (one.peer.state, feed.begun, one.clock.slept) == ("up", 3, [0.1, 0.2])
        await one.clock.advance(5)
        feed.ends.set_exception(PeerError("broker: reset"))
        await settle()
        assert (one.peer.state, one.peer.losses, feed.begun) == ("up", 1, 4)


async def test_a_source_that_just_ends_is_run_again() -> None:
    async with kept(Feed(None)) as one:
        assert one.peer.reason == "feed: the source ended"
        await one.clock.advance(0.1)
        assert one.peer.state == "up"


async def test_a_bug_in_a_source_is_logged_and_it_is_run_again(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        async with kept(Feed(ExceptionGroup("", [PeerError("lost"), KeyError("bug")]))) as one:
            assert one.peer.reason == "feed: the source failed; see the log"
            await one.clock.advance(0.1)
            assert one.peer.state == "up"
    assert [record.message for record in caplog.records] == ["source failed"]


async def test_a_source_that_can_not_run_as_configured_ends_the_start() -> None:
    async with kept(Feed(ConfigError("tcp: the address is in use"))) as one:
        assert isinstance(one.task.exception(), ConfigError)


async def test_a_source_that_ran_once_is_run_again_whatever_its_configuration_has_become() -> None:
    feed = Feed()
    async with kept(feed) as one:
        feed.ends.set_exception(ConfigError("tls: gw.pem can't be read: No such file"))
        await settle()
        assert one.peer.reason == "tls: gw.pem can't be read: No such file"
        await one.clock.advance(0.1)
        assert one.peer.state == "up"


async def test_a_cancelled_source_that_raises_something_else_is_not_run_again() -> None:
    class Losing(Feed):
        async def run(self, host: Host, deliver: Deliver, ready: Callable[[], None]) -> None:
            self.begun += 1
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                raise PeerError("lost just now") from None

    feed = Losing()
    async with kept(feed) as one:
        one.task.cancel()
        await asyncio.wait({one.task}, timeout=1)
        assert one.task.cancelled()
    assert feed.begun == 1


# --- what is shared


class Hub:
    """A thing to share: equal to all others of its name."""

    made: list[Hub]

    def __init__(self, name: str = "hub") -> None:
        self.name = name
        self.log: list[str] = []
        self.opening: asyncio.Event | None = None
        self.closing: asyncio.Event | None = None
        self.refusing: Exception | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hub) and other.name == self.name

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Hub]:
        self.log.append("opening")
        if self.opening is not None:
            await self.opening.wait()
        if self.refusing is not None:
            raise self.refusing
        self.log.append("open")
        try:
            async with asyncio.TaskGroup() as tasks:
                noticing = tasks.create_task(self._noticing())
                try:
                    yield self
                finally:
                    noticing.cancel()
        finally:
            if self.closing is not None:
                await self.closing.wait()
            self.log.append("closed")

    async def _noticing(self) -> None:
        await self.lost


class User:
    """Leases a hub in a task of its own until told to go."""

    def __init__(self, shares: Shares, hub: Hub) -> None:
        self.value: Hub | None = None
        self.go = asyncio.Event()
        self.task = asyncio.create_task(self._use(shares, hub))

    async def _use(self, shares: Shares, hub: Hub) -> None:
        async with shares.lease(hub, FakeHost()) as self.value:
            await self.go.wait()

    async def left(self) -> None:
        self.go.set()
        await asyncio.wait_for(self.task, 1)


async def test_the_first_user_opens_and_the_last_closes() -> None:
    shares, hub = Shares(), Hub()
    first, second = User(shares, hub), User(shares, Hub())
    await settle()
    assert first.value is second.value is hub
    await first.left()
    assert hub.log == ["opening", "open"]
    await second.left()
    assert hub.log == ["opening", "open", "closed"]


async def test_other_settings_are_another_instance() -> None:
    shares, one, two = Shares(), Hub("one"), Hub("two")
    users = [User(shares, one), User(shares, two)]
    await settle()
    assert [user.value for user in users] == [one, two]
    for user in users:
        await user.left()


async def test_after_the_last_user_it_is_opened_anew() -> None:
    shares, one, two = Shares(), Hub(), Hub()
    await User(shares, one).left()
    again = User(shares, two)
    await settle()
    assert again.value is two
    await again.left()


async def test_a_loss_reaches_every_user() -> None:
    shares, hub = Shares(), Hub()
    users = [User(shares, hub) for _ in range(3)]
    await settle()
    hub.lost.set_exception(PeerError("hub: reset"))
    await asyncio.wait([user.task for user in users], timeout=1)
    for user in users:
        error = user.task.exception()
        assert isinstance(error, PeerError)
        assert (str(error), error.reconnect) == ("hub: reset", True)
    again = User(shares, Hub())
    await settle()
    assert again.value is not hub
    await again.left()


async def test_an_opening_that_fails_fails_for_all_who_wait_and_the_next_tries_anew() -> None:
    shares, hub = Shares(), Hub()
    hub.opening, hub.refusing = asyncio.Event(), PeerError("hub: refused")
    users = [User(shares, hub) for _ in range(2)]
    await settle()
    hub.opening.set()
    await asyncio.wait([user.task for user in users], timeout=1)
    assert [str(user.task.exception()) for user in users] == ["hub: refused"] * 2
    assert hub.log == ["opening"]
    again = User(shares, Hub())
    await settle()
    assert again.value is not None
    await again.left()


async def test_a_user_that_gives_up_while_it_opens_leaves_it_to_the_others() -> None:
    shares, hub = Shares(), Hub()
    hub.opening = asyncio.Event()
    first, second = User(shares, hub), User(shares, hub)
    await settle()
    first.task.cancel()
    await asyncio.wait({first.task}, timeout=1)
    assert first.task.cancelled()
    hub.opening.set()
    await settle()
    assert second.value is hub
    await second.left()


async def test_an_opening_that_nobody_waits_for_any_more_is_given_up_at_once() -> None:
    shares, hub = Shares(), Hub()
    hub.opening = asyncio.Event()
    only = User(shares, hub)
    await settle()
    only.task.cancel()
    await asyncio.wait({only.task}, timeout=1)
    assert only.task.cancelled()
    assert hub.log == ["opening"]


async def test_the_next_user_waits_until_the_one_before_is_closed() -> None:
    shares, hub, later = Shares(), Hub(), Hub()
    hub.closing = asyncio.Event()
    last = User(shares, hub)
    await settle()
    last.go.set()
    await settle()
    newcomer = User(shares, later)
    await settle()
    assert later.log == []  # two at once could be two listeners on one address
    hub.closing.set()
    await asyncio.wait_for(last.task, 1)
    await settle()
    assert (hub.log, later.log) == (["opening", "open", "closed"], ["opening", "open"])
    await newcomer.left()


async def test_an_error_of_the_user_is_the_users() -> None:
    shares, hub = Shares(), Hub()

    async def using(error: Exception) -> None:
        async with shares.lease(hub, FakeHost()):
            raise error

    for error in (ValueError("mine"), TimeoutError("mine"), PeerError("mine")):
        with pytest.raises(type(error), match="mine"):
            await using(error)


async def test_cancelling_a_user_is_a_cancellation_and_no_loss() -> None:
    shares, hub = Shares(), Hub()
    user, other = User(shares, hub), User(shares, hub)
    await settle()
    user.task.cancel()
    await asyncio.wait({user.task}, timeout=1)
    assert user.task.cancelled()
    assert hub.log == ["opening", "open"]
    await other.left()


async def test_a_bug_while_it_is_open_is_logged_and_reaches_its_users_as_a_loss(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shares, hub = Shares(), Hub()
    user = User(shares, hub)
    await settle()
    hub.lost.set_exception(ZeroDivisionError("bug"))
    await asyncio.wait({user.task}, timeout=1)
    assert str(user.task.exception()) == "Hub: the link was lost"
    assert [record.message for record in caplog.records] == ["connection failed"]


# --- what stays open while routes change


class Port(Hub):
    """A hub that has a place; others of that place are in its way."""

    def __init__(self, name: str, place: str = "tcp port 1") -> None:
        super().__init__(name)
        self.place = place


async def test_what_has_a_place_is_kept_for_its_next_user_and_closed_at_last_when_none_comes() -> None:
    shares, port, lost_of_use, plain = Shares(), Port("a"), Port("b", "tcp port 2"), Hub("plain")
    users = [User(shares, hub) for hub in (port, lost_of_use, plain)]
    await settle()
    async with shares.keeping():
        for user in users:
            await user.left()
        assert [hub.log[-1] for hub in (port, lost_of_use, plain)] == ["open", "open", "closed"]
        again = User(shares, Port("a"))
        await settle()
        assert again.value is port
    assert (port.log, lost_of_use.log[-1]) == (["opening", "open"], "closed")
    await again.left()
    assert port.log[-1] == "closed"


async def test_what_is_kept_makes_way_for_another_at_its_place() -> None:
    shares, old, new = Shares(), Port("old"), Port("new")
    user = User(shares, old)
    await settle()
    async with shares.keeping():
        await user.left()
        other = User(shares, new)
        await settle()
        assert (old.log[-1], new.log) == ("closed", ["opening", "open"])
    assert new.log[-1] == "open"
    await other.left()


async def test_what_is_lost_while_it_is_kept_is_opened_anew() -> None:
    shares, old, new = Shares(), Port("a"), Port("a")
    user = User(shares, old)
    await settle()
    async with shares.keeping():
        await user.left()
        old.lost.set_exception(PeerError("gone"))
        await settle()
        again = User(shares, new)
        await settle()
        assert again.value is new
    await again.left()
