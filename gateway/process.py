"""One gateway as a process: signals, the watch for changed files, the control plane beside the data plane."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from watchfiles import awatch

from gateway.app import App, running
from gateway.config import Config, load
from gateway.errors import ConfigError

log = logging.getLogger("gateway.process")

EXIT_GOOD, EXIT_FAILED, EXIT_CONFIGURATION = 0, 1, 2


def run(path: Path, *, watch: bool, started: Callable[[App], None]) -> int:
    """Runs the gateway until a signal ends it. Returns its exit code: 0, or 1 when the journal's disk failed.

    watch: changed files are loaded as with SIGHUP. started: called once everything listens.

    Raises:
        ConfigError: it can't run as configured.
    """
    config = load(path)
    return _run_in_fast_loop(_serve(config, watch=watch, started=started))


def _run_in_fast_loop(main: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop  # noqa: PLC0415 - an accelerator: asyncio's own loop serves where it is missing
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


async def _serve(config: Config, *, watch: bool, started: Callable[[App], None]) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    reload_wanted = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload_wanted.set)
    async with running(config) as app:
        gc.collect()
        gc.freeze()  # what is made at start lives as long as the process: no need to look at it again and again
        tasks = [
            asyncio.create_task(stop.wait(), name="process:stop"),
            asyncio.create_task(_reloads(app, reload_wanted), name="process:reload"),
        ]
        if watch:
            tasks.append(asyncio.create_task(_watch(config.path, reload_wanted, stop), name="process:watch"))
        started(app)
        await asyncio.wait({tasks[0], app.broken}, return_when=asyncio.FIRST_COMPLETED)
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
        except ConfigError:
            continue  # logged where it was decided; what ran before still runs


async def _watch(path: Path, wanted: asyncio.Event, stop: asyncio.Event) -> bool:
    # The folder, not the file: editors and mounted config maps replace files by renaming.
    folder = path if path.is_dir() else path.parent
    suffixes = (".yaml", ".yml", ".json", ".xsd", ".xslt", ".pem")
    async for _ in awatch(folder, stop_event=stop, watch_filter=lambda _change, name: name.endswith(suffixes)):
        wanted.set()
    return True
