"""`python -m tests.reliability`: all suites in their long form, about 20 minutes. The table goes to docs/reliability.md.

`--times 0.1` does a tenth of everything and leaves the page alone; `--only random_kills,stops` runs some; `--no-brokers`
does without MQTT and AMQP; `--seed 7` repeats a run's luck (not its timing).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
import traceback
from contextlib import AsyncExitStack
from pathlib import Path

from tests.reliability import power_cut
from tests.reliability.brokers import Brokers, brokers
from tests.reliability.disks import SkippedError
from tests.reliability.ledger import Verdict
from tests.reliability.runs import Stage
from tests.reliability.suites import SUITES, Suite
from tests.reliability.table import Row, table, write

POWER_CUTS = 500


async def run(suite: Suite, times: int, folder: Path, seed: int, through: Brokers | None) -> Row:
    """One suite in its long form, and then the control build under its shortest form."""
    row = Row(suite.name, suite.what, times)
    stage = Stage(folder / suite.name, random.Random(f"{seed} {suite.name}"), times, brokers=through)
    began = time.monotonic()
    print(f"        {suite.name:16} {suite.what}: {times}", flush=True)
    try:
        row.verdict = await suite.run(stage)
        caught = await suite.run(stage.lying(suite.least))
        row.caught = f"caught: {len(caught.lost)} lost" if caught.lost else "NOT CAUGHT"
        if not caught.lost:
            row.verdict.troubles.append("the control build that acknowledges before it commits was not caught")
    except SkippedError as skipped:
        row.skipped = str(skipped)
    except Exception as error:
        traceback.print_exc()
        row.verdict.troubles.append(f"the suite did not end: {error!r}")
    row.seconds = time.monotonic() - began
    return row


def cut_power(moments: int, seed: int) -> Row:
    """The power cuts, and the control that does not sync."""
    began = time.monotonic()
    found, caught = power_cut.check(moments, seed), power_cut.check(min(moments, 60), seed, "OFF")
    verdict = Verdict()
    verdict.lost += [f"{found.lost} acknowledged messages"] * bool(found.lost)
    verdict.troubles += found.damaged
    if caught.good:
        verdict.troubles.append("the control build that does not sync was not caught")
    return Row(
        "power_cut",
        "power cut, in a model of the disk",
        moments,
        time.monotonic() - began,
        verdict,
        "NOT CAUGHT" if caught.good else f"caught: {caught.lost} lost, {len(caught.damaged)} damaged",
    )


async def run_all(wanted: argparse.Namespace, folder: Path) -> list[Row]:
    """Everything that was asked for; each row is printed when it is there."""
    rows: list[Row] = []
    async with AsyncExitStack() as stack:
        through = None if wanted.no_brokers else await stack.enter_async_context(brokers())
        for suite in SUITES:
            if not wanted.only or suite.name in wanted.only:
                times = max(suite.least, round(suite.times * wanted.times))
                rows.append(await run(suite, times, folder, wanted.seed, through))
                say(rows[-1])
    if not wanted.only or "power_cut" in wanted.only:
        moments = max(20, round(POWER_CUTS * wanted.times))
        rows.append(await asyncio.to_thread(cut_power, moments, wanted.seed))  # it has a loop of its own
        say(rows[-1])
    return rows


def say(row: Row) -> None:
    """One line of progress, and each finding."""
    state = "skipped" if row.skipped else "good" if row.verdict.good else "BAD"
    print(f"{state:8}{row.name:16} {row.seconds:6.0f} s  " + "  ".join(row.cells()[1:]), flush=True)
    for finding in row.verdict.some(10):
        print(f"        {finding}", flush=True)


def main() -> int:
    """0: every promise was kept and every lie was caught."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--times", type=float, default=1.0)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    parser.add_argument("--no-brokers", action="store_true")
    wanted = parser.parse_args()
    print(f"seed {wanted.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="reliability-"))
    rows = asyncio.run(run_all(wanted, folder))
    text = table(rows, wanted.seed, not wanted.no_brokers)
    print("\n" + text)
    if wanted.times >= 1 and not wanted.only and not wanted.no_brokers:
        write(text)
    if all(row.verdict.good for row in rows):
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    print(f"what the gateways wrote is in {folder}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
