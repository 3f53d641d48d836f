"""A tcp sink over real sockets: replies, late and unasked ones, lost peers, and clients that are sent to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from pydantic import ValidationError

from adapters import tcp
from gateway import Limits, Message, MessageError, PeerError, Send, Sink
from gateway.testing import FakeHost, Inbox, arriving, opened, running, settle, until
from tests.adapters.test_tcp import FRAMINGS, connected, silent
from tests.ports import free_port

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(handler: Handler, **options: Any) -> AsyncIterator[int]:
    """A server that does as the test says with each connection. Gives its port."""
    writers: list[asyncio.StreamWriter] = []

    async def handled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await handler(reader, writer)

    listening = await asyncio.start_server(handled, "127.0.0.1", 0, limit=2**22, **options)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for writer in writers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def saying(*replies: bytes) -> Handler:
    """Answers each line with the next of these, over all connections; b"": says nothing."""
    left = list(replies)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            writer.write(left.pop(0))

    return handler


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        pass


def replying(port: int, *, reply: Any = None, **settings: Any) -> tcp.Sink:
    return tcp.Sink.model_validate({"connect": f"127.0.0.1:{port}", "reply": reply or {}, **settings})


def sending(send: Send, message: Message) -> asyncio.Task[Message | None]:
    async def sent() -> Message | None:
        return await send(message)

    return asyncio.create_task(sent())


async def ending(sink: tcp.Sink, host: FakeHost, use: Callable[[Send], Awaitable[object]] | None = None) -> PeerError:
    """What ends the open sink, once the test has used it."""
    try:
        async with opened(sink, host) as send:
            if use is not None:
                await use(send)
            async with asyncio.timeout(5):
                await asyncio.Event().wait()
    except PeerError as error:
        return error
    raise AssertionError("the sink did not end")


OK = {"accepted": "OK*", "refused": "ERR*"}


def test_it_is_a_sink() -> None:
    assert isinstance(replying(1), Sink)


async def test_an_accepting_reply_means_delivered_and_is_the_reply() -> None:
    host = FakeHost()
    async with server(saying(b"OK 17\r\n")) as port:
        reply = {"accepted": "OK*", "content_type": "text/plain"}
        async with opened(replying(port, reply=reply), host) as send:
            said = await send(arriving(host, b"order"))
    assert said is not None
    assert (said.body, said.content_type, said.transport["peer"]) == (b"OK 17", "text/plain", f"127.0.0.1:{port}")


async def test_a_refusing_reply_is_a_message_error_and_the_link_stays() -> None:
    host = FakeHost()
    async with (
        server(saying(b"ERR no such \x1b[31mcustomer\n", b"OK\n")) as port,
        opened(replying(port, reply=OK), host) as send,
    ):
        with pytest.raises(MessageError, match="the peer refused it: 'ERR no such \\\\x1b"):
            await send(arriving(host, b"order"))
        assert await send(arriving(host, b"order")) is not None


async def test_any_other_reply_is_tried_again_and_its_text_is_shown_cut_short() -> None:
    host = FakeHost()
    async with (
        server(saying(b"BUSY" + b"x" * 500 + b"\n", b"OK\n")) as port,
        opened(replying(port, reply=OK), host) as send,
    ):
        with pytest.raises(PeerError, match=r"the peer said 'BUSYx{76}…', expected 'OK\*'") as caught:
            await send(arriving(host, b"order"))
        assert not caught.value.reconnect
        assert await send(arriving(host, b"order")) is not None


async def test_a_reply_that_is_late_ends_the_connection_so_that_it_answers_nothing_else() -> None:
    host = FakeHost()
    late, connections = asyncio.Event(), 0

    async def slow_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        first = connections == 1
        while line := await reader.readline():
            if first:
                await late.wait()
            writer.write(b"OK " + line)

    async with server(slow_once) as port:
        sink = replying(port, reply={"accepted": "OK*", "timeout": "50ms"})

        async def too_late(send: Send) -> None:
            with pytest.raises(PeerError, match=r"no reply within 0\.05 s") as caught:
                await send(arriving(host, b"one"))
            assert (caught.value.reconnect, caught.value.too_late) == (True, True)
            late.set()
            with pytest.raises(PeerError) as again:
                await send(arriving(host, b"two"))
            assert again.value.reconnect

        assert (await ending(sink, host, too_late)).too_late
        async with opened(sink, host) as send:
            said = await send(arriving(host, b"two"))
        assert said is not None
        assert said.body == b"OK two"


async def test_a_reply_without_its_end_is_late_and_the_error_says_that_something_came() -> None:
    host = FakeHost()
    async with server(saying(b"OK\r")) as port:  # a PLC's line end; ours is a line feed
        sink = replying(port, reply={"accepted": "OK*", "timeout": "200ms"})

        async def ask(send: Send) -> None:
            with pytest.raises(PeerError, match=r"no reply within 0\.2 s, but 3 bytes that are no whole frame: is the"):
                await send(arriving(host, b"one"))

        await ending(sink, host, ask)


async def test_one_message_is_under_way_at_a_time_on_one_connection() -> None:
    host, most, now = FakeHost(), 0, 0

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal most, now
        while line := await reader.readline():
            now += 1
            most = max(most, now)
            assert not reader._buffer  # type: ignore[attr-defined]
            await settle()
            now -= 1
            writer.write(line)

    async with server(counting) as port:
        async with opened(replying(port), host) as send:
            said = await asyncio.gather(*(send(arriving(host, b"%d" % n)) for n in range(20)))
        assert [reply.body for reply in said if reply is not None] == [b"%d" % n for n in range(20)]
        assert most == 1
        async with opened(replying(port, connections=4), host) as send:
            said = await asyncio.gather(*(send(arriving(host, b"%d" % n)) for n in range(20)))
        assert [reply.body for reply in said if reply is not None] == [b"%d" % n for n in range(20)]
        assert most == 4


@pytest.mark.parametrize("extra", [b"OK again\n", b"half a line"], ids=["a reply too many", "part of one"])
async def test_what_nobody_asked_for_ends_the_connection(extra: bytes) -> None:
    host = FakeHost()
    async with server(saying(b"OK\n" + extra)) as port:
        error = await ending(replying(port), host, lambda send: send(arriving(host, b"order")))
    assert f"sent {len(extra.strip())} bytes that nobody had asked for" in str(error)
    assert error.reconnect


async def test_what_comes_while_idle_ends_the_connection() -> None:
    async def greeting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\n")
        await silence(reader, writer)

    async with server(greeting) as port:
        assert "nobody had asked for" in str(await ending(replying(port), FakeHost()))


async def test_a_peer_that_closes_while_idle_is_noticed_at_once() -> None:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with server(closing) as port:
        error = await ending(replying(port), FakeHost())
        assert str(error) == f"tcp 127.0.0.1:{port}: the peer closed the connection"
        assert (error.reconnect, error.answered) == (True, False)


async def test_a_peer_that_closes_after_its_reply_is_told_from_one_that_is_away() -> None:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"OK\n")
        writer.close()

    async with server(one) as port:
        host = FakeHost()
        error = await ending(replying(port), host, lambda send: send(arriving(host, b"order")))
        assert (error.reconnect, error.answered) == (True, True)


async def test_a_peer_that_closes_instead_of_replying_fails_that_send_and_those_that_wait() -> None:
    host = FakeHost()

    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"OK without an end")
        writer.close()

    async with server(closing) as port:
        sends: list[asyncio.Task[Message | None]] = []

        async def three(send: Send) -> None:
            sends.extend(sending(send, arriving(host, b"order")) for _ in range(3))

        await ending(replying(port), host, three)
        failed = await asyncio.wait_for(asyncio.gather(*sends, return_exceptions=True), 5)
        assert all(isinstance(error, PeerError) and error.reconnect for error in failed)


async def test_a_reply_over_the_limit_ends_the_connection() -> None:
    host = FakeHost(limits=Limits.model_validate({"message": "10B"}))
    async with server(saying(b"x" * 50 + b"\n")) as port:
        with pytest.raises(PeerError, match="the reply can't be understood: frame: 50 bytes"):
            async with opened(replying(port), host) as send:
                await send(arriving(host, b"order"))


async def test_a_cancelled_send_gives_up_its_reply_and_not_the_link() -> None:
    host, hold = FakeHost(), asyncio.Event()

    async def held(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            await hold.wait()
            writer.write(b"OK " + line)

    async with server(held) as port, opened(replying(port), host) as send:
        first, second, third = (sending(send, arriving(host, b"%d" % n)) for n in range(3))
        await settle()
        first.cancel()  # waits for its reply
        second.cancel()  # waits for its turn
        await settle()
        assert first.cancelled()
        assert second.cancelled()
        assert not third.done()
        hold.set()
        said = await third
        assert said is not None
        assert said.body == b"OK 2"


async def test_a_peer_that_is_not_there_is_a_sentence() -> None:
    port = free_port()
    with pytest.raises(PeerError, match=f"^tcp 127.0.0.1:{port}: connection refused$"):
        async with opened(replying(port), FakeHost()):
            pass


async def test_a_peer_that_takes_no_connection_in_time_is_a_sentence() -> None:
    async with server(silence) as port:  # which never answers the TLS handshake
        sink = tcp.Sink.model_validate({"connect": f"127.0.0.1:{port}", "tls": {}, "timeout": "50ms"})
        with pytest.raises(PeerError, match=r"no connection within 0\.05 s; is 127.0.0.1:\d+ reachable\?"):
            async with opened(sink, FakeHost()):
                pass


async def test_an_error_of_the_user_of_a_sink_comes_out_as_it_is() -> None:
    async with server(silence) as port:
        with pytest.raises(KeyError):
            async with opened(replying(port), FakeHost()):
                raise KeyError


@pytest.mark.parametrize(("framing", "stream", "bodies"), FRAMINGS, ids=[str(row[0]) for row in FRAMINGS])
async def test_each_framing_is_written_as_it_is_read(framing: Any, stream: bytes, bodies: list[bytes]) -> None:
    host, port = FakeHost(), free_port()
    inbox = Inbox(host)
    sink = tcp.Sink.model_validate({"connect": f"127.0.0.1:{port}", "framing": framing})
    async with running(silent(port, framing=framing), inbox, host), opened(sink, host) as send:
        for count, body in enumerate(bodies, 1):
            assert await send(arriving(host, body)) is None
            await inbox.wait(count)
    assert [message.body for message in inbox.messages] == bodies


@pytest.mark.parametrize(
    "body", [b"", "grüß dich ✓".encode(), bytes(range(256)) * 3, b"x" * 2**20], ids=["empty", "utf-8", "binary", "1MiB"]
)
async def test_bodies_go_there_and_come_back_as_they_are(body: bytes) -> None:
    host = FakeHost()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            size = await reader.readexactly(4)
            writer.write(size + await reader.readexactly(int.from_bytes(size, "big")))

    async with server(echo) as port, opened(replying(port, framing="length"), host) as send:
        said = await send(arriving(host, body))
        assert said is not None
        assert said.body == body


async def test_a_body_that_contains_its_delimiter_is_refused_before_it_is_sent() -> None:
    host = FakeHost()
    async with server(silence) as port, opened(replying(port), host) as send:
        with pytest.raises(MessageError, match="contains a line feed"):
            await send(arriving(host, b"two\nlines"))


async def test_without_reply_what_the_peer_says_is_not_listened_to() -> None:
    host, heard = FakeHost(), bytearray()

    async def chatty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            heard.extend(line)
            writer.write(b"OK\n")

    sink_to: Callable[[int], tcp.Sink] = lambda port: tcp.Sink.model_validate({"connect": f"127.0.0.1:{port}"})  # noqa: E731
    async with server(chatty) as port, opened(sink_to(port), host) as send:
        for body in (b"a", b"b", b"c"):
            assert await send(arriving(host, body)) is None
        await until(lambda: heard == b"a\nb\nc\n")


async def test_without_reply_what_was_sent_goes_out_before_the_sink_closes() -> None:
    host, heard = FakeHost(), bytearray()

    async def reading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(65536):
            heard.extend(part)

    async with server(reading) as port:
        sink = tcp.Sink.model_validate({"connect": f"127.0.0.1:{port}"})
        async with opened(sink, host) as send:
            await asyncio.gather(*(send(arriving(host, b"x" * 50_000)) for _ in range(40)))
        await until(lambda: len(heard) == 40 * 50_001)


async def test_a_peer_that_never_reads_is_given_up() -> None:
    host, over = FakeHost(), asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await over.wait()

    async def flood(send: Send) -> None:
        while True:
            await send(arriving(host, b"x" * 1_000_000))

    async with server(never) as port:
        sink = tcp.Sink.model_validate({"connect": f"127.0.0.1:{port}", "timeout": "100ms"})
        error = await ending(sink, host, flood)
        over.set()
        assert "the peer read nothing for 0.1 s" in str(error)
        assert error.reconnect


class TestAudience:
    """The sink that listens."""

    async def test_all_who_are_connected_are_sent_to_and_nobody_is_fine_too(self) -> None:
        host, port = FakeHost(), free_port()
        sink = tcp.Sink.model_validate({"listen": f"127.0.0.1:{port}"})
        async with opened(sink, host) as send:
            assert await send(arriving(host, b"to nobody")) is None
            async with connected(port) as one, connected(port) as two:
                one.say(b"not listened to\n")
                heard_one, heard_two = asyncio.create_task(one.line()), asyncio.create_task(two.line())
                while not (heard_one.done() and heard_two.done()):
                    await send(arriving(host, b"tick"))
                    await settle()
                assert (await heard_one, await heard_two) == (b"tick\n", b"tick\n")
        assert host.drops == {}

    async def test_a_client_that_lags_is_cut_and_the_others_are_not(self) -> None:
        host, port = FakeHost(), free_port()
        sink = tcp.Sink.model_validate({"listen": f"127.0.0.1:{port}", "queue": "100KiB", "framing": "length"})
        async with opened(sink, host) as send, connected(port) as slow, connected(port) as good:
            slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
            for _ in range(1000):
                await send(arriving(host, b"x" * 100_000))
                while good.reader._buffer:  # type: ignore[attr-defined]
                    await good.reader.read(2**20)
                await settle()
                if host.drops:
                    break
            assert host.drops == {"slow": 1}
            good.reader._buffer.clear()  # type: ignore[attr-defined]
            await send(arriving(host, b"still here"))
            assert await good.reader.readuntil(b"still here")

    async def test_a_sink_that_closes_sends_what_is_left(self) -> None:
        host, port = FakeHost(), free_port()
        sink = tcp.Sink.model_validate({"listen": f"127.0.0.1:{port}", "queue": "10MiB"})
        async with opened(sink, host) as send:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
            while not reader._buffer:  # type: ignore[attr-defined]
                await send(arriving(host, b"first"))
                await settle()
            await send(arriving(host, b"y" * 3_000_000))
        rest = await asyncio.wait_for(reader.read(-1), 5)
        assert rest.endswith(b"first\n" + b"y" * 3_000_000 + b"\n")
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def test_connections_over_the_limit_are_closed(self) -> None:
        host, port = FakeHost(limits=Limits(connections=1)), free_port()
        sink = tcp.Sink.model_validate({"listen": f"127.0.0.1:{port}"})
        async with opened(sink, host) as send, connected(port) as one:
            while not one.reader._buffer:  # type: ignore[attr-defined]
                await send(arriving(host, b"first"))
                await settle()
            async with connected(port) as two:
                assert await two.rest() == b""


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "expected either `connect`"),
        ({"listen": "127.0.0.1:1", "reply": {}}, "`reply` is for `connect`"),
        ({"listen": "127.0.0.1:1", "tls": {}}, "`tls` is for `connect`"),
        ({"listen": "127.0.0.1:1", "connections": 2}, "`connections` is for `connect`"),
        ({"connect": "127.0.0.1:1", "framing": {"raw": {"until": "close"}}}, "is for sources"),
        ({"connect": "127.0.0.1:1", "connections": 0}, "greater than or equal to 1"),
        ({"connect": "127.0.0.1"}, "expected an address with a port"),
    ],
    ids=str,
)
def test_settings_that_contradict_are_refused(settings: Any, text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        tcp.Sink.model_validate(settings)
    assert text in str(caught.value)
