"""The routes that run: counters, latencies, lanes, circuits and peers; and their pause."""

from __future__ import annotations

import logging
import math

from fastapi import APIRouter, Request, Response

from gateway.api.access import OPERATE, READ, Calling
from gateway.api.bodies import answer, only
from gateway.api.control import Control, Running, route_named
from gateway.api.problems import Problem
from gateway.api.shapes import Shape
from gateway.errors import ConfigError
from gateway.observe import BUCKETS_S, Histogram, RouteMeters
from gateway.path import word_of
from gateway.route import Route
from gateway.target import RunningTarget

log = logging.getLogger("gateway.api")

router = APIRouter(prefix="/api/v1/routes", tags=["routes"])

MOST_LANES = 100
_COUNTERS = ("received", "accepted", "refused", "deferred", "filtered", "stored", "dead", "expired", "errors")
_STATES = ("pending", "delivered", "filtered", "expired", "dead", "discarded")


@router.get("", dependencies=READ)
async def listed(request: Request, control: Running) -> Response:
    """All routes, in the order of the configuration."""
    only(request)
    counts = control.services.journal.counts()
    running = [control.routes[name] for name in control.config.routes if name in control.routes]
    return answer({"routes": [summary(control, route, counts.get(route.name, {})) for route in running]})


@router.get("/{name}", dependencies=READ)
async def shown(name: str, request: Request, control: Running) -> Response:
    """One route: what all routes show, its targets one by one, and the lanes that wait."""
    only(request)
    route = route_named(control, name)
    journal = control.services.journal
    lanes = sorted((await journal.lanes(name)).items(), key=lambda lane: -lane[1])
    return answer(
        summary(control, route, journal.counts().get(name, {}))
        | {
            "targets": [_target(control, route, target) for target in route.inside.targets],
            "lanes": [{"target": target, "key": key, "pending": n} for (target, key), n in lanes[:MOST_LANES]],
            "lanes_total": len(lanes),
        }
    )


def summary(control: Control, route: Route, states: object) -> Shape:
    """What a list shows of a route. states: how many stored messages are in each state (`Journal.counts`)."""
    settings = route.configured.settings
    observed = control.services.observed
    meters = observed.route(route.name)
    return {
        "name": route.name,
        "description": settings.description,
        "ack": settings.ack,
        "paused": route.paused,
        "from": [word_of(source) for source in settings.sources],
        "to": [target.name for target in settings.to],
        "in_flight": meters.in_flight,
        "counters": counters(meters),
        "dropped": dict(meters.dropped),
        "journal": in_journal(states),
        "latency": latency(meters.latency),
        "peers": [peer.shown() for peer in observed.peers.values() if peer.route == route.name],
    }


def counters(meters: RouteMeters) -> dict[str, int]:
    """What a route counted since the start."""
    return {name: getattr(meters, name) for name in _COUNTERS}


def in_journal(states: object) -> dict[str, int]:
    """Stored messages by state, as people see them."""
    found = dict(states) if isinstance(states, dict) else {}
    found["pending"] = found.pop("stored", 0) + found.get("pending", 0)
    return {state: found.get(state, 0) for state in _STATES}


def latency(histogram: Histogram) -> Shape:
    """Percentiles in seconds, each rounded up to the bound of its bucket; null: nothing was timed."""
    found: Shape = {"count": histogram.total}
    for name, share in (("p50_s", 0.5), ("p95_s", 0.95), ("p99_s", 0.99)):
        value = histogram.quantile(share)
        found[name] = BUCKETS_S[-1] if value == math.inf else value
    return found


def _target(control: Control, route: Route, target: RunningTarget) -> Shape:
    meters = target.meters
    peer = control.services.observed.peers.get((route.name, "target", target.name))
    return {
        "name": target.name,
        "sink": word_of(target.settings.sink),
        "state": peer.state if peer is not None else "stopped",
        "circuit": target.breaker.state if target.breaker is not None else "none",
        "delivered": meters.delivered,
        "refused": meters.refused,
        "failed": meters.failed,
        "retried": meters.retried,
        "latency": latency(meters.latency),
    }


@router.post("/{name}/pause", dependencies=OPERATE)
async def pause(name: str, request: Request, control: Running, caller: Calling) -> Response:
    """Stops deliveries of a route, also after a restart; stored messages are still taken in and kept."""
    only(request)
    await _change(control, name, paused=True)
    log.info("paused by", extra={"route": name, "by": caller.shown})
    return answer({"name": name, "paused": True})


@router.post("/{name}/resume", dependencies=OPERATE)
async def resume(name: str, request: Request, control: Running, caller: Calling) -> Response:
    """Ends a pause: what was kept is delivered now."""
    only(request)
    await _change(control, name, paused=False)
    log.info("resumed by", extra={"route": name, "by": caller.shown})
    return answer({"name": name, "paused": False})


async def _change(control: Control, name: str, *, paused: bool) -> None:
    route_named(control, name)
    if control.phase != "running":
        raise Problem(503, control.phase, f"the gateway is {control.phase}; try again later", retry_after_s=5)
    try:
        await (control.pause(name) if paused else control.resume(name))
    except KeyError:
        route_named(control, name)
    except ConfigError as error:
        raise Problem(503, "not_kept", str(error)) from None
