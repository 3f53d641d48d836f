"""Other people's client of a RabbitMQ: what it sees is what the broker has. Made with aio-pika, not with our adapter."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from adapters import amqp
from gateway import PeerError
from gateway.testing import FakeHost, Inbox
from tests.brokers.rabbitmq import RabbitMq

_numbers = itertools.count()


def unique(what: str) -> str:
    return f"{what}-{next(_numbers)}"


def broker(rabbitmq: RabbitMq, **settings: Any) -> amqp.Connection:
    return amqp.Connection(**{"url": rabbitmq.url, **settings})


@asynccontextmanager
async def peer(rabbitmq: RabbitMq) -> AsyncIterator[AbstractChannel]:
    """Another client, of other people: what it sees is what the broker has."""
    connection = await aio_pika.connect(f"amqp://guest:guest@127.0.0.1:{rabbitmq.port}/")
    async with connection:
        yield await connection.channel(publisher_confirms=True, on_return_raises=True)


async def make_queue(rabbitmq: RabbitMq, name: str = "", **settings: Any) -> str:
    name = name or unique("queue")
    async with peer(rabbitmq) as channel:
        await channel.declare_queue(name, durable=True, **settings)
    return name


async def put(rabbitmq: RabbitMq, queue: str, *bodies: bytes, **properties: Any) -> None:
    async with peer(rabbitmq) as channel:
        for body in bodies:
            await channel.default_exchange.publish(
                aio_pika.Message(body, delivery_mode=2, **properties), routing_key=queue
            )


async def take_all(rabbitmq: RabbitMq, queue: str) -> list[AbstractIncomingMessage]:
    """What is in a queue, taken out of it."""
    taken: list[AbstractIncomingMessage] = []
    async with peer(rabbitmq) as channel:
        found = await channel.declare_queue(queue, passive=True)
        if not found.declaration_result.message_count:
            return taken
        async with found.iterator(no_ack=True) as messages:
            async for message in messages:
                taken.append(message)
                if len(taken) == found.declaration_result.message_count:
                    return taken
    return taken


async def count(rabbitmq: RabbitMq, queue: str) -> int:
    async with peer(rabbitmq) as channel:
        found = await channel.declare_queue(queue, passive=True)
        return found.declaration_result.message_count or 0


def failing(host: FakeHost) -> Callable[[amqp.Source], Awaitable[PeerError]]:
    async def failure(source: amqp.Source) -> PeerError:
        with pytest.raises(PeerError) as caught:
            await asyncio.wait_for(source.run(host, Inbox(host), lambda: None), 10)
        return caught.value

    return failure


async def until_recovered(rabbitmq: RabbitMq, queue: str) -> None:
    """Returns once a durable queue is back after a start: the broker may listen before it has read all of it."""
    async with asyncio.timeout(10):
        while True:
            try:
                await count(rabbitmq, queue)
            except aio_pika.exceptions.ChannelNotFoundEntity as error:
                if "no queue" in str(error):
                    raise
                await asyncio.sleep(0.05)
            else:
                return


async def awaited(what: Awaitable[Any]) -> Any:
    """Makes a coroutine of anything that can be awaited, for `create_task`."""
    return await what
