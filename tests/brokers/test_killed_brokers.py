"""A gateway in a process of its own sends 10,000 messages to a broker that is killed twice: all are counted, by id.

Each id that the gateway acknowledged was confirmed by the broker, or is pending in the journal. What the broker confirmed
it must have, too: RabbitMQ does; what Mosquitto forgets after its own PUBACK is its own loss, and counted apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from adapters._mqtt_packets import PUBACK, PUBLISH, Packets, read_answer, read_publish
from adapters.mqtt import Connection, Source
from gateway import PeerError
from gateway.testing import FakeHost, Inbox, until
from tests.brokers.amqp_peer import make_queue, take_all, until_recovered
from tests.brokers.mosquitto import Mosquitto, mosquitto
from tests.brokers.rabbitmq import RabbitMq
from tests.brokers.watched import WatchedProxy
from tests.ports import free_ports
from tests.reliability import books
from tests.reliability.books import Books
from tests.reliability.ledger import Ledger
from tests.reliability.process import Gateway
from tests.reliability.senders import HttpSender
from tests.reliability.targets import uid_of

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(170)]

COUNT = 10_000
FIRST_KILL, SECOND_KILL = 3_000, 9_000
SENDERS = 8
CONFIG = """\
version: 1
gateway: {{data: ./var, api: {{listen: "127.0.0.1:{api}"}}, grace: 1s}}
connections: {{broker: {connection}}}
routes:
  orders:
    from: {{http: {{listen: "127.0.0.1:{http}", path: /orders}}}}
    to: {{{to}, name: broker, retry: {{attempts: 1000, first_wait: 50ms, max_wait: 500ms}}}}
