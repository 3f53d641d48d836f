"""What the control plane needs of a running gateway, so that it stands below the app that starts it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Literal, Protocol

from fastapi import Depends, Request

from gateway.api.problems import Problem
from gateway.config import Config
from gateway.documents import did_you_mean
from gateway.host import Services
from gateway.route import Route


class Control(Protocol):
    """A running gateway, as `gateway.app.App` has it."""

    @property
    def config(self) -> Config:
        """What runs."""
        ...

    @property
    def services(self) -> Services:
        """Journal, meters and clock."""
        ...

    @property
    def routes(self) -> Mapping[str, Route]:
        """The routes that run, by name."""
        ...

    @property
    def started_s(self) -> float:
        """When it was started, in seconds since 1970-01-01 UTC."""
        ...

    @property
    def phase(self) -> Literal["starting", "running", "stopping"]:
        """Where it is in its life."""
        ...

    @property
    def broken(self) -> asyncio.Future[str]:
        """Done with a text when it can promise nothing any more."""
        ...

    async def reload(self) -> list[str]:
        """Reads the configuration again. Returns what was done, a line for each route that differs.

        Raises:
            ConfigError: it is wrong or can't run; what ran before still runs.
        """
        ...

    async def pause(self, name: str) -> None:
        """Pauses a route. Raises KeyError when there is none of this name."""
        ...

    async def resume(self, name: str) -> None:
        """Ends a pause. Raises KeyError when there is none of this name."""
        ...


async def control_of(request: Request) -> Control:
    """The gateway that this application speaks for."""
    control: Control = request.app.state.control
    return control


Running = Annotated[Control, Depends(control_of)]


def route_named(control: Control, name: str) -> Route:
    """The running route of this name.

    Raises:
        Problem: there is none (404), or none is there yet or any more (503).
    """
    route = control.routes.get(name)
    if route is not None:
        return route
    if name in control.config.routes and control.phase != "running":
        raise Problem(503, control.phase, f"the gateway is {control.phase}; try again later", retry_after_s=5)
    hint = did_you_mean(name, control.config.routes) or f"; there are: {', '.join(control.config.routes)}"
    raise Problem(404, "unknown_route", f'there is no route "{name}"{hint}')
