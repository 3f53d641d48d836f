"""Channels: every reader gets its own copy; a retry reaches only those that did not have it."""

from __future__ import annotations

import pytest

from adapters import channel
from gateway import Accepted, Deferred, Message, MessageError, Outcome, PeerError, Refused
from gateway.testing import FakeHost, arriving, running

ACCEPTED, REFUSED, DEFERRED = Accepted(""), Refused("", "why"), Deferred("", "why")


class Reader:
    def __init__(self, *outcomes: Outcome) -> None:
        self.seen: list[Message] = []
        self._outcomes = list(outcomes)

    async def __call__(self, message: Message) -> Outcome:
        self.seen.append(message)
        return self._outcomes.pop(0) if self._outcomes else ACCEPTED


class Hosts:
    """Hosts of several routes that share what they open, as in one gateway."""

    def __init__(self) -> None:
        self._first = FakeHost()

    def route(self, name: str) -> FakeHost:
        host = FakeHost(route=name)
        host.share = self._first.share  # type: ignore[method-assign]
        return host


SOURCE = channel.Source(name="live")
SINK = channel.Sink(name="live")


async def test_every_reader_gets_a_copy_with_an_id_of_its_own() -> None:
    hosts, a, b = Hosts(), Reader(), Reader()
    async with (
        running(SOURCE, a, hosts.route("a")),
        running(SOURCE, b, hosts.route("b")),
        SINK.open(hosts.route("w")) as send,
    ):
        message = arriving(hosts.route("w"), b"1")
        await send(message)
    assert [m.body for m in a.seen + b.seen] == [b"1", b"1"]
    assert len({message.id, a.seen[0].id, b.seen[0].id}) == 3
    assert a.seen[0].causation_id == message.id
    assert a.seen[0].transport == {"channel": "live"}


async def test_a_retry_reaches_only_the_reader_that_did_not_have_it_under_the_same_id() -> None:
    hosts, a, b = Hosts(), Reader(), Reader(DEFERRED)
    async with (
        running(SOURCE, a, hosts.route("a")),
        running(SOURCE, b, hosts.route("b")),
        SINK.open(hosts.route("w")) as send,
    ):
        message = arriving(hosts.route("w"), b"1")
        with pytest.raises(PeerError, match=r"^channel live: why$"):
            await send(message)
        await send(message)
    assert (len(a.seen), len(b.seen)) == (1, 2)
    assert b.seen[0].id == b.seen[1].id


async def test_what_was_delivered_and_is_sent_again_reaches_every_reader_again_under_a_new_id() -> None:
    hosts, a, b = Hosts(), Reader(), Reader(ACCEPTED, DEFERRED)
    async with (
        running(SOURCE, a, hosts.route("a")),
        running(SOURCE, b, hosts.route("b")),
        SINK.open(hosts.route("w")) as send,
    ):
        message = arriving(hosts.route("w"), b"1")
        await send(message)
        again = message.replace(again=1)
        with pytest.raises(PeerError):
            await send(again)
        await send(again.replace())
        await send(message.replace(again=2))
    assert (len(a.seen), len(b.seen)) == (3, 4)
    assert len({one.id for one in a.seen}) == 3
    assert [b.seen.index(one) for one in b.seen if one.id == b.seen[1].id] == [1, 2]
    assert [one.causation_id for one in a.seen] == [message.id, a.seen[0].id, a.seen[0].id]
    assert {one.again for one in a.seen + b.seen} == {0}


async def test_what_a_reader_refuses_is_refused_and_a_deferral_outweighs_it() -> None:
    hosts = Hosts()
    async with (
        running(SOURCE, Reader(REFUSED, REFUSED), hosts.route("a")),
        running(SOURCE, Reader(ACCEPTED, DEFERRED), hosts.route("b")),
        SINK.open(hosts.route("w")) as send,
    ):
        with pytest.raises(MessageError, match=r"^channel live: why$"):
            await send(arriving(hosts.route("w"), b"1"))
        with pytest.raises(PeerError):
            await send(arriving(hosts.route("w"), b"2"))


async def test_a_channel_that_nobody_reads_now_is_tried_again() -> None:
    async with SINK.open(Hosts().route("w")) as send:
        with pytest.raises(PeerError, match=r"^channel live: no route reads it now$"):
            await send(arriving(FakeHost(), b"1"))
