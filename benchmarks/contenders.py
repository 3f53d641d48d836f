"""What is measured: gateways of a `routes.yaml`, and bare programs that do the same work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template

from benchmarks.processes import Cores, Running, free_port, module, started


@dataclass(frozen=True)
class Stage:
    """Where a measurement happens. Placeholders of configurations are named as the fields."""

    folder: Path
    cores: Cores
    port: int
    """Where the contender listens."""
    api: int
    sink: int
    """Where the HTTP server listens that targets send to."""
    amqp: str = ""
    """The URL of RabbitMQ, if the run started it."""
    mqtt: str = ""
    """The URL of Mosquitto, if the run started it."""
    body: Path = Path()
    """A file of what is sent, for generators."""


@dataclass(frozen=True)
class Contender:
    """A program under measurement."""

    name: str
    command: Callable[[Stage], list[str]]
    listens: bool = True
    both_cores: bool = False
    """It may use all cores: for what writes to a disk in a thread of its own."""

    @contextmanager
    def running(self, stage: Stage) -> Iterator[Running]:
        """Its process, listening, for as long as the context lasts."""
        cores = stage.cores.all if self.both_cores else stage.cores.subject
        with started(self.command(stage), cores, stage.folder / "output", cwd=stage.folder) as process:
            if self.listens:
                process.until_open(stage.port)
            yield process


_HEAD = """\
version: 1
gateway: {name: bench, data: ./data, api: {listen: "127.0.0.1:$api"}}
"""


def gateway(name: str, text: str, *, listens: bool = True, both_cores: bool = False) -> Contender:
    """A gateway with these `connections:` and `routes:`, in which `$port`, `$sink` … are the stage's."""

    def command(stage: Stage) -> list[str]:
        path = stage.folder / "routes.yaml"
        path.write_text(Template(_HEAD + text).substitute(vars(stage)))
        return gateway_command(path)

    return Contender(name, command, listens, both_cores)


def gateway_command(path: Path) -> list[str]:
    """The command that runs a configuration."""
    return module("gateway", "run", path, "--log-level", "error")


def bare(name: str, program: str, kind: str, *, listens: bool = True, both_cores: bool = False) -> Contender:
    """A program of this folder that does the same without a gateway."""

    def command(stage: Stage) -> list[str]:
        return module(f"benchmarks.{program}", kind, stage.port, stage.sink, stage.amqp or "-", stage.mqtt or "-")

    return Contender(name, command, listens, both_cores)


def stage_in(folder: Path, cores: Cores, *, sink: int, amqp: str = "", mqtt: str = "") -> Stage:
    """A stage with free ports."""
    folder.mkdir(parents=True)
    return Stage(folder, cores, port=free_port(), api=free_port(), sink=sink, amqp=amqp, mqtt=mqtt)
