"""`python -m benchmarks`: measures the rows and prints the table. See docs/benchmarks.md for how to read it."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.brokers import mosquitto_in, rabbitmq_in
from benchmarks.contenders import Contender, stage_in
from benchmarks.loads import Load
from benchmarks.processes import Cores, MeasurementError, free_port, machine, module, started
from benchmarks.report import Measured, failed_cells, single_cells, table
from benchmarks.rows import Row, rows, singles
from benchmarks.samples import Sample


class Bench:
    """One run: its folder, its sink, its brokers."""

    def __init__(self, folder: Path, cores: Cores, seconds: float) -> None:
        self._folder = folder
        self._cores = cores
        self._seconds = seconds
        self._sink = free_port()
        self._amqp = self._mqtt = ""
        self._count = 0

    def serve(self, stack: ExitStack, needed: set[str]) -> dict[str, str]:
        """Starts the sink, and the brokers that are needed. Returns what is missing, and why."""
        command = module("benchmarks.sink", self._sink)
        sink = stack.enter_context(started(command, self._cores.others, self._folder / "sink"))
        sink.until_open(self._sink)
        missing = {}
        if "wrk" in needed and shutil.which("wrk") is None:
            missing["wrk"] = "wrk is not installed; on Debian: apt-get install wrk"
        try:
            if "rabbitmq" in needed:
                self._amqp = stack.enter_context(rabbitmq_in(self._folder / "rabbitmq"))
        except MeasurementError as error:
            missing["rabbitmq"] = str(error)
        try:
            if "mosquitto" in needed:
                self._mqtt = stack.enter_context(mosquitto_in(self._folder / "mosquitto"))
        except MeasurementError as error:
            missing["mosquitto"] = str(error)
        return missing

    def sample(self, contender: Contender, load: Load) -> Sample:
        """Starts the contender anew and drives it once."""
        self._count += 1
        folder = self._folder / f"{self._count}"
        stage = stage_in(folder, self._cores, sink=self._sink, amqp=self._amqp, mqtt=self._mqtt)
        try:
            load.prepare(stage, self._seconds)
            with contender.running(stage) as process:
                return load.run(stage, process, self._seconds)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def measure(self, chosen: Sequence[Row], rounds: int, missing: dict[str, str]) -> list[tuple[str, ...]]:
        """The lines of these rows: in each round each of them, next to what it is compared with."""
        measured = {row.name: Measured(row) for row in chosen}
        failed = {
            row.name: next(missing[need] for need in row.needs if need in missing)
            for row in chosen
            if any(need in missing for need in row.needs)
        }
        for number in range(1, rounds + 1):
            beside: dict[tuple[str, Load], Sample] = {}
            for row in chosen:
                if row.name in failed:
                    continue
                _say(f"round {number} of {rounds}: {row.name}")
                try:
                    self._measure_once(measured[row.name], beside)
                except MeasurementError as error:
                    _say(str(error))
                    failed[row.name] = str(error)
        return [
            failed_cells(row.text, failed[row.name]) if row.name in failed else measured[row.name].cells()
            for row in chosen
        ]

    def _measure_once(self, measured: Measured, beside: dict[tuple[str, Load], Sample]) -> None:
        row = measured.row
        if row.against is not None:
            # Rows beside the same loop share its run when they follow each other.
            key = (row.against.name, row.load)
            if key not in beside:
                beside.clear()
                beside[key] = self.sample(row.against, row.load)
            measured.subject.append(self.sample(row.subject, row.load))
            measured.against.append(beside[key])
        else:
            measured.subject.append(self.sample(row.subject, row.load))


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    known = ", ".join([row.name for row in rows()] + [single.name for single in singles()])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="ROW", default=[], help=f"rows to measure, of: {known}")
    parser.add_argument("--rounds", type=int, default=5, help="how often each row is measured (5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long a measurement lasts (4)")
    parser.add_argument("--long", action="store_true", help="also the rows that take many minutes and gigabytes")
    parser.add_argument("--folder", type=Path, default=None, help="where journals are kept; it has to be a real disk")
    arguments = parser.parse_args(given)
    unknown = set(arguments.only) - set(known.split(", "))
    if unknown:
        parser.error(f"there is no row {sorted(unknown)[0]}; there are: {known}")
    return arguments


def run(given: Sequence[str] | None = None) -> str:
    """Measures what the arguments ask for, and returns the table."""
    arguments = _arguments(given)
    cores = Cores()
    if cores.shared:
        _say("there is one core only: generator and gateway share it, so that rates say little")
    os.sched_setaffinity(0, cores.others)
    chosen = [row for row in rows() if not arguments.only or row.name in arguments.only]
    others = [
        single
        for single in singles()
        if (single.name in arguments.only if arguments.only else arguments.long or not single.long)
    ]
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=arguments.folder) as folder, ExitStack() as stack:
            bench = Bench(Path(folder), cores, arguments.seconds)
            missing = bench.serve(stack, {need for row in chosen for need in row.needs})
            lines = bench.measure(chosen, arguments.rounds, missing)
            for single in others:
                _say(single.name)
                inner = Path(folder) / single.name
                inner.mkdir()
                try:
                    found = single.measure(inner, cores, arguments.seconds)
                    lines += [single_cells(single.text, one) for one in found]
                except MeasurementError as error:
                    _say(str(error))
                    lines.append(failed_cells(single.text, str(error)))
                shutil.rmtree(inner, ignore_errors=True)
    finally:
        os.sched_setaffinity(0, cores.all)
    return f"{machine()}; {arguments.rounds} rounds of {arguments.seconds:g} s\n\n{table(lines)}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(run())
