"""HL7 v2 over MLLP: takes messages and acknowledges them, sends messages and waits for their acknowledgement."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from adapters._frames import Framer
from adapters._frames_mllp import Mllp
from adapters._mllp import Links, linked
from adapters._stream import Intake, Link
from gateway import (
    Accepted,
    AddressField,
    ClientTls,
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
    duration,
    new_id,
)
from transforms._hl7 import codec
from transforms._hl7_ack import Fault, Header, ack_id, acknowledge, read_answer, read_header

log = logging.getLogger("gateway.stream")

HL7 = "application/hl7-v2"
_ALL_OF_IT = 2**31
"""A limit that no answer of ours meets: what we write is bounded where it is made."""
_HEAD = 4096
"""Bytes of an unfinished frame in which its header is looked for."""

APPLICATION_S = 300.0
"""How long the delivery of a stored message is waited for before its application acknowledgement is given up."""
MOST_WAITING = 1000
"""Application acknowledgements of one source that wait at once; more are not sent, and counted."""


class Codes(Settings):
    """What a sender hears when its message did not pass: AE (an error in it) or AR (not now, or not here)."""

    refused: Literal["AE", "AR"] = Field("AE", description="the content is wrong, or too large; sending again is vain")
    deferred: Literal["AE", "AR"] = Field("AR", description="nothing was taken now; the sender may send it again")
    internal: Literal["AE", "AR"] = Field("AR", description="a fault of the gateway")


class Source(Settings):
    """Takes HL7 v2 messages from whoever connects (`listen`), or from a server that it connects to (`connect`).

    Each is acknowledged in the order of receipt, once the route has it: AA, or what `codes` says. A sender that asks
    for enhanced mode gets CA, CE or CR as its MSH-15 asks, and then an application acknowledgement as its MSH-16
    asks. With `ack: stored` the first comes at the commit, the second once the message is delivered (AA) or dead (AE),
    within five minutes or not at all; with `ack: delivered` and `ack: reply` both come then. With `ack: reply`
    an HL7 body that the target answered is the acknowledgement, as it is; to another one, and to an HTTP status that is
    no success, it is AA, AE or AR by that status.

    `message.type` is MSH-9 such as `ADT^A01`, `message.sender_id` is MSH-10, also of what REST hands to the route. A
    frame with several messages is one message, acknowledged once, for the first. What has no MSH is answered with AR,
    and counted.

    To senders of version 2.5 and later ERR-3 says what is wrong: 102 (data type error) when the content was refused,
    200 when it is a kind of message that is not taken, 207 when it is not the message's fault. ERR-8 says why. Once
    `ack: stored` has told that it is safe, the AE of a message that is dead has 102, whatever it died of.
    """

    listen: Listen | None = Field(None, description="where to listen, such as 0.0.0.0:2575; TLS by `listeners:`")
    connect: AddressField | None = Field(None, description="a server to connect to and read from, instead of `listen`")
    codes: Codes = Field(Codes(), description="acknowledgement codes; in enhanced mode their second letter after a C")
    enhanced: bool = Field(
        default=True, description="false: always one acknowledgement, AA, AE or AR, whatever MSH-15 and MSH-16 ask"
    )
    charset: str | None = Field(
        None, description="what the bytes are, such as 8859/1 or windows-1252, whatever MSH-18 says; default: MSH-18"
    )
    tls: ClientTls | None = Field(None, description="TLS, with `connect`")
    timeout: Duration = Field(duration("5s"), le=300, description="how long to wait for a connection, with `connect`")

    @property
    def answers(self) -> bool:
        return True

    @field_validator("charset")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        if name is not None and codec(name) is None:
            raise ValueError(f'expected a charset such as 8859/1, UNICODE UTF-8 or windows-1252, got "{name}"')
        return name

    @model_validator(mode="after")
    def _fits(self) -> Source:
        if (self.listen is None) == (self.connect is None):
            raise ValueError("expected either `listen` (be a server) or `connect` (be a client)")
        if self.listen is not None and self.tls is not None:
            raise ValueError(f"`tls` is for `connect`; write the TLS of a server under listeners: {self.listen}")
        return self

    async def run(self, host: Host, deliver: Deliver, ready: Callable[[], None]) -> None:
        intake = Intake(host, deliver, _Talk(self, host))
        if self.listen is not None:
            await intake.listen(self.listen, ready, who=f"mllp {self.listen}")
        assert self.connect is not None
        await intake.connect(self.connect, self.tls, ready, timeout_s=self.timeout, who=f"mllp {self.connect}")

    def named(self, body: bytes) -> tuple[str, str | None] | None:
        header = read_header(body)
        return None if header is None else _names(header)


def _names(header: Header) -> tuple[str, str | None]:
    return header.type or "mllp.message", header.control_id or None


class _Frames(Mllp):
    """MLLP frames that can show the beginning of one that has not ended."""

    @property
    def head(self) -> bytes:
        return bytes(self._buffer[:_HEAD])


class _Talk:
    """How an mllp source hears and answers."""

    answers = True

    def __init__(self, settings: Source, host: Host) -> None:
        self._codes = settings.codes
        self._enhanced = settings.enhanced
        self._content_type = HL7 if settings.charset is None else f"{HL7}; charset={codec(settings.charset)}"
        self._host = host
        self._frame = Mllp(max_frame_bytes=_ALL_OF_IT).frame
        self._waiting = 0
        self._headers: dict[str, Header] = {}
        """By message id, of those that are not answered: what is read of a header once is not read again."""

    def framer(self) -> Framer:
        return _Frames(max_frame_bytes=self._host.limits.message)

    def message(self, payload: bytes, link: Link) -> Message | bytes:
        header = read_header(payload)
        if header is None:
            self._host.refused("malformed", "it is no HL7 v2 message in ER7 encoding, MSH first", link.facts["peer"])
            text = f"found {payload[:20]!r}, expected an HL7 v2 message in ER7 encoding, MSH first"
            return self._frame(acknowledge(None, "AR", ack_id(new_id()), text, fault=Fault.KIND))
        if b"\x1c" in payload:  # it can be within a frame, and not within an answer that copies it
            text = "the message contains the byte 1C, which ends an MLLP frame; end frames with 1C 0D, or leave it out"
            self._host.refused("malformed", text, link.facts["peer"])
            said = _Said(self._codes.refused, text, Fault.DATA)
            return self._written(None if b"\x1c" in b"".join(header.fields) else header, new_id(), said)
        type_, sender_id = _names(header)
        message = Message(
            raw=payload, content_type=self._content_type, type=type_, sender_id=sender_id, transport=link.facts
        )
        self._headers[message.id] = header
        return message

    def answer(self, message: Message, outcome: Outcome, link: Link) -> bytes:
        header = self._headers.pop(message.id)
        said = self._said(outcome)
        if isinstance(outcome, Accepted) and outcome.stored and self._waits(header):
            if self._waiting < MOST_WAITING:
                link.later(self._application(header, message.id))
            else:
                self._host.dropped(1, "application acknowledgement")
            commit = _asks(header, 15, good=True)
            return self._frame(acknowledge(header, "CA", ack_id(message.id))) if commit else b""
        return self._written(header, message.id, said)

    def _waits(self, header: Header) -> bool:
        """Whether the sender asks for an application acknowledgement, which says more than that we have it."""
        return self._enhanced and header.enhanced and (_asks(header, 16, good=True) or _asks(header, 16, good=False))

    async def _application(self, header: Header, message_id: str) -> bytes:
        """The application acknowledgement: AA once delivered, AE once it is dead; nothing when that takes too long."""
        self._waiting += 1
        try:
            outcome = await self._host.settled(message_id, APPLICATION_S)
        finally:
            self._waiting -= 1
        if outcome is None or not _asks(header, 16, good=isinstance(outcome, Accepted)):
            return b""
        said = self._said(outcome)
        return self._frame(acknowledge(header, said.code, ack_id(new_id()), said.text, fault=said.fault))

    def refusal(self, error: MessageError, link: Link) -> bytes:
        framer = link.framer
        header = read_header(framer.head) if isinstance(framer, _Frames) else None
        if header is None or not header.field(11):  # its end, and so its MSH-10, was not seen
            return b""
        try:
            return self._written(header, new_id(), _Said(self._codes.refused, str(error), Fault.DATA))
        except MessageError:  # it is closed anyway
            return b""

    def _said(self, outcome: Outcome) -> _Said:
        codes = self._codes
        if isinstance(outcome, Deferred):
            return _Said(codes.deferred, "not taken now; send it again later")
        if not isinstance(outcome, Accepted):
            if outcome.code == "internal":
                return _Said(codes.internal, "internal error")
            return _Said(codes.refused, outcome.reason, Fault.KIND if outcome.code == "unsupported" else Fault.DATA)
        if outcome.reply is None:
            return _AA
        status = outcome.reply.transport.get("status")
        if isinstance(status, int) and status >= 300:  # an HTTP target's answer is the reply, whatever it says
            text = f"the target answered {status}"
            later = status >= 500 or status == 429 or status < 400
            return _Said(codes.deferred, text) if later else _Said(codes.refused, text, Fault.DATA)
        try:
            body = outcome.reply.body
            if read_header(body) is not None:
                self._frame(body)
                return _Said("AA", reply=body)
        except MessageError as error:
            extra = {"route": self._host.route, "message_id": outcome.id, "reason": str(error)}
            log.warning("reply not sent", extra=extra)
            return _Said(codes.internal, "the target's reply can't be said here")
        return _Said("AA")

    def _written(self, header: Header | None, own_id: str, said: _Said) -> bytes:
        frame, code, reply = self._frame, said.code, said.reply

        def acknowledged(code: str, own_id: str) -> bytes:
            return frame(acknowledge(header, code, ack_id(own_id), said.text, fault=said.fault))

        if header is None or not self._enhanced or not header.enhanced:
            return frame(reply) if reply is not None else acknowledged(code, own_id)
        good = code == "AA"
        commit = _asks(header, 15, good=good)
        answers = acknowledged(f"C{code[1]}", own_id) if commit else b""
        # A message that was not committed has no application acknowledgement: 2.9.3.1.
        if good or not commit:
            taken = good and (reply is None or (answer := read_answer(reply)) is None or answer.code[1:] == "A")
            if _asks(header, 16, good=taken):
                answers += frame(reply) if reply is not None else acknowledged(code, new_id())
        return answers


class _Said(NamedTuple):
    """The code of an outcome, why, what is wrong, and the target's own acknowledgement if there is one."""

    code: str
    text: str = ""
    fault: Fault = Fault.INTERNAL
    reply: bytes | None = None


