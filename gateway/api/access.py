"""Who may call: the admin token, permissions that every call names, and checks that no browser page is behind it."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from fastapi.routing import APIRoute, APIRouter
from msgspec import Struct
from starlette.datastructures import Headers

from gateway.api.problems import Problem
from gateway.errors import ConfigError
from gateway.ports import Clock
from gateway.settings import Address

Permission = Literal["read", "send", "operate"]
OPEN = frozenset({"/health/live", "/health/ready", "/metrics"})
"""Paths that need no token."""
TOKEN_FILE = "admin.token"  # noqa: S105 - the name of a file
_SHORTEST_TOKEN = 32
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

FAILURES = 10
"""Wrong tokens within `FAILURES_S` from one address, after which it is not listened to."""
FAILURES_S = 60.0
LOCKED_S = 300.0
"""For how long at first; doubles each time, up to `MOST_LOCKED_S`."""
MOST_LOCKED_S = 3600.0
_MOST_ADDRESSES = 1024


class Caller(Struct, frozen=True):
    """Who calls, as authenticated."""

    name: str
    address: str
    permissions: frozenset[Permission]

    @property
    def shown(self) -> str:
        """It as an audit line names it."""
        return f"{self.name}@{self.address}"


_ALL: frozenset[Permission] = frozenset({"read", "send", "operate"})


def admin_token(folder: Path) -> str:
    """The admin token in this folder, made (256 random bits, file mode 0600) when there is none.

    Raises:
        ConfigError: it can't be read or made, others can read it, or it is too short to be one.
    """
    file = folder / TOKEN_FILE
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return _made(file)
    except OSError as error:
        raise ConfigError(f"{file} can't be read: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        found = f"{stat.S_IMODE(mode):04o}"
        raise ConfigError(
            f"{file}: others can read it (mode {found}); remove it to have a new one made, or chmod 600 it"
        )
    try:
        token = file.read_text("ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} can't be read; remove it to have a new one made") from error
    if len(token) < _SHORTEST_TOKEN:
        raise ConfigError(f"{file}: expected {_SHORTEST_TOKEN} characters or more; remove it to have a new one made")
    return token


def _made(file: Path) -> str:
    token = secrets.token_urlsafe(32)
    new = file.with_suffix(".new")
    try:
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(f"{token}\n")
            stream.flush()
            os.fsync(stream.fileno())
        new.rename(file)
    except OSError as error:
        raise ConfigError(f"{file} can't be made: {error.strerror}") from error
    return token


class Failures:
    """Wrong tokens by address: ten a minute, then nothing more for 5 minutes, doubling to an hour."""

    def __init__(self, clock: Clock) -> None:
        self._monotonic = clock.monotonic
        self._known: OrderedDict[str, _Failed] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Seconds until this address is listened to again; 0: it is."""
        failed = self._known.get(address)
        return 0.0 if failed is None else max(0.0, failed.locked_until_s - self._monotonic())

    def add(self, address: str) -> None:
        """One more from this address."""
        now = self._monotonic()
        failed = self._known.setdefault(address, _Failed())
        self._known.move_to_end(address)
        if len(self._known) > _MOST_ADDRESSES:
            self._known.popitem(last=False)
        failed.times.append(now)
        while failed.times[0] <= now - FAILURES_S:
            failed.times.popleft()
        if len(failed.times) >= FAILURES:
            failed.locked_until_s = now + min(MOST_LOCKED_S, LOCKED_S * 2.0**failed.locks)
            failed.locks = min(failed.locks + 1, 10)
            failed.times.clear()

    def forget(self, address: str) -> None:
        """The right token came from this address."""
        self._known.pop(address, None)


class _Failed:
    def __init__(self) -> None:
        self.times: deque[float] = deque()
        self.locked_until_s = 0.0
        self.locks = 0


class Door:
    """Decides about each request by its headers, before anything of it is read."""

    def __init__(self, token: str, clock: Clock, listen: Address | None = None) -> None:
        # Only a keyed hash is kept and compared: neither its length nor its beginning can be learned by timing.
        self._key = os.urandom(32)
        self._digest = self._hash(token)
        self._failures = Failures(clock)
        self._hosts = _LOOPBACK | ({listen.host} if listen is not None else frozenset())

    def _hash(self, token: str) -> bytes:
        return hmac.digest(self._key, token.encode("utf-8", "surrogateescape"), "sha256")

    def caller(self, path: str, headers: Headers, address: str) -> Caller:
        """Who calls.

        Raises:
            Problem: 421, 403: a browser page of elsewhere may be behind it; 401, 429: it has not the right token.
        """
        self._check_host(headers)
        if path in OPEN:
            return Caller("anybody", address, frozenset())
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise _unauthenticated(
                "a token is needed: send Authorization: Bearer, with what is in the admin.token file"
            )
        wait_s = self._failures.wait_s(address)
        if wait_s > 0:
            raise Problem(
                429, "too_many_failures", "too many wrong tokens came from this address", retry_after_s=wait_s
            )
        if not hmac.compare_digest(self._hash(token.strip()), self._digest):
            self._failures.add(address)
            raise _unauthenticated("this token is not known; the right one is in the admin.token file")
        self._failures.forget(address)
        return Caller("admin", address, _ALL)

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        host = hosts[0].strip().lower() if len(hosts) == 1 else ""
        if _name_of(host) not in self._hosts:
            raise Problem(421, "wrong_host", "expected one Host header with a loopback name, such as 127.0.0.1")
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise Problem(403, "cross_origin", "pages of other origins may not call this API")
        if headers.get("sec-fetch-site", "none") == "cross-site":
            raise Problem(403, "cross_origin", "pages of other sites may not call this API")


def _name_of(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _unauthenticated(detail: str) -> Problem:
    return Problem(401, "unauthenticated", detail, headers={"www-authenticate": 'Bearer realm="gateway"'})


async def caller_of(request: Request) -> Caller:
    """Who calls."""
    caller: Caller = request.scope["caller"]
    return caller


Calling = Annotated[Caller, Depends(caller_of)]


def _check(request: Request, permission: Permission) -> None:
    caller: Caller = request.scope["caller"]
    if permission not in caller.permissions:
        raise Problem(403, "forbidden", f"{caller.name} may not do this: the permission {permission} is needed")


async def may_read(request: Request) -> None:
    """Needs the permission to see messages, routes and configuration."""
    _check(request, "read")


async def may_send(request: Request) -> None:
    """Needs the permission to hand messages to routes."""
    _check(request, "send")


async def may_operate(request: Request) -> None:
    """Needs the permission to change what runs and what is stored."""
    _check(request, "operate")


async def anybody() -> None:
    """Needs nothing."""


PERMISSIONS: dict[Callable[..., Awaitable[None]], Permission | None] = {
    may_read: "read",
    may_send: "send",
    may_operate: "operate",
    anybody: None,
}
READ: Sequence[Any] = (Depends(may_read),)
SEND: Sequence[Any] = (Depends(may_send),)
OPERATE: Sequence[Any] = (Depends(may_operate),)
ANYBODY: Sequence[Any] = (Depends(anybody),)


def without_permission(router: APIRouter) -> list[str]:
    """Calls of this router that don't name exactly one permission, or are open and not in `OPEN`."""
    found = []
    for route in router.routes:
        named = [one.dependency for one in getattr(route, "dependencies", ()) if one.dependency in PERMISSIONS]
        path = getattr(route, "path", "?")
        is_open = named == [anybody]
        if not isinstance(route, APIRoute) or len(named) != 1 or is_open != (path in OPEN):
            found.append(path)
    return found
