"""Health for supervisors and load balancers, and metrics for Prometheus. They need no token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector

from gateway.api.access import ANYBODY, READ
from gateway.api.bodies import answer
from gateway.api.control import Control, Running
from gateway.api.shapes import Shape
from gateway.observe import MetricsCollector, Peer

if TYPE_CHECKING:
    from fastapi import FastAPI

router = APIRouter(tags=["health"])


def registry(control: Control) -> CollectorRegistry:
    """The metrics of this gateway and of its process: a registry of its own, so that nobody else's are in it."""
    found = CollectorRegistry(auto_describe=False)
    found.register(MetricsCollector(control.services.observed, control.services.journal.counts))
    ProcessCollector(registry=found)
    return found


@router.head("/health/live", dependencies=ANYBODY, include_in_schema=False)
@router.get("/health/live", dependencies=ANYBODY)
async def live(control: Running) -> Response:
    """200 while the process can keep its promises; 503 when the journal's disk failed and it must be restarted."""
    if control.broken.done():
        return answer({"status": "broken", "reason": "the journal's disk failed"}, 503)
    return answer({"status": "live"})


@router.head("/health/ready", dependencies=ANYBODY, include_in_schema=False)
@router.get("/health/ready", dependencies=ANYBODY)
async def ready(control: Running, of: Literal["all", "sources"] = "all") -> Response:
    """200 when every route takes messages and every link is up; else 503, with what is not.

    `?of=sources` is for a load balancer in front: targets that are away do not count, since messages for them are
    taken all the same.
    """
    state = readiness(control)
    return answer(state, 200 if state["ready" if of == "all" else "accepting"] else 503)


def readiness(control: Control) -> Shape:
    """Whether all is well, and the state of each route and its links."""
    peers = list(control.services.observed.peers.values())
    journal = journal_trouble(control)
    running = control.phase == "running" and journal is None
    accepting = running and all(peer.state == "up" for peer in peers if peer.kind == "source")
    good = running and all(peer.state == "up" for peer in peers)
    routes: dict[str, Shape] = {}
    for name, route in control.routes.items():
        mine = [peer for peer in peers if peer.route == name]
        routes[name] = {
            "ready": bool(mine) and all(peer.state == "up" for peer in mine),
            "paused": route.paused,
            "peers": [peer.shown() for peer in mine],
        }
    state: Shape = {"ready": good, "accepting": accepting, "phase": control.phase, "journal": journal or "good"}
    return {**state, "connections": _connections(control, peers), "routes": routes}


def _connections(control: Control, peers: list[Peer]) -> Shape:
    """One line for each shared connection, however many routes use it: its first trouble is that of all."""
    lines: Shape = {}
    for name, connection in control.config.connections.items():
        mine = [peer for peer in peers if peer.connection == connection]
        troubled = [peer for peer in mine if peer.state != "up"]
        lines[name] = {"state": troubled[0].state if troubled else "up", "users": [_user(peer) for peer in mine]}
        reason = next((peer.reason for peer in troubled if peer.reason), None)
        if reason is not None:
            lines[name]["reason"] = reason
    return lines


def _user(peer: Peer) -> str:
    return f"{peer.route}.{peer.name}"


def journal_trouble(control: Control) -> str | None:
    """Why the journal takes nothing in; None: it does."""
    if control.broken.done():
        return "its disk failed; the gateway stops"
    return control.services.journal.trouble()


@router.get("/metrics", dependencies=ANYBODY)
async def metrics(request: Request) -> Response:
    """Counters, states and latencies in Prometheus' text form."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(request.app.state.registry), headers={"content-type": content_type})


@router.get("/api/v1/openapi.json", dependencies=READ)
async def openapi(request: Request) -> Response:
    """What can be called, as OpenAPI."""
    app: FastAPI = request.app
    return answer(app.openapi())
