"""A tcp source over real sockets: framings, answers in order, limits, and who must wait for whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from pydantic import ValidationError

from adapters import tcp
from gateway import Accepted, ConfigError, Deferred, Limits, Message, Outcome, PeerError, Refused, Source
from gateway.testing import FakeHost, Inbox, ManualClock, running, settle, until
from tests.adapters.test_frames import fix
from tests.ports import free_port


class Peer:
    """A client of the source under test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def hear(self, count: int) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.readexactly(count)

    async def line(self) -> bytes:
        """The next line; b"" when the other side has closed."""
        async with asyncio.timeout(5):
            try:
                return await self.reader.readline()
            except ConnectionResetError:
                return b""

    async def rest(self) -> bytes:
        """All until the other side closes; a reset counts as that."""
        heard = b""
        async with asyncio.timeout(5):
            try:
                while part := await self.reader.read(65536):
                    heard += part
            except ConnectionResetError:
                pass
        return heard


@asynccontextmanager
async def connected(port: int, **options: Any) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22, **options)
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


class Held:
    """Outcomes that the test gives when it likes, by the order of arrival."""

    def __init__(self) -> None:
        self.outcomes: list[asyncio.Future[Outcome]] = []

    def __call__(self, message: Message) -> Awaitable[Outcome]:
        self.outcomes.append(asyncio.get_running_loop().create_future())
        return self.outcomes[-1]


def limits(**written: Any) -> Limits:
    return Limits.model_validate(written)


def answering(port: int, **settings: Any) -> tcp.Source:
    return tcp.Source.model_validate({"listen": f"127.0.0.1:{port}", "answer": {}, **settings})


def silent(port: int, **settings: Any) -> tcp.Source:
    return tcp.Source.model_validate({"listen": f"127.0.0.1:{port}", **settings})


def test_a_source_answers_exactly_when_it_is_told_to() -> None:
    assert answering(1).answers
    assert not silent(1).answers
    assert isinstance(silent(1), Source)


async def test_lines_are_messages_and_each_is_answered_with_its_id() -> None:
    host, port = FakeHost(), free_port()
    inbox = Inbox(host)
    async with running(answering(port, content_type="text/plain"), inbox, host), connected(port) as peer:
        peer.say(b"one\ntwo\r\n\n")
        first, second, third = await inbox.wait(3)
        assert [first.body, second.body, third.body] == [b"one", b"two", b""]
        assert [await peer.line() for _ in range(3)] == [f"OK {m.id}\n".encode() for m in (first, second, third)]
        assert first.content_type == "text/plain"
        assert first.transport["local"] == f"127.0.0.1:{port}"
        assert first.transport["peer"].startswith("127.0.0.1:")


FIX = fix(b"35=0\x0134=1\x01")

FRAMINGS: list[tuple[Any, bytes, list[bytes]]] = [
    ("line", b"a\nb\r\n", [b"a", b"b"]),
    ({"delimiter": {"end": "\\x03"}}, b"a\x03\n\x03", [b"a", b"\n"]),
    ({"length": {"bytes": 1}}, b"\x01a\0\x02bc", [b"a", b"", b"bc"]),
    ({"length": {"bytes": 2, "order": "little"}}, b"\x01\0a", [b"a"]),
    ({"length": {"bytes": 4}}, b"\0\0\0\x01a", [b"a"]),
    ({"length": {"digits": 4}}, b"0001a", [b"a"]),
    ("stx_etx", b"\x02a\x03\x02\x03", [b"a", b""]),
    ({"fixed": {"bytes": 3}}, b"abcdef", [b"abc", b"def"]),
    ("raw", b"as it comes", [b"as it comes"]),
    ("mllp", b"\x0bMSH\x1c\r", [b"MSH"]),
    ("fix", FIX + FIX, [FIX, FIX]),
]


@pytest.mark.parametrize(("framing", "stream", "bodies"), FRAMINGS, ids=[str(row[0]) for row in FRAMINGS])
async def test_each_framing_is_heard(framing: Any, stream: bytes, bodies: list[bytes]) -> None:
    host, port = FakeHost(), free_port()
    inbox = Inbox(host)
    async with running(silent(port, framing=framing), inbox, host), connected(port) as peer:
        peer.say(stream)
        assert [message.body for message in await inbox.wait(len(bodies))] == bodies


