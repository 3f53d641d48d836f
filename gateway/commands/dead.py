"""`dead list`, `show`, `replay`, `discard`: messages that could not be delivered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.commands.client import Api, ConfigOption, TokenOption, UrlOption, connected
from gateway.commands.files import content_type_of, read_body
from gateway.commands.operating import (
    CorrelationOption,
    CursorOption,
    IdArgument,
    LimitOption,
    ReasonOption,
    RouteOption,
    SenderOption,
    SinceOption,
    TextOption,
    UntilOption,
    check_route,
    path_part,
    say_messages,
    show,
)
from gateway.commands.output import say, say_error, say_json
from gateway.commands.serving import ROUTES, JsonOption
from gateway.errors import PeerError

IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="The ids; else say which by filter.")]
AllOption = Annotated[bool, typer.Option("--all", help="All dead letters, or all that the filters leave.")]
RateOption = Annotated[str | None, typer.Option("--rate", help="How fast at most, such as 50/s.")]

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Browse, replay and discard messages that could not be delivered."
)


@app.command(name="list")
def list_(
    *,
    route: RouteOption = None,
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
    """List dead letters, newest first, each with its reason."""
    query = {"status": "dead", **_wanted(route, reason, since, until, q, correlation_id, sender_id)}
    say_messages(connected(config, url, token_file), query, limit, cursor, as_json=as_json)


@app.command(name="show")
def show_(
    id_: IdArgument,
    *,
    body: Annotated[bool, typer.Option("--body", help="Print the bytes of the body, as they came.")] = False,
    target: Annotated[str | None, typer.Option(help="With --body: as this target receives it.")] = None,
    config: ConfigOption = ROUTES,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one: its reason, its envelope and each attempt."""
    show(id_, body=body, target=target, config=config, url=url, token_file=token_file, as_json=as_json)


@app.command()
def replay(
    ids: IdsArgument = None,
    *,
    target: Annotated[str | None, typer.Option(help="Only to this target.")] = None,
    body: Annotated[Path | None, typer.Option(help="Send this file's text instead of the body: one ID only.")] = None,
    content_type: Annotated[str | None, typer.Option(help="What that file is; default: by its name.")] = None,
    route: RouteOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    q: TextOption = None,
    correlation_id: CorrelationOption = None,
    sender_id: SenderOption = None,
    everything: AllOption = False,
    rate: RateOption = None,
    config: ConfigOption = ROUTES,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send dead letters again: these ids, or all that match the filters."""
    wanted = _wanted(route, reason, since, until, q, correlation_id, sender_id)
    _check_choice(ids, wanted, everything=everything)
    for option, given in (("--body", body), ("--content-type", content_type)):
        if given is not None and len(ids or []) != 1:
            raise typer.BadParameter(f"expected exactly one ID with {option}", param_hint=option)
    api = connected(config, url, token_file)
    if not ids:
        bulk = api.post(
            "/api/v1/dead-letters/replay",
            _given(wanted | {"target": target, "rate": rate, "all": everything or None}),
            timeout_s=None,
        )
        _say_bulk(api, "replayed", bulk, route, as_json=as_json)
        return
    change = _given({"target": target, **_edited(body, content_type)})
    _each(api, ids, lambda path: api.post(f"{path}/replay", change), "replayed", as_json=as_json)


@app.command()
def discard(
    ids: IdsArgument = None,
    *,
    route: RouteOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    q: TextOption = None,
    correlation_id: CorrelationOption = None,
    sender_id: SenderOption = None,
    everything: AllOption = False,
    rate: RateOption = None,
    config: ConfigOption = ROUTES,
    url: UrlOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Discard dead letters: these ids, or all that match the filters. They are kept until retention removes them."""
    wanted = _wanted(route, reason, since, until, q, correlation_id, sender_id)
    _check_choice(ids, wanted, everything=everything)
    api = connected(config, url, token_file)
    if not ids:
        bulk = api.post(
            "/api/v1/dead-letters/discard", _given(wanted | {"rate": rate, "all": everything or None}), timeout_s=None
        )
        _say_bulk(api, "discarded", bulk, route, as_json=as_json)
        return
    _each(api, ids, api.delete, "discarded", as_json=as_json)


def _wanted(
    route: str | None,
    reason: str | None,
    since: str | None,
    until: str | None,
    q: str | None,
    correlation_id: str | None,
    sender_id: str | None,
) -> dict[str, str | None]:
    given = {"route": route, "reason": reason, "since": since, "until": until, "q": q}
    return given | {"correlation_id": correlation_id, "sender_id": sender_id}


def _check_choice(ids: list[str] | None, wanted: dict[str, Any], *, everything: bool) -> None:
    """Nothing is done to all dead letters by leaving something out."""
    filtered = any(value is not None for value in wanted.values())
    if ids and (filtered or everything):
        raise typer.BadParameter("expected either ids, or filters and --all")
    if not ids and not filtered and not everything:
        raise typer.BadParameter("expected ids, a filter such as --route, or --all")


def _given(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def _edited(body: Path | None, content_type: str | None) -> dict[str, Any]:
    if body is None:
        return {"content_type": content_type}
    try:
        return {"body": read_body(body).decode(), "content_type": content_type or content_type_of(body)}
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{body} is not UTF-8 text", param_hint="--body") from error


def _each(api: Api, ids: list[str], act: Any, word: str, *, as_json: bool) -> None:
    """Acts on each id; one that fails does not keep the others from theirs."""
    done, failed = [], 0
    for id_ in ids:
        try:
            done.append(act(f"/api/v1/messages/{path_part(id_)}"))
        except PeerError as error:
            if len(ids) == 1:
                raise
            failed += 1
            say_error(f"{id_}: {error}")
            continue
        if not as_json:
            say(f"{word} {id_}{_more(done[-1], id_, word)}")
    if as_json:
        say_json(done)
    if failed:
        raise typer.Exit(1)


def _more(told: dict[str, Any], id_: str, word: str) -> str:
    """What else is worth knowing once it is done."""
    if told["id"] != id_ and "causation_id" in told:
        return f" as {told['id']}; the old one stays as it is, discard it if it is not needed"
    whole = f"; it is a part of {told['id']}, which is {word} as a whole" if told["id"] != id_ else ""
    if "paused" in told:
        return f"{whole}; it is sent once the route {told['paused']} is resumed"
    return whole


def _say_bulk(api: Api, word: str, told: dict[str, Any], route: str | None, *, as_json: bool) -> None:
    if not told[word] and not told["skipped"]:
        check_route(api, route)
    if as_json:
        say_json(told)
        return
    say(f"{word} {told[word]}")
    if "paused" in told:
        say(f"sent once they are resumed: {', '.join(told['paused'])}")
    for code, count in told["skipped"].items():
        say(f"left {count}: {code}")
    if told["more"]:
        say("there are more: run it again")
