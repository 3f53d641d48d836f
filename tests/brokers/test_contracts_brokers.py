"""mqtt and amqp keep the same contract against real servers, which the checks lose and find again through a proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from adapters import amqp, mqtt
from adapters._mqtt_arrivals import Arrival
from adapters._mqtt_packets import Outgoing, Publish, Version
from gateway import Message, Sink, Source, Template, TopicTemplate
from gateway.testing import (
    SINK_CHECKS,
    SOURCE_CHECKS,
    Check,
    FakeHost,
    Inbox,
    SinkBench,
    SourceBench,
    checks_for,
    running,
)
from tests.brokers.amqp_peer import peer, unique
from tests.brokers.mosquitto import Mosquitto, mosquitto
from tests.brokers.rabbitmq import RabbitMq
from tests.brokers.watched import AmqpWatch, MqttWatch, WatchedProxy

pytestmark = pytest.mark.broker


class Brokered:
    """A bench whose component reaches its broker through a proxy."""

    proxy: WatchedProxy
    acknowledged: list[bytes]

    def accepted(self) -> list[bytes]:
        return list(self.acknowledged)

    async def send_again(self) -> None:
        """The broker does, after each loss."""

    async def lose(self) -> None:
        await self.proxy.lose()

    async def come_back(self) -> None:
        await self.proxy.come_back()

    async def leave(self) -> None:
        self.proxy.cut()

    def hold(self) -> None:
        self.proxy.hold_answers()

    def release(self) -> None:
        self.proxy.resume()


# --- Mosquitto


class MqttSource(Brokered, SourceBench):
    """mqtt, QoS 1."""

    acknowledges = True
    connects = True
    headers = True
    version: ClassVar[Version] = 5

    def __init__(self, broker: Mosquitto) -> None:
        super().__init__()
        self.broker = broker
        self.acknowledged = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        other = mqtt.Connection(url=self.broker.url, client_id="device", version=self.version)
        watched = WatchedProxy(self.broker.port, lambda: MqttWatch(self.version, self.acknowledged))
        async with watched.running() as self.proxy, other.publishing.open(FakeHost()) as self.device:
            async with running(self.source(), Inbox(self.host), self.host):
                pass  # the broker knows the session from now on, and keeps what is published meanwhile
            yield self

    def source(self) -> Source:
        url = f"mqtt://127.0.0.1:{self.proxy.port}"
        connection = mqtt.Connection(url=url, client_id="gateway", version=self.version, receive_maximum=16)
        return mqtt.Source(connection=connection, topic="plant/#")

    async def send(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        properties = {"user_property": list(headers.items())} if headers else {}
        await self.device.publish(Outgoing(b"plant/1", body, 1, retain=False, properties=properties), 10)


class Mqtt311Source(MqttSource):
    """mqtt 3.1.1, QoS 1."""

    headers = False
    version = "3.1.1"


class MqttSink(Brokered, SinkBench):
    """mqtt, QoS 1."""

    confirms = True
    connects = True
    headers = True
    stable_ids = True
    refuses = True

    def __init__(self, broker: Mosquitto) -> None:
        super().__init__()
        self.broker = broker
        self.acknowledged = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        self.seen: list[Publish] = []
        connection = mqtt.Connection(url=self.broker.url, client_id="device")
        watched = WatchedProxy(self.broker.port, lambda: MqttWatch(5, self.acknowledged))
        async with (
            watched.running() as self.proxy,
            connection.publishing.open(FakeHost()) as link,
            link.subscription("plant/#", 1, self._see),
        ):
            yield self

    def _see(self, arrival: Arrival) -> None:
        self.seen.append(arrival.publish)
        arrival.settle()

    def sink(self) -> Sink:
        connection = mqtt.Connection(url=f"mqtt://127.0.0.1:{self.proxy.port}", client_id="gateway")
        return mqtt.Sink(
            connection=connection,
            topic=TopicTemplate("plant/{{ headers['x-line'] | default('1') }}"),
            headers={"x-check": Template("{{ headers['x-check'] | default('none') }}")},
        )

    def received(self) -> list[bytes]:
        return [publish.body for publish in self.seen]

    def received_headers(self) -> dict[str, str]:
        return dict(self.seen[-1].properties["user_property"])

    def ids(self) -> list[str]:
        return [dict(publish.properties["user_property"])["id"] for publish in self.seen]

    def uncarried(self) -> Message:
        return self.message(b"{}", {"x-line": "a/#"})


# --- RabbitMQ


class AmqpBench(Brokered):
    """What both directions of amqp have in common."""

    def __init__(self, broker: RabbitMq) -> None:
        super().__init__()
        self.broker = broker
        self.acknowledged = []
        self.queue = unique("contract")
        self.channel: AbstractChannel

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        watched = WatchedProxy(self.broker.port, lambda: AmqpWatch(self.acknowledged))
        async with watched.running() as self.proxy, peer(self.broker) as self.channel:
            queue = await self.channel.declare_queue(self.queue, durable=True)
            await self.prepared(queue)
            try:
                yield self
            finally:
                await queue.delete(if_unused=False, if_empty=False)

    async def prepared(self, queue: Any) -> None:
        """What the peer does once its queue is there."""

    @property
    def connection(self) -> amqp.Connection:
        return amqp.Connection(url=f"amqp://127.0.0.1:{self.proxy.port}")


class AmqpSource(AmqpBench, SourceBench):
    """amqp."""

    acknowledges = True
    connects = True
    headers = True

    def source(self) -> Source:
        return amqp.Source(connection=self.connection, queue=self.queue, prefetch=8)

    async def send(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        message = aio_pika.Message(body, headers=dict(headers or {}))
        await self.channel.default_exchange.publish(message, routing_key=self.queue)


class AmqpSink(AmqpBench, SinkBench):
    """amqp, with confirms."""

    confirms = True
    connects = True
    headers = True
    stable_ids = True
    refuses = True

    async def prepared(self, queue: Any) -> None:
        self.messages: list[AbstractIncomingMessage] = []
        await queue.consume(self._see, no_ack=True)

    async def _see(self, message: AbstractIncomingMessage) -> None:
        self.messages.append(message)

    def sink(self) -> Sink:
        key = f"{{{{ headers['x-key'] | default('{self.queue}') }}}}"
        return amqp.Sink(
            connection=self.connection,
            routing_key=Template(key),
            headers={"x-check": Template("{{ headers['x-check'] | default('none') }}")},
        )

    def received(self) -> list[bytes]:
        return [message.body for message in self.messages]

    def received_headers(self) -> dict[str, str]:
        return {name: str(value) for name, value in self.messages[-1].headers.items()}

    def ids(self) -> list[str]:
        return [message.message_id or "" for message in self.messages]

    def uncarried(self) -> Message:
        return self.message(b"{}", {"x-key": "k" * 256})


def cases(*benches: type[SourceBench | SinkBench]) -> list[Any]:
    return [
        pytest.param(bench, check, id=f"{bench.__name__}-{check.__name__}")
        for bench in benches
        for check in checks_for(bench, SOURCE_CHECKS if issubclass(bench, SourceBench) else SINK_CHECKS)
    ]


@pytest.mark.parametrize(("bench", "check"), cases(MqttSource, Mqtt311Source, MqttSink))
async def test_mqtt_keeps_its_contract_with_mosquitto(tmp_path: Path, bench: Any, check: Check) -> None:
    async with mosquitto(tmp_path) as broker, bench(broker).running() as running_bench:
        await check(running_bench)


@pytest.mark.parametrize(("bench", "check"), cases(AmqpSource, AmqpSink))
async def test_amqp_keeps_its_contract_with_rabbitmq(rabbitmq: RabbitMq, bench: Any, check: Check) -> None:
    async with bench(rabbitmq).running() as running_bench:
        await check(running_bench)
