"""However the network cuts what a peer sends, it is answered the same; and whatever it sends, it is answered."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters._http1 import Connection
from adapters._listener import Listening
from adapters._request import Request
from gateway import Limits, SystemClock
from tests.adapters.test_http_cases import ALL, wire

RESPONSE = re.compile(rb"HTTP/1\.1 [1-5]\d\d ")


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended = False
        self._link = socket.socket()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 5), "sockname": ("127.0.0.1", 6), "socket": self._link}.get(name)

    def write(self, data: Any) -> None:
        assert not self.ended
        self.written += data

    def is_closing(self) -> bool:
        return self.ended

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def free(self) -> None:
        self._link.close()


def told(pieces: list[bytes]) -> tuple[bytes, list[tuple[str, str, bytes]], bool]:
    """What a peer that sends these pieces hears, the requests that it made, and whether it is cut off."""
    seen = []

    def handler(request: Request) -> None:
        seen.append((request.method, request.target, request.body))
        request.answer(200, request.body)

    async def talk() -> tuple[bytes, list[tuple[str, str, bytes]], bool]:
        listening = Listening(Limits(), SystemClock(), tls=False)
        transport = Wire()
        with listening.mount("/orders/{id}", ("GET", "POST"), handler):
            connection = Connection(listening)
            connection.connection_made(transport)
            for piece in pieces:
                connection.data_received(piece)
                listening.turn.take()
                listening.turn.flush()
            heard = transport.written, seen, transport.ended
            connection.connection_lost(None)
        transport.free()
        return heard

    return asyncio.run(talk())


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.stem)
def test_a_request_in_single_bytes_is_answered_like_a_whole_one(case: Any) -> None:
    data = wire(case.read_text(encoding="latin-1").partition("\n-----\n")[0])
    assert told([bytes([byte]) for byte in data]) == told([data])


GOOD = (
    b"POST /orders/1?x=2 HTTP/1.1\r\nHost: gateway\r\nContent-Length: 5\r\n\r\nhello"
    b"POST /orders/2 HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-A: b\r\n\r\n"
    b"GET /orders/3 HTTP/1.1\r\nHost: gateway\r\nX-Long: " + b"y" * 5000 + b"\r\n\r\n"
    b"POST /orders/4 HTTP/1.1\r\nHost: gateway\r\nContent-Length: 9000\r\n\r\n" + b"z" * 9000
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, len(GOOD)), max_size=12))
def test_requests_may_be_cut_anywhere(cuts: list[int]) -> None:
    at = [0, *sorted(cuts), len(GOOD)]
    heard, seen, ended = told([GOOD[start:end] for start, end in itertools.pairwise(at) if end > start])
    assert [method for method, _, _ in seen] == ["POST", "POST", "GET", "POST"]
    assert [body for _, _, body in seen] == [b"hello", b"abc", b"", b"z" * 9000]
    assert heard.count(b"HTTP/1.1 200 OK") == 4
    assert not ended


PARTS = [
    b"GET ", b"POST ", b"/orders/1", b"/orders/1?a=b", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n", b"\r", b"\r\n\r\n",
    b"Host: a\r\n", b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n", b"Connection: upgrade\r\n", b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\n",
    b"Expect: 100-continue\r\n", b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n", b": ", b"\0", b" ", b"CONNECT ", b"OPTIONS ", b"*",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PARTS), st.binary(max_size=20)), max_size=25), st.data())
def test_nonsense_is_answered_in_http_or_not_at_all(parts: list[bytes], data: st.DataObject) -> None:
    start = data.draw(st.sampled_from([b"", b"POST /orders/1 HTTP/1.1\r\nHost: a\r\n", b"GET /orders/1 HTTP/1.1\r\n"]))
    whole = start + b"".join(parts)
    pieces = [start, *parts]
    heard, seen, ended = told(pieces)
    assert not heard or RESPONSE.match(heard)
    assert b"HTTP/1.1 500" not in heard
    # Of two faults in one head, which one is named depends on the cut.
    again = told([whole])
    assert (RESPONSE.findall(heard), seen, ended) == (RESPONSE.findall(again[0]), *again[1:])
