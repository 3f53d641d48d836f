"""The one factory of TLS contexts: who is trusted, what is refused, and certificates that are renewed."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from gateway import ClientTls, ConfigError, ServerTls, client_context, server_context
from gateway.tls import out_of_date, validity
from tests.certificates import Authority, Pair


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def served(pair: Pair, **more: Any) -> ServerTls:
    return ServerTls(certificate=pair.certificate, private_key=pair.private_key, **more)


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[int]:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(b"hello")
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def greeted(port: int, context: ssl.SSLContext, name: str = "127.0.0.1") -> dict[str, Any]:
    """The certificate that the server showed, once it has said hello."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    try:
        assert await reader.read() == b"hello"
        found: dict[str, Any] = writer.get_extra_info("peercert")
        return found
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def subject(certificate: dict[str, Any]) -> str:
    return str(dict(part[0] for part in certificate["subject"])["commonName"])


def touch_later(*files: Path) -> None:
    for file in files:
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))


async def test_a_client_that_trusts_the_authority_gets_in(authority: Authority) -> None:
    async with serving(server_context(served(authority.issue("leaf", subject="gw")))) as port:
        assert subject(await greeted(port, client_context(ClientTls(ca=authority.ca)))) == "gw"


async def test_the_authorities_of_the_system_are_the_default(authority: Authority) -> None:
    async with serving(server_context(served(authority.issue("leaf")))) as port:
        for tls in (None, ClientTls()):
            with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get local issuer|self.signed"):
                await greeted(port, client_context(tls))


async def test_a_certificate_for_another_host_is_refused(authority: Authority) -> None:
    async with serving(server_context(served(authority.issue("leaf", host="127.0.0.2")))) as port:
        with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
            await greeted(port, client_context(ClientTls(ca=authority.ca)))


async def test_an_expired_certificate_is_refused(authority: Authority) -> None:
    async with serving(server_context(served(authority.issue("leaf", expires_in=timedelta(hours=-1))))) as port:
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            await greeted(port, client_context(ClientTls(ca=authority.ca)))


async def test_older_versions_than_1_2_are_not_spoken(authority: Authority) -> None:
    server = server_context(served(authority.issue("leaf")))
    client = client_context(ClientTls(ca=authority.ca))
    assert server.minimum_version == client.minimum_version == ssl.TLSVersion.TLSv1_2
    assert client.check_hostname
    assert client.verify_mode is ssl.CERT_REQUIRED


async def test_a_listener_with_client_ca_lets_nobody_in_without_a_certificate_of_it(
    tmp_path: Path, authority: Authority
) -> None:
    tls = served(authority.issue("leaf"), client_ca=authority.ca)
    ours = authority.issue("ours", subject="partner")
    theirs = Authority(tmp_path, "another").issue("theirs")

    async with serving(server_context(tls)) as port:
        good = ClientTls(ca=authority.ca, certificate=ours.certificate, private_key=ours.private_key)
        await greeted(port, client_context(good))
        bad = ClientTls(ca=authority.ca, certificate=theirs.certificate, private_key=theirs.private_key)
        for settings in (ClientTls(ca=authority.ca), bad):
            with pytest.raises((OSError, AssertionError)):
                await greeted(port, client_context(settings))


async def test_a_certificate_and_its_key_may_stand_in_one_file(tmp_path: Path, authority: Authority) -> None:
    ours = authority.issue("ours")
    both = tmp_path / "both.pem"
    both.write_bytes(ours.certificate.read_bytes() + ours.private_key.read_bytes())
    tls = served(authority.issue("leaf"), client_ca=authority.ca)
    async with serving(server_context(tls)) as port:
        await greeted(port, client_context(ClientTls(ca=authority.ca, certificate=both)))


