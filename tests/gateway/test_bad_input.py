"""Bodies that nobody wants, over real sockets into a whole gateway: each is refused clearly, and nobody else notices."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from gateway import Address
from tests.adapters.raw_http import peer
from tests.playground import Playground

ROUTES = """\
version: 1
gateway: {data: ./var}
routes:
"""
NEIGHBOUR = """\
  neighbour:
    from: {http: {listen: "127.0.0.1:8081", path: /neighbour}}
    accept: [{filter: body.n == 1}]
    to: drop
"""


def taking(kind: str, port: int) -> str:
    """A route that takes one format over HTTP, TCP and WebSocket."""
    return f"""\
  {kind}:
    from:
      - http: {{listen: "127.0.0.1:8081", path: /{kind}, content_type: application/{kind}}}
      - tcp: {{listen: "127.0.0.1:{port}", answer: {{}}, content_type: application/{kind}}}
      - websocket:
          {{listen: "127.0.0.1:8081", path: /ws/{kind}, confirm: true, content_type: application/{kind}}}
    accept: [{{parse: {kind}}}]
    limits: {{message: 4MiB}}
    to: drop
"""


Say = Callable[[bytes], Awaitable[tuple[str, str]]]
"""Sends a body; gives `ok` or the code of the refusal, and all that was said."""


def framed(body: bytes, path: str, more: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: gateway\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@asynccontextmanager
async def over_http(place: Playground, kind: str) -> AsyncIterator[Say]:
    async with peer(Address("127.0.0.1", place.port(8081))) as client:

        async def say(body: bytes) -> tuple[str, str]:
            answer = await client.exchange(framed(body, f"/{kind}"))
            said = json.loads(answer.body)
            if answer.status == 202:
                return "ok", answer.body.decode()
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.status == {"malformed": 400, "too_large": 413}[said["code"]]
            return said["code"], answer.body.decode()

        yield say


@asynccontextmanager
async def over_tcp(place: Playground, kind: str) -> AsyncIterator[Say]:
    async with peer(Address("127.0.0.1", place.port(PORTS[kind]))) as client:

        async def say(body: bytes) -> tuple[str, str]:
            await client.send(body + b"\n")
            async with asyncio.timeout(5):
                said = (await client.reader.readline()).decode()
            # TCP's answers have a reason and no code.
            return "ok" if said.startswith("OK ") else "malformed", said

        yield say


@asynccontextmanager
async def over_websocket(place: Playground, kind: str) -> AsyncIterator[Say]:
    async with connect(f"ws://127.0.0.1:{place.port(8081)}/ws/{kind}", proxy=None, compression=None) as client:

        async def say(body: bytes) -> tuple[str, str]:
            await client.send(body)
            async with asyncio.timeout(5):
                said = str(await client.recv())
            answer = json.loads(said)
            return ("ok" if "ack" in answer else answer["code"]), said

        yield say


PORTS = {"json": 9101, "xml": 9102}
BAD = {
    "json": [
        b"",
        b'{"id": ',
        b"{} {}",
        b"{'id': 1}",
        b"[" * 65 + b"]" * 65,
        b"[" * 400_000,
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b'{"n": NaN}',
        b'{"n": -Infinity}',
        b"9" * 401,
        b"1e401",
        b"-1e-999999999999",
        b'"' + b"x" * (1024**2 + 1) + b'"',
        b'{"a": "\xff\xfe"}',
        b'"\\ud800"',
        b'{"a": 1, "a": 2}',
        b"\x00\x01\x02",
        "{}".encode("utf-16"),
    ],
    "xml": [
        b"",
        b"<a><b></a>",
        b"<a>&nbsp;</a>",
        b"<!DOCTYPE a><a/>",
        b'<!DOCTYPE a [<!ENTITY b "b">]><a>&b;</a>',
        b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
        b'<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd"><a/>',
        b'<!DOCTYPE l [<!ENTITY a "lollollol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;">'
        b"]><l>&c;&c;&c;&c;</l>",
        b"<a>" * 65 + b"</a>" * 65,
        b"<a>" * 100_000,
        b"<a>" + b"<b/>" * 100_000 + b"</a>",
        b"<a " + b" ".join(b"n%d='1'" % number for number in range(129)) + b"/>",
        b"<a>\xff</a>",
        b"<a>\x00</a>",
        b"<a/><b/>",
        b"<?xml version='1.0' encoding='no-such'?><a/>",
    ],
}
AT_THE_LIMIT = {
    "json": [b"[" * 64 + b"]" * 64, b"9" * 400, b"1e399", b'"' + b"x" * 1024**2 + b'"'],
    "xml": [
        b"<a>" * 64 + b"</a>" * 64,
        b"<a>" + b"<b/>" * 99_999 + b"</a>",
        b"<a " + b" ".join(b"n%d='1'" % number for number in range(128)) + b"/>",
    ],
}
INSIDE = ("Traceback", "Error", 'File "', ".py", "msgspec", "lxml", "pydantic", "etc/passwd", "0x7f")
"""What would say something of the inside."""


@pytest.mark.parametrize("kind", ["json", "xml"])
@pytest.mark.parametrize("over", [over_http, over_tcp, over_websocket], ids=["http", "tcp", "websocket"])
async def test_each_bad_body_is_refused_clearly_and_nobody_else_notices(
    over: Callable[[Playground, str], Callable[[], AsyncIterator[Say]]],
    kind: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = Playground(tmp_path)
    text = ROUTES + taking("json", PORTS["json"]) + taking("xml", PORTS["xml"]) + NEIGHBOUR
    (tmp_path / "routes.yaml").write_text(place.mapped(text))
    async with (
        place.running("routes.yaml"),
        peer(Address("127.0.0.1", place.port(8081))) as neighbour,
        over(place, kind) as say,  # type: ignore[attr-defined]
    ):
        for good in AT_THE_LIMIT[kind]:
            code, said = await say(good)
            assert code == "ok", f"{good[:40]!r}: {said[:200]}"
        for bad in BAD[kind]:
            code, said = await say(bad)
            assert code == "malformed", f"{bad[:40]!r}: {said[:200]}"
            assert f"{kind}: " in said
            assert len(said) < 400
            assert [word for word in (*INSIDE, str(tmp_path)) if word in said] == []
            assert (await neighbour.exchange(framed(b'{"n": 1}', "/neighbour"))).status == 202
        assert (await say(AT_THE_LIMIT[kind][0]))[0] == "ok"
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


LIMITED = """\
  zipped:
    from: {http: {listen: "127.0.0.1:8081", path: /zipped}}
    limits: {message: 1000B, decompressed_ratio: 5}
    to: drop
  written:
    from: {http: {listen: "127.0.0.1:8081", path: /written}}
    ack: delivered
    limits: {template_output: 100B}
    steps: [{template: "{{ body.text }}"}]
    to: drop
  typed:
    from: {http: {listen: "127.0.0.1:8081", path: /typed, content_types: [application/json]}}
    to: drop
