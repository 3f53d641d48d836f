"""The API as one ASGI application: its calls, its door, and what every answer carries."""

from __future__ import annotations

import logging

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from gateway.api import configuration, dead_letters, events, health, intake, messages, routes
from gateway.api.access import Door, without_permission
from gateway.api.control import Control
from gateway.api.problems import Problem, add_handlers, internal

log = logging.getLogger("gateway.api")

ROUTERS = (
    health.router,
    intake.router,
    messages.router,
    dead_letters.router,
    routes.router,
    configuration.router,
    events.router,
)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


def application(control: Control, door: Door) -> Guard:
    """The API of this gateway.

    Raises:
        RuntimeError: a call does not say which permission it needs.
    """
    app = FastAPI(
        title="Gateway",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        # each request would be traced, counted and logged through OpenTelemetry's interface otherwise
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    for router in ROUTERS:
        unsafe = without_permission(router)
        if unsafe:
            raise RuntimeError(f"calls without a permission: {', '.join(unsafe)}")
        app.include_router(router)
    add_handlers(app)
    app.state.control = control
    app.state.hub = events.Hub(control)
    app.state.registry = health.registry(control)
    return Guard(app, door)


class Guard:
    """Lets in whom the door lets in, and turns what nobody expected into a 500 without a word of it."""

    def __init__(self, app: FastAPI, door: Door) -> None:
        self.app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            return
        answering = _Answering(send)
        client = scope.get("client")
        try:
            scope["caller"] = self._door.caller(scope["path"], Headers(scope=scope), client[0] if client else "?")
            await self.app(scope, receive, answering.send)
        except Problem as problem:
            await problem.response()(scope, receive, answering.send)
        except Exception:
            log.exception("request failed", extra={"method": scope["method"], "path": scope["path"][:200]})
            if not answering.begun:
                await internal().response()(scope, receive, answering.send)


class _Answering:
    """A send that adds the headers of every answer."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)
