"""What the tests of adapters have in common."""

from __future__ import annotations

import pytest

_LOOKS = ("adapters._stream._SWEEP_S", "adapters._websocket_crowd._SWEEP_S", "adapters._handshakes._TELL_S")
"""How often sources look at their links, and tell of what they turned away: seconds apart, for real."""


@pytest.fixture(autouse=True)
def _looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is noticed by the next look is noticed soon, so that no test waits a second for one."""
    for name in _LOOKS:
        monkeypatch.setattr(name, 0.05)
