"""Errors as `application/problem+json` (RFC 9457) with a stable `code` for programs, and nothing of the inside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from gateway.errors import INTERNAL, MessageError, Refusal
from gateway.journal import JournalBrokenError, JournalFullError
from gateway.message import Deferred

PROBLEM = "application/problem+json"
STATUS: Mapping[Refusal, int] = {
    "refused": 422,
    "malformed": 400,
    "too_large": 413,
    "unsupported": 415,
    "unauthenticated": 401,
    "forbidden": 403,
    "internal": 500,
}
"""The status of each kind of refusal, as the data listener has it too."""
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported", 400: "malformed"}
# The names of RFC 9110 where Python's are older.
_TITLES = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large",
    422: "Unprocessable Content",
}


class Problem(Exception):  # noqa: N818 - named for what the client gets
    """A request is answered with this error.

    code: a stable word. detail: a sentence. retry_after_s: when to come again. more: further members, such as `id`.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
        self.more = more

    def response(self) -> Response:
        """It as an answer."""
        members = {
            "type": "about:blank",
            "title": _TITLES.get(self.status, "Error"),
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            **self.more,
        }
        return Response(msgspec.json.encode(members), self.status, self.headers, PROBLEM)


def internal() -> Problem:
    """A bug of ours: the log has it, the client does not."""
    return Problem(500, "internal", "the gateway failed on this request; its log says why")


def refusal(code: Refusal, reason: str, message_id: str | None = None) -> Problem:
    """A message was refused."""
    if code == "internal":
        reason = INTERNAL
    more: dict[str, Any] = {} if message_id is None else {"id": message_id}
    return Problem(STATUS[code], code, reason, **more)


def deferral(outcome: Deferred) -> Problem:
    """A message was not taken now. Its reason names what is inside; the sender needs what to do next."""
    if outcome.too_late:
        return Problem(504, "too_late", "no answer came in time; the message may have been acted upon")
    if outcome.answerless:
        return Problem(502, "answerless", "who was to reply gave no answer")
    wait_s = max(1, math.ceil(outcome.wait_s))
    return Problem(503, "busy", f"not taken now; try again in {wait_s} s", retry_after_s=wait_s)


def add_handlers(app: FastAPI) -> None:
    """Turns everything that a call can raise into a problem."""
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(MessageError, _on_message)
    app.add_exception_handler(JournalFullError, _on_full)
    app.add_exception_handler(JournalBrokenError, _on_broken)
    app.add_exception_handler(Exception, _on_bug)


async def _on_problem(_request: Request, error: Exception) -> Response:
    return cast("Problem", error).response()


async def _on_http(request: Request, error: Exception) -> Response:
    found = cast("HTTPException", error)
    details = {
        404: f"there is nothing at {request.url.path}; the calls are in /api/v1/openapi.json",
        405: f"{request.method} is not taken here",
    }
    detail = details.get(found.status_code, str(found.detail).lower())
    code = _CODES.get(found.status_code, "refused")
    return Problem(found.status_code, code, detail, headers=found.headers).response()


async def _on_invalid(_request: Request, error: Exception) -> Response:
    found = cast("RequestValidationError", error).errors()
    details = [f"{'.'.join(str(part) for part in one['loc'][1:])}: {one['msg'].lower()}" for one in found]
    return Problem(422, "invalid", "; ".join(details)).response()


async def _on_message(_request: Request, error: Exception) -> Response:
    found = cast("MessageError", error)
    return refusal(found.code, found.for_sender).response()


async def _on_full(_request: Request, error: Exception) -> Response:
    return Problem(503, "journal_full", "the journal has no room now; nothing was changed", retry_after_s=5).response()


async def _on_broken(_request: Request, error: Exception) -> Response:
    return Problem(503, "journal_broken", "the journal's disk failed; the gateway stops").response()


async def _on_bug(_request: Request, error: Exception) -> Response:
    return internal().response()