"""
INCOMPRESSIBLE = bytes((at * at * 7 + at) % 251 for at in range(600))
ZIP = "Content-Encoding: gzip\r\n"
JSON = "Content-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("path", "body", "more", "status"),
    [
        pytest.param("/zipped", gzip.compress(INCOMPRESSIBLE), ZIP, 202, id="as large as it looks"),
        pytest.param("/zipped", gzip.compress(bytes(100_000)), ZIP, 413, id="a bomb"),
        pytest.param("/zipped", gzip.compress(bytes(1000))[:-4], ZIP, 413, id="a bomb that is cut"),
        pytest.param("/zipped", gzip.compress(INCOMPRESSIBLE)[:-4], ZIP, 400, id="cut"),
        pytest.param("/zipped", b"{}", "Content-Encoding: br\r\n", 415, id="an encoding that is not taken"),
        pytest.param("/written", b'{"text": "%b"}' % (b"x" * 100), JSON, 202, id="as much as a template may write"),
        pytest.param("/written", b'{"text": "%b"}' % (b"x" * 101), JSON, 422, id="a byte more"),
        pytest.param("/typed", b"{}", JSON, 202, id="the type that is taken"),
        pytest.param("/typed", b"{}", "Content-Type: text/plain\r\n", 415, id="another type"),
        pytest.param("/typed", b"{}", "", 415, id="no type"),
        pytest.param("/written", b"%PDF-1.7", "Content-Type: application/pdf\r\n", 415, id="a type without a format"),
    ],
)
async def test_limits_and_types_of_a_route_hold_over_a_socket(
    path: str, body: bytes, more: str, status: int, tmp_path: Path
) -> None:
    place = Playground(tmp_path)
    (tmp_path / "routes.yaml").write_text(place.mapped(ROUTES + LIMITED + NEIGHBOUR))
    async with place.running("routes.yaml"):
        async with peer(Address("127.0.0.1", place.port(8081))) as client:
            answer = await client.exchange(framed(body, path, more))
            assert answer.status == status, answer.body
        async with peer(Address("127.0.0.1", place.port(8081))) as neighbour:
            assert (await neighbour.exchange(framed(b'{"n": 1}', "/neighbour"))).status == 202
