"""The HTTP server that targets send to: answers 200 to everything, and GET /count with how many POSTs it had."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop
from httptools import HttpRequestParser

_BODY = b'{"status":"booked"}'
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)


class Sink(asyncio.Protocol):
    """One connection."""

    posts = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._parser = HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self._parser.get_method() == b"POST":
            Sink.posts += 1
            self._transport.write(_ANSWER)
        else:
            count = b"%d" % Sink.posts
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(count), count))


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
