"""What the log has of single messages: enough for who looks at it at night, and never so much that it drowns."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from gateway import Address, Deferred, Message, MessageError, PeerError, Refused
from gateway.notices import DeadLetters, Refusals, without_values
from gateway.observe import RouteMeters
from gateway.testing import ManualClock, until
from tests.adapters.raw_http import peer
from tests.adapters.test_mllp import framed
from tests.gateway.api.desk import desk
from tests.gateway.bench import Bench, post
from tests.gateway.probe import plug_in, raises, script
from tests.ports import free_port

CHECKED = """
    ack: delivered
    accept: [{filter: body.good}]
    to: {probe: {}}
"""
PEER = {"peer": "10.0.0.7:4711"}


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch)


def told(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    names = ("route", "message_id", "code", "kind", "reason", "place", "peer", "more")
    return [
        {name: getattr(record, name) for name in names if hasattr(record, name)}
        for record in caplog.records
        if record.getMessage() == event and record.levelno == logging.WARNING
    ]


async def test_a_fault_of_code_that_a_route_calls_is_in_the_log_in_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path)
    async with bench.route(CHECKED) as route:
        text = "python: shop.orders:priced raised KeyError: 'gift' (line 7)"
        script("out").does = raises(MessageError(text, code="internal", told="a step failed"))
        outcome = await post(route, {"good": True}, transport=PEER)
    assert isinstance(outcome, Refused)
    assert outcome.code == "internal"
    ((line),) = told(caplog, "message refused")
    assert (line["code"], line["reason"]) == ("internal", text.replace("'gift'", "…"))


async def test_what_only_its_sender_heard_is_in_the_log_with_all_that_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path)
    async with bench.route(CHECKED) as route:
        checked = await post(route, {"good": False}, transport=PEER)
        script("out").does = raises(MessageError("http://crm:9: answered 422"))
        sent = await post(route, {"good": True, "pin": "s3cret"}, headers={"authorization": "s3cret"})
    assert told(caplog, "message refused") == [
        {
            "route": "r",
            "message_id": checked.id,
            "code": "refused",
            "reason": "accept: the condition 'body.good' does not hold for this message",
            "place": "accept.0.filter",
            "peer": "10.0.0.7:4711",
        },
        {
            "route": "r",
            "message_id": sent.id,
            "code": "refused",
            "reason": "http://crm:9: answered 422",
            "place": "probe",
        },
    ]
    assert "s3cret" not in str([record.__dict__ for record in caplog.records])


async def test_why_a_target_did_not_take_a_message_is_in_the_log_as_its_sender_hears_not_now_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path)
    async with bench.route("\n    ack: delivered\n    to: {probe: {}}\n") as route:
        script("out").does = raises(PeerError("http://crm:9: answered 500"))
        sent = await post(route, {}, transport=PEER)
        await post(route, {}, answers=False)
    assert isinstance(sent, Deferred)
    assert told(caplog, "message deferred") == [
        {"route": "r", "message_id": sent.id, "reason": "http://crm:9: answered 500", "peer": "10.0.0.7:4711"}
    ]


async def test_one_deferred_message_a_second_is_told(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    refusals = Refusals("r", clock)
    for _ in range(3):
        refusals.note_deferred(Message(), Deferred("m", "not now"))
    await clock.advance(1)
    refusals.note_deferred(Message(), Deferred("m", "not now"))
    assert len(told(caplog, "message deferred")) == 2
    assert told(caplog, "messages deferred") == [{"route": "r", "more": 2}]


async def test_a_bug_and_a_dead_letter_are_told_once_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(tmp_path)
    async with bench.route(CHECKED) as route:
        await post(route, {"good": False}, answers=False)
        script("out").does = raises(ValueError("bug"))
        await post(route, {"good": True})
    assert len(told(caplog, "dead letter")) == 1
    assert told(caplog, "message refused") == []
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == ["message failed"]


async def test_ten_a_second_are_told_one_by_one_and_the_rest_counted(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    refusals = Refusals("r", clock)
    for _ in range(15):
        refusals.note(Message(), Refused("m", "no"), None)
    await clock.advance(1)
    refusals.note(Message(), Refused("m", "no"), None)
    assert len(told(caplog, "message refused")) == 11
    assert told(caplog, "messages refused") == [{"route": "r", "more": 5}]


async def test_the_rest_of_a_burst_is_told_though_nothing_comes_behind_it(caplog: pytest.LogCaptureFixture) -> None:
    clock, meters = ManualClock(), RouteMeters()
    dead, refusals = DeadLetters("r", meters, clock), Refusals("r", clock)
    for _ in range(12):
        dead.note("m", "refused", "no", None)
        refusals.note(Message(), Refused("m", "no"), None)
    async with asyncio.timeout(5):
        await until(lambda: told(caplog, "messages refused"))
    assert told(caplog, "messages refused") == told(caplog, "dead letters") == [{"route": "r", "more": 2}]
    assert meters.dead == 12


DOORS = """
version: 1
routes:
  web:
    from: {{http: {{listen: "127.0.0.1:{0}", path: /in, content_types: [application/json]}}}}
    limits: {{message: 1KiB}}
    to: drop
  live:
    from: {{websocket: {{listen: "127.0.0.1:{0}", path: /live, confirm: true}}}}
    to: drop
  lines:
    from: {{tcp: {{listen: "127.0.0.1:{1}", answer: {{}}}}}}
    limits: {{message: 1KiB}}
    to: drop
  patients:
    from: {{mllp: {{listen: "127.0.0.1:{2}"}}}}
    to: drop
