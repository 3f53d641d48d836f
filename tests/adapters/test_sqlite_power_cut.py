"""What was acknowledged is there after the power went; a journal that does not sync is caught."""

from __future__ import annotations

import pytest

from tests.adapters.test_sqlite_quick import Twice
from tests.reliability.power_cut import check


def test_after_a_power_cut_every_acknowledged_message_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = Twice(monkeypatch)
    result = check(40, seed=7)
    assert ways.quick > 20
    assert result.promised > 1000
    assert result.good, result


def test_a_journal_that_does_not_sync_is_caught() -> None:
    result = check(40, seed=7, synchronous="OFF")
    assert result.lost > 0
