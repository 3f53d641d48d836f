"""The JSON Schema for editors takes what the gateway takes, and shows what a person got wrong in the structure."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from gateway.config import load
from gateway.documents import Complaints
from gateway.registry import Kind
from gateway.schema import components, schema

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
CASES = sorted((Path(__file__).parent.parent / "cases" / "check").glob("*.txt"))
KINDS: tuple[Kind, ...] = ("Source", "Sink", "Connection", "Format", "Step")
# What is wrong with these can be seen without other files, other parts of the file and the meaning of texts.
STRUCTURAL = {
    "01-typo-in-key",
    "02-unknown-components",
    "03-settings-not-indented",
    "13-units",
    "14-bare-numbers-and-yes",
    "17-unknown-format",
    "20-lists-and-mappings",
    "21-missing-to",
    "23-no-version",
    "26-addresses",
    "28-two-components-in-one-entry",
    "29-choose",
    "32-keys-of-a-target",
}


@cache
def validator() -> Draft202012Validator:
    return Draft202012Validator(schema())


def faults(text: str) -> list[str]:
    return [f"{error.json_path}: {error.message:.300}" for error in validator().iter_errors(yaml.safe_load(text))]


def route(source: str = "rest", target: str = "drop", more: str = "") -> str:
    return f"version: 1\nroutes:\n  a:\n    from: {source}\n    to: {target}\n{more}"


def test_it_is_a_valid_schema_of_draft_2020_12() -> None:
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema())


def test_every_reference_in_it_leads_somewhere() -> None:
    whole = schema()

    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            mine = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
            return mine.union(*(references(value) for value in node.values()))
        return set().union(*(references(value) for value in node)) if isinstance(node, list) else set()

    assert {name.removeprefix("#/$defs/") for name in references(whole)} <= set(whole["$defs"])


def test_it_is_the_same_each_time() -> None:
    assert schema() == schema()


@pytest.mark.parametrize("file", [ROOT / "routes.yaml", *EXAMPLES], ids=lambda file: file.stem)
def test_it_takes_what_runs(file: Path) -> None:
    assert faults(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("case", [case for case in CASES if case.stem in STRUCTURAL], ids=lambda case: case.stem)
def test_it_refuses_what_is_broken_in_structure(case: Path) -> None:
    assert faults(case.read_text(encoding="utf-8").split("--------\n")[0]) != []


def test_every_setting_of_every_component_has_a_description() -> None:
    whole = schema()
    for kind in KINDS:
        for word in components(kind):
            found = whole["$defs"][f"{kind.lower()}-{word}"]
            assert found["description"], (kind, word)
            for name, setting in found.get("properties", {}).items():
                assert setting["description"], (kind, word, name)


def test_defaults_are_as_users_write_them() -> None:
    defs = schema()["$defs"]
    assert defs["Retry"]["properties"]["first_wait"]["default"] == "1s"
    assert defs["Limits"]["properties"]["message"]["default"] == "1MiB"
    assert defs["Limits"]["properties"]["new_connections"]["default"] == "50/s"
    assert defs["Api"]["properties"]["listen"]["default"] == "127.0.0.1:8080"
    assert defs["source-tcp"]["properties"]["framing"]["default"] == "line"
    assert defs["source-http"]["properties"]["methods"]["default"] == ["POST"]
    assert "default" not in defs["Route"]["properties"]["limits"]
    assert defs["Gateway"]["properties"]["data"]["default"] == "./var"


def test_bounds_that_json_schema_can_not_say_are_in_the_description() -> None:
    timeout = schema()["$defs"]["sink-http"]["properties"]["connect_timeout"]
    assert timeout["description"] == "time for a connection to be made (at most 5m)"


def test_no_default_of_a_secret_is_in_it() -> None:
    assert "default" not in schema()["$defs"]["connection-amqp"]["properties"]["password"]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("rest", "drop"),
        ("[rest, {channel: a}]", "[drop, {drop: {}, name: second}]"),
        ("rest", '{log: {text: "a"}, name: b, when: body.a, steps: [{filter: body.b}]}'),
        ("{timer: {every: 5s}}", "{channel: a}"),
        ("{timer: {every: '${env:EVERY}'}}", "{tcp: {connect: '${env:LEDGER}', connections: '${env:MANY}'}}"),
        ("{mqtt: {connection: plant, topic: a}}", "{mqtt: {url: 'mqtt://h', topic: a, tls: {ca: ca.pem}}}"),
        ("{tcp: {listen: '127.0.0.1:1', framing: {length: {bytes: 2}}}}", "{log: {text: 5}}"),
    ],
)
def test_one_spelling_is_taken(source: str, target: str) -> None:
    assert faults(route(source, target)) == []


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("http", "drop"),
        ("{rest: null}", "drop"),
        ("{rest: {}, channel: a}", "drop"),
        ("rest", "{drop: {}, log: {}}"),
        ("rest", "{name: a}"),
        ("rest", "{file: a.jsonl}"),
        ("rest", "{drop: {}, steps: {filter: a}}"),
        ("rest", "{drop: {}, retry: {attempts: 0}}"),
        ("{timer: {every: 5}}", "drop"),
        ("{timer: {every: 5 s}}", "drop"),
        ("{mqtt: {topic: a}}", "drop"),
        ("{mqtt: {connection: plant, topic: a, url: 'mqtt://h'}}", "drop"),
        ("{mqtt: {connection: {url: 'mqtt://h'}, topic: a}}", "drop"),
        ("{tcp: {listen: '127.0.0.1:1', framing: lines}}", "drop"),
    ],
)
def test_other_spellings_are_refused(source: str, target: str) -> None:
    assert faults(route(source, target)) != []


@pytest.mark.parametrize(
    ("steps", "good"),
    [
        ("[{choose: [{when: a, steps: []}, {otherwise: []}]}]", True),
        ("[{choose: [{when: a, step: []}]}]", False),
        ("[{split: {each: body.a, join: list}}]", True),
        ("[{split: {each: body.a, join: text}}]", False),
        ("[{call: {http: {url: 'http://h/'}, into: body.crm, name: crm}}]", True),
        ("[{call: {into: body.crm}}]", False),
        ("[{tap: {channel: a}}]", True),
        ("[{tap: a}]", False),
        ("[{try: {steps: [], catch: []}}]", True),
        ("[{parse: json}, {parse: {csv: {delimiter: ';'}}}, {format: {xml: {root: A}}}]", True),
        ("[{parse: {csv: {delimter: ';'}}}]", False),
        ("[parse]", False),
        ("[{map: {a: [1, '{{ body.b }}', {each: body.c, do: 1}]}}]", True),
        ("[{set: {subject: null, body: {a.b: 1}}}]", True),
    ],
)
def test_steps_and_patterns(steps: str, good: bool) -> None:
    assert (faults(route(more=f"    steps: {steps}\n")) == []) is good


def test_the_schema_and_the_gateway_agree_on_the_cases(tmp_path: Path) -> None:
    """What the schema calls wrong, the gateway refuses: an editor never forbids what would run."""
    for case in CASES:
        text = case.read_text(encoding="utf-8").split("--------\n")[0]
        try:
            wrong = bool(faults(text))
        except yaml.YAMLError:
            continue
        if wrong:
            file = tmp_path / "routes.yaml"
            file.write_text(text, encoding="utf-8")
            with pytest.raises(Complaints):
                load(file)
