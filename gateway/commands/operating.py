"""`send`, `messages`, `show`, `routes`: what operators ask of a running gateway."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.commands.client import TIMEOUT_S, Api, ConfigOption, TokenOption, UrlOption, connected, receipt
from gateway.commands.files import content_type_of, read_body
from gateway.commands.output import printable, say, say_error, say_json, say_table
from gateway.commands.serving import ROUTES, JsonOption

RouteOption = Annotated[str | None, typer.Option("--route", help="Only of this route.")]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", help="Only with this reason, such as refused or retries.")
]
SinceOption = Annotated[str | None, typer.Option("--since", help="Only since then: a time, or 1h for an hour ago.")]
UntilOption = Annotated[str | None, typer.Option("--until", help="Only until then.")]
TextOption = Annotated[
    str | None,
    typer.Option("--q", help="Only with this text in id, sender's or correlation id, key, subject, type or headers."),
]
CorrelationOption = Annotated[str | None, typer.Option("--correlation-id", help="Only of this conversation.")]
SenderOption = Annotated[
    str | None, typer.Option("--sender-id", help="Only with this id of the sender's own, such as MSH-10.")
]
LimitOption = Annotated[int, typer.Option("--limit", min=1, max=500, help="How many, at most.")]
CursorOption = Annotated[str | None, typer.Option("--cursor", help="Where the page before this one ended.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The id of the message.")]
_WAITS = ("pause", "resume", "show")


def send(
    route: Annotated[str, typer.Argument(help="The route to hand the message to.")],
    file: Annotated[Path, typer.Argument(help="The body: a file, or - for standard input.")],
    *,
    content_type: Annotated[str | None, typer.Option(help="What the body is; default: by the file's name.")] = None,
    wait: Annotated[str | None, typer.Option(help="How long to wait for what becomes of it, such as 30s.")] = None,
    key: Annotated[str | None, typer.Option("--idempotency-key", help="The same key is the same message.")] = None,
    config: ConfigOption = ROUTES,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hand a message to a route and print its id; with ack: reply, print the reply."""
    headers = {"content-type": content_type or content_type_of(file)}
    if key is not None:
        headers["idempotency-key"] = key
    timeout_s = TIMEOUT_S + (_seconds(wait) if wait is not None else TIMEOUT_S)
    path = f"/api/v1/routes/{path_part(route)}/messages"
    api = connected(config, url, token_file)
    body = read_body(file)
    answer = api.call("POST", path, {"wait": wait}, content=body, headers=headers, timeout=timeout_s)
    told = receipt(answer)
    if told is None:
        sys.stdout.buffer.write(answer.content)
        sys.stdout.buffer.flush()
        raise typer.Exit(1 if answer.is_error else 0)
    if as_json:
        say_json(told)
    else:
        say(" ".join([told.get("status", "stored"), told["id"], _why(told)]).rstrip())
    if told.get("status") in ("dead", "expired", "discarded"):
        raise typer.Exit(1)


def _seconds(text: str) -> float:
    from gateway.units import duration

    try:
        return duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--wait") from error


