"""One running route: from its sources through the gate to what is inside, and the outcome back the same way."""

from __future__ import annotations

import asyncio
import logging

from gateway.config import Configured
from gateway.delivery import Delivering
from gateway.edge import Door, Edge
from gateway.failpoints import failpoint
from gateway.host import EngineHost, Services
from gateway.links import keep_running
from gateway.message import Message
from gateway.path import word_of
from gateway.ports import Names
from gateway.target import Inside

log = logging.getLogger("gateway.route")

START_S = 2.0
"""How long a start waits for a source to listen or to have tried its peer once: a slow one holds up all routes."""


class Route:
    """A route as it runs. `start`, then messages flow; `swap` changes it under traffic; `stop` drains it."""

    def __init__(self, configured: Configured, services: Services) -> None:
        self.name = configured.name
        self.configured = configured
        self.suspended = False
        """It is between the halves of a swap, or its last one failed: it takes nothing in until `go_on`."""
        self._services = services
        self._sources: list[asyncio.Task[None]] = []
        inside = Inside(configured, services)
        self._edge = Edge(inside, _delivering(inside), services)
        self.gate = self._edge.gate
        self.take = self._edge.take
        """Takes a message in; see `Edge.take`."""

    @property
    def paused(self) -> bool:
        """Nothing is delivered. Set it before `open`; later call `pause` and `resume`."""
        return self._edge.paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._edge.paused = paused

    @property
    def inside(self) -> Inside:
        """The steps and targets that run now."""
        return self._edge.inside

    @property
    def delivering(self) -> Delivering | None:
        """What takes stored messages on; None: the route stores nothing."""
        return self._edge.delivering

    def named(self, message: Message, before: Message | None = None) -> Message:
        """A message that no source took, with the type and the sender's id that a source reads in its body.

        Those that its sender gave it stay. before: what it was, from which it still has a type and a sender's id.
        """
        names = self._names(message)
        if names is None:
            return message
        type_, sender_id = names
        type_before, id_before = (before and self._names(before)) or ("", None)
        return message.replace(
            type=type_ if message.type in ("", type_before) else message.type,
            sender_id=sender_id if message.sender_id in (None, id_before) else message.sender_id,
        )

    def _names(self, message: Message) -> tuple[str, str | None] | None:
        read = (one.named(message.body) for one in self.configured.settings.sources if isinstance(one, Names))
        return next((names for names in read if names is not None), None)

    async def start(self) -> None:
        """`listen`, then `open`: for a route alone."""
        await self.listen()
        self.open()

    async def listen(self) -> None:
        """Starts the sources; what they take waits at the gate. Returns once each is ready or found its peer away.

        Raises:
            ConfigError: a source can't run as configured, such as an address in use.
        """
        self.gate.close(stopping=False)
        await self._start_sources()

    async def opened(self) -> None:
        """Returns once every target is open, or was found away."""
        await self._edge.inside.tried()

    def open(self) -> None:
        """Opens the targets and lets messages in. Call it once all routes listen: targets may be among them."""
        self._start_inside()
        self.gate.reopen()

    def _start_inside(self) -> None:
        self._edge.inside.start()
        if self._edge.delivering is not None and not self.paused:
            self._edge.delivering.start()

    async def pause(self, grace_s: float) -> None:
        """Stops delivering. With `ack: stored` messages are still taken and kept; otherwise senders are deferred.

        Returns once nothing is being sent any more, after `grace_s` at the latest; what is in flight is not stopped.
        """
        if self.paused:
            return
        self.paused = True
        before = self._edge.delivering
        if before is None:
            await self._drain(grace_s)
        else:
            self._edge.delivering = _delivering(self._edge.inside)
            await self._stop_delivering(before, grace_s)

    def resume(self) -> None:
        """Goes on with what the journal has, and takes messages in again."""
        if self.paused:
            self.paused = False
            if self._edge.delivering is not None:
                self._edge.delivering.start()

    async def _start_sources(self) -> None:
        tried: list[asyncio.Future[None]] = []
        loop = asyncio.get_running_loop()
        for index, source in enumerate(self.configured.settings.sources):
            name = word_of(source) if index == 0 else f"{word_of(source)}-{index + 1}"
            peer = self._services.observed.peer(self.name, name, "source", source)
            host = self._host(name)
            done: asyncio.Future[None] = loop.create_future()
            running = keep_running(
                source,
                host,
                Door(self._edge, f"{word_of(source)}.message", answers=source.answers),
                peer,
                self._services.observed,
                self._services.luck,
                lambda done=done: None if done.done() else done.set_result(None),  # type: ignore[misc]
            )
            task = asyncio.create_task(running, name=f"{self.name}:{name}")
            self._sources.append(task)
            tried.append(done)
        await self._until_tried(tried)

    async def _until_tried(self, tried: list[asyncio.Future[None]]) -> None:
        waiting: set[asyncio.Future[None]] = set(tried)
        deadline = asyncio.get_running_loop().time() + START_S
        while waiting:
            left = deadline - asyncio.get_running_loop().time()
            done, _ = await asyncio.wait(
                {*waiting, *self._sources}, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED
            )
            for task in self._sources:
                if task.done():
                    await self._stop_sources()
                    task.result()
            waiting -= done
            if not done:
                return

    def _host(self, name: str) -> EngineHost:
        return EngineHost(self._services, self.name, name, self.configured.settings.limits, self._edge.inside.formats)

    async def stop(self, grace_s: float) -> None:
        """Closes the gate, waits at most `grace_s` for what is in flight, then stops sources and targets."""
        await self.drain(grace_s)
        await self.halt(grace_s)

    async def drain(self, grace_s: float) -> None:
        """Closes the gate and waits at most `grace_s` for what is in flight."""
        self.gate.close(stopping=True)
        await self._drain(grace_s)

    async def halt(self, grace_s: float) -> None:
        """Stops targets, then sources: a target that is a route of ours is still there when its link closes."""
        await self._stop_inside(grace_s)
        await self._stop_sources()
        self.gate.end()
        self._services.observed.forget(self.name)

    async def swap(self, configured: Configured, grace_s: float) -> None:
        """Changes to another configuration: newcomers wait at the gate, and the two never run at once.

        Sources that stay as they are keep running, so that their senders notice nothing.

        Raises:
            ConfigError: a source can't run as configured; the route is suspended then.
        """
        await self.suspend(configured, grace_s)
        await self.go_on(configured)

    def keeps_sources(self, configured: Configured) -> bool:
        """Whether its sources go on as they are under another configuration."""
        now, then = self.configured.settings, configured.settings
        return then.sources == now.sources and then.limits == now.limits

    async def suspend(self, configured: Configured, grace_s: float) -> None:
        """The first half of a swap: after it nothing runs but the sources that stay as they are."""
        self.suspended = True
        self.gate.close(stopping=False)
        await self._drain(grace_s)
        await self._stop_inside(grace_s)
        if not self.keeps_sources(configured):
            await self._stop_sources()
        failpoint("reload.swapped")

    async def go_on(self, configured: Configured) -> None:
        """The second half of a swap.

        Raises:
            ConfigError: a source can't run as configured; the route is suspended then.
        """
        self._services.observed.forget_targets(self.name)
        self.configured = configured
        self._edge.inside = Inside(configured, self._services)
        self._edge.delivering = _delivering(self._edge.inside)
        self._start_inside()
        if not self._sources:
            self.gate.limit(configured.settings.limits.in_flight)
            await self._start_sources()
        self.suspended = False
        self.gate.reopen()

    async def _drain(self, grace_s: float) -> None:
        try:
            async with asyncio.timeout(grace_s):
                await self.gate.drained()
        except TimeoutError:
            log.warning("grace is over", extra={"route": self.name, "in_flight": self.gate.inside})

    async def _stop_sources(self) -> None:
        for task in self._sources:
            task.cancel()
        await asyncio.gather(*self._sources, return_exceptions=True)
        self._sources.clear()

    async def _stop_inside(self, grace_s: float) -> None:
        if self._edge.delivering is not None:
            await self._stop_delivering(self._edge.delivering, grace_s)
        await self._edge.inside.stop()

    async def _stop_delivering(self, delivering: Delivering, grace_s: float) -> None:
        await delivering.stop(grace_s)
        # What has ended may not be committed yet: who goes on from the journal would send it again.
        committed = self._services.journal.advance(self.name, [])
        await asyncio.wait({committed}, timeout=grace_s)
        if committed.done() and not committed.cancelled():
            committed.exception()  # a journal that is broken tells it to everybody


def _delivering(inside: Inside) -> Delivering | None:
    return Delivering(inside) if inside.settings.ack == "stored" else None
