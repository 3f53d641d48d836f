"""The suites: each does one kind of harm to a gateway under load, so many times, and returns the checker's verdict."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.failpoints import NAMES, VARIABLE
from tests.reliability.brokers import Brokers
from tests.reliability.launch import LIE, PROGRAM
from tests.reliability.ledger import Verdict
from tests.reliability.process import GATEWAY
from tests.reliability.scene import DRAIN_S, SEEN_WITHIN_S, Scene, scene
from tests.reliability.targets import moody

POINTS = tuple(name for name in NAMES if name not in ("reload.swapped", "replay.bulk", "journal.dead_letter"))
"""Those that plain traffic comes to."""
ROUNDS = 20
"""Rounds with one journal, before a new one begins."""
DIES_WITHIN_S = 20.0
LIE_PATIENCE_S = 0.5
"""A build that lies leaves messages open for ever, and what it lost comes to no target and no failpoint: what it has lost
is certain all the same, by the books."""


@dataclass
class Stage:
    """What a suite gets: where, with which luck, which program, and how often."""

    folder: Path
    luck: random.Random
    times: int
    program: Sequence[str] = GATEWAY
    environment: tuple[tuple[str, str], ...] = ()
    """For every process that is started: what the control build needs."""
    points: Sequence[str] = POINTS
    """Where `kill_points` kills."""
    brokers: Brokers | None = None
    """Messages come through these too; None: over HTTP and TCP alone."""
    patience_s: float = DRAIN_S
    """See `Scene`."""

    def lying(self, times: int) -> Stage:
        """The same for the control: a build that acknowledges 100 ms before it commits, which the checker must catch."""
        return replace(
            self,
            folder=self.folder / "lie",
            times=times,
            program=PROGRAM,
            environment=((LIE, "100ms"),),
            brokers=None,
            patience_s=LIE_PATIENCE_S,
        )

    @asynccontextmanager
    async def scene(self, number: int = 0, folder: Path | None = None) -> AsyncIterator[Scene]:
        """A scene with moody targets and the usual senders, not started."""
        place = folder or self.folder / str(number)
        async with scene(place, self.luck, program=self.program, brokers=self.brokers) as made:
            made.gateway.environment = dict(self.environment)
            made.patience_s = self.patience_s
            for name, target in made.targets.items():
                if name != "d":
                    target.act = moody(self.luck)
            made.add_senders()
            yield made

    def rounds(self) -> list[int]:
        """How many rounds each scene has."""
        full, rest = divmod(self.times, ROUNDS)
        return [ROUNDS] * full + [rest] * bool(rest)


# -- kill -9 -----------------------------------------------------------------------------------------------------------


async def random_kills(stage: Stage) -> Verdict:
    """kill -9 at a random moment under load."""
    verdict = Verdict()
    for number, rounds in enumerate(stage.rounds()):
        async with stage.scene(number) as on:
            await on.begin()
            for _ in range(rounds):
                await on.acknowledged(stage.luck.choice((1, 50, 300, 1000)), 5)
                await asyncio.sleep(stage.luck.random() * 0.05)
                await on.kill()
                await on.restart()
            verdict.add(await on.judged())
    return verdict


async def kill_points(stage: Stage) -> Verdict:
    """kill -9 at each place that plain traffic comes to, so many times each."""
    verdict = Verdict()
    for number, rounds in enumerate(stage.rounds()):
        async with stage.scene(number) as on:
            await on.begin()
            await on.acknowledged(50)
            await on.kill("before the first point")
            for _ in range(rounds):
                for name in stage.points:
                    count = stage.luck.randint(1, 3 if name == "journal.checkpoint" else 100)
                    await on.restart({VARIABLE: f"{name}=kill:{count}"})
                    await _dies(on, name)
            await on.restart()
            verdict.add(await on.judged())
    return verdict


async def _dies(on: Scene, name: str) -> None:
    code = await on.gateway.ended(on.patience(DIES_WITHIN_S))
    if code != -signal.SIGKILL:
        on.troubles.append(f"{name}: expected the process to be killed there, it ended with {code}")
        await on.gateway.kill()
    on.ledger.fault(name)


async def dead_letters(stage: Stage) -> Verdict:
    """kill -9 while messages become dead letters, and while many of them are sent again."""
    verdict = Verdict()
    for number, rounds in enumerate(stage.rounds()):
        async with stage.scene(number) as on:
            await on.begin()
            for _ in range(rounds):
                await _bury_and_replay(on, stage.luck)
            verdict.add(await on.judged())
    return verdict


async def _bury_and_replay(on: Scene, luck: random.Random) -> None:
    refusing = on.targets["d"]
    refusing.act = lambda _uid: "never"
    await on.kill("before journal.dead_letter")
    await on.restart({VARIABLE: f"journal.dead_letter=kill:{luck.randint(1, 100)}"})
    await _dies(on, "journal.dead_letter")
    await on.restart()
    await on.acknowledged(300, 5)
    refusing.act = lambda _uid: "accept"
    await on.kill("before replay.bulk")
    await on.restart({VARIABLE: f"replay.bulk=kill:{luck.randint(1, 3)}"})
    await on.replay_all(rate="100/s")  # a tenth of a second's worth at once: several rounds
    await _dies(on, "replay.bulk")
    await on.restart()
    await on.replay_all(rate="100000/s")


# -- signals -----------------------------------------------------------------------------------------------------------


async def stops(stage: Stage) -> Verdict:
    """SIGTERM under load: nothing is lost, and nothing comes twice."""
    verdict = Verdict()
    for number, rounds in enumerate(stage.rounds()):
        async with stage.scene(number) as on:
            await on.begin()
            for _ in range(rounds):
                await on.acknowledged(stage.luck.choice((20, 100, 500)), 5)
                began = time.monotonic()
                code = await on.gateway.stop()
                if code != 0:
                    on.troubles.append(f"SIGTERM: it ended with {code} after {time.monotonic() - began:.1f} s")
                await on.start_again()
            verdict.add(await on.judged())
    return verdict


BROKEN = (
    "version: 1\nroutes: {",
    "version: 1\nroutes:\n  web:\n    from: {no_such_thing: {}}\n    to: drop\n",
    "version: 2\nroutes: {}\n",
    "",
    "\x00\x01\x02",
)


async def reloads(stage: Stage) -> Verdict:
    """SIGHUP under load, every second one with a broken file: nothing is lost, nothing comes twice; kill -9 inside."""
    verdict = Verdict()
    async with stage.scene() as on:
        await on.begin()
        good = on.configure()
        for number in range(stage.times):
            await on.acknowledged(stage.luck.choice((5, 50)), 5)
            broken = number % 2 == 1
            text = stage.luck.choice(BROKEN) if broken else good.replace("set: {", f"set: {{type: t{number}, ")
            on.gateway.config.write_text(text)
            if not await on.reloaded(broken=broken):
                on.troubles.append(f"reload {number} ({'broken' if broken else 'good'} file) is not over after 10 s")
        on.gateway.config.write_text(good)
        await on.kill("before reload.swapped")
        await on.restart({VARIABLE: "reload.swapped=kill:1"})
        on.gateway.config.write_text(good.replace("set: {", "set: {type: last, "))
        on.gateway.send(signal.SIGHUP)
        await _dies(on, "reload.swapped")
        await on.restart()
        verdict.add(await on.judged())
    return verdict


# -- targets -----------------------------------------------------------------------------------------------------------


async def target_down(stage: Stage) -> Verdict:
    """Two targets are away for `times` seconds: it shows, others go on, and all arrive when they are back."""
    async with stage.scene() as on:
        await on.begin()
        await on.acknowledged(100)
        faults = [on.ledger.fault(f"target {name} down", name) for name in ("a", "e")]
        for name in ("a", "e"):
            await on.targets[name].down()
        began = time.monotonic()
        others = len([1 for receipts in on.ledger.receipts.values() for one in receipts if one.target in ("b", "d")])
        await _shows(on, "e")
        await asyncio.sleep(max(0.0, stage.times - (time.monotonic() - began)))
        after = len([1 for receipts in on.ledger.receipts.values() for one in receipts if one.target in ("b", "d")])
        if after - others < 20:
            on.troubles.append(f"while a and e were away, b and d got {after - others} messages")
        for name, fault in zip(("a", "e"), faults, strict=True):
            await on.targets[name].up()
            fault.ended_s = time.monotonic()
        return await on.judged()


async def _shows(on: Scene, target: str) -> None:
    """A target that is away shows in readiness and in the metrics (I9)."""
    began = time.monotonic()
    while time.monotonic() - began < on.patience(SEEN_WITHIN_S):
        status, _ = await on.gateway.ask("GET", "/health/ready")
        if status == 503:
            return
        await asyncio.sleep(0.1)
    on.troubles.append(f"target {target} is away, and readiness does not say so after {SEEN_WITHIN_S:g} s")
