"""Messages over WebSocket, RFC 6455: as a server on the http listener's port, and as a client. Examples:

`from: {websocket: {listen: "127.0.0.1:8081", path: "/devices/{id}", confirm: true}}`
`to: {websocket: {listen: "127.0.0.1:8081", path: /live, topic: "{{ body.device }}"}}`
`to: {websocket: {url: "wss://feed.example/in", confirm: true}}`
"""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from adapters import _websocket_words as words
from adapters._exchange import ended_with
from adapters._paths import checked_pattern, shape
from adapters._websocket_client import Call, Confirming, Exchanging, Telling, connected, shown
from adapters._websocket_frames import framed
from adapters._websocket_intake import Intake, Terms
from adapters._websocket_link import Link, Pulse
from adapters._websocket_room import Door
from gateway import (
    ClientTls,
    ConfigError,
    Deliver,
    Duration,
    Host,
    Listen,
    ListenAt,
    Message,
    MessageError,
    PeerError,
    Secret,
    Send,
    Settings,
    Size,
    Template,
    Url,
    duration,
    size,
)

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_OF_THE_HANDSHAKE = frozenset({"connection", "content-length", "host", "transfer-encoding", "upgrade"})
_OF_A_SERVER = ("path", "origins")
_OF_A_CLIENT = ("tls", "headers", "username", "password", "token", "timeout")


