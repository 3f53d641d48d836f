"""Memory and descriptors while everything runs at once for ten minutes: what grows with the messages would show."""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

from benchmarks.brokers import mosquitto_in, rabbitmq_in
from benchmarks.contenders import gateway_command
from benchmarks.generators import MQTT_TOPIC
from benchmarks.loads import counted
from benchmarks.processes import Cores, MeasurementError, Running, free_port, module, started
from benchmarks.singles import Found

_TIMES = 150
"""Ten minutes, when a usual row is measured for 4 s."""
_SETTLED = 0.2
"""Part of the time after which memory has to stay as it is."""
_GROWTH_MIB = 8.0
_QUEUE = "bench.steady"
_ROUTES = f"""\
version: 1
gateway: {{name: bench, data: ./data, api: {{listen: "127.0.0.1:$api"}}}}
connections:
  plant: {{mqtt: {{url: "$mqtt", client_id: steady}}}}
  erp: {{amqp: {{url: "$amqp"}}}}
routes:
  lines:
    from: {{tcp: {{listen: "127.0.0.1:$line", framing: line, answer: {{accepted: OK}}}}}}
    to: {{drop: {{}}}}
  admissions:
    from: {{mllp: {{listen: "127.0.0.1:$mllp"}}}}
    ack: delivered
    to: {{drop: {{}}}}
  feed:
    from: {{websocket: {{listen: "127.0.0.1:$websocket", path: /in}}}}
    ack: delivered
    to: {{drop: {{}}}}
  readings:
    from: {{mqtt: {{connection: plant, topic: {MQTT_TOPIC}, qos: 1}}}}
    ack: delivered
    concurrency: 64
    to: {{amqp: {{connection: erp, routing_key: {_QUEUE}}}}}
  erp:
    from: {{amqp: {{connection: erp, queue: {_QUEUE}, prefetch: 64, declare: {{}}}}}}
    ack: delivered
    to: {{drop: {{}}}}
"""
_STREAMS = {"line": (32, 1), "mllp": (16, 1), "websocket": (4, 1), "mqtt": (1, 64)}
"""Connections and window of each generator."""


def steady(folder: Path, cores: Cores, seconds: float) -> list[Found]:
    """TCP lines (stored), MLLP, WebSocket and MQTT to AMQP and back, all at once."""
    lasts_s = seconds * _TIMES
    with ExitStack() as stack:
        mqtt = stack.enter_context(mosquitto_in(folder / "mosquitto"))
        amqp = stack.enter_context(rabbitmq_in(folder / "rabbitmq"))
        ports = {kind: free_port() for kind in _STREAMS}
        path = folder / "routes.yaml"
        path.write_text(Template(_ROUTES).substitute(ports, api=free_port(), mqtt=mqtt, amqp=amqp))
        ports["mqtt"] = urlsplit(mqtt).port or 1883
        process = stack.enter_context(started(gateway_command(path), cores.subject, folder / "gateway.log", cwd=folder))
        for kind in ("line", "mllp", "websocket"):
            process.until_open(ports[kind])
        generators = {kind: _generator(kind, ports[kind], lasts_s) for kind in _STREAMS}
        try:
            sizes = _watched(process, generators, lasts_s)
            counts = {kind: _count(kind, generator) for kind, generator in generators.items()}
        finally:
            for generator in generators.values():
                generator.kill()
    sent = ", ".join(f"{count:,.0f} {kind}" for kind, count in counts.items())
    (first_bytes, first_open), (last_bytes, last_open) = sizes
    return [
        Found(f"memory at the end of {lasts_s:.0f} s ({sent})", last_bytes / 2**20, "MiB", 300.0),
        Found("memory gained since a fifth of it", (last_bytes - first_bytes) / 2**20, "MiB", _GROWTH_MIB),
        Found("descriptors gained", last_open - first_open, "", 8),
    ]


def _generator(kind: str, port: int, lasts_s: float) -> subprocess.Popen[str]:
    connections, window = _STREAMS[kind]
    command = module("benchmarks.generators", kind, port, connections, window, lasts_s)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _watched(
    process: Running, generators: dict[str, subprocess.Popen[str]], lasts_s: float
) -> tuple[tuple[float, int], tuple[float, int]]:
    """Memory (the least of some looks) and descriptors at a fifth of the time, and just before its end."""
    began_s = time.monotonic()
    found = []
    for share in (_SETTLED, 0.95):
        while time.monotonic() - began_s < share * lasts_s:
            process.check()
            for kind, generator in generators.items():
                if generator.poll():
                    raise MeasurementError(f"the generator of {kind} failed: {_said(generator)}")
            time.sleep(0.2)
        looks = []
        for _ in range(10):
            looks.append(process.rss_bytes())
            time.sleep(0.1)
        found.append((float(min(looks)), len(list(Path(f"/proc/{process.pid}/fd").iterdir()))))
    return found[0], found[1]


def _count(kind: str, generator: subprocess.Popen[str]) -> float:
    try:
        generator.wait(60)
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"the generator of {kind} does not end") from error
    return counted(_said(generator))


def _said(generator: subprocess.Popen[str]) -> str:
    assert generator.stdout is not None
    return generator.stdout.read()