def messages(
    *,
    route: RouteOption = None,
    status: Annotated[
        str | None, typer.Option(help="pending, delivered, filtered, expired, dead or discarded.")
    ] = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    q: TextOption = None,
    correlation_id: CorrelationOption = None,
    sender_id: SenderOption = None,
    limit: LimitOption = 50,
    cursor: CursorOption = None,
    config: ConfigOption = ROUTES,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """List stored messages, newest first."""
    query = {"route": route, "status": status, "reason": reason, "since": since, "until": until, "q": q}
    query |= {"correlation_id": correlation_id, "sender_id": sender_id}
    say_messages(connected(config, url, token_file), query, limit, cursor, as_json=as_json)


def say_messages(api: Api, query: dict[str, Any], limit: int, cursor: str | None, *, as_json: bool) -> None:
    """One page of messages, and where the next one begins."""
    page = _page(api, query, limit, cursor)
    if not page["messages"]:
        check_route(api, query["route"])
    if as_json:
        say_json(page)
        return
    rows = [{**row, "reason": _why(row)} for row in page["messages"]]
    columns = ["received", "id", "route", "status", "type", "subject", "size", "reason"]
    say_table(rows, columns, empty="there are none")
    if "next" in page:
        say_error(f"there are more: --cursor {page['next']}")


def _page(api: Api, query: dict[str, Any], limit: int, cursor: str | None) -> dict[str, Any]:
    """As many as were asked for, if there are: a search that takes long comes in several pages."""
    rows: list[dict[str, Any]] = []
    while True:
        page = api.get("/api/v1/messages", {**query, "limit": limit - len(rows), "cursor": cursor})
        rows += page["messages"]
        cursor = page.get("next")
        if cursor is None or len(rows) >= limit:
            return {**page, "messages": rows}


def check_route(api: Api, name: str | None) -> None:
    """Where nothing was found of a route: tells apart that it has nothing, and that its name is wrong.

    Raises:
        PeerError: there is no such route; it says which was meant.
    """
    if name is not None:
        api.get(f"/api/v1/routes/{path_part(name)}")


def _why(row: dict[str, Any]) -> str:
    reason = row.get("reason")
    return f"{reason['kind']}: {reason['text']}" if isinstance(reason, dict) else ""


def show(
    id_: IdArgument,
    *,
    body: Annotated[bool, typer.Option("--body", help="Print the bytes of the body, as they came.")] = False,
    target: Annotated[str | None, typer.Option(help="With --body: as this target receives it.")] = None,
    config: ConfigOption = ROUTES,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a message: its envelope, what each step made of it, and each attempt to deliver it."""
    api = connected(config, url, token_file)
    path = f"/api/v1/messages/{path_part(id_)}"
    if body or target is not None:
        sys.stdout.buffer.write(api.content(f"{path}/body", {"target": target}))
        sys.stdout.buffer.flush()
        return
    found = api.get(path)
    if as_json:
        say_json(found)
    else:
        say_detail(found)


def say_detail(found: dict[str, Any]) -> None:
    """A message with its history, for people."""
    lists = ("hops", "attempts", "deliveries", "actions")
    plain = {name: value for name, value in found.items() if name not in (*lists, "body_url", "reason")}
    if found.get("reason"):
        plain |= {"reason": _why(found), "place": found["reason"].get("place", "")}
    width = max(len(name) for name in plain)
    for name, value in plain.items():
        if value not in ({}, [], ""):
            say(f"{name.replace('_', ' '):<{width}}  {printable(value)}")
    columns = {
        "hops": ["place", "outcome", "before", "after"],
        "attempts": ["at", "target", "number", "took_s", "error", "answer"],
        "deliveries": ["target", "status", "attempts", "due", "id", "reason"],
    }
    for name, wanted in columns.items():
        rows = [_flat(row) for row in found.get(name, [])]
        if rows:
            say(f"\n{name}")
            say_table(rows, [column for column in wanted if any(column in row for row in rows)], empty="")
    if found.get("actions"):
        say("\nactions")
        for line in found["actions"]:
            say(printable(line))


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the history with texts in place of what has parts."""
    flat = {name: value for name, value in row.items() if name != "reason"}
    for name in ("before", "after"):
        if isinstance(flat.get(name), dict):
            flat[name] = flat[name].get("text") or flat[name].get("base64")
    return {**flat, "reason": _why(row)} if row.get("reason") else flat


def routes(
    action: Annotated[str | None, typer.Argument(metavar="[pause|resume|show]", help="What to do.")] = None,
    name: Annotated[str | None, typer.Argument(help="The route to do it with.")] = None,
    *,
    config: ConfigOption = ROUTES,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the routes that run, show one, or pause and resume its deliveries."""
    if action is not None and (action not in _WAITS or name is None):
        raise typer.BadParameter(f"expected one of {', '.join(_WAITS)} and the name of a route")
    api = connected(config, url, token_file)
    if action is None:
        found = api.get("/api/v1/routes")
        if as_json:
            say_json(found)
        else:
            say_table(map(route_row, found["routes"]), ROUTE_COLUMNS, empty="there are none")
    elif action == "show":
        _say_route(api.get(f"/api/v1/routes/{path_part(name or '')}"), as_json=as_json)
    else:
        told = api.post(f"/api/v1/routes/{path_part(name or '')}/{action}", timeout_s=None)
        say_json(told) if as_json else say(f"{told['name']} {'is paused' if told['paused'] else 'goes on'}")


ROUTE_COLUMNS = [
    "route",
    "ack",
    "state",
    "in_flight",
    "received",
    "refused",
    "pending",
    "dead",
    "p50",
    "p99",
    "from_to",
]


def route_row(route: dict[str, Any]) -> dict[str, Any]:
    """A route as a row of a table."""
    down = [peer["name"] for peer in route["peers"] if peer["state"] != "up"]
    state = "paused" if route["paused"] else f"down: {', '.join(down)}" if down else "up"
    return {
        "route": route["name"],
        "ack": route["ack"],
        "state": state,
        "in_flight": route["in_flight"],
        "received": route["counters"]["received"],
        "refused": route["counters"]["refused"],
        "pending": route["journal"]["pending"],
        "dead": route["journal"]["dead"],
        "p50": shown_seconds(route["latency"]["p50_s"]),
        "p99": shown_seconds(route["latency"]["p99_s"]),
        "from_to": f"{', '.join(route['from'])} → {', '.join(route['to'])}",
    }


def shown_seconds(seconds: float | None) -> str:
    """Such as `5 ms`; nothing where nothing was timed."""
    if seconds is None:
        return ""
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"


def _say_route(route: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        say_json(route)
        return
    say_table([route_row(route)], ROUTE_COLUMNS, empty="")
    say("\ntargets")
    targets = [{**target, "p99": shown_seconds(target["latency"]["p99_s"])} for target in route["targets"]]
    columns = ["name", "sink", "state", "circuit", "delivered", "refused", "failed", "retried", "p99"]
    say_table(targets, columns, empty="there are none")
    if route["lanes"]:
        say(f"\nlanes that wait: {route['lanes_total']}")
        say_table(route["lanes"], ["target", "key", "pending"], empty="")


def path_part(text: str) -> str:
    """A text as one part of a path."""
    from urllib.parse import quote

    return quote(text, safe="")
