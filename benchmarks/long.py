"""The rows that take minutes: a journal with a million pending messages, and one with five million delivered ones."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.bodies import ORDER
from benchmarks.contenders import Stage, gateway, stage_in
from benchmarks.loads import Wrk
from benchmarks.processes import Cores, Running
from benchmarks.singles import Found

_PENDING = 1_000_000
_DELIVERED = 5_000_000
_FEW = 50_000
_STORED = """\
routes:
  orders:
    from: {http: {listen: "127.0.0.1:$port", path: /orders}}
    to: {drop: {}}
"""
_CONTENDER = gateway("stored", _STORED, both_cores=True)
_LOAD = Wrk((ORDER,), connections=256)
_COUNTER = re.compile(r'^gateway_journal_messages\{route="orders",state="(\w+)"\} (\S+)$', re.MULTILINE)
_DRAINING_S = 600.0


def backlog(folder: Path, cores: Cores, seconds: float) -> list[Found]:
    """What a restart after kill -9 costs with a million messages waiting, and how fast they drain."""
    few = _drain_rate(folder / "few", cores, _FEW)[0]
    many, accepting_s, rss_bytes = _drain_rate(folder / "many", cores, _PENDING)
    return [
        Found("accepting after kill -9", accepting_s, "s", 5.0),
        Found("memory", rss_bytes / 2**20, "MiB", 300.0),
        Found(f"drain rate, times slower than {_FEW:,}", few / many, "×", 1.2),
    ]


def _drain_rate(folder: Path, cores: Cores, count: int) -> tuple[float, float, float]:
    """Messages a second out of the journal, seconds until it accepts, and memory held while it drains."""
    stage = stage_in(folder, cores, sink=0)
    paused = folder / "data" / "paused.json"
    paused.parent.mkdir(mode=0o700)
    paused.write_text('["orders"]')
    with _CONTENDER.running(stage) as process:
        while _pending(stage) < count:
            _LOAD.run(stage, process, 4.0)
        process.kill()
    paused.write_text("[]")
    began_s = time.monotonic()
    with _CONTENDER.running(stage) as process:
        _until_accepting(stage, process)
        accepting_s, before, began_s = time.monotonic() - began_s, _pending(stage), time.monotonic()
        most = 0
        while (left := _pending(stage)) > before * 0.05 and time.monotonic() - began_s < _DRAINING_S:
            process.check()
            most = max(most, process.rss_bytes())
            time.sleep(0.05)
        return (before - left) / (time.monotonic() - began_s), accepting_s, most


def after_growth(folder: Path, cores: Cores, seconds: float) -> list[Found]:
    """How much more a stored message costs once the journal holds five million that are delivered."""
    stage = stage_in(folder / "growing", cores, sink=0)
    with _CONTENDER.running(stage) as process:
        first = _LOAD.run(stage, process, max(seconds, 10.0))
        while _state(stage, "delivered") < _DELIVERED:
            _LOAD.run(stage, process, 20.0)
        last = _LOAD.run(stage, process, max(seconds, 10.0))
    return [
        Found("time per message, times that of an empty one", first.rate / last.rate, "×", 1.2),
        Found("processor time, times that of an empty one", last.cpu_us / first.cpu_us, "×", 1.2),
    ]


def _pending(stage: Stage) -> float:
    return _state(stage, "stored") + _state(stage, "pending")


def _state(stage: Stage, state: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{stage.api}/metrics", timeout=30) as answer:
        found = dict(_COUNTER.findall(answer.read().decode()))
    return float(found.get(state, 0))


def _until_accepting(stage: Stage, process: Running) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{stage.port}/orders",
        data=json.dumps({"id": "1"}).encode(),
        headers={"content-type": "application/json"},
        method="POST",
    )

    def accepted() -> bool:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bool(answer.status == 202)
        except (urllib.error.URLError, OSError):
            return False

    process.until(accepted, "accept a message")
