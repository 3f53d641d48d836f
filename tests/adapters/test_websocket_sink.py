"""A websocket sink as a client: it asks a server, or only tells it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from adapters.websocket import Sink
from gateway import MessageError, PeerError, Send
from gateway.testing import FakeHost, arriving, opened, until
from tests.adapters.raw_websocket import accepting, asked, ears, plain_server, server


@asynccontextmanager
async def sending(url: str, *, host: FakeHost | None = None, **settings: Any) -> AsyncIterator[tuple[Send, FakeHost]]:
    host = host or FakeHost()
    async with opened(Sink.model_validate({"url": url, **settings}), host) as send:
        yield send, host


# A sink that only tells


async def test_a_sink_writes_what_is_to_be_sent() -> None:
    async with server() as one, sending(one.url) as (send, host):
        assert await send(arriving(host, b'{"a": 1}')) is None
        await send(arriving(host, b"\x00\xff", content_type="application/octet-stream"))
        await send(arriving(host, b"", content_type="text/plain"))
        await send(arriving(host, b"x" * 1024**2, content_type="text/plain"))
        await until(lambda: len(one.heard) == 4)
        assert one.heard == ['{"a": 1}', b"\x00\xff", "", "x" * 1024**2]


async def test_a_sink_that_loses_its_server_while_idle_ends() -> None:
    async with server() as one:
        idle = asyncio.create_task(_idle(one.url))
        await until(lambda: one.connections)
        await one.connections[0].close(1001)
        with pytest.raises(PeerError, match="the peer closed the connection with 1001") as error:
            await idle
        assert error.value.reconnect


async def _idle(url: str, **settings: Any) -> None:
    async with sending(url, **settings):
        await asyncio.get_running_loop().create_future()


async def test_a_server_that_reads_nothing_is_noticed() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        key = await asked(reader)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(accepting(key))

    async def flood(url: str) -> None:
        async with sending(url, timeout="200ms") as (send, host):
            while True:
                await send(arriving(host, b"x" * 1_000_000, content_type="text/plain"))

    async with plain_server(deaf) as url:
        with pytest.raises(PeerError, match=r"the peer read nothing for 0\.2 s") as error:
            await flood(url)
        assert error.value.reconnect


# A sink that waits for acknowledgements


def acknowledging(**more: Any) -> Callable[[ServerConnection, str | bytes], Awaitable[None]]:
    async def answer(connection: ServerConnection, message: str | bytes) -> None:
        await connection.send(json.dumps({"ack": json.loads(message)["id"], **more}))

    return answer


async def test_a_confirmed_message_is_delivered_when_the_server_says_so() -> None:
    async with server(acknowledging()) as one, sending(one.url, confirm=True) as (send, host):
        message = arriving(host, b'{"a": 1.50}')
        assert await send(message) is None
        assert one.heard == [f'{{"id":"{message.id}.target","data":{{"a": 1.50}}}}']
        await send(arriving(host, "grün".encode(), content_type="text/plain"))
        await send(arriving(host, b"\x00\xff", content_type="application/octet-stream"))
        assert [list(json.loads(text).items())[1] for text in one.heard[1:]] == [
            ("data", "grün"),
            ("data_base64", "AP8="),
        ]


async def test_acknowledgements_come_in_any_order() -> None:
    async with server() as one, sending(one.url, confirm=True) as (send, host):
        sends = [asyncio.create_task(_sent(send, host, number)) for number in range(50)]
        await until(lambda: len(one.heard) == 50)
        ids = [json.loads(text)["id"] for text in one.heard]
        for number in reversed(range(50)):
            await one.connections[0].send("chatter")
            await one.connections[0].send(json.dumps({"ack": ids[number]}))
            await sends[number]
            assert sum(task.done() for task in sends) == 50 - number


async def _sent(send: Send, host: FakeHost, number: int = 0) -> object:
    return await send(arriving(host, b"%d" % number))


async def test_data_beside_the_ack_is_the_reply() -> None:
    async with server(acknowledging(data={"total": 1})) as one, sending(one.url, confirm=True) as (send, host):
        reply = await send(arriving(host))
        assert reply is not None
        assert (reply.body, reply.content_type) == (b'{"total": 1}', "application/json")


async def test_what_the_server_refuses_or_defers_is_told_apart() -> None:
    answers: list[dict[str, Any]] = [
        {"nack": None, "reason": "no such order", "code": "refused"},
        {"retry": None, "after_s": 7},
    ]

    async def answer(connection: ServerConnection, message: str | bytes) -> None:
        said = answers.pop(0)
        await connection.send(json.dumps({**said, next(iter(said)): json.loads(message)["id"]}))

    async with server(answer) as one, sending(one.url, confirm=True) as (send, host):
        with pytest.raises(MessageError, match="the peer refused it: 'no such order'"):
            await send(arriving(host))
        with pytest.raises(PeerError) as error:
            await send(arriving(host))
        assert error.value.wait_s == 7
        assert not error.value.reconnect


async def test_no_acknowledgement_in_time_is_too_late_and_keeps_the_connection() -> None:
    async with server() as one, sending(one.url, confirm=True, timeout="200ms") as (send, host):
        first, second = asyncio.create_task(_sent(send, host)), asyncio.create_task(_sent(send, host))
        await until(lambda: len(one.heard) == 2)
        await one.connections[0].send(json.dumps({"ack": json.loads(one.heard[1])["id"]}))
        assert await second is None
        with pytest.raises(PeerError, match=r"no acknowledgement within 0\.2 s") as error:
            await first
        assert error.value.too_late
        assert not error.value.reconnect
        # A late one is nobody's.
        await one.connections[0].send(json.dumps({"ack": json.loads(one.heard[0])["id"]}))
        third = asyncio.create_task(_sent(send, host))
        await until(lambda: len(one.heard) == 3)
        await one.connections[0].send(json.dumps({"ack": json.loads(one.heard[2])["id"]}))
        assert await third is None


async def test_all_who_wait_hear_of_a_loss() -> None:
    sends: list[asyncio.Task[object]] = []

    async def ask(url: str) -> None:
        async with sending(url, confirm=True) as (send, host):
            sends.extend(asyncio.create_task(_sent(send, host)) for _ in range(10))
            await asyncio.get_running_loop().create_future()

    async with server() as one:
        asking = asyncio.create_task(ask(one.url))
        await until(lambda: len(one.heard) == 10)
        one.connections[0].transport.abort()
        await asyncio.wait(sends)
        await asyncio.wait((asking,))
        errors = [task.exception() for task in (*sends, asking)]
        assert all(isinstance(error, PeerError) and error.reconnect for error in errors)


async def test_who_gives_up_harms_nobody() -> None:
    async with server() as one, sending(one.url, confirm=True) as (send, host):
        given_up, other = asyncio.create_task(_sent(send, host)), asyncio.create_task(_sent(send, host))
        await until(lambda: len(one.heard) == 2)
        given_up.cancel()
        await asyncio.wait((given_up,))
        for text in one.heard:
            await one.connections[0].send(json.dumps({"ack": json.loads(text)["id"]}))
        assert await other is None


async def test_a_body_that_is_not_its_type_is_refused_before_it_is_sent() -> None:
    async with server() as one, sending(one.url, confirm=True) as (send, host):
        with pytest.raises(MessageError, match="it is not JSON"):
            await send(arriving(host, b'1,"id":"2"'))
        assert one.heard == []


async def test_a_gateway_confirms_to_a_gateway() -> None:
    async with ears(confirm=True) as one, sending(f"ws://{one.address}/live", confirm=True) as (send, host):
        message = arriving(host, b'{"a": 1}')
        assert await send(message) is None
        (arrived,) = one.inbox.messages
        assert arrived.body == b'{"a": 1}'
        assert arrived.sender_id == f"{message.id}.target"


# A sink that waits for replies


async def echo(connection: ServerConnection, message: str | bytes) -> None:
    await connection.send(b"OK " + message if isinstance(message, bytes) else f"OK {message}")


async def test_the_next_frame_is_the_reply() -> None:
    async with server(echo) as one, sending(one.url, reply={"accepted": "OK*"}) as (send, host):
        replies = await asyncio.gather(*(_sent(send, host, number) for number in range(20)))
        assert [reply.body for reply in replies] == [b"OK %d" % number for number in range(20)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"refused": "OK*"}, MessageError, "the peer refused it: 'OK 0'"),
        ({"accepted": "YES*"}, PeerError, r"the peer said 'OK 0', expected 'YES\*'"),
    ],
    ids=["refused", "neither"],
)
async def test_a_reply_may_say_no(settings: dict[str, str], error: type[Exception], said: str) -> None:
    async with server(echo) as one, sending(one.url, reply=settings) as (send, host):
        with pytest.raises(error, match=said):
            await _sent(send, host)


async def test_a_late_reply_ends_the_connection() -> None:
    async with server() as one:
        with pytest.raises(PeerError, match=r"no reply within 0\.2 s") as error:
            async with sending(one.url, reply={}, timeout="200ms") as (send, host):
                await _sent(send, host)
        assert error.value.too_late
        assert error.value.reconnect


async def test_the_reply_of_one_who_gave_up_is_not_taken_for_anothers() -> None:
    async with server() as one, sending(one.url, reply={}) as (send, host):
        given_up = asyncio.create_task(_sent(send, host, 1))
        await until(lambda: len(one.heard) == 1)
        given_up.cancel()
        await asyncio.wait((given_up,))
        other = asyncio.create_task(_sent(send, host, 2))
        await one.connections[0].send("1")
        await until(lambda: len(one.heard) == 2)
        await one.connections[0].send("2")
        reply = await other
        assert reply.body == b"2"  # type: ignore[attr-defined]


async def test_what_nobody_asked_for_ends_the_connection() -> None:
    async with server() as one:
        idle = asyncio.create_task(_idle(one.url, reply={}))
        await until(lambda: one.connections)
        await one.connections[0].send("hello")
        with pytest.raises(PeerError, match="nobody had asked for this"):
            await idle


async def test_frames_of_a_client_are_masked() -> None:
    seen = asyncio.get_running_loop().create_future()

    async def look(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        key = await asked(reader)
        writer.write(accepting(key))
        seen.set_result(await reader.readexactly(2))

    async with plain_server(look) as url, sending(url) as (send, host):
        await send(arriving(host, b"[1]"))
        assert (await seen)[1] == 0x80 | 3