async def test_protocols_are_offered_and_chosen(authority: Authority) -> None:
    server = server_context(served(authority.issue("leaf")), alpn=("mqtt",))
    async with serving(server) as port:
        client = client_context(ClientTls(ca=authority.ca), alpn=("http/1.1", "mqtt"))
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        await reader.read()
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "mqtt"
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def test_a_renewed_certificate_is_used_from_the_next_handshake_on(authority: Authority) -> None:
    leaf = authority.issue("leaf", subject="old")
    client = client_context(ClientTls(ca=authority.ca))
    async with serving(server_context(served(leaf))) as port:
        assert subject(await greeted(port, client)) == "old"
        authority.issue("leaf", subject="new")
        touch_later(leaf.certificate, leaf.private_key)
        assert subject(await greeted(port, client)) == "new"


async def test_a_renewed_certificate_that_can_not_be_used_is_reported_and_the_old_one_stays(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    leaf = authority.issue("leaf", subject="old")
    client = client_context(ClientTls(ca=authority.ca))
    async with serving(server_context(served(leaf))) as port:
        good = leaf.certificate.read_bytes()
        leaf.certificate.write_text("half a certif")
        touch_later(leaf.certificate)
        for _ in range(3):
            assert subject(await greeted(port, client)) == "old"
        assert [record.message for record in caplog.records] == ["certificate not renewed"]
        leaf.certificate.unlink()
        assert subject(await greeted(port, client)) == "old"
        leaf.certificate.write_bytes(good)
        assert subject(await greeted(port, client)) == "old"


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_key_of_another_certificate_is_a_sentence(authority: Authority, side: str) -> None:
    one, other = authority.issue("one"), authority.issue("other")
    text = re.escape(
        f"tls: {other.private_key} is not the private key of {one.certificate}; name the key that it was issued for"
    )
    pair = {"certificate": one.certificate, "private_key": other.private_key}
    with pytest.raises(ConfigError, match=f"^{text}$"):
        server_context(ServerTls(**pair)) if side == "server" else client_context(ClientTls(**pair))


def test_what_is_no_pem_is_a_sentence(tmp_path: Path, authority: Authority) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    leaf = authority.issue("leaf")
    with pytest.raises(ConfigError, match="are not a PEM certificate chain and its PEM key"):
        server_context(ServerTls(certificate=nonsense, private_key=leaf.private_key))
    with pytest.raises(ConfigError, match=f"^{re.escape(f'tls: {nonsense} holds no PEM certificates (')}"):
        client_context(ClientTls(ca=nonsense))
    with pytest.raises(ConfigError, match=f"^{re.escape(f'tls: {nonsense} holds no PEM certificates (')}"):
        server_context(served(leaf, client_ca=nonsense))


def test_a_file_that_is_gone_is_a_sentence(authority: Authority) -> None:
    leaf = authority.issue("leaf")
    tls = served(leaf)
    trusting = ClientTls(ca=authority.ca)
    leaf.private_key.unlink()
    authority.ca.unlink()
    with pytest.raises(ConfigError, match=r"^tls: .* can't be read: No such file or directory$"):
        server_context(tls)
    with pytest.raises(ConfigError, match=f"^{re.escape(f'tls: {authority.ca} can')}'t be read: No such file"):
        client_context(trusting)


@pytest.mark.parametrize("year", [2049, 2050, 2999])
def test_the_time_of_a_certificate_is_read_as_its_library_reads_it(authority: Authority, year: int) -> None:
    leaf = authority.issue("leaf", expires_in=datetime(year, 2, 3, 4, 5, 6, tzinfo=UTC) - datetime.now(UTC))
    pem = leaf.certificate.read_text()
    begin, end = validity(ssl.PEM_cert_to_DER_cert(pem))
    known = x509.load_pem_x509_certificate(pem.encode())
    assert (begin, end) == (known.not_valid_before_utc, known.not_valid_after_utc)


def test_a_certificate_of_tomorrow_is_told_and_one_that_is_none_is_not(authority: Authority, tmp_path: Path) -> None:
    leaf = authority.issue("leaf")
    told = out_of_date(leaf.certificate, datetime.now(UTC) - timedelta(days=30))
    assert told is not None
    assert "is the clock right?" in told
    assert out_of_date(leaf.certificate, datetime.now(UTC)) is None
    (tmp_path / "cut.pem").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    assert out_of_date(tmp_path / "cut.pem", datetime.now(UTC)) is None
