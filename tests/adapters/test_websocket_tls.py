"""WebSocket over TLS: as a server beside https, and as a client."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from adapters.websocket import Sink
from gateway import Limits, PeerError
from gateway.settings import ServerTls
from gateway.testing import FakeHost, arriving, opened, until
from tests.adapters.raw_http import peer, post
from tests.adapters.raw_websocket import close_code, ears, plain_server, server
from tests.certificates import Authority, Pair


def tls_of(pair: Pair, client_ca: Path | None = None) -> ServerTls:
    return ServerTls(certificate=pair.certificate, private_key=pair.private_key, client_ca=client_ca)


def trusting(authority: Authority, pair: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.ca))
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.private_key)
    return context


async def test_messages_come_over_tls_and_plain_http_stays_beside(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with ears(tls=tls_of(authority.issue("server")), confirm=True) as one:
        context = trusting(authority)
        async with one.client(ssl=context) as client, peer(one.address, tls=context) as link:
            await client.send('{"id": "1", "data": 1}')
            assert await client.recv() == '{"ack":"1"}'
            await client.send(b"x" * 1024**2)
            assert (await one.inbox.wait(2))[1].transport["scheme"] == "wss"
            assert (await link.exchange(post())).status == 404


async def test_a_client_that_shows_a_certificate_is_known(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    theirs = authority.issue("client", subject="shop-7")
    async with (
        ears(tls=tls_of(authority.issue("server"), authority.ca)) as one,
        one.client(ssl=trusting(authority, theirs)) as client,
    ):
        await client.send("{}")
        (message,) = await one.inbox.wait(1)
        assert message.transport["certificate_subject"] == "commonName=shop-7"


async def test_a_broken_frame_over_tls_is_told_why(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    limits = Limits.model_validate({"message": "1000B"})
    async with (
        ears(tls=tls_of(authority.issue("server")), limits=limits) as one,
        one.client(ssl=trusting(authority)) as client,
    ):
        await client.send(bytes(200_000))
        assert await close_code(client) == 1009
        await until(lambda: not one.listening.connections)


async def test_a_sink_trusts_only_the_authority_that_it_is_told(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other authority")
    pair = authority.issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.private_key)
    host = FakeHost()
    async with server(ssl=context) as one:
        sink = Sink.model_validate({"url": one.url, "tls": {"ca": authority.ca}})
        async with opened(sink, host) as send:
            await send(arriving(host, b"[1]"))
            await until(lambda: one.heard == ["[1]"])
        for settings in ({}, {"tls": {"ca": other.ca}}):
            with pytest.raises(PeerError, match="unknown authority"):
                async with opened(Sink.model_validate({"url": one.url, **settings}), host):
                    pass


async def test_tls_to_a_plain_server_is_a_sentence() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with plain_server(plain) as url:
        sink = Sink.model_validate({"url": url.replace("ws://", "wss://")})
        with pytest.raises(PeerError, match="does not speak TLS"):
            async with opened(sink, FakeHost()):
                pass
