"""A websocket source that answers: acknowledgements by id, and replies in the order of receipt."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from adapters.websocket import Source
from gateway import Accepted, Deferred, Limits, Message, Outcome, Refused
from gateway.testing import ManualClock, until
from tests.adapters.raw_http import Held
from tests.adapters.raw_websocket import TEXT, close_code, ears, frame, raw


async def said(client: ClientConnection) -> Any:
    async with asyncio.timeout(5):
        return json.loads(await client.recv())


def envelope(id: object, data: object = None) -> str:
    return json.dumps({"id": id, "data": data})


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        pytest.param(Accepted("m"), {"ack": "7"}, id="accepted"),
        pytest.param(
            Refused("m", "body.total: not a number"),
            {"nack": "7", "reason": "body.total: not a number", "code": "refused"},
            id="refused",
        ),
        pytest.param(
            Refused("m", "KeyError in /srv/x.py", "internal"),
            {
                "nack": "7",
                "reason": "the gateway failed on this message; its operator finds why by the id",
                "code": "internal",
            },
            id="a bug of ours, of which nothing is said",
        ),
        pytest.param(Deferred("m", "erp-7 is away", 2.0, too_late=True), {"retry": "7", "after_s": 2}, id="too late"),
        pytest.param(
            Deferred("m", "erp-7 is away", 0.5, answerless=True), {"retry": "7", "after_s": 0.5}, id="a target is away"
        ),
    ],
)
async def test_each_outcome_has_its_answer(outcome: Outcome, expected: object) -> None:
    async with ears(lambda _: outcome, confirm=True) as one, one.client() as client:
        for _ in range(2):
            await client.send(envelope("7", {"total": "x"}))
            assert await said(client) == expected
        assert one.inbox.messages[0].body == b'{"total": "x"}'
        assert one.inbox.messages[0].sender_id == "7"


async def test_answers_come_when_the_outcome_is_known_and_not_before() -> None:
    held = Held()
    async with ears(held, confirm=True) as one, one.client() as client:
        for number in range(5):
            await client.send(envelope(number))
        await until(lambda: len(held.waiting) == 5)
        for number in (3, 0, 4, 2, 1):
            message, outcome = held.waiting[number]
            outcome.set_result(Accepted(message.id))
            assert await said(client) == {"ack": number}


async def test_what_is_no_envelope_is_acknowledged_by_our_id_and_its_number() -> None:
    async with ears(confirm=True) as one, one.client() as client:
        await client.send('{"any": "JSON"}')
        await client.send(envelope("mine"))
        await client.send(b"\x00\xff")
        answers = [await said(client) for _ in range(3)]
        first, _, third = one.inbox.messages
        assert answers == [{"ack": first.id, "number": 1}, {"ack": "mine"}, {"ack": third.id, "number": 3}]
        assert first.body == b'{"any": "JSON"}'
        assert first.sender_id is None
        assert third.body == b"\x00\xff"


async def test_an_envelope_carries_what_json_can_not() -> None:
    async with ears(confirm=True, content_type="application/hl7-v2") as one, one.client() as client:
        await client.send(envelope("1", "MSH|^~\\&|"))
        await client.send('{"id": "2", "data_base64": "TVNI/w=="}')
        await client.send(envelope("3", {"no": "text"}))
        answers = {str(answer): answer for answer in [await said(client) for _ in range(3)]}.values()
        assert {"ack": "1"} in answers
        assert {"ack": "2"} in answers
        assert [answer["code"] for answer in answers if "nack" in answer] == ["malformed"]
        assert [message.body for message in one.inbox.messages] == [b"MSH|^~\\&|", b"MSH\xff"]
        assert {message.content_type for message in one.inbox.messages} == {"application/hl7-v2"}


async def test_a_long_id_is_cut_in_its_refusal() -> None:
    async with ears(confirm=True) as one, one.client() as client:
        await client.send(envelope("x" * 100_000))
        answer = await said(client)
        assert answer["nack"] == "x" * 200
        assert one.inbox.messages == []


async def test_a_gateway_that_can_take_nothing_says_so_and_closes_with_1013() -> None:
    held = Held()
    async with ears(held, confirm=True) as one, one.client() as client:
        for number in range(3):
            await client.send(envelope(str(number)))
        await until(lambda: len(held.waiting) == 3)
        held.waiting[1][1].set_result(Deferred("m", "the journal in /var/gw is full", 5.0))
        assert await said(client) == {"retry": "1", "after_s": 5}
        await client.send(envelope("late"))
        for number in (0, 2):
            held.waiting[number][1].set_result(Accepted("m"))
            assert await said(client) == {"ack": str(number)}
        assert await close_code(client) == 1013
        assert len(held.waiting) == 3


async def test_replies_come_beside_the_ack() -> None:
    def reply(message: Message) -> Accepted:
        if message.body == b"1":
            return Accepted(message.id, Message(raw=b'{"total": 1.50}'))
        if message.body == b"2":
            return Accepted(message.id, Message(raw=b"\x00\xff", content_type="application/octet-stream"))
        if message.body == b"3":
            return Accepted(message.id, Message(raw=b"{broken"))
        return Accepted(message.id, Message(raw="grün".encode(), content_type="text/plain"))

    async with ears(reply, confirm=True) as one, one.client() as client:
        for number in range(1, 5):
            await client.send(envelope(number, number))
        assert [await said(client) for _ in range(4)] == [
            {"ack": 1, "data": {"total": 1.5}},
            {"ack": 2, "data_base64": "AP8="},
            {"ack": 3},
            {"ack": 4, "data": "grün"},
        ]


async def test_without_ids_replies_come_in_the_order_of_receipt() -> None:
    held = Held()
    outcomes: list[Outcome] = [
        Accepted("m", Message(raw=b'{"n": 0}')),
        Refused("m", "no such order"),
        Accepted("m", Message(raw=b"\x00\xff", content_type="application/octet-stream")),
        Accepted("m"),
        Deferred("m", "erp-7 is away", 2.0, answerless=True),
        Deferred("m", "erp-7 is away", 2.0, too_late=True),
        Deferred("m", "the route is full", 1.0),
    ]
    async with ears(held, reply=True) as one, one.client() as client:
        for number in range(len(outcomes)):
            await client.send(str(number))
        await until(lambda: len(held.waiting) == len(outcomes))
        for number in reversed(range(len(outcomes))):
            held.waiting[number][1].set_result(outcomes[number])
        again = "no answer now; try again"
        async with asyncio.timeout(5):
            assert [await client.recv() for _ in outcomes] == [
                '{"n": 0}',
                '{"error":"no such order","code":"refused"}',
                b"\x00\xff",
                "",
                f'{{"error":"{again}","code":"answerless","after_s":2}}',
                f'{{"error":"{again}","code":"too_late","after_s":2}}',
                f'{{"error":"{again}","code":"busy","after_s":1}}',
            ]
        assert await close_code(client) == 1013


async def test_a_plain_client_is_told_nothing_but_a_reply() -> None:
    outcomes: dict[bytes, Outcome] = {
        b"1": Accepted("m"),
        b"2": Refused("m", "no"),
        b"3": Accepted("m", Message(raw=b"[3]")),
    }
    async with ears(lambda message: outcomes[message.body]) as one, one.client() as client:
        for number in (1, 2, 3):
            await client.send(str(number))
        assert await said(client) == [3]


async def test_a_plain_message_that_is_deferred_is_delivered_again_by_ourselves() -> None:
    clock = ManualClock()
    tries: list[float] = []

    def outcome(message: Message) -> Outcome:
        tries.append(clock.time())
        return Accepted(message.id) if len(tries) == 3 else Deferred(message.id, "away", 7.0)

    async with ears(outcome, clock=clock) as one, one.client() as client:
        began = clock.time()
        await client.send("{}")
        for count in (1, 2):
            await until(lambda count=count: len(tries) == count)  # type: ignore[misc]
            await clock.advance(7.0)
        await until(lambda: len(tries) == 3)
        assert tries == [began, began + 7, began + 14]


async def test_work_goes_on_when_its_sender_has_left() -> None:
    held = Held()
    async with ears(held, confirm=True) as one:
        async with raw(one.address) as client:
            await client.send(frame(TEXT, b'{"id":"1","data":1}') * 3)
            await until(lambda: len(held.waiting) == 3)
        await until(lambda: not one.listening.connections)
        assert not any(outcome.cancelled() for _, outcome in held.waiting)
        for message, outcome in held.waiting:
            outcome.set_result(Accepted(message.id))
        async with one.client() as client2:
            await client2.send(envelope("2"))
            await until(lambda: len(held.waiting) == 4)
            held.waiting[3][1].set_result(Accepted("m"))
            assert await said(client2) == {"ack": "2"}


async def test_a_peer_that_reads_no_answers_is_not_read_and_then_closed() -> None:
    limits = Limits.model_validate({"frame": "1s", "message": "64KiB"})
    reply = Message(raw=b'"' + b"x" * 60_000 + b'"')
    async with (
        ears(lambda message: Accepted(message.id, reply), confirm=True, limits=limits) as one,
        raw(one.address) as client,
    ):
        client.link.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.link.writer.write(frame(TEXT, b'{"id":"1","data":1}') * 2000)
        await until(lambda: not one.listening.connections)
        assert len(one.inbox.messages) < 1000


async def test_answers_says_whether_senders_hear_the_outcome() -> None:
    def source(**settings: Any) -> Source:
        return Source.model_validate({"listen": "127.0.0.1:0", **settings})

    assert not source().answers
    assert source().at_most_once
    for settings in ({"confirm": True}, {"reply": True}):
        assert source(**settings).answers
        assert source(**settings).at_most_once is None
