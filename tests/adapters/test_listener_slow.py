"""Peers that are slow, or stop, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway import Limits
from gateway.message import Accepted
from gateway.testing import ManualClock, until
from tests.adapters.raw_http import Held, Kept, desk, listener, peer, post

GET = b"GET /orders HTTP/1.1\r\nHost: gateway\r\n\r\n"


async def swept(clock: ManualClock, seconds: float) -> None:
    """Moves the clock, and waits until the listener has looked at it twice."""
    await clock.advance(seconds)
    await asyncio.sleep(1.1)


async def test_a_peer_that_says_nothing_is_cut_without_a_word() -> None:
    clock = ManualClock()
    async with desk(clock=clock) as one, peer(one.address) as client:
        await swept(clock, 9.9)
        assert not client.reader.at_eof()
        await clock.advance(0.2)
        assert await client.closed()


@pytest.mark.parametrize(
    "part", [b"GET /or", b"GET /orders HTTP/1.1\r\nHo", b"GET /orders HTTP/1.1\r\nHost: gateway\r\n"]
)
async def test_headers_that_take_too_long_are_answered_408(part: bytes) -> None:
    clock = ManualClock()
    async with desk(clock=clock) as one, peer(one.address) as client:
        await client.send(part)
        await swept(clock, 9.9)
        await clock.advance(0.2)
        response = await client.response()
        assert response.status == 408
        assert json.loads(response.body)["code"] == "timeout"


async def test_headers_that_drip_get_no_more_time() -> None:
    clock = ManualClock()
    async with desk(clock=clock) as one, peer(one.address) as client:
        await client.send(b"GET /orders HTTP/1.1\r\n")
        for _ in range(4):
            await client.send(b"X: y\r\n")
            await clock.advance(2.6)
        assert (await client.response()).status == 408


async def test_headers_of_a_later_request_have_their_time_from_its_first_byte() -> None:
    clock = ManualClock()
    async with desk(clock=clock) as one, peer(one.address) as client:
        assert (await client.exchange(post())).status == 202
        await swept(clock, 50)
        await client.send(b"GET /orders HTTP/1.1\r\n")
        await swept(clock, 9.0)
        assert not client.reader.at_eof()
        await clock.advance(2)
        assert (await client.response()).status == 408


async def test_a_connection_that_stays_idle_is_closed() -> None:
    clock = ManualClock()
    async with desk(clock=clock) as one, peer(one.address) as client:
        assert (await client.exchange(post())).status == 202
        await swept(clock, 59)
        assert not client.reader.at_eof()
        await clock.advance(2)
        assert await client.closed()


async def test_a_body_slower_than_the_rate_is_refused_after_five_seconds() -> None:
    clock = ManualClock()
    async with desk(clock=clock) as one, peer(one.address) as client:
        await client.send(post(b"x" * 10_000)[:-9_000])
        await swept(clock, 4.9)
        assert not client.reader.at_eof()
        await clock.advance(0.2)
        assert (await client.response()).status == 408
        assert one.inbox.messages == []


async def test_a_body_at_the_rate_may_take_longer() -> None:
    clock = ManualClock()
    async with desk(clock=clock) as one, peer(one.address) as client:
        await client.send(post(b"x" * 20_000)[:-9_000])
        await swept(clock, 10)
        await client.send(b"x" * 9_000)
        assert (await client.response()).status == 202


async def test_a_whole_request_has_a_time_however_quick_its_body_is() -> None:
    clock = ManualClock()
    async with desk(clock=clock) as one, peer(one.address) as client:
        await client.send(post(b"x" * 500_000)[:-100_000])
        await swept(clock, 59)
        assert not client.reader.at_eof()
        await clock.advance(1.5)
        assert (await client.response()).status == 408


async def test_waiting_for_the_outcome_is_not_the_peers_fault() -> None:
    clock, held = ManualClock(), Held()
    async with desk(held, clock=clock) as one, peer(one.address) as client:
        await client.send(post())
        await until(lambda: held.waiting)
        await swept(clock, 500)
        message, future = held.waiting[0]
        future.set_result(Accepted(message.id))
        assert (await client.response()).status == 202


async def test_a_request_that_no_worker_takes_is_answered_503() -> None:
    clock, held = ManualClock(), Held()
    async with desk(held, clock=clock, limits=Limits.model_validate({"in_flight": 1})) as one:
        async with peer(one.address) as first, peer(one.address) as second:
            await first.send(post())
            await until(lambda: held.waiting)
            await second.send(post())
            await swept(clock, 0.5)
            await clock.advance(2)
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
            seen = -1
            while seen != answered:
                seen = answered
                await asyncio.sleep(0.2)
            assert answered < 1_000
            await clock.advance(61)
            await until(lambda: not listening._connections)
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
            await until(lambda: len(kept.requests) >= 32)
            await asyncio.sleep(0.1)
            assert len(kept.requests) < 200
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
