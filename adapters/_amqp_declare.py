"""What a route may make at a broker before it uses it: queues, exchanges and bindings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from aiormq.abc import AbstractChannel
from pydantic import Field

from gateway import Settings

Name = Annotated[str, Field(max_length=255)]
Kind = Literal["direct", "fanout", "topic", "headers"]


class QueueDeclaration(Settings):
    """A queue to make if it is not there, and what it is bound to."""

    durable: bool = Field(default=True, description="the queue outlives a restart of the broker")
    exclusive: bool = Field(default=False, description="the queue is ours alone and goes when the link does")
    auto_delete: bool = Field(default=False, description="the queue goes when its last consumer does")
    arguments: dict[str, Any] = Field({}, description="such as x-queue-type: quorum or x-dead-letter-exchange: dead")
    exchange: Name | None = Field(None, description="the exchange to bind the queue to")
    type: Kind | None = Field(None, description="the kind of that exchange, to make it too; default: it must be there")
    routing_keys: tuple[Name, ...] = Field(("",), min_length=1, description="one binding for each, such as order.*")

    async def make(self, rpc: AbstractChannel, name: str) -> str:
        """Makes them. What you get is the name of the queue, which the broker chooses if it is empty."""
        made = await rpc.queue_declare(
            name,
            durable=self.durable,
            exclusive=self.exclusive,
            auto_delete=self.auto_delete,
            arguments=self.arguments,
        )
        queue = made.queue or name
        if self.exchange:
            if self.type:
                await rpc.exchange_declare(self.exchange, exchange_type=self.type, durable=True)
            for routing_key in self.routing_keys:
                await rpc.queue_bind(queue, self.exchange, routing_key)
        return queue


class ExchangeDeclaration(Settings):
    """An exchange to make if it is not there."""

    type: Kind = Field("topic", description="how it routes")
    durable: bool = Field(default=True, description="the exchange outlives a restart of the broker")
    auto_delete: bool = Field(default=False, description="the exchange goes when its last binding does")
    arguments: dict[str, Any] = Field({}, description="such as alternate-exchange: unrouted")

    async def make(self, rpc: AbstractChannel, name: str) -> None:
        """Makes it."""
        await rpc.exchange_declare(
            name,
            exchange_type=self.type,
            durable=self.durable,
            auto_delete=self.auto_delete,
            arguments=self.arguments,
        )
