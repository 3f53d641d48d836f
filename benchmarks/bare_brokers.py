"""The bare bridges: MQTT QoS 1 to AMQP with confirms through gmqtt and aio-pika, AMQP to HTTP through aio-pika and
pyreqwest. Each acknowledges what its target has accepted."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import uvloop
from gmqtt import Client, Subscription
from gmqtt.mqtt.constants import MQTTv50, PubRecReasonCode
from pyreqwest.client import ClientBuilder

from benchmarks.broker_loads import QUEUE, TOPIC

_AT_ONCE = 64


async def mqtt_to_amqp(mqtt: str, amqp: str) -> None:
    """Publishes each MQTT message to a queue; PUBACK after the confirm."""
    connection = await aio_pika.connect(amqp)
    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
    room = asyncio.Semaphore(_AT_ONCE)

    async def on_message(client: Any, topic: str, payload: bytes, qos: int, properties: Any) -> int:
        async with room:
            message = aio_pika.Message(payload, delivery_mode=2, content_type="application/json")
            await channel.default_exchange.publish(message, routing_key=QUEUE)
        return int(PubRecReasonCode.SUCCESS)

    client = Client("bare", optimistic_acknowledgement=False, receive_maximum=_AT_ONCE)
    client.on_message = on_message
    parts = urlsplit(mqtt)
    await client.connect(parts.hostname, parts.port, version=MQTTv50)
    client.subscribe([Subscription(TOPIC, qos=1)])
    await asyncio.Event().wait()


async def amqp_to_http(amqp: str, sink: str) -> None:
    """Posts each message of a queue; ack after the answer."""
    connection = await aio_pika.connect(amqp)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=_AT_ONCE)
    queue = await channel.declare_queue(QUEUE, durable=True)
    limit = timedelta(seconds=30)
    client = ClientBuilder().timeout(limit).max_connections(100).no_proxy().build()
    url = f"http://127.0.0.1:{sink}/orders"

    async def on_message(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        request = client.post(url).body_bytes(message.body).header("content-type", "application/json").build()
        response = await request.send()
        await response.bytes()
        await message.ack()

    await queue.consume(on_message)
    await asyncio.Event().wait()


if __name__ == "__main__":
    _kind, _port, _sink, _amqp, _mqtt = sys.argv[1:]
    uvloop.run(mqtt_to_amqp(_mqtt, _amqp) if _kind == "mqtt-to-amqp" else amqp_to_http(_amqp, _sink))
