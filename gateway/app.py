"""The whole process: start, reload, stop. Start and reload are one path: load, check, compare by route, swap."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gateway.clock import SystemClock
from gateway.config import Config, Configured, load
from gateway.errors import ConfigError
from gateway.host import Services
from gateway.journal import Journal
from gateway.observe import Observed
from gateway.registry import module
from gateway.route import Route

if TYPE_CHECKING:
    from gateway.api import Serving

log = logging.getLogger("gateway.app")

OPENED_S = 1.0
"""How long a start waits for targets to open."""
_PAUSED = "an operator paused it before this start; nothing is delivered until it is resumed"


class App:
    """A running gateway. Make one with `running`."""

    def __init__(self, config: Config, services: Services) -> None:
        self.config = config
        self.services = services
        self.routes: dict[str, Route] = {}
        self.started_s = services.clock.time()
        self.phase: Literal["starting", "running", "stopping"] = "starting"
        self._paused_file = services.data / "paused.json"
        self._paused = _read_names(self._paused_file)
        self.api: Serving | None = None
        """Where the API is, when it runs."""
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done with a text when the process can promise nothing any more and must stop."""
        self._reloading = asyncio.Lock()

    async def start(self) -> None:
        """Starts every route.

        Raises:
            ConfigError: one of them can't run as configured; those that had started are stopped.
        """
        async with self._reloading:
            try:
                for configured in self.config.routes.values():
                    await self._added(configured).listen()
                for route in self.routes.values():
                    route.open()
                await self._until_opened()
            except BaseException:
                await self._stop_routes(0)
                raise
            self.phase = "running"
            for route in self.routes.values():
                if route.paused:
                    log.warning("still paused", extra={"route": route.name, "reason": _PAUSED})
            self._warn_of_stranded()

    async def _until_opened(self) -> None:
        """Waits a moment for targets to open; those that are away do not hold it up."""
        try:
            async with asyncio.timeout(OPENED_S):
                await asyncio.gather(*(route.opened() for route in self.routes.values()))
        except TimeoutError:
            log.info("some targets are not open yet")

    def _added(self, configured: Configured) -> Route:
        route = self.routes[configured.name] = Route(configured, self.services)
        route.paused = configured.name in self._paused
        return route

    async def stop(self, grace_s: float | None = None) -> None:
        """Closes all gates, lets what is in flight finish for at most `grace_s`, then stops sources and targets."""
        self.phase = "stopping"
        async with self._reloading:
            await self._stop_routes(self.config.gateway.grace if grace_s is None else grace_s)

    async def _stop_routes(self, grace_s: float) -> None:
        await asyncio.gather(*(route.drain(grace_s) for route in self.routes.values()))
        await asyncio.gather(*(route.halt(grace_s) for route in self.routes.values()))
        self.routes.clear()

    async def reload(self) -> list[str]:
        """Reads the configuration again and changes what differs. Returns what was done, a line for each route.

        Raises:
            ConfigError: it is wrong or can't run; what ran before still runs.
        """
        async with self._reloading:
            if self.phase == "stopping":
                raise ConfigError("the gateway is stopping; start it again to change its configuration")
            try:
                config = await asyncio.to_thread(load, self.config.path)
                done = await self._change_to(config)
            except ConfigError as error:
                self.services.observed.reloads["failed"] += 1
                log.error("configuration not changed", extra={"reason": str(error)})
                raise
            self.services.observed.reloads["good"] += 1
            if done:
                log.info("configuration changed", extra={"routes": done})
                self._warn_of_stranded()
            else:
                log.debug("configuration read again, nothing changed")
            return done

    def _warn_of_stranded(self) -> None:
        """Names what was acknowledged and is delivered by no route now: nobody else would miss it."""
        for name, states in self.services.journal.counts().items():
            count = states.get("stored", 0) + states.get("pending", 0)
            route = self.routes.get(name)
            if count and (route is None or route.delivering is None):
                why = "there is no such route any more" if route is None else "the route stores nothing any more"
                find = f"messages --route {name} --status pending"
                todo = f"put the route back as it was, or discard each by its id: {find}"
                log.warning(
                    "pending messages without a route",
                    extra={"route": name, "count": count, "reason": f"{why}; {todo}"},
                )

    async def pause(self, name: str) -> None:
        """Pauses a route (see `Route.pause`), also after a restart. Returns once nothing is being sent any more.

        Raises:
            KeyError: there is no such route.
        """
        async with self._reloading:
            route = self.routes[name]
            await asyncio.to_thread(_write_names, self._paused_file, self._paused | {name})
            self._paused.add(name)
            await route.pause(self.config.gateway.grace)
        log.info("paused", extra={"route": name})

    async def resume(self, name: str) -> None:
        """Ends the pause of a route.

        Raises:
            KeyError: there is no such route.
        """
        async with self._reloading:
            route = self.routes[name]
            await asyncio.to_thread(_write_names, self._paused_file, self._paused - {name})
            self._paused.discard(name)
            route.resume()
        log.info("resumed", extra={"route": name})

    async def _change_to(self, config: Config) -> list[str]:
        before = self.config
        fixed = [
            key
            for key in ("name", "data", "journal", "api", "retention")
            if getattr(before.gateway, key) != getattr(config.gateway, key)
        ]
        if fixed:
            raise ConfigError(f"gateway.{fixed[0]}: it can't change while the gateway runs; restart it")
        async with self.services.shares.keeping():
            try:
                done = await self._swap(config)
            except Exception:
                await self._bring_back(before)
                raise
        self.config = config
        return done

    async def _swap(self, config: Config) -> list[str]:
        """Changes what differs. What takes other addresses is stopped first, all of it: they may be each other's."""
        grace_s = config.gateway.grace
        gone = [name for name in self.routes if name not in config.routes]
        changed = self._to_change(config)
        moved = [pair for pair in changed if not pair[0].keeps_sources(pair[1])]
        new = [configured for configured in config.routes.values() if configured.name not in self.routes]
        for name in gone:
            await self.routes.pop(name).stop(grace_s)
        for route, configured in changed:
            if (route, configured) not in moved:
                await route.swap(configured, grace_s)
        await asyncio.gather(*(route.suspend(configured, grace_s) for route, configured in moved))
        for route, configured in moved:
            await route.go_on(configured)
        for configured in new:
            await self._added(configured).listen()
        for configured in new:
            self.routes[configured.name].open()
        return [
            *(f"{name}: stopped" for name in gone),
            *(f"{configured.name}: changed" for _, configured in changed),
            *(f"{configured.name}: started" for configured in new),
        ]

    def _to_change(self, config: Config) -> list[tuple[Route, Configured]]:
        """The running routes that differ, or that an earlier change left suspended, with what they are to become."""
        pairs = [(self.routes.get(configured.name), configured) for configured in config.routes.values()]
        return [
            (route, configured)
            for route, configured in pairs
            if route is not None and (route.suspended or route.configured != configured)
        ]

    async def _bring_back(self, config: Config) -> None:
        """Goes on with the configuration that ran before a change which failed. Each route that can run does."""
        grace_s = config.gateway.grace
        for name in [name for name in self.routes if name not in config.routes]:
            await self.routes.pop(name).stop(grace_s)
        changed = self._to_change(config)
        await asyncio.gather(*(route.suspend(configured, grace_s) for route, configured in changed))
        for route, configured in changed:
            try:
                await route.go_on(configured)
            except ConfigError as error:
                log.error("route not brought back", extra={"route": route.name, "reason": str(error)})
        for configured in config.routes.values():
            if configured.name not in self.routes:
                route = self._added(configured)
                try:
                    await route.listen()
                except ConfigError as error:
                    del self.routes[configured.name]
                    log.error("route not brought back", extra={"route": route.name, "reason": str(error)})
                else:
                    route.open()


