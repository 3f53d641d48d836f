"""`gateway check --connect`: opens the link to every peer once, hands nothing over, and says what became of it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateway.checks import steps_of
from gateway.clock import SystemClock
from gateway.config import Config
from gateway.errors import ConfigError, MessageError, PeerError
from gateway.faults import link_fault
from gateway.formats import formats_with
from gateway.limits import Limits
from gateway.message import Formats, Outcome, Principal
from gateway.path import word_of
from gateway.patterns import Call, Tap
from gateway.ports import Clock, Credentials, Shared, Sink
from gateway.settings import Address, ClientTls
from gateway.tls import client_context
from gateway.whereabouts import address_of, label, where

_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


@dataclass(frozen=True)
class Trial:
    """What became of one link."""

    peer: str
    routes: tuple[str, ...]
    problem: str | None
    """None: it could be opened."""


async def trials(config: Config, *, timeout_s: float = 5.0) -> list[Trial]:
    """Opens every link once, all at the same time, each for at most `timeout_s`.

    Components that have `try_out(link, host)` then look whether the peer lets them: a topic, a queue, an exchange.
    """
    found: dict[Any, list[tuple[str, Any]]] = {}
    for route, component in _components(config):
        if _peer(component) is not None:
            found.setdefault(_link(component), []).append((route, component))
    problems = await asyncio.gather(*(_problem([one for _, one in users], timeout_s) for users in found.values()))
    return [
        Trial(_peer(users[0][1]) or "", tuple(dict.fromkeys(route for route, _ in users)), problem)
        for users, problem in zip(found.values(), problems, strict=True)
    ]


def _components(config: Config) -> Iterator[tuple[str, Any]]:
    for name, configured in config.routes.items():
        route = configured.settings
        yield from ((name, source) for source in route.sources)
        targets = [*route.to, *([route.dead_letter] if route.dead_letter is not None else [])]
        yield from ((name, target.sink) for target in targets)
        yield from ((name, step.sink) for _, step in steps_of(route, ()) if isinstance(step, Call | Tap))


def _peer(component: Any) -> str | None:
    """What names the other side; None: there is none, it listens or stays within the gateway."""
    connection = getattr(component, "connection", None)
    if connection is not None:
        return None if getattr(connection, "listen", None) is not None else label(connection)
    if getattr(component, "connect", None) is not None and word_of(component) != "udp":
        return label(component)
    if getattr(component, "url", None) is not None:
        parts = urlsplit(where(component))
        return f"{word_of(component)} {parts.scheme}://{parts.netloc}"
    return None


def _link(component: Any) -> Any:
    """What is opened: equal for components that share it."""
    return getattr(component, "connection", None) or _peer(component)


async def _problem(components: list[Any], timeout_s: float) -> str | None:
    """What is wrong with the link that these share; None: nothing."""
    try:
        async with asyncio.timeout(timeout_s):
            with tempfile.TemporaryDirectory() as folder:
                problems = await _tried(components, _Host(Path(folder)))
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    except (PeerError, MessageError, ConfigError) as error:
        problems = [str(error)]
    except OSError as error:
        problems = [link_fault(error)]
    who = f"{_peer(components[0])}: "
    return "; ".join(dict.fromkeys(problem.removeprefix(who) for problem in problems)) or None


async def _tried(components: list[Any], host: _Host) -> list[str]:
    component = components[0]
    connection = getattr(component, "connection", None)
    if connection is not None:
        return await _tried_out(connection, [one for one in components if hasattr(one, "try_out")], host)
    if isinstance(component, Sink) and word_of(component) != "http":  # http connects when there is something to send
        async with component.open(host):
            pass
    else:
        await _dial(component)
    return []


async def _tried_out(connection: Any, components: list[Any], host: _Host) -> list[str]:
    """What is wrong with these on one connection; opened again after a fault that ends it for all of them."""
    problems: list[str] = []
    left = list(components)
    if not left:
        async with connection.open(host):
            pass
    while left:
        found, before, lost = len(problems), len(left), False
        try:
            async with connection.open(host) as link:
                while left and not lost:
                    try:
                        await left.pop(0).try_out(link, host)
                    except (PeerError, MessageError) as error:
                        problems.append(str(error))
                        lost = isinstance(error, PeerError) and error.reconnect
        except PeerError as error:
            if len(left) == before:  # there was no connection to try one on
                raise
            if len(problems) == found:
                problems.append(str(error))
    return problems


async def _dial(component: Any) -> None:
    """A TCP connection, with the TLS handshake where the component would make one."""
    address, tls = _dialled(component)
    context = None if tls is None else client_context(tls)
    name = None if tls is None else tls.server_name or address.host
    _, writer = await asyncio.open_connection(address.host, address.port, ssl=context, server_hostname=name)
    writer.close()


def _dialled(component: Any) -> tuple[Address, ClientTls | None]:
    tls = getattr(component, "tls", None)
    address = address_of(component)
    if address is not None:
        return address, tls
    parts = urlsplit(where(component))
    secure = parts.scheme in ("https", "wss")
    return Address(parts.hostname or "", parts.port or _PORTS[parts.scheme]), (tls or ClientTls()) if secure else None


class _Host:
    """What a connection needs of a host to be opened for a moment."""

    def __init__(self, data: Path) -> None:
        self.route = self.target = "check"
        self.wants_reply = False
        self.limits = Limits()
        self.data = data
        self.clock: Clock = SystemClock()
        self.formats: Formats = formats_with(self.limits)

    def share(self, what: Shared[Any]) -> AbstractAsyncContextManager[Any]:
        return what.open(self)

    async def identify(self, credentials: Credentials) -> Principal:
        raise MessageError("identity: nobody is known here", code="unauthenticated")

    async def settled(self, message_id: str, wait_s: float) -> Outcome | None:
        """Nothing is stored here."""
        return None

    def refused(self, code: str, reason: str, peer: str) -> None:
        """A trial hears nobody, so nobody is refused."""

    def dropped(self, count: int, why: str) -> None:
        """A trial hands nothing over, so nothing is dropped."""
