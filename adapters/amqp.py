"""AMQP 0-9-1, as RabbitMQ speaks it: consume from a queue, publish to an exchange with confirms, ask and be asked."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, assert_never
from urllib.parse import unquote, urlsplit

from pydantic import Field, model_validator
from yarl import URL

from adapters import _amqp_frames as frames
from adapters._amqp import Link, open_link
from adapters._amqp_declare import ExchangeDeclaration, Name, QueueDeclaration
from adapters._amqp_frames import Delivery, Properties
from adapters._amqp_message import message_of
from adapters._amqp_replies import Replies
from adapters._amqp_wire import Channel
from gateway import (
    Accepted,
    ClientTls,
    Deferred,
    Deliver,
    Duration,
    Host,
    Message,
    Outcome,
    PeerError,
    Refused,
    Secret,
    Send,
    Settings,
    Template,
    Url,
    Workers,
    client_context,
    duration,
)

_PORTS = {"amqp": 5672, "amqps": 5671}
_LONGEST_MS = 0xFFFF_FFFF
"""What RabbitMQ takes as an expiration."""
_DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"


class Connection(Settings):
    """A broker and a vhost of it, as one user. It opens at most two links: one consumes, one publishes."""

    url: Url("amqp", "amqps") = Field(description="the broker and its vhost, such as amqps://erp.example/prod")  # type: ignore[valid-type]
    username: str = Field("guest", min_length=1, description="the broker's user")
    password: Secret = Field(Secret("guest"), description="the password of the user")
    tls: ClientTls | None = Field(None, description="trust and certificate of ours, with an amqps:// URL")
    heartbeat: Duration = Field(
        duration("5s"), ge=1, le=300, description="a broker that is silent for a little more than twice this is gone"
    )
    name: str | None = Field(None, description="what the broker's console calls us; default: gateway and the route")

    @model_validator(mode="after")
    def _tls_needs_amqps(self) -> Connection:
        if self.tls is not None and not self.url.startswith("amqps:"):
            raise ValueError("tls needs an amqps:// URL")
        if "/" in urlsplit(self.url).path[1:]:
            raise ValueError("the vhost holds a slash: write it as %2F")
        return self

    @property
    def consuming(self) -> Direction:
        """The link that sources share."""
        return Direction(self, "consume")

    @property
    def publishing(self) -> Direction:
        """The link that sinks and replies share."""
        return Direction(self, "publish")

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Link]:
        """A link of its own, for as long as the context lasts.

        Raises:
            PeerError: it could not be opened; or, out of the context, at once: it was lost.
            ConfigError: a file of `tls` can't be used.
        """
        parts = urlsplit(self.url)
        url = URL.build(
            scheme=parts.scheme,
            user=self.username,
            password=self.password.get_secret_value(),
            host=parts.hostname or "",
            port=parts.port or _PORTS[parts.scheme],
            query={"heartbeat": str(round(self.heartbeat))},
        )
        async with open_link(
            url,
            vhost=unquote(parts.path[1:]) or "/",
            tls=client_context(self.tls) if parts.scheme == "amqps" else None,
            server_name=self.tls.server_name if self.tls else None,
            name=self.name or f"gateway {host.route}",
            within_s=host.limits.handshake,
        ) as link:
            yield link


@dataclass(frozen=True)
class Direction:
    """One of the two links of a connection. Shared by all that use it the same way."""

    connection: Connection
    way: Literal["consume", "publish"]

    def open(self, host: Host) -> Any:
        """The link, for as long as the context lasts. Raises PeerError as `Connection.open` does."""
        return self.connection.open(host)


class Source(Settings):
    """Messages of a queue, each acknowledged when the route has it safe, in any order.

    `transport` has exchange, routing_key, redelivered and queue; reply_to, user_id, app_id and timestamp where the
    sender set them; x_death_count, x_death_reason and x_death_queue of a message that was dead-lettered before. With
    `ack: reply` the reply goes to the sender's reply_to before its message is acknowledged; one that the broker does
    not take, tried three times, is given up, counted and logged. Of a body over the limit the dead letter has the
    beginning.
    """

    connection: Connection = Field(description="the broker")
    queue: Name = Field(description="the queue to take from; empty: one that the broker names, with declare: exclusive")
    prefetch: int = Field(100, ge=1, le=65_535, description="messages taken and not yet acknowledged, at most")
    declare: Literal[False] | QueueDeclaration = Field(
        default=False, description="make the queue and its bindings; false: it must be there"
    )
    refused: Literal["dead_letter", "reject"] = Field(
        "dead_letter",
        description="a message that can't pass: acknowledged, with a dead letter of ours; or rejected, which leaves it "
        "to the dead-letter exchange of the queue as well",
    )
    content_type: str | None = Field(None, description="what bodies are, whatever the sender says; else JSON")

    @model_validator(mode="after")
    def _has_a_name(self) -> Source:
        if not self.queue and not (self.declare and self.declare.exclusive):
            raise ValueError("an empty queue name needs declare: {exclusive: true}; or name the queue")
        return self

    @property
    def answers(self) -> bool:
        """Nobody waits: a refusal becomes a dead letter before its message is acknowledged."""
        return False

    async def run(self, host: Host, deliver: Deliver, ready: Callable[[], None]) -> None:
        """Consumes until cancelled.

        Raises:
            PeerError: the broker could not be reached, has no such queue, or the link or the consumer was lost.
        """
        async with (
            host.share(self.connection.consuming) as link,
            link.channel(max_body_bytes=host.limits.message) as channel,
            asyncio.TaskGroup() as tasks,
        ):
            async with link.asking(channel):
                queue = await self._declared(channel)
            replies = Replies(self.connection.publishing, host, tasks, channel)
            work = partial(self._handle, host, deliver, channel, replies, queue)
            async with Workers(work, count=self.prefetch, name=f"{host.route}:amqp") as workers:
                channel.taken, channel.most_unsettled = workers.put, 2 * self.prefetch
                async with link.asking(channel):
                    await channel.rpc.basic_qos(prefetch_count=self.prefetch)
                    await channel.rpc.basic_consume(queue, _never)
                ready()
                await asyncio.get_running_loop().create_future()  # until cancelled; a lost channel does it too

    async def try_out(self, link: Link, host: Host) -> None:
        """Raises PeerError: the queue is not there, where it has to be."""
        if not self.declare:
            async with link.channel() as channel, link.asking(channel):
                await self._declared(channel)

    async def _declared(self, channel: Channel) -> str:
        if self.declare:
            return await self.declare.make(channel.rpc, self.queue)
        await channel.rpc.queue_declare(self.queue, passive=True)
        return self.queue

    async def _handle(
        self, host: Host, deliver: Deliver, channel: Channel, replies: Replies, queue: str, delivery: Delivery
    ) -> None:
        message = message_of(
            delivery, queue=queue, content_type=self.content_type, limits=host.limits, now_s=host.clock.time()
        )
        outcome: Outcome = await deliver(message)
        number, tag = channel.number, delivery.tag
        if isinstance(outcome, Accepted) and outcome.reply is not None and delivery.properties.reply_to:
            await replies.send(outcome, outcome.reply, delivery.properties)
        match outcome:
            case Accepted():
                channel.settle(frames.ack(number, tag))
            case Refused():
                rejects = self.refused == "reject"
                channel.settle(frames.nack(number, tag, requeue=False) if rejects else frames.ack(number, tag))
            case Deferred():
                # At once it would come back at once: a hot loop. Unacknowledged it counts against the prefetch.
                await host.clock.sleep(outcome.wait_s)
                channel.settle(frames.nack(number, tag, requeue=True))
            case _:
                assert_never(outcome)


async def _never(_: Any) -> None:
    """The library's consumer callback: deliveries do not reach the library."""


