"""The bare HTTP loops: uvicorn, and pyreqwest behind it, with as little as does the same work.

answer: reads the body and answers 202 (loop A). forward: sends it on and returns the answer (loop B). elements: reads
JSON, makes XML of lxml elements and sends that on.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from decimal import Decimal
from typing import Any

import msgspec
import uvicorn
from lxml import etree
from pyreqwest.client import Client, ClientBuilder

_ACCEPTED = b'{"status":"accepted"}'


async def _body(receive: Any) -> bytes:
    event = await receive()
    body: bytes = event.get("body", b"")
    while event.get("more_body"):
        event = await receive()
        body += event.get("body", b"")
    return body


async def _answer(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Loop A."""
    await _body(receive)
    await _answer(send, 202, _ACCEPTED)


class Forward:
    """Loop B; with `elements` the body is made XML first."""

    def __init__(self, url: str, *, elements: bool) -> None:
        self._url = url
        self._elements = elements
        self._client: Client | None = None
        self._decoder = msgspec.json.Decoder(float_hook=Decimal)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._client is None:
            limit = timedelta(seconds=30)
            self._client = ClientBuilder().timeout(limit).max_connections(100).no_proxy().build()
        body, content_type = await _body(receive), "application/json"
        if self._elements:
            body, content_type = _xml(self._decoder.decode(body)), "application/xml"
        request = self._client.post(self._url).body_bytes(body).header("content-type", content_type).build()
        response = await request.send()
        await _answer(send, response.status, (await response.bytes()).to_bytes())


def _xml(tree: Any) -> bytes:
    root = etree.Element("order")
    _fill(root, tree)
    return etree.tostring(root, xml_declaration=True, encoding="UTF-8")


def _fill(element: Any, value: Any) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            for one in inner if isinstance(inner, list) else (inner,):
                _fill(etree.SubElement(element, name), one)
    elif isinstance(value, bool):
        element.text = "true" if value else "false"
    elif value is not None:
        element.text = str(value)


def _app(kind: str, sink: str) -> Any:
    if kind == "answer":
        return answer
    return Forward(f"http://127.0.0.1:{sink}/orders", elements=kind == "elements")


if __name__ == "__main__":
    uvicorn.run(
        _app(sys.argv[1], sys.argv[3]),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        http="httptools",
        loop="uvloop",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=4096,
    )
