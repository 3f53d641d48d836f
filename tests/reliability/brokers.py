"""Senders through real brokers, Mosquitto and RabbitMQ: what a broker has confirmed must arrive like anything else."""

from __future__ import annotations

import asyncio
import itertools
import struct
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aio_pika

from tests.brokers.mosquitto import mosquitto
from tests.brokers.rabbitmq import RabbitMq
from tests.reliability.senders import AGAIN_S, ANSWER_S, Sender

TARGETS = {"readings": ("f",), "orders": ("g",)}
_numbers = itertools.count(1)


@dataclass
class Brokers:
    """Two brokers that run, for scenes that each have a topic and a queue of their own."""

    mqtt_port: int
    amqp_port: int

    def lane(self) -> Lane:
        """A topic, a session and a queue that nobody else has."""
        return Lane(self, f"r{next(_numbers)}")


@dataclass
class Lane:
    """What one scene has at the brokers."""

    brokers: Brokers
    name: str

    @property
    def connections(self) -> str:
        """For `routes.yaml`."""
        return (
            "connections:\n"
            f'  plant: {{mqtt: {{url: "mqtt://127.0.0.1:{self.brokers.mqtt_port}", client_id: {self.name}}}}}\n'
            f'  erp: {{amqp: {{url: "amqp://127.0.0.1:{self.brokers.amqp_port}"}}}}\n'
        )

    def routes(self, f: int, g: int, retry: str) -> str:
        """For `routes.yaml`: from the brokers to an HTTP target and a TCP target on these ports."""
        return f"""\
  readings:
    from: {{mqtt: {{connection: plant, topic: "{self.name}/#", qos: 1}}}}
    order_by: body.key
    to: {{http: {{url: "http://127.0.0.1:{f}/", timeout: 2s}}, name: f, retry: {retry}}}
  orders:
    from: {{amqp: {{connection: erp, queue: {self.name}}}}}
    order_by: body.key
    to: {{tcp: {{connect: "127.0.0.1:{g}", reply: {{accepted: OK, timeout: 2s}}, connections: 4}}, name: g,
         retry: {retry}}}
"""

    async def declare(self) -> None:
        """Makes the queue."""
        async with await aio_pika.connect(f"amqp://guest:guest@127.0.0.1:{self.brokers.amqp_port}/") as connection:
            channel = await connection.channel()
            await channel.declare_queue(self.name, durable=True)


@asynccontextmanager
async def brokers() -> AsyncIterator[Brokers]:
    """Both, started for as long as the context lasts.

    Raises:
        RuntimeError, FileNotFoundError: one is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="brokers-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        folder.chmod(0o755)
        (folder / "rabbitmq").mkdir()
        rabbit = RabbitMq(folder / "rabbitmq")
        try:
            await asyncio.to_thread(rabbit.start)
            async with mosquitto(folder) as mosquitto_running:
                yield Brokers(mosquitto_running.port, rabbit.port)
        finally:
            await asyncio.to_thread(rabbit.close)


class MqttSender(Sender):
    """Publishes at QoS 1; the broker's PUBACK is an acknowledgement. MQTT 3.1.1, sections 3.1 to 3.4."""

    topic = ""

    async def send_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = _text(self.name)
        writer.write(_packet(0x10, _text("MQTT") + b"\x04\x02\x00\x3c" + name))
        if (await _read_packet(reader))[0] >> 4 != 2:
            raise EOFError("no CONNACK")
        while True:
            entry, body = self.next()
            number = self.number % 65535 + 1
            writer.write(_packet(0x32, _text(self.topic) + struct.pack(">H", number) + body))
            async with asyncio.timeout(ANSWER_S):
                kind, rest = await _read_packet(reader)
            if kind >> 4 != 4 or struct.unpack(">H", rest[:2])[0] != number:
                raise EOFError(f"expected PUBACK of {number}, got packet {kind:#x}")
            self.ledger.confirmed(entry)
            await asyncio.sleep(self.pause_s)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">H", len(data)) + data


def _packet(kind: int, rest: bytes) -> bytes:
    length, left = bytearray(), len(rest)
    while True:
        left, digit = divmod(left, 128)
        length.append(digit | (128 if left else 0))
        if not left:
            return bytes((kind,)) + bytes(length) + rest


async def _read_packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    kind = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        digit = (await reader.readexactly(1))[0]
        length |= (digit & 127) << shift
        shift += 7
        if digit < 128:
            return kind, await reader.readexactly(length)


class AmqpSender(Sender):
    """Publishes with confirms; the broker's confirm is an acknowledgement."""

    queue = ""

    async def run(self) -> None:
        while True:
            try:
                connection = await aio_pika.connect(f"amqp://guest:guest@127.0.0.1:{self.port}/")
                async with connection:
                    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                    while True:
                        entry, body = self.next()
                        message = aio_pika.Message(body, delivery_mode=2, content_type="application/json")
                        await channel.default_exchange.publish(message, routing_key=self.queue, timeout=ANSWER_S)
                        self.ledger.confirmed(entry)
                        await asyncio.sleep(self.pause_s)
            except (OSError, aio_pika.exceptions.AMQPError):
                await asyncio.sleep(AGAIN_S)