async def test_a_frame_that_comes_in_halves_is_one_message() -> None:
    host, port = FakeHost(), free_port()
    inbox = Inbox(host)
    async with running(answering(port), inbox, host), connected(port) as peer:
        peer.say(b"first\nha")
        await inbox.wait(1)
        peer.say(b"lf\n")
        assert [message.body for message in await inbox.wait(2)] == [b"first", b"half"]


@pytest.mark.parametrize(
    "body",
    [b"", "gr\u00fc\u00df dich \u2713".encode(), bytes(range(256)) * 3, b"x" * 2**20],
    ids=["empty", "utf-8", "binary", "1MiB"],
)
async def test_bodies_arrive_as_they_were_sent_and_the_reply_goes_back_as_it_is(body: bytes) -> None:
    host, port = FakeHost(), free_port()
    inbox = Inbox(host, lambda message: Accepted(message.id, reply=message))
    async with running(answering(port, framing="length"), inbox, host), connected(port) as peer:
        framed = len(body).to_bytes(4, "big") + body
        peer.say(framed)
        assert await peer.hear(len(framed)) == framed
        assert inbox.messages[0].body == body


@pytest.mark.parametrize(
    ("framing", "stream", "why", "reason"),
    [
        pytest.param("line", b"hello", "cut", "frame: the connection ended after 5 bytes of a frame", id="no end"),
        pytest.param("mllp", b"MSH|^~\\&|\r", "unframed", "10 bytes and no frame among them", id="no frame"),
        pytest.param(
            "fix", FIX + FIX[:-4] + b"000\x01" + FIX, "garbled", "checksum or end is wrong", id="bad checksum"
        ),
        pytest.param("stx_etx", b"\x02cut\x02whole\x03", "garbled", "checksum or end is wrong", id="cut by the next"),
        pytest.param("line", b"x" * 2000, "oversize", "expected at most 1024; send less", id="too large"),
        pytest.param({"length": {"digits": 4}}, b"GET / ", "malformed", "not of the framing", id="another protocol"),
    ],
)
async def test_what_becomes_no_message_is_in_the_log(
    framing: Any, stream: bytes, why: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    host, port = FakeHost(clock=clock, limits=limits(message="1KiB")), free_port()
    async with running(silent(port, framing=framing), Inbox(host), host), connected(port) as peer:
        peer.say(stream)
        if why == "cut":
            peer.writer.write_eof()
        await until(lambda: host.drops == {why: 1})
        await clock.advance(1.0)
        (told,) = [record for record in caplog.records if record.message == "bytes dropped"]
        assert reason in told.reason  # type: ignore[attr-defined]
        assert told.peer.startswith("127.0.0.1:")  # type: ignore[attr-defined]


async def test_noise_before_and_between_frames_is_no_matter(caplog: pytest.LogCaptureFixture) -> None:
    host, port = FakeHost(), free_port()
    inbox = Inbox(host)
    async with running(silent(port, framing="stx_etx"), inbox, host), connected(port) as peer:
        peer.say(b"\r\n")
        peer.say(b"noise\x02a\x03\r\n\r\n")
        await inbox.wait(1)
        peer.say(b"\r\n\r\n\x02b\x03")
        await inbox.wait(2)
    assert host.drops == {}
    assert "bytes dropped" not in caplog.text


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"accepted": "OK {{ body.n }}"}, b"ERROR it is taken, but not what to say of it: json: malformed"),
        ({"accepted": "OK {{ body.n }}", "refused": "NO {{ reason }}"}, b"NO it is taken, but not what to say of it: "),
        ({"accepted": "{{ body.n }}", "refused": "NO {{ body.n }}"}, b"ERROR it is taken, but not what to say of it: "),
    ],
)
async def test_an_answer_that_can_not_be_made_is_an_error_and_no_end_of_the_connection(
    answer: dict[str, str], said: bytes
) -> None:
    host, port = FakeHost(), free_port()
    async with running(answering(port, answer=answer), Inbox(host), host), connected(port) as peer:
        peer.say(b'no json\n{"n": "2"}\n')
        assert (await peer.line()).startswith(said)
        assert (await peer.line()).endswith(b"2\n")


