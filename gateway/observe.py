"""What the operator sees: counters and latencies for /metrics, states of peers for readiness, structured logs.

Meters are plain integers that the data path adds to; Prometheus families are made from them at scrape time.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.logs import lines_dropped
from gateway.message import Message, Outcome, rfc3339
from gateway.ports import Clock

__all__ = [
    "BUCKETS_S",
    "Histogram",
    "MetricsCollector",
    "Observed",
    "Peer",
    "PeerState",
    "RouteMeters",
    "TargetMeters",
    "Watcher",
]

BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """Latencies in seconds, counted by the buckets of `BUCKETS_S`."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Counts one latency."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds

    @property
    def total(self) -> int:
        """How many were observed."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """The upper bound of the bucket that holds this share (0 to 1) of them, in seconds; None: nothing observed."""
        wanted = share * self.total
        seen = 0
        for bound, count in zip((*BUCKETS_S, float("inf")), self.counts, strict=True):
            seen += count
            if count and seen >= wanted:
                return bound
        return None

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus' form: the count at or below each bound."""
        seen = 0
        rows = []
        for bound, count in zip((*BUCKETS_S, float("inf")), self.counts, strict=True):
            seen += count
            rows.append(("+Inf" if bound == float("inf") else f"{bound:g}", float(seen)))
        return rows


class TargetMeters:
    """The counters of one target of one route. Attempts end as delivered, refused or failed."""

    __slots__ = ("circuit_open", "delivered", "failed", "latency", "refused", "retried")

    def __init__(self) -> None:
        self.delivered = 0
        self.refused = 0
        self.failed = 0
        self.retried = 0
        self.circuit_open = 0
        self.latency = Histogram()


class RouteMeters:
    """The counters of one route: received = accepted + refused + deferred + in flight."""

    __slots__ = (
        "accepted",
        "dead",
        "deferred",
        "discarded",
        "dropped",
        "errors",
        "expired",
        "filtered",
        "in_flight",
        "latency",
        "pending",
        "received",
        "refused",
        "stored",
        "targets",
    )

    def __init__(self) -> None:
        self.received = 0
        self.accepted = 0
        self.refused = 0
        self.deferred = 0
        self.filtered = 0
        self.stored = 0
        self.pending = 0
        self.dead = 0
        self.expired = 0
        self.discarded = 0
        self.errors = 0
        self.in_flight = 0
        self.dropped: dict[str, int] = {}
        self.latency = Histogram()
        self.targets: dict[str, TargetMeters] = {}


PeerState = Literal["starting", "up", "down", "stopped"]


@dataclass
class Peer:
    """One link of a route, as readiness and the operator see it."""

    route: str
    name: str
    kind: Literal["source", "target"]
    state: PeerState = "starting"
    reason: str = ""
    since_s: float = 0.0
    losses: int = 0
    connection: object = None
    """The settings of the connection that it uses, if it uses one: equal settings are one connection."""

    def shown(self) -> dict[str, Any]:
        """A row for people and for JSON."""
        row = {"route": self.route, "name": self.name, "kind": self.kind, "state": self.state}
        if self.reason:
            row["reason"] = self.reason
        return {**row, "since": rfc3339(self.since_s), "losses": self.losses}


class Watcher(Protocol):
    """Who wants to see things as they happen. It must be quick, and never raise."""

    def heard(self, route: str, message: Message, outcome: Outcome) -> None:
        """A route has answered for a message."""
        ...

    def changed(self, peer: Peer) -> None:
        """A link has another state, or another reason for it."""
        ...


@dataclass
class Observed:
    """All meters and peers of a running gateway."""

    clock: Clock
    routes: dict[str, RouteMeters] = field(default_factory=dict)
    peers: dict[tuple[str, str, str], Peer] = field(default_factory=dict)
    connections: int = 0
    reloads: dict[str, int] = field(default_factory=lambda: {"good": 0, "failed": 0})
    watcher: Watcher | None = None
    """None: nobody looks, and it costs nothing."""

    def route(self, name: str) -> RouteMeters:
        """The meters of a route: kept across reloads, as counters must be."""
        return self.routes.setdefault(name, RouteMeters())

    def target(self, route: str, name: str) -> TargetMeters:
        """The meters of a target."""
        return self.route(route).targets.setdefault(name, TargetMeters())

    def peer(self, route: str, name: str, kind: Literal["source", "target"], component: object = None) -> Peer:
        """The state of a link, to be kept up to date by who holds it. component: the source or sink that uses it."""
        peer = Peer(route, name, kind, since_s=self.clock.time(), connection=getattr(component, "connection", None))
        self.peers[route, kind, name] = peer
        return peer

    def became(self, peer: Peer, state: PeerState, reason: str = "") -> None:
        """Notes a change of state, and logs it once."""
        if (peer.state, peer.reason) == (state, reason):
            return
        if state != peer.state:
            peer.since_s = self.clock.time()
        if peer.state == "up" and state == "down":
            peer.losses += 1
        level = logging.WARNING if state == "down" else logging.INFO
        peer.state, peer.reason = state, reason
        log.log(
            level,
            f"{peer.kind} {state}",
            extra={"route": peer.route, "peer": peer.name, **({"reason": reason} if reason else {})},
        )
        if self.watcher is not None:
            self.watcher.changed(peer)

    def forget(self, route: str) -> None:
        """Drops the peers of a route that stopped. Its counters stay."""
        for key in [key for key in self.peers if key[0] == route]:
            del self.peers[key]

    def forget_targets(self, route: str) -> None:
        """Drops the targets of a route that is being changed."""
        for key in [key for key in self.peers if key[:2] == (route, "target")]:
            del self.peers[key]

    def ready(self) -> bool:
        """Whether every link of every route is up."""
        return all(peer.state == "up" for peer in self.peers.values())


