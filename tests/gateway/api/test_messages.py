"""Stored messages: found, shown, sent again, edited and discarded."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from adapters.memory import box
from gateway import Message, MessageError, PeerError
from gateway.journal import Filter, Page, Reason
from gateway.testing import until
from tests.gateway.api.desk import ROUTES, Desk, desk
from tests.gateway.probe import plug_in, script


async def dead_one(here: Desk, tree: Any = None, **headers: str) -> str:
    """The id of a message that the ledger refused."""
    box("ledger").failing = MessageError("ledger: the booking is closed")
    answer = await here.post("orders", tree or {"id": 1}, query="?wait=5s", **headers)
    assert answer.json()["status"] == "dead"
    box("ledger").failing = None
    found: str = answer.json()["id"]
    return found


def state(here: Desk, message_id: str) -> str:
    return here.journal.records[message_id].state


async def test_a_list_is_newest_first_and_paged_by_cursor(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        ids = [(await here.post("orders", {"id": n}, query="?wait=5s")).json()["id"] for n in range(5)]
        first = await here.get("/messages", limit="2")
        assert [row["id"] for row in first["messages"]] == ids[:2:-1]
        second = await here.get("/messages", limit="2", cursor=first["next"])
        third = await here.get("/messages", limit="2", cursor=second["next"])
        assert [row["id"] for row in second["messages"] + third["messages"]] == ids[2::-1]
        assert "next" not in third


async def test_a_list_is_filtered_by_all_that_is_asked(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        good = (await here.post("orders", {"id": 1}, query="?wait=5s", **{"x-shop": "Nord"})).json()["id"]
        dead = await dead_one(here)
        for query, expected in (
            ({"status": "dead"}, [dead]),
            ({"status": "delivered"}, [good]),
            ({"q": "nord"}, [good]),
            ({"reason": "refused"}, [dead]),
            ({"route": "orders", "since": "1h"}, [dead, good]),
            ({"until": "2020-01-01T00:00:00Z"}, []),
            ({"route": "elsewhere"}, []),
        ):
            rows = (await here.get("/messages", **query))["messages"]
            assert [row["id"] for row in rows] == expected, query


async def test_a_message_is_found_by_its_senders_own_id_alone(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        wanted = (await here.post("orders", {"id": 1}, **{"idempotency-key": "4711"})).json()["id"]
        await here.post("orders", {"id": 2}, **{"idempotency-key": "47110"})
        await here.post("orders", {"id": 3}, **{"x-shop": "4711"})
        assert len((await here.get("/messages", q="4711"))["messages"]) >= 3
        rows = (await here.get("/messages", sender_id="4711"))["messages"]
        assert [(row["id"], row["sender_id"]) for row in rows] == [(wanted, "4711")]


async def test_a_page_may_be_empty_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk(tmp_path) as here:
        dead = [await dead_one(here, {"id": n}) for n in range(3)]
        browse = here.journal.browse

        async def hasty(wanted: Filter, cursor: str | None, limit: int) -> Page:
            return await browse(wanted, cursor, limit) if cursor is not None else Page((), "4")

        monkeypatch.setattr(here.journal, "browse", hasty)
        assert await here.get("/messages", status="dead") == {"messages": [], "next": "4"}
        answer = await here.client.post("/api/v1/dead-letters/discard", json={"all": True})
        assert answer.json() == {"discarded": 3, "skipped": {}, "more": False}
        assert {state(here, one) for one in dead} == {"discarded"}


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("status=ded", "did you mean dead?"),
        ("reason=refusd", "did you mean refused?"),
        ("stauts=dead", "did you mean status?"),
        ("since=yesterday", "expected a time such as"),
        ("since=2026-11-21T02:34:41", "expected a time such as"),
        ("limit=0", "expected 1 to 500"),
        ("limit=many", "limit"),
        ("route=a&route=b", "twice"),
    ],
)
async def test_a_wrong_filter_is_refused_instead_of_ignored(tmp_path: Path, query: str, said: str) -> None:
    async with desk(tmp_path) as here:
        answer = await here.client.get(f"/api/v1/messages?{query}")
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
        assert said in answer.json()["detail"]


async def test_a_message_shows_its_envelope_and_what_happened_to_it(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        dead = await dead_one(here, **{"idempotency-key": "k", "x-api-key": "hunter2"})
        shown = await here.get(f"/messages/{dead}")
    assert (shown["route"], shown["status"], shown["sender_id"]) == ("orders", "dead", "k")
    assert shown["reason"] == {"kind": "refused", "text": "ledger: the booking is closed", "place": "ledger"}
    (attempt,) = shown["attempts"]
    assert (attempt["target"], attempt["number"], attempt["error"]) == ("ledger", 1, "ledger: the booking is closed")
    assert attempt["at"].endswith("Z")
    (delivery,) = shown["deliveries"]
    assert (delivery["target"], delivery["status"], delivery["attempts"]) == ("ledger", "dead", 1)
    assert shown["headers"]["x-api-key"] == "(hidden)"
    assert "hunter2" not in str(shown)


async def test_an_unknown_id_is_404_whatever_is_asked_of_it(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        for method, path in (("GET", ""), ("GET", "/body"), ("POST", "/replay"), ("DELETE", "")):
            answer = await here.client.request(method, f"/api/v1/messages/nobody{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "unknown_message")


async def test_a_body_comes_as_it_was_and_is_never_shown_by_a_browser(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        sent = b"<script>1</script>\xff"
        here.journal.records.clear()
        await here.journal.bury("orders", Message(raw=sent, content_type="text/html"), Reason("refused", "no"))
        (message_id,) = here.journal.records
        answer = await here.client.get(f"/api/v1/messages/{message_id}/body")
    assert (answer.content, answer.headers["content-type"]) == (sent, "text/html")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


async def test_a_content_type_that_no_header_carries_becomes_that_of_bytes(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        await here.journal.bury("orders", Message(raw=b"x", content_type="a/b\r\nx: y"), Reason("refused", "no"))
        (message_id,) = here.journal.records
        answer = await here.client.get(f"/api/v1/messages/{message_id}/body")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert "x" not in answer.headers


async def test_what_a_target_receives_can_be_seen(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        dead = await dead_one(here)
        answer = await here.client.get(f"/api/v1/messages/{dead}/body?target=ledger")
        assert answer.json() == {"id": 1}
        unknown = await here.client.get(f"/api/v1/messages/{dead}/body?target=nobody")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_target")


# -- replay ----------------------------------------------------------------------------------------------------------


async def test_a_dead_letter_is_sent_again_as_it_came_under_its_id(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        dead = await dead_one(here)
        answer = await here.client.post(f"/api/v1/messages/{dead}/replay")
        assert (answer.status_code, answer.json()["replayed"]) == (202, 1)
        await until(lambda: state(here, dead) == "delivered")
        assert [message.id for message in box("ledger").received] == [dead]
        shown = await here.get(f"/messages/{dead}")
    assert any("admin@127.0.0.1" in line and "replay" in line for line in shown["actions"])


async def test_an_edited_message_is_a_new_one_that_names_the_old(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        dead = await dead_one(here)
        answer = await here.client.post(f"/api/v1/messages/{dead}/replay", json={"body": {"id": 2}})
        assert answer.status_code == 202
        new = answer.json()["id"]
        assert (new != dead, answer.json()["causation_id"]) == (True, dead)
        await until(lambda: state(here, new) == "delivered")
        assert box("ledger").received[-1].tree == {"id": 2}
        assert (await here.get(f"/messages/{new}"))["causation_id"] == dead
        assert state(here, dead) == "dead"
        (line,) = (await here.get(f"/messages/{dead}"))["actions"]
        assert line.startswith("admin@127.0.0.1")
        assert line.endswith(f": replay edited, as {new}")


async def test_an_edited_body_that_no_longer_passes_is_refused_and_nothing_is_stored(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        dead = await dead_one(here)
        answer = await here.client.post(f"/api/v1/messages/{dead}/replay", json={"body": '{"no": "id"}'})
        assert (answer.status_code, answer.json()["code"]) == (422, "refused")
        assert list(here.journal.records) == [dead]
        assert (await here.get(f"/messages/{dead}"))["actions"] == []


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"target": "ledgre"}, 422, "did you mean ledger?"),
        ({"target": "ledger", "body": "{}"}, 422, "new one"),
        ({"traget": "ledger"}, 422, 'unknown member "traget"; did you mean target?'),
        ({"xyz": 1}, 422, 'unknown member "xyz"; there are: target, body, content_type'),
        ([], 422, "expected object, got array"),
        ({"body": 7}, 422, "body: expected str | object | array | null, got int"),
    ],
)
async def test_a_wrong_replay_is_refused_and_changes_nothing(tmp_path: Path, body: Any, status: int, said: str) -> None:
    async with desk(tmp_path) as here:
        dead = await dead_one(here)
        answer = await here.client.post(f"/api/v1/messages/{dead}/replay", json=body)
        assert answer.status_code == status
        assert said in answer.json()["detail"]
        assert state(here, dead) == "dead"


async def test_a_body_that_is_no_json_is_400_and_of_another_type_415(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        dead = await dead_one(here)
        url = f"/api/v1/messages/{dead}/replay"
        for content, content_type, status in ((b"{", "application/json", 400), (b"a=1", "text/plain", 415)):
            answer = await here.client.post(url, content=content, headers={"content-type": content_type})
            assert answer.status_code == status


async def test_a_pending_message_can_not_be_replayed(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        await here.app.pause("orders")
        pending = (await here.post("orders", {"id": 1})).json()["id"]
        answer = await here.client.post(f"/api/v1/messages/{pending}/replay")
        assert (answer.status_code, answer.json()["code"]) == (409, "not_final")


async def test_a_message_whose_route_is_gone_says_what_to_do(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        dead = await dead_one(here)
        (tmp_path / "routes.yaml").write_text(ROUTES.replace("  orders:", "  bookings:"))
        await here.app.reload()
        answer = await here.client.post(f"/api/v1/messages/{dead}/replay")
        assert (answer.status_code, answer.json()["code"]) == (409, "route_gone")
        assert "bring the route back" in answer.json()["detail"]
        assert state(here, dead) == "dead"


async def test_a_dead_letter_of_a_route_that_stores_nothing_goes_through_it_at_once(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        await here.journal.bury("passes", Message(raw=b'{"id": 9}'), Reason("refused", "no"))
        (dead,) = here.journal.records
        box("passed").failing = PeerError("away")
        answer = await here.client.post(f"/api/v1/messages/{dead}/replay")
        assert (answer.status_code, state(here, dead)) == (503, "dead")
        box("passed").failing = None
        answer = await here.client.post(f"/api/v1/messages/{dead}/replay")
        assert (answer.status_code, state(here, dead)) == (202, "discarded")
        assert box("passed").received[-1].tree == {"id": 9}


async def test_such_a_replay_is_not_bound_by_a_deadline_that_has_passed(tmp_path: Path) -> None:
    yaml = ROUTES.replace("    ack: delivered\n", "    ack: delivered\n    expire_after: 1m\n")
    async with desk(tmp_path, yaml) as here:
        old = Message(raw=b'{"id": 9}', time_s=1e9, expires_at_s=1e9 + 60)
        await here.journal.bury("passes", old, Reason("refused", "no"))
        answer = await here.client.post(f"/api/v1/messages/{old.id}/replay")
        assert (answer.status_code, state(here, old.id)) == (202, "discarded")
        assert [message.tree for message in box("passed").received] == [{"id": 9}]


# -- discard ---------------------------------------------------------------------------------------------------------


async def test_a_dead_letter_is_discarded_once(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        dead = await dead_one(here)
        first = await here.client.delete(f"/api/v1/messages/{dead}")
        second = await here.client.delete(f"/api/v1/messages/{dead}")
        assert (first.status_code, state(here, dead)) == (200, "discarded")
        assert (second.status_code, second.json()["code"]) == (409, "not_open")
        await dead_one(here)
        await here.client.post("/api/v1/dead-letters/discard", json={"all": True})
        metrics = (await here.client.get("/metrics")).text
        assert 'gateway_messages_discarded_total{route="orders"} 2.0' in metrics


async def test_after_a_discard_is_answered_nothing_of_the_message_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in(monkeypatch)
    yaml = ROUTES.replace("accept:", "concurrency: 1\n    accept:", 1).replace("memory: {name: l", "probe: {name: l")
    async with desk(tmp_path, yaml) as here:
        release = asyncio.Event()

        async def held(_: Message) -> None:
            await release.wait()

        script("ledger").does = held
        ids = [(await here.post("orders", {"id": n})).json()["id"] for n in range(3)]
        delivering = here.app.routes["orders"].delivering
        assert delivering is not None
        await until(lambda: len(delivering._jobs) == 3 and script("ledger").received)
        assert (await here.client.delete(f"/api/v1/messages/{ids[1]}")).status_code == 200
        release.set()
        await until(lambda: [state(here, one) for one in ids] == ["delivered", "discarded", "delivered"])
        assert script("ledger").trees == [{"id": 0}, {"id": 2}]


# -- in bulk ---------------------------------------------------------------------------------------------------------


async def test_all_dead_letters_that_match_are_sent_again_oldest_first(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        dead = [await dead_one(here, {"id": n}) for n in range(5)]
        answer = await here.client.post("/api/v1/dead-letters/replay", json={"route": "orders"})
        assert answer.json() == {"replayed": 5, "skipped": {}, "more": False}
        await until(lambda: all(state(here, one) == "delivered" for one in dead))
        assert sorted(message.id for message in box("ledger").received) == sorted(dead)
        assert sorted(dead, key=lambda one: here.journal.records[one].turn) == dead
        again = await here.client.post("/api/v1/dead-letters/replay", json={"route": "orders"})
        assert again.json()["replayed"] == 0


async def test_one_that_dies_again_is_not_sent_twice_by_one_call(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        dead = [await dead_one(here, {"id": n}) for n in range(3)]
        box("ledger").failing = MessageError("still closed")
        answer = await here.client.post("/api/v1/dead-letters/replay", json={"all": True, "rate": "50/s"})
        assert answer.json()["replayed"] == 3
        await until(lambda: all(state(here, one) == "dead" for one in dead))
        assert [len(here.journal.records[one].attempts) for one in dead] == [2, 2, 2]


async def test_a_rate_is_kept(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        for n in range(5):
            await dead_one(here, {"id": n})
        began = asyncio.get_running_loop().time()
        answer = await here.client.post("/api/v1/dead-letters/discard", json={"all": True, "rate": "20/s"})
        took_s = asyncio.get_running_loop().time() - began
        assert answer.json()["discarded"] == 5
        assert took_s >= 0.15


async def test_dead_letters_of_routes_that_are_gone_stay_and_are_counted(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        dead = await dead_one(here)
        await here.journal.bury("gone", Message(raw=b"{}"), Reason("refused", "no"))
        answer = await here.client.post("/api/v1/dead-letters/replay", json={"all": True})
        assert answer.json() == {"replayed": 1, "skipped": {"route_gone": 1}, "more": False}
        await until(lambda: state(here, dead) == "delivered")


@pytest.mark.parametrize(
    "body",
    [
        {"all": True, "rate": "fast"},
        {"q": "x", "rate": "0/s"},
        {"rout": "x"},
        {"since": "soon"},
        {"reason": "refusd"},
        {"q": ""},
        {"route": "orders", "correlation_id": ""},
        {"sender_id": ""},
    ],
)
async def test_a_wrong_bulk_is_refused_and_changes_nothing(tmp_path: Path, body: dict[str, Any]) -> None:
    async with desk(tmp_path) as here:
        dead = await dead_one(here)
        for action in ("replay", "discard"):
            answer = await here.client.post(f"/api/v1/dead-letters/{action}", json=body)
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
        assert state(here, dead) == "dead"


async def test_a_bulk_discard_takes_what_matches_and_no_other(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        first = await dead_one(here, {"id": 1}, **{"x-shop": "nord"})
        second = await dead_one(here, {"id": 2}, **{"x-shop": "sued"})
        answer = await here.client.post("/api/v1/dead-letters/discard", json={"q": "x-shop: nord"})
        assert answer.json()["discarded"] == 1
        assert (state(here, first), state(here, second)) == ("discarded", "dead")


async def test_a_bulk_takes_the_dead_letters_of_one_senders_id(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        first, second, third = [await dead_one(here, {"id": n}, **{"idempotency-key": f"{n}7"}) for n in (1, 2, 11)]
        answer = await here.client.post("/api/v1/dead-letters/discard", json={"sender_id": "17"})
        assert answer.json()["discarded"] == 1
        answer = await here.client.post("/api/v1/dead-letters/replay", json={"sender_id": "27"})
        assert answer.json()["replayed"] == 1
        await until(lambda: state(here, second) == "delivered")
        assert (state(here, first), state(here, third)) == ("discarded", "dead")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"rate": "9/s"}', b'{"all": false}'])
async def test_nothing_is_done_to_all_dead_letters_by_leaving_something_out(tmp_path: Path, content: bytes) -> None:
    async with desk(tmp_path) as here:
        dead = await dead_one(here)
        for action in ("replay", "discard"):
            answer = await here.client.post(
                f"/api/v1/dead-letters/{action}", content=content, headers={"content-type": "application/json"}
            )
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
            assert answer.json()["detail"].endswith('or "all": true for all dead letters')
        assert state(here, dead) == "dead"


TWO = """
version: 1
routes:
  orders:
    from: rest
    accept: [{filter: body.id is defined}]
    steps: [{filter: body.good | int > 0}]
    to:
      - {memory: {name: ledger}, name: ledger, retry: {attempts: 1}}
      - {memory: {name: other}, name: other}