"""


class Trial:
    """A gateway with one route, and senders before it that note what they are told."""

    def __init__(self, folder: Path, connection: str, to: str, pause_s: float) -> None:
        http, api = free_ports(2)
        self.gateway = Gateway(folder, [http], api)
        self.gateway.config.write_text(CONFIG.format(api=api, http=http, connection=connection, to=to))
        self.ledger = Ledger({"orders": ("broker",)})
        self._senders = [
            HttpSender(f"s{number}", "orders", http, self.ledger, random.Random(number), keyed=False)
            for number in range(SENDERS)
        ]
        for sender in self._senders:
            sender.pause_s = pause_s
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def acknowledged(self) -> set[str]:
        """The ids that the gateway said were safe."""
        return {uid for uid, entry in self.ledger.sent.items() if entry.acknowledged_s is not None}

    async def send_until(self, count: int) -> None:
        """Returns once so many were acknowledged; the senders go on."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(sender.run()) for sender in self._senders]
        await until(lambda: self.ledger.acknowledged >= count, timeout_s=90)

    async def stop_sending(self) -> None:
        """No more is sent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def stopped(self) -> Books:
        """Stops the gateway in good order: its books."""
        assert await self.gateway.stop() == 0, self.gateway.tail()
        return books.read(self.gateway.folder / "var" / "gateway.db")

    async def drained(self) -> None:
        """Returns once the gateway has nothing left to deliver."""
        async with asyncio.timeout(60):
            while (await self.gateway.metrics())['gateway_messages_pending{route="orders"}']:
                await asyncio.sleep(0.1)


@asynccontextmanager
async def trial(folder: Path, connection: str, to: str, pause_s: float = 0.0) -> AsyncIterator[Trial]:
    """pause_s: between two messages of a sender."""
    made = Trial(folder, connection, to, pause_s)
    async with made.gateway as gateway:
        await gateway.start()
        try:
            yield made
        finally:
            await made.stop_sending()


def split(trial: Trial, found: Books) -> tuple[set[str], set[str]]:
    """What was confirmed, and what is pending; nothing that was acknowledged is anything else."""
    confirmed, pending = found.uids("delivered"), found.uids("stored", "pending")
    assert found.problem == "ok"
    assert trial.acknowledged <= confirmed | pending
    assert confirmed | pending <= set(trial.ledger.sent)
    assert not confirmed & pending
    return confirmed, pending


async def test_every_id_is_in_rabbitmq_or_pending_when_it_is_killed_twice(
    rabbitmq: RabbitMq, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = await make_queue(rabbitmq)
    await asyncio.to_thread(rabbitmq.keep)
    connection = f'{{amqp: {{url: "{rabbitmq.url}"}}}}'
    to = f"amqp: {{connection: broker, routing_key: {queue}}}"
    # The pause: it takes seconds to start, and some of the messages should still come after that.
    async with trial(tmp_path, connection, to, pause_s=0.005) as on:
        await on.send_until(FIRST_KILL)
        rabbitmq.kill()
        await asyncio.to_thread(rabbitmq.start)
        await until_recovered(rabbitmq, queue)
        await on.send_until(SECOND_KILL)
        rabbitmq.kill()
        await on.send_until(COUNT)
        await on.stop_sending()
        away, pending = split(on, await on.stopped())
        await asyncio.to_thread(rabbitmq.start)
        await until_recovered(rabbitmq, queue)
        kept = {uid_of(got.body) for got in await take_all(rabbitmq, queue)}
        assert away <= kept
        await on.gateway.start()
        await on.drained()
        confirmed, left = split(on, await on.stopped())
    taken = [uid_of(got.body) for got in await take_all(rabbitmq, queue)]
    with capsys.disabled():
        sys.stdout.write(
            f"\nrabbitmq killed twice: {len(on.acknowledged)} acknowledged; while it was away {len(away)} of them "
            f"confirmed and {len(pending)} pending; at the end {len(confirmed)} confirmed, {len(left)} pending, "
            f"{len(confirmed & (kept | set(taken)))} in its queue, {len(kept & set(taken))} of them twice\n"
        )
    assert not left
    assert confirmed <= kept | set(taken)
    assert pending  # it was killed while there was something to lose


class Confirms:
    """Reads along what a client publishes, and notes the ids whose PUBACK came back."""

    def __init__(self, confirmed: set[str | None]) -> None:
        self._confirmed = confirmed
        self._open: dict[int, str | None] = {}
        self._up, self._down = Packets(), Packets()

    def up(self, data: bytes) -> None:
        for first, body in self._up.feed(data):
            if first & 0xF0 == PUBLISH:
                publish = read_publish(first, body, 5)
                self._open[publish.packet_id] = uid_of(publish.body)

    def down(self, data: bytes) -> None:
        for first, body in self._down.feed(data):
            if first & 0xF0 == PUBACK:
                answer = read_answer(first, body, 5)
                uid = self._open.pop(answer.packet_id)
                if answer.code < 0x80:
                    self._confirmed.add(uid)


class Subscriber:
    """Somebody who is subscribed whenever the broker is there, and keeps what comes."""

    def __init__(self, broker: Mosquitto) -> None:
        self._host = FakeHost()
        self._inbox = Inbox(self._host)
        self._source = Source(connection=Connection(url=broker.url, client_id="subscriber"), topic="orders")
        self.subscribed = asyncio.Event()

    async def run(self) -> None:
        while True:
            with contextlib.suppress(PeerError):
                await self._source.run(self._host, self._inbox, self.subscribed.set)
            self.subscribed.clear()
            await asyncio.sleep(0.005)

    async def until_quiet(self) -> set[str | None]:
        """What it has, once nothing has come for a while."""
        seen = -1
        while seen != len(self._inbox.messages):
            seen = len(self._inbox.messages)
            await asyncio.sleep(0.5)
        return {uid_of(message.body) for message in self._inbox.messages}

    @property
    def count(self) -> int:
        """How many came, twice those that came twice."""
        return len(self._inbox.messages)


async def test_every_id_was_confirmed_by_mosquitto_or_is_pending_when_it_is_killed_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_the_wire: set[str | None] = set()
    async with mosquitto(tmp_path) as broker, asyncio.TaskGroup() as tasks:
        subscriber = Subscriber(broker)
        subscribing = tasks.create_task(subscriber.run())
        await subscriber.subscribed.wait()
        async with WatchedProxy(broker.port, lambda: Confirms(on_the_wire)).running() as proxy:
            connection = f'{{mqtt: {{url: "mqtt://127.0.0.1:{proxy.port}", client_id: gateway}}}}'
            async with trial(tmp_path, connection, "mqtt: {connection: broker, topic: orders, qos: 1}") as on:
                await on.send_until(FIRST_KILL)
                broker.kill()
                await broker.start()
                await on.send_until(SECOND_KILL)
                broker.kill()
                await on.send_until(COUNT)
                await on.stop_sending()
                away, pending = split(on, await on.stopped())
                assert away <= on_the_wire
                subscriber.subscribed.clear()
                await broker.start()
                await subscriber.subscribed.wait()
                await on.gateway.start()
                await on.drained()
                confirmed, left = split(on, await on.stopped())
        received = await subscriber.until_quiet()
        subscribing.cancel()
    with capsys.disabled():
        sys.stdout.write(
            f"\nmosquitto killed twice: {len(on.acknowledged)} acknowledged; while it was away {len(away)} of them "
            f"confirmed and {len(pending)} pending; at the end {len(confirmed)} confirmed, {len(left)} pending, "
            f"{len(received)} received, {subscriber.count - len(received)} of them twice, "
            f"{len(confirmed - received)} forgotten by mosquitto after its own PUBACK\n"
        )
    assert not left
    assert confirmed <= on_the_wire
    assert received <= set(on.ledger.sent)
    assert pending
