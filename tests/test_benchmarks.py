"""The benchmark's own code: what it computes and prints, and that a row runs. Nothing here is timed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import bodies
from benchmarks.__main__ import run
from benchmarks.contenders import bare
from benchmarks.generators import Talk, ask
from benchmarks.loads import Wrk
from benchmarks.processes import Cores, MeasurementError, free_port, module, started
from benchmarks.report import HEAD, Measured, failed_cells, single_cells, table
from benchmarks.rows import Row, rows, singles
from benchmarks.samples import Sample, Summary, cpu_ratio, ratio
from benchmarks.singles import Found
from gateway.config import load


def sample(rate: float, cpu_us: float = 10.0, p99_ms: float | None = 1.0, errors: int = 0) -> Sample:
    return Sample(rate, cpu_us, 1.0, p99_ms, errors)


def row(**more: object) -> Row:
    return Row("a", "a row", bare("it", "sink", "-"), Wrk((b"{}",)), **more)  # type: ignore[arg-type]


def test_orders_have_the_size_that_is_asked_for() -> None:
    assert 450 < len(bodies.ORDER) <= 500
    assert 450 < len(bodies.SMALL_ORDER) <= 500
    assert 9_900 < len(bodies.LARGE_ORDER) <= 10_000
    assert json.loads(bodies.ORDER)["total"] >= 1000 > json.loads(bodies.SMALL_ORDER)["total"]


def test_ratios_are_of_the_same_round_and_the_median_counts() -> None:
    subject, against = [sample(20, 5), sample(30, 6), sample(300, 7)], [sample(10, 10), sample(10, 18), sample(300, 7)]
    assert ratio(subject, against) == 2.0
    assert cpu_ratio(subject, against) == 2.0


def test_a_summary_has_medians_and_adds_errors() -> None:
    summary = Summary.of([sample(10, errors=1), sample(30), sample(20, errors=2, p99_ms=None)])
    assert (summary.rate, summary.errors, summary.p99_ms) == (20, 3, 1.0)


@pytest.mark.parametrize(
    ("bars", "samples", "misses"),
    [
        ({"bar": 1.5}, [sample(30)], []),
        ({"bar": 3.5}, [sample(30)], ["ratio"]),
        ({"rate_bar": 31}, [sample(30)], ["rate"]),
        ({"p99_bar_ms": 0.5}, [sample(30)], ["p99"]),
        ({}, [sample(30, errors=2)], ["2 errors"]),
        ({"bar": 3.5, "rate_bar": 31}, [sample(30, errors=1)], ["ratio", "rate", "1 errors"]),
    ],
    ids=["met", "ratio", "rate", "latency", "errors", "several"],
)
def test_each_missed_bar_is_named(bars: dict[str, float], samples: list[Sample], misses: list[str]) -> None:
    measured = Measured(row(**bars), subject=samples, against=[sample(10)])
    assert measured.misses == misses


def test_the_table_has_a_line_for_each_row() -> None:
    against = bare("loop", "sink", "-")
    measured = Measured(row(against=against, bar=1.5), subject=[sample(30)], against=[sample(10)])
    lines = table(
        [
            measured.cells(),
            failed_cells("another", "it is not installed"),
            single_cells("start", Found("", 0.5, "s", 1.5)),
        ]
    ).splitlines()
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0].split("|")[1].strip() == HEAD[0]
    assert "3.00" in lines[2]
    assert "not measured: it is not installed" in lines[3]
    assert lines[4].rstrip(" |").endswith("met")


def test_rows_have_names_of_their_own_and_run_beside_what_they_name() -> None:
    names = [row.name for row in rows()] + [single.name for single in singles()]
    assert len(set(names)) == len(names)
    assert all(row.against is not None for row in rows() if row.bar is not None)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_each_configuration_can_be_loaded(row: Row, tmp_path: Path) -> None:
    from benchmarks.contenders import stage_in

    stage = stage_in(tmp_path / "stage", Cores(), sink=1, amqp="amqp://127.0.0.1:5672", mqtt="mqtt://127.0.0.1:1883")
    command = row.subject.command(stage)
    path = next(Path(argument) for argument in command if argument.endswith(".yaml"))
    assert load(path).routes


def test_a_program_that_ends_is_said_with_what_it_wrote(tmp_path: Path) -> None:
    with (
        pytest.raises(MeasurementError, match="no_such_module"),
        started(module("no_such_module"), Cores().all, tmp_path / "output") as process,
    ):
        process.until_open(free_port())


def test_a_generator_counts_answers_and_not_pieces(tmp_path: Path) -> None:
    port = free_port()
    command = module("benchmarks.bare_streams", "mllp", port)
    with started(command, Cores().all, tmp_path / "output") as process:
        process.until_open(port)
        talk = Talk(b"\x0b" + bodies.ADMISSION + b"\x1c\r", b"\x1c\r")
        found = ask(talk, port, connections=2, window=3, seconds=0.05)
    assert found["count"] >= 6
    assert found["count"] % 1 == 0


def test_a_row_runs_and_leaves_nothing_behind(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    written = run(["--only", "tcp", "--rounds", "1", "--seconds", "0.1", "--folder", str(tmp_path)])
    assert "| TCP line → drop" in written
    assert "not measured" not in written
    assert os.sched_getaffinity(0) == before
    assert list(tmp_path.iterdir()) == []
    assert "round 1 of 1: tcp" in capsys.readouterr().err


def test_a_missing_wrk_is_said_plainly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    written = run(["--only", "http-drop", "--rounds", "1", "--folder", str(tmp_path)])
    assert "not measured: wrk is not installed; on Debian: apt-get install wrk" in written


def test_an_unknown_row_is_a_complaint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["--only", "http-drip"])
    assert "there is no row http-drip; there are: http-drop, http-map" in capsys.readouterr().err
