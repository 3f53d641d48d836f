"""The examples and bridges that need a broker, against Mosquitto and RabbitMQ."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from adapters import amqp, mqtt
from adapters._amqp_declare import QueueDeclaration
from gateway import Message, Template, TopicTemplate
from gateway.testing import FakeHost, Inbox, arriving, opened, running, until
from tests.brokers.mosquitto import mosquitto
from tests.brokers.rabbitmq import RabbitMq
from tests.playground import ROOT, Playground, to_paste

pytestmark = pytest.mark.broker


@asynccontextmanager
async def with_mosquitto(folder: Path, *examples: str, rabbitmq: RabbitMq | None = None) -> AsyncIterator[Playground]:
    async with mosquitto(folder) as broker:
        ports = {"1883": broker.port}
        if rabbitmq is not None:
            ports["5672"] = rabbitmq.port
        yield prepared(folder, ports, *examples)


def prepared(folder: Path, ports: dict[str, int], *examples: str) -> Playground:
    place = Playground(folder, ports)
    for name in examples:
        place.put(ROOT / f"examples/{name}.yaml")
    return place


def at_mosquitto(place: Playground) -> mqtt.Connection:
    return mqtt.Connection(url=f"mqtt://127.0.0.1:{place.port(1883)}", client_id="someone")


def at_rabbitmq(rabbitmq: RabbitMq) -> amqp.Connection:
    return amqp.Connection(url=rabbitmq.url)


async def pasted_curl(place: Playground, example: str) -> str:
    lines = to_paste((ROOT / f"examples/{example}.yaml").read_text(encoding="utf-8")).splitlines()
    return await place.sh("\n".join(line for line in lines if line.startswith("curl")))


def bound(exchange: str, key: str) -> QueueDeclaration:
    return QueueDeclaration(exclusive=True, exchange=exchange, type="topic", routing_keys=(key,))


async def publish(place: Playground, topic: str, *bodies: bytes) -> None:
    host = FakeHost()
    async with opened(mqtt.Sink(connection=at_mosquitto(place), topic=TopicTemplate(topic)), host) as send:
        for body in bodies:
            await send(arriving(host, body))


async def test_messages_of_mosquitto_reach_the_file(tmp_path: Path) -> None:
    async with with_mosquitto(tmp_path, "from-mqtt") as place, place.running("from-mqtt.yaml"):
        await publish(place, "plant/press-1/telemetry", b'{"temperature": 71.5}')
        await until(lambda: place.read("var/telemetry.jsonl") == '{"device":"press-1","temperature":71.5}\n')


async def test_an_order_reaches_a_subscriber_of_mosquitto(tmp_path: Path) -> None:
    host = FakeHost()
    inbox = Inbox(host)
    async with with_mosquitto(tmp_path, "to-mqtt") as place, place.running("to-mqtt.yaml"):
        source = mqtt.Source(connection=at_mosquitto(place), topic="orders/#")
        async with running(source, inbox, host):
            assert "202" in await pasted_curl(place, "to-mqtt")
            (message,) = await inbox.wait(1)
    assert (message.transport["topic"], message.body) == ("orders/C9", b'{"id": "A1", "customer": "C9"}')
    assert message.headers["order"] == "A1"


async def test_messages_of_a_queue_reach_the_file(tmp_path: Path, rabbitmq: RabbitMq) -> None:
    place = prepared(tmp_path, {"5672": rabbitmq.port}, "from-amqp")
    host = FakeHost()
    sink = amqp.Sink(connection=at_rabbitmq(rabbitmq), exchange="shop", routing_key=Template("order.C9"))
    async with place.running("from-amqp.yaml"), opened(sink, host) as send:
        await send(arriving(host, b'{"id": "A1"}'))
        await until(lambda: place.read("var/orders.jsonl") == '{"id":"A1","via":"order.C9"}\n')


async def test_an_order_reaches_a_queue(tmp_path: Path, rabbitmq: RabbitMq) -> None:
    place = prepared(tmp_path, {"5672": rabbitmq.port}, "to-amqp")
    host = FakeHost()
    inbox = Inbox(host)
    source = amqp.Source(connection=at_rabbitmq(rabbitmq), queue="", declare=bound("shop", "order.#"))
    async with place.running("to-amqp.yaml"), running(source, inbox, host):
        assert "202" in await pasted_curl(place, "to-amqp")
        (message,) = await inbox.wait(1)
    assert (message.transport["routing_key"], message.headers["order"]) == ("order.C9", "A1")


async def test_the_bridge_from_mqtt_to_amqp_carries_readings_in_order(tmp_path: Path, rabbitmq: RabbitMq) -> None:
    host = FakeHost()
    inbox = Inbox(host)
    source = amqp.Source(connection=at_rabbitmq(rabbitmq), queue="", declare=bound("plant", "telemetry.*"))
    readings = [b'{"temperature": %d}' % value for value in range(20)]
    async with (
        with_mosquitto(tmp_path, "mqtt-to-amqp", rabbitmq=rabbitmq) as place,
        running(source, inbox, host),
        place.running("mqtt-to-amqp.yaml"),
    ):
        await publish(place, "plant/press-1/telemetry", b'{"temperature": "hot"}', *readings)
        arrived = await inbox.wait(20)
    assert [celsius(message) for message in arrived] == list(range(20))
    assert {message.transport["routing_key"] for message in arrived} == {"telemetry.press-1"}


def celsius(message: Message) -> object:
    assert isinstance(message.tree, dict)
    assert message.tree["device"] == "press-1"
    return message.tree["celsius"]


async def test_the_bridge_from_websocket_to_mqtt_confirms_what_is_safe(tmp_path: Path) -> None:
    host = FakeHost()
    inbox = Inbox(host)
    async with with_mosquitto(tmp_path, "websocket-to-mqtt") as place, place.running("websocket-to-mqtt.yaml"):
        source = mqtt.Source(connection=at_mosquitto(place), topic="plant/#")
        async with (
            running(source, inbox, host),
            connect(f"ws://127.0.0.1:{place.port(8081)}/devices/press-1") as device,
        ):
            for number in range(5):
                await device.send(f'{{"id": "{number}", "data": {{"temperature": {number}}}}}')
            said = {str(await device.recv()) for _ in range(5)}
            arrived = await inbox.wait(5)
    assert said == {f'{{"ack":"{number}"}}' for number in range(5)}
    assert [message.body for message in arrived] == [b'{"temperature": %d}' % number for number in range(5)]
    assert {message.transport["topic"] for message in arrived} == {"plant/press-1/telemetry"}
