from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from adapters.mllp import Rejected, Sink, Source
from gateway import Accepted, Address, ClientTls, ListenAt, MessageError, PeerError, Refused, Send
from gateway import Sink as SinkPort
from gateway.testing import FakeHost, Inbox, arriving, opened, running, settle, until
from tests.adapters.test_mllp import adt, framed, free
from tests.certificates import Authority

Said = Callable[[bytes], bytes | Awaitable[bytes]]


def ack(code: str, control_id: str, text: str = "") -> bytes:
    return framed(f"MSH|^~\\&|LAB||ADT1||1||ACK|A1|P|2.4\rMSA|{code}|{control_id}|{text}\r".encode())


def accepts(frame: bytes) -> bytes:
    return ack("AA", control_id(frame))


def control_id(frame: bytes) -> str:
    return frame.split(b"|")[9].decode("latin-1")


class Receiver:
    """A receiver that answers each frame with what it is told to: bytes, or nothing."""

    def __init__(self, say: Said) -> None:
        self.frames: list[bytes] = []
        self.connections = 0
        self.open: set[asyncio.StreamWriter] = set()
        self._say = say

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        try:
            while True:
                frame = await reader.readuntil(b"\x1c\r")
                self.frames.append(frame)
                said = self._say(frame)
                said = said if isinstance(said, bytes) else await said
                if said == b"close":
                    return
                writer.write(said)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open.discard(writer)
            writer.close()


@asynccontextmanager
async def receiving(say: Said = accepts, **secured: Any) -> AsyncIterator[tuple[Receiver, Address]]:
    receiver = Receiver(say)
    server = await asyncio.start_server(receiver, "127.0.0.1", 0, **secured)
    try:
        yield receiver, Address(*server.sockets[0].getsockname())
    finally:
        server.close()
        for writer in list(receiver.open):
            writer.transport.abort()
        await until(lambda: not receiver.open)


@asynccontextmanager
async def sending(say: Said = accepts, **settings: Any) -> AsyncIterator[tuple[Send, Receiver, FakeHost]]:
    host = FakeHost()
    async with receiving(say) as (receiver, address), opened(Sink(connect=address, **settings), host) as send:
        yield send, receiver, host


async def test_a_message_is_delivered_when_its_acknowledgement_came() -> None:
    async with sending() as (send, receiver, host):
        reply = await send(arriving(host, adt()))
    assert receiver.frames == [framed(adt())]
    assert reply is not None
    assert reply.body == accepts(framed(adt()))[1:-2]
    assert (reply.content_type, reply.type, reply.transport["code"]) == ("application/hl7-v2", "ACK", "AA")


async def test_one_connection_carries_many_messages_one_at_a_time() -> None:
    async with sending() as (send, receiver, host):
        replies = await asyncio.gather(*(send(arriving(host, adt(f"M{number}"))) for number in range(20)))
    assert receiver.connections == 1
    assert [control_id(frame) for frame in receiver.frames] == [f"M{number}" for number in range(20)]
    assert all(reply is not None and f"|M{number}|".encode() in reply.body for number, reply in enumerate(replies))


async def test_more_connections_carry_more_at_once() -> None:
    both = asyncio.Event()

    async def say(frame: bytes) -> bytes:
        await both.wait()
        return accepts(frame)

    async with sending(say, connections=2) as (send, receiver, host):
        sends = [asyncio.ensure_future(send(arriving(host, adt(f"M{number}")))) for number in range(3)]
        await until(lambda: len(receiver.frames) == 2)
        both.set()
        await asyncio.gather(*sends)
        assert (receiver.connections, len(receiver.frames)) == (2, 3)


async def test_a_connection_for_each_message_where_it_is_not_kept() -> None:
    async with sending(keep_open=False) as (send, receiver, host):
        assert receiver.connections == 0
        await send(arriving(host, adt("M1")))
        await until(lambda: not receiver.open)
        await send(arriving(host, adt("M2")))
        assert receiver.connections == 2


