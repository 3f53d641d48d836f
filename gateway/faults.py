"""What goes wrong with links, as sentences about the peer."""

from __future__ import annotations

import os
import socket
import ssl

# X509_V_ERR codes of OpenSSL.
_EXPIRED, _NOT_YET, _WRONG_HOST, _WRONG_ADDRESS = 10, 9, 62, 64
_UNKNOWN_AUTHORITY = frozenset((2, 18, 19, 20, 21))

_ALERTS = {
    "CERTIFICATE_REQUIRED": "the peer asks for a client certificate; set tls.certificate and tls.private_key",
    "UNKNOWN_CA": "the peer does not trust the authority of our certificate",
    "CERTIFICATE_EXPIRED": "the peer says that our certificate has expired",
    "BAD_CERTIFICATE": "the peer refuses our certificate",
    "HANDSHAKE_FAILURE": "the peer refuses the handshake; does it ask for a client certificate?",
    "WRONG_VERSION_NUMBER": "the peer does not speak TLS; remove tls, or check the port",
    "PROTOCOL_VERSION": "the peer has no TLS version in common with us, expected 1.2 or newer",
}


def link_fault(error: Exception) -> str:
    """What kept a link from being made, or ended it: certificate faults as sentences, system errors by their text."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate_fault(error)
    if isinstance(error, ssl.SSLError):
        for alert, sentence in _ALERTS.items():
            if alert in (error.reason or ""):
                return sentence
        return f"TLS failed: {(error.reason or 'unknown reason').replace('_', ' ').lower()}"
    if isinstance(error, socket.gaierror):
        return f"the host name is not known ({error.strerror})"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error).lower() or type(error).__name__


def _certificate_fault(error: ssl.SSLCertVerificationError) -> str:
    code, text = error.verify_code, error.verify_message.rstrip(".")
    if code == _EXPIRED:
        return "the peer's certificate has expired; it needs a new one"
    if code == _NOT_YET:
        return "the peer's certificate is not valid yet; is the clock right?"
    if code in (_WRONG_HOST, _WRONG_ADDRESS):
        return f"the peer's certificate is for another host ({text}); set tls.server_name if that is right"
    if code in _UNKNOWN_AUTHORITY:
        return f"the peer's certificate is by an unknown authority ({text}); name its authority in tls.ca"
    return f"the peer's certificate can't be trusted: {text}"
