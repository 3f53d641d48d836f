"""What hostile and broken WebSocket clients get: a close frame that says why, and no more memory than they may have."""

from __future__ import annotations

import asyncio

import pytest

from adapters._websocket_link import Link
from gateway import Accepted, Limits
from gateway.testing import settle, until
from tests.adapters.raw_http import Held
from tests.adapters.raw_websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Ears,
    close_code,
    ears,
    frame,
    raw,
)


@pytest.mark.parametrize(
    ("sent", "code", "why"),
    [
        pytest.param(frame(TEXT, b"a", mask=False), 1002, "malformed", id="unmasked"),
        pytest.param(b"\xc1\x80" + bytes(4), 1002, "malformed", id="compressed, which was not agreed"),
        pytest.param(b"\x83\x80" + bytes(4), 1002, "malformed", id="an unknown opcode"),
        pytest.param(b"\x89\xfe\x00\x7e" + bytes(4), 1002, "malformed", id="a ping of 126 bytes"),
        pytest.param(frame(CONTINUATION, b"a"), 1002, "malformed", id="a continuation of nothing"),
        pytest.param(frame(TEXT, b"\xff\xfe"), 1007, "malformed", id="bad utf-8"),
        pytest.param(b"\x82\xff\x80" + bytes(11), 1009, "oversize", id="2^63 bytes"),
        pytest.param(b"\x82\xff\x7f" + b"\xff" * 11, 1009, "oversize", id="2^63 - 1 bytes"),
        pytest.param(frame(BINARY, bytes(1001)), 1009, "oversize", id="one byte too many"),
        pytest.param(frame(BINARY, bytes(3_000_000)), 1009, "oversize", id="3 MB too many"),
        pytest.param(
            frame(BINARY, bytes(600), final=False) + frame(CONTINUATION, bytes(401)),
            1009,
            "oversize",
            id="in fragments",
        ),
        pytest.param(
            frame(TEXT, b"", final=False) + frame(CONTINUATION, b"", final=False) * 5000,
            1008,
            "malformed",
            id="fragment flood",
        ),
        pytest.param(frame(PING) * 5000, 1008, "malformed", id="ping flood"),
        pytest.param(frame(PONG) * 5000, 1008, "malformed", id="pong flood"),
    ],
)
async def test_who_breaks_the_protocol_is_told_why_and_closed(sent: bytes, code: int, why: str) -> None:
    limits = Limits.model_validate({"message": "1000B"})
    async with ears(limits=limits) as one, raw(one.address) as client:
        await client.send(frame(BINARY, bytes(1000)))
        client.link.writer.write(sent)
        assert await client.close_code() == code
        client.link.writer.close()
        assert len(await one.inbox.wait(1)) == 1
        assert one.host.drops == {why: 1}
        await until(lambda: not one.listening.connections)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", None),
        (b"\x03\xe8", 1000),
        (b"\x0b\xb8bye", 3000),
        (b"\x03", 1002),
        (b"\x03\xed", 1002),
        (b"\x03\xe8\xff", 1007),
    ],
    ids=["nothing", "1000", "3000", "half a code", "1005, which none may send", "bad utf-8"],
)
async def test_a_close_frame_is_answered_and_the_connection_ended(payload: bytes, code: int | None) -> None:
    async with ears() as one, raw(one.address) as client:
        await client.send(frame(CLOSE, payload) + frame(TEXT, b"too late"))
        opcode, said = await client.frame()
        assert opcode == CLOSE
        assert said[:2] == (b"" if code is None else code.to_bytes(2, "big"))
        assert await client.closed()
        await until(lambda: not one.listening.connections)
        assert one.inbox.messages == []


async def test_pings_are_answered_with_what_they_said() -> None:
    async with ears() as one, raw(one.address) as client:
        await client.send(frame(TEXT, b"a", final=False) + frame(PING, b"1") + frame(CONTINUATION, b"b"))
        assert await client.frame() == (PONG, b"1")
        assert (await one.inbox.wait(1))[0].body == b"ab"


async def test_a_message_that_takes_too_long_is_given_up() -> None:
    limits = Limits.model_validate({"frame": "500ms"})
    async with ears(limits=limits, ping_interval="0s") as one, raw(one.address) as slow, raw(one.address) as other:
        await slow.send(frame(TEXT, b"[1]") + frame(TEXT, b"[2]")[:3])
        assert await slow.close_code() == 1008
        slow.link.writer.close()
        await other.send(frame(TEXT, b"[3]"))
        assert [message.body for message in await one.inbox.wait(2)] == [b"[1]", b"[3]"]
        assert one.host.drops == {"slow": 1}


