"""Connections that the gateway makes to WebSocket servers, and what is asked over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from websockets.client import ClientProtocol
from websockets.uri import parse_uri

from adapters import _websocket_words as words
from adapters._sockets import dial
from adapters._websocket_crowd import farewell, swept
from adapters._websocket_handshake import Calling, transport_of_client
from adapters._websocket_link import GOING_AWAY, Hearer, Link, Pulse
from gateway import JSON, Address, ClientTls, Host, Message, MessageError, PeerError

_SHOWN = 80
"""Signs of what a peer said that an error shows."""
UNASKED = 1008


@dataclass(frozen=True)
class Call:
    """A server, and how to connect to it."""

    url: str
    tls: ClientTls | None
    headers: Mapping[str, str]
    subprotocols: tuple[str, ...]
    pulse: Pulse
    timeout_s: float

    @property
    def who(self) -> str:
        """How the server is called in sentences."""
        return f"websocket {self.url.partition('?')[0]}"


@asynccontextmanager
async def connected(call: Call, host: Host, hearer: Hearer) -> AsyncIterator[Link]:
    """A connection for as long as the context lasts; its loss is `link.lost`. Redirects and proxies are not followed.

    Raises:
        PeerError: there is nobody, or not one that agrees.
        ConfigError: a file of `tls` can't be used.
    """
    uri = parse_uri(call.url)
    links: list[Link] = []

    def agreed(protocol: ClientProtocol, transport: asyncio.Transport, rest: bytes) -> None:
        link = Link(
            protocol,
            transport,
            hearer,
            limits=host.limits,
            pulse=call.pulse,
            facts=transport_of_client(transport, protocol, call.url),
            headers={},
        )
        links.append(link)
        transport.set_protocol(link)
        if rest:
            link.data_received(rest)

    calling = Calling(
        uri, headers=call.headers, subprotocols=call.subprotocols, limits=host.limits, who=call.who, agreed=agreed
    )
    tls = (call.tls or ClientTls()) if uri.secure else None
    transport, _ = await dial(lambda: calling, Address(uri.host, uri.port), tls, timeout_s=call.timeout_s, who=call.who)
    try:
        async with asyncio.timeout(call.timeout_s):
            await calling.done
    except TimeoutError as error:
        transport.abort()
        raise PeerError(f"{call.who}: no answer to the handshake within {call.timeout_s:g} s") from error
    except asyncio.CancelledError:
        transport.abort()
        raise
    with swept(links, host.clock):
        try:
            yield links[0]
        finally:
            await farewell(links, GOING_AWAY, "the gateway is stopping")


class _Asking:
    """What all ways to ask have in common: a hearer whose messages are settled at once."""

    full = False
    hears_rest = False

    def __init__(self, host: Host, who: str) -> None:
        self._host = host
        self._who = who

    def missed(self, why: str) -> None:
        """It was no answer, or the link ends."""

    def gone(self, link: Link) -> None:
        """The link has ended: see `link.lost`."""

    def _check(self, link: Link) -> None:
        if link.lost.done():
            raise PeerError(f"{self._who}: {link.lost.result()}", reconnect=True)
        if not link.open:
            raise PeerError(f"{self._who}: the connection is closing", reconnect=True)

    async def _sent(self, link: Link, data: bytes, *, text: bool, timeout_s: float) -> None:
        self._check(link)
        link.send(data, text=text)
        try:
            await link.writable(timeout_s)
        except TimeoutError:
            link.cut("it reads nothing of what is sent")
            raise PeerError(f"{self._who}: the peer read nothing for {timeout_s:g} s", reconnect=True) from None


class Telling(_Asking):
    """Sends, and hears no answers: at most once."""

    def __init__(self, host: Host, who: str, timeout_s: float) -> None:
        super().__init__(host, who)
        self._timeout_s = timeout_s

    def heard(self, link: Link, data: bytes, *, text: bool) -> None:
        """Counts what nobody reads."""
        self._host.dropped(1, "unheard")
        link.settled(len(data))

    async def tell(self, link: Link, data: bytes, *, text: bool) -> None:
        """Returns once the operating system has taken all but a small rest.

        Raises:
            PeerError: reconnect=True: the link ended, or the peer did not read.
        """
        await self._sent(link, data, text=text, timeout_s=self._timeout_s)
        self._check(link)


class Confirming(_Asking):
    """Sends messages with ids, and waits for what the peer says of each, in any order."""

    def __init__(self, host: Host, who: str, timeout_s: float) -> None:
        super().__init__(host, who)
        self._timeout_s = timeout_s
        self._waiting: dict[str, tuple[asyncio.Future[words.Verdict], float]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def heard(self, link: Link, data: bytes, *, text: bool) -> None:
        """Finds who waits for it."""
        found = words.verdict(data) if text else None
        if found is not None:
            answer, _ = self._waiting.pop(found.ack or found.nack or found.retry or "", (None, 0))
            if answer is not None and not answer.done():
                answer.set_result(found)
        link.settled(len(data))

    def gone(self, link: Link) -> None:
        """Tells all who wait."""
        why = link.lost.result()
        for answer, _ in self._waiting.values():
            if not answer.done():
                answer.set_exception(PeerError(f"{self._who}: {why}", reconnect=True))
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()

    async def ask(self, link: Link, id: str, body: bytes, content_type: str) -> Message | None:
        """The reply, if one comes with the acknowledgement.

        Raises:
            MessageError: the peer refused it, or it is not what its content type says.
            PeerError: the peer asks to be asked later, said nothing in time, or the link ended (reconnect=True).
        """
        data = words.enveloped(id, body, content_type)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[words.Verdict] = loop.create_future()
        waiting = answer, loop.time() + self._timeout_s
        self._check(link)
        self._waiting[id] = waiting
        if self._timer is None:
            self._timer = loop.call_at(waiting[1], self._expire)
        try:
            await self._sent(link, data, text=True, timeout_s=self._timeout_s)
            return self._judged(await answer)
        finally:
            if self._waiting.get(id) is waiting:
                del self._waiting[id]

    def _expire(self) -> None:
        # All wait equally long, so that the first to come is the first to go.
        loop = asyncio.get_running_loop()
        self._timer = None
        for name, (answer, deadline) in list(self._waiting.items()):
            if deadline > loop.time():
                self._timer = loop.call_at(deadline, self._expire)
                return
            del self._waiting[name]
            if not answer.done():
                text = f"{self._who}: no acknowledgement within {self._timeout_s:g} s"
                answer.set_exception(PeerError(text, too_late=True))

    def _judged(self, found: words.Verdict) -> Message | None:
        if found.nack is not None:
            raise MessageError(f"{self._who}: the peer refused it: {shown(found.reason or found.code)}")
        if found.retry is not None:
            raise PeerError(f"{self._who}: the peer asks to try again later", wait_s=max(found.after_s, 0.0))
        try:
            return words.reply_in(found, None)
        except MessageError as error:
            raise PeerError(f"{self._who}: the reply can't be understood: {error}") from error


class Exchanging(_Asking):
    """Sends one message at a time; the next that the peer says is the reply."""

    def __init__(self, host: Host, who: str, timeout_s: float, content_type: str | None) -> None:
        super().__init__(host, who)
        self._timeout_s = timeout_s
        self._content_type = content_type
        self._turn = asyncio.Lock()
        self._reply: asyncio.Future[Message] | None = None

    def heard(self, link: Link, data: bytes, *, text: bool) -> None:
        """Takes it for the reply; when none is awaited the two don't understand each other."""
        reply, self._reply = self._reply, None
        if reply is None:
            link.fail(UNASKED, "nobody had asked for this")
        else:
            content_type = self._content_type or (JSON if text else words.BINARY)
            reply.set_result(Message(raw=data, content_type=content_type, transport=link.facts[text]))
        link.settled(len(data))

    async def ask(self, link: Link, data: bytes, *, text: bool) -> Message:
        """The reply to this. The wait for the replies to others is not counted.

        Raises:
            PeerError: reconnect=True: no reply in time (too_late=True), or the link ended.
        """
        async with self._turn:
            if self._reply is not None:  # of one who gave up; never to be taken for ours
                await self._awaited(link, self._reply)
            reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
            self._check(link)
            self._reply = reply
            await self._sent(link, data, text=text, timeout_s=self._timeout_s)
            return await self._awaited(link, reply)

    async def _awaited(self, link: Link, reply: asyncio.Future[Message]) -> Message:
        await asyncio.wait((reply, link.lost), timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if reply.done():
            return reply.result()
        self._check(link)
        link.cut("its reply is late")
        text = f"{self._who}: no reply within {self._timeout_s:g} s; the connection is closed, so that none comes late"
        raise PeerError(text, reconnect=True, too_late=True)


def shown(text: str) -> str:
    """What a peer said, cut for an error."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
