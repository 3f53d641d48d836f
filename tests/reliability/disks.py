"""Suites in which the disk or the process itself is the harm: full, failing, shared with a second process, poisoned."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.reliability.launch import DISK, PROGRAM, can_trace, refused
from tests.reliability.ledger import Verdict
from tests.reliability.runs import Stage
from tests.reliability.scene import AGAIN_WITHIN_S, SEEN_WITHIN_S, Scene

TMPFS_MIB = 48
FAILS_WITHIN_S = 20.0
FOUND_WITHIN_S = 60.0
"""How long a message that kills may go unnoticed: all that were under way with it are tried alone before it."""


class SkippedError(Exception):
    """This machine can't run the suite; the text says why."""


# -- errors at every write and sync ------------------------------------------------------------------------------------


async def disk_errors(stage: Stage) -> Verdict:
    """EIO and ENOSPC by the kernel at the Nth write or sync of the journal's files: the first N, then random ones.

    Raises:
        SkippedError: it can't be made to happen here.
    """
    if not can_trace():
        raise SkippedError("no strace that may trace; apt-get install strace")
    verdict = Verdict()
    cases = _cases(stage)
    for number in range(0, len(cases), 20):
        async with replace(stage, program=PROGRAM).scene(number) as on:
            await on.begin()
            await on.acknowledged(20)
            for case in cases[number : number + 20]:
                await on.kill(f"before {case}")
                without_room = on.ledger.no_room() if "ENOSPC" in case else None
                await on.restart({DISK: case})
                await (_goes_on if "write:ENOSPC" in case else _fails)(on, case)
                if without_room is not None:
                    without_room.ended_s = time.monotonic()
            verdict.add(await on.judged())
    return verdict


def _cases(stage: Stage) -> list[str]:
    luck = stage.luck
    found = []
    for number in range(stage.times):
        for kind, most in (("write", 1000), ("sync", 100)):
            # A commit is some tens of writes and a sync.
            first = number + 1 if number < stage.times // 2 else luck.randint(1, most)
            found += [f"{kind}:EIO:{first}:1", f"{kind}:ENOSPC:{first}:{luck.randint(1, 30)}"]
    return found


async def _fails(on: Scene, case: str) -> None:
    """The process ends by itself, with 1 while it runs and 2 at its start, and accepts nothing any more.

    So it does after a sync that failed for lack of space: nobody knows what of the writes before it is on the disk.
    """
    code = await on.gateway.ended(on.patience(FAILS_WITHIN_S))
    if code not in (1, 2) or not refused(on.folder):
        on.troubles.append(
            f"{case}: expected the process to end with 1 or 2, it ended with {code}; {refused(on.folder)} calls failed"
        )
        await on.gateway.kill()
    on.ledger.fault(case)
    await on.restart()


async def _goes_on(on: Scene, case: str) -> None:
    """After a write that found no room the gateway takes messages again by itself, unless it could not even start."""
    deadline = time.monotonic() + on.patience(FAILS_WITHIN_S)
    while on.gateway.running and not refused(on.folder) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    if not refused(on.folder):
        on.troubles.append(f"{case}: no call failed")
    before = on.ledger.acknowledged
    await on.acknowledged(50, AGAIN_WITHIN_S)
    if on.gateway.running:
        if on.ledger.acknowledged - before < 50:
            on.troubles.append(f"{case}: nothing was taken {AGAIN_WITHIN_S:g} s after there was room again")
        return
    code = await on.gateway.ended(1)
    if code != 2:
        on.troubles.append(f"{case}: expected it to go on, it ended with {code}")
    on.ledger.fault(case)
    await on.restart()


