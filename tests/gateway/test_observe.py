"""What the operator sees: latencies by bucket, states of links, metrics, and logs that never hold up a message."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gateway import Accepted, Message, Outcome
from gateway.logs import JsonLines, LinesHandler
from gateway.observe import Histogram, MetricsCollector, Observed, Peer
from gateway.testing import ManualClock


def test_quantiles_are_the_upper_bounds_of_buckets() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.5) is None
    for seconds in (0.0004, 0.002, 0.002, 0.2):
        histogram.observe(seconds)
    assert (histogram.quantile(0.5), histogram.quantile(0.99)) == (0.0025, 0.25)
    histogram.observe(1000)
    assert histogram.quantile(1.0) == float("inf")
    assert histogram.cumulative()[-1] == ("+Inf", 5.0)


def test_a_link_that_is_lost_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    observed = Observed(ManualClock())
    peer = observed.peer("orders", "ledger", "target")
    for state in ("up", "down", "down", "up"):
        observed.became(peer, state, "refused" if state == "down" else "")
    assert peer.losses == 1
    assert [record.getMessage() for record in caplog.records] == ["target up", "target down", "target up"]
    assert observed.ready()


def test_a_watcher_sees_links_change() -> None:
    class Seen:
        def __init__(self) -> None:
            self.states: list[str] = []

        def heard(self, route: str, message: Message, outcome: Outcome) -> None:
            assert isinstance(outcome, Accepted)

        def changed(self, peer: Peer) -> None:
            self.states.append(peer.state)

    observed = Observed(ManualClock())
    peer = observed.peer("orders", "ledger", "target")
    observed.became(peer, "up")
    seen = observed.watcher = Seen()
    observed.became(peer, "down", "away")
    observed.watcher = None
    observed.became(peer, "up")
    assert seen.states == ["down"]


def test_metrics_hold_what_the_journal_has_of_routes_that_are_gone_too() -> None:
    observed = Observed(ManualClock())
    observed.route("orders").received = 7
    registry = CollectorRegistry()
    registry.register(MetricsCollector(observed, lambda: {"gone": {"stored": 1, "pending": 2, "dead": 3}}))
    text = generate_latest(registry).decode()
    assert 'gateway_messages_received_total{route="orders"} 7.0' in text
    assert 'gateway_journal_messages{route="gone",state="dead"} 3.0' in text
    assert 'gateway_messages_pending{route="gone"} 3.0' in text


# -- logs ------------------------------------------------------------------------------------------------------------


@contextmanager
def logging_to(descriptor: int, most: int = 10_000) -> Iterator[tuple[logging.Logger, LinesHandler]]:
    handler = LinesHandler(descriptor, most=most)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("gateway.test-observe")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield logger, handler
    finally:
        logger.removeHandler(handler)
        handler.close()


def lines(descriptor: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in os.read(descriptor, 1 << 20).decode().splitlines()]


def test_a_log_line_is_one_json_object_with_its_fields() -> None:
    reading, writing = os.pipe()
    with logging_to(writing) as (log, handler):
        log.info("retrying", extra={"route": "orders", "message_id": "7", "wait_s": 0.5})
        try:
            raise ZeroDivisionError("two\nlines")
        except ZeroDivisionError:
            log.exception("failed")
        handler.flush()
        first, second = lines(reading)
    assert (first["event"], first["route"], first["message_id"], first["wait_s"]) == ("retrying", "orders", "7", 0.5)
    assert (first["level"], first["logger"], first["time"][-1]) == ("info", "gateway.test-observe", "Z")
    assert "ZeroDivisionError" in second["traceback"]
    os.close(reading)
    os.close(writing)


def test_a_sink_that_takes_nothing_never_blocks_who_logs_and_what_is_lost_is_told() -> None:
    reading, writing = os.pipe()
    with logging_to(writing, most=50) as (log, handler):
        began = time.monotonic()
        for number in range(5000):
            log.info("busy", extra={"number": number, "padding": "x" * 200})
        assert time.monotonic() - began < 20
        assert handler.dropped > 4000
        seen: list[dict[str, Any]] = []
        done = threading.Event()

        def read() -> None:
            rest = b""
            while not done.is_set() or rest:
                rest += os.read(reading, 1 << 16)
                *whole, rest = rest.split(b"\n")
                seen.extend(json.loads(line) for line in whole)
                if seen and seen[-1]["event"] == "last":
                    return

        reader = threading.Thread(target=read)
        reader.start()
        while handler._lines:
            handler.flush()
        log.info("last")
        reader.join(5)
        done.set()
        told = sum(line["count"] for line in seen if line["event"] == "log lines dropped")
        busy = sum(1 for line in seen if line["event"] == "busy")
    assert told == handler.dropped
    assert told + busy == 5000
    os.close(reading)
    os.close(writing)


def test_a_sink_that_is_gone_is_counted_and_harms_nobody() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with logging_to(writing) as (log, handler):
        log.info("into the void")
        handler.flush()
        assert handler.dropped == 1
    os.close(writing)


def test_a_sink_that_does_not_wait_is_written_to_piece_by_piece() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with logging_to(writing) as (log, handler):
        for number in range(400):
            log.info("busy", extra={"number": number, "padding": "x" * 1000})
        found = b""
        while found.count(b"\n") < 400:
            found += os.read(reading, 1 << 16)
        handler.flush()
    assert [json.loads(line)["number"] for line in found.splitlines()] == list(range(400))
    assert handler.dropped == 0
    os.close(reading)
    os.close(writing)
