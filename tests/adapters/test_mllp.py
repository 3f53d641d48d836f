from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from adapters.mllp import Codes, Source
from gateway import (
    Accepted,
    Address,
    Deferred,
    Limits,
    ListenAt,
    Message,
    MessageError,
    Outcome,
    PeerError,
    Refused,
    ServerTls,
)
from gateway import Source as SourcePort
from gateway.testing import FakeHost, Inbox, ManualClock, running, settle, until
from tests.certificates import Authority


def adt(control_id: str = "MSG1", *, modes: str = "", more: str = "") -> bytes:
    return (
        f"MSH|^~\\&|ADT1|GHH|LAB|H2|20240131||ADT^A01^ADT_A01|{control_id}|P|2.4{modes}\rPID|1||4711{more}\r".encode()
    )


def framed(payload: bytes) -> bytes:
    return b"\x0b" + payload + b"\x1c\r"


class Peer:
    """A sender, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self) -> bytes:
        """The next acknowledgement, without its frame."""
        async with asyncio.timeout(4):
            whole = await self._reader.readuntil(b"\x1c\r")
        assert whole.startswith(b"\x0b")
        return whole[1:-2]

    async def codes(self, count: int) -> list[tuple[str, str]]:
        """MSA-1 and MSA-2 of the next acknowledgements."""
        return [msa(await self.answer()) for _ in range(count)]

    async def rest(self) -> bytes:
        """All until the gateway closes."""
        async with asyncio.timeout(4):
            return await self._reader.read()

    def half_close(self) -> None:
        self._writer.write_eof()

    def reset(self) -> None:
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


def msa(ack: bytes) -> tuple[str, str]:
    fields = ack.decode("latin-1").split("\r")[1].split("|")
    return fields[1], fields[2]


def free() -> Address:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return Address("127.0.0.1", probe.getsockname()[1])


@asynccontextmanager
async def calling(address: Address, **secured: Any) -> AsyncIterator[Peer]:
    peer = Peer(*await asyncio.open_connection(address.host, address.port, **secured))
    try:
        yield peer
    finally:
        await peer.close()


@asynccontextmanager
async def talking(
    outcome: Any = None, *, host: FakeHost | None = None, **settings: Any
) -> AsyncIterator[tuple[Peer, Inbox, FakeHost]]:
    host = host or FakeHost()
    inbox = Inbox(host, outcome)
    at = free()
    async with running(Source(listen=ListenAt(at), **settings), inbox, host), calling(at) as peer:
        yield peer, inbox, host


async def test_a_message_is_delivered_and_acknowledged() -> None:
    async with talking() as (peer, inbox, _):
        peer.send(framed(adt()))
        ack = await peer.answer()
    message = inbox.messages[0]
    assert message.body == adt()
    assert (message.type, message.sender_id, message.content_type) == ("ADT^A01", "MSG1", "application/hl7-v2")
    assert message.transport["peer"].startswith("127.0.0.1:")
    tree: Any = message.tree
    assert tree["segments"][1][3] == [[["4711"]]]
    own_id = (message.id[:8] + message.id[9:13] + message.id[-8:]).encode()
    assert re.sub(rb"\d{14}\+0000", b"TIME", ack) == (
        b"MSH|^~\\&|LAB|H2|ADT1|GHH|TIME||ACK^A01^ACK|" + own_id + b"|P|2.4\rMSA|AA|MSG1\r"
    )


@pytest.mark.parametrize("body", [adt(), adt(" 7 "), adt("").replace(b"ADT^A01^ADT_A01", b""), b"BHS|\r" + adt()])
async def test_a_body_is_named_as_the_source_names_a_message_that_it_takes(body: bytes) -> None:
    async with talking() as (peer, inbox, _):
        peer.send(framed(body))
        await peer.answer()
    message = inbox.messages[0]
    assert Source(listen=ListenAt(free())).named(body) == (message.type, message.sender_id)


@pytest.mark.parametrize("body", [b"", b"PID|1\r", b"MSH", b'{"id": 1}'])
def test_a_body_without_a_header_has_no_name(body: bytes) -> None:
    assert Source(listen=ListenAt(free())).named(body) is None


def outcomes(message: Message) -> Outcome:
    code = message.sender_id or ""
    if code == "deferred":
        return Deferred(message.id, "db.internal:5432: connection refused")
    return Refused(message.id, "PID-3 is 'a|b', expected a number", code=code)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("why", "expected", "text"),
    [
        ("refused", "AE", "PID-3 is 'a\\F\\b', expected a number"),
        ("malformed", "AE", "PID-3 is 'a\\F\\b', expected a number"),
        ("too_large", "AE", "PID-3 is 'a\\F\\b', expected a number"),
        ("internal", "AR", "internal error"),
        ("deferred", "AR", "not taken now; send it again later"),
    ],
)
async def test_a_refusal_says_whether_sending_again_helps(why: str, expected: str, text: str) -> None:
    async with talking(outcomes) as (peer, _, _):
        peer.send(framed(adt(why)))
        assert (await peer.answer()).endswith(f"\rMSA|{expected}|{why}|{text}\r".encode())


@pytest.mark.parametrize(
    ("why", "error"),
    [
        ("refused", b"102^Data type error"),
        ("malformed", b"102^Data type error"),
        ("unsupported", b"200^Unsupported message type"),
        ("internal", b"207^Application internal error"),
        ("deferred", b"207^Application internal error"),
    ],
)
async def test_a_refusal_says_whose_fault_it_is(why: str, error: bytes) -> None:
    async with talking(outcomes) as (peer, _, _):
        peer.send(framed(adt(why).replace(b"|2.4", b"|2.5.1")))
        assert b"\rERR|||" + error + b"^HL70357|E|" in await peer.answer()


async def test_the_codes_are_configurable() -> None:
    codes = Codes(refused="AR", deferred="AE", internal="AE")
    async with talking(outcomes, codes=codes) as (peer, _, _):
        peer.send(framed(adt("refused")) + framed(adt("deferred")) + framed(adt("internal")))
        assert await peer.codes(3) == [("AR", "refused"), ("AE", "deferred"), ("AE", "internal")]


# The robustness list


async def test_pipelined_frames_are_answered_in_their_order() -> None:
    gates = {f"M{number}": asyncio.Event() for number in range(5)}

    async def held(message: Message) -> Outcome:
        await gates[message.sender_id or ""].wait()
        return Accepted(message.id)

    async with talking(held) as (peer, inbox, _):
        peer.send(b"".join(framed(adt(control_id)) for control_id in gates))
        await inbox.wait(5)
        for gate in reversed(gates.values()):
            await settle()
            gate.set()
        assert await peer.codes(5) == [("AA", control_id) for control_id in gates]


async def test_many_messages_come_over_one_connection() -> None:
    async with talking() as (peer, inbox, _):
        for number in range(50):
            peer.send(framed(adt(f"M{number}")))
            assert await peer.codes(1) == [("AA", f"M{number}")]
    assert len({message.id for message in inbox.messages}) == 50


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"noise\r\n" + framed(adt()), id="bytes before 0B"),
        pytest.param(b"\x0b" + framed(adt()), id="doubled 0B"),
        pytest.param(b"\0\0" + framed(adt()) + b"\0\0" + framed(adt("MSG2")), id="NULs between frames"),
        pytest.param(framed(adt())[:-1] + framed(adt("MSG2")), id="1C without 0D, then the next frame"),
        pytest.param(framed(adt())[:-1], id="1C without 0D, then nothing"),
        pytest.param(framed(b"\r\n" + adt()), id="a line end before MSH"),
        pytest.param(framed(adt().replace(b"\r", b"\n")), id="line feeds"),
        pytest.param(framed(adt().rstrip(b"\r")), id="no last carriage return"),
    ],
)
@pytest.mark.parametrize("pieces", [1, 7, 10_000])
async def test_a_sloppy_sender_is_heard(data: bytes, pieces: int) -> None:
    async with talking() as (peer, inbox, _):
        for piece in (data[at : at + pieces] for at in range(0, len(data), pieces)):
            peer.send(piece)
            await asyncio.sleep(0)
        expected = [("AA", "MSG1"), ("AA", "MSG2")][: data.count(b"MSH")]
        assert await peer.codes(len(expected)) == expected
    assert len(inbox.messages) == len(expected)


async def test_a_frame_that_is_cut_is_not_delivered() -> None:
    async with talking() as (peer, inbox, host):
        peer.send(framed(adt()) + framed(adt("MSG2"))[:-20])
        peer.half_close()
        assert b"MSA|AA|MSG1" in await peer.rest()
        assert [message.sender_id for message in inbox.messages] == ["MSG1"]
        assert host.drops == {"cut": 1}


async def test_a_frame_that_ends_with_the_stream_is_taken() -> None:
    async with talking() as (peer, _, _):
        peer.send(framed(adt())[:-1])
        peer.half_close()
        assert b"MSA|AA|MSG1" in await peer.rest()


async def test_a_sender_that_closes_its_half_still_gets_its_answers() -> None:
    gate = asyncio.Event()

    async def held(message: Message) -> Outcome:
        await gate.wait()
        return Accepted(message.id)

    async with talking(held) as (peer, inbox, _):
        peer.send(framed(adt()))
        peer.half_close()
        await inbox.wait(1)
        gate.set()
        assert b"MSA|AA|MSG1" in await peer.rest()


async def test_a_sender_that_resets_disturbs_nobody() -> None:
    host = FakeHost()
    inbox = Inbox(host)
    at = free()
    async with running(Source(listen=ListenAt(at)), inbox, host):
        async with calling(at) as first:
            first.send(framed(adt()) + b"\x0bMSH|")
            await inbox.wait(1)
            first.reset()
        async with calling(at) as second:
            second.send(framed(adt("MSG2")))
            assert await second.codes(1) == [("AA", "MSG2")]


async def test_a_frame_of_exactly_the_limit_passes_and_one_byte_more_is_refused_by_name() -> None:
    most = len(adt("MSG1", more="x" * 2000))
    host = FakeHost(limits=Limits(message=f"{most}B"))
    async with talking(host=host) as (peer, inbox, _):
        peer.send(framed(adt("MSG1", more="x" * 2000)))
        assert await peer.codes(1) == [("AA", "MSG1")]
        peer.send(framed(adt("MSG2")) + framed(adt("MSG3", more="x" * 2001)))
        assert await peer.codes(2) == [("AA", "MSG2"), ("AE", "MSG3")]
        assert await peer.rest() == b""
    assert len(inbox.messages) == 2


async def test_a_frame_that_is_too_large_is_refused_by_its_own_name_and_not_by_that_of_what_follows() -> None:
    host = FakeHost(limits=Limits(message="1KiB"))
    async with talking(host=host) as (peer, inbox, _):
        peer.send(framed(adt("MSG1")) + framed(adt("BIG", more="x" * 2000)) + framed(adt("MSG3")))
        assert await peer.codes(2) == [("AA", "MSG1"), ("AE", "BIG")]
        assert await peer.rest() == b""
    assert len(inbox.messages) == 1


async def test_an_endless_frame_without_a_header_is_closed_without_a_word() -> None:
    host = FakeHost(limits=Limits(message="1KiB"))
    async with talking(host=host) as (peer, inbox, _):
        peer.send(b"\x0b" + b"x" * 3000)
        assert await peer.rest() == b""
    assert inbox.messages == []


async def test_a_slow_frame_is_refused_after_its_time() -> None:
    clock = ManualClock()
    async with talking(host=FakeHost(clock=clock)) as (peer, _, _):
        peer.send(framed(adt("MSG1")) + framed(adt("SLOW"))[:-2])
        assert await peer.codes(1) == [("AA", "MSG1")]
        for _ in range(62):
            await clock.advance(1.0)
        assert await peer.codes(1) == [("AE", "SLOW")]
        assert await peer.rest() == b""


async def test_a_sender_that_leaves_0d_out_is_answered_before_anybody_looks_after_its_link() -> None:
    async with talking(host=FakeHost(clock=ManualClock())) as (peer, _, _):
        for name in ("MSG1", "MSG2"):
            peer.send(framed(adt(name))[:-1])
            assert await peer.codes(1) == [("AA", name)]


async def test_between_frames_a_sender_may_be_silent_for_ever() -> None:
    clock = ManualClock()
    async with talking(host=FakeHost(clock=clock)) as (peer, _, _):
        peer.send(framed(adt()))
        await peer.answer()
        for _ in range(5):
            await clock.advance(3600.0)
        peer.send(framed(adt("MSG2")))
        assert await peer.codes(1) == [("AA", "MSG2")]


@pytest.mark.parametrize("payload", [b"hello", b"", b"\x06", b"<ADT_A01/>", b"PID|1\r"])
async def test_what_is_no_hl7_is_told_so_and_counted(payload: bytes) -> None:
    async with talking() as (peer, inbox, host):
        peer.send(framed(payload) + framed(adt("MSG2")))
        ack = await peer.answer()
        assert b"\rMSA|AR||found b" in ack
        assert b"200\x5eUnsupported message type^HL70357" in ack
        assert await peer.codes(1) == [("AA", "MSG2")]
    assert host.refusals == [("malformed", "it is no HL7 v2 message in ER7 encoding, MSH first")]
    assert len(inbox.messages) == 1


@pytest.mark.parametrize(("payload", "code"), [(adt() + b"\x1cx", ("AE", "MSG1")), (adt("M\x1cx"), ("AE", ""))])
async def test_a_message_with_the_end_of_a_frame_inside_is_told_that(payload: bytes, code: tuple[str, str]) -> None:
    async with talking() as (peer, inbox, host):
        peer.send(framed(payload) * 2 + framed(adt("MSG2")))
        assert b"|the message contains the byte 1C, which ends an MLLP frame" in await peer.answer()
        assert await peer.codes(2) == [code, ("AA", "MSG2")]
    assert [text[:35] for _, text in host.refusals] == ["the message contains the byte 1C, w"] * 2
    assert len(inbox.messages) == 1


async def test_a_message_without_control_id_is_taken_and_answered_without() -> None:
    async with talking() as (peer, inbox, _):
        peer.send(framed(adt("")))
        assert await peer.codes(1) == [("AA", "")]
    assert inbox.messages[0].sender_id is None


async def test_delimiters_that_nobody_can_parse_are_answered_all_the_same() -> None:
    async with talking() as (peer, _, _):
        peer.send(framed(b"MSH|^^^^|||||||ADT^A01|1|P|2.5\r"))
        assert (await peer.answer()).endswith(b"\rMSA|AA|1\r")


# Charsets


@pytest.mark.parametrize(("name", "python"), [("UNICODE UTF-8", "utf-8"), ("8859/1", "iso8859-1")])
async def test_the_answer_speaks_the_charset_of_the_message(name: str, python: str) -> None:
    async with talking(
        lambda message: Refused(message.id, f"{message.tree['segments'][1][5][0][0][0]} ist falsch")
    ) as (
        peer,
        _,
        _,
    ):
        peer.send(framed(adt(modes=f"||||||{name}", more="||Müller").decode().encode(python)))
        ack = await peer.answer()
    assert ack.endswith(f"||||||{name}\rMSA|AE|MSG1|Müller ist falsch\r".encode(python))


async def test_a_message_in_an_unknown_charset_passes_as_bytes() -> None:
    body = adt(modes="||||||KLINGON", more="||") + b"\xfc\x81\r"
    async with talking() as (peer, inbox, _):
        peer.send(framed(body))
        assert await peer.codes(1) == [("AA", "MSG1")]
    assert inbox.messages[0].body == body
    with pytest.raises(MessageError, match="MSH-18 names the charset 'KLINGON', which is not known; set charset:"):
        _ = inbox.messages[0].tree


async def test_the_charset_of_the_settings_wins_over_a_false_one() -> None:
    async with talking(charset="8859/1") as (peer, inbox, _):
        peer.send(framed(adt(modes="||||||UNICODE UTF-8", more="||") + b"M\xfcller\r"))
        await peer.answer()
    tree: Any = inbox.messages[0].tree
    assert tree["segments"][2] == ["Müller"]
    assert inbox.messages[0].content_type == "application/hl7-v2; charset=iso8859-1"


# Connections


async def test_a_source_can_connect_and_read() -> None:
    met: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda *streams: met.set_result(Peer(*streams)), "127.0.0.1", 0)
    host = FakeHost()
    inbox = Inbox(host)
    async with server, running(Source(connect=Address(*server.sockets[0].getsockname())), inbox, host) as task:
        peer = await met
        peer.send(framed(adt()))
        assert await peer.codes(1) == [("AA", "MSG1")]
        await peer.close()
        with pytest.raises(PeerError, match=r"mllp 127\.0\.0\.1:\d+: the peer closed the connection"):
            await task


async def test_tls_asks_for_the_partners_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, client = authority.issue("server"), authority.issue("client", subject="partner")
    tls = ServerTls(certificate=server.certificate, private_key=server.private_key, client_ca=authority.ca)
    context = ssl.create_default_context(cafile=str(authority.ca))
    context.load_cert_chain(client.certificate, client.private_key)
    host = FakeHost()
    inbox = Inbox(host)
    at = free()
    async with running(Source(listen=ListenAt(at, tls)), inbox, host):
        async with calling(at, ssl=context, server_hostname="127.0.0.1") as peer:
            peer.send(framed(adt()))
            assert await peer.codes(1) == [("AA", "MSG1")]
        assert inbox.messages[0].transport["certificate_subject"] == "commonName=partner"


async def test_a_stopped_source_lets_its_address_go() -> None:
    host = FakeHost()
    at = free()
    async with running(Source(listen=ListenAt(at)), Inbox(host), host), calling(at) as peer:
        await until(lambda: peer)
    async with running(Source(listen=ListenAt(at)), Inbox(host), host):
        pass
    assert await peer.rest() == b""


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "expected either `listen` .* or `connect`"),
        ({"listen": "127.0.0.1:1", "connect": "127.0.0.1:1"}, "expected either `listen` .* or `connect`"),
        ({"listen": "127.0.0.1:1", "tls": {}}, "write the TLS of a server under listeners: 127.0.0.1:1"),
        ({"listen": "127.0.0.1:1", "charset": "x"}, 'expected a charset such as 8859/1, .* got "x"'),
        ({"listen": "127.0.0.1:1", "codes": {"refused": "AA"}}, "codes.refused"),
    ],
)
def test_settings_that_fit_nothing_are_errors(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        Source.model_validate(settings)


def test_the_source_is_one() -> None:
    source: SourcePort = Source(listen=ListenAt(Address("127.0.0.1", 0)))
    assert isinstance(source, SourcePort)
    assert source.answers
