from __future__ import annotations

import pytest

from gateway import Accepted, Deferred, Message, Outcome, Refused
from tests.adapters.test_mllp import adt, framed, talking


@pytest.mark.parametrize(
    ("accept", "application", "good", "bad"),
    [
        ("AL", "NE", ["CA"], ["CE"]),
        ("AL", "AL", ["CA", "AA"], ["CE"]),
        ("AL", "ER", ["CA"], ["CE"]),
        ("AL", "", ["CA"], ["CE"]),
        ("ER", "NE", [], ["CE"]),
        ("SU", "SU", ["CA", "AA"], []),
        ("SU", "ER", ["CA"], ["AE"]),
        ("NE", "AL", ["AA"], ["AE"]),
        ("", "AL", ["AA"], ["AE"]),
        ("NE", "NE", [], []),
        ("", "", ["AA"], ["AE"]),
        ('""', '""', ["AA"], ["AE"]),
        ("Y", "", ["AA"], ["AE"]),
        ("Y", "AL", ["AA"], ["AE"]),
    ],
)
async def test_enhanced_mode_answers_what_msh_15_and_16_ask(
    accept: str, application: str, good: list[str], bad: list[str]
) -> None:
    def outcome(message: Message) -> Outcome:
        return Refused(message.id, "wrong") if message.sender_id == "BAD" else Accepted(message.id)

    modes = f"|||{accept}|{application}"
    async with talking(outcome) as (peer, _, _):
        peer.send(framed(adt("GOOD", modes=modes)) + framed(adt("BAD", modes=modes)) + framed(adt("END")))
        expected = [(code, "GOOD") for code in good] + [(code, "BAD") for code in bad]
        assert await peer.codes(len(expected) + 1) == [*expected, ("AA", "END")]


async def test_both_answers_of_enhanced_mode_have_an_id_of_their_own() -> None:
    async with talking() as (peer, _, _):
        peer.send(framed(adt(modes="|||AL|AL")))
        ids = {(await peer.answer()).split(b"|")[9] for _ in range(2)}
    assert len(ids) == 2


async def test_what_is_not_taken_now_is_rejected_in_enhanced_mode() -> None:
    async with talking(lambda message: Deferred(message.id, "full")) as (peer, _, _):
        peer.send(framed(adt(modes="|||AL|AL")))
        assert await peer.codes(1) == [("CR", "MSG1")]


async def test_enhanced_mode_can_be_switched_off() -> None:
    async with talking(enhanced=False) as (peer, _, _):
        peer.send(framed(adt(modes="|||AL|NE")))
        assert await peer.codes(1) == [("AA", "MSG1")]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Message(raw=b"MSH|^~\\&|X\rMSA|AE|MSG1|theirs\r"), b"MSH|^~\\&|X\rMSA|AE|MSG1|theirs\r"),
        (Message(raw=b'{"ok": true}'), b"\rMSA|AA|MSG1\r"),
        (Message(raw=b"", transport={"status": 302}), b"\rMSA|AR|MSG1|the target answered 302\r"),
        (Message(raw=b"{}", transport={"status": 422}), b"\rMSA|AE|MSG1|the target answered 422\r"),
        (Message(raw=b"{}", transport={"status": 503}), b"\rMSA|AR|MSG1|the target answered 503\r"),
        (Message(raw=b"MSH|^~\\&|\x1c"), b"\rMSA|AR|MSG1|the target's reply can't be said here"),
        (Message(parsed=[], content_type="application/hl7-v2"), b"\rMSA|AR|MSG1|the target's reply can't be said here"),
    ],
    ids=["hl7", "json", "302", "422", "503", "delimiter", "unwritable"],
)
async def test_a_reply_is_the_acknowledgement_when_it_is_one(reply: Message, expected: bytes) -> None:
    async with talking(lambda message: Accepted(message.id, reply)) as (peer, _, _):
        peer.send(framed(adt()))
        assert expected in await peer.answer()


@pytest.mark.parametrize(("application", "codes"), [("AL", ["CA", "AE"]), ("ER", ["CA", "AE"]), ("SU", ["CA"])])
async def test_a_target_that_answers_with_an_error_is_heard_by_who_asked_for_errors(
    application: str, codes: list[str]
) -> None:
    reply = Message(raw=b"MSH|^~\\&|X\rMSA|AE|MSG1|theirs\r")
    async with talking(lambda message: Accepted(message.id, reply)) as (peer, _, _):
        peer.send(framed(adt(modes=f"|||AL|{application}")) + framed(b"end"))
        answers = [*((code, "MSG1") for code in codes), ("AR", "")]
        assert await peer.codes(len(answers)) == answers


async def test_a_stored_message_has_its_application_acknowledgement_once_it_is_delivered_or_dead() -> None:
    settled: dict[str, Outcome | None] = {}

    def outcome(message: Message) -> Outcome:
        ends = {"GOOD": Accepted(message.id), "DEAD": Refused(message.id, "the target refused it"), "LATE": None}
        settled[message.id] = ends.get(message.sender_id or "")
        return Accepted(message.id, stored=True)

    async with talking(outcome) as (peer, _, host):
        host.outcomes = settled
        for name in ("GOOD", "DEAD", "LATE"):
            peer.send(framed(adt(name, modes="|||AL|AL")))
        assert sorted(await peer.codes(5)) == [
            ("AA", "GOOD"), ("AE", "DEAD"), ("CA", "DEAD"), ("CA", "GOOD"), ("CA", "LATE"),
        ]  # fmt: skip


async def test_a_stored_message_whose_sender_wants_no_more_has_its_commit_acknowledgement_alone() -> None:
    async with talking(lambda message: Accepted(message.id, stored=True)) as (peer, _, _):
        peer.send(framed(adt("ONE", modes="|||AL|NE")) + framed(adt("TWO", modes="")))
        assert await peer.codes(2) == [("CA", "ONE"), ("AA", "TWO")]
