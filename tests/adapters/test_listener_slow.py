"""Peers that are slow, or stop, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import json

import pytest

from adapters._listener import Listening
from adapters._reading import BODY, HEAD, IDLE
from gateway import Limits
from gateway.message import Accepted
from gateway.testing import ManualClock, settle, until
from tests.adapters.raw_http import Held, Kept, desk, listener, peer, post

GET = b"GET /orders HTTP/1.1\r\nHost: gateway\r\n\r\n"


async def later(listening: Listening, clock: ManualClock, seconds: float, *, phase: int) -> None:
    """Moves the clock once the one connection is in this phase, and lets the listener look at it."""
    await until(lambda: [connection._phase for connection in listening.connections] == [phase])
    await clock.advance(seconds)
    listening.sweep()


async def test_a_peer_that_says_nothing_is_cut_without_a_word() -> None:
    clock = ManualClock()
    async with desk(clock=clock) as one, peer(one.address) as client:
        await later(one.listening, clock, 9.9, phase=IDLE)
        assert one.listening.connections
        # From here on by itself: it looks twice a second.
        await clock.advance(0.2)
        assert await client.closed()


@pytest.mark.parametrize(
    "part", [b"GET /or", b"GET /orders HTTP/1.1\r\nHo", b"GET /orders HTTP/1.1\r\nHost: gateway\r\n"]
)
async def test_headers_that_take_too_long_are_answered_408(part: bytes) -> None:
    clock = ManualClock()
    async with desk(clock=clock) as one, peer(one.address) as client:
        await client.send(part)
        await later(one.listening, clock, 9.9, phase=HEAD)
        assert one.listening.connections
        await later(one.listening, clock, 0.2, phase=HEAD)
        response = await client.response()
        assert response.status == 408
        assert json.loads(response.body)["code"] == "timeout"


async def test_headers_that_drip_get_no_more_time() -> None:
    clock = ManualClock()
    async with desk(clock=clock) as one, peer(one.address) as client:
        await client.send(b"GET /orders HTTP/1.1\r\n")
        for _ in range(4):
            await client.send(b"X: y\r\n")
            await later(one.listening, clock, 2.6, phase=HEAD)
        assert (await client.response()).status == 408


async def test_headers_of_a_later_request_have_their_time_from_its_first_byte() -> None:
    clock = ManualClock()
    async with desk(clock=clock) as one, peer(one.address) as client:
        assert (await client.exchange(post())).status == 202
        await later(one.listening, clock, 50, phase=IDLE)
        await client.send(b"GET /orders HTTP/1.1\r\n")
        await later(one.listening, clock, 9.9, phase=HEAD)
        await later(one.listening, clock, 0.2, phase=HEAD)
        assert (await client.response()).status == 408


async def test_a_connection_that_stays_idle_is_closed() -> None:
    clock = ManualClock()
    async with desk(clock=clock) as one, peer(one.address) as client:
        assert (await client.exchange(post())).status == 202
        await later(one.listening, clock, 59.9, phase=IDLE)
        await later(one.listening, clock, 0.2, phase=IDLE)
        assert await client.closed()


async def test_a_body_slower_than_the_rate_is_refused_after_five_seconds() -> None:
    clock = ManualClock()
    async with desk(clock=clock) as one, peer(one.address) as client:
        await client.send(post(b"x" * 10_000)[:-9_000])
        await later(one.listening, clock, 4.9, phase=BODY)
        await later(one.listening, clock, 0.2, phase=BODY)
        assert (await client.response()).status == 408
        assert one.inbox.messages == []


async def test_a_body_at_the_rate_may_take_longer() -> None:
    clock = ManualClock()
    async with desk(clock=clock) as one, peer(one.address) as client:
        await client.send(post(b"x" * 20_000)[:-9_000])
        await later(one.listening, clock, 10, phase=BODY)
        await client.send(b"x" * 9_000)
        assert (await client.response()).status == 202


async def test_a_whole_request_has_a_time_however_quick_its_body_is() -> None:
    clock = ManualClock()
    async with desk(clock=clock) as one, peer(one.address) as client:
        await client.send(post(b"x" * 500_000)[:-100_000])
        await until(lambda: [c._size for c in one.listening.connections] == [400_000])
        await later(one.listening, clock, 59.9, phase=BODY)
        await later(one.listening, clock, 0.2, phase=BODY)
        assert (await client.response()).status == 408


async def test_waiting_for_the_outcome_is_not_the_peers_fault() -> None:
    clock, held = ManualClock(), Held()
    async with desk(held, clock=clock) as one, peer(one.address) as client:
        await client.send(post())
        await until(lambda: held.waiting)
        await later(one.listening, clock, 500, phase=IDLE)
        message, future = held.waiting[0]
        future.set_result(Accepted(message.id))
        assert (await client.response()).status == 202


async def test_a_request_that_no_worker_takes_is_answered_503() -> None:
    clock, held = ManualClock(), Held()
    limits = Limits.model_validate({"in_flight": 1})
    async with (
        desk(held, clock=clock, limits=limits) as one,
        peer(one.address) as first,
        peer(one.address) as second,
    ):
        await first.send(post())
        await until(lambda: held.waiting)
        await second.send(post())
        await until(lambda: all(connection._queue for connection in one.listening.connections))
        for _ in range(3):
            one.listening.sweep()
        response = await second.response()
        assert response.status == 503
        assert "retry-after" in response.headers
        message, future = held.waiting[0]
        future.set_result(Accepted(message.id))
        assert (await first.response()).status == 202
        assert len(held.waiting) == 1


async def test_a_peer_that_never_reads_is_no_longer_read_and_then_cut() -> None:
    clock = ManualClock()
    answered = 0

    def handler(request: object) -> None:
        nonlocal answered
        answered += 1
        request.answer(200, b"x" * 100_000)  # type: ignore[attr-defined]

    async with listener(clock=clock) as listening, peer(listening.address) as client:
        with listening.mount("/orders", ("GET",), handler):
            client.writer.transport.set_write_buffer_limits(high=0)
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]
            sending = asyncio.create_task(client.send(GET * 20_000))
            await until(lambda: [connection._choked for connection in listening.connections] == [True])
            await settle()
            assert answered < 1_000
            await clock.advance(61)
            await until(lambda: not listening.connections)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def test_a_peer_that_reads_again_gets_all_answers() -> None:
    kept = Kept()
    async with listener() as listening, peer(listening.address) as client:
        with listening.mount("/orders", ("GET",), kept):
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]
            sending = asyncio.create_task(client.send(GET * 300))
            answered = 0
            async with asyncio.timeout(5):
                while answered < 300:
                    if answered > 100:
                        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
                    await until(lambda: len(kept.requests) > answered)  # noqa: B023
                    assert len(kept.requests) - answered < 200
                    while answered < len(kept.requests):
                        kept.requests[answered].answer(200, b"%d" % answered * 1000)
                        answered += 1
                        if answered > 200:
                            await asyncio.sleep(0)
            client.reader._transport.resume_reading()  # type: ignore[attr-defined]
            for index in range(300):
                assert (await client.response()).body == b"%d" % index * 1000
            await sending


async def test_a_connection_with_many_unanswered_requests_is_not_read() -> None:
    kept = Kept()
    async with listener() as listening, peer(listening.address) as client:
        with listening.mount("/orders", ("GET",), kept):
            sending = asyncio.create_task(client.send(GET * 50_000))
            await until(lambda: [connection._paused for connection in listening.connections] == [True])
            await settle()
            assert len(kept.requests) < 200
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
