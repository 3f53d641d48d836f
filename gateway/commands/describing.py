"""`list`, `doc`, `schema`, `graph`, `eval`: what there is, and what it means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.commands.files import content_type_of, read_body
from gateway.commands.output import say, say_error, say_json, say_table
from gateway.commands.serving import ROUTES, JsonOption, PathArgument

if TYPE_CHECKING:
    from gateway.message import Message

_KINDS = {"sources": "Source", "sinks": "Sink", "connections": "Connection", "formats": "Format", "steps": "Step"}


def list_(
    kind: Annotated[str | None, typer.Argument(help=f"One of {', '.join(_KINDS)}.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """List the components: sources, sinks, connections, formats, steps and patterns."""
    from gateway.reference import listed

    wanted = None if kind is None else kind.lower().rstrip("s") + "s"
    if wanted is not None and wanted not in _KINDS:
        raise typer.BadParameter(f"expected one of {', '.join(_KINDS)}, got {kind!r}")
    rows = [
        {"kind": plural.removesuffix("s"), "name": word, "summary": text}
        for plural, each in _KINDS.items()
        if wanted in (None, plural)
        for word, text in listed(each)  # type: ignore[arg-type]
    ]
    if as_json:
        say_json(rows)
    else:
        say_table(rows, ["kind", "name", "summary"], empty="there are none")


def doc(
    name: Annotated[
        str | None, typer.Argument(help="The name of a component, such as http or map; or framing.")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="The whole reference.")] = False,
) -> None:
    """Print the reference of a component: what it does, its settings, an example. Markdown."""
    from gateway.documents import did_you_mean
    from gateway.reference import Reference

    examples = Path(__file__).parent.parent.parent / "examples"
    reference = Reference(examples)
    if everything:
        say(reference.whole().rstrip())
    elif name is None:
        raise typer.BadParameter("expected the name of a component, or --all; gateway list shows the names")
    elif name in reference.words or name in reference.choices:
        say(reference.page(name).rstrip())
    else:
        hint = did_you_mean(name, [*reference.words, *reference.choices]) or "; gateway list shows the names"
        say_error(f'there is no component "{name}"{hint}')
        raise typer.Exit(1)


def schema() -> None:
    """Print the JSON Schema of routes.yaml, with which editors complete and check it.

    Write it to routes.schema.json and begin routes.yaml with the line:
    # yaml-language-server: $schema=./routes.schema.json
    """
    from gateway.schema import schema as whole

    say_json(whole())


def graph(path: PathArgument = ROUTES) -> None:
    """Draw the routes of a configuration: a Mermaid flowchart."""
    from gateway.config import load
    from gateway.graph import graph as drawn

    say(drawn(load(path)).rstrip())


def evaluate(
    expression: Annotated[str, typer.Argument(help="An expression, or a template with {{ }}.")],
    *,
    body: Annotated[Path | None, typer.Option(help="A file with the body; - is standard input.")] = None,
    content_type: Annotated[str | None, typer.Option(help="What the body is; default: by the file's name.")] = None,
    header: Annotated[list[str] | None, typer.Option(help="A header, as name: value. Repeat for more.")] = None,
    transport: Annotated[
        list[str] | None, typer.Option(help="A transport fact, as name=value, or params.name=value. Repeat for more.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate an expression or a template on a message, as a route would. Text is printed as it is."""
    from gateway.expressions import Expression, Template

    message = _message(body, content_type, header or [], transport or [])
    is_template = "{{" in expression or "{%" in expression
    value: Any = (Template(expression) if is_template else Expression(expression))(message)
    if isinstance(value, str) and not as_json:
        say(value)
    else:
        say_json(value)


def _message(body: Path | None, content_type: str | None, headers: list[str], transport: list[str]) -> Message:
    from gateway.formats import formats_with
    from gateway.limits import Limits
    from gateway.message import Message

    facts: dict[str, Any] = {}
    for fact in transport:
        _put(facts, *_pair(fact, "="))
    return Message(
        raw=b"{}" if body is None else read_body(body),
        content_type=content_type or content_type_of(body),
        headers={name.lower(): value for name, value in (_pair(header, ":") for header in headers)},
        transport=facts,
        formats=formats_with(Limits()),
    )


def _put(facts: dict[str, Any], name: str, value: str) -> None:
    """Puts a fact where its dotted name says: `params.id` below `params`."""
    *above, last = name.split(".")
    for part in above:
        facts = facts.setdefault(part, {})
        if not isinstance(facts, dict):
            raise typer.BadParameter(f"expected {part} to be a value or to hold others, got both", param_hint=name)
    facts[last] = value


def _pair(text: str, sign: str) -> tuple[str, str]:
    name, found, value = text.partition(sign)
    if not found or not name.strip():
        raise typer.BadParameter(f"expected name{sign}value, got {text!r}")
    return name.strip(), value.strip()
