"""Certificates that are expired, of another host, of strangers, renewed or without their key, for every protocol."""

from __future__ import annotations

import asyncio
import errno
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvloop

from adapters import amqp, http, mllp, mqtt, mqtt_broker, tcp, websocket
from gateway import Address, ConfigError, Limits, ListenAt, PeerError, ServerTls, Sink, Source, Template, TopicTemplate
from gateway.testing import FakeHost, Inbox, arriving, opened, running, until
from tests.certificates import Authority, Pair
from tests.ports import free_port

CLIENTS = ["http", "tcp", "mllp", "websocket", "mqtt", "amqp"]
SERVERS = ["http", "tcp", "mllp", "websocket", "mqtt_broker"]


def client(kind: str, port: int, tls: dict[str, Path]) -> Sink:
    """A sink of this kind that connects to a port of 127.0.0.1."""
    at = f"127.0.0.1:{port}"
    match kind:
        case "http":
            return http.Sink.model_validate({"url": f"https://{at}/", "tls": tls})
        case "tcp":
            return tcp.Sink.model_validate({"connect": at, "tls": tls})
        case "mllp":
            return mllp.Sink.model_validate({"connect": at, "tls": tls})
        case "websocket":
            return websocket.Sink.model_validate({"url": f"wss://{at}/", "tls": tls})
        case "mqtt":
            broker = mqtt.Connection.model_validate({"url": f"mqtts://{at}", "client_id": "g", "tls": tls})
            return mqtt.Sink(connection=broker, topic=TopicTemplate("t"))
        case _:
            rabbit = amqp.Connection.model_validate({"url": f"amqps://{at}", "tls": tls})
            return amqp.Sink(connection=rabbit, routing_key=Template("q"))


async def reached(kind: str, port: int, **tls: Path) -> None:
    """Connects; http does when there is something to send."""
    host = FakeHost()
    async with opened(client(kind, port, tls), host) as send:
        if kind == "http":
            await send(arriving(host))


class Peer:
    """A TLS server that shakes hands, remembers who came, and hangs up."""

    def __init__(self, pair: Pair, client_ca: Path | None = None) -> None:
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(pair.certificate, pair.private_key)
        if client_ca is not None:
            self._context.load_verify_locations(client_ca)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self.subjects: list[str] = []

    async def _shaken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown = writer.get_extra_info("peercert") or {"subject": ((("", "nobody"),),)}
        self.subjects.append(shown["subject"][0][0][1])
        writer.close()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        async with await asyncio.start_server(self._shaken, "127.0.0.1", 0, ssl=self._context) as server:
            yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize(
    ("issued", "text"),
    [
        ({"expires_in": timedelta(days=-1)}, "certificate has expired"),
        ({"host": "gateway.example"}, "is for another host|is not valid for '127.0.0.1'"),
    ],
    ids=["expired", "another host"],
)
async def test_a_certificate_that_is_not_good_is_a_sentence(
    tmp_path: Path, kind: str, issued: dict[str, Any], text: str
) -> None:
    authority = Authority(tmp_path)
    peer = Peer(authority.issue("server", **issued))
    async with peer.listening() as port:
        with pytest.raises(PeerError, match=text):
            await reached(kind, port, ca=authority.ca)
    assert peer.subjects == []


@pytest.mark.parametrize("kind", CLIENTS)
async def test_a_certificate_of_a_stranger_is_a_sentence(tmp_path: Path, kind: str) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    async with Peer(stranger.issue("server")).listening() as port:
        with pytest.raises(PeerError, match=r"unknown authority|certificate was refused \(.*tls\.ca") as error:
            await reached(kind, port, ca=authority.ca)
    assert "tls.ca" in str(error.value)


@pytest.mark.parametrize("kind", CLIENTS)
async def test_a_key_that_does_not_fit_is_a_mistake_of_the_operator(tmp_path: Path, kind: str) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("one"), authority.issue("other")
    with pytest.raises(ConfigError, match="is not the private key of"):
        await reached(kind, 9, certificate=one.certificate, private_key=other.private_key)


@pytest.mark.parametrize("kind", CLIENTS)
async def test_a_renewed_certificate_of_ours_is_shown_when_we_connect_again(tmp_path: Path, kind: str) -> None:
    authority = Authority(tmp_path)
    pair = Pair(tmp_path / "live.pem", tmp_path / "live.key")
    peer = Peer(authority.issue("server"), authority.ca)
    async with peer.listening() as port:
        for subject in ("old", "new"):
            issued = authority.issue(subject, subject=subject)
            shutil.copy(issued.certificate, pair.certificate)
            shutil.copy(issued.private_key, pair.private_key)
            with suppress(PeerError):  # it hangs up
                await reached(kind, port, ca=authority.ca, certificate=pair.certificate, private_key=pair.private_key)
            while peer.subjects[-1:] != [subject]:
                await asyncio.sleep(0)
    assert set(peer.subjects) == {"old", "new"}


def server(kind: str, at: ListenAt) -> Source:
    match kind:
        case "http":
            return http.Source(listen=at)
        case "tcp":
            return tcp.Source(listen=at, answer=tcp.Answer())
        case "mllp":
            return mllp.Source(listen=at)
        case "websocket":
            return websocket.Source(listen=at, path="/live")
        case _:
            return mqtt_broker.Source(connection=mqtt_broker.Connection(listen=at))


