"""Every adapter keeps the contract of `gateway.testing`, against peers in this process."""

from __future__ import annotations

import pytest

from gateway.testing import SINK_CHECKS, SOURCE_CHECKS, Check, SinkBench, SourceBench, checks_for
from tests.adapters import contract_streams

SOURCES: list[type[SourceBench]] = [*contract_streams.BENCHES]
SINKS: list[type[SinkBench]] = []


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
