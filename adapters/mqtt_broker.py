"""A small MQTT 3.1.1 broker inside of the gateway: `mqtt_broker` as connection, source and sink.

For a start without any other server. It holds sessions, subscriptions and retained messages in memory; what a route
with `ack: stored` took is safe, because its client is acknowledged after the journal. It serves some two thousand
messages a second: beyond that run Mosquitto or EMQX, and use `mqtt`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from adapters._broker import EmbeddedBroker
from adapters._broker_client import Published
from adapters._sockets import listen
from gateway import (
    JSON,
    Accepted,
    Address,
    Deferred,
    Deliver,
    Duration,
    Host,
    Listen,
    ListenAt,
    Message,
    Principal,
    Refused,
    Secret,
    Send,
    Settings,
    TopicTemplate,
    duration,
)


def _pairs(value: object) -> object:
    return tuple(value.items()) if isinstance(value, dict) else value


Users = Annotated[
    tuple[tuple[str, Secret], ...],
    BeforeValidator(_pairs),
    PlainSerializer(lambda pairs: {name: str(secret) for name, secret in pairs}),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1}),
]


class Auth(Settings):
    """Who may connect."""

    users: Users = Field(min_length=1, description="names and passwords, as name: password")


class Connection(Settings):
    """The broker at one address. Sources and sinks with the same settings are at the same broker."""

    listen: Listen = Field(
        ListenAt(Address("127.0.0.1", 1883)), description="where clients connect; TLS comes from listeners:"
    )
    auth: Auth | None = Field(
        None, description="who may connect; without it everybody may, which is allowed on loopback only"
    )
    session_expiry: Duration = Field(
        duration("1d"), ge=1, description="how long a client that is away keeps its session"
    )

    @model_validator(mode="after")
    def _is_not_open_to_the_world(self) -> Connection:
        tls = self.listen.tls
        if self.auth is None and not _is_loopback(self.listen.address.host) and not (tls and tls.client_ca):
            raise ValueError(
                f"auth: {self.listen} is open to other machines, so say who may connect: auth: {{users: …}}, or "
                "client_ca: at the listener, or listen on 127.0.0.1"
            )
        return self

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[RunningBroker]:
        """The broker, listening.

        Raises:
            ConfigError: the address can't be had, or the certificate or its key can't be used.
        """
        passwords = None
        if self.auth is not None:
            passwords = {name: secret.get_secret_value() for name, secret in self.auth.users}
        broker = EmbeddedBroker(host, passwords, self.session_expiry)
        connections: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        ended = False

        def stream() -> asyncio.Protocol:
            return asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), accepted, loop=loop)

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if ended:  # its handshake took until after the end
                writer.close()
                return
            serving = tasks.create_task(broker.serve(reader, writer), name="mqtt-broker-client")
            connections.add(serving)
            serving.add_done_callback(connections.discard)

        try:
            await broker.start()
            async with listen(stream, self.listen, host, who="mqtt_broker") as servers, asyncio.TaskGroup() as tasks:
                try:
                    yield RunningBroker(broker, servers.address)
                finally:
                    ended = True
                    servers.close()
                    for serving in connections:
                        serving.cancel()
        finally:
            await broker.shutdown()


class RunningBroker:
    """A broker that listens, and where."""

    def __init__(self, broker: EmbeddedBroker, address: Address) -> None:
        self.broker = broker
        self.address = address


class Source(Settings):
    """Takes what clients publish to some topics. A client is acknowledged (PUBACK, PUBREC) after the route's outcome;
    other clients that are subscribed get the message in any case.

    `transport` has topic, qos, retain, redelivered, client_id and peer.
    """

    connection: Connection = Field(description="the broker")
    topics: tuple[str, ...] = Field(("#",), min_length=1, description="topic filters of what goes to the route")
    content_type: str = Field(JSON, description="what the bodies are: MQTT 3.1.1 does not say")

    @property
    def answers(self) -> bool:
        """False: MQTT 3.1.1 knows no word for a refusal."""
        return False

    async def run(self, host: Host, deliver: Deliver, ready: Callable[[], None]) -> None:
        """Hands over until cancelled."""

        async def take(published: Published) -> bool:
            message = self._message(published)
            while True:
                outcome = await deliver(message)
                if isinstance(outcome, Accepted | Refused):
                    return True
                if stopped:
                    return False
                assert isinstance(outcome, Deferred)
                await host.clock.sleep(outcome.wait_s)

        stopped = False
        async with host.share(self.connection) as running, running.broker.taking(self.topics, take):
            try:
                ready()
                await asyncio.get_running_loop().create_future()
            finally:
                stopped = True

    def _message(self, published: Published) -> Message:
        return Message(
            raw=published.body,
            type="mqtt_broker.message",
            content_type=self.content_type,
            transport={
                "topic": published.topic,
                "qos": published.qos,
                "retain": published.retain,
                "redelivered": published.redelivered,
                "client_id": published.client_id,
                "peer": published.peer,
            },
            principal=Principal(published.username) if published.username and self.connection.auth else None,
        )


class Sink(Settings):
    """Publishes to the clients that are subscribed. Delivered: it was handed to all of them that are connected, or have
    a session, even if there are none: at most once. It does not come back to the sources of the same broker.
    """

    connection: Connection = Field(description="the broker")
    topic: TopicTemplate = Field(description="topic; a template, whose values hold no + # or NUL")
    qos: Literal[0, 1, 2] = Field(0, description="quality of service; each client gets what it asked for, at most this")
    retain: bool = Field(default=False, description="whether it is kept as the last known value of its topic")

    @property
    def replies(self) -> bool:
        """It has no reply to give."""
        return False

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Send]:
        """Publishes for as long as the context lasts."""
        async with host.share(self.connection) as running:
            publish = running.broker.publish

            async def send(message: Message) -> None:
                publish(self.topic.text_of(message), message.body, self.qos, retain=self.retain)

            yield send


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