_AA = _Said("AA")


def _asks(header: Header, field: int, *, good: bool) -> bool:
    """Whether MSH-15 or MSH-16 asks for an acknowledgement of this kind. HL7 table 0155."""
    return header.field(field).strip().upper() in ((b"AL", b"SU") if good else (b"AL", b"ER"))


class Rejected(Settings):
    """What becomes of a message that the receiver did not take."""

    AE: Literal["retry", "dead_letter"] = Field("dead_letter", description="AE or CE: an error in the message")
    AR: Literal["retry", "dead_letter"] = Field("retry", description="AR or CR: rejected, often for the moment")


class Sink(Settings):
    """Sends HL7 v2 messages and waits for each one's acknowledgement, whose MSA-2 is the message's MSH-10.

    Delivered means an accepted code. A connection carries one message at a time; a late answer, or one for another
    message, closes it. With `ack: reply` the acknowledgement is the reply.
    """

    connect: AddressField = Field(description="the receiver, such as his.example:2575")
    tls: ClientTls | None = Field(None, description="TLS to the receiver")
    timeout: Duration = Field(
        duration("5s"), le=300, description="how long to wait for a connection, and for an answer"
    )
    connections: int = Field(1, ge=1, le=256, description="connections at most; more than one keeps no order")
    keep_open: bool = Field(
        default=True, description="false: a connection for each message, for receivers that close theirs"
    )
    accepted: tuple[Literal["AA", "CA"], ...] = Field(
        ("AA", "CA"), min_length=1, description="what says delivered; [AA]: in enhanced mode wait for it after the CA"
    )
    rejected: Rejected = Field(Rejected(), description="what becomes of what the receiver did not take")

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Send]:
        links = Links(
            self.connect,
            self.tls,
            count=self.connections,
            timeout_s=self.timeout,
            max_frame_bytes=host.limits.message,
            who=f"mllp {self.connect}",
        )
        async with linked(links, keep=self.keep_open):
            yield partial(self._send, links)

    async def _send(self, links: Links, message: Message) -> Message:
        body = message.body
        header = read_header(body)
        if header is None:
            raise MessageError(
                f"mllp: the body begins with {body[:20]!r}, expected an HL7 v2 message, MSH first; "
                "add a step that makes one, such as format: hl7"
            )
        control_id = header.field(10).strip()
        if not control_id:
            raise MessageError("mllp: MSH-10 is empty, expected the id that the answer will name; set it")
        if b"\x0b" in body:
            raise MessageError("mllp: the body contains 0B, which starts an MLLP frame; leave it out")
        framed = Mllp(max_frame_bytes=_ALL_OF_IT).frame(body)
        twice = header.field(16).strip().upper() in (b"AL", b"SU", b"ER")
        codes = frozenset((*self.accepted, "AE", "AR", "CE", "CR"))
        payload, answer = await links.ask(framed, control_id, codes, twice=twice, keep=self.keep_open)
        if answer.code in self.accepted:
            acknowledgement = read_header(payload)
            return Message(
                raw=payload,
                content_type=HL7,
                type=(acknowledgement.type if acknowledgement else "") or "ACK",
                transport={"peer": str(self.connect), "code": answer.code},
            )
        why = f": {answer.text:.200}" if answer.text.isprintable() and answer.text else ""
        text = f"mllp {self.connect}: answered {answer.code} for message {control_id[:40].decode('latin-1')}{why}"
        then = self.rejected.AE if answer.code[1] == "E" else self.rejected.AR
        raise MessageError(text) if then == "dead_letter" else PeerError(text)
