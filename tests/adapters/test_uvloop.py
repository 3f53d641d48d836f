"""Each adapter with sockets of its own, on each loop that the gateway may run on: uvloop, or asyncio's without it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway import Address, ListenAt, ServerTls
from gateway.registry import component
from gateway.testing import FakeHost, Inbox, arriving, opened, running
from tests.certificates import Authority

HL7 = b"MSH|^~\\&|A|B|C|D|20240131||ADT^A01|M1|P|2.5\rPID|1||4711\r"
ENDS: dict[str, tuple[str, dict[str, Any], dict[str, Any], bytes]] = {
    "tcp": ("tcp", {"answer": {}}, {"connect": "{at}", "reply": {"accepted": "OK*"}}, b"order"),
    "tcp without replies": ("tcp", {}, {"connect": "{at}"}, b"order"),
    "mllp": ("mllp", {}, {"connect": "{at}"}, HL7),
    "mllp, each on its own": ("mllp", {}, {"connect": "{at}", "keep_open": False}, HL7),
    "websocket": ("websocket", {"confirm": True}, {"url": "ws://{at}/", "confirm": True}, b"[1]"),
    "websocket without answers": ("websocket", {}, {"url": "ws://{at}/"}, b"[1]"),
    "http": ("http", {"path": "/"}, {"url": "http://{at}/"}, b"[1]"),
}


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", ENDS)
def test_what_a_sink_sends_a_source_takes_and_answers(
    tmp_path: Path, kind: str, secure: bool, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    word, taking, sending, body = ENDS[kind]
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        at = Address("127.0.0.1", probe.getsockname()[1])
    tls = ServerTls(certificate=pair.certificate, private_key=pair.private_key) if secure else None
    where = {name: value.format(at=at) if isinstance(value, str) else value for name, value in sending.items()}
    if secure:
        where["tls"] = {"ca": str(authority.ca)}
        if "url" in where:
            where["url"] = where["url"].replace("://", "s://")
    source: Any = component("Source", word).model_validate({"listen": ListenAt(at, tls), **taking})
    sink: Any = component("Sink", word).model_validate(where)

    async def work() -> None:
        host = FakeHost()
        inbox = Inbox(host)
        async with asyncio.timeout(10), running(source, inbox, host), opened(sink, host) as send:
            for _ in range(3):
                await send(arriving(host, body))
            assert [message.body for message in await inbox.wait(3)] == [body] * 3

    run(work())