# -- a full disk -------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own, of a few MiB.

    Raises:
        SkippedError: it can't be mounted here.
    """
    place = folder / "disk"
    place.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MIB}m", "tmpfs", str(place)]
    if os.geteuid() != 0:
        raise SkippedError("a small tmpfs can only be mounted by root")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SkippedError(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


async def full_disk(stage: Stage) -> Verdict:
    """The disk fills up, with and without a reserve: nothing more is acknowledged, and it goes on when there is room."""
    verdict = Verdict()
    for number in range(stage.times):
        with small_disk(stage.folder / str(number)) as place:
            async with stage.scene(folder=place) as on:
                on.gateway.log = stage.folder / f"{number}.log"
                on.configure(reserve="8MiB" if number % 2 else "1KiB")
                await on.begin()
                await on.acknowledged(100)
                await _fill_and_free(on, place / "ballast")
                verdict.add(await on.judged())
    return verdict


async def _fill_and_free(on: Scene, ballast: Path) -> None:
    without_room = on.ledger.no_room()
    _fill(ballast)
    told = len(on.answers)
    began = time.monotonic()
    while len(on.answers) - told < 20:
        _fill(ballast)
        if time.monotonic() - began > on.patience(SEEN_WITHIN_S):
            on.troubles.append(f"full disk: senders were told nothing for {SEEN_WITHIN_S:g} s")
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    before = on.ledger.acknowledged
    await asyncio.sleep(1.0)
    if on.ledger.acknowledged - before > 0 and _free(ballast) == 0:
        on.troubles.append(f"full disk: {on.ledger.acknowledged - before} messages were acknowledged without room")
    await _is_unready(on)
    ballast.unlink()
    before = on.ledger.acknowledged
    await on.acknowledged(50, AGAIN_WITHIN_S)
    without_room.ended_s = time.monotonic()  # not before: the gateway looks for room now and then
    if on.ledger.acknowledged - before < 50:
        on.troubles.append(f"full disk: nothing was taken {AGAIN_WITHIN_S:g} s after there was room again")


def _fill(ballast: Path) -> None:
    """Takes all room that is left."""
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            block = b"\0" * size
            try:
                while file.write(block) == size:
                    pass
            except OSError:
                continue


def _free(ballast: Path) -> int:
    disk = os.statvfs(ballast.parent)
    return disk.f_bavail * disk.f_frsize


async def _is_unready(on: Scene) -> None:
    try:
        status, said = await on.gateway.ask("GET", "/health/ready")
    except (OSError, EOFError) as error:
        on.troubles.append(f"full disk: readiness does not answer: {error!r}")
        return
    if status != 503:
        on.troubles.append(f"full disk: readiness says {status} {said}")


# -- poison and a second process ---------------------------------------------------------------------------------------

_PLUG_IN = """\
import os, signal
from gateway import Message, Settings
from pydantic import Field

class Step(Settings):
    word: str = Field(description="what kills")

    def __call__(self, message: Message, /) -> Message | None:
        if self.word.encode() in message.body:
            os.kill(os.getpid(), signal.SIGKILL)
        return message
"""
WORD = "this one kills the process"


def plug_in(folder: Path) -> dict[str, str]:
    """A plug-in with a step that some messages kill the process in: what the environment needs to find it."""
    info = folder / "deadly-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "deadly_step.py").write_text(_PLUG_IN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: deadly\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gateway.transforms]\ndeadly = deadly_step\n")
    return {"PYTHONPATH": str(folder)}


async def poison(stage: Stage) -> Verdict:
    """A message kills the process in a step: after some restarts it is a dead letter, and all others have arrived."""
    verdict = Verdict()
    for number in range(stage.times):
        async with stage.scene(number) as on:
            on.gateway.environment |= plug_in(on.folder / "plug-in")
            on.configure(steps=f"{{deadly: {{word: {WORD}}}}}, ")
            await on.begin()
            await on.acknowledged(50)
            uid = await on.send_deadly(WORD)
            deaths = 0
            while await _killed(on):
                deaths += 1
                on.ledger.fault(f"poison, death {deaths}")
                if deaths > 15:
                    on.troubles.append(f"poison: the process died {deaths} times and more")
                    break
                await on.restart()
            found = await on.judged()
            if found.dead != 1 or uid not in on.dead:
                found.troubles.append(f"poison: expected one dead letter, {uid}, there are {sorted(on.dead)}")
            verdict.add(found)
    return verdict


async def _killed(on: Scene) -> bool:
    """Whether the process dies now; if not, it has taken messages for a while, and has one dead letter."""
    deadline = time.monotonic() + on.patience(FOUND_WITHIN_S)
    while time.monotonic() < deadline:
        if await on.gateway.ended(0.2) == -signal.SIGKILL:
            return True
        try:
            metrics = await on.gateway.metrics()
        except (OSError, EOFError):
            continue
        if metrics.get('gateway_journal_messages{route="web",state="dead"}', 0) >= 1:
            return False
    return False


async def second_process(stage: Stage) -> Verdict:
    """A second process on one data folder ends with 2 and says who holds it; the first one notices nothing."""
    async with stage.scene() as on:
        await on.begin()
        first = on.gateway.process
        assert first is not None
        for _ in range(stage.times):
            await on.acknowledged(50)
            second = await on.gateway.launch()
            try:
                code: Any = await asyncio.wait_for(second.wait(), 20)
            except TimeoutError:
                code = "nothing after 20 s"
                second.kill()
                await second.wait()
            text = on.gateway.tail(1000)
            if code != 2 or f"in use by process {first.pid}" not in text:
                on.troubles.append(f"second process: expected exit code 2 and who holds the folder, got {code}: {text}")
        return await on.judged()
