"""TLS of tcp, both ways: who is trusted, who is asked for a certificate, and what is said when it fails."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvloop

from adapters import _handshakes, tcp
from gateway import Accepted, Address, ClientTls, ListenAt, PeerError, ServerTls
from gateway.testing import FakeHost, Inbox, arriving, opened, running, settle, until
from tests.adapters.test_tcp import Held, connected
from tests.adapters.test_tcp_sink import ending, server, silence
from tests.certificates import Authority, Pair
from tests.ports import free_port


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def good(authority: Authority) -> Pair:
    return authority.issue("good")


@asynccontextmanager
async def secured(pair: Pair, *, client_ca: Path | None = None) -> AsyncIterator[tuple[int, Inbox]]:
    """An answering source with this certificate. Gives its port and what it takes."""
    port, host = free_port(), FakeHost()
    tls = ServerTls(certificate=pair.certificate, private_key=pair.private_key, client_ca=client_ca)
    source = tcp.Source.model_validate({"listen": ListenAt(Address("127.0.0.1", port), tls), "answer": {}})
    inbox = Inbox(host)
    async with running(source, inbox, host):
        yield port, inbox


def sink(port: int, **tls: Any) -> tcp.Sink:
    return tcp.Sink.model_validate({"connect": f"127.0.0.1:{port}", "reply": {"accepted": "OK*"}, "tls": tls})


async def failure(sink: tcp.Sink) -> str:
    with pytest.raises(PeerError) as caught:
        async with opened(sink, FakeHost()):
            pass
    return str(caught.value).partition(": ")[2]


async def test_messages_cross_and_a_large_one_too(authority: Authority, good: Pair) -> None:
    host = FakeHost()
    async with secured(good) as (port, inbox), opened(sink(port, ca=authority.ca), host) as send:
        for body in (b"small", b"x" * 2**20):
            assert await send(arriving(host, body)) is not None
        assert [len(message.body) for message in inbox.messages] == [5, 2**20]
        assert "certificate_subject" not in inbox.messages[0].transport


async def test_a_client_that_must_show_a_certificate_is_known_by_it(authority: Authority, good: Pair) -> None:
    host, mine = FakeHost(), authority.issue("mine", subject="partner-7")
    async with secured(good, client_ca=authority.ca) as (port, inbox):
        shown = {"certificate": mine.certificate, "private_key": mine.private_key}
        async with opened(sink(port, ca=authority.ca, **shown), host) as send:
            assert await send(arriving(host, b"hello")) is not None
        assert inbox.messages[0].transport["certificate_subject"] == "commonName=partner-7"


async def test_a_client_without_the_certificate_it_must_show_hears_so(authority: Authority, good: Pair) -> None:
    host = FakeHost()
    async with secured(good, client_ca=authority.ca) as (port, inbox):
        error = await ending(sink(port, ca=authority.ca), host)
        assert "does it ask for a client certificate?" in str(error)
        assert inbox.messages == []


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        pytest.param("nothing", "the peer showed no certificate, which client_ca asks for", id="no certificate"),
        pytest.param("old", "the peer's certificate has expired", id="expired"),
        pytest.param("strange", "certificate); name its authority in client_ca", id="of a stranger"),
        pytest.param("plain", "the peer does not speak TLS", id="no TLS"),
    ],
)
async def test_why_a_client_was_not_let_in_is_in_the_log(
    authority: Authority,
    good: Pair,
    tmp_path: Path,
    shown: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_handshakes, "_TELL_S", 0.01)
    pairs = {
        "old": authority.issue("old-client", expires_in=timedelta(days=-1)),
        "strange": Authority(tmp_path, "stranger").issue("strange"),
    }
    context = ssl.create_default_context(cafile=str(authority.ca))
    if shown in pairs:
        context.load_cert_chain(pairs[shown].certificate, pairs[shown].private_key)
    secure: dict[str, Any] = {"ssl": context, "server_hostname": "127.0.0.1"}
    async with secured(good, client_ca=authority.ca) as (port, inbox):
        async with connected(port, **({} if shown == "plain" else secure)) as client:
            client.say(b"hello\n")
            with suppress(ssl.SSLError):
                await client.rest()
        await until(lambda: "handshakes failed" in caplog.text)
        assert inbox.messages == []
    (told,) = [record for record in caplog.records if record.message == "handshakes failed"]
    assert reason in told.reason  # type: ignore[attr-defined]
    assert (told.count, told.peer) == (1, "127.0.0.1")  # type: ignore[attr-defined]
    assert told.listener == f"127.0.0.1:{port}"  # type: ignore[attr-defined]


async def test_each_reason_of_a_second_is_told(
    authority: Authority, good: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_handshakes, "_TELL_S", 0.5)
    context = ssl.create_default_context(cafile=str(authority.ca))

    def told() -> Counter[str]:
        counts: Counter[str] = Counter()
        for record in caplog.records:
            if record.message == "handshakes failed":
                counts[record.reason] += record.count  # type: ignore[attr-defined]
        return counts

    async with secured(good, client_ca=authority.ca) as (port, _):
        for secure in ({"ssl": context, "server_hostname": "127.0.0.1"}, {}, {}):
            async with connected(port, **secure) as client:
                client.say(b"hello\n")
                with suppress(ssl.SSLError):
                    await client.rest()
        await until(lambda: told().total() == 3)
    assert told() == {"the peer showed no certificate, which client_ca asks for": 1, "the peer does not speak TLS": 2}


async def test_a_peer_that_says_that_it_asks_for_a_certificate_is_quoted(authority: Authority, good: Pair) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(good.certificate, good.private_key)
    context.load_verify_locations(authority.ca)
    context.verify_mode = ssl.CERT_REQUIRED

    def serve(listening: socket.socket) -> None:
        link, _ = listening.accept()
        with link, suppress(ssl.SSLError):
            context.wrap_socket(link, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(asyncio.to_thread(serve, listening))
        error = await ending(sink(listening.getsockname()[1], ca=authority.ca), FakeHost())
        await serving
    assert "the peer asks for a client certificate; set tls.certificate and tls.private_key" in str(error)


async def test_a_certificate_of_an_unknown_authority_is_refused(good: Pair) -> None:
    async with secured(good) as (port, _):
        assert "unknown authority" in (said := await failure(sink(port)))
        assert said.endswith("name its authority in tls.ca")


async def test_a_certificate_for_another_host_is_refused(authority: Authority) -> None:
    async with secured(authority.issue("other", host="other.example")) as (port, _):
        said = await failure(sink(port, ca=authority.ca))
        assert said.startswith("the peer's certificate is for another host")
        assert said.endswith("set tls.server_name if that is right")


async def test_the_name_that_the_certificate_must_carry_may_be_told(authority: Authority) -> None:
    host = FakeHost()
    async with (
        secured(authority.issue("other", host="other.example")) as (port, _),
        opened(sink(port, ca=authority.ca, server_name="other.example"), host) as send,
    ):
        assert await send(arriving(host, b"hello")) is not None


async def test_an_expired_certificate_is_refused(authority: Authority) -> None:
    async with secured(authority.issue("old", expires_in=timedelta(days=-1))) as (port, _):
        assert await failure(sink(port, ca=authority.ca)) == "the peer's certificate has expired; it needs a new one"


async def test_a_peer_that_speaks_no_tls_is_a_sentence(authority: Authority) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello, this is no TLS\r\n")
        await silence(reader, writer)

    async with server(plain) as port:
        said = await failure(sink(port, ca=authority.ca))
        assert said == "the peer does not speak TLS; remove tls, or check the port"


async def test_clients_that_speak_no_tls_disturb_nobody(authority: Authority, good: Pair) -> None:
    host = FakeHost()
    async with secured(good) as (port, inbox):
        async with connected(port) as plain:
            plain.say(b"GET / HTTP/1.1\r\n\r\n")
            await plain.rest()
        async with opened(sink(port, ca=authority.ca), host) as send:
            assert await send(arriving(host, b"hello")) is not None
        assert [message.body for message in inbox.messages] == [b"hello"]


async def test_a_source_that_connects_checks_the_server_and_reads_from_it(authority: Authority, good: Pair) -> None:
    host = FakeHost()
    inbox = Inbox(host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(good.certificate, good.private_key)

    async def talks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"one\ntwo\n")
        await silence(reader, writer)

    async with server(talks, ssl=context) as port:
        tls = ClientTls(ca=authority.ca)
        source = tcp.Source.model_validate({"connect": f"127.0.0.1:{port}", "tls": tls})
        async with running(source, inbox, host):
            assert [message.body for message in await inbox.wait(2)] == [b"one", b"two"]
        untrusting = tcp.Source.model_validate({"connect": f"127.0.0.1:{port}", "tls": ClientTls()})
        with pytest.raises(PeerError, match="unknown authority"):
            await untrusting.run(host, inbox, lambda: None)


def test_a_burst_is_taken_whole_from_who_has_reset_behind_it_and_its_last_half_line_counted(
    authority: Authority, good: Pair
) -> None:
    host, port, held = FakeHost(), free_port(), Held()
    inbox = Inbox(host, held)
    tls = ServerTls(certificate=good.certificate, private_key=good.private_key)
    source = tcp.Source.model_validate({"listen": ListenAt(Address("127.0.0.1", port), tls)})
    context = ssl.create_default_context(cafile=str(authority.ca))

    async def work() -> None:
        async with running(source, inbox, host):
            async with connected(port, ssl=context, server_hostname="127.0.0.1") as client:
                client.say(b"".join(b"%d\n" % number for number in range(300)) + b"half")
                await inbox.wait(64)
                client.writer.transport.abort()
            await settle(200)
            for number in range(300):
                await inbox.wait(number + 1)
                held.outcomes[number].set_result(Accepted("m"))
            await until(lambda: host.drops == {"cut": 1})

    uvloop.run(work())  # it tells of a reset also while nothing is read


async def test_a_certificate_can_be_renewed_while_connections_stay(tmp_path: Path) -> None:
    host = FakeHost()
    old_authority, new_authority = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    pair = old_authority.issue("leaf")
    async with secured(pair) as (port, _), opened(sink(port, ca=old_authority.ca), host) as before:
        assert await before(arriving(host, b"1")) is not None
        new_authority.issue("leaf")
        async with opened(sink(port, ca=new_authority.ca), host) as after:
            assert await after(arriving(host, b"2")) is not None
        assert await before(arriving(host, b"3")) is not None
