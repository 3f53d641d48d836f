"""Nothing exists that is not documented: components, settings, and an example of each."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway import language
from gateway.checks import steps_of
from gateway.config import load
from gateway.layers import Circuit, Retry
from gateway.limits import Limits
from gateway.path import word_of
from gateway.patterns import PATTERNS
from gateway.registry import Kind, component, words
from gateway.settings import ClientTls, ServerTls, Settings
from tests.playground import ROOT

KINDS: list[Kind] = ["Source", "Sink", "Connection", "Format", "Step"]
COMPONENTS = [(kind, word, component(kind, word)) for kind in KINDS for word in words(kind)]
COMPONENTS += [("Step", word, pattern) for word, pattern in PATTERNS.items()]
LANGUAGE = [
    language.Gateway,
    language.Api,
    language.Retention,
    language.Route,
    language.Target,
    Retry,
    Circuit,
    Limits,
    ServerTls,
    ClientTls,
]
IDS = [f"{kind} {word}" for kind, word, _ in COMPONENTS]


def inside(found: Any) -> Iterator[type[Any]]:
    """A settings class, and those that its fields hold."""
    seen: list[Any] = [found]
    for each in seen:
        yield each
        for field in each.model_fields.values():
            for part in _parts(field.annotation):
                if inspect.isclass(part) and issubclass(part, Settings) and part not in seen:
                    seen.append(part)


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _parts(part)


@pytest.mark.parametrize("found", [found for _, _, found in COMPONENTS], ids=IDS)
def test_a_component_says_what_it_does(found: type[Settings]) -> None:
    said = inspect.getdoc(found) or ""
    assert said.split("\n")[0].strip(" .")
    assert said != inspect.getdoc(Settings)


@pytest.mark.parametrize("found", [*(found for _, _, found in COMPONENTS), *LANGUAGE], ids=lambda found: str(found))
def test_every_setting_is_described(found: Any) -> None:
    bare = [
        f"{each.__name__}.{name}"
        for each in inside(found)
        for name, field in each.model_fields.items()
        if not field.description
    ]
    assert bare == []


@pytest.mark.parametrize("found", LANGUAGE, ids=lambda found: found.__name__)
def test_every_setting_of_the_language_is_in_the_reference(found: Any) -> None:
    reference = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    names = [field.alias or name for name, field in found.model_fields.items()]
    # a target's sink has no key of its own
    missing = [name for name in names if not re.search(rf"[`.]{name}`", reference) and name != "sink"]
    assert missing == [], "make docs writes the reference anew"


def shown() -> set[tuple[str, str]]:
    """Kinds and words that some example uses."""
    found: set[tuple[str, str]] = set()
    for example in examples():
        for configured in load(example).routes.values():
            route = configured.settings
            found |= {("Source", word_of(source)) for source in route.sources}
            for target in [*route.to, *([route.dead_letter] if route.dead_letter else [])]:
                found.add(("Sink", word_of(target.sink)))
            for _, step in steps_of(route, ()):
                found.add(("Step", word_of(step)))
                sink, form = getattr(step, "sink", None), getattr(step, "format", None)
                if sink is not None:
                    found.add(("Sink", word_of(sink)))
                if form is not None:
                    found.add(("Format", word_of(form)))
            connections = [getattr(part, "connection", None) for part in [*route.sources, *(t.sink for t in route.to)]]
            found |= {("Connection", word_of(connection)) for connection in connections if connection is not None}
    return found


def examples() -> list[Path]:
    return sorted((ROOT / "examples").glob("*.yaml"))


SHOWN = shown()


@pytest.mark.parametrize(("kind", "word"), [(kind, word) for kind, word, _ in COMPONENTS], ids=IDS)
def test_every_component_is_shown_in_an_example(kind: str, word: str) -> None:
    assert (kind, word) in SHOWN


@pytest.mark.parametrize("word", sorted({*words("Source"), *words("Sink")}))
def test_every_adapter_has_a_file_for_each_direction(word: str) -> None:
    names = {example.stem for example in examples()}
    if word in names:
        return
    for kind, direction in (("Source", "from"), ("Sink", "to")):
        if word in words(kind):  # type: ignore[arg-type]
            assert f"{direction}-{word}" in names


@pytest.mark.parametrize("word", sorted(PATTERNS))
def test_every_pattern_has_a_file(word: str) -> None:
    assert f"pattern-{word}" in {example.stem for example in examples()}


@pytest.mark.parametrize("word", words("Format"))
def test_every_format_has_a_file(word: str) -> None:
    assert f"format-{word}" in {example.stem for example in examples()}


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.stem)
def test_an_example_says_what_it_shows(example: Path) -> None:
    assert example.read_text(encoding="utf-8").startswith("# ")
