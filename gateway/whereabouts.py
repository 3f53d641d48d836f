"""Where a component is, in a few words, and which components of one configuration meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from gateway.path import word_of
from gateway.settings import Address, ListenAt

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}  # noqa: S104 - compared, never bound
_PORTS = {"http": 80, "https": 443}
# What says best which one of its kind a component is, the first that it has.
_TELLING = ("topic", "topics", "queue", "exchange", "path", "folder", "every", "cron", "name")


def where(component: Any, hidden: Callable[[str], str] = str) -> str:
    """Such as `http://127.0.0.1:8081/orders`, `127.0.0.1:9100`, `orders.jsonl`; empty: it is nowhere in particular.

    hidden: takes secrets out of what is shown; an address is none.
    """
    word = word_of(component)
    address = address_of(component)
    if word in ("http", "websocket") and getattr(component, "listen", None) is not None:
        secure = "s" if component.listen.tls is not None else ""
        scheme = ("http" if word == "http" else "ws") + secure
        return f"{scheme}://{address}{hidden(getattr(component, 'path', ''))}"
    if address is not None:
        return str(address)
    url = getattr(component, "url", None)
    if url is not None:
        return hidden(str(getattr(url, "text", url)))
    connection = getattr(component, "connection", None)
    at = where(connection, hidden) if connection is not None else ""
    for name in _TELLING:
        value = getattr(component, name, None)
        if value not in (None, ""):
            told = hidden(_shown(getattr(value, "text", value)))
            return f"{told} at {at}" if at else told
    return at


def address_of(component: Any) -> Address | None:
    """The address that it listens on or connects to, if it has one of its own."""
    for name in ("listen", "connect"):
        value = getattr(component, name, None)
        if isinstance(value, ListenAt):
            return value.address
        if isinstance(value, Address):
            return value
    return None


def label(component: Any, hidden: Callable[[str], str] = str) -> str:
    """The word and where it is, as `where` says: `tcp 127.0.0.1:9100`."""
    return f"{word_of(component)} {where(component, hidden)}".strip()


def heard_at(source: Any) -> str | None:
    """Where a source hears what a sink of the same configuration may send; equal to that sink's `said_at`."""
    word = word_of(source)
    if word in ("channel", "memory"):
        return f"{word} {source.name}"
    address = address_of(source) if getattr(source, "listen", None) is not None else None
    return None if address is None else f"{word} {_near(address)}{getattr(source, 'path', '')}"


def said_at(sink: Any) -> str | None:
    """Where a sink sends, if that is fixed."""
    word = word_of(sink)
    if word in ("channel", "memory"):
        return f"{word} {sink.name}"
    if isinstance(getattr(sink, "connect", None), Address):
        return f"{word} {_near(sink.connect)}"
    url = getattr(sink, "url", None)
    if url is not None and getattr(url, "constant", False):
        parts = urlsplit(str(url.text))
        port = parts.port or _PORTS.get(parts.scheme, 0)
        return f"{word} {_near(Address(parts.hostname or '', port))}{parts.path or '/'}"
    return None


def _near(address: Address) -> Address:
    return Address(_ANY.get(address.host, address.host), address.port)


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        from gateway.units import shown_duration

        return shown_duration(value)
    return str(value)
