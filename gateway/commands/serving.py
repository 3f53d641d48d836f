"""`run`, `check`, `init`, `doctor`, `version`: the gateway and its configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.commands.output import colored, say, say_error, say_json, say_table

if TYPE_CHECKING:
    from gateway.config import Config
    from gateway.trial import Trial

PathArgument = Annotated[Path, typer.Argument(help="The configuration: a file, or a folder of *.yaml files.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ROUTES = Path("routes.yaml")
_LEVELS = ("debug", "info", "warning", "error")


def run(
    path: PathArgument = ROUTES,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Load the configuration again when it changes.")] = False,
    log_level: Annotated[str, typer.Option(help=f"What is logged: {', '.join(_LEVELS)}.")] = "info",
) -> None:
    """Run the gateway until Ctrl-C or SIGTERM. SIGHUP loads the configuration again.

    The log goes to standard error, one JSON object a line.
    """
    import logging

    from gateway.banner import banner
    from gateway.logs import logging_as_json
    from gateway.process import run as run_process

    if log_level not in _LEVELS:
        raise typer.BadParameter(f"expected one of {', '.join(_LEVELS)}, got {log_level!r}", param_hint="--log-level")
    with logging_as_json(getattr(logging, log_level.upper())):
        status = run_process(path, watch=watch, started=lambda app: say(banner(app.config)))
    raise typer.Exit(status)


def check(
    path: PathArgument = ROUTES,
    *,
    connect: Annotated[
        bool,
        typer.Option(
            "--connect", help="Also open the link to every peer once, and ask brokers for topics, queues, exchanges."
        ),
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, max=300, help="Seconds for each link, with --connect.")] = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Check a configuration without running it: all complaints at once, with file, line and column."""
    from gateway.config import load
    from gateway.errors import ConfigError

    try:
        config = load(path)
    except ConfigError as error:
        if not as_json:
            raise
        say_json({"good": False, "complaints": _written(error)})
        raise typer.Exit(2) from error
    peers = _trials(config, timeout) if connect else []
    if as_json:
        shown = [{"peer": peer.peer, "routes": list(peer.routes), "problem": peer.problem} for peer in peers]
        say_json({"good": True, "routes": len(config.routes), "notes": list(config.notes), "peers": shown})
    else:
        count = len(config.routes)
        say(f"good: {count} route{'' if count == 1 else 's'}")
        for note in config.notes:
            say(f"note: {note}")
        for peer in peers:
            _say_peer(peer)
        if connect and not peers:
            say("there are no peers to connect to")
    if any(peer.problem for peer in peers):
        raise typer.Exit(1)


def _written(error: Exception) -> list[dict[str, Any]]:
    from gateway.documents import Complaints

    if not isinstance(error, Complaints):
        return [{"text": str(error)}]
    return [
        {
            "file": complaint.place.file,
            "line": complaint.place.line,
            "column": complaint.place.column,
            "subject": complaint.subject,
            "text": complaint.text,
        }
        for complaint in error.complaints
    ]


def _trials(config: Config, timeout_s: float) -> list[Trial]:
    import asyncio
    import logging

    from gateway.trial import trials

    logging.disable(logging.CRITICAL)  # what goes wrong is told in one sentence a peer
    try:
        return asyncio.run(trials(config, timeout_s=timeout_s))
    finally:
        logging.disable(logging.NOTSET)


def _say_peer(peer: Trial) -> None:
    color = colored(sys.stdout)
    good, bad, plain = ("\033[32m", "\033[31m", "\033[0m") if color else ("", "", "")
    routes = ", ".join(peer.routes)
    if peer.problem is None:
        say(f"{good}ok{plain}    {peer.peer} (of {routes})")
    else:
        say(f"{bad}failed{plain} {peer.peer} (of {routes}): {peer.problem}")


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write; made if it is missing.")] = Path(),
) -> None:
    """Write a small routes.yaml that runs, and the JSON Schema with which editors complete and check it."""
    from gateway.starter import start

    for written in start(folder):
        say(f"wrote {written}")
    where = "" if folder == Path() else f"cd {folder} && "
    say(f"now: {where}gateway run")


def doctor(*, as_json: JsonOption = False) -> None:
    """Show which gateway this is: versions, where it was imported from, accelerators, extras, and known traps."""
    from gateway.doctor import examine

    found = examine()
    if as_json:
        say_json(found.as_dict())
    else:
        for title, rows in found.sections():
            say(title)
            say_table(rows, list(rows[0]) if rows else [], empty="  none")
            say()
        for warning in found.warnings:
            say_error(f"warning: {warning}")
        say("no traps found" if not found.warnings else f"{len(found.warnings)} to look at")
    if found.warnings:
        raise typer.Exit(1)


def print_version(wanted: bool) -> None:  # noqa: FBT001 - as the command line calls it
    """What `gateway --version` does: prints the version and ends."""
    if wanted:
        version()
        raise typer.Exit


def version() -> None:
    """Print the version."""
    from importlib.metadata import version as version_of

    say(f"gateway {version_of('interchange-gateway')}")
