"""The table of results in docs/reliability.md: made from the rows of a whole run, and from nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.reliability.ledger import Verdict
from tests.reliability.process import ROOT

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- results: made by `make reliability` -->", "<!-- end of results -->"


@dataclass
class Row:
    """One suite of a run."""

    name: str
    what: str
    times: int
    seconds: float = 0.0
    verdict: Verdict = field(default_factory=Verdict)
    caught: str = ""
    """What the control build came to under the same suite."""
    skipped: str = ""

    def cells(self) -> Sequence[str]:
        """It as the table shows it."""
        found = self.verdict
        if self.skipped:
            return (self.what, f"skipped: {self.skipped}", *[""] * 8)
        counts = (found.lost, found.unexpected, found.duplicated, found.damaged, found.disordered, found.troubles)
        return (
            self.what,
            str(self.times),
            f"{found.acknowledged:,}" if found.sent else "",
            *(str(len(each)) for each in counts),
            f"{found.recovered} / {found.again} / {found.dead}" if found.sent else "",
            self.caught,
        )


HEAD = (
    "harm",
    "times",
    "acknowledged",
    "lost",
    "unexpected",
    "duplicated",
    "damaged",
    "disordered",
    "other",
    "recovered / again / dead",
    "the control that lies",
)


def table(rows: Sequence[Row], seed: int, brokers: bool) -> str:
    """The table with what it was made from."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---|" + "--:|" * (len(HEAD) - 2) + "---|"]
    for row in rows:
        cells = [*row.cells()]
        lines.append("| " + " | ".join(cells + [""] * (len(HEAD) - len(cells))) + " |")
    minutes = sum(row.seconds for row in rows) / 60
    through = "HTTP, TCP, MQTT and AMQP at once" if brokers else "HTTP and TCP"
    said = f"Seed {seed}, commit `{commit()}`, {datetime.now(UTC):%Y-%m-%d}, {minutes:.0f} minutes, {through}."
    return f"{BEGIN}\n{said}\n\n" + "\n".join(lines) + f"\n{END}"


def commit() -> str:
    """What was tested; a plus sign: and changes that are not committed."""
    try:
        name = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "gateway", "adapters", "transforms")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}+" if changed else name


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write(text: str, page: Path = PAGE) -> None:
    """Puts the table in the place of the one that is in the page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + text + after)