@pytest.mark.parametrize(
    ("code", "rejected", "error"),
    [
        ("AE", Rejected(), MessageError),
        ("CE", Rejected(), MessageError),
        ("AR", Rejected(), PeerError),
        ("CR", Rejected(), PeerError),
        ("AE", Rejected(AE="retry"), PeerError),
        ("AR", Rejected(AR="dead_letter"), MessageError),
    ],
)
async def test_a_rejection_is_a_dead_letter_or_tried_again(code: str, rejected: Rejected, error: type) -> None:
    async with sending(lambda frame: ack(code, control_id(frame), "no bed"), rejected=rejected) as (send, _, host):
        with pytest.raises(error, match=rf"mllp 127.0.0.1:\d+: answered {code} for message MSG1: no bed") as caught:
            await send(arriving(host, adt()))
        assert not getattr(caught.value, "reconnect", False)
        with pytest.raises(error):
            await send(arriving(host, adt("MSG2")))  # the connection is as good as before


async def test_a_commit_is_enough_and_what_comes_later_disturbs_nobody() -> None:
    def say(frame: bytes) -> bytes:
        return ack("CA", control_id(frame)) + ack("AA", control_id(frame))

    async with sending(say) as (send, receiver, host):
        for number in range(3):
            reply = await send(arriving(host, adt(f"M{number}", modes="|||AL|AL")))
            assert reply is not None
            assert reply.transport["code"] == "CA"
        assert receiver.connections == 1


async def test_the_application_acknowledgement_can_be_waited_for() -> None:
    def say(frame: bytes) -> bytes:
        return ack("CA", control_id(frame)) + ack("AE", control_id(frame), "wrong bed")

    async with sending(say, accepted=("AA",)) as (send, _, host):
        with pytest.raises(MessageError, match="answered AE for message MSG1: wrong bed"):
            await send(arriving(host, adt(modes="|||AL|AL")))


# Links that are broken


async def held(sink: Sink, host: FakeHost, use: Callable[[Send], Awaitable[None]]) -> None:
    """Opens a sink, uses it, and stays until its context ends by itself."""
    async with opened(sink, host) as send:
        await use(send)
        await asyncio.Event().wait()


async def expect_closed(say: Said, text: str, *, too_late: bool = False, **settings: Any) -> None:
    host = FakeHost()
    async with receiving(say) as (receiver, address):

        async def use(send: Send) -> None:
            with pytest.raises(PeerError, match=text) as caught:
                await send(arriving(host, adt()))
            assert caught.value.reconnect
            assert caught.value.too_late is too_late
            await until(lambda: not receiver.open)

        with pytest.raises(PeerError, match=text):  # nothing is left: the engine opens it anew
            await held(Sink(connect=address, **settings), host, use)


async def test_an_answer_for_another_message_closes_the_connection() -> None:
    await expect_closed(
        lambda frame: ack("AA", "OTHER"), "an answer for message b'OTHER' came, expected one for b'MSG1'"
    )


async def test_an_answer_that_only_looks_like_one_closes_the_connection() -> None:
    said = framed(b"MSH|^~\\&|LAB||||1||ACK|A1|P|2.4\rNTE|1||x\nMSA|AA|MSG1|\rNTE|2|\\F\\MSA|AA|MSG1\r")
    await expect_closed(lambda frame: said, "expected an HL7 MSA segment")


@pytest.mark.parametrize("said", [b"hello", b"", b"\x06", b"MSA|AA|MSG1\r"])
async def test_an_answer_that_is_none_closes_the_connection(said: bytes) -> None:
    await expect_closed(lambda frame: framed(said), r"answered b'.*', expected an HL7 MSA segment")


async def test_a_code_that_nobody_knows_closes_the_connection() -> None:
    await expect_closed(lambda frame: ack("OK", control_id(frame)), "MSA-1 is 'OK', expected AA, AE, AR, CA, CE or CR")


async def test_no_answer_in_time_closes_the_connection() -> None:
    await expect_closed(lambda frame: b"", r"no answer within 0.3 s", too_late=True, timeout="300ms")


