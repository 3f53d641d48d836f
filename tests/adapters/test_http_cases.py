"""Requests, byte by byte, and what they are answered: tests/cases/http.

A case is the request, a line of dashes, and the response. Lines end in CR LF; `\\c` at the end of one: they don't;
`\\r`, `\\n`, `\\t` and `\\xNN` are those bytes. In responses the message id is {id}.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import uvloop

from gateway import Message, Outcome
from gateway.message import Accepted
from tests.adapters.raw_http import desk, peer

CASES = Path(__file__).parent.parent / "cases" / "http"
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def wire(text: str) -> bytes:
    joined = "".join(line[:-2] if line.endswith("\\c") else f"{line}\r\n" for line in text.split("\n"))
    escaped = re.sub(r"\\(r|n|t|x[0-9a-f]{2})", lambda found: _bytes_of(found[1]), joined)
    return escaped.encode("latin-1")


def _bytes_of(name: str) -> str:
    return {"r": "\r", "n": "\n", "t": "\t"}.get(name) or chr(int(name[1:], 16))


def shown(response: bytes) -> str:
    return ID.sub("{id}", response.decode("latin-1")).replace("\r\n", "\n")


def safe(message: Message) -> Outcome:
    return Accepted(message.id)


ALL = sorted(CASES.glob("*.txt"))


async def check(case: Path) -> None:
    request, _, expected = case.read_text(encoding="latin-1").partition("\n-----\n")
    async with (
        desk(safe, path="/orders/{id}", methods=["POST", "GET"]) as one,
        peer(one.address) as client,
    ):
        await client.send(wire(request))
        assert shown(await client.rest()) == expected.removesuffix("\n")
        # The same process serves the next one.
        assert (await one.ask(b"GET /orders/1 HTTP/1.1\r\nHost: gateway\r\n\r\n")).status == 202


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.stem)
async def test_what_a_request_is_answered(case: Path) -> None:
    await check(case)


def test_uvloop_gives_the_same_answers() -> None:
    async def check_all() -> None:
        for case in ALL:
            await check(case)

    uvloop.run(check_all())
