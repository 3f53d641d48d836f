"""Type and sender's id of HL7 that comes by REST or is replayed edited: as the source `mllp` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters.memory import box
from gateway import Message
from gateway.journal import Reason
from gateway.testing import until
from tests.gateway.api.desk import Desk, desk
from tests.ports import free_port

HL7 = "application/hl7-v2"
EVENT = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/his", "ce-type": "admitted"}
ROUTES = """
version: 1
gateway: {{name: desk, api: {{listen: "127.0.0.1:0"}}}}
routes:
  admissions:
    from: [rest, {{mllp: {{listen: "127.0.0.1:{port}"}}}}]
    accept: [{{filter: "message.type in {types}"}}]
    to: {{memory: {{name: ledger}}}}
  others:
    from: rest
    to: {{memory: {{name: ledger}}}}
"""


def routes(*types: str) -> str:
    return ROUTES.format(port=free_port(), types=list(types))


def adt(event: str = "ADT^A01", control_id: str = "M1") -> str:
    return f"MSH|^~\\&|HIS|WARD|GW|LAB|20260131093000||{event}|{control_id}|P|2.5\rPID|1||4711\r"


async def sent(here: Desk, body: str, route: str = "admissions", **headers: str) -> Any:
    path = f"/api/v1/routes/{route}/messages?wait=5s"
    answer = await here.client.post(path, content=body.encode(), headers={"content-type": HL7, **headers})
    return answer.json()


async def edited(here: Desk, old: Message, body: str) -> Any:
    """The message that a dead letter has become."""
    await here.journal.bury("admissions", old, Reason("refused", "no"))
    answer = await here.client.post(f"/api/v1/messages/{old.id}/replay", json={"body": body})
    assert answer.status_code == 202, answer.text
    new = answer.json()["id"]
    await until(lambda: here.journal.records[new].state == "delivered")
    return await here.get(f"/messages/{new}")


async def test_what_comes_by_rest_passes_a_filter_by_its_msh_9(tmp_path: Path) -> None:
    async with desk(tmp_path, routes("ADT^A01")) as here:
        assert (await sent(here, adt()))["status"] == "delivered"
        assert (await sent(here, adt("ADT^A99")))["code"] == "refused"
    (message,) = box("ledger").received
    assert (message.type, message.sender_id) == ("ADT^A01", "M1")


async def test_what_its_sender_says_itself_goes_before_the_header(tmp_path: Path) -> None:
    async with desk(tmp_path, routes("ADT^A01", "admitted")) as here:
        await sent(here, adt(), **{"idempotency-key": "K1"})
        await sent(here, adt(), **EVENT)
    names = [(message.type, message.sender_id) for message in box("ledger").received]
    assert names == [("ADT^A01", "K1"), ("admitted", "/his#1")]


@pytest.mark.parametrize(("route", "body"), [("admissions", "PID|1\r"), ("others", adt())])
async def test_without_an_msh_or_a_source_that_reads_it_the_type_is_that_of_rest(
    tmp_path: Path, route: str, body: str
) -> None:
    async with desk(tmp_path, routes("rest.message")) as here:
        await sent(here, body, route)
    (message,) = box("ledger").received
    assert (message.type, message.sender_id) == ("rest.message", None)


@pytest.mark.parametrize(
    "old",
    [
        Message(raw=adt("ADT^A1").encode(), content_type=HL7, type="ADT^A1", sender_id="M1"),
        Message(raw=adt("").encode(), content_type=HL7, type="mllp.message", sender_id="M1"),
        Message(raw=b"MSX|", content_type=HL7, type="rest.message"),
    ],
    ids=["another type", "no type", "no header"],
)
async def test_a_mended_header_is_read_when_a_message_is_replayed_edited(tmp_path: Path, old: Message) -> None:
    async with desk(tmp_path, routes("ADT^A01")) as here:
        new = await edited(here, old, adt("ADT^A01", "M2"))
        assert (new["type"], new["sender_id"], new["causation_id"]) == ("ADT^A01", "M2", old.id)
        assert (await here.get(f"/messages/{old.id}"))["type"] == old.type


@pytest.mark.parametrize("type_", ["ADT^A01", "rest.message"])
async def test_what_has_no_header_when_it_is_edited_keeps_its_names(tmp_path: Path, type_: str) -> None:
    async with desk(tmp_path, routes("ADT^A01", "rest.message")) as here:
        old = Message(raw=b"no header", content_type=HL7, type=type_, sender_id="M1")
        new = await edited(here, old, "none again")
        assert (new["type"], new["sender_id"]) == (type_, "M1")


async def test_names_that_a_sender_gave_are_kept_when_its_message_is_edited(tmp_path: Path) -> None:
    async with desk(tmp_path, routes("admitted")) as here:
        old = Message(raw=adt().encode(), content_type=HL7, type="admitted", sender_id="/his#1")
        new = await edited(here, old, adt("ADT^A08", "M2"))
        assert (new["type"], new["sender_id"]) == ("admitted", "/his#1")
