"""One gateway as a process: signals, the watch for changed files, the control plane beside the data plane."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from watchfiles import awatch

from gateway.api import Serving, serving
from gateway.app import App, running
from gateway.config import Config, load
from gateway.errors import ConfigError
from gateway.logs import flush_logs

log = logging.getLogger("gateway.process")

EXIT_GOOD, EXIT_FAILED, EXIT_CONFIGURATION = 0, 1, 2


def run(path: Path, *, watch: bool, started: Callable[[App], None]) -> int:
    """Runs the gateway until a signal ends it. Returns its exit code: 0, or 1 when the journal's disk failed.

    SIGTERM and SIGINT let what is in flight finish, a second one ends the process at once with 1; SIGHUP loads the
    configuration again.

    watch: changed files are loaded as with SIGHUP. started: called once everything listens; `app.api` then says where
    the API is.

    Raises:
        ConfigError: it can't run as configured.
    """
    config = load(path)
    try:
        return _run_in_fast_loop(_serve(config, watch=watch, started=started))
    finally:
        flush_logs()


def _run_in_fast_loop(main: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


class _Signals:
    """What signals ask for."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.reload = asyncio.Event()
        self.starting: asyncio.Task[Any] | None = asyncio.current_task()
        """Who is to be cancelled when the stop comes before everything runs."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload.set)

    def _stop(self) -> None:
        if self.stop.is_set():
            log.warning("stopping at once: a second signal came")
            flush_logs()
            os._exit(EXIT_FAILED)
        self.stop.set()
        if self.starting is not None:
            self.starting.cancel()


async def _serve(config: Config, *, watch: bool, started: Callable[[App], None]) -> int:
    signals = _Signals()
    try:
        async with running(config, beside=_api) as app:
            signals.starting = None
            return await _run(app, signals, watch=watch, started=started)
    except asyncio.CancelledError:
        if signals.stop.is_set():
            return EXIT_GOOD
        raise


@asynccontextmanager
async def _api(app: App) -> AsyncIterator[Serving]:
    async with serving(app) as place:
        app.api = place
        yield place


async def _run(app: App, signals: _Signals, *, watch: bool, started: Callable[[App], None]) -> int:
    gc.collect()
    gc.freeze()  # what is made at start lives as long as the process: no need to look at it again and again
    tasks = [
        asyncio.create_task(signals.stop.wait(), name="process:stop"),
        asyncio.create_task(_reloads(app, signals.reload), name="process:reload"),
    ]
    if watch:
        watching = _watch(app.config.path, signals.reload, signals.stop)
        tasks.append(asyncio.create_task(watching, name="process:watch"))
    log.info("running", extra={"gateway": app.config.gateway.name, "routes": list(app.routes)})
    started(app)
    ends: set[asyncio.Future[Any]] = {tasks[0], app.broken}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if app.broken.done():
        log.critical("stopping: the journal can promise nothing more", extra={"reason": app.broken.result()})
        return EXIT_FAILED
    log.info("stopping")
    return EXIT_GOOD


async def _reloads(app: App, wanted: asyncio.Event) -> bool:
    while True:
        await wanted.wait()
        wanted.clear()
        try:
            await app.reload()
        except ConfigError:  # logged where it was decided; what ran before still runs
            pass
        except Exception:
            log.exception("reload failed")


async def _watch(path: Path, wanted: asyncio.Event, stop: asyncio.Event) -> bool:
    # The folder, not the file: editors and mounted config maps replace files by renaming.
    folder = path if await asyncio.to_thread(path.is_dir) else path.parent
    suffixes = (".yaml", ".yml", ".json", ".xsd", ".xslt", ".pem")
    async for _ in awatch(folder, stop_event=stop, watch_filter=lambda _change, name: name.endswith(suffixes)):
        wanted.set()
    return True