class Reply(Settings):
    """An answer to wait for, through the broker's direct reply-to."""

    timeout: Duration = Field(duration("10s"), gt=0, le=300, description="how long to wait for the reply")


class Sink(Settings):
    """Messages to an exchange: delivered when the broker has confirmed them and a queue has taken them.

    Sent beside the body: content type, message-id (the stable id), correlation-id, timestamp, traceparent, and what
    `headers` names. With `reply` each waits for an answer that carries its correlation-id, the stable id.
    """

    connection: Connection = Field(description="the broker")
    exchange: Name = Field("", description="the exchange; empty: the routing key is the name of a queue")
    routing_key: Template = Field(Template(""), description="the routing key")
    mandatory: bool = Field(
        default=True, description="a message that no queue takes is an error; false: the broker drops it"
    )
    persistent: bool = Field(default=True, description="the broker keeps it on disk, in a durable queue")
    headers: dict[str, Template] = Field({}, description="the headers to send")
    expiration: Duration | None = Field(
        None, description="how long it may wait in a queue; default: as the message says"
    )
    type: Template | None = Field(None, description="the type property")
    timeout: Duration = Field(duration("30s"), gt=0, le=600, description="how long to wait for the broker's confirm")
    declare: Literal[False] | ExchangeDeclaration = Field(
        default=False, description="make the exchange; false: it must be there"
    )
    reply: Reply | None = Field(None, description="wait for an answer to each message")

    @model_validator(mode="after")
    def _has_a_place(self) -> Sink:
        if not self.exchange and self.routing_key.constant and not self.routing_key.text:
            raise ValueError("name an exchange, or a routing_key, which is then the name of a queue")
        if not self.exchange and self.declare:
            raise ValueError("declare needs the name of an exchange")
        return self

    @property
    def replies(self) -> bool:
        """With `reply`."""
        return self.reply is not None

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Send]:
        """Publishes for as long as the context lasts.

        Raises:
            PeerError: the broker could not be reached, has no such exchange, or the link or the channel was lost.
        """
        async with (
            host.share(self.connection.publishing) as link,
            link.channel(confirm_within_s=self.timeout, max_body_bytes=host.limits.message) as channel,
        ):
            async with link.asking(channel):
                await self._declared(channel)
                asked = await self._listening(channel, host) if self.reply else None
            yield partial(self._send, host, channel, asked)

    async def try_out(self, link: Link, host: Host) -> None:
        """Raises PeerError: the exchange is not there, where it has to be."""
        if not self.declare:
            async with link.channel() as channel, link.asking(channel):
                await self._declared(channel)

    async def _declared(self, channel: Channel) -> None:
        if self.declare:
            await self.declare.make(channel.rpc, self.exchange)
        elif self.exchange:
            await channel.rpc.exchange_declare(self.exchange, passive=True)

    async def _listening(self, channel: Channel, host: Host) -> dict[str, asyncio.Future[Message]]:
        asked: dict[str, asyncio.Future[Message]] = {}

        def taken(delivery: Delivery) -> None:
            waiting = asked.get(delivery.properties.correlation_id or "")
            if waiting is not None and not waiting.done():
                now_s = host.clock.time()
                waiting.set_result(message_of(delivery, queue="", content_type=None, limits=host.limits, now_s=now_s))

        def lost(reason: asyncio.Future[str]) -> None:
            for waiting in asked.values():
                if not waiting.done():
                    waiting.set_exception(PeerError(reason.result(), reconnect=True))
                    waiting.exception()  # its publish may have heard it first

        channel.taken = taken
        channel.lost.add_done_callback(lost)
        await channel.rpc.basic_consume(_DIRECT_REPLY_TO, _never, no_ack=True)
        return asked

    async def _send(
        self, host: Host, channel: Channel, asked: dict[str, asyncio.Future[Message]] | None, message: Message
    ) -> Message | None:
        stable_id = f"{message.id}.{host.target}"
        properties = self._properties(message, stable_id, host.clock.time())
        routing_key = self.routing_key.text_of(message)
        await channel.room()
        if asked is None or self.reply is None:
            await self._confirmed(channel, routing_key, properties, message.body)
            return None
        properties.correlation_id = stable_id
        properties.reply_to = _DIRECT_REPLY_TO
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        asked[stable_id] = reply
        try:
            async with asyncio.timeout(self.reply.timeout):
                await self._confirmed(channel, routing_key, properties, message.body)
                return await reply
        except TimeoutError as error:
            raise PeerError(
                f"amqp: no reply came within {self.reply.timeout:g} s from who takes {routing_key!r}", too_late=True
            ) from error
        finally:
            del asked[stable_id]

    async def _confirmed(self, channel: Channel, routing_key: str, properties: Properties, body: bytes) -> None:
        try:
            await channel.publish(self.exchange, routing_key, properties, body, mandatory=self.mandatory)
        except PeerError as error:
            place = f"exchange {self.exchange!r}, routing key {routing_key!r}"
            raise PeerError(f"{error}; {place}", reconnect=error.reconnect, too_late=error.too_late) from error

    def _properties(self, message: Message, stable_id: str, now_s: float) -> Properties:
        headers = {name: template(message) for name, template in self.headers.items()}
        if message.traceparent is not None:
            headers["traceparent"] = message.traceparent
        expiration_s = self.expiration
        if message.expires_at_s is not None:
            left_s = max(0.001, message.expires_at_s - now_s)
            expiration_s = left_s if expiration_s is None else min(left_s, expiration_s)
        return Properties(
            content_type=message.content_type,
            headers=headers,
            delivery_mode=2 if self.persistent else 1,
            priority=message.priority,
            correlation_id=message.correlation_id,
            expiration=None if expiration_s is None else str(min(math.ceil(expiration_s * 1000), _LONGEST_MS)),
            message_id=stable_id,
            timestamp=int(message.time_s),
            type=None if self.type is None else self.type.text_of(message),
        )
