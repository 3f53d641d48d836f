"""The `gateway` command. Exit codes: 0 good, 1 failed, 2 the configuration or the command line is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from gateway.commands import dead, describing, operating, serving, watching
from gateway.commands.output import colored, say_error
from gateway.errors import ConfigError, GatewayError

EXIT_FAILED, EXIT_CONFIGURATION = 1, 2

app = typer.Typer(
    name="gateway",
    help="An integration gateway where old systems and new ones meet.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=serving.print_version, help="Print the version.")
    ] = False,
) -> None:
    """An integration gateway where old systems and new ones meet."""


app.command()(serving.run)
app.command()(serving.check)
app.command()(serving.init)
app.command()(operating.send)
app.command()(operating.messages)
app.command()(operating.show)
app.add_typer(dead.app, name="dead")
app.command()(watching.tail)
app.command()(watching.top)
app.command()(operating.routes)
app.command(name="list")(describing.list_)
app.command()(describing.doc)
app.command()(describing.schema)
app.command()(describing.graph)
app.command(name="eval")(describing.evaluate)
app.command()(serving.doctor)
app.command()(serving.version)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command line, by default that of the process, and exits."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="gateway")
    except ConfigError as error:
        from gateway.documents import Complaints, render

        if isinstance(error, Complaints):
            say_error(render(error.complaints, color=colored(sys.stderr)))
        else:
            say_error(str(error))
        sys.exit(EXIT_CONFIGURATION)
    except GatewayError as error:
        say_error(str(error))
    except Exception as error:
        if os.environ.get("GATEWAY_DEBUG"):
            raise
        say_error(f"a bug of the gateway: {type(error).__name__}: {error}; with GATEWAY_DEBUG=1 it shows where")
    sys.exit(EXIT_FAILED)
