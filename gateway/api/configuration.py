"""The configuration: what runs, whether another one would, and reading the file again."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, SecretStr

from gateway.api.access import OPERATE, READ, Calling
from gateway.api.bodies import answer, body_of, only
from gateway.api.control import Running
from gateway.api.problems import Problem
from gateway.api.shapes import Shape
from gateway.config import Config, load_text
from gateway.documents import Complaint, Complaints
from gateway.errors import ConfigError
from gateway.message import rfc3339

log = logging.getLogger("gateway.api")

router = APIRouter(prefix="/api/v1", tags=["configuration"])

LARGEST = 4 * 1024**2
"""As large as a file may be."""
HIDDEN = "(hidden)"
_SECRET_KEY = re.compile(r"pass(word|phrase)?|secret|token|api_?key|credentials?", re.IGNORECASE)
_REFERENCE = re.compile(r"(\$\{(env|file):[^}]*\})+")


@router.get("/config", dependencies=READ)
async def shown(request: Request, control: Running) -> Response:
    """What runs, as it is written: references where secrets are, and nothing where one was written out."""
    only(request)
    config = control.config
    return answer(
        {
            "file": str(config.path),
            "started": rfc3339(control.started_s),
            "notes": list(config.notes),
            "config": redacted(config),
        }
    )


def redacted(config: Config) -> Any:
    """The configuration as written, without secrets: neither those of a secret's type nor what is called like one."""
    secrets = {secret for route in config.routes.values() for secret in _secrets(route.settings)}
    return _without(config.shown, sorted(secrets, key=len, reverse=True))


def _secrets(value: Any) -> Iterator[str]:
    match value:
        case SecretStr():
            if value.get_secret_value():
                yield value.get_secret_value()
        case BaseModel():
            for name in type(value).model_fields:
                yield from _secrets(getattr(value, name))
        case Mapping():
            for inner in value.values():
                yield from _secrets(inner)
        case list() | tuple() | set() | frozenset():
            for inner in value:
                yield from _secrets(inner)
        case _ if is_dataclass(value) and not isinstance(value, type):
            for one in fields(value):
                yield from _secrets(getattr(value, one.name))


def _without(value: Any, secrets: list[str]) -> Any:
    match value:
        case Mapping():
            return {
                key: HIDDEN if _SECRET_KEY.search(str(key)) and _written_out(inner) else _without(inner, secrets)
                for key, inner in value.items()
            }
        case list():
            return [_without(inner, secrets) for inner in value]
        case str() if _written_out(value):
            # a secret as short as "a" would take letters out of every word: then only the whole value is one
            if any(secret == value or (len(secret) >= 6 and secret in value) for secret in secrets):
                return HIDDEN
    return value


def _written_out(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and not _REFERENCE.fullmatch(value))


@router.post("/config/check", dependencies=OPERATE)
async def check(request: Request, control: Running) -> Response:
    """Checks a configuration, posted as YAML, without running it. Relative paths start where those of ours do."""
    only(request)
    body = await body_of(request, LARGEST)
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Problem(400, "malformed", "the body is not UTF-8") from None
    if not text.strip():
        raise Problem(422, "invalid", "the body is empty; post the YAML to check, with --data-binary @routes.yaml, say")
    path = control.config.path
    file = path / "posted.yaml" if path.is_dir() else path
    try:
        config = await asyncio.to_thread(load_text, text, file)
    except ConfigError as error:
        return answer({"good": False, "complaints": complaints(error), "text": str(error)})
    return answer({"good": True, "routes": list(config.routes), "notes": list(config.notes), "complaints": []})


@router.post("/config/reload", dependencies=OPERATE)
async def reload(request: Request, control: Running, caller: Calling) -> Response:
    """Reads the configuration again and changes what differs; on any error what ran before still runs."""
    only(request)
    log.info("reload asked for", extra={"by": caller.shown})
    if control.phase != "running":
        raise Problem(503, control.phase, f"the gateway is {control.phase}; try again later", retry_after_s=5)
    try:
        done = await control.reload()
    except ConfigError as error:
        raise Problem(422, "config", str(error), complaints=complaints(error)) from None
    return answer({"changed": done})


def complaints(error: ConfigError) -> list[Shape]:
    """What is wrong, with places."""
    if not isinstance(error, Complaints):
        return [{"text": str(error)}]
    return [_complaint(one) for one in error.complaints]


def _complaint(one: Complaint) -> Shape:
    place = one.place
    found: Shape = {"file": Path(place.file).name, "subject": one.subject, "text": one.text}
    if place.line:
        found |= {"line": place.line, "column": place.column}
    return found
