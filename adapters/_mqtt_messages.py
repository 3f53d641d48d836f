"""A PUBLISH as a message of the gateway, and replies to where a request asked for them."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from adapters._mqtt_link import Link
from adapters._mqtt_packets import Outgoing, Publish
from gateway import JSON, Host, Message, MessageError, PeerError, Shared

_WILDCARDS = re.compile("[+#\0]")
_REPLY_WAIT_S = 1.0
_REPLY_TIMEOUT_S = 30.0
_REPLY_TRIES = 3

log = logging.getLogger("gateway.mqtt")


def message_of(publish: Publish, content_type: str | None) -> Message:
    """The message that a PUBLISH is; `content_type` is what the body is, whatever the sender says."""
    properties = publish.properties
    transport: dict[str, Any] = {
        "topic": publish.topic,
        "qos": publish.qos,
        "retain": publish.retain,
        "redelivered": publish.redelivered,
    }
    if not properties:
        return Message(raw=publish.body, type="mqtt.message", content_type=content_type or JSON, transport=transport)
    headers = _headers(properties.get("user_property", ()))
    correlation = _text(properties.get("correlation_data"))
    if "response_topic" in properties:
        transport["response_topic"] = properties["response_topic"]
    if correlation is not None:
        transport["correlation_data"] = correlation
    expiry_s = properties.get("message_expiry_interval")
    return Message(
        raw=publish.body,
        type="mqtt.message",
        content_type=content_type or properties.get("content_type") or JSON,
        headers=headers,
        transport=transport,
        sender_id=headers.get("id"),
        expires_at_s=None if expiry_s is None else time.time() + expiry_s,
        correlation_id=correlation,
        traceparent=headers.get("traceparent"),
    )


def _headers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in pairs:
        known = name.lower()
        headers[known] = f"{headers[known]}, {value}" if known in headers else value
    return headers


def _text(data: bytes | None) -> str | None:
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return base64.b64encode(data).decode()


class Replies:
    """Publishes replies over a link that the first reply opens, for as long as the context lasts."""

    def __init__(self, publishing: Shared[Link], host: Host) -> None:
        self._publishing = publishing
        self._host = host
        self._tasks = asyncio.TaskGroup()
        self._holder: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._opened = asyncio.Event()

    async def __aenter__(self) -> Replies:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._holder is not None:
            self._holder.cancel()
        await self._tasks.__aexit__(kind, error, trace)

    async def publish(self, request: Publish, reply: Message) -> None:
        """Publishes a reply to where the request asked for it, if it did, however long it takes to connect.

        Acknowledgements keep their order: a reply that the broker never takes must not hold up all behind it.
        """
        topic = request.properties.get("response_topic")
        if not topic:
            return
        if _WILDCARDS.search(topic):  # a broker ends the link of who publishes there
            self._host.dropped(1, "reply refused")
            return
        properties: dict[str, Any] = {"content_type": reply.content_type, "user_property": [("id", reply.id)]}
        if "correlation_data" in request.properties:
            properties["correlation_data"] = request.properties["correlation_data"]
        if self._holder is None:
            self._holder = self._tasks.create_task(self._hold(), name="mqtt-replies")
        answer = Outgoing(topic.encode(), reply.body, request.qos, retain=False, properties=properties)
        tries = 0
        while True:
            await self._opened.wait()
            if self._link is not None:
                try:
                    await self._link.publish(answer, _REPLY_TIMEOUT_S)
                    return
                except (MessageError, PeerError) as error:
                    tries += 1
                    if isinstance(error, MessageError) or tries == _REPLY_TRIES:
                        self._host.dropped(1, "reply refused")
                        log.warning("reply dropped", extra={"route": self._host.route, "reason": str(error)})
                        return
            await self._host.clock.sleep(_REPLY_WAIT_S)

    async def _hold(self) -> None:
        while True:
            try:
                async with self._host.share(self._publishing) as self._link:
                    self._opened.set()
                    await asyncio.get_running_loop().create_future()
            except PeerError:
                self._link = None
                self._opened.clear()
            await self._host.clock.sleep(_REPLY_WAIT_S)
