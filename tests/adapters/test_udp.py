"""UDP both ways: a datagram is a message, what there is no room for is counted, nothing else is promised."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from adapters import udp
from gateway import Accepted, Deferred, Limits, Message, MessageError, Outcome, PeerError, Sink, Source
from gateway.testing import FakeHost, Inbox, ManualClock, arriving, opened, running, settle, until


def free_port(family: socket.AddressFamily = socket.AF_INET) -> int:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def source(port: int, **settings: Any) -> udp.Source:
    return udp.Source.model_validate({"listen": f"127.0.0.1:{port}", **settings})


def sink(port: int) -> udp.Sink:
    return udp.Sink.model_validate({"connect": f"127.0.0.1:{port}"})


@asynccontextmanager
async def speaker(port: int) -> AsyncIterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.connect(("127.0.0.1", port))
        yield link


def test_they_are_a_source_that_answers_nobody_and_a_sink() -> None:
    assert isinstance(source(1), Source)
    assert not source(1).answers
    assert isinstance(sink(1), Sink)


async def test_each_datagram_is_a_message_in_order_and_knows_its_peer() -> None:
    host, port = FakeHost(), free_port()
    inbox = Inbox(host)
    async with running(source(port, content_type="text/plain"), inbox, host), speaker(port) as link:
        for body in (b"one", b"two\nlines", b""):
            link.send(body)
        messages = await inbox.wait(3)
        assert [message.body for message in messages] == [b"one", b"two\nlines", b""]
        assert messages[0].content_type == "text/plain"
        host_name, peer_port = link.getsockname()
        assert messages[0].transport == {"peer": f"{host_name}:{peer_port}", "local": f"127.0.0.1:{port}"}


async def test_all_addresses_of_a_name_are_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def both(_host: str, port: int, **_: Any) -> list[Any]:  # as on a machine whose localhost is ::1 first
        kind, protocol = socket.SOCK_DGRAM, socket.IPPROTO_UDP
        ends = {socket.AF_INET6: ("::1", port, 0, 0), socket.AF_INET: ("127.0.0.1", port)}
        return [(family, kind, protocol, "", at) for family, at in ends.items()]

    try:
        host, port = FakeHost(), free_port(socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both)
    inbox = Inbox(host)
    listening = udp.Source.model_validate({"listen": f"localhost:{port}"})
    async with running(listening, inbox, host), speaker(port) as link:
        link.send(b"4")
        await inbox.wait(1)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
            other.sendto(b"6", ("::1", port))
        assert [message.body for message in await inbox.wait(2)] == [b"4", b"6"]


async def test_more_than_a_batch_at_once_all_arrives() -> None:
    host, port = FakeHost(), free_port()
    inbox = Inbox(host)
    async with running(source(port, batch=3), inbox, host), speaker(port) as link:
        for n in range(100):
            link.send(b"%d" % n)
        assert [message.body for message in await inbox.wait(100)] == [b"%d" % n for n in range(100)]


async def test_what_the_queue_cannot_hold_is_dropped_and_counted() -> None:
    host, port = FakeHost(limits=Limits(in_flight=2)), free_port()
    outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def held(message: Message) -> Outcome:
        await outcome
        return Accepted(message.id)

    inbox = Inbox(host, held)
    async with running(source(port, queue=3), inbox, host), speaker(port) as link:
        for n in range(10):
            link.send(b"%d" % n)
        await until(lambda: host.drops == {"full": 5})
        assert len(inbox.messages) == 2
        outcome.set_result(None)
        assert [message.body for message in await inbox.wait(5)] == [b"0", b"1", b"2", b"3", b"4"]
        link.send(b"again")
        assert (await inbox.wait(6))[5].body == b"again"


async def test_a_datagram_over_the_limit_is_dropped_and_counted() -> None:
    host, port = FakeHost(limits=Limits.model_validate({"message": "10B"})), free_port()
    inbox = Inbox(host)
    async with running(source(port), inbox, host), speaker(port) as link:
        link.send(b"x" * 11)
        link.send(b"x" * 10)
        assert [len(message.body) for message in await inbox.wait(1)] == [10]
        assert host.drops == {"oversize": 1}


async def test_a_deferred_message_is_delivered_again_after_its_wait() -> None:
    clock = ManualClock()
    host, port = FakeHost(clock=clock), free_port()
    inbox = Inbox(host, lambda m: Accepted(m.id) if len(inbox.messages) > 1 else Deferred(m.id, "busy", wait_s=7.0))
    async with running(source(port), inbox, host), speaker(port) as link:
        link.send(b"a")
        await inbox.wait(1)
        await settle()
        assert clock.slept == [7.0]
        await clock.advance(7)
        first, second = await inbox.wait(2)
        assert first.id == second.id


async def test_a_sink_reaches_a_source_with_the_largest_datagram_and_refuses_a_larger_one() -> None:
    host, port = FakeHost(), free_port()
    inbox = Inbox(host)
    async with running(source(port), inbox, host), opened(sink(port), host) as send:
        assert await send(arriving(host, b"x" * 65_507)) is None
        await send(arriving(host, bytes(range(256))))
        assert [message.body for message in await inbox.wait(2)] == [b"x" * 65_507, bytes(range(256))]
        with pytest.raises(MessageError, match="has 65508 bytes, expected at most 65507") as caught:
            await send(arriving(host, b"x" * 65_508))
        assert caught.value.code == "too_large"


async def test_a_sink_that_nobody_listens_to_goes_on() -> None:
    host, port = FakeHost(), free_port()
    async with opened(sink(port), host) as send:
        for _ in range(5):
            await send(arriving(host, b"to nobody"))
            await settle()
        inbox = Inbox(host)
        async with running(source(port), inbox, host):
            await send(arriving(host, b"to somebody"))
            assert (await inbox.wait(1))[0].body == b"to somebody"


async def test_ipv6_addresses_are_spoken() -> None:
    try:
        port = free_port(socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    host = FakeHost()
    inbox = Inbox(host)
    listening = udp.Source.model_validate({"listen": f"[::1]:{port}"})
    speaking = udp.Sink.model_validate({"connect": f"[::1]:{port}"})
    async with running(listening, inbox, host), opened(speaking, host) as send:
        await send(arriving(host, b"six"))
        message = (await inbox.wait(1))[0]
        assert message.transport["local"] == f"[::1]:{port}"


async def test_an_address_that_is_taken_is_a_sentence() -> None:
    host, port = FakeHost(), free_port()
    async with running(source(port), Inbox(host), host):
        with pytest.raises(PeerError, match=f"^udp 127.0.0.1:{port}: address already in use$"):
            await source(port).run(host, Inbox(host), lambda: None)


async def test_a_source_that_is_stopped_gives_its_port_back() -> None:
    host, port = FakeHost(), free_port()
    for _ in range(2):
        async with running(source(port), Inbox(host), host):
            pass


async def test_a_host_name_that_nobody_knows_is_a_sentence() -> None:
    with pytest.raises(PeerError, match="the host name is not known"):
        async with opened(udp.Sink.model_validate({"connect": "no-such-host.invalid:5514"}), FakeHost()):
            pass
