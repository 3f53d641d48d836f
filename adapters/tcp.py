"""Messages over TCP: framed bytes, taken in and sent, as a server or as a client. Examples:

`from: {tcp: {listen: "127.0.0.1:9100", answer: {accepted: "OK {{ message.id }}"}}}`
`to: {tcp: {connect: "ledger.example:9100", framing: {length: {bytes: 2}}, reply: {accepted: "OK*"}}}`
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema, model_validator

from adapters._audience import audience
from adapters._exchange import exchanges
from adapters._frames import Framer
from adapters._framing import AnyFraming, Framing, LineFraming, RawFraming
from adapters._stream import Intake, Link
from gateway import (
    JSON,
    Accepted,
    Address,
    AddressField,
    ClientTls,
    ConfigError,
    Deferred,
    Deliver,
    Duration,
    Host,
    Listen,
    Message,
    MessageError,
    Outcome,
    PeerError,
    Send,
    Settings,
    Size,
    Template,
    duration,
    loading,
    size,
)

log = logging.getLogger("gateway.stream")

_REASON = frozenset({"reason"})
_ALL_OF_IT = 2**31
"""A limit that no answer of ours meets: what we write is bounded where it is made."""

_SHOWN = 80
"""Signs of a reply that an error shows."""


def _answer_template(text: Any, info: ValidationInfo) -> Template:
    if isinstance(text, Template):
        return text
    try:
        return Template(text, _REASON | loading(info).names)
    except ConfigError as error:
        raise ValueError(str(error)) from error


AnswerTemplate = Annotated[
    Template,
    PlainValidator(_answer_template),
    PlainSerializer(lambda template: template.text),
    WithJsonSchema({"type": "string", "examples": ["OK {{ message.id }}", "ERROR {{ reason }}"]}),
]
"""A template that may also use `reason`: why the message was refused or deferred, on one line."""


class Answer(Settings):
    """What a sender is told, framed like what it sent, in the order of receipt."""

    accepted: AnswerTemplate = Field(
        Template("OK {{ message.id }}", _REASON), description="the message is safe; a reply's body is said instead"
    )
    refused: AnswerTemplate = Field(
        Template("ERROR {{ reason }}", _REASON), description="the message can't pass, now or later"
    )
    deferred: AnswerTemplate = Field(
        Template("BUSY", _REASON), description="nothing was taken; the sender may try again"
    )


class Source(Settings):
    """Takes framed messages from whoever connects (`listen`), or from a server that it connects to (`connect`).

    With `answer` each frame is answered, in the order of receipt, once its outcome is known: `ack: reply` needs that.
    Without, nothing is said: a deferred message is tried again as long as the gateway runs, and what a crash or a lost
    connection takes is gone: at most once.
    """

    listen: Listen | None = Field(None, description="where to listen, such as 127.0.0.1:9100; TLS by `listeners:`")
    connect: AddressField | None = Field(None, description="a server to connect to and read from, instead of `listen`")
    framing: Framing = Field(LineFraming(), description="where one message ends and the next begins")
    content_type: str = Field(JSON, description="what the bodies are")
    answer: Answer | None = Field(None, description="what each sender is told; default: nothing")
    tls: ClientTls | None = Field(None, description="TLS, with `connect`")
    timeout: Duration = Field(duration("5s"), le=300, description="how long to wait for a connection, with `connect`")

    @model_validator(mode="after")
    def _fits(self) -> Source:
        if (self.listen is None) == (self.connect is None):
            raise ValueError("expected either `listen` (be a server) or `connect` (be a client)")
        if self.listen is not None and self.tls is not None:
            raise ValueError(f"`tls` is for `connect`; write the TLS of a server under listeners: {self.listen}")
        if self.answer is not None:
            for answer in (self.answer.accepted, self.answer.refused, self.answer.deferred):
                _check_constant(answer, self.framing)
        return self

    @property
    def answers(self) -> bool:
        return self.answer is not None

    @property
    def at_most_once(self) -> str | None:
        """Without answers."""
        return None if self.answers else "senders are told nothing; `answer:` tells them what is safe"

    async def run(self, host: Host, deliver: Deliver, ready: Callable[[], None]) -> None:
        talk = _Talk(self.framing, self.content_type, self.answer, host)
        intake = Intake(host, deliver, talk)
        if self.listen is not None:
            await intake.listen(self.listen, ready, who=f"tcp {self.listen}")
        assert self.connect is not None
        await intake.connect(self.connect, self.tls, ready, timeout_s=self.timeout, who=f"tcp {self.connect}")


def _check_constant(answer: Template, framing: AnyFraming) -> None:
    if answer.constant:
        try:
            framing.framer(_ALL_OF_IT).frame(str(answer.text).encode())
        except MessageError as error:
            raise ValueError(f'the answer "{answer.text}" can\'t be said in this framing: {error}') from error


class _Talk:
    """How a tcp source hears and answers."""

    def __init__(self, framing: AnyFraming, content_type: str, answer: Answer | None, host: Host) -> None:
        self.answers = answer is not None
        self._framing = framing
        self._content_type = content_type
        self._host = host
        self._framer = framing.framer(_ALL_OF_IT)
        said = answer or Answer()
        self._accepted = _Said(said.accepted)
        self._usual = self._framer.frame(str(said.accepted.text).encode()) if said.accepted.constant else None
        self._refused = _Said(said.refused)
        self._deferred = _Said(said.deferred)

    def framer(self) -> Framer:
        return self._framing.framer(self._host.limits.message)

    def message(self, payload: bytes, link: Link) -> Message:
        return Message(raw=payload, content_type=self._content_type, transport=link.facts)

    def answer(self, message: Message, outcome: Outcome, link: Link) -> bytes:
        if not self.answers:
            return b""
        frame = self._framer.frame
        if type(outcome) is Accepted:
            if outcome.reply is None:
                return self._usual or self._accepting(message)
            try:
                return frame(outcome.reply.body)
            except MessageError as error:
                extra = {"route": self._host.route, "message_id": outcome.id, "reason": str(error)}
                log.warning("reply not sent", extra=extra)
                return frame(self._refused(message, "the target's reply can't be said here"))
        assert not isinstance(outcome, Accepted)
        if type(outcome) is Deferred:
            return frame(self._deferred(message, outcome.reason))
        return self._refusing(message, outcome.reason)

    def _accepting(self, message: Message) -> bytes:
        try:
            return self._framer.frame(self._accepted(message, ""))
        except MessageError as error:
            # Such as one that names a part of a body that can't be read. Cut, its sender would send it for ever.
            return self._refusing(message, f"it is taken, but not what to say of it: {error}")

    def _refusing(self, message: Message, reason: str) -> bytes:
        try:
            return self._framer.frame(self._refused(message, reason))
        except MessageError:
            return self._framer.frame(_PLAINLY(message, reason))

    def refusal(self, error: MessageError, link: Link) -> bytes:
        if not self.answers:
            return b""
        try:
            return self._framer.frame(self._refused(Message(raw=b"", transport=link.facts), str(error)))
        except MessageError:  # it is about to be closed anyway
            return b""


_PLAIN = re.compile(r"\{\{\s*(message\.id|reason)\s*\}\}")


class _Said:
    """An answer's bytes. The usual ones, which hold nothing but an id and a reason, take no template engine."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self._plain: str | None = None
        text = str(template.text)
        if template.constant or "{" not in _PLAIN.sub("", text):
            self._plain = _PLAIN.sub(r"%(\1)s", text.replace("%", "%%"))

    def __call__(self, message: Message, reason: str) -> bytes:
        if reason:
            reason = "".join(sign if sign.isprintable() else " " for sign in reason)
        if self._plain is not None:
            return (self._plain % {"message.id": message.id, "reason": reason}).encode()
        return self._template.text_of(message, {"reason": reason}).encode()