@asynccontextmanager
async def serving(kind: str, pair: Pair, **limits: Any) -> AsyncIterator[int]:
    """A source of this kind that listens with this certificate; gives its port."""
    host = FakeHost(limits=Limits.model_validate(limits))
    port = free_port()
    tls = ServerTls(certificate=pair.certificate, private_key=pair.private_key)
    source = server(kind, ListenAt(Address("127.0.0.1", port), tls))
    async with running(source, Inbox(host), host):
        yield port


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def connected(port: int, trust: ssl.SSLContext | None) -> AbstractAsyncContextManager[Streams]:
    @asynccontextmanager
    async def made() -> AsyncIterator[Streams]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    return made()


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_renewed_certificate_is_shown_to_who_comes_and_cuts_nobody(tmp_path: Path, kind: str) -> None:
    authority = Authority(tmp_path)
    trust = ssl.create_default_context(cafile=str(authority.ca))
    pair = Pair(tmp_path / "live.pem", tmp_path / "live.key")

    def renew(subject: str) -> None:
        issued = authority.issue(subject, subject=subject)
        shutil.copy(issued.certificate, pair.certificate)
        shutil.copy(issued.private_key, pair.private_key)

    async def shown(port: int) -> str:
        async with connected(port, trust) as (_, writer):
            return str(writer.get_extra_info("peercert")["subject"][0][0][1])

    renew("old")
    async with serving(kind, pair) as port, connected(port, trust) as (reader, _):
        assert await shown(port) == "old"
        renew("new")
        assert await shown(port) == "new"
        with pytest.raises(TimeoutError):  # neither closed nor told anything
            await asyncio.wait_for(reader.read(1), 0.1)


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_handshake_that_does_not_come_is_cut(tmp_path: Path, kind: str) -> None:
    pair = Authority(tmp_path).issue("server")
    async with serving(kind, pair, handshake="200ms") as port, connected(port, None) as (reader, _):
        async with asyncio.timeout(5):
            with suppress(ConnectionResetError):
                assert await reader.read() == b""


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_key_that_does_not_fit_keeps_a_listener_from_starting(tmp_path: Path, kind: str) -> None:
    authority = Authority(tmp_path)
    wrong = Pair(authority.issue("one").certificate, authority.issue("other").private_key)
    with pytest.raises(ConfigError, match="is not the private key of"):
        async with serving(kind, wrong):
            pass


LIMITS = [
    {"connections": 2},
    {"connections_per_address": 2, "trusted": []},
    {"new_connections": "2/s", "trusted": []},
]


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("limits", LIMITS, ids=["in all", "of one address", "a second"])
async def test_who_never_shakes_hands_counts_as_a_connection(
    tmp_path: Path, kind: str, limits: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    pair = Authority(tmp_path).issue("server")
    async with serving(kind, pair, **limits) as port, AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(connected(port, None)) for _ in range(3)]
        async with asyncio.timeout(5):
            with suppress(ConnectionResetError):
                assert await streams[2][0].read() == b""
        for reader, _ in streams[:2]:
            with pytest.raises(TimeoutError):  # still there
                await asyncio.wait_for(reader.read(1), 0.05)
        await until(lambda: "connections refused" in caplog.messages)


@pytest.mark.parametrize("kind", SERVERS)
async def test_handshakes_that_are_over_make_room_for_others(tmp_path: Path, kind: str) -> None:
    authority = Authority(tmp_path)
    trust = ssl.create_default_context(cafile=str(authority.ca))
    async with serving(kind, authority.issue("server"), connections=1) as port:
        for _ in range(5):
            async with connected(port, trust):
                pass
        async with connected(port, None) as (reader, _):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.05)


SPOKEN = {
    "http": (b"GET / HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n", b"HTTP/1.1 405 "),
    "tcp": (b"{}\n", b"OK "),
    "mllp": (b"\x0bMSH|^~\\&|A|B|C|D|2024||ADT^A01|M1|P|2.5\r\x1c\r", b"\x0bMSH|"),
    "mqtt_broker": (b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01c", b"\x20\x02\x00\x00"),
}


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("kind", SPOKEN)
def test_what_comes_right_behind_a_handshake_is_heard(tmp_path: Path, kind: str, run: Callable[..., None]) -> None:
    authority = Authority(tmp_path)
    said, answer = SPOKEN[kind]

    def ask(port: int) -> bytes:
        # A client in one breath: its request is in the socket before the server has seen the end of the handshake.
        trust = ssl.create_default_context(cafile=str(authority.ca))
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            trust.wrap_socket(plain, server_hostname="127.0.0.1") as client,
        ):
            client.settimeout(5)
            client.sendall(said)
            return client.recv(len(answer))

    async def work() -> None:
        async with serving(kind, authority.issue("server")) as port:
            assert await asyncio.gather(*(asyncio.to_thread(ask, port) for _ in range(8))) == [answer] * 8

    run(work())


async def test_a_listener_without_descriptors_goes_on_when_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    trust = ssl.create_default_context(cafile=str(authority.ca))
    accept, failing = socket.socket.accept, [True, True]

    def accepts(listening: socket.socket) -> Any:
        if failing:
            failing.pop()
            raise OSError(errno.EMFILE, "too many open files")
        return accept(listening)

    monkeypatch.setattr("adapters._handshakes._NO_DESCRIPTOR_S", 0.05)
    monkeypatch.setattr(socket.socket, "accept", accepts)
    async with serving("tcp", authority.issue("server")) as port, connected(port, trust) as (reader, writer):
        writer.write(b"{}\n")
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"OK ")
    assert caplog.messages.count("no connection taken") == 2
