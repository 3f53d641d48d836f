"""The gateway between two brokers that are killed while 10,000 messages pass: counted by id, and printed."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, deque
from pathlib import Path

import pytest

from adapters import mqtt
from gateway import PeerError, Send, TopicTemplate
from gateway.app import App
from gateway.journal import Filter
from gateway.testing import FakeHost, arriving, opened, until
from tests.brokers.amqp_peer import make_queue, peer, until_recovered
from tests.brokers.mosquitto import Mosquitto, mosquitto
from tests.brokers.rabbitmq import RabbitMq
from tests.playground import Playground

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(240)]

MESSAGES = 10_000
AT_ONCE = 16
BRIDGE = """\
version: 1
routes:
  bridge:
    from: {{mqtt: {{url: "{mqtt}", client_id: bridge, topic: readings, qos: 1}}}}
    to:
      amqp: {{url: "{amqp}", routing_key: "{queue}"}}
      name: erp
      retry: {{attempts: 1000, first_wait: 100ms, max_wait: 1s}}
"""


class Devices:
    """They publish numbers, each until Mosquitto has acknowledged it."""

    def __init__(self, broker: Mosquitto, app: App) -> None:
        self.acknowledged: set[bytes] = set()
        self._left = deque(b"%d" % number for number in range(MESSAGES))
        self._connection = mqtt.Connection(url=broker.url, client_id="devices")
        self._host = FakeHost()
        self._app = app

    async def publish(self) -> None:
        sink = mqtt.Sink(connection=self._connection, topic=TopicTemplate("readings"))
        while self._left:
            if not subscribed(self._app):  # a broker that forgot the session takes what nobody is subscribed to
                await asyncio.sleep(0.01)
                continue
            try:
                async with opened(sink, self._host) as send, asyncio.TaskGroup() as tasks:
                    for _ in range(AT_ONCE):
                        tasks.create_task(self._say(send))
            except* PeerError:
                await asyncio.sleep(0.05)

    async def _say(self, send: Send) -> None:
        while self._left:
            body = self._left.popleft()
            try:
                await send(arriving(self._host, body))
            except BaseException:
                self._left.append(body)
                raise
            self.acknowledged.add(body)

    async def reached(self, count: int) -> None:
        while len(self.acknowledged) < count:
            await asyncio.sleep(0.01)


async def in_journal(app: App, *, pending: bool = False) -> set[str]:
    """The ids of all messages that the gateway has taken; or of those that it still has to deliver."""
    ids: set[str] = set()
    cursor: str | None = None
    while True:
        wanted = Filter(route="bridge", status="pending" if pending else None)
        page = await app.services.journal.browse(wanted, cursor, 500)
        ids.update(row.id for row in page.rows)
        if page.next is None:
            return ids
        cursor = page.next


async def in_queue(rabbitmq: RabbitMq, queue: str) -> Counter[tuple[str, bytes]]:
    """What is in a queue, taken out of it: message-id and body."""
    found: Counter[tuple[str, bytes]] = Counter()
    async with peer(rabbitmq) as channel:
        declared = await channel.declare_queue(queue, passive=True)
        left = declared.declaration_result.message_count or 0
        all_here = asyncio.Event()

        async def see(message: object) -> None:
            found[message.message_id, message.body] += 1  # type: ignore[attr-defined]
            if found.total() == left:
                all_here.set()

        if left:
            await declared.consume(see, no_ack=True)
            await all_here.wait()
    return found


async def test_every_message_that_was_acknowledged_is_delivered_or_pending_when_both_brokers_are_killed(
    tmp_path: Path, rabbitmq: RabbitMq, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = await make_queue(rabbitmq)
    await asyncio.to_thread(rabbitmq.keep)
    place = Playground(tmp_path)
    async with mosquitto(tmp_path) as broker:
        (tmp_path / "routes.yaml").write_text(BRIDGE.format(mqtt=broker.url, amqp=rabbitmq.url, queue=queue))
        async with place.running("routes.yaml") as app:
            devices = Devices(broker, app)
            publishing = asyncio.create_task(devices.publish())
            await devices.reached(2_000)
            rabbitmq.kill()
            starting = asyncio.create_task(asyncio.to_thread(rabbitmq.start))
            await devices.reached(5_000)
            unread = len(devices.acknowledged) - app.services.observed.route("bridge").received
            broker.kill()
            await until(lambda: not subscribed(app))  # it reads what lies in its socket before it sees the end
            await broker.start()
            await starting
            await devices.reached(8_000)
            rabbitmq.kill()
            await asyncio.to_thread(rabbitmq.start)
            await publishing
            await quiet(app)
            taken, pending = await in_journal(app), await in_journal(app, pending=True)
    await until_recovered(rabbitmq, queue)
    found = await in_queue(rabbitmq, queue)
    confirmed = {message_id.removesuffix(".erp") for message_id, _ in found}
    bodies = {body for _, body in found}
    forgotten = devices.acknowledged - bodies
    with capsys.disabled():
        sys.stdout.write(
            f"\nmosquitto and rabbitmq killed: {len(devices.acknowledged)} acknowledged by mosquitto, {len(taken)} by the "
            f"gateway; of these {len(taken & confirmed)} confirmed, {len(pending)} pending, "
            f"{len(taken - confirmed - pending)} lost; {found.total() - len(found)} sent twice; "
            f"{len(forgotten)} forgotten by mosquitto after its own PUBACK\n"
        )
    assert len(devices.acknowledged) == MESSAGES
    assert taken - confirmed - pending == set()
    assert pending == set()
    assert confirmed <= taken
    assert bodies <= devices.acknowledged
    # What lay in Mosquitto's memory when it was killed, unread by us; of what devices sent just then we had some first.
    assert len(forgotten) <= unread + AT_ONCE


def subscribed(app: App) -> bool:
    """Whether the gateway is subscribed, as far as it knows."""
    return app.services.observed.peers["bridge", "source", "mqtt"].state == "up"


async def quiet(app: App) -> None:
    """Returns once nothing comes any more, and all that came is delivered."""
    seen = -1
    while seen != (now := app.services.observed.route("bridge").received) or await in_journal(app, pending=True):
        seen = now
        await asyncio.sleep(0.5)
