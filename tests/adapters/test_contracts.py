"""Every adapter keeps the contract of `gateway.testing`, against peers in this process."""

from __future__ import annotations

import asyncio

import pytest

from gateway import MessageError
from gateway.testing import SINK_CHECKS, SOURCE_CHECKS, Check, SinkBench, SourceBench, checks_for
from tests.adapters import contract_amqp, contract_inside, contract_mqtt, contract_stream_sinks, contract_streams

SOURCES: list[type[SourceBench]] = [
    *contract_streams.BENCHES,
    *contract_inside.SOURCES,
    *contract_mqtt.SOURCES,
    *contract_amqp.SOURCES,
]
SINKS: list[type[SinkBench]] = [
    *contract_stream_sinks.BENCHES,
    *contract_inside.SINKS,
    *contract_mqtt.SINKS,
    *contract_amqp.SINKS,
]


@pytest.mark.parametrize(
    ("bench", "check"),
    [
        pytest.param(bench, check, id=f"{bench.__name__}-{check.__name__}")
        for bench in SOURCES
        for check in checks_for(bench, SOURCE_CHECKS)
    ],
)
async def test_a_source_keeps_its_contract(bench: type[SourceBench], check: Check) -> None:
    async with bench().running() as running:
        await check(running)


@pytest.mark.parametrize(
    ("bench", "check"),
    [
        pytest.param(bench, check, id=f"{bench.__name__}-{check.__name__}")
        for bench in SINKS
        for check in checks_for(bench, SINK_CHECKS)
    ],
)
async def test_a_sink_keeps_its_contract(bench: type[SinkBench], check: Check) -> None:
    async with bench().running() as running:
        await check(running)


@pytest.mark.parametrize("check", [check for check in SOURCE_CHECKS if check.__name__ in contract_inside.ALONE])
async def test_a_timer_keeps_what_a_source_alone_can_keep(check: Check) -> None:
    async with contract_inside.Timer().running() as running:
        await check(running)


async def test_drop_is_a_sink_like_all_others() -> None:
    async with contract_inside.Drop().running() as bench, bench.sink().open(bench.host) as send:
        assert await send(bench.message(b"{}")) is None


async def test_of_many_messages_that_create_one_file_at_once_one_does_and_all_others_are_refused() -> None:
    async with contract_inside.Created().running() as bench, bench.sink().open(bench.host) as send:
        for name in range(5):
            messages = [bench.message(b"%d" % number).replace(subject=f"one{name}") for number in range(16)]
            results = await asyncio.gather(*(send(message) for message in messages), return_exceptions=True)
            delivered = [message.body for message, result in zip(messages, results, strict=True) if result is None]
            assert len(delivered) == 1
            assert sum(isinstance(result, MessageError) for result in results) == 15
            assert (bench.folder / f"one{name}.bin").read_bytes() == delivered[0]
        assert list(bench.folder.glob(".*")) == []
