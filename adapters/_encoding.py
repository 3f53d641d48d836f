"""Bodies that came compressed: gzip and deflate, never larger than allowed. RFC 9110 section 8.4, RFC 1950 to 1952."""

from __future__ import annotations

import zlib

from gateway import Limits, MessageError

_ZLIB, _RAW, _GZIP = 15, -15, 31
# How much larger than the limit of a body what it decompresses to may be.
_TIMES = 8


def decompressed(body: bytes, encoding: str, limits: Limits) -> bytes:
    """The body as it was before its Content-Encoding.

    Raises:
        MessageError: code "unsupported": neither gzip nor deflate; "malformed": it is not that; "too_large": it would
            be larger than 8 times `limits.message`, or grow by more than `limits.decompressed_ratio`.
    """
    match encoding.strip().lower():
        case "identity":
            return body
        case "gzip" | "x-gzip":
            bits = _GZIP
        case "deflate":
            # What most senders mean is zlib's format; some leave out its two bytes of header.
            bits = _ZLIB if _is_zlib(body) else _RAW
        case other:
            raise MessageError(
                f"body: content-encoding is {other!r}, expected gzip, deflate or none", code="unsupported"
            )
    by_ratio = limits.decompressed_ratio * len(body)
    most = min(_TIMES * limits.message, by_ratio)
    inflater = zlib.decompressobj(bits)
    try:
        found = inflater.decompress(body, most + 1)
    except zlib.error as error:
        raise MessageError(f"body: it is not {encoding}, as its content-encoding says", code="malformed") from error
    if len(found) > most:
        limit = f" ({limits.decompressed_ratio} times its size, limits.decompressed_ratio)" if most == by_ratio else ""
        raise MessageError(f"body: more than {most} bytes once decompressed{limit}", code="too_large")
    if not inflater.eof or inflater.unused_data:
        raise MessageError(f"body: its {encoding} data ends too early or too late", code="malformed")
    return found


def _is_zlib(body: bytes) -> bool:
    return len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
