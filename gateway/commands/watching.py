"""`tail` and `top`: what a running gateway does now."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Annotated, Any

import typer

from gateway.commands.client import ConfigOption, TokenOption, UrlOption, connected
from gateway.commands.operating import ROUTE_COLUMNS, route_row
from gateway.commands.output import printable, say, say_error, say_json, say_table
from gateway.commands.serving import ROUTES, JsonOption
from gateway.errors import PeerError

_CLEAR = "\033[H\033[2J"


def tail(
    route: Annotated[str | None, typer.Argument(help="Only of this route.")] = None,
    *,
    count: Annotated[int | None, typer.Option("-n", "--count", min=1, help="End after so many messages.")] = None,
    config: ConfigOption = ROUTES,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Follow what routes answer to their senders, and links that come and go, until Ctrl-C."""
    api = connected(config, url, token_file)
    seen = 0
    with suppress(KeyboardInterrupt), api.events(route) as lines:
        for kind, data in events_in(lines):
            if kind == "messages":
                for row in data["messages"]:
                    _say_message(row, as_json=as_json)
                    seen += 1
                    if seen == count:
                        return
                if data["more"] and not as_json:
                    say_error(f"… and {data['more']} more")
            elif kind == "peer":
                _say_peer(data, as_json=as_json)
            elif kind == "missed":
                say_error(f"{data['events']} events were missed; this reads too slowly")
        raise PeerError(f"{api.url} ended the stream; the gateway is stopping")


def events_in(lines: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and data of the events of a stream (HTML, section 9.2.6); comments are left out."""
    kind, data = "message", ""
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield kind, json.loads(data)
            kind, data = "message", ""
        elif name == "event":
            kind = value
        elif name == "data":
            data += value


def _say_message(row: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        say(json.dumps({"kind": "message", **row}, ensure_ascii=False))
        return
    parts = [row["received"], row["route"], row["outcome"], row["id"], row["type"], row.get("subject", "")]
    text = " ".join(printable(part) for part in parts if part)
    say(f"{text}: {printable(row['reason'])}" if row.get("reason") else text)


def _say_peer(peer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        say(json.dumps({"kind": "peer", **peer}, ensure_ascii=False))
        return
    why = f": {printable(peer['reason'])}" if peer.get("reason") else ""
    say(f"{peer.get('route', '')} {peer.get('kind', 'link')} {peer['name']} is {peer['state']}{why}".strip())


def top(
    *,
    interval: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice and end.")] = False,
    config: ConfigOption = ROUTES,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Watch the routes: messages a second, in flight, pending, dead and latencies, until Ctrl-C."""
    api = connected(config, url, token_file)
    live = sys.stdout.isatty() and not once and not as_json
    columns = [ROUTE_COLUMNS[0], "per_second", *ROUTE_COLUMNS[1:]]
    before: dict[str, int] = {}
    at = 0.0
    with suppress(KeyboardInterrupt):
        while True:
            routes, now = api.get("/api/v1/routes")["routes"], time.monotonic()
            rows = [_with_rate(route, before, now - at) for route in routes]
            if as_json and before:
                say_json(rows)
            elif live or before:
                say((_CLEAR if live else "") + f"{api.url} at {time.strftime('%H:%M:%S')}")
                say_table(rows, columns, empty="no route runs")
            if before and not live:
                return
            before, at = {route["name"]: route["counters"]["received"] for route in routes}, now
            if not routes and not live:
                raise PeerError("no route runs")
            time.sleep(interval)


def _with_rate(route: dict[str, Any], before: dict[str, int], took_s: float) -> dict[str, Any]:
    received = route["counters"]["received"]
    since = received - before.get(route["name"], received)
    return {**route_row(route), "per_second": round(max(0, since) / took_s, 1) if took_s else 0}
