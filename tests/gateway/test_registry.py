"""Words to classes: bundled modules, plug-ins, what is unknown, and how components are written."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from gateway import ConfigError, FormatField, Limits, MessageError
from gateway import registry as registry_module
from gateway.formats import formats_with
from gateway.message import Tree
from gateway.patterns import PATTERNS
from gateway.registry import component, module, read_component, words
from tests.gateway import probe
from tests.gateway.probe import plug_in


def told(error: pytest.ExceptionInfo[ValidationError]) -> list[tuple[str, str]]:
    return [(".".join(map(str, one["loc"])), one["msg"]) for one in error.value.errors()]


# --- finding


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("Source", {"http", "mqtt", "tcp", "mllp", "file", "timer", "channel", "memory", "rest", "udp", "amqp"}),
        ("Sink", {"http", "mqtt", "tcp", "mllp", "file", "channel", "memory", "log", "drop", "udp", "amqp"}),
        ("Connection", {"mqtt", "amqp", "mqtt_broker"}),
        ("Format", {"json", "xml", "text", "form", "csv", "msgpack", "hl7", "fixed_width"}),
        ("Step", {"parse", "format", "map", "set", "filter", "validate", "template", "log", "xslt", "python"}),
    ],
)
def test_every_word_names_a_class_of_its_kind(kind: Any, some: set[str]) -> None:
    found = words(kind)
    assert some <= set(found)
    assert found == sorted(found)
    for word in found:
        each = component(kind, word)
        assert each.__name__ == kind
        assert each.__module__.rpartition(".")[2] == word


@pytest.mark.parametrize(
    ("kind", "word", "text"),
    [
        ("Sink", "htp", 'no sink is called "htp"; did you mean http?'),
        ("Source", "drop", 'no source is called "drop"'),
        ("Step", "", 'no step is called ""; there are: filter, format, log, map'),
        ("Format", "_xml", 'no format is called "_xml"; did you mean xml?'),
        ("Sink", "os.path", 'no sink is called "os.path"'),
        ("Sink", "../x", 'no sink is called "../x"'),
        ("Sink", "__init__", 'no sink is called "__init__"'),
    ],
)
def test_a_word_that_names_nothing_is_told_with_the_nearest(kind: Any, word: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        component(kind, word)
    assert str(error.value).startswith(text)


def test_only_what_is_named_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "adapters.amqp", raising=False)
    component("Sink", "drop")
    assert "adapters.amqp" not in sys.modules


def test_a_client_library_that_is_not_installed_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'aio_pika'", name="aio_pika")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError) as error:
        component("Sink", "amqp")
    assert str(error.value) == (
        "amqp needs the package aio_pika, which is not installed; "
        "install it with: pip install 'interchange-gateway[amqp]'"
    )


@pytest.mark.parametrize("missing", ["gateway.nowhere", "adapters.nowhere"])
def test_a_module_of_ours_that_is_missing_is_a_bug_and_no_extra(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def raising(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(importlib, "import_module", raising)
    with pytest.raises(ModuleNotFoundError):
        component("Sink", "amqp")


# --- plug-ins


def test_a_plug_in_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch)
    assert component("Sink", "probe") is probe.Sink
    assert component("Source", "probe") is probe.Source
    assert module("adapters", "probe") is probe
    assert "probe" in words("Sink")
    assert isinstance(read_component("Sink", {"probe": {"name": "x"}}), probe.Sink)


def test_an_installed_plug_in_is_looked_up_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(*, group: str) -> list[EntryPoint]:
        return [EntryPoint("probe", "tests.gateway.probe", group)] if group == "gateway.adapters" else []

    registry_module.plugged.cache_clear()
    monkeypatch.setattr(registry_module, "entry_points", installed)
    try:
        assert component("Sink", "probe") is probe.Sink
        assert module("transforms", "probe") is None
    finally:
        registry_module.plugged.cache_clear()


def test_a_plug_in_may_not_take_a_bundled_name(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, http="somebody.http")
    with pytest.raises(ConfigError, match=r'the plug-in somebody.http calls itself "http", a bundled name; rename it'):
        component("Sink", "http")


def test_two_plug_ins_may_not_take_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = tuple(EntryPoint("kafka", value, "gateway.adapters") for value in ("one.kafka", "two.kafka"))
    monkeypatch.setattr(registry_module, "plugged", lambda group: entries)
    with pytest.raises(
        ConfigError, match=r'the plug-ins one.kafka and two.kafka both call themselves "kafka"; remove one'
    ):
        component("Sink", "kafka")


@pytest.mark.parametrize("word", sorted(PATTERNS))
def test_a_plug_in_may_not_take_a_word_of_the_language(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    entry = EntryPoint(word, f"somebody.{word}", "gateway.transforms")
    monkeypatch.setattr(registry_module, "plugged", lambda group: (entry,) if group == "transforms" else ())
    with pytest.raises(ValueError, match=f'somebody.{word} calls itself "{word}", a word of the language; rename it'):
        read_component("Step", {word: {}}, None, PATTERNS)


# --- how components are written


def test_a_component_is_a_word_or_a_word_with_settings() -> None:
    assert read_component("Sink", "drop") == read_component("Sink", {"drop": {}})
    assert read_component("Sink", {"channel": "live"}).model_dump() == {"name": "live"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "expected the name of a sink, or name: settings, got None"),
        ([], "expected the name of a sink, or name: settings, got []"),
        ({}, "expected the name of a sink, or name: settings, got {}"),
        ({"drop": {}, "log": {}}, "expected one sink, got 2 keys: drop, log; write each after a dash"),
        ("nowhere", 'no sink is called "nowhere"'),
    ],
)
def test_what_is_no_component_is_told(value: Any, text: str) -> None:
    with pytest.raises(ValueError) as error:
        read_component("Sink", value)
    assert str(error.value).startswith(text)


@pytest.mark.parametrize(
    ("value", "place", "text"),
    [
        (
            {"drop": None},
            "drop",
            "expected the settings of drop as key: value, got nothing; write drop: {} for none",
        ),
        ({"drop": 7}, "drop", "expected the settings of drop as key: value, got 7"),
        ({"http": {"url": "http://h", "tmeout": "5s"}}, "http.tmeout", 'unknown key "tmeout"; did you mean timeout?'),
        ({"drop": {"x": 1}}, "drop.x", 'unknown key "x"; drop has no settings'),
        ({"channel": ""}, "channel", "String should have at least 1 character"),
    ],
)
def test_wrong_settings_are_told_at_their_place(value: Any, place: str, text: str) -> None:
    with pytest.raises(ValidationError) as error:
        read_component("Sink", value)
    ((found_place, found),) = told(error)
    assert (found_place, found[: len(text)]) == (place, text)


def test_a_connection_is_written_inline_or_named() -> None:
    inline = read_component("Sink", {"mqtt": {"url": "mqtt://h", "client_id": "g", "topic": "t"}})
    assert inline.connection.url == "mqtt://h"  # type: ignore[attr-defined]
    with pytest.raises(ValidationError) as error:
        read_component("Sink", {"mqtt": {"topic": "t"}})
    assert told(error) == [
        ("mqtt.connection", "a required key is missing: connection (a name under connections:), or url")
    ]
    with pytest.raises(ValidationError) as error:
        read_component("Sink", {"mqtt": {"connection": "plant", "url": "mqtt://h", "topic": "t"}})
    assert told(error) == [("mqtt.url", "url belongs to the connection; write it under connections.plant")]
    with pytest.raises(ValidationError) as error:
        read_component("Sink", {"mqtt": {"connection": "plant", "topic": "t"}})
    assert told(error) == [("mqtt.connection", 'no connection is called "plant"; name an entry of connections:')]


# --- formats


class Holder(BaseModel):
    format: FormatField


def test_a_field_that_holds_a_format_reads_and_writes_it_as_people_do() -> None:
    for value in ("xml", {"xml": {"root": "Order"}}):
        holder = Holder.model_validate({"format": value})
        assert holder.model_dump(mode="json") == {"format": value}
    with pytest.raises(ValidationError, match='no format is called "yaml"'):
        Holder.model_validate({"format": "yaml"})


@pytest.mark.parametrize(
    ("content_type", "body", "tree"),
    [
        ("application/json", b'{"a": 1}', {"a": 1}),
        ("application/json; charset=utf-8", b"[1]", [1]),
        ("APPLICATION/JSON", b"[1]", [1]),
        ("application/vnd.order+json", b"[1]", [1]),
        ("application/soap+xml", b"<a>1</a>", {"a": "1"}),
        ("text/xml", b"<a>1</a>", {"a": "1"}),
        ("text/plain", b"x", "x"),
        ("text/csv", b"a\n1\n", [{"a": "1"}]),
        ("application/x-www-form-urlencoded", b"a=1", {"a": "1"}),
        ("application/msgpack", b"\x01", 1),
    ],
)
def test_a_content_type_chooses_its_format(content_type: str, body: bytes, tree: Tree) -> None:
    assert formats_with(Limits()).parse(body, content_type) == tree


@pytest.mark.parametrize("content_type", ["image/png", "", "json", "application/", "application/octet-stream"])
def test_a_content_type_that_no_format_reads_is_refused_as_unsupported(content_type: str) -> None:
    with pytest.raises(MessageError, match=f"^body: no format reads {content_type!r}; known are application/") as error:
        formats_with(Limits()).parse(b"", content_type)
    assert error.value.code == "unsupported"


def test_a_content_type_whose_format_needs_settings_names_the_step_that_has_them() -> None:
    formats = formats_with(Limits())
    text = (
        "body: application/x-fixed-width does not say what it holds; read it with the step "
        "parse: {fixed_width: {fields: …}}, and write it with format:"
    )
    with pytest.raises(MessageError) as unread:
        formats.parse(b"", "Application/X-Fixed-Width; charset=cp037")
    with pytest.raises(MessageError) as unwritten:
        formats.format([], "application/x-fixed-width")
    for error in (unread, unwritten):
        assert (error.value.code, str(error.value)) == ("unsupported", text)


def test_formats_keep_to_the_limits_that_they_were_given() -> None:
    limits = Limits(json_depth=1)
    assert formats_with(limits).limits is limits
    with pytest.raises(MessageError):
        formats_with(limits).parse(b"[[1]]", "application/json")


def test_content_types_that_peers_invent_do_not_fill_the_memory() -> None:
    formats = formats_with(Limits())
    for number in range(1000):
        assert formats.parse(b"1", f"application/json; x={number}") == 1
    assert len(formats._made) <= 100  # type: ignore[attr-defined]