async def test_a_peer_that_goes_amid_a_frame_is_counted() -> None:
    async with ears() as one:
        async with raw(one.address) as client:
            await client.send(frame(TEXT, b"[1]") + frame(TEXT, b"[2]")[:3])
            await one.inbox.wait(1)
        await until(lambda: not one.listening.connections)
        assert one.host.drops == {"cut": 1}


async def test_a_peer_that_resets_harms_nobody() -> None:
    held = Held()
    async with ears(held, confirm=True) as one:
        async with raw(one.address) as client:
            await client.send(frame(TEXT, b'{"id":"1","data":1}') * 10)
            await until(lambda: len(held.waiting) == 10)
            client.link.writer.transport.abort()
            await until(lambda: not one.listening.connections)
        for message, outcome in held.waiting:
            outcome.set_result(Accepted(message.id))
        async with one.client() as client2:
            await client2.send("{}")
            await until(lambda: len(held.waiting) == 11)


async def test_a_peer_that_ignores_our_close_is_cut() -> None:
    async with ears() as one, raw(one.address):
        await until(lambda: _links(one))
        one.task.cancel()
        await asyncio.wait((one.task,))
        await until(lambda: not one.listening.connections)


def _links(one: Ears) -> list[Link]:
    takers = [getattr(connection, "_taker", None) for connection in one.listening.connections]
    return [taker for taker in takers if isinstance(taker, Link)]


async def test_a_flood_is_held_in_the_window_and_the_socket() -> None:
    held = Held()
    async with ears(held) as one, raw(one.address) as client:
        flood = frame(TEXT, b"x" * 10_000)
        writer = client.link.writer
        for _ in range(2000):
            writer.write(flood)
        await until(lambda: len(held.waiting) == 64)
        transport = writer.transport
        left = -1
        while left != transport.get_write_buffer_size():  # until nothing more is taken
            left = transport.get_write_buffer_size()
            for _ in range(50):
                await asyncio.sleep(0.001)
        assert left > 5_000_000
        assert len(held.waiting) == 64
        for number in range(2000):
            await until(lambda number=number: len(held.waiting) > number)  # type: ignore[misc]
            held.waiting[number][1].set_result(Accepted("m"))
        assert len(await one.inbox.wait(2000)) == 2000


@pytest.mark.parametrize("goodbye", [b"", frame(CLOSE, b"\x03\xe8")], ids=["no close frame", "close frame"])
async def test_a_burst_is_heard_whole_from_who_has_gone_behind_it(goodbye: bytes) -> None:
    held = Held()
    async with ears(held) as one:
        async with raw(one.address) as client:
            burst = b"".join(frame(TEXT, b"%d" % number) for number in range(300))
            await client.send(burst + goodbye)
            await until(lambda: len(held.waiting) == 64)
        await until(lambda: not one.listening.connections)
        for number in range(300):
            await until(lambda number=number: len(held.waiting) > number)  # type: ignore[misc]
            held.waiting[number][1].set_result(Accepted("m"))
        assert [message.body for message in await one.inbox.wait(300)] == [b"%d" % number for number in range(300)]
        assert one.host.drops == {}


async def test_what_is_confirmed_and_was_not_is_sent_again_and_so_not_heard_from_who_has_gone() -> None:
    held = Held()
    async with ears(held, confirm=True) as one:
        async with raw(one.address) as client:
            await client.send(frame(TEXT, b"{}") * 300)
            await until(lambda: len(held.waiting) == 64)
        await until(lambda: not one.listening.connections)
        for _, outcome in held.waiting:
            outcome.set_result(Accepted("m"))
        await settle()
        assert len(held.waiting) == 64


async def test_all_connections_together_take_no_more_than_the_route_lets_in_twice() -> None:
    held = Held()
    limits = Limits.model_validate({"in_flight": 4})
    async with (
        ears(held, limits=limits) as one,
        raw(one.address) as first,
        raw(one.address) as second,
        raw(one.address) as third,
    ):
        for client in (first, second, third):
            await client.send(frame(TEXT, b"[1]") * 30)
        await until(lambda: len(held.waiting) == 4)
        for number in range(90):
            await until(lambda number=number: len(held.waiting) > number)  # type: ignore[misc]
            assert sum(link.unsettled for link in _links(one)) <= 8 + 2  # each of the others may have one
            held.waiting[number][1].set_result(Accepted("m"))
        await one.inbox.wait(90)


async def test_a_close_reason_says_nothing_of_the_inside() -> None:
    async with ears(confirm=True) as one, one.client() as client:
        await client.send("x" * 2_000_000)
        assert await close_code(client) == 1009
        assert client.close_reason == "a message of more than 1048576 bytes"