@pytest.mark.parametrize("part", [slice(-5), slice(1, -2)], ids=["half a frame", "no frame"])
async def test_half_an_answer_is_no_answer_and_the_error_says_that_something_came(part: slice) -> None:
    text = r"no answer within 0\.3 s, but \d\d bytes that are no whole MLLP frame: 0B, the answer, 1C 0D"
    await expect_closed(lambda frame: accepts(frame)[part], text, too_late=True, timeout="300ms")


async def test_an_answer_over_the_limit_closes_the_connection() -> None:
    await expect_closed(lambda frame: b"\x0b" + b"x" * 2_000_000, "the answer can't be read: frame: ")


async def test_a_receiver_that_closes_instead_of_answering_is_a_lost_link() -> None:
    await expect_closed(lambda frame: b"close", r"mllp 127.0.0.1:\d+: the peer closed the connection")


async def test_a_late_answer_is_never_taken_for_the_next_message() -> None:
    first_may_be_answered = asyncio.Event()
    answers: list[bytes] = []

    async def say(frame: bytes) -> bytes:
        answers.append(accepts(frame))
        if len(answers) == 1:
            await first_may_be_answered.wait()
        return answers[0]

    async with sending(say, connections=2) as (send, _, host):
        first = asyncio.ensure_future(send(arriving(host, adt("M1"))))
        await until(lambda: answers)
        with pytest.raises(PeerError, match="an answer for message b'M1' came, expected one for b'M2'"):
            await send(arriving(host, adt("M2")))
        first_may_be_answered.set()
        assert await first is not None


async def test_a_link_that_is_lost_while_idle_ends_the_context() -> None:
    async with receiving() as (receiver, address):

        async def use(send: Send) -> None:
            await until(lambda: receiver.open)
            for writer in receiver.open:
                writer.close()

        with pytest.raises(PeerError, match="the peer closed the connection"):
            await held(Sink(connect=address), FakeHost(), use)


async def test_a_receiver_that_closes_after_each_answer_is_told_with_what_to_set() -> None:
    async with receiving() as (receiver, address):

        async def use(send: Send) -> None:
            await send(arriving(host, adt()))
            for writer in receiver.open:
                writer.close()

        host = FakeHost()
        with pytest.raises(PeerError, match=r"closed the connection after one answer; .* set keep_open: false") as lost:
            await held(Sink(connect=address), host, use)
        assert (lost.value.reconnect, lost.value.answered) == (True, True)


async def test_one_lost_connection_of_several_is_made_anew_when_needed() -> None:
    slow = asyncio.Event()

    async def say(frame: bytes) -> bytes:
        if control_id(frame) == "LOST":
            return b"close"
        await slow.wait()
        return accepts(frame)

    async with sending(say, connections=2) as (send, receiver, host):
        waiting = asyncio.ensure_future(send(arriving(host, adt("SLOW"))))
        await until(lambda: receiver.frames)
        with pytest.raises(PeerError) as caught:
            await send(arriving(host, adt("LOST")))
        assert not caught.value.reconnect  # the other one still waits for its answer
        slow.set()
        await waiting
        await asyncio.gather(send(arriving(host, adt("M3"))), send(arriving(host, adt("M4"))))
        assert receiver.connections == 3


async def test_a_receiver_that_is_away_is_said() -> None:
    at = free()
    with pytest.raises(PeerError, match=rf"mllp {at}: "):
        async with opened(Sink(connect=at), FakeHost()):
            pass
    host = FakeHost()
    async with opened(Sink(connect=at, keep_open=False), host) as send:
        with pytest.raises(PeerError, match=rf"mllp {at}: "):
            await send(arriving(host, adt()))


async def test_cancelling_a_send_leaves_the_link_to_its_answer() -> None:
    answer = asyncio.Event()

    async def say(frame: bytes) -> bytes:
        await answer.wait()
        return accepts(frame)

    async with sending(say) as (send, receiver, host):
        given_up = asyncio.ensure_future(send(arriving(host, adt("M1"))))
        await until(lambda: receiver.frames)
        given_up.cancel()
        following = asyncio.ensure_future(send(arriving(host, adt("M2"))))
        await settle()
        assert len(receiver.frames) == 1
        answer.set()
        reply = await following
        assert reply is not None
        assert b"MSA|AA|M2" in reply.body
        assert receiver.connections == 1


