"""The one factory of TLS contexts: at least 1.2, host names checked, certificates renewed without a restart."""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from gateway.errors import ConfigError
from gateway.settings import ClientTls, ServerTls

log = logging.getLogger("gateway.tls")

_PEM = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def server_context(tls: ServerTls, *, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
    """A context for a listener. A renewed certificate or key file is used from the next handshake on.

    A renewed pair that can't be used is reported and the one in use stays.

    Raises:
        ConfigError: a file is not PEM, or the key is not that of the certificate.
    """
    current = _server_context(tls, alpn)
    seen = _modified(tls)

    def renewed(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        nonlocal current, seen
        now = _modified(tls)
        if now != seen:
            seen = now
            try:
                current = _server_context(tls, alpn)
                log.info("certificate renewed", extra={"certificate": str(tls.certificate)})
            except (ConfigError, OSError) as error:
                log.warning("certificate not renewed", extra={"reason": str(error)})
        connection.context = current

    front = _server_context(tls, alpn)
    # Called at each handshake, with or without a server name: RFC 6066 section 3.
    front.sni_callback = renewed
    return front


def client_context(tls: ClientTls | None, *, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
    """A context for a client: the system's authorities, or those of `ca`. Made anew at each open, so files may change.

    Raises:
        ConfigError: a file is not PEM, or the key is not that of the certificate.
    """
    settings = tls or ClientTls()
    with _readable(settings.ca):
        context = ssl.create_default_context(cafile=str(settings.ca) if settings.ca else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.certificate is not None:
        _load_pair(context, settings.certificate, settings.private_key or settings.certificate)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def out_of_date(certificate: Path, now: datetime) -> str | None:
    """Why peers refuse the first certificate of a PEM file today; None: it is within its time, or can't be read."""
    try:
        pem = _PEM.search(certificate.read_text("latin-1"))
        if pem is None:
            return None
        begin, end = validity(ssl.PEM_cert_to_DER_cert(pem[0]))
    except (OSError, ValueError, IndexError):
        return None
    if end < now:
        return f"it expired on {end:%Y-%m-%d}, so that peers refuse it; renew it"
    if now < begin:
        return f"it is valid from {begin:%Y-%m-%d}, so that peers refuse it until then; is the clock right?"
    return None


def validity(der: bytes) -> tuple[datetime, datetime]:
    """When a certificate begins and ends to be valid. RFC 5280 section 4.1.

    Raises:
        ValueError, IndexError: it is no such certificate.
    """
    _, at, _ = _element(der, 0)  # Certificate
    _, at, _ = _element(der, at)  # its TBSCertificate
    tag, _, end = _element(der, at)
    if tag == 0xA0:  # the version, which the first one leaves out
        at = end
    for _ in ("serial number", "signature", "issuer"):
        _, _, at = _element(der, at)
    _, at, _ = _element(der, at)
    times = []
    for _ in ("not before", "not after"):
        tag, start, at = _element(der, at)
        text = der[start:at].decode("ascii")
        if tag == 0x17:  # UTCTime: 00 to 49 are of this century
            text = ("20" if text < "50" else "19") + text
        times.append(datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC))
    return times[0], times[1]


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag of an element of DER, where its content begins, and where it ends. X.690 section 8.1."""
    length, start = der[at + 1], at + 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[at + 2 : start], "big")
    return der[at], start, start + length


def _server_context(tls: ServerTls, alpn: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load_pair(context, tls.certificate, tls.private_key)
    if tls.client_ca is not None:
        with _readable(tls.client_ca):
            context.load_verify_locations(str(tls.client_ca))
        context.verify_mode = ssl.CERT_REQUIRED
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def _load_pair(context: ssl.SSLContext, certificate: Path, private_key: Path) -> None:
    try:
        context.load_cert_chain(str(certificate), str(private_key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"tls: {private_key} is not the private key of {certificate}; name the key that it was issued for"
            ) from error
        raise ConfigError(
            f"tls: {certificate} and {private_key} are not a PEM certificate chain and its PEM key ({error.reason})"
        ) from error
    except OSError as error:
        raise ConfigError(f"tls: {error.filename or certificate} can't be read: {error.strerror}") from error


@contextmanager
def _readable(path: Path | None) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        raise ConfigError(f"tls: {path} holds no PEM certificates ({error.reason})") from error
    except OSError as error:
        raise ConfigError(f"tls: {path} can't be read: {error.strerror}") from error


def _modified(tls: ServerTls) -> tuple[int, ...]:
    files = [tls.certificate, tls.private_key, *([tls.client_ca] if tls.client_ca else [])]
    try:
        return tuple(file.stat().st_mtime_ns for file in files)
    except OSError:  # being replaced right now: the next handshake sees the new ones
        return ()
