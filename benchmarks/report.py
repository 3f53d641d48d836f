"""The table: medians, ratios, bars, and whether they are met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.rows import Row
from benchmarks.samples import Sample, Summary, cpu_ratio, ratio
from benchmarks.singles import Found

HEAD = ("row", "messages/s", "CPU µs", "busy", "p99 ms", "beside", "ratio", "by CPU", "bar", "")
_BUSY = 0.85
"""A process that was busier than this was the limit itself."""


@dataclass
class Measured:
    """All samples of a row, round by round."""

    row: Row
    subject: list[Sample] = field(default_factory=list)
    against: list[Sample] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """Rates beside the other's, of the rounds' medians."""
        return ratio(self.subject, self.against) if self.against else None

    @property
    def cpu_ratio(self) -> float | None:
        """The same by processor time."""
        return cpu_ratio(self.subject, self.against) if self.against else None

    @property
    def misses(self) -> list[str]:
        """Which bars are missed, in words."""
        row, summary = self.row, Summary.of(self.subject)
        missed = []
        if row.bar is not None and (self.ratio or 0.0) < row.bar:
            missed.append("ratio")
        if row.rate_bar is not None and summary.rate < row.rate_bar:
            missed.append("rate")
        if row.p99_bar_ms is not None and (summary.p99_ms or 0.0) > row.p99_bar_ms:
            missed.append("p99")
        if summary.errors:
            missed.append(f"{summary.errors} errors")
        return missed

    def cells(self) -> tuple[str, ...]:
        """The line of the table."""
        row, summary = self.row, Summary.of(self.subject)
        beside = "-"
        if row.against is not None:
            other = Summary.of(self.against)
            beside = f"{row.against.name}: {other.rate:,.0f}/s, {other.cpu_us:.1f} µs"
            beside += f", {other.busy:.2f}" if other.busy < _BUSY else ""
        return (
            row.text,
            f"{summary.rate:,.0f}",
            f"{summary.cpu_us:.1f}",
            f"{summary.busy:.2f}",
            _number(summary.p99_ms, "{:.1f}"),
            beside,
            _number(self.ratio, "{:.2f}"),
            _number(self.cpu_ratio, "{:.2f}"),
            _bar(row),
            "missed: " + ", ".join(self.misses) if self.misses else "met",
        )


def single_cells(text: str, found: Found) -> tuple[str, ...]:
    """The line of a number that is no throughput."""
    whole = f"{text}: {found.text}" if found.text else text
    value = f"{found.value:.2f} {found.unit}" if found.value < 100 else f"{found.value:.0f} {found.unit}"
    bar = f"≤ {found.most:g} {found.unit}"
    return (whole, value, "-", "-", "-", "-", "-", "-", bar, "met" if found.met else "missed")


def failed_cells(text: str, why: str) -> tuple[str, ...]:
    """The line of a row that could not be measured."""
    return (text, *["-"] * (len(HEAD) - 2), f"not measured: {why.splitlines()[0]}")


def table(lines: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    rows = [HEAD, *lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    written = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    written.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(written)


def _bar(row: Row) -> str:
    bars = []
    if row.bar is not None:
        bars.append(f"≥ {row.bar:g} ×")
    if row.rate_bar is not None:
        bars.append(f"≥ {row.rate_bar:,.0f}/s")
    if row.p99_bar_ms is not None:
        bars.append(f"p99 ≤ {row.p99_bar_ms:g}")
    return ", ".join(bars) or "no error"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
