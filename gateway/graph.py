"""A configuration as a picture: Mermaid's flowchart, sources → route → targets, joined where routes meet."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from gateway.checks import steps_of
from gateway.config import Config
from gateway.language import Route
from gateway.path import word_of
from gateway.patterns import Call, Tap
from gateway.whereabouts import heard_at, label, said_at

_ESCAPES = str.maketrans({"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "\n": " "})


def graph(config: Config) -> str:
    """The text of the flowchart. It shows what the file says: references, no secrets."""
    return "\n".join(_Drawing(config).lines()) + "\n"


class _Drawing:
    def __init__(self, config: Config) -> None:
        self._routes = {name: configured.settings for name, configured in config.routes.items()}
        self._hidden = config.hidden
        self._places: dict[str, str] = {}
        """The node of each place where routes meet; of other components, by a name of their own."""
        self._nodes: list[str] = []

    def lines(self) -> Iterator[str]:
        arrows = [arrow for number, name in enumerate(self._routes) for arrow in self._route(number, name)]
        yield "flowchart LR"
        yield from (f"  {node}" for node in self._nodes)
        yield from (f"  {arrow}" for arrow in arrows)

    def _route(self, number: int, name: str) -> Iterator[str]:
        route = self._routes[name]
        mine = f"r{number}"
        steps = " → ".join(word_of(step) for step in (*route.accept, *route.steps))
        text = _text(name) + (f"<br/>{_text(steps)}" if steps else "")
        self._nodes.append(f'{mine}["{text}"]')
        for source in route.sources:
            yield f"{self._place(name, source, heard_at(source))} --> {mine}"
        for target in route.to:
            said = [target.name] if target.name != word_of(target.sink) else []
            said += [f"when {self._hidden(name, target.when.text)}"] if target.when is not None else []
            arrow = f'-->|"{_text(", ".join(said))}"|' if said else "-->"
            yield f"{mine} {arrow} {self._place(name, target.sink, said_at(target.sink))}"
        if route.dead_letter is not None:
            sink = route.dead_letter.sink
            yield f'{mine} -.->|"dead letters"| {self._place(name, sink, said_at(sink))}'
        yield from self._asides(name, route, mine)

    def _asides(self, name: str, route: Route, mine: str) -> Iterator[str]:
        """What calls and taps inside of the steps reach."""
        for _, step in steps_of(route, ()):
            if isinstance(step, Call | Tap):
                said = "tap" if isinstance(step, Tap) else f"call {step.name}"
                yield f'{mine} -.->|"{_text(said)}"| {self._place(name, step.sink, said_at(step.sink))}'

    def _place(self, route: str, component: Any, meeting: str | None) -> str:
        key = meeting or f"{len(self._places)}"
        if key not in self._places:
            self._places[key] = node = f"p{len(self._places)}"
            left, right = ("{{", "}}") if word_of(component) == "channel" else ("([", "])")
            self._nodes.append(f'{node}{left}"{_text(label(component, partial(self._hidden, route)))}"{right}')
        return self._places[key]


def _text(text: str) -> str:
    return text.translate(_ESCAPES)