_PLAINLY = _Said(Answer().refused)
"""What can be said of any message."""


class Reply(Settings):
    """What a peer says to each message. Anything that is neither `accepted` nor `refused` is tried again."""

    accepted: str = Field("*", description="text that says it has it; * is any text, ? any sign, [ab] one of these")
    refused: str | None = Field(None, description="text that says it will never take this message, such as ERR*")
    timeout: Duration = Field(duration("5s"), le=300, description="how long to wait for it")
    content_type: str = Field(JSON, description="what its body is, with `ack: reply`")


class Sink(Settings):
    """Sends framed messages to a server (`connect`), or to all who are connected (`listen`).

    With `reply` a message is delivered when the reply says so: one is under way per connection, as replies don't say
    to what they belong, and a late reply ends the connection. Without `reply`, and with `listen`, delivered means
    written: at most once. With `listen` that may be to nobody, and a client that lags by more than `queue` is cut.
    """

    connect: AddressField | None = Field(None, description="the server to send to, such as ledger.example:9100")
    listen: Listen | None = Field(None, description="where clients connect to be sent to, instead of `connect`")
    framing: Framing = Field(LineFraming(), description="where one message ends and the next begins")
    reply: Reply | None = Field(None, description="what the peer says to each message; default: at most once")
    connections: int = Field(1, ge=1, le=64, description="connections, each with one message under way")
    tls: ClientTls | None = Field(None, description="TLS, with `connect`")
    timeout: Duration = Field(duration("5s"), le=300, description="how long to wait for a connection, or to write")
    queue: Size = Field(size("1MiB"), description="with `listen`: bytes that a client may lag behind")

    @property
    def at_most_once(self) -> str | None:
        """To clients, and to a server whose reply is not awaited."""
        if self.listen is not None:
            return "a message goes to who is connected, even nobody"
        return None if self.reply is not None else "the server is not asked whether it has a message; `reply:` asks it"

    @model_validator(mode="after")
    def _fits(self) -> Sink:
        if (self.listen is None) == (self.connect is None):
            raise ValueError("expected either `connect` (be a client) or `listen` (be a server)")
        if self.listen is not None:
            for name in ("tls", "reply", "connections"):
                if name in self.model_fields_set:
                    raise ValueError(f"`{name}` is for `connect`: a server sends to whoever is there, at most once")
        if isinstance(self.framing, RawFraming) and self.framing.until == "close":
            raise ValueError("a sink keeps its connection open: `raw` with `until: close` is for sources")
        return self

    @property
    def replies(self) -> bool:
        """With `reply`."""
        return self.reply is not None

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Send]:
        frame = self.framing.framer(_ALL_OF_IT).frame
        if self.listen is not None:
            async with audience(self.listen, host, queue_bytes=self.queue, who=f"tcp {self.listen}") as people:

                async def tell(message: Message) -> None:
                    people.tell(frame(message.body))

                yield tell
        else:
            assert self.connect is not None
            async with self._connected(self.connect, host, frame) as send:
                yield send

    @asynccontextmanager
    async def _connected(self, to: Address, host: Host, frame: Callable[[bytes], bytes]) -> AsyncIterator[Send]:
        reply, who = self.reply, f"tcp {to}"

        def hearing() -> Framer | None:
            return None if reply is None else self.framing.framer(host.limits.message)

        async with exchanges(
            to, self.tls, hearing, count=self.connections, timeout_s=self.timeout, who=who
        ) as connected:

            async def send(message: Message) -> Message | None:
                framed = frame(message.body)
                if reply is None:
                    await connected.write(framed, timeout_s=self.timeout)
                    return None
                said = await connected.ask(framed, timeout_s=reply.timeout)
                return _judged(said, reply, who)

            yield send


def _judged(said: bytes, reply: Reply, who: str) -> Message:
    """The reply as a message, if it says that the peer has it."""
    text = said.decode(errors="replace")
    # First what is refused: "ERR*" beside the default "*" means something.
    if reply.refused is not None and fnmatchcase(text, reply.refused):
        raise MessageError(f"{who}: the peer refused it: {_shown(text)}")
    if not fnmatchcase(text, reply.accepted):
        raise PeerError(f"{who}: the peer said {_shown(text)}, expected {reply.accepted!r}")
    return Message(raw=said, content_type=reply.content_type, transport={"peer": who.partition(" ")[2]})


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
