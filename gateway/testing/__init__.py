"""Fakes and contract checks for authors of adapters and transforms. Public: plug-ins test themselves with it.

from gateway.testing import SINK_CHECKS, SinkBench, checks_for

class Bench(SinkBench): ...          # how to make the sink, and how to play its peer

@pytest.mark.parametrize("check", checks_for(Bench, SINK_CHECKS), ids=lambda check: check.__name__)
async def test_it_keeps_the_contract(check):
    async with Bench().running() as bench:
        await check(bench)
"""

from gateway.testing.benches import Check, FormatBench, SinkBench, SourceBench, checks_for, needs
from gateway.testing.fakes import FakeHost, Inbox, ManualClock, OfferInbox, arriving, opened, running, settle, until
from gateway.testing.format_checks import FORMAT_CHECKS
from gateway.testing.leaks import nothing_left
from gateway.testing.sink_checks import SINK_CHECKS
from gateway.testing.source_checks import SOURCE_CHECKS

__all__ = [
    "FORMAT_CHECKS",
    "SINK_CHECKS",
    "SOURCE_CHECKS",
    "Check",
    "FakeHost",
    "FormatBench",
    "Inbox",
    "ManualClock",
    "OfferInbox",
    "SinkBench",
    "SourceBench",
    "arriving",
    "checks_for",
    "needs",
    "nothing_left",
    "opened",
    "running",
    "settle",
    "until",
]
