"""Routes as operators see them, and their pause."""

from __future__ import annotations

from pathlib import Path

from adapters.memory import box
from gateway import Message, PeerError
from gateway.journal import Reason
from gateway.testing import until
from tests.gateway.api.desk import ROUTES, desk


async def test_routes_are_listed_as_configured_with_their_counters(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        await here.post("orders", {"id": 1}, query="?wait=5s")
        await here.post("orders", {"no": "id"})
        routes = (await here.get("/routes"))["routes"]
        assert [route["name"] for route in routes] == ["orders", "asks", "passes"]
        orders = routes[0]
        assert (orders["ack"], orders["description"], orders["from"], orders["to"]) == (
            "stored",
            "Orders to the ledger",
            ["rest"],
            ["ledger"],
        )
        counters = orders["counters"]
        assert (counters["received"], counters["accepted"], counters["refused"]) == (2, 1, 1)
        assert orders["journal"]["delivered"] == 1
        assert (orders["in_flight"], orders["paused"]) == (0, False)
        assert orders["latency"]["count"] == 2
        assert orders["latency"]["p99_s"] is not None


async def test_a_route_shows_its_targets_with_circuit_and_latency(tmp_path: Path) -> None:
    yaml = ROUTES.replace("failures: 100", "failures: 1").replace("attempts: 1}", "attempts: 3, first_wait: 1h}")
    async with desk(tmp_path, yaml) as here:
        await here.post("orders", {"id": 1}, query="?wait=5s")
        box("ledger").failing = PeerError("away")
        await here.post("orders", {"id": 2}, query="?wait=100ms")
        shown = await here.get("/routes/orders")
        (target,) = shown["targets"]
        assert (target["name"], target["sink"], target["state"]) == ("ledger", "memory", "up")
        assert (target["delivered"], target["failed"]) == (1, 1)
        assert target["circuit"] == "open"
        assert shown["journal"]["pending"] == 1
        assert {peer["name"] for peer in shown["peers"]} == {"rest", "ledger"}


async def test_lanes_that_wait_are_shown_with_their_keys(tmp_path: Path) -> None:
    yaml = ROUTES.replace(
        "    to:\n      - {memory: {name: ledger}", "    order_by: body.id\n    to:\n      - {memory: {name: ledger}", 1
    )
    yaml = yaml.replace("attempts: 1}", "attempts: 3, first_wait: 1h}")
    async with desk(tmp_path, yaml) as here:
        box("ledger").failing = PeerError("away")
        for _ in range(3):
            await here.post("orders", {"id": "A"}, query="?wait=50ms")
        shown = await here.get("/routes/orders")
        assert shown["lanes"] == [{"target": "ledger", "key": "A", "pending": 3}]


async def test_an_unknown_route_is_404_with_the_near_name(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        for method, path in (("GET", "ordres"), ("POST", "ordres/pause"), ("POST", "ordres/resume")):
            answer = await here.client.request(method, f"/api/v1/routes/{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "unknown_route")
            assert "did you mean orders?" in answer.json()["detail"]


async def test_a_paused_route_takes_and_keeps_and_delivers_after_the_resume(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        assert (await here.client.post("/api/v1/routes/orders/pause")).json() == {"name": "orders", "paused": True}
        ids = [(await here.post("orders", {"id": n})).json()["id"] for n in range(3)]
        assert [here.journal.records[one].state for one in ids] == ["stored"] * 3
        assert list(box("ledger").received) == []
        assert (await here.get("/routes/orders"))["paused"] is True
        await here.client.post("/api/v1/routes/orders/resume")
        await until(lambda: [here.journal.records[one].state for one in ids] == ["delivered"] * 3)
        assert [message.id for message in box("ledger").received] == ids
        assert (await here.post("orders", {"id": 9}, query="?wait=5s")).json()["status"] == "delivered"


async def test_a_paused_route_that_stores_nothing_defers_its_senders(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        for name in ("passes", "asks"):
            await here.client.post(f"/api/v1/routes/{name}/pause")
            answer = await here.post(name, {"id": 1})
            assert (answer.status_code, answer.json()["code"]) == (503, "paused")
            assert "retry-after" in answer.headers
        assert list(box("passed").received) == []
        await here.client.post("/api/v1/routes/passes/resume")
        assert (await here.post("passes", {"id": 1})).status_code == 200


async def test_a_pause_outlives_a_reload_and_a_restart(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        await here.client.post("/api/v1/routes/orders/pause")
        (tmp_path / "routes.yaml").write_text(ROUTES.replace("Orders to the ledger", "Orders"))
        assert await here.app.reload() == ["orders: changed"]
        await here.post("orders", {"id": 1})
        assert (await here.get("/routes/orders"))["paused"] is True
    async with desk(tmp_path) as here:
        assert (await here.get("/routes/orders"))["paused"] is True
        pending = (await here.post("orders", {"id": 2})).json()["id"]
        assert here.journal.records[pending].state == "stored"
        assert list(box("ledger").received) == []
        await here.client.post("/api/v1/routes/orders/resume")
        await until(lambda: here.journal.records[pending].state == "delivered")
    async with desk(tmp_path) as here:
        assert (await here.get("/routes/orders"))["paused"] is False


async def test_pausing_twice_and_resuming_what_runs_change_nothing(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        for call in ("resume", "pause", "pause", "resume", "resume"):
            assert (await here.client.post(f"/api/v1/routes/orders/{call}")).status_code == 200
        assert (await here.post("orders", {"id": 1}, query="?wait=5s")).json()["status"] == "delivered"
        assert len(box("ledger").received) == 1


async def test_a_message_that_dies_while_its_route_is_paused_can_wait_for_the_resume(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        box("ledger").failing = PeerError("away")
        dead = (await here.post("orders", {"id": 1}, query="?wait=5s")).json()
        assert dead["status"] == "dead"
        box("ledger").failing = None
        await here.client.post("/api/v1/routes/orders/pause")
        assert (await here.client.post(f"/api/v1/messages/{dead['id']}/replay")).status_code == 202
        assert (await here.get(f"/messages/{dead['id']}"))["status"] == "pending"
        await here.client.post("/api/v1/routes/orders/resume")
        await until(lambda: here.journal.records[dead["id"]].state == "delivered")


async def test_what_waits_for_a_target_that_is_renamed_is_dead_and_says_what_to_do(tmp_path: Path) -> None:
    yaml = ROUTES.replace("attempts: 1}", "attempts: 99, first_wait: 1s, max_wait: 1s}")
    async with desk(tmp_path, yaml) as here:
        box("ledger").failing = PeerError("away")
        waits = (await here.post("orders", {"id": 1})).json()["id"]
        await until(lambda: here.journal.records[waits].state == "pending")
        (tmp_path / "routes.yaml").write_text(yaml.replace("name: ledger,", "name: books,"))
        await here.app.reload()
        await until(lambda: here.journal.records[waits].state == "dead")
        shown = await here.get(f"/messages/{waits}")
        assert shown["reason"]["text"] == (
            "the route has no target called ledger any more; it has books: give one of them this name and replay it, "
            "or replay it edited, as a new message"
        )
        answer = await here.client.post(f"/api/v1/messages/{waits}/replay", json={"target": "books"})
        assert answer.status_code == 409
        assert answer.json()["detail"] == "nothing of it was for the target books; it was for ledger"


async def test_a_replay_on_a_paused_route_that_stores_nothing_says_that_it_is_paused(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        dead = Message(raw=b'{"id": 9}')
        await here.journal.bury("passes", dead, Reason("refused", "no"))
        await here.app.pause("passes")
        answer = await here.client.post(f"/api/v1/messages/{dead.id}/replay")
        assert (answer.status_code, answer.json()["code"]) == (503, "paused")
        assert answer.json()["detail"] == "route passes is paused; resume it first"
        bulk = await here.client.post("/api/v1/dead-letters/replay", json={"all": True})
        assert bulk.json() == {"replayed": 0, "skipped": {"paused": 1}, "more": False}
        await here.app.resume("passes")
        assert (await here.client.post(f"/api/v1/messages/{dead.id}/replay")).status_code == 202


async def test_a_message_that_an_open_circuit_holds_back_says_so(tmp_path: Path) -> None:
    yaml = ROUTES.replace("failures: 100, reset_after: 1s", "failures: 1, reset_after: 1h")
    async with desk(tmp_path, yaml) as here:
        box("ledger").failing = PeerError("away")
        assert (await here.post("orders", {"id": 1}, query="?wait=5s")).json()["status"] == "dead"
        waits = (await here.post("orders", {"id": 2})).json()["id"]
        await until(lambda: here.journal.records[waits].state == "pending")
        (delivery,) = (await here.get(f"/messages/{waits}"))["deliveries"]
        assert (delivery["status"], delivery["attempts"]) == ("pending", 0)
        assert delivery["reason"]["text"] == "the target's circuit is open: others failed before it"
