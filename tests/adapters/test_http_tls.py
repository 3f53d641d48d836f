"""HTTP over TLS: as a server, as a client, with certificates of clients, and with renewed ones."""

from __future__ import annotations

import os
import shutil
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from adapters.http import Sink
from gateway import ConfigError, Limits, PeerError
from gateway.settings import ServerTls
from gateway.testing import FakeHost, arriving, opened, until
from tests.adapters.raw_http import Desk, desk, listener, peer, post
from tests.certificates import Authority, Pair


def server(pair: Pair, client_ca: Path | None = None) -> ServerTls:
    return ServerTls(certificate=pair.certificate, private_key=pair.private_key, client_ca=client_ca)


def trusting(authority: Authority, pair: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.ca))
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.private_key)
    return context


async def sent(one: Desk, **settings: Any) -> int:
    """The status that an http sink gets from this desk."""
    host = FakeHost()
    sink = Sink.model_validate({"url": f"https://127.0.0.1:{one.address.port}/orders", **settings})
    async with opened(sink, host) as send:
        reply = await send(arriving(host))
        assert reply is not None
        return int(reply.transport["status"])


async def test_requests_come_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with (
        desk(tls=server(authority.issue("server"))) as one,
        peer(one.address, tls=trusting(authority)) as client,
    ):
        for _ in range(3):
            assert (await client.exchange(post(b"x" * 100_000))).status == 202
        assert one.inbox.messages[0].transport["scheme"] == "https"
        assert (await client.exchange(b"nonsense\r\n\r\n")).status == 400
        assert await client.closed()


async def test_a_plain_request_on_a_tls_port_hears_nothing_of_us(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with desk(tls=server(authority.issue("server"))) as one:
        async with peer(one.address) as client:
            await client.send(post())
            assert not (await client.rest()).startswith(b"HTTP/")
        assert await sent(one, tls={"ca": authority.ca}) == 202


async def test_a_client_must_show_its_certificate_where_one_is_asked_for(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    theirs = authority.issue("client", subject="shop-7")
    async with desk(tls=server(authority.issue("server"), authority.ca)) as one:
        tls = {"ca": authority.ca, "certificate": theirs.certificate, "private_key": theirs.private_key}
        assert await sent(one, tls=tls) == 202
        assert one.inbox.messages[0].transport["certificate_subject"] == "commonName=shop-7"
        with pytest.raises(PeerError, match=r"^https://127\.0\.0\.1:\d+: "):
            await sent(one, tls={"ca": authority.ca})
        assert len(one.inbox.messages) == 1


async def test_a_renewed_certificate_is_shown_from_the_next_connection_on(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    old, new = authority.issue("old", subject="old"), authority.issue("new", subject="new")
    pair = Pair(tmp_path / "live.pem", tmp_path / "live.key")
    shutil.copy(old.certificate, pair.certificate)
    shutil.copy(old.private_key, pair.private_key)

    async def shown(one: Desk) -> str:
        async with peer(one.address, tls=trusting(authority)) as client:
            return str(client.writer.get_extra_info("peercert")["subject"][0][0][1])

    async with desk(tls=server(pair)) as one, peer(one.address, tls=trusting(authority)) as before:
        assert await shown(one) == "old"
        shutil.copy(new.certificate, pair.certificate)
        shutil.copy(new.private_key, pair.private_key)
        assert await shown(one) == "new"
        # Who is connected already stays so.
        assert (await before.exchange(post())).status == 202


async def test_a_handshake_that_does_not_come_is_cut(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    limits = Limits.model_validate({"handshake": "200ms"})
    async with (
        listener(tls=server(authority.issue("server")), limits=limits) as listening,
        peer(listening.address) as client,
    ):
        assert await client.closed()


async def test_an_authority_that_was_renewed_is_read_when_the_sink_is_opened_anew(tmp_path: Path) -> None:
    old, new = Authority(tmp_path, "old authority"), Authority(tmp_path, "new authority")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(old.ca.read_bytes())
    host = FakeHost()
    async with desk(tls=server(new.issue("server"))) as one:
        sink = Sink.model_validate({"url": f"https://{one.address}/orders", "tls": {"ca": trusted}})
        async with opened(sink, host) as send:
            with pytest.raises(PeerError) as error:
                await send(arriving(host))
            assert not error.value.reconnect
            trusted.write_bytes(new.ca.read_bytes())
            os.utime(trusted, (1, 1))
            with pytest.raises(PeerError) as error:
                await send(arriving(host))
            assert error.value.reconnect
        async with opened(sink, host) as send:
            assert await send(arriving(host)) is not None


async def test_a_certificate_of_an_unknown_authority_is_a_sentence(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    other = Authority(tmp_path, "other authority")
    async with desk(tls=server(authority.issue("server"))) as one:
        with pytest.raises(PeerError, match=r"unknown authority; name its authority in tls\.ca"):
            await sent(one)
        with pytest.raises(PeerError, match="unknown authority"):
            await sent(one, tls={"ca": other.ca})


async def test_an_expired_certificate_is_a_sentence(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with desk(tls=server(authority.issue("server", expires_in=timedelta(days=-1)))) as one:
        with pytest.raises(PeerError, match="its certificate has expired"):
            await sent(one, tls={"ca": authority.ca})


async def test_a_certificate_of_another_host_is_a_sentence(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with desk(tls=server(authority.issue("server", host="gateway.example"))) as one:
        with pytest.raises(PeerError, match="its certificate is for another host"):
            await sent(one, tls={"ca": authority.ca})


async def test_tls_to_a_plain_port_is_a_sentence() -> None:
    async with desk() as one:
        with pytest.raises(PeerError, match="it does not speak TLS; write http:// in the url"):
            await sent(one)


async def test_all_authorities_of_a_file_are_trusted(tmp_path: Path) -> None:
    one_authority, other = Authority(tmp_path), Authority(tmp_path, "other authority")
    both = tmp_path / "both.pem"
    both.write_bytes(other.ca.read_bytes() + one_authority.ca.read_bytes())
    for authority in (one_authority, other):
        async with desk(tls=server(authority.issue("server"))) as one:
            assert await sent(one, tls={"ca": both}) == 202


async def test_only_the_authorities_that_are_named_are_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, named = Authority(tmp_path, "of the system"), Authority(tmp_path, "named")
    monkeypatch.setenv("SSL_CERT_FILE", str(system.ca))
    async with desk(tls=server(system.issue("server"))) as one:
        assert await sent(one) == 202
        with pytest.raises(PeerError, match="unknown authority"):
            await sent(one, tls={"ca": named.ca})


async def test_a_key_of_another_certificate_is_a_mistake_of_the_operator(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("one"), authority.issue("other")
    tls = {"certificate": one.certificate, "private_key": other.private_key}
    sink = Sink.model_validate({"url": "https://127.0.0.1:9/", "tls": tls})
    with pytest.raises(ConfigError, match="is not the private key of"):
        async with opened(sink, FakeHost()):
            pass


async def test_a_closing_tls_listener_lets_nobody_hang(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with (
        listener(tls=server(authority.issue("server"))) as listening,
        peer(listening.address, tls=trusting(authority)) as client,
    ):
        assert (await client.exchange(post())).status == 404
        await listening.close()
        assert await client.closed()
        await until(lambda: not listening.connections)
