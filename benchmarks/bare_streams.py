"""The bare loops for lines, MLLP and WebSocket: an asyncio protocol that does nothing but frame and answer."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import msgspec
import uvloop
from websockets.asyncio.server import ServerConnection, serve


class Lines(asyncio.Protocol):
    """Answers each line with OK."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._held = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._held = (self._held + data).split(b"\n")
        if lines:
            self._transport.write(b"".join([b"OK\n" for _ in lines]))


class Mllp(asyncio.Protocol):
    """Answers each message with AA, for its MSH-10."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._held = b""

    def data_received(self, data: bytes) -> None:
        *frames, self._held = (self._held + data).split(b"\x1c\r")
        for frame in frames:
            control_id = frame.split(b"|", 10)[9]
            self._transport.write(b"\x0bMSH|^~\\&|GATEWAY|LAB|HIS|WARD|||ACK|1|P|2.5\rMSA|AA|%b\r\x1c\r" % control_id)


async def _parse(connection: ServerConnection) -> None:
    decode = msgspec.json.Decoder().decode
    async for message in connection:
        decode(message)


async def _serve(kind: str, port: int) -> None:
    if kind == "websocket":
        async with serve(_parse, "127.0.0.1", port, compression=None) as websockets:
            await websockets.serve_forever()
    protocol = {"line": Lines, "mllp": Mllp}[kind]
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], int(sys.argv[2])))