async def test_answers_keep_the_order_of_receipt_when_outcomes_do_not() -> None:
    host, port, held = FakeHost(), free_port(), Held()
    inbox = Inbox(host, held)
    async with running(answering(port, answer={"accepted": "OK {{ body.n }}"}), inbox, host), connected(port) as peer:
        peer.say(b"".join(b'{"n": %d}\n' % n for n in range(5)))
        messages = await inbox.wait(5)
        for n in (4, 2, 3, 1):
            held.outcomes[n].set_result(Accepted(messages[n].id))
        await settle()
        held.outcomes[0].set_result(Refused(messages[0].id, "no\nnot\x02this"))
        assert [await peer.line() for _ in range(5)] == [b"ERROR no not this\n", *(b"OK %d\n" % n for n in range(1, 5))]


async def test_one_connection_waits_for_no_other() -> None:
    host, port, held = FakeHost(), free_port(), Held()
    inbox = Inbox(host, held)
    async with running(answering(port), inbox, host), connected(port) as slow, connected(port) as quick:
        slow.say(b"slow\n")
        await inbox.wait(1)
        quick.say(b"quick\n")
        messages = await inbox.wait(2)
        held.outcomes[1].set_result(Accepted(messages[1].id))
        assert await quick.line() == f"OK {messages[1].id}\n".encode()


async def test_a_deferred_message_is_told_to_the_sender_in_the_words_of_the_settings() -> None:
    host, port = FakeHost(), free_port()
    inbox = Inbox(host, lambda message: Deferred(message.id, "the queue is full"))
    source = answering(port, answer={"deferred": "LATER {{ reason }}, 100%"})
    async with running(source, inbox, host), connected(port) as peer:
        peer.say(b"a\n")
        assert await peer.line() == b"LATER the queue is full, 100%\n"


async def test_without_answers_a_deferred_message_is_delivered_again_after_its_wait() -> None:
    clock = ManualClock()
    host, port = FakeHost(clock=clock), free_port()
    outcomes: list[Outcome] = []

    def outcome(message: Message) -> Outcome:
        outcomes.append(Accepted(message.id) if len(outcomes) == 2 else Deferred(message.id, "busy", wait_s=7.0))
        return outcomes[-1]

    inbox = Inbox(host, outcome)
    async with running(silent(port), inbox, host), connected(port) as peer:
        peer.say(b"a\n")
        await inbox.wait(1)
        await settle()
        await clock.advance(7)
        await inbox.wait(2)
        await clock.advance(6.9)
        assert len(inbox.messages) == 2
        await clock.advance(0.1)
        messages = await inbox.wait(3)
        assert len({message.id for message in messages}) == 1


async def test_a_reply_that_the_framing_cannot_carry_is_an_error_to_the_sender() -> None:
    host, port = FakeHost(), free_port()
    inbox = Inbox(host, lambda message: Accepted(message.id, reply=message.with_body(b"two\nlines")))
    async with running(answering(port), inbox, host), connected(port) as peer:
        peer.say(b"a\nb\n")
        assert await peer.line() == b"ERROR the target's reply can't be said here\n"
        assert (await peer.line()).startswith(b"ERROR")


async def test_an_answer_that_cannot_be_framed_ends_its_connection_and_no_other() -> None:
    host, port = FakeHost(), free_port()
    answer = {"accepted": "{{ body.t }}23456789", "deferred": "BUSY     "}
    source = answering(port, framing={"fixed": {"bytes": 9}}, answer=answer)
    async with running(source, Inbox(host), host), connected(port) as bad, connected(port) as good:
        bad.say(b'{"t": ""}')  # eight bytes, and no text of an error has nine
        assert await bad.rest() == b""
        good.say(b'{"t":"1"}')
        assert await good.hear(9) == b"123456789"


async def test_a_frame_over_the_limit_is_refused_after_the_answers_before_it_and_the_connection_closed() -> None:
    host, port = FakeHost(limits=limits(message="10B")), free_port()
    inbox = Inbox(host)
    async with running(answering(port), inbox, host), connected(port) as peer:
        peer.say(b"0123456789\n" + b"x" * 11 + b"\nnever read\n")
        heard = (await peer.rest()).splitlines()
        assert heard[0].startswith(b"OK ")
        assert heard[1] == b"ERROR frame: 11 bytes, expected at most 10; send less, or raise limits.message"
        assert len(heard) == 2
        assert [message.body for message in inbox.messages] == [b"0123456789"]


