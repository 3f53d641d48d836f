"""How bridges between brokers are driven: a broker gets a heap of messages, and the other side is watched fill up."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aio_pika
from gmqtt import Client
from gmqtt.mqtt.constants import MQTTv50

from benchmarks.bodies import ORDER
from benchmarks.contenders import Stage
from benchmarks.loads import sample
from benchmarks.processes import MeasurementError, Running
from benchmarks.samples import Sample

QUEUE = "bench.orders"
TOPIC = "bench/orders"
_PER_S = 10_000
"""Messages heaped up for each second that a measurement is to last."""
_PATIENCE_S = 30.0
_BEGIN, _END = 0.2, 0.95
"""The part of the heap that is measured: neither the start of the program nor the last few."""


@dataclass(frozen=True)
class MqttToAmqp:
    """Messages published to Mosquitto with QoS 1; counted as RabbitMQ's queue grows."""

    def prepare(self, stage: Stage, seconds: float) -> None:
        """An empty queue."""
        asyncio.run(_emptied(stage.amqp))

    def run(self, stage: Stage, process: Running, seconds: float) -> Sample:
        """Publishes once the bridge has subscribed, and watches the queue."""
        return asyncio.run(self._run(stage, process, round(_PER_S * seconds)))

    async def _run(self, stage: Stage, process: Running, count: int) -> Sample:
        async with await aio_pika.connect(stage.amqp) as connection:
            channel = await connection.channel()

            async def arrived() -> int:
                queue = await channel.declare_queue(QUEUE, passive=True)
                return queue.declaration_result.message_count or 0

            async with _publisher(stage.mqtt) as publisher:
                await _until_subscribed(publisher, arrived, process)
                count += await arrived()
                for _ in range(count):
                    publisher.publish(TOPIC, ORDER, qos=1)
                return await _watched(arrived, count, process)


@dataclass(frozen=True)
class AmqpToHttp:
    """A queue of RabbitMQ that is full before the bridge starts; counted as the HTTP sink is asked."""

    def prepare(self, stage: Stage, seconds: float) -> None:
        """A full queue."""
        asyncio.run(self._fill(stage, round(_PER_S * seconds)))

    async def _fill(self, stage: Stage, count: int) -> None:
        await _emptied(stage.amqp)
        async with await aio_pika.connect(stage.amqp) as connection:
            channel = await connection.channel(publisher_confirms=False)
            for _ in range(count):
                message = aio_pika.Message(ORDER, delivery_mode=2, content_type="application/json")
                await channel.default_exchange.publish(message, routing_key=QUEUE)

    def run(self, stage: Stage, process: Running, seconds: float) -> Sample:
        """Watches what arrives at the sink."""
        return asyncio.run(self._run(stage, process, round(_PER_S * seconds)))

    async def _run(self, stage: Stage, process: Running, count: int) -> Sample:
        url = f"http://127.0.0.1:{stage.sink}/count"
        before = _asked(url)

        async def arrived() -> int:
            return _asked(url) - before

        return await _watched(arrived, count, process)


async def _watched(arrived: Callable[[], Awaitable[int]], count: int, process: Running) -> Sample:
    """Rate and processor time between a fifth of `count` and nearly all of it."""
    begun: tuple[int, float, float] | None = None
    seen, changed_s = 0, time.monotonic()
    while True:
        found, now_s = await arrived(), time.monotonic()
        process.check()
        if found > seen:
            seen, changed_s = found, now_s
        elif now_s - changed_s > _PATIENCE_S:
            raise MeasurementError(f"{seen} of {count} messages arrived, then none for {_PATIENCE_S:g} s")
        if begun is None and found >= count * _BEGIN:
            begun = (found, now_s, process.cpu_s())
        if begun is not None and found >= count * _END:
            took_s = now_s - begun[1]
            return sample(found - begun[0], took_s, process.cpu_s() - begun[2], took_s, {})
        await asyncio.sleep(0.01)


class _publisher:  # noqa: N801 - reads as a word where it is used
    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)

    async def __aenter__(self) -> Any:
        self._client = Client("bench-publisher")
        await self._client.connect(self._url.hostname, self._url.port, version=MQTTv50)
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.disconnect()


async def _until_subscribed(publisher: Any, arrived: Callable[[], Awaitable[int]], process: Running) -> None:
    """Publishes one message after the other until one arrives: what came before a subscription is nobody's."""
    deadline = time.monotonic() + _PATIENCE_S
    while not await arrived():
        process.check()
        if time.monotonic() > deadline:
            raise MeasurementError(f"no message came through within {_PATIENCE_S:g} s:\n{process.output}")
        publisher.publish(TOPIC, ORDER, qos=1)
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.5)


async def _emptied(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(QUEUE, durable=True)
        await channel.queue_delete(QUEUE)
        await channel.declare_queue(QUEUE, durable=True)


def _asked(url: str) -> int:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return int(answer.read())
