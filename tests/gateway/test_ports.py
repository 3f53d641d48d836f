"""Every bundled component satisfies its port: at run time by its shape, and for mypy by its types."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from pydantic_core import PydanticUndefined

from gateway import Clock, Format, Host, Settings, Shared, Sink, Source, Step, SystemClock
from gateway.registry import component, words
from gateway.testing import FakeHost, ManualClock

if TYPE_CHECKING:
    import transforms.log
    from adapters import (
        amqp,
        channel,
        drop,
        file,
        http,
        log,
        memory,
        mllp,
        mqtt,
        mqtt_broker,
        rest,
        tcp,
        timer,
        udp,
        websocket,
    )
    from gateway.host import EngineHost
    from transforms import (
        csv,
        filter,
        fix,
        fixed_width,
        form,
        format,
        hl7,
        json,
        map,
        msgpack,
        parse,
        python,
        set,
        template,
        text,
        validate,
        xml,
        xslt,
    )

    # mypy checks each of these assignments: a class that does not fit its port is an error of types.
    SOURCES: list[type[Source]] = [
        amqp.Source,
        channel.Source,
        file.Source,
        http.Source,
        memory.Source,
        mllp.Source,
        mqtt.Source,
        mqtt_broker.Source,
        rest.Source,
        tcp.Source,
        timer.Source,
        udp.Source,
        websocket.Source,
    ]
    SINKS: list[type[Sink]] = [
        amqp.Sink,
        channel.Sink,
        drop.Sink,
        file.Sink,
        http.Sink,
        log.Sink,
        memory.Sink,
        mllp.Sink,
        mqtt.Sink,
        mqtt_broker.Sink,
        tcp.Sink,
        udp.Sink,
        websocket.Sink,
    ]
    FORMATS: list[type[Format]] = [
        csv.Format,
        fix.Format,
        fixed_width.Format,
        form.Format,
        hl7.Format,
        json.Format,
        msgpack.Format,
        text.Format,
        xml.Format,
    ]
    STEPS: list[type[Step]] = [
        filter.Step,
        format.Step,
        transforms.log.Step,
        map.Step,
        parse.Step,
        python.Step,
        set.Step,
        template.Step,
        validate.Step,
        xslt.Step,
    ]
    CONNECTIONS: list[type[Shared[Any]]] = [amqp.Connection, mqtt.Connection, mqtt_broker.Connection]
    HOSTS: list[Callable[..., Host]] = [FakeHost, EngineHost]
    CLOCKS: list[Callable[..., Clock]] = [ManualClock, SystemClock]

PORTS: dict[str, type] = {"Source": Source, "Sink": Sink, "Format": Format, "Step": Step}
EVERY = [(kind, word) for kind in (*PORTS, "Connection") for word in words(kind)]  # type: ignore[arg-type]


def made(found: type[Settings]) -> Settings:
    """One with nothing set: enough to look at its shape."""
    fields = {
        name: None if field.default is PydanticUndefined else field.default
        for name, field in found.model_fields.items()
    }
    return found.model_construct(**fields)


@pytest.mark.parametrize(("kind", "word"), EVERY)
def test_a_component_has_the_shape_of_its_port(kind: Any, word: str) -> None:
    found = component(kind, word)
    assert issubclass(found, Settings)
    if kind == "Connection":
        assert callable(getattr(found, "open", None))
        assert hash(made(found)) == hash(made(found))
        return
    port = PORTS[kind]
    names = {"Source": ["run"], "Sink": ["open"], "Format": ["parse", "format"], "Step": ["__call__"]}[kind]
    if kind != "Source":
        assert isinstance(made(found), port)
    else:
        assert isinstance(inspect.getattr_static(found, "answers"), property | bool)
    for name in names:
        wanted = list(inspect.signature(getattr(port, name)).parameters)
        given = list(inspect.signature(getattr(found, name)).parameters)
        assert len(given) == len(wanted), f"{kind} {word}: {name} takes {given}, the port has {wanted}"
    if kind == "Source":
        assert inspect.iscoroutinefunction(found.run)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("kind", "word"), EVERY)
def test_a_component_is_documented(kind: Any, word: str) -> None:
    found = component(kind, word)
    assert found.__doc__
    assert found.__doc__.strip().splitlines()[0].endswith((".", ":", ",")) or len(found.__doc__.splitlines()) > 1
    assert found.model_config.get("frozen")
    assert found.model_config.get("extra") == "forbid"
    for name, field in found.model_fields.items():
        assert field.description, f"{kind} {word}: {name} has no description"
        assert not field.description.endswith("."), f"{kind} {word}: the description of {name} ends in a full stop"


def test_what_mypy_checks_leaves_nobody_out() -> None:
    source = inspect.getsource(inspect.getmodule(made) or made)
    for kind, word in EVERY:
        assert f"{word}.{kind}" in source, f"add {word}.{kind} to the assignments that mypy checks"