@pytest.mark.parametrize(
    ("framing", "stream", "why"),
    [("line", b"x" * 12, "oversize"), ({"length": {"digits": 2}}, b"x1a", "malformed")],
    ids=["oversize", "malformed"],
)
async def test_without_answers_a_broken_stream_is_counted_and_closed(framing: Any, stream: bytes, why: str) -> None:
    host, port = FakeHost(limits=limits(message="10B")), free_port()
    async with running(silent(port, framing=framing), Inbox(host), host), connected(port) as peer:
        peer.say(stream)
        assert await peer.rest() == b""
        assert host.drops == {why: 1}


@pytest.mark.parametrize("make", [answering, silent], ids=["answering", "silent"])
async def test_a_connection_cut_within_a_frame_is_counted(make: Callable[[int], tcp.Source]) -> None:
    host, port = FakeHost(), free_port()
    inbox = Inbox(host)
    async with running(make(port), inbox, host), connected(port) as peer:
        peer.say(b"whole\nhal")
        await inbox.wait(1)
        peer.writer.write_eof()
        await peer.rest()
        assert host.drops == {"cut": 1}
        assert [message.body for message in inbox.messages] == [b"whole"]


async def test_a_peer_that_closes_its_half_is_still_answered() -> None:
    host, port, held = FakeHost(), free_port(), Held()
    inbox = Inbox(host, held)
    async with running(answering(port), inbox, host), connected(port) as peer:
        peer.say(b"a\nb\n")
        peer.writer.write_eof()
        messages = await inbox.wait(2)
        for message, outcome in zip(messages, held.outcomes, strict=True):
            outcome.set_result(Accepted(message.id))
        assert await peer.rest() == b"".join(f"OK {message.id}\n".encode() for message in messages)


async def test_a_whole_connection_may_be_one_message() -> None:
    host, port = FakeHost(), free_port()
    inbox = Inbox(host)
    source = answering(port, framing={"raw": {"until": "close"}}, answer={"accepted": "got {{ body | length }}"})
    async with running(source, inbox, host), connected(port) as peer:
        peer.say(b'"part one')
        peer.say(b' and part two"')
        peer.writer.write_eof()
        assert await peer.rest() == b"got 21"


async def test_a_frame_that_does_not_end_in_time_is_refused_and_closed() -> None:
    clock = ManualClock()
    host, port = FakeHost(clock=clock, limits=limits(frame="30s")), free_port()
    inbox = Inbox(host)
    async with running(answering(port), inbox, host), connected(port) as slow, connected(port) as idle:
        slow.say(b"whole\nnever en")
        await inbox.wait(1)
        await slow.line()
        for _ in range(29):
            await clock.advance(1)
        slow.say(b"d")
        await clock.advance(1.5)
        assert (await slow.rest()).startswith(b"ERROR frame: ")
        idle.say(b"between frames nobody is hurried\n")
        assert (await idle.line()).startswith(b"OK")


async def test_time_within_a_frame_does_not_run_while_we_keep_the_peer_waiting() -> None:
    clock = ManualClock()
    host, port, held = FakeHost(clock=clock, limits=limits(frame="30s")), free_port(), Held()
    inbox = Inbox(host, held)
    async with running(answering(port, answer={"accepted": "OK"}), inbox, host), connected(port) as peer:
        peer.say(b"x\n" * 70 + b"half")
        await inbox.wait(64)
        for _ in range(100):
            await clock.advance(1)
        for n in range(70):
            await inbox.wait(n + 1)
            held.outcomes[n].set_result(Accepted(""))
        peer.say(b" and half\n")
        await inbox.wait(71)
        held.outcomes[70].set_result(Accepted(""))
        assert await peer.hear(71 * 3) == b"OK\n" * 71


async def test_an_mllp_frame_without_its_last_byte_is_heard_after_a_while() -> None:
    clock = ManualClock()
    host, port = FakeHost(clock=clock), free_port()
    inbox = Inbox(host)
    async with (
        running(answering(port, framing="mllp", answer={"accepted": "OK"}), inbox, host),
        connected(port) as peer,
    ):
        peer.say(b"\x0bMSH|1\x1c")
        deadline = asyncio.get_running_loop().time() + 5
        while not inbox.messages and asyncio.get_running_loop().time() < deadline:
            await clock.advance(1)
            await asyncio.sleep(0.005)
        assert inbox.messages[0].body == b"MSH|1"
        assert await peer.hear(5) == b"\x0bOK\x1c\r"


