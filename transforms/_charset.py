"""Text in the encoding that a content type names."""

from __future__ import annotations

import codecs
from email.message import EmailMessage
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator

from gateway import MessageError


def _text_codec(name: str) -> str | None:
    """Python's name for a charset; None: no text is in one of that name, as base64 is a codec too."""
    try:
        found = codecs.lookup(name)
    except (LookupError, ValueError):
        return None
    return found.name if found._is_text_encoding else None


def _known(name: str) -> str:
    found = _text_codec(name)
    if found is None:
        raise ValueError(f'no charset is called "{name}"; expected one such as utf-8, iso-8859-1 or cp1252')
    return found


Charset = Annotated[str, AfterValidator(_known)]
"""The field type of a text encoding, by any name that Python knows; held as Python's name for it."""


@lru_cache(maxsize=256)
def charset_of(content_type: str) -> str | None:
    """The charset parameter of a content type, as Python's name for it; None: it has none.

    Raises:
        MessageError: code "unsupported": nobody knows that charset.
    """
    if ";" not in content_type:
        return None
    parameters = EmailMessage()
    parameters["content-type"] = content_type.replace("\r", " ").replace("\n", " ")
    charset = parameters.get_content_charset()
    if charset is None:
        return None
    known = _text_codec(charset)
    if known is None:
        raise MessageError(f"body: charset {charset!r:.40} is not known; UTF-8 always is", code="unsupported")
    return known


def decoded(word: str, body: bytes, content_type: str, default: str) -> str:
    """The text of a body, without a byte order mark.

    Raises:
        MessageError: code "malformed": the bytes are not in that charset; the text starts with `word`.
    """
    charset = charset_of(content_type) or default
    if charset == "utf-8" and body.startswith(codecs.BOM_UTF8):
        body = body[3:]
    try:
        return body.decode(charset)
    except UnicodeDecodeError as error:
        raise MessageError(
            f"{word}: byte 0x{body[error.start]:02x} at offset {error.start} is not {charset}; "
            "is the charset of the content type right?",
            code="malformed",
        ) from None
    except UnicodeError as error:
        raise MessageError(f"{word}: the body is not {charset}: {error!s:.60}", code="malformed") from None


def encoded(word: str, text: str, charset: str) -> bytes:
    """The bytes of a text.

    Raises:
        MessageError: the charset has no such character; the text starts with `word`.
    """
    try:
        return text.encode(charset)
    except UnicodeEncodeError as error:
        raise MessageError(
            f"{word}: {charset} has no character U+{ord(text[error.start]):04X} (at offset {error.start}); use utf-8"
        ) from None


def scalar(value: object) -> str | None:
    """A tree's leaf as text: null is empty, booleans are true and false; None: it is no leaf."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if isinstance(value, dict | list) else str(value)
