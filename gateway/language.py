"""The classes behind `routes.yaml`: the gateway, its routes and their targets. Fields, defaults and descriptions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from gateway import units
from gateway.expressions import Expression
from gateway.layers import Circuit, Retry
from gateway.limits import Limits
from gateway.patterns import Steps
from gateway.ports import Sink, Source
from gateway.registry import component_in, read_component
from gateway.settings import Address, AddressField, Folder, Settings
from gateway.units import Duration, Size

NAME = r"^[A-Za-z_][A-Za-z0-9_-]{0,62}$"


def checked_name(text: str) -> str:
    """The name itself.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(NAME, text):
        raise ValueError(f'"{text}" is no name: expected a letter, then letters, digits, - and _, 63 at most')
    return text


Name = Annotated[
    str, AfterValidator(checked_name), WithJsonSchema({"type": "string", "title": "name", "pattern": NAME})
]
"""The field type of names: they stand in URLs, metrics and ids."""


class Target(Settings):
    """Where a route sends to: a sink, with what belongs to this target alone."""

    sink: Sink = Field(description="where to send: the name of a sink with its settings")
    name: Name = Field("", description="its name in metrics, records and the stable id; default: the sink's word")
    when: Expression | None = Field(None, description="it takes only messages for which this holds; default: all")
    steps: Steps = Field((), description="steps for this target alone, after those of the route")
    retry: Retry = Field(Retry(), description="how often and how long a failing send is tried again (`ack: stored`)")
    circuit: Circuit | None = Field(None, description="when to leave a failing target alone; default: never")

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, value: Any, handler: Any, info: ValidationInfo) -> Target:
        return component_in(cls, "sink", "Sink", value, handler, info.context)


def _one_or_list(read: Callable[[Any, ValidationInfo], Any]) -> BeforeValidator:
    def reads(value: Any, info: ValidationInfo) -> Any:
        return tuple(value) if isinstance(value, list | tuple) else (_Single(read(value, info)),)

    return BeforeValidator(reads)


class _Single:
    """A value that stood alone where a list may stand: already read, so that its place has no index."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _source(value: Any, info: ValidationInfo) -> Any:
    return value.value if isinstance(value, _Single) else read_component("Source", value, info.context)


def _target(value: Any, info: ValidationInfo) -> Any:
    return value.value if isinstance(value, _Single) else Target.model_validate(value, context=info.context)


Sources = Annotated[
    tuple[Annotated[Any, BeforeValidator(_source), WithJsonSchema({"x-component": "Source"})], ...],
    _one_or_list(_source),
]
Targets = Annotated[tuple[Annotated[Target, BeforeValidator(_target)], ...], _one_or_list(_target)]


class Route(Settings):
    """One route: from sources, through checks and steps, to targets."""

    description: str = Field("", description="what it is for, for people")
    from_: Sources = Field(alias="from", min_length=1, description="one source, or a list of them")
    accept: Steps = Field(
        (),
        description="checks (validate, filter, parse) before the answer; what they refuse is refused to the sender",
    )
    ack: Literal["stored", "delivered", "reply"] = Field(
        "stored",
        description="when the sender is acknowledged: stored, delivered to all targets, or with a target's reply",
    )
    order_by: Expression | None = Field(
        None,
        description="with `ack: stored`: messages with the same value keep their order to each target, also across "
        "retries; one whose value is null or empty has none to keep",
    )
    steps: Steps = Field((), description="what happens to the message, in order")
    match: Literal["all", "first"] = Field("all", description="all targets whose `when` holds, or only the first")
    unmatched: Literal["dead_letter", "drop"] = Field(
        "dead_letter", description="what becomes of a message that no target takes"
    )
    to: Targets = Field(min_length=1, description="one target, or a list of them")
    retry: Retry | None = Field(
        None, description="how the calls inside the steps are tried; default: as a target's with ack: stored, else once"
    )
    concurrency: int = Field(16, ge=1, le=10_000, description="sends at once per target")
    expire_after: Duration | None = Field(None, description="after this time since receipt it is not sent any more")
    priority: Expression | None = Field(None, description="0 (normal) to 9: higher ones leave the journal first")
    dead_letter: Annotated[Target | None, BeforeValidator(lambda value: None if value == "store" else value)] = Field(
        None,
        description="`store` keeps dead letters to browse, fix and replay; or a target, which gets each one once: what "
        "it does not take is kept as with `store`",
    )
    history: Literal["full", "hops", "off"] = Field(
        "hops",
        description="what is recorded of each message: bodies before and after each step, the steps only, neither; "
        "attempts are always recorded",
    )
    limits: Limits = Field(Limits(), description="limits of this route, where they differ from the gateway's")

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources, by the name that Python allows."""
        return self.from_


class Api(Settings):
    """The control plane: REST API, health and metrics. It listens on loopback only."""

    listen: AddressField = Field(
        Address("127.0.0.1", 8080), description="where the REST API, health and metrics listen"
    )

    @field_validator("listen")
    @classmethod
    def _is_loopback(cls, address: Address) -> Address:
        if address.host not in {"127.0.0.1", "::1", "localhost"}:
            raise ValueError(
                f"{address} is not a loopback address, and the API has no TLS and identities yet; "
                "listen on 127.0.0.1 and put a proxy in front that has them"
            )
        return address


class Retention(Settings):
    """How long finished messages are kept. Pending and dead ones are kept until they are done or discarded."""

    age: Duration = Field(
        units.duration("7d"), description="delivered and filtered messages older than this are removed"
    )
    size: Size = Field(
        units.size("10GiB"), description="the largest journal: older finished messages are removed before it"
    )
    reserve: Size = Field(
        units.size("512MiB"),
        description="free disk space below which nothing more is accepted; 5 % of the disk where that is more. The "
        "journal's own log may fill less than 128MiB, and then nothing is delivered either",
    )


class Gateway(Settings):
    """The process as a whole."""

    name: Name = Field("gateway", description="its name in logs, metrics and the CloudEvents source")
    data: Folder = Field(description="folder of the journal and other state, 0700; relative to this file")
    journal: Literal["sqlite"] = Field("sqlite", description="where stored messages are kept")
    retention: Retention = Field(Retention(), description="how long finished messages are kept")
    api: Api = Field(Api(), description="the control plane")
    grace: Duration = Field(units.duration("30s"), description="how long a stop waits for messages in flight")
    limits: Limits = Field(Limits(), description="limits of all routes")

    defaults: ClassVar[dict[str, str]] = {"data": "./var"}


class File(Settings):
    """A whole `routes.yaml`."""

    version: Literal[1] = Field(description="the version of this language: 1")
    gateway: Gateway = Field(description="the process as a whole")
    connections: dict[str, Any] = Field({}, description="clients that several routes share, by name")
    listeners: dict[str, Any] = Field({}, description="TLS of addresses, by address, where the defaults do not do")
    routes: dict[str, Route] = Field(description="the routes, by name")