"""


async def test_a_replay_to_one_target_reaches_no_other(tmp_path: Path) -> None:
    async with desk(tmp_path, TWO) as here:
        delivered = (await here.post("orders", {"id": 1, "good": 1})).json()["id"]
        failed = (await here.post("orders", {"id": 2, "good": "x"})).json()["id"]
        await until(lambda: (state(here, delivered), state(here, failed)) == ("delivered", "dead"))
        unknown = await here.client.post("/api/v1/dead-letters/replay", json={"all": True, "target": "nobody"})
        assert unknown.json() == {"replayed": 0, "skipped": {"unknown_target": 1}, "more": False}
        for one in (delivered, failed):
            answer = await here.client.post(f"/api/v1/messages/{one}/replay", json={"target": "ledger"})
            assert answer.status_code == 202
        await until(lambda: len(box("ledger").received) == 2)
        await until(lambda: (state(here, delivered), state(here, failed)) == ("delivered", "dead"))
        assert [message.id for message in box("other").received] == [delivered]


async def test_a_replay_to_the_only_target_is_a_replay(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        delivered = (await here.post("orders", {"id": 1})).json()["id"]
        await until(lambda: state(here, delivered) == "delivered")
        answer = await here.client.post(f"/api/v1/messages/{delivered}/replay", json={"target": "ledger"})
        assert answer.status_code == 202
        await until(lambda: [message.id for message in box("ledger").received] == [delivered, delivered])
