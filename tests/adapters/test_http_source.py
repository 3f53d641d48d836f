"""Requests into messages, and outcomes into answers."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import pytest
from pydantic import ValidationError

from adapters.http import Source
from gateway import Limits, Message
from gateway.message import Accepted, Deferred, Outcome, Refused
from gateway.testing import FakeHost, Inbox, running, until
from tests.adapters.raw_http import Held, desk, peer, post

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def get(path: str, *, method: str = "GET", extra: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: gateway\r\n{extra}\r\n".encode()


def answers(**fields: Any) -> Any:
    def reply(message: Message) -> Outcome:
        return Accepted(message.id, Message(raw=b"<ok/>", content_type="application/xml", **fields))

    return reply


async def test_a_request_becomes_a_message() -> None:
    async with desk(path="/orders/{id}") as one:
        extra = f"Content-Type: text/plain\r\nIdempotency-Key: k-1\r\nTraceparent: {TRACE}\r\nX-Shop: 7\r\n"
        response = await one.ask(post(b"hello", path="/orders/a%20b?dry=yes", extra=extra))
        message = one.inbox.messages[0]
        assert response.status == 202
        assert response.headers["content-type"] == "application/json"
        assert json.loads(response.body) == {"id": message.id}
        assert (message.raw, message.content_type, message.type) == (b"hello", "text/plain", "http.message")
        assert (message.sender_id, message.traceparent) == ("k-1", TRACE)
        assert message.headers["x-shop"] == "7"
        transport = dict(message.transport)
        assert transport.pop("peer").startswith("127.0.0.1:")
        assert transport == {
            "method": "POST",
            "path": "/orders/a%20b",
            "params": {"id": "a b"},
            "query": {"dry": "yes"},
            "scheme": "http",
        }


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00-0",
        TRACE.upper(),
        "ff" + TRACE[2:],
        TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        TRACE + "-x",
    ],
)
async def test_a_trace_context_that_is_none_is_not_taken(value: str) -> None:
    async with desk() as one:
        await one.ask(post(extra=f"Traceparent: {value}\r\n"))
        assert one.inbox.messages[0].traceparent is None


async def test_a_body_without_content_type_is_json_unless_said_otherwise() -> None:
    async with desk() as one:
        await one.ask(post())
        assert one.inbox.messages[0].content_type == "application/json"
    async with desk(content_type="text/csv") as one:
        await one.ask(post(extra="Content-Type: text/plain\r\n"))
        assert one.inbox.messages[0].content_type == "text/csv"


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("Content-Type: application/json\r\n", 202),
        ("Content-Type: Application/JSON; charset=utf-8\r\n", 202),
        ("Content-Type: text/plain\r\n", 415),
        ("", 415),
    ],
)
async def test_a_source_may_name_the_content_types_that_it_takes(content_type: str, status: int) -> None:
    async with desk(content_types=["application/json"]) as one:
        response = await one.ask(post(extra=content_type))
        assert response.status == status
        if status == 415:
            assert json.loads(response.body)["detail"].endswith("expected application/json")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("refused", 422),
        ("malformed", 400),
        ("too_large", 413),
        ("unsupported", 415),
        ("unauthenticated", 401),
        ("forbidden", 403),
    ],
)
async def test_a_refusal_is_a_problem_with_its_reason(code: Any, status: int) -> None:
    async with desk(lambda message: Refused(message.id, "body.customer: expected text, got 7", code)) as one:
        response = await one.ask(post())
        assert response.status == status
        assert response.headers["content-type"] == "application/problem+json"
        assert ("www-authenticate" in response.headers) == (status == 401)
        found = json.loads(response.body)
        assert found.pop("title")
        assert found == {
            "type": "about:blank",
            "status": status,
            "detail": "body.customer: expected text, got 7",
            "code": code,
            "id": one.inbox.messages[0].id,
        }


async def test_our_own_bugs_are_not_told_to_the_sender() -> None:
    async with desk(lambda message: Refused(message.id, "KeyError in /opt/gateway/x.py", "internal")) as one:
        response = await one.ask(post())
        assert response.status == 500
        assert b"KeyError" not in response.body
        assert one.inbox.messages[0].id.encode() in response.body


@pytest.mark.parametrize(
    ("outcome", "status", "retry_after"),
    [
        (Deferred("id", "tcp 10.0.0.7:9100: connection refused", wait_s=2.1), 503, "3"),
        (Deferred("id", "full", wait_s=0.0), 503, "1"),
        (Deferred("id", "http://10.0.0.7: gone", answerless=True), 502, None),
        (Deferred("id", "http://10.0.0.7: slow", too_late=True, answerless=True), 504, None),
    ],
)
async def test_a_deferral_says_when_to_come_again_and_nothing_of_the_inside(
    outcome: Deferred, status: int, retry_after: str | None
) -> None:
    async with desk(lambda message: outcome) as one:
        response = await one.ask(post())
        assert response.status == status
        assert response.headers.get("retry-after") == retry_after
        assert b"10.0.0.7" not in response.body
        assert "id" not in json.loads(response.body)


async def test_the_reply_of_a_target_is_the_answer() -> None:
    async with desk(answers()) as one:
        response = await one.ask(post())
        assert (response.status, response.body) == (200, b"<ok/>")
        assert response.headers["content-type"] == "application/xml"


@pytest.mark.parametrize(
    ("status", "answered"), [(201, 201), (404, 404), (503, 503), (99, 200), ("200", 200), (700, 200)]
)
async def test_the_status_of_a_reply_is_passed_on(status: object, answered: int) -> None:
    async with desk(answers(transport={"status": status})) as one:
        assert (await one.ask(post())).status == answered


async def test_a_reply_that_can_not_be_written_is_a_bad_gateway() -> None:
    def split(message: Message) -> Outcome:
        return Accepted(message.id, Message(raw=b"x", content_type="text/plain\r\nSet-Cookie: a=b"))

    async with desk(split) as one:
        response = await one.ask(post())
        assert response.status == 502
        assert "set-cookie" not in response.headers


async def test_the_answer_may_be_written_by_hand() -> None:
    answer = {
        "status": 200,
        "body": "<ack id='{{ message.id }}' order='{{ body.id }}'/>",
        "content_type": "application/xml",
        "headers": {"Location": "/orders/{{ body.id }}"},
    }
    async with desk(answer=answer) as one:
        response = await one.ask(post(b'{"id": "A1"}'))
        assert response.status == 200
        assert response.headers["content-type"] == "application/xml"
        assert response.headers["location"] == "/orders/A1"
        assert response.body.decode() == f"<ack id='{one.inbox.messages[0].id}' order='A1'/>"


async def test_an_answer_that_can_not_be_written_is_still_an_acceptance() -> None:
    async with desk(answer={"body": "{{ body.nothing }}", "headers": {"X-Name": "{{ body.name }}"}}) as one:
        response = await one.ask(post(b'{"id": "A1"}'))
        assert (response.status, json.loads(response.body)) == (202, {"id": one.inbox.messages[0].id})


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(b"hello" * 9)),
        ("X-GZip", gzip.compress(b"hello" * 9)),
        ("deflate", zlib.compress(b"hello" * 9)),
        ("deflate", zlib.compress(b"hello" * 9, wbits=-15)),
        ("identity", b"hello" * 9),
    ],
)
async def test_a_compressed_body_is_taken_as_it_was(encoding: str, packed: bytes) -> None:
    async with desk() as one:
        response = await one.ask(post(packed, extra=f"Content-Encoding: {encoding}\r\n"))
        assert response.status == 202
        assert one.inbox.messages[0].raw == b"hello" * 9
        assert "content-encoding" not in one.inbox.messages[0].headers


@pytest.mark.parametrize(("size", "status"), [(8 * 65536, 202), (8 * 65536 + 1, 413)], ids=["at the limit", "over it"])
async def test_a_body_may_be_eight_times_its_limit_once_decompressed(size: int, status: int) -> None:
    limits = Limits.model_validate({"message": "64KiB", "decompressed_ratio": 10_000})
    async with desk(limits=limits) as one:
        packed = gzip.compress(b"\0" * size)
        assert (await one.ask(post(packed, extra="Content-Encoding: gzip\r\n"))).status == status


async def test_a_body_may_not_grow_by_more_than_the_ratio() -> None:
    async with desk() as one:
        bomb = gzip.compress(b"\0" * 4_000_000)
        response = await one.ask(post(bomb, extra="Content-Encoding: gzip\r\n"))
        assert response.status == 413
        assert b"(100 times its size, limits.decompressed_ratio)" in response.body
        assert one.inbox.messages == []


@pytest.mark.parametrize("broken", [b"", gzip.compress(b"hello")[:-1], gzip.compress(b"hello") + b"x", b"plain"])
async def test_a_compressed_body_that_is_not_whole_is_malformed(broken: bytes) -> None:
    async with desk() as one:
        assert (await one.ask(post(broken, extra="Content-Encoding: gzip\r\n"))).status == 400


async def test_outcomes_may_come_in_any_order_and_answers_keep_theirs() -> None:
    held = Held()
    async with desk(held, path="/orders/{id}", methods=["GET"]) as one, peer(one.address) as client:
        await client.send(b"".join(get(f"/orders/{index}") for index in range(3)))
        await until(lambda: len(held.waiting) == 3)
        for message, future in reversed(held.waiting):
            body = message.transport["params"]["id"].encode()
            future.set_result(Accepted(message.id, Message(raw=body)))
        assert [(await client.response()).body for _ in range(3)] == [b"0", b"1", b"2"]


async def test_a_thousand_connections_are_all_answered() -> None:
    async with desk() as one:

        async def ask() -> int:
            async with peer(one.address) as client:
                return (await client.exchange(post())).status

        assert set(await asyncio.gather(*(ask() for _ in range(1000)))) == {202}


async def test_a_source_that_is_cancelled_sends_its_senders_away() -> None:
    held = Held()
    async with desk(held) as one, peer(one.address) as client:
        await client.send(post())
        await until(lambda: held.waiting)
        one.task.cancel()
        response = await client.response()
        assert response.status == 503
        assert "retry-after" in response.headers


async def test_two_routes_share_one_listener() -> None:
    async with desk() as one:
        host = one.host
        other = Source.model_validate({"listen": one_listen(one), "path": "/returns"})
        inbox = Inbox(host)
        async with running(other, inbox, host):
            assert (await one.ask(post(path="/returns"))).status == 202
            assert (await one.ask(post())).status == 202
            assert (len(inbox.messages), len(one.inbox.messages)) == (1, 1)
        assert (await one.ask(post())).status == 202


def one_listen(one: Any) -> str:
    # The shared listener was asked for port 0: equal settings find it again.
    assert one.address.port
    return "127.0.0.1:0"


async def test_a_source_tells_its_senders() -> None:
    assert Source.model_validate({"listen": "127.0.0.1:0"}).answers


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"path": "orders"}, "expected a path such as /orders"),
        ({"path": "/a/{x}/{x}"}, "a parameter may stand in a path once"),
        ({"path": "/a/x-{x}"}, "a segment is plain text or one {parameter}"),
        ({"path": "/a?b"}, "without query"),
        ({"methods": []}, "at least 1 item"),
        ({"methods": ["FETCH"]}, "'GET'"),
        ({"content_types": ["json"]}, "expected a content type without parameters"),
        ({"content_types": ["text/plain; charset=utf-8"]}, "expected a content type without parameters"),
        ({"answer": {"status": 404}}, "less than or equal to 299"),
        ({"answer": {"headers": {"Content-Type": "text/plain"}}}, "write content_type:"),
        ({"listen": "x"}, "listen"),
    ],
)
def test_wrong_settings_are_complained_about(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError) as error:
        Source.model_validate({"listen": "127.0.0.1:0", **settings})
    assert complaint in str(error.value)


async def test_a_route_with_a_larger_limit_takes_larger_bodies_on_a_shared_listener() -> None:
    async with desk(limits=Limits.model_validate({"message": "10B"})) as one:
        # The host of the second route has limits of its own; its share is that of the first.
        roomy = FakeHost(limits=Limits.model_validate({"message": "100B"}))
        roomy.share = one.host.share  # type: ignore[method-assign]
        source = Source.model_validate({"listen": "127.0.0.1:0", "path": "/large"})
        async with running(source, Inbox(roomy), roomy):
            assert (await one.ask(post(b"x" * 100, path="/large"))).status == 202
            assert (await one.ask(post(b"x" * 101, path="/large"))).status == 413
            assert (await one.ask(post(b"x" * 11))).status == 413
