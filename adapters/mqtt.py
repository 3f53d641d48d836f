"""MQTT 3.1.1 and 5 as a client of a broker: `mqtt` as source, sink and connection.

At least once with `qos: 1` or `2`: a received message is acknowledged only after the outcome of the route, in the order
of receipt; a sent one is delivered when the broker acknowledged it on the link that sent it. QoS 2 is spoken in full on
each link, but what a lost link left open is sent again as a new message with the same id: never "exactly once".
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from adapters._mqtt_arrivals import Arrival
from adapters._mqtt_link import Link, Login, whole_seconds
from adapters._mqtt_messages import Replies, message_of
from adapters._mqtt_packets import MAX_PACKET_BYTES, Outgoing, Version, Will
from gateway import (
    JSON,
    Accepted,
    Address,
    ClientTls,
    Deferred,
    Deliver,
    Duration,
    Host,
    Message,
    MessageError,
    PeerError,
    Secret,
    Send,
    Settings,
    Shared,
    Template,
    TopicTemplate,
    Url,
    Workers,
    duration,
)

Qos = Literal[0, 1, 2]

_NEVER = 0xFFFF_FFFF
_UNSAFE = re.compile(r"[\r\n\0]")


class LastWill(Settings):
    """What the broker publishes when a link of the gateway is lost without a goodbye."""

    topic: str = Field(min_length=1, pattern=r"^[^+#\x00]+$", description="the topic, without wildcards")
    payload: str = Field("", description="the text that is published")
    qos: Qos = Field(0, description="quality of service of the will")
    retain: bool = Field(default=False, description="whether the broker keeps it for later subscribers")


class Connection(Settings):
    """A broker, and who we are there. At most two links: one consumes, one (client id and `-pub`) publishes.

    Both carry the will. The consuming link keeps its session at the broker, so that nothing is lost while the gateway
    is away; the publishing link needs none, because what it did not get acknowledged is sent again by the route.
    """

    url: Url("mqtt", "mqtts") = Field(  # type: ignore[valid-type]
        description="the broker, such as mqtt://broker.example:1883; mqtts:// speaks TLS; default ports 1883 and 8883"
    )
    client_id: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="our name at the broker, the same after every restart and different for every gateway; a source "
        "with qos 1 or 2 needs it; without one the broker makes one up and keeps no session",
    )
    username: str | None = Field(None, description="user name")
    password: Secret | None = Field(None, description="password")
    tls: ClientTls | None = Field(None, description="whom to trust and what to show, with mqtts://")
    version: Version = Field(5, description="protocol version: 5, or 3.1.1, which knows no headers, ids or expiry")
    keep_alive: Duration = Field(
        duration("30s"), ge=1, le=65_535, description="silence after which a ping is due; 1.5 times that is a lost link"
    )
    session_expiry: Duration = Field(
        duration("1d"), le=_NEVER, description="how long the broker keeps our session while we are away (MQTT 5)"
    )
    receive_maximum: int = Field(
        256, ge=1, le=65_535, description="messages received and not acknowledged; then the broker waits"
    )
    will: LastWill | None = Field(None, description="what the broker publishes when we vanish")

    @model_validator(mode="after")
    def _fits_together(self) -> Connection:
        if self.tls is not None and not self.url.startswith("mqtts://"):
            raise ValueError(f"tls: is for mqtts://, and url is {self.url}; write mqtts:// or leave tls: out")
        if self.password is not None and self.username is None:
            raise ValueError("password: needs a username:")
        return self

    @property
    def consuming(self) -> Shared[Link]:
        """The link that consumes."""
        return _Consuming(self)

    @property
    def publishing(self) -> Shared[Link]:
        """The link that publishes."""
        return _Publishing(self)

    def open(self, host: Host) -> AbstractAsyncContextManager[Link]:
        """A link of its own that leaves the sessions of the other two alone: to see whether it can be opened."""
        return self.link(host, "-check", keeps_session=False)

    @asynccontextmanager
    async def link(self, host: Host, suffix: str, *, keeps_session: bool) -> AsyncIterator[Link]:
        """A link to the broker, for as long as the context lasts.

        Raises:
            PeerError: it could not be made, or was lost.
            ConfigError: a file of `tls` can't be used.
        """
        parts = urlsplit(self.url)
        secure = parts.scheme == "mqtts"
        properties = {"receive_maximum": self.receive_maximum, "maximum_packet_size": MAX_PACKET_BYTES}
        if keeps_session:
            properties["session_expiry_interval"] = whole_seconds(self.session_expiry)
        login = Login(
            address=Address(parts.hostname or "", parts.port or (8883 if secure else 1883)),
            tls=(self.tls or ClientTls()) if secure else None,
            version=self.version,
            client_id=self.client_id + suffix if self.client_id else "",
            username=self.username,
            password=self.password.get_secret_value() if self.password else None,
            clean=not keeps_session,
            keep_alive_s=whole_seconds(self.keep_alive),
            will=self._will(),
            properties=properties,
            window=self.receive_maximum,
            handshake_s=host.limits.handshake,
            frame_s=host.limits.frame,
        )
        async with Link(login, host.dropped).open() as opened:
            yield opened

    def _will(self) -> Will | None:
        will = self.will
        return None if will is None else Will(will.topic.encode(), will.payload.encode(), will.qos, will.retain)


@dataclass(frozen=True)
class _Consuming:
    connection: Connection

    def open(self, host: Host) -> AbstractAsyncContextManager[Link]:
        return self.connection.link(host, "", keeps_session=self.connection.client_id is not None)


@dataclass(frozen=True)
class _Publishing:
    connection: Connection

    def open(self, host: Host) -> AbstractAsyncContextManager[Link]:
        return self.connection.link(host, "-pub", keeps_session=False)


class Source(Settings):
    """Subscribes to a topic filter. Headers are the user properties; `transport` has topic, qos, retain, redelivered,
    response_topic and correlation_data.

    A publisher is acknowledged by the broker and never hears our outcome. With `ack: reply` the reply is published to
    the message's response topic, with its correlation data, before the message is acknowledged; a message without a
    response topic gets none.
    """

    connection: Connection = Field(description="the broker")
    topic: str = Field(min_length=1, max_length=65_535, description="topic filter; + is one level, # all that follow")
    qos: Qos = Field(1, description="quality of service: 0 at most once; 1 and 2 at least once")
    shared_group: str | None = Field(
        None,
        pattern=r"^[^/+#\x00]+$",
        description="subscribe together with others of this group: each message goes to one of them",
    )
    content_type: str | None = Field(
        None, description=f"what the bodies are, whatever the sender says; default: what it says, else {JSON}"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Source:
        if self.qos and self.connection.client_id is None:
            raise ValueError(
                "client_id: a source with qos 1 or 2 needs one that stays the same, so that the broker keeps what "
                "comes while the gateway is away; write client_id: at the connection, or qos: 0"
            )
        levels = self.topic.split("/")
        if any(
            ("#" in level and (level != "#" or index < len(levels) - 1)) or ("+" in level and level != "+")
            for index, level in enumerate(levels)
        ):
            raise ValueError(
                f"topic: {self.topic!r} is no topic filter: + and # stand for whole levels, and # is the last one"
            )
        if self.topic.startswith("$share/"):
            raise ValueError("topic: write shared_group: and the topic filter without $share/")
        return self

    @property
    def answers(self) -> bool:
        """False: the broker acknowledges the publisher, long before us."""
        return False

    @property
    def at_most_once(self) -> str | None:
        """With qos 0."""
        return None if self.qos else "the broker sends a message of qos 0 once, whether we are there or not"

    @property
    def topic_filter(self) -> str:
        """What is subscribed to, with the group."""
        return f"$share/{self.shared_group}/{self.topic}" if self.shared_group else self.topic

    async def try_out(self, link: Link, host: Host) -> None:
        """Subscribes for a moment on a link whose session is not kept, and without the group, to take nothing away.

        Raises:
            PeerError: the broker refuses the topic filter.
        """
        async with link.subscription(self.topic, self.qos, lambda _: None):
            pass

    async def run(self, host: Host, deliver: Deliver, ready: Callable[[], None]) -> None:
        """Subscribes, and hands over until cancelled."""
        replies = Replies(self.connection.publishing, host)

        async def work(arrival: Arrival) -> None:
            message = message_of(arrival.publish, self.content_type)
            outcome = await deliver(message)
            while isinstance(outcome, Deferred):
                # MQTT has no "not now", and a broker sends again only after a reconnect: so we try again ourselves.
                await host.clock.sleep(outcome.wait_s)
                outcome = await deliver(message)
            if isinstance(outcome, Accepted) and outcome.reply is not None:
                await replies.publish(arrival.publish, outcome.reply)
            arrival.settle()

        try:
            async with (
                host.share(self.connection.consuming) as link,
                replies,
                Workers(work, count=host.limits.in_flight, name="mqtt") as workers,
                link.subscription(self.topic_filter, self.qos, workers.put),
            ):
                ready()
                await asyncio.get_running_loop().create_future()
        except ExceptionGroup as group:
            raise _only_error(group) from group


def _only_error(error: Exception) -> Exception:
    """What groups of one hold: workers and replies each put an error of the subscription into a group."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


