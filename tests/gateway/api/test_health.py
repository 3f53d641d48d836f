"""Health and metrics, as supervisors, load balancers and Prometheus see them."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from adapters.memory import box
from gateway import PeerError
from gateway.testing import until
from tests.gateway.api.desk import Desk, desk


async def ready(here: Desk) -> tuple[int, dict[str, object]]:
    answer = await here.client.get("/health/ready")
    return answer.status_code, answer.json()


async def up(here: Desk) -> None:
    await until(here.app.services.observed.ready)


async def test_a_gateway_whose_links_are_up_is_ready_and_names_its_routes(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        await up(here)
        status, shown = await ready(here)
        assert (status, shown["ready"], shown["phase"], shown["journal"]) == (200, True, "running", "good")
        assert set(shown["routes"]) == {"orders", "asks", "passes"}  # type: ignore[call-overload]
        assert (await here.client.head("/health/ready")).status_code == 200


async def test_it_is_not_ready_while_it_starts_and_while_it_stops(tmp_path: Path) -> None:
    async with desk(tmp_path, starts=False) as here:
        assert (await ready(here))[0] == 503
        assert (await here.client.get("/health/live")).status_code == 200
        answer = await here.post("orders", {"id": 1})
        assert (answer.status_code, answer.json()["code"]) == (503, "starting")
        await here.app.start()
        await up(here)
        assert (await ready(here))[0] == 200
        await here.app.stop(0)
        status, shown = await ready(here)
        assert (status, shown["phase"]) == (503, "stopping")


async def test_a_peer_that_is_down_is_named_with_its_reason(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        await up(here)
        observed = here.app.services.observed
        peer = observed.peers["orders", "target", "ledger"]
        observed.became(peer, "down", "ledger: connection refused")
        status, shown = await ready(here)
        assert status == 503
        routes = shown["routes"]
        assert routes["orders"]["ready"] is False  # type: ignore[index]
        assert "connection refused" in str(routes["orders"]["peers"])  # type: ignore[index]
        assert routes["asks"]["ready"] is True  # type: ignore[index]
        assert (await here.client.get("/health/ready?of=sources")).status_code == 200
        source = next(one for one in observed.peers.values() if (one.route, one.kind) == ("orders", "source"))
        observed.became(source, "down", "away")
        assert (await here.client.get("/health/ready?of=sources")).status_code == 503


CONNECTED = """
version: 1
gateway: {api: {listen: "127.0.0.1:0"}}
connections:
  plant: {mqtt: {url: "mqtt://127.0.0.1:1", client_id: gw, username: gw, password: hunter2}}
  other: {mqtt_broker: {listen: "127.0.0.1:0"}}
routes:
  telemetry: {from: {mqtt: {connection: plant, topic: a}}, ack: delivered, to: drop}
  alarms:
    from: {mqtt_broker: {connection: other}}
    to: [{mqtt: {connection: plant, topic: b}}, {mqtt: {connection: plant, topic: c}, name: late}]
"""


async def test_a_connection_is_one_line_however_many_routes_use_it(tmp_path: Path) -> None:
    async with desk(tmp_path, CONNECTED) as here:
        peers = here.app.services.observed.peers
        await until(lambda: sum(peer.state == "down" for peer in peers.values()) == 3)
        status, shown = await ready(here)
    assert status == 503
    assert shown["connections"] == {
        "plant": {
            "state": "down",
            "reason": "mqtt 127.0.0.1:1: connection refused",
            "users": ["telemetry.mqtt", "alarms.mqtt", "alarms.late"],
        },
        "other": {"state": "up", "users": ["alarms.mqtt_broker"]},
    }
    assert "hunter2" not in str(shown)


async def test_a_full_journal_is_not_ready_and_a_broken_one_not_alive(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        await up(here)
        here.journal.full = True
        status, shown = await ready(here)
        assert (status, shown["journal"]) == (503, "no room; free some disk space")
        here.journal.full = False
        assert (await ready(here))[0] == 200
        here.app.broken.set_result("EIO on /somewhere")
        assert (await ready(here))[0] == 503
        live = await here.client.get("/health/live")
        assert live.status_code == 503
        assert "somewhere" not in live.text


async def metrics(here: Desk) -> dict[tuple[str, ...], float]:
    answer = await here.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_the_books_balance_on_the_metrics(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        for n in range(3):
            await here.post("orders", {"id": n}, query="?wait=5s")
        box("ledger").failing = PeerError("away")
        await here.post("orders", {"id": 9}, query="?wait=5s")
        await here.post("orders", {"no": "id"})
        found = await metrics(here)
        route = "route=orders"
        assert found["gateway_messages_received_total", route] == 5
        assert found["gateway_messages_accepted_total", route] == 4
        assert found["gateway_messages_refused_total", route] == 1
        assert found["gateway_journal_messages", route, "state=delivered"] == 3
        assert found["gateway_journal_messages", route, "state=dead"] == 1
        assert found["gateway_messages_pending", route] == 0
        in_journal = sum(value for key, value in found.items() if key[:2] == ("gateway_journal_messages", route))
        assert in_journal == found["gateway_messages_accepted_total", route]
        assert found["gateway_target_delivered_total", route, "target=ledger"] == 3
        assert found["gateway_message_seconds_count", route] == 5


async def test_the_process_shows_itself_and_no_other_registry(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        found = await metrics(here)
        assert found[("process_resident_memory_bytes",)] > 0
        assert found[("process_open_fds",)] > 0
        assert found[("gateway_log_lines_dropped_total",)] >= 0
        assert not any(key[0].startswith("python_") for key in found)
