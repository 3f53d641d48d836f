"""RabbitMQ and Mosquitto for the rows that need them, started as the tests do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import MeasurementError


@contextmanager
def rabbitmq_in(folder: Path) -> Iterator[str]:
    """The URL of a RabbitMQ of our own, for as long as the context lasts."""
    from tests.brokers.rabbitmq import RabbitMq

    folder.mkdir()
    broker = RabbitMq(folder)
    try:
        try:
            broker.start()
        except (FileNotFoundError, AssertionError) as error:
            raise MeasurementError(f"RabbitMQ did not start: {error}") from error
        yield broker.url
    finally:
        broker.close()


@contextmanager
def mosquitto_in(folder: Path) -> Iterator[str]:
    """The URL of a Mosquitto of our own, for as long as the context lasts."""
    from tests.brokers.mosquitto import Mosquitto

    folder.mkdir()
    try:
        broker = Mosquitto(folder, settings=("log_type none", "max_inflight_messages 0", "set_tcp_nodelay true"))
        asyncio.run(broker.start())
    except RuntimeError as error:
        raise MeasurementError(str(error)) from error
    try:
        yield broker.url
    finally:
        broker.stop()