class Sink(Settings):
    """Publishes. Delivered: the broker acknowledged it (PUBACK, PUBCOMP); with `qos: 0` it was written: at most once.

    MQTT 5 carries the stable id as user property `id`, the content type, and what is left of the message's expiry.
    """

    connection: Connection = Field(description="the broker")
    topic: TopicTemplate = Field(description="topic; a template, whose values hold no + # or NUL")
    qos: Qos = Field(1, description="quality of service: 0 at most once; 1 and 2 at least once")
    retain: bool = Field(default=False, description="whether the broker keeps it as the last known value of its topic")
    headers: dict[str, Template] = Field({}, description="user properties to send, as name: template (MQTT 5)")
    expires: Duration | None = Field(
        None, description="how long the broker may keep it for subscribers; default: as the message says (MQTT 5)"
    )
    timeout: Duration = Field(
        duration("30s"), gt=0, le=300, description="how long to wait for the acknowledgement; then the link is renewed"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Sink:
        if self.connection.version != 5 and (self.headers or self.expires is not None):
            raise ValueError("headers: and expires: need MQTT 5; leave them out, or say version: 5 at the connection")
        return self

    @property
    def at_most_once(self) -> str | None:
        """With qos 0."""
        return None if self.qos else "the broker does not acknowledge a message of qos 0"

    @property
    def replies(self) -> bool:
        """It has no reply to give."""
        return False

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Send]:
        """Connects; many sinks share one link."""
        async with host.share(self.connection.publishing) as link:
            self._check(link.broker, host)
            yield self._send(link, host.target)

    async def try_out(self, link: Link, host: Host) -> None:
        """Raises PeerError: the broker says that it can't do what is asked for here."""
        self._check(link.broker, host)

    def _check(self, broker: Mapping[str, Any], host: Host) -> None:
        if self.qos > broker.get("max_qos", 2):
            raise PeerError(f"{host.target}: the broker takes at most qos {broker['max_qos']}, the sink has {self.qos}")
        if self.retain and not broker.get("retain_available", 1):
            raise PeerError(f"{host.target}: the broker can't retain; say retain: false")

    def _send(self, link: Link, target: str) -> Send:
        constant = str(self.topic.text).encode() if self.topic.constant else None
        with_properties = self.connection.version == 5
        qos, retain, timeout_s = self.qos, self.retain, self.timeout

        async def send(message: Message) -> None:
            topic = constant or self.topic.text_of(message).encode()
            properties = self._properties(message, target) if with_properties else {}
            await link.publish(Outgoing(topic, message.body, qos, retain, properties), timeout_s)

        return send

    def _properties(self, message: Message, target: str) -> dict[str, Any]:
        user = [("id", f"{message.id}.{target}")]
        for name, template in self.headers.items():
            value = template.text_of(message)
            if _UNSAFE.search(value):
                raise MessageError(f"mqtt: header {name!r} holds a line break or NUL; send it without")
            user.append((name, value))
        properties: dict[str, Any] = {"content_type": message.content_type, "user_property": user}
        expires_s = self.expires
        if message.expires_at_s is not None:
            left_s = max(1.0, message.expires_at_s - time.time())
            expires_s = left_s if expires_s is None else min(left_s, expires_s)
        if expires_s is not None:
            properties["message_expiry_interval"] = min(whole_seconds(expires_s), _NEVER)
        return properties