def _token(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError(f'expected a name of letters, digits, dots and dashes, got "{text}"')
    return text


def _origin(text: str) -> str:
    parts = urlsplit(text)
    if text not in ("*", "null") and (not parts.scheme or not parts.netloc or parts.path or parts.query):
        raise ValueError(f'expected an origin such as https://app.example, or * for all, got "{text}"')
    return text


def _header_name(text: str) -> str:
    name = _token(text.lower())
    if name in _OF_THE_HANDSHAKE or name.startswith("sec-websocket-"):
        raise ValueError(f"the header {name} is of the handshake itself and can't be set")
    return name


def _header_value(text: str) -> str:
    if not _HEADER_VALUE.fullmatch(text):
        raise ValueError("a header value holds a line end, NUL or characters outside of ASCII")
    return text


Path = Annotated[str, AfterValidator(checked_pattern)]
HeaderName = Annotated[str, AfterValidator(_header_name)]
HeaderValue = Annotated[str, AfterValidator(_header_value)]


class _Ends(Settings):
    """The two ends that a connection may have: what Source and Sink have in common."""

    listen: Listen | None = Field(None, description="where clients connect, such as 127.0.0.1:8081, with http beside")
    path: Path = Field("/", description="with `listen`: the path, whose segments may be parameters: /devices/{id}")
    url: Url("ws", "wss") | None = Field(  # type: ignore[valid-type]
        None, description="a server to connect to, instead of `listen`"
    )
    subprotocols: tuple[Annotated[str, AfterValidator(_token)], ...] = Field(
        (), description="subprotocols, best first; a server takes only clients that speak one of them"
    )
    origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = Field(
        (),
        description="with `listen`: origins of web pages that may connect, such as https://app.example, or *; "
        "default: those of the host itself. Who names no origin is no browser and may connect",
    )
    ping_interval: Duration = Field(duration("20s"), description="a ping after so much silence; 0s: never")
    ping_timeout: Duration = Field(duration("20s"), gt=0, description="how long to wait then for a sign of life")
    tls: ClientTls | None = Field(None, description="with `url`: TLS of wss://")
    headers: dict[HeaderName, HeaderValue] = Field({}, description="with `url`: further headers of the handshake")
    username: str | None = Field(None, description="with `url`: user for HTTP basic authentication")
    password: Secret | None = Field(None, description="with `url`: password of that user")
    token: Secret | None = Field(None, description="with `url`: bearer token, instead of user and password")
    timeout: Duration = Field(
        duration("10s"), gt=0, le=300, description="with `url`: how long to wait for a connection, or for an answer"
    )

    @model_validator(mode="after")
    def _has_one_end(self) -> _Ends:
        if (self.listen is None) == (self.url is None):
            raise ValueError("expected either `listen` (be a server) or `url` (be a client)")
        for name in _OF_A_SERVER if self.listen is None else _OF_A_CLIENT:
            if name in self.model_fields_set:
                end = "listen" if self.listen is None else "url"
                raise ValueError(f"`{name}` is for `{end}`, which is not set")
        if self.tls is not None and self.url is not None and urlsplit(self.url).scheme.lower() == "ws":
            raise ValueError("tls: the url begins with ws://; write wss://")
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password: expected both or none")
        if self.token is not None and self.username is not None:
            raise ValueError("token: expected either a token or username and password")
        if not _HEADER_VALUE.fullmatch(self._authorization() or ""):
            raise ValueError("token: it holds characters that no header can carry, such as a line end")
        return self

    def _authorization(self) -> str | None:
        if self.token is not None:
            return f"Bearer {self.token.get_secret_value()}"
        if self.username is not None and self.password is not None:
            pair = f"{self.username}:{self.password.get_secret_value()}"
            return f"Basic {b64encode(pair.encode()).decode()}"
        return None

    def _pulse(self) -> Pulse:
        return Pulse(self.ping_interval or None, self.ping_timeout)

    def _door(self, at: ListenAt) -> Door:
        return Door(at, self.path, self.origins, self.subprotocols, self._pulse())

    def _call(self, url: str) -> Call:
        headers = dict(self.headers)
        authorization = self._authorization()
        if authorization is not None:
            headers["authorization"] = authorization
        return Call(url, self.tls, headers, self.subprotocols, self._pulse(), self.timeout)


class Source(_Ends):
    """Takes messages from the clients of a path (`listen`), or from a server that it connects to (`url`).

    With `confirm` each message is answered once its outcome is known, in any order: `{"ack": id}`,
    `{"nack": id, "reason": …, "code": …}` or `{"retry": id, "after_s": n}`. The sender's id is in its envelope
    `{"id": "7", "data": {…}}` (`data_base64` for what is no text); a frame that is none is the message itself, and is
    answered with the message id and its `number` on the connection, from 1. With `ack: reply` the reply is the `data`
    of the ack. When the gateway itself can take nothing, the connection is closed with 1013 after the answer.

    Without, nothing is said: a deferred message is tried again as long as the gateway runs, and what a crash or a
    lost connection takes is gone: at most once. `reply` is for routes with `ack: reply` whose senders have no ids:
    each message is answered by a frame, in the order of receipt: the reply's body, empty if there is none, or
    `{"error": …, "code": …}`.
    """

    content_type: str | None = Field(
        None,
        description="what bodies are; default: application/json in text frames, else application/octet-stream",
    )
    confirm: bool = Field(default=False, description="tell the sender of each message what became of it")
    reply: bool = Field(default=False, description="answer each message by a frame, in the order of receipt")

    @model_validator(mode="after")
    def _answers_in_one_way(self) -> Source:
        if self.confirm and self.reply:
            raise ValueError("expected either `confirm` or `reply`: with `confirm` replies come as data of the ack")
        return self

    @property
    def answers(self) -> bool:
        """Senders are told the outcome with `confirm` and with `reply`."""
        return self.confirm or self.reply

    @property
    def claims(self) -> tuple[str, ...]:
        """What clients of its path say: others may tell them something, and http may answer there."""
        if self.listen is None or self.listen.address.port == 0:
            return ()
        return (f"websocket {self.listen}{shape(self.path)}",)

    @property
    def at_most_once(self) -> str | None:
        """Without answers."""
        return None if self.answers else "senders are told nothing; `confirm: true` tells them what is safe"

    async def run(self, host: Host, deliver: Deliver, ready: Callable[[], None]) -> None:
        """Takes messages until cancelled.

        Raises:
            PeerError: with `url`: there is no connection, or none any more.
            ConfigError: the address can't be had, or another route reads at the path; a file of `tls` can't be used.
        """
        intake = Intake(host, deliver, Terms(self.confirm, self.reply, self.content_type))
        if self.listen is not None:
            async with host.share(self._door(self.listen)) as room:
                room.check_unread()
                async with intake.workers, room.read_by(intake, host):
                    ready()
                    await asyncio.get_running_loop().create_future()
        assert self.url is not None
        async with intake.workers:
            fault = await self._listened(self._call(self.url), intake, host, ready)
        raise fault

    async def _listened(self, call: Call, intake: Intake, host: Host, ready: Callable[[], None]) -> Exception:
        """Why it ended, which the workers would make a group of."""
        try:
            async with connected(call, host, intake) as link:
                ready()
                await asyncio.wait((link.lost,))
        except (PeerError, ConfigError) as error:
            return error
        if not intake.answers:  # nobody will send it again
            await intake.settled()
        return PeerError(f"{call.who}: {link.lost.result()}", reconnect=True)


class Reply(Settings):
    """What a server says to each message. Anything that is neither `accepted` nor `refused` is tried again."""

    accepted: str = Field("*", description="text that says it has it; * is any text, ? any sign, [ab] one of these")
    refused: str | None = Field(None, description="text that says it will never take this message, such as ERR*")
    content_type: str | None = Field(
        None, description="what it is; default: application/json in text, application/octet-stream in binary frames"
    )


class Sink(_Ends):
    """Sends messages to all clients of a path (`listen`), or to a server that it connects to (`url`).

    With `listen` delivered means handed to who is connected, even nobody: at most once. A client that asks for
    `?topic=a&topic=b` gets only messages of these topics, and one that lags by more than `queue` is closed with 1013.

    With `url` and `confirm` a message is sent as `{"id": "…", "data": …}` (`data_base64` for what is no text) and is
    delivered when the server says `{"ack": id}`; `data` beside that is the reply. With `reply` the next frame of the
    server is the reply, one message at a time, and a late one ends the connection. With neither, delivered means
    written: at most once.
    """

    topic: Template | None = Field(None, description="with `listen`: what a message is about, for clients that choose")
    queue: Size = Field(size("1MiB"), description="with `listen`: bytes that a client may lag behind")
    opcode: Literal["text", "binary"] | None = Field(
        None, description="the kind of frames; default: text for JSON, XML and text in UTF-8, else binary"
    )
    confirm: bool = Field(default=False, description="with `url`: wait for the server to acknowledge each message")
    reply: Reply | None = Field(None, description="with `url`: what the server says to each message")

    @model_validator(mode="after")
    def _fits(self) -> Sink:
        for name in ("confirm", "reply") if self.url is None else ("topic", "queue"):
            if name in self.model_fields_set:
                raise ValueError(f"`{name}` is for `{'url' if self.url is None else 'listen'}`, which is not set")
        if self.confirm and self.reply is not None:
            raise ValueError("expected either `confirm` or `reply`: with `confirm` replies come as data of the ack")
        if self.confirm and self.opcode is not None:
            raise ValueError("opcode: with `confirm` all frames are text")
        return self

    @property
    def claims(self) -> tuple[str, ...]:
        """Nothing: several routes may tell the clients of one path, and another may read what they say."""
        return ()

    @property
    def at_most_once(self) -> str | None:
        """To clients, and to a server that is not asked."""
        if self.listen is not None:
            return "a message goes to who is connected, even nobody"
        if self.confirm or self.reply is not None:
            return None
        return "the server is not asked whether it has a message; `confirm: true` or `reply:` asks it"

    @property
    def replies(self) -> bool:
        """With `confirm`: a reply comes as data of the ack."""
        return self.confirm

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Send]:
        """Sends for as long as the context lasts.

        Raises:
            PeerError: out of the context: there is no connection, or (reconnect=True) it was lost, idle or not.
            ConfigError: the address can't be had, or others answer at the path; a file of `tls` can't be used.
        """
        if self.listen is not None:
            async with host.share(self._door(self.listen)) as room:

                async def tell(message: Message) -> None:
                    topic = None if self.topic is None else self.topic.text_of(message)
                    body = message.body
                    frame = framed(body, text=self._is_text(body, message))
                    if room.tell(frame, topic, most_lag_bytes=self.queue, host=host):
                        await asyncio.sleep(0)

                yield tell
        else:
            assert self.url is not None
            async with self._connected(self._call(self.url), host) as send:
                yield send

    @asynccontextmanager
    async def _connected(self, call: Call, host: Host) -> AsyncIterator[Send]:
        hearer, sender_to = self._asking(call, host)
        async with connected(call, host, hearer) as link, ended_with([_loss(link, call.who)]):
            yield sender_to(link)

    def _asking(self, call: Call, host: Host) -> tuple[Any, Callable[[Link], Send]]:
        if self.confirm:
            confirming, suffix = Confirming(host, call.who, self.timeout), f".{host.target}"

            def confirmed(link: Link) -> Send:
                return lambda message: confirming.ask(link, message.id + suffix, message.body, message.content_type)

            return confirming, confirmed
        if self.reply is not None:
            exchanging, reply = Exchanging(host, call.who, self.timeout, self.reply.content_type), self.reply

            def replied(link: Link) -> Send:
                async def send(message: Message) -> Message:
                    body = message.body
                    said = await exchanging.ask(link, body, text=self._is_text(body, message))
                    return _judged(said, reply, call.who)

                return send

            return exchanging, replied
        telling = Telling(host, call.who, self.timeout)

        def told(link: Link) -> Send:
            async def send(message: Message) -> None:
                body = message.body
                await telling.tell(link, body, text=self._is_text(body, message))

            return send

        return telling, told

    def _is_text(self, body: bytes, message: Message) -> bool:
        if self.opcode is None:
            return words.is_text(body, message.content_type)
        if self.opcode == "text" and not words.is_utf8(body):
            raise MessageError("body: it is not UTF-8, as text frames have to be; set opcode: binary")
        return self.opcode == "text"


def _loss(link: Link, who: str) -> asyncio.Future[PeerError]:
    loss: asyncio.Future[PeerError] = asyncio.get_running_loop().create_future()

    def lost(why: asyncio.Future[str]) -> None:
        if not loss.done():
            loss.set_result(PeerError(f"{who}: {why.result()}", reconnect=True))

    link.lost.add_done_callback(lost)
    return loss


def _judged(said: Message, reply: Reply, who: str) -> Message:
    """The reply, if it says that the server has the message."""
    text = said.body.decode(errors="replace")
    # First what is refused: "ERR*" beside the default "*" means something.
    if reply.refused is not None and fnmatchcase(text, reply.refused):
        raise MessageError(f"{who}: the peer refused it: {shown(text)}", reply=said)
    if not fnmatchcase(text, reply.accepted):
        raise PeerError(f"{who}: the peer said {shown(text)}, expected {reply.accepted!r}", reply=said)
    return said