async def test_no_more_than_a_window_of_one_connection_is_taken_before_it_is_answered() -> None:
    host, port, held = FakeHost(), free_port(), Held()
    inbox = Inbox(host, held)
    async with running(answering(port, answer={"accepted": "OK {{ body }}"}), inbox, host), connected(port) as peer:
        peer.say(b"".join(b"%d\n" % n for n in range(1000)))
        await inbox.wait(64)
        await settle()
        assert len(inbox.messages) == 64
        for n in range(1000):
            await inbox.wait(n + 1)
            held.outcomes[n].set_result(Accepted(""))
            assert len(inbox.messages) - n <= 64
        answers = b"".join(b"OK %d\n" % n for n in range(1000))
        assert await peer.hear(len(answers)) == answers


async def test_a_full_route_stops_reading_and_goes_on_by_itself() -> None:
    host, port, held = FakeHost(limits=limits(in_flight=2)), free_port(), Held()
    inbox = Inbox(host, held)
    source = silent(port)
    async with running(source, inbox, host):
        async with connected(port) as one, connected(port) as two:
            one.say(b"a\n" * 20)
            two.say(b"b\n" * 20)
            for n in range(40):
                await inbox.wait(n + 1)
                assert len(inbox.messages) <= n + 2
                held.outcomes[n].set_result(Accepted(""))
        assert len(inbox.messages) == 40


async def test_without_answers_what_was_read_is_delivered_though_the_peer_has_gone() -> None:
    host, port, held = FakeHost(), free_port(), Held()
    inbox = Inbox(host, held)
    async with running(silent(port), inbox, host):
        async with connected(port) as peer:
            peer.say(b"x\n" * 200)
            await inbox.wait(64)
        for n in range(200):
            await inbox.wait(n + 1)
            held.outcomes[n].set_result(Accepted(""))


async def test_a_client_that_never_reads_its_answers_is_not_read_and_then_cut() -> None:
    clock = ManualClock()
    host, port = FakeHost(clock=clock, limits=limits(frame="30s")), free_port()
    inbox = Inbox(host, lambda message: Accepted(message.id, reply=message.with_body(b"x" * 100_000)))
    async with running(answering(port), inbox, host), connected(port) as peer:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        peer.say(b"more\n" * 100_000)
        seen = -1
        while seen != len(inbox.messages):
            seen = len(inbox.messages)
            await settle(500)
        assert seen < 1000
        for _ in range(31):
            await clock.advance(1)
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await peer.rest()


async def test_a_refused_peer_that_goes_on_sending_hears_why_and_is_closed_after_a_while() -> None:
    clock = ManualClock()
    host, port = FakeHost(clock=clock, limits=limits(message="10B")), free_port()
    async with running(answering(port), Inbox(host), host), connected(port) as peer:
        peer.say(b"x" * 100_000)
        assert (await peer.line()).startswith(b"ERROR frame: ")
        assert await peer.line() == b""
        peer.say(b"y" * 100_000)
        for _ in range(5):
            await clock.advance(1)
        await until(lambda: not reads(peer))


def reads(peer: Peer) -> bool:
    """Whether the other side still takes what the peer says."""
    peer.say(b"?")
    return not peer.writer.transport.is_closing()


async def test_connections_over_the_limit_are_closed_and_a_place_is_free_again_when_one_leaves() -> None:
    host, port = FakeHost(limits=limits(connections=2)), free_port()
    async with running(answering(port), Inbox(host), host), connected(port) as one:
        async with connected(port) as two:
            one.say(b"a\n")
            two.say(b"a\n")
            await one.line()
            await two.line()
            async with connected(port) as three:
                assert await three.rest() == b""

        async def comes_in() -> bool:
            async with connected(port) as four:
                four.say(b"a\n")
                return (await four.rest() if four.reader.at_eof() else await four.line()) != b""

        async with asyncio.timeout(5):
            while not await comes_in():
                pass


async def test_connections_of_one_address_are_limited_unless_it_is_trusted() -> None:
    port = free_port()
    host = FakeHost(limits=limits(connections_per_address=1, trusted=()))
    async with running(answering(port), Inbox(host), host), connected(port) as one:
        one.say(b"a\n")
        assert (await one.line()).startswith(b"OK")
        async with connected(port) as two:
            assert await two.rest() == b""


