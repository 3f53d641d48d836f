"""What `gateway run` says once everything listens: where it listens, and how to see a first message arrive."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gateway.config import Config
from gateway.guess import guessed, passes
from gateway.language import Route
from gateway.path import word_of
from gateway.sample import sample
from gateway.whereabouts import heard_at, said_at, where


def banner(config: Config) -> str:
    """The lines, from the configuration alone. No secret is in them."""
    rows = [
        (word_of(source), where(source, partial(config.hidden, name)) or "-", f"route {name}")
        for name, configured in config.routes.items()
        for source in configured.settings.sources
    ]
    listen = config.gateway.api.listen
    rows.append(("API", f"http://{listen}/api/v1", "health at /health/ready, metrics at /metrics"))
    rows.append(("data", shown_path(config.gateway.data), f"admin token in {token_file(config)}"))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = ["", f"{config.gateway.name} is running; Ctrl-C stops it"]
    lines += [f"  {word:<{widths[0]}}  {place:<{widths[1]}}  {what}" for word, place, what in rows]
    if config.notes:
        lines += ["", "To know:", *(f"  {note}" for note in config.notes)]
    lines += ["", "Send a message, then see it arrive, in another terminal:"]
    lines += [f"  {command}" for command in commands(config)]
    return "\n".join([*lines, ""])


def commands(config: Config) -> tuple[str, str]:
    """Two shell commands: one sends a message to a route, one shows that it arrived."""
    for name, configured in config.routes.items():
        for source in configured.settings.sources:
            if word_of(source) == "http":
                body, sure = _body(configured.settings, {"params": _params(source)})
                sure = sure and "json" in _content_type(source)
                return _curl(source, body, partial(config.hidden, name)), _look(config, name, sure=sure)
    name = next(iter(config.routes))
    body, sure = _body(config.routes[name].settings, {})
    said = shlex.quote(json.dumps(body))
    return f"printf %s {said} | {_ours('send', config)} {name} -", _look(config, name, sure=sure)


def token_file(config: Config) -> str:
    """Where the admin token of the API is, as it is shown."""
    return shown_path(config.gateway.data / "admin.token")


def shown_path(path: Path) -> str:
    """The path as it is shortest from here."""
    if not path.is_absolute():
        return str(path)
    nearby = os.path.relpath(path)
    return str(path) if nearby.startswith("..") else nearby


def _curl(source: Any, body: Any, hidden: Callable[[str], str]) -> str:
    address = where(source, hidden).replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")  # noqa: S104 - shown only
    url = "".join(_filled(part) for part in _parts(address))
    command = ["curl", "-i"]
    if "POST" not in source.methods:
        command += ["-X", source.methods[0]]
    if set(source.methods) - {"GET", "HEAD", "DELETE"}:
        command += ["-H", f"content-type: {_content_type(source)}", "-d", json.dumps(body, ensure_ascii=False)]
    return " ".join(shlex.quote(part) for part in [*command, url])


def _content_type(source: Any) -> str:
    return str(source.content_type or (source.content_types or ("application/json",))[0])


def _params(source: Any) -> dict[str, str]:
    """The path parameters, as `_filled` fills them."""
    return dict.fromkeys(re.findall(r"/\{(\w+)\}", str(source.path)), "1")


def _parts(url: str) -> Iterator[str]:
    for index, part in enumerate(url.split("/")):
        yield part if index == 0 else f"/{part}"


def _filled(part: str) -> str:
    """A path parameter such as /{id} with a value."""
    return "/1" if part.startswith("/{") else part


def _body(route: Route, transport: Mapping[str, Any]) -> tuple[Any, bool]:
    """A body that the route takes, as far as its checks and expressions say what they take; and whether it is sure."""
    for step in route.accept:
        path = getattr(getattr(step, "schema_", None), "path", None)
        if path is not None and Path(path).suffix == ".json":
            return sample(json.loads(Path(path).read_text(encoding="utf-8"))), True
    body = guessed(route) or {"hello": "world"}
    return body, passes(route, body, transport)


def _look(config: Config, start: str, *, sure: bool) -> str:
    """Shows the end of the way: of the files that the message may reach, the last; else what the gateway has of it."""
    last = None
    for name in _reached(config, start) if sure else ():
        for target in config.routes[name].settings.to:
            path = getattr(target.sink, "path", None)
            if word_of(target.sink) == "file" and getattr(path, "constant", False):
                last = shown_path(config.path.parent / str(getattr(path, "text", path)))
    if last is not None:
        return f"tail -n 1 {shlex.quote(last)}"
    return _ours("messages", config)


def _ours(command: str, config: Config) -> str:
    """A command of ours as it works in this folder, installed on the path or not."""
    path = shown_path(config.path)
    return " ".join([*_program(), command, *([] if path == "routes.yaml" else ["--config", shlex.quote(path)])])


def _program() -> list[str]:
    if shutil.which("gateway"):
        return ["gateway"]
    beside = Path(sys.executable).with_name("gateway")
    return [shlex.quote(shown_path(beside))] if beside.is_file() else [shlex.quote(sys.executable), "-m", "gateway"]


def _reached(config: Config, start: str) -> list[str]:
    """The routes that a message of this one may go on to, nearest first, with this one."""
    hearing = {
        heard_at(source): name for name, configured in config.routes.items() for source in configured.settings.sources
    }
    reached = [start]
    for name in reached:
        for target in config.routes[name].settings.to:
            said = said_at(target.sink)
            ahead = hearing.get(said) if said is not None else None
            if ahead is not None and ahead not in reached:
                reached.append(ahead)
    return reached
