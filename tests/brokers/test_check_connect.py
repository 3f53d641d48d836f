"""`gateway check --connect` against real brokers: what each refuses is a sentence of its own, and nothing is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters import mqtt
from gateway import TopicTemplate
from gateway.config import load
from gateway.testing import FakeHost, Inbox, arriving, opened, running
from gateway.trial import trials
from tests.brokers.amqp_peer import make_queue
from tests.brokers.mosquitto import mosquitto
from tests.brokers.rabbitmq import RabbitMq

pytestmark = pytest.mark.broker


async def problem(folder: Path, connection: str, *routes: str) -> str | None:
    """What is wrong with the one peer of these routes, each `from: …, to: …`."""
    lines = [f"  r{number}: {{{route}}}" for number, route in enumerate(routes)]
    file = folder / "routes.yaml"
    file.write_text("\n".join(["version: 1", f"connections: {{peer: {connection}}}", "routes:", *lines, ""]))
    (trial,) = await trials(load(file))
    assert trial.routes == tuple(f"r{number}" for number in range(len(routes)))
    return trial.problem


QUEUE = "from: {{amqp: {{connection: peer, queue: {}}}}}, to: drop"


async def test_all_is_well_where_queue_and_exchange_are_there(rabbitmq: RabbitMq, tmp_path: Path) -> None:
    good = f'{{amqp: {{url: "{rabbitmq.url}"}}}}'
    queue = await make_queue(rabbitmq)
    to = "from: rest, to: {amqp: {connection: peer, exchange: amq.topic, routing_key: a}}"
    assert await problem(tmp_path, good, QUEUE.format(queue), to) is None


async def test_each_queue_and_exchange_that_is_missing_is_named(rabbitmq: RabbitMq, tmp_path: Path) -> None:
    good = f'{{amqp: {{url: "{rabbitmq.url}"}}}}'
    to = "from: rest, to: {amqp: {connection: peer, exchange: no-such-exchange}}"
    made = "from: {amqp: {connection: peer, queue: will-be-made, declare: {durable: true}}}, to: drop"
    found = await problem(tmp_path, good, QUEUE.format("no-such-queue"), to, made) or ""
    assert "NOT_FOUND - no queue 'no-such-queue' in vhost '/'" in found
    assert "NOT_FOUND - no exchange 'no-such-exchange' in vhost '/'" in found
    assert "will-be-made" not in found


async def test_a_refused_password_or_vhost_of_rabbitmq_is_a_sentence(rabbitmq: RabbitMq, tmp_path: Path) -> None:
    queue = await make_queue(rabbitmq)
    said = {
        f'{{amqp: {{url: "{rabbitmq.url}", password: wrong}}}}': "user 'guest' was refused; check username and password",
        f'{{amqp: {{url: "{rabbitmq.url}/nowhere"}}}}': "vhost 'nowhere' was refused to user 'guest'",
    }
    for connection, text in said.items():
        assert text in (await problem(tmp_path, connection, QUEUE.format(queue)) or "")


SHARED = 'from: {mqtt: {connection: peer, topic: "open/#", qos: 1, shared_group: all}}, to: drop'
TOPIC = 'from: {{mqtt: {{connection: peer, topic: "{}", qos: {}}}}}, to: drop'


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_a_refused_password_of_mosquitto_is_a_sentence(tmp_path: Path, version: str) -> None:
    allowed = tmp_path / "acl"
    allowed.write_text("user gw\ntopic readwrite open/#\n")
    async with mosquitto(tmp_path, users={"gw": "right"}, settings=[f"acl_file {allowed}"]) as broker:

        def as_gw(password: str) -> str:
            quoted = version if version == "5" else f'"{version}"'
            return f'{{mqtt: {{url: "{broker.url}", client_id: g, username: gw, password: {password}, version: {quoted}}}}}'

        to = 'from: rest, to: {mqtt: {connection: peer, topic: "open/2"}}'
        assert await problem(tmp_path, as_gw("right"), TOPIC.format("open/+", 1), to) is None
        wrong = await problem(tmp_path, as_gw("wrong"), TOPIC.format("open/+", 1), to)
        assert "check username: and password:" in (wrong or "")


async def test_a_try_takes_nothing_away_from_who_is_subscribed(tmp_path: Path) -> None:
    async with mosquitto(tmp_path) as broker:
        host = FakeHost()
        inbox = Inbox(host)
        mine = mqtt.Connection(url=broker.url, client_id="g")
        other = mqtt.Connection(url=broker.url, client_id="other")
        async with (
            running(mqtt.Source(connection=mine, topic="open/#", qos=1), inbox, host),
            opened(mqtt.Sink(connection=other, topic=TopicTemplate("open/1")), host) as send,
        ):
            for body in (b"before", b"after"):
                await send(arriving(host, body))
                assert await problem(tmp_path, f'{{mqtt: {{url: "{broker.url}", client_id: g}}}}', SHARED) is None
            assert [message.body for message in await inbox.wait(2)] == [b"before", b"after"]