log = logging.getLogger("gateway")

_ROUTE_COUNTERS = {
    "received": "messages that sources handed over",
    "accepted": "messages acknowledged to their sender as safe",
    "stored": "messages of these that are in the journal",
    "refused": "messages that can't pass: the sender was told, or a dead letter was kept",
    "deferred": "messages not taken now: the sender sends again",
    "filtered": "messages that a filter ended",
    "dead": "dead letters: messages, or deliveries of them to one target",
    "expired": "messages whose deadline passed before delivery",
    "discarded": "messages that an operator discarded",
    "errors": "bugs: messages refused because the gateway itself failed",
}
_TARGET_COUNTERS = {
    "delivered": "messages that the target accepted",
    "refused": "messages that the target refused for good",
    "failed": "attempts that failed and may be tried again",
    "retried": "attempts after the first",
}


Counts = Mapping[str, Mapping[Any, int]]


class MetricsCollector(Collector):
    """Makes Prometheus families of the meters when they are scraped."""

    def __init__(self, observed: Observed, counts: Callable[[], Counts] = dict) -> None:
        """counts: how many stored messages of each route are in each state (`Journal.counts`)."""
        self._observed = observed
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """The families, route by route and target by target."""
        routes = sorted(self._observed.routes.items())
        for name, text in _ROUTE_COUNTERS.items():
            counter = CounterMetricFamily(f"gateway_messages_{name}", text, labels=["route"])
            for route, meters in routes:
                counter.add_metric([route], getattr(meters, name))
            yield counter
        gauge = GaugeMetricFamily("gateway_messages_in_flight", "messages taken and not yet answered", labels=["route"])
        for route, meters in routes:
            gauge.add_metric([route], meters.in_flight)
        yield gauge
        dropped = CounterMetricFamily(
            "gateway_messages_dropped", "messages let go, at most once", labels=["route", "why"]
        )
        for route, meters in routes:
            for why, count in sorted(meters.dropped.items()):
                dropped.add_metric([route, why], count)
        yield dropped
        yield _histogram(
            "gateway_message_seconds",
            "time from receipt to outcome",
            ["route"],
            (((route,), meters.latency) for route, meters in routes),
        )
        yield from self._targets()
        yield from self._peers()
        yield from self._journal()
        yield CounterMetricFamily(
            "gateway_log_lines_dropped", "log lines let go because standard error took none", value=lines_dropped()
        )

    def _journal(self) -> Iterator[Metric]:
        counts = self._counts()
        states = GaugeMetricFamily(
            "gateway_journal_messages",
            "stored messages by state, those that retention removed included",
            labels=["route", "state"],
        )
        pending = GaugeMetricFamily("gateway_messages_pending", "stored messages not yet done", labels=["route"])
        for route, found in sorted(counts.items()):
            for state, count in sorted(found.items()):
                states.add_metric([route, state], count)
            pending.add_metric([route], found.get("stored", 0) + found.get("pending", 0))
        yield states
        yield pending

    def _targets(self) -> Iterator[Metric]:
        rows = [
            ((route, target), meters)
            for route, route_meters in sorted(self._observed.routes.items())
            for target, meters in sorted(route_meters.targets.items())
        ]
        for name, text in _TARGET_COUNTERS.items():
            counter = CounterMetricFamily(f"gateway_target_{name}", text, labels=["route", "target"])
            for labels, meters in rows:
                counter.add_metric(labels, getattr(meters, name))
            yield counter
        circuit = GaugeMetricFamily(
            "gateway_target_circuit_open", "1 while the circuit is open", labels=["route", "target"]
        )
        for labels, meters in rows:
            circuit.add_metric(labels, meters.circuit_open)
        yield circuit
        yield _histogram(
            "gateway_target_seconds",
            "time of one attempt",
            ["route", "target"],
            ((labels, meters.latency) for labels, meters in rows),
        )

    def _peers(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("gateway_peer_up", "1 while the link is up", labels=["route", "kind", "peer"])
        for peer in self._observed.peers.values():
            up.add_metric([peer.route, peer.kind, peer.name], float(peer.state == "up"))
        yield up
        reloads = CounterMetricFamily("gateway_reloads", "configurations loaded while running", labels=["result"])
        for result, count in self._observed.reloads.items():
            reloads.add_metric([result], count)
        yield reloads


def _histogram(name: str, text: str, labels: list[str], rows: Iterable[tuple[tuple[str, ...], Histogram]]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, histogram in rows:
        family.add_metric(values, buckets=histogram.cumulative(), sum_value=histogram.sum_s)
    return family