async def test_new_connections_of_one_address_are_limited_a_second() -> None:
    clock, port = ManualClock(), free_port()
    host = FakeHost(clock=clock, limits=limits(new_connections="2/s", trusted=()))
    heard = []
    async with running(answering(port), Inbox(host), host):
        for wait_s in (0, 0, 0, 0.5, 0):
            await clock.advance(wait_s)
            async with connected(port) as peer:
                peer.say(b"a\n")
                heard.append(await peer.line() != b"")
    assert heard == [True, True, False, True, False]


async def test_a_source_that_is_stopped_closes_its_connections_and_its_port() -> None:
    host, port, held = FakeHost(), free_port(), Held()
    inbox = Inbox(host, held)
    async with connected_after(running(answering(port), inbox, host), port) as (peer, stop):
        peer.say(b"a\nb\n")
        messages = await inbox.wait(2)
        held.outcomes[0].set_result(Accepted(messages[0].id))
        assert (await peer.line()).startswith(b"OK")
        await stop()
        assert await peer.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


@asynccontextmanager
async def connected_after(source: Any, port: int) -> AsyncIterator[tuple[Peer, Callable[[], Awaitable[None]]]]:
    task = await source.__aenter__()

    async def stop() -> None:
        task.cancel()
        await asyncio.wait((task,), timeout=5)
        assert task.cancelled()

    try:
        async with connected(port) as peer:
            yield peer, stop
    finally:
        await source.__aexit__(None, None, None)


async def test_an_address_that_is_taken_is_a_sentence() -> None:
    host, port = FakeHost(), free_port()
    async with running(silent(port), Inbox(host), host):
        with pytest.raises(ConfigError, match=f"^tcp 127.0.0.1:{port}: can't listen: .*in use.*is another program"):
            await silent(port).run(host, Inbox(host), lambda: None)


class TestClient:
    """The source that connects out."""

    async def test_it_reads_from_the_server_it_connects_to_and_answers(self) -> None:
        host, heard = FakeHost(), asyncio.get_running_loop().create_future()

        async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"a\n")
            heard.set_result(await reader.readline())
            writer.close()

        inbox = Inbox(host)
        async with await asyncio.start_server(server, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            source = tcp.Source.model_validate({"connect": f"127.0.0.1:{port}", "answer": {"accepted": "OK"}})
            with pytest.raises(PeerError, match="the peer closed the connection") as caught:
                await source.run(host, inbox, lambda: None)
        assert caught.value.reconnect
        assert await heard == b"OK\n"
        assert [message.body for message in inbox.messages] == [b"a"]

    async def test_without_answers_it_ends_only_once_all_that_was_read_is_settled(self) -> None:
        host, held = FakeHost(), Held()
        inbox = Inbox(host, held)

        async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"x\n" * 200)
            writer.close()

        async with await asyncio.start_server(server, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            source = tcp.Source.model_validate({"connect": f"127.0.0.1:{port}"})
            run = asyncio.create_task(source.run(host, inbox, lambda: None))
            for n in range(200):
                await inbox.wait(n + 1)
                assert not run.done()
                held.outcomes[n].set_result(Accepted(""))
            with pytest.raises(PeerError):
                await run

    async def test_a_server_that_is_not_there_is_a_sentence(self) -> None:
        host, port = FakeHost(), free_port()
        source = tcp.Source.model_validate({"connect": f"127.0.0.1:{port}"})
        with pytest.raises(PeerError, match=f"^tcp 127.0.0.1:{port}: .*refused"):
            await source.run(host, Inbox(host), lambda: None)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "expected either `listen`"),
        ({"listen": "127.0.0.1:1", "connect": "127.0.0.1:1"}, "expected either `listen`"),
        ({"listen": "127.0.0.1:1", "tls": {}}, "write the TLS of a server under listeners: 127.0.0.1:1"),
        ({"listen": "127.0.0.1:1", "answer": {"accepted": "{{ nobody }}"}}, "nobody"),
        ({"listen": "127.0.0.1:1", "answer": {"deferred": "BUSY\n"}}, "can't be said in this framing"),
        ({"listen": "127.0.0.1:1", "framing": "fix", "answer": {}}, '"BUSY" can\'t be said in this framing'),
        ({"listen": "127.0.0.1:1", "frame": "line"}, "not permitted"),
    ],
    ids=str,
)
def test_settings_that_contradict_are_refused(settings: Any, text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        tcp.Source.model_validate(settings)
    assert text in str(caught.value)