"""


async def asked(port: int, head: str, body: bytes) -> None:
    async with peer(Address("127.0.0.1", port)) as client:
        text = f"POST /in HTTP/1.1\r\nhost: x\r\n{head}content-length: {len(body)}\r\n\r\n"
        assert (await client.exchange(text.encode() + body)).status >= 400


async def written(port: int, data: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    async with asyncio.timeout(5):
        assert await reader.read(1)
    writer.close()


async def mistaken(port: int) -> None:
    async with connect(f"ws://127.0.0.1:{port}/live", proxy=None) as client, asyncio.timeout(5):
        await client.send('{"id": 7, "data": 1, "data_base64": "YQ=="}')
        assert "nack" in str(await client.recv())


async def test_what_is_refused_before_it_is_a_message_is_counted_and_told_with_its_route(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    http, tcp, mllp = free_port(), free_port(), free_port()
    json_type = "content-type: application/json\r\n"
    async with desk(tmp_path, DOORS.format(http, tcp, mllp)) as here:
        await asked(http, json_type, b"x" * 2000)
        await asked(http, "content-type: text/plain\r\n", b"{}")
        await asked(http, f"{json_type}content-encoding: br\r\n", b"{}")
        await mistaken(http)
        await written(tcp, b"x" * 3000)
        await written(mllp, framed(b"hunter2"))
        found = told(caplog, "message refused")
        assert [(one["route"], one["code"]) for one in found] == [
            ("web", "too_large"),
            ("web", "unsupported"),
            ("web", "unsupported"),
            ("live", "malformed"),
            ("lines", "too_large"),
            ("patients", "malformed"),
        ]
        assert all(one["peer"].startswith("127.0.0.1:") and one["reason"] for one in found)
        assert "hunter2" not in str(found)
        meters = here.app.services.observed.route("web")
        assert (meters.received, meters.refused) == (3, 3)


@pytest.mark.parametrize(
    ("reason", "logged"),
    [
        ('validate: body.pin is "1234 or so"; it is too long', "validate: body.pin is …; it is too long"),
        ('validate: body.n is "a\\"b"; {"const":"a"} is not allowed', "validate: body.n is …; {…:…} is not allowed"),
        (
            "priority: expected a whole number from 0 to 9, got 4711",
            "priority: expected a whole number from 0 to 9, got …",
        ),
        ("accept: the condition 'body.good' does not hold", "accept: the condition 'body.good' does not hold"),
        ('the target "crm" refused it with 422', 'the target "crm" refused it with 422'),
    ],
)
def test_values_of_bodies_are_not_in_the_log(reason: str, logged: str) -> None:
    assert without_values(reason) == logged
