"""How contenders are driven: wrk for HTTP, generators of our own for everything else, each on the other core."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.contenders import Stage
from benchmarks.processes import MeasurementError, Running, module, output_of
from benchmarks.samples import Sample

_SCRIPT = """\
local bodies = {BODIES}
local requests, at = {}, 0
init = function(args)
  for i, body in ipairs(bodies) do
    requests[i] = wrk.format("POST", "/orders", {["content-type"] = "application/json"}, body)
  end
end
request = function()
  at = at % #requests + 1
  return requests[at]
end
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('RESULT {"count":%d,"seconds":%f,"p99_ms":%f,"errors":%d}\\n', summary.requests,
    summary.duration / 1e6, latency:percentile(99) / 1e3, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class Load(Protocol):
    """A way to drive a contender."""

    def prepare(self, stage: Stage, seconds: float) -> None:
        """Makes ready what has to be there before the contender starts."""
        ...

    def run(self, stage: Stage, process: Running, seconds: float) -> Sample:
        """Drives the running contender for about so long."""
        ...


@dataclass(frozen=True)
class Wrk:
    """wrk, over keep-alive connections, each with one request at a time; bodies in turn."""

    bodies: tuple[bytes, ...]
    connections: int = 64

    def prepare(self, stage: Stage, seconds: float) -> None:
        """Nothing to make ready."""

    def run(self, stage: Stage, process: Running, seconds: float) -> Sample:
        program = shutil.which("wrk")
        if program is None:
            raise MeasurementError("wrk is not installed; on Debian: apt-get install wrk")
        script = stage.folder / "load.lua"
        bodies = ", ".join(_lua(body) for body in self.bodies)
        script.write_text(_SCRIPT.replace("BODIES", bodies, 1), encoding="latin-1")
        url = f"http://127.0.0.1:{stage.port}/orders"
        command = [program, "-t1", f"-c{self.connections}", "-s", str(script), url]
        _drive([*command, f"-d{max(1, round(seconds / 4))}"], stage, process, seconds)  # warm
        return _drive([*command, f"-d{max(1, round(seconds))}"], stage, process, seconds)


@dataclass(frozen=True)
class Generator:
    """A generator of `benchmarks.generators`, with its arguments."""

    kind: str
    connections: int
    window: int = 1
    """Messages that each connection has under way."""

    def prepare(self, stage: Stage, seconds: float) -> None:
        """Nothing to make ready."""

    def run(self, stage: Stage, process: Running, seconds: float) -> Sample:
        def command(duration: float) -> list[str]:
            return module("benchmarks.generators", self.kind, stage.port, self.connections, self.window, duration)

        _drive(command(max(0.2, seconds / 4)), stage, process, seconds)  # warm
        return _drive(command(seconds), stage, process, seconds)


def _drive(command: list[str], stage: Stage, process: Running, seconds: float) -> Sample:
    began_s, cpu_s = time.monotonic(), process.cpu_s()
    written = output_of(command, within_s=seconds + 30)
    cpu_s, took_s = process.cpu_s() - cpu_s, time.monotonic() - began_s
    process.check()
    found = _result(written)
    return sample(found["count"], found["seconds"], cpu_s, min(took_s, found["seconds"]), found)


def sample(count: int, seconds: float, cpu_s: float, took_s: float, found: dict[str, Any]) -> Sample:
    """What was counted and timed, as a sample."""
    if not count or not seconds:
        raise MeasurementError(f"nothing came through: {found}")
    return Sample(
        rate=count / seconds,
        cpu_us=cpu_s / count * 1e6,
        busy=cpu_s / took_s,
        p99_ms=found.get("p99_ms"),
        errors=found.get("errors", 0),
    )


def counted(written: str) -> float:
    """How many messages a generator says that it sent."""
    count: float = _result(written)["count"]
    return count


def _result(written: str) -> dict[str, Any]:
    for line in written.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
            return found
    raise MeasurementError(f"the generator gave no result:\n{written}")


def _lua(body: bytes) -> str:
    """A body as a string of Lua."""
    return '"' + "".join(f"\\{byte:03d}" for byte in body) + '"'