@asynccontextmanager
async def running(
    config: Config, *, beside: Callable[[App], AbstractAsyncContextManager[object]] | None = None
) -> AsyncIterator[App]:
    """The gateway of this configuration, started; stopped when the context ends.

    beside: what runs with it, entered before the first route starts and left after the last has stopped.

    Raises:
        ConfigError: it can't run as configured, or another process has its data folder.
    """
    clock = SystemClock()
    observed = Observed(clock)
    settings = config.gateway
    app: App | None = None

    def on_broken(text: str) -> None:
        if app is not None and not app.broken.done():
            app.broken.set_result(text)

    opening: Callable[..., AbstractAsyncContextManager[Journal]] = module("adapters", settings.journal).open_journal  # type: ignore[union-attr]
    retention = settings.retention
    async with opening(
        _folder(settings.data),
        age_s=retention.age,
        size_bytes=retention.size,
        reserve_bytes=retention.reserve,
        clock=clock,
        on_broken=on_broken,
    ) as journal:
        services = Services(settings.name, settings.data, journal, observed, clock)
        app = App(config, services)
        async with beside(app) if beside is not None else nullcontext():
            await app.start()
            try:
                yield app
            finally:
                await app.stop()


def _folder(data: Path) -> Path:
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"gateway.data: {data} can't be made: {error.strerror}") from error
    return data


def _read_names(file: Path) -> set[str]:
    try:
        names = json.loads(file.read_text())
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return set(names)
    except FileNotFoundError:
        return set()
    except (OSError, ValueError):
        pass
    raise ConfigError(f"{file}: expected a list of the routes that are paused; put it right, or remove it")


def _write_names(file: Path, names: set[str]) -> None:
    new = file.with_suffix(".new")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as stream:
            json.dump(sorted(names), stream)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)
    except OSError as error:
        raise ConfigError(f"{file} can't be written: {error.strerror}; nothing was changed") from error