async def test_closing_tells_who_still_waits() -> None:
    async with receiving(lambda frame: b"") as (receiver, address):
        host = FakeHost()
        async with opened(Sink(connect=address), host) as send:
            waiting = asyncio.ensure_future(send(arriving(host, adt())))
            await until(lambda: receiver.frames)
        with pytest.raises(PeerError, match="closed before the answer came"):
            await waiting


async def test_an_answer_without_its_last_byte_is_heard() -> None:
    async with sending(lambda frame: accepts(frame)[:-1]) as (send, _, host):
        assert await send(arriving(host, adt())) is not None


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{}", r"mllp: the body begins with b'{}', expected an HL7 v2 message, MSH first"),
        (b"", r"mllp: the body begins with b''"),
        (b"MSH|^~\\&|\r", r"mllp: MSH-10 is empty, expected the id that the answer will name; set it"),
        (adt(" "), r"mllp: MSH-10 is empty"),
        (adt(more="\x1c"), r"frame: the body contains 1C"),
        (adt(more="\x0b"), r"mllp: the body contains 0B, which starts an MLLP frame"),
    ],
)
async def test_what_no_receiver_could_take_is_not_sent(body: bytes, text: str) -> None:
    async with sending() as (send, receiver, host):
        with pytest.raises(MessageError, match=text):
            await send(arriving(host, body))
        await send(arriving(host, adt()))
        assert receiver.frames == [framed(adt())]


async def test_a_tree_is_written_as_hl7() -> None:
    async with sending() as (send, receiver, host):
        tree = {"segments": [["MSH", "|", "^~\\&", "GW", *[None] * 5, [["ADT", "A01"]], "T1", "P", "2.4"], ["PID", 1]]}
        await send(arriving(host).with_tree(tree, "application/hl7-v2"))
    assert receiver.frames == [framed(b"MSH|^~\\&|GW||||||ADT^A01|T1|P|2.4\rPID|1\r")]


async def test_tls_shows_our_certificate_and_checks_theirs(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair, ours = authority.issue("server"), authority.issue("client")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.private_key)
    context.load_verify_locations(authority.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    host = FakeHost()
    tls = ClientTls(ca=authority.ca, certificate=ours.certificate, private_key=ours.private_key)
    async with receiving(ssl=context) as (receiver, address):
        for keep_open in (True, False):
            async with opened(Sink(connect=address, tls=tls, keep_open=keep_open), host) as send:
                assert await send(arriving(host, adt())) is not None
        other = Authority(tmp_path, "another authority")
        with pytest.raises(PeerError, match="by an unknown authority"):
            async with opened(Sink(connect=address, tls=ClientTls(ca=other.ca)), host):
                pass
        assert len(receiver.frames) == 2


async def test_our_own_source_is_a_receiver_for_our_own_sink() -> None:
    host = FakeHost()
    inbox = Inbox(host, lambda m: Refused(m.id, "no bed") if m.sender_id == "BAD" else Accepted(m.id))
    at = free()
    async with running(Source(listen=ListenAt(at)), inbox, host), opened(Sink(connect=at), host) as send:
        body = adt("GOOD") + b"x" * 900_000
        assert await send(arriving(host, body)) is not None
        with pytest.raises(MessageError, match="answered AE for message BAD: no bed"):
            await send(arriving(host, adt("BAD")))
    assert inbox.messages[0].body == body


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"connect": "127.0.0.1:1", "accepted": []},
        {"connect": "127.0.0.1:1", "accepted": ["AE"]},
        {"connect": "127.0.0.1:1", "rejected": {"AX": "retry"}},
        {"connect": "127.0.0.1:1", "connections": 0},
    ],
)
def test_settings_that_fit_nothing_are_errors(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Sink.model_validate(settings)


def test_the_sink_is_one() -> None:
    sink: SinkPort = Sink(connect=Address("127.0.0.1", 1))
    assert isinstance(sink, SinkPort)
