"""Messages posted to a route: what the sender hears, and what is kept."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from adapters.memory import box
from gateway import Message, MessageError, PeerError
from gateway.journal import Waiting
from gateway.testing import settle, until
from tests.gateway.api.desk import Desk, desk


def sent(name: str) -> list[Any]:
    return [message.tree for message in box(name).received]


async def test_a_stored_message_is_answered_with_its_id_and_where_its_state_is(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        answer = await here.post("orders", {"id": 1})
        assert answer.status_code == 202
        told = answer.json()
        assert told["status_url"] == f"/api/v1/messages/{told['id']}"
        await until(lambda: sent("ledger") == [{"id": 1}])
        shown = await here.client.get(told["status_url"])
        assert shown.json()["status"] in ("pending", "delivered")


async def test_with_wait_the_answer_is_what_became_of_the_message(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        answer = await here.post("orders", {"id": 1}, query="?wait=5s")
        assert (answer.status_code, answer.json()["status"]) == (200, "delivered")
        box("ledger").failing = MessageError("ledger: the booking is closed")
        answer = await here.post("orders", {"id": 2}, query="?wait=5s")
        assert (answer.status_code, answer.json()["status"]) == (200, "dead")
        assert answer.json()["reason"]["text"] == 'the target "ledger" refused it'
        detail = await here.client.get(f"/api/v1/messages/{answer.json()['id']}")
        assert detail.json()["reason"]["text"] == "ledger: the booking is closed"


async def test_a_wait_that_ends_first_is_answered_202_and_the_message_goes_on(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        await here.app.pause("orders")
        answer = await here.post("orders", {"id": 1}, query="?wait=50ms")
        assert (answer.status_code, answer.json()["status"]) == (202, "pending")


async def test_no_wait_is_so_short_that_a_message_is_acknowledged_before_it_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path) as here:
        committed = asyncio.Event()
        append, slow = here.journal.append, set[asyncio.Task[None]]()

        def slowly(route: str, message: Message, waiting: Waiting[bool]) -> None:
            async def later() -> None:
                await committed.wait()
                append(route, message, waiting)

            slow.add(asyncio.create_task(later()))

        monkeypatch.setattr(here.journal, "append", slowly)
        posting = asyncio.create_task(here.post("orders", {"id": 1}, query="?wait=1ms"))
        await settle(200)
        assert not posting.done()
        committed.set()
        assert (await posting).status_code in (200, 202)


async def test_a_wait_that_ends_before_a_route_that_stores_nothing_is_too_late(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        here.app.routes["passes"].gate.close(stopping=False)
        answer = await here.post("passes", {"id": 1}, query="?wait=20ms")
        assert (answer.status_code, answer.json()["code"]) == (504, "too_late")
        here.app.routes["passes"].gate.reopen()
        await until(lambda: sent("passed") == [{"id": 1}])


@pytest.mark.parametrize("wait", ["30", "soon", "6m"])
async def test_a_wait_that_is_no_duration_of_five_minutes_at_most_is_refused(tmp_path: Path, wait: str) -> None:
    async with desk(tmp_path) as here:
        answer = await here.post("orders", {"id": 1}, query=f"?wait={wait}")
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
        assert here.journal.records == {}


async def test_a_reply_route_is_answered_with_the_reply_its_type_and_its_status(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as here:
        reply = Message(raw=b"<ok/>", content_type="application/xml", transport={"status": 201})
        box("asked").failing = _replying(reply)
        answer = await here.post("asks", {"q": 1})
        assert (answer.status_code, answer.headers["content-type"], answer.content) == (
            201,
            "application/xml",
            b"<ok/>",
        )


def _replying(reply: Message) -> MessageError:
    return MessageError("answered with a reply", reply=reply)


async def test_a_route_that_delivers_at_once_says_that_it_did(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        answer = await here.post("passes", {"id": 1})
        assert (answer.status_code, answer.json()["status"]) == (200, "accepted")
        assert here.journal.records == {}


@pytest.mark.parametrize(
    ("route", "failing", "status", "code"),
    [
        ("passes", MessageError("no"), 422, "refused"),
        ("passes", MessageError("no", code="malformed"), 400, "malformed"),
        ("passes", PeerError("away", wait_s=7.2), 503, "busy"),
        ("asks", PeerError("away"), 502, "answerless"),
        ("asks", PeerError("late", too_late=True), 504, "too_late"),
        ("passes", ZeroDivisionError("secret"), 500, "internal"),
    ],
)
async def test_outcomes_are_answered_as_over_http(
    tmp_path: Path, route: str, failing: Exception, status: int, code: str
) -> None:
    async with desk(tmp_path) as here:
        box("passed").failing = box("asked").failing = failing
        answer = await here.post(route, {"id": 1})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/problem+json"
        assert "secret" not in answer.text


async def test_a_journal_without_room_is_503_with_a_time_to_come_again(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        here.journal.full = True
        answer = await here.post("orders", {"id": 1})
        assert (answer.status_code, answer.json()["code"]) == (503, "busy")
        assert int(answer.headers["retry-after"]) >= 1
        assert "id" not in answer.json()


async def test_what_accept_refuses_is_the_senders(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        answer = await here.post("orders", {"no": "id"})
        assert (answer.status_code, answer.json()["code"]) == (422, "refused")
        assert here.journal.records == {}


async def test_an_unknown_route_is_404_with_the_near_name(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        answer = await here.post("order", {"id": 1})
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_route")
        assert "did you mean orders?" in answer.json()["detail"]


# -- CloudEvents -----------------------------------------------------------------------------------------------------


async def test_a_structured_event_becomes_its_data_with_its_attributes(tmp_path: Path) -> None:
    event = {
        "specversion": "1.0",
        "id": "7",
        "source": "/shop",
        "type": "order.placed",
        "subject": "A7",
        "data": {"id": 7},
    }
    async with desk(tmp_path) as here:
        answer = await here.post("orders", event, **{"content-type": "application/cloudevents+json"})
        message = here.journal.records[answer.json()["id"]].message
    assert (message.type, message.subject, message.sender_id) == ("order.placed", "A7", "/shop#7")
    assert (message.raw, message.content_type) == (b'{"id":7}', "application/json")


async def test_a_binary_event_keeps_its_body_byte_for_byte(tmp_path: Path) -> None:
    headers = {"ce-specversion": "1.0", "ce-id": "7", "ce-source": "/shop", "ce-type": "order.placed"}
    async with desk(tmp_path) as here:
        answer = await here.client.post(
            "/api/v1/routes/orders/messages", content=b'{ "id": 7 }', headers={**headers, "content-type": "text/json"}
        )
        message = here.journal.records[answer.json()["id"]].message
    assert (message.raw, message.content_type, message.type) == (b'{ "id": 7 }', "text/json", "order.placed")


async def test_an_event_that_is_none_is_400_and_a_batch_415(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        broken = await here.post("orders", {"id": 1}, **{"content-type": "application/cloudevents+json"})
        batch = await here.post("orders", [], **{"content-type": "application/cloudevents-batch+json"})
    assert (broken.status_code, broken.json()["code"]) == (400, "malformed")
    assert (batch.status_code, batch.json()["code"]) == (415, "unsupported")


# -- what is taken in ------------------------------------------------------------------------------------------------


async def test_no_credential_of_the_api_gets_into_a_message(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        answer = await here.post("orders", {"id": 1}, cookie="session=1", **{"x-shop": "7"})
        message = here.journal.records[answer.json()["id"]].message
    assert message.headers["x-shop"] == "7"
    assert not {"authorization", "cookie", "host"} & set(message.headers)
    assert (message.type, message.source) == ("rest.message", "/desk/orders")
    assert message.principal is not None
    assert message.principal.name == "admin"


async def test_a_body_over_the_limit_is_413_with_and_without_a_length(tmp_path: Path) -> None:
    async def pieces() -> Any:
        for _ in range(17):
            yield b"x" * 65536

    async with desk(tmp_path) as here:
        for content in (b"x" * (1024 * 1024 + 1), pieces()):
            answer = await here.client.post("/api/v1/routes/orders/messages", content=content)
            assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


async def test_an_encoded_body_is_415_and_says_what_is_taken(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        answer = await here.post("orders", {"id": 1}, **{"content-encoding": "gzip"})
        assert answer.status_code == 415
        assert answer.headers["accept-encoding"] == "identity"


# -- Idempotency-Key -------------------------------------------------------------------------------------------------


async def keyed(here: Desk, body: Any, key: str = "k1") -> Any:
    return await here.post("orders", body, **{"idempotency-key": key})


async def test_the_same_key_is_the_same_message(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        first = await keyed(here, {"id": 1})
        second = await keyed(here, {"id": 1})
        assert second.json()["id"] == first.json()["id"]
        assert "idempotent-replayed" not in first.headers
        assert second.headers["idempotent-replayed"] == "true"
        assert len(here.journal.records) == 1
        await until(lambda: here.journal.records[first.json()["id"]].state == "delivered")
    assert sent("ledger") == [{"id": 1}]


async def test_two_requests_at_once_with_one_key_store_one_message(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        answers = await asyncio.gather(*(keyed(here, {"id": 1}) for _ in range(20)))
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert len(here.journal.records) == 1


async def test_a_key_whose_message_was_never_stored_is_no_promise(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        refused = await keyed(here, {"wrong": 1})
        assert refused.status_code == 422
        good = await keyed(here, {"id": 1})
        assert good.status_code == 202
        assert "idempotent-replayed" not in good.headers
        assert good.json()["id"] in here.journal.records


async def test_a_key_whose_first_message_was_refused_is_that_of_the_one_that_was_stored(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        assert (await keyed(here, {"wrong": 1})).status_code == 422
        good = await keyed(here, {"id": 1})
        again = await keyed(here, {"id": 1})
        assert (again.status_code, again.json()) == (202, good.json())
        assert again.headers["idempotent-replayed"] == "true"
        refused = await keyed(here, {"wrong": 1})
        assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")
        assert len(here.journal.records) == 1


async def test_a_key_that_comes_with_another_body_is_refused(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        first = await keyed(here, {"id": 1})
        other = await keyed(here, {"id": 2})
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        assert other.json()["id"] == first.json()["id"]
        assert (await keyed(here, {"id": 2}, "k2")).status_code == 202


async def test_a_key_is_of_its_route_and_of_a_bounded_length(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        assert (await keyed(here, {"id": 1}, "k" * 256)).status_code == 422
        assert (await keyed(here, {"id": 1}, "k" * 255)).status_code == 202
        passed = await here.post("passes", {"id": 1}, **{"idempotency-key": "k" * 255})
        assert "idempotent-replayed" not in passed.headers
        assert box("passed").received[0].sender_id == "k" * 255


async def test_two_messages_at_once_with_one_key_are_never_both_accepted(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        answers = await asyncio.gather(*(keyed(here, {"id": number}) for number in range(5)))
        (kept,) = here.journal.records.values()
        good = [number for number, answer in enumerate(answers) if answer.status_code == 202]
        assert [{"id": number} for number in good] == [kept.message.tree]
        assert {answer.json()["code"] for answer in answers if answer.status_code != 202} == {"idempotency_key_reused"}
