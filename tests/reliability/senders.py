"""The checker's senders over HTTP and TCP: each sends one message after the other and notes what it is told."""

from __future__ import annotations

import asyncio
import json
import random
import string
from collections.abc import Callable

from tests.reliability.ledger import Ledger, Sent

ANSWER_S = 20.0
"""How long a sender waits for an answer before it gives the connection up."""
AGAIN_S = 0.02
"""How long a sender waits before it connects again."""


class Sender:
    """One connection of one key after another. `run` until cancelled; it survives everything that the gateway does."""

    def __init__(self, name: str, route: str, port: int, ledger: Ledger, luck: random.Random, *, keyed: bool) -> None:
        self.name = name
        self.route = route
        self.port = port
        self.ledger = ledger
        self.luck = luck
        self.number = 0
        self.pause_s = 0.0
        """Between two messages."""
        self.told: Callable[[str], None] = lambda _text: None
        """Called with each answer that is not yes."""
        self.text: str | None = None
        """What is in each body; None: something random."""
        self._key = name if keyed else None

    def next(self) -> tuple[Sent, bytes]:
        """The next message, noted."""
        self.number += 1
        uid = f"{self.name}-{self.number}"
        body = payload(uid, self._key or "none", self.number, self.luck, self.text)
        return self.ledger.sending(uid, self.route, self._key, self.number, body), body

    async def run(self) -> None:
        """Sends until cancelled."""
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(AGAIN_S)
                continue
            try:
                while True:
                    await self.send_one(reader, writer)
                    if self.pause_s:
                        await asyncio.sleep(self.pause_s)
            except (OSError, EOFError, ValueError, RuntimeError):  # uvloop says the last of a write too late
                await asyncio.sleep(AGAIN_S)
            finally:
                writer.transport.abort()

    async def send_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Sends one message and notes the answer."""
        raise NotImplementedError


def payload(uid: str, key: str, number: int, luck: random.Random, text: str | None = None) -> bytes:
    """A body of random size: small ones mostly, some of tens of KiB, with signs that break what is not careful."""
    size = luck.choice((0, 40, 300, 300, 500, 2_000, 2_000, 40_000 if luck.random() < 0.1 else 500))
    if text is None:
        text = "".join(luck.choices(string.printable + "äß€漢\u2028\u0000😀", k=min(size, 400))) * max(1, size // 400)
    return json.dumps({"uid": uid, "key": key, "number": number, "text": text}, ensure_ascii=False).encode()


class HttpSender(Sender):
    """POSTs; 202 is an acknowledgement."""

    in_halves = False
    """Whether half of each body goes out before the other half."""

    async def send_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        entry, body = self.next()
        head = f"POST /{self.route} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\ncontent-type: application/json\r\n"
        whole = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        if self.in_halves:
            half = len(whole) - len(body) // 2
            writer.write(whole[:half])
            await writer.drain()
            await asyncio.sleep(0.002)
            whole = whole[half:]
        writer.write(whole)
        async with asyncio.timeout(ANSWER_S):
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            text = await reader.readexactly(length)
        status = int(answer.split(b" ", 2)[1])
        if status == 202:
            self.ledger.heard_ok(entry)
        else:
            self.ledger.heard_no(entry)
            self.told(f"{status} {text.decode(errors='replace')}")
            await asyncio.sleep(AGAIN_S)


class TcpSender(Sender):
    """Sends lines; OK is an acknowledgement."""

    async def send_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        entry, body = self.next()
        writer.write(body + b"\n")
        async with asyncio.timeout(ANSWER_S):
            line = await reader.readuntil(b"\n")
        if line.startswith(b"OK"):
            self.ledger.heard_ok(entry)
        else:
            self.ledger.heard_no(entry)
            self.told(line.decode(errors="replace"))
            await asyncio.sleep(AGAIN_S)
