"""Async tests run on the loop that the gateway runs on, and can't hang there."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading

import pytest

from tests.conftest import loop_of_the_gateway


@pytest.mark.skipif(sys.platform == "win32", reason="there is no uvloop")
async def test_tests_run_on_uvloop_as_the_gateway_does() -> None:
    assert type(asyncio.get_running_loop()).__module__ == "uvloop"


def test_where_uvloop_is_missing_tests_run_on_the_loop_of_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = loop_of_the_gateway()
    loop.close()
    assert type(loop).__module__.startswith("asyncio.")


def test_a_signal_whose_handler_fails_the_test_ends_what_waits(caplog: pytest.LogCaptureFixture) -> None:
    """As the handler of pytest-timeout does when a test is over its time."""

    def over(_number: int, _frame: object) -> None:
        pytest.fail("over time")

    before = signal.signal(signal.SIGUSR1, over)
    soon = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        with asyncio.Runner(loop_factory=loop_of_the_gateway) as runner:
            soon.start()
            with pytest.raises(RuntimeError, match="stopped before Future completed"):
                runner.run(asyncio.sleep(30))
    finally:
        soon.join()
        signal.signal(signal.SIGUSR1, before)
    assert "over time" in caplog.text
