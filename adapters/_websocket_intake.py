"""What a WebSocket source does with what it hears: messages out of frames, and frames out of outcomes."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial

from adapters import _websocket_words as words
from adapters._handover import offer_of
from adapters._websocket_link import INTERNAL_ERROR, TRY_AGAIN_LATER, Link
from gateway import (
    JSON,
    Accepted,
    Deferred,
    Deliver,
    Host,
    Message,
    MessageError,
    Outcome,
    Refused,
    Workers,
)

log = logging.getLogger("gateway.websocket")

_BUSY = "the gateway takes nothing now"
_LAG_BODIES = 4
"""How many answers of the largest size a peer may leave unread; then it is closed."""


@dataclass(frozen=True)
class Terms:
    """What a source agreed with its senders."""

    confirm: bool
    reply: bool
    content_type: str | None


class Slot:
    """A message on its way, and its answer once it has one."""

    __slots__ = ("answer", "link", "mark", "message", "size", "text")

    def __init__(self, link: Link, message: Message, size: int, mark: bytes) -> None:
        self.link = link
        self.message = message
        self.size = size
        self.mark = mark
        """What the sender knows it by, as JSON."""
        self.answer: bytes | None = None
        self.text = True


class Intake:
    """Hands over what links hear, and answers as agreed. A context: its workers run for as long as it lasts."""

    def __init__(self, host: Host, deliver: Deliver, terms: Terms) -> None:
        self.taken = 0
        """Messages handed over and not yet settled."""
        self.answers = terms.confirm or terms.reply
        self.hears_rest = not self.answers
        self._host = host
        self._deliver = deliver
        self._confirm = terms.confirm
        self._in_turn = terms.reply and not terms.confirm
        self._content_type = terms.content_type
        self._text_type = terms.content_type or JSON
        self._binary_type = terms.content_type or words.BINARY
        self._most_taken = 2 * host.limits.in_flight
        self._most_lag = max(_LAG_BODIES * host.limits.message, 1024 * 1024)
        self._idle = asyncio.Event()
        self.workers = Workers(self._work, count=host.limits.in_flight, name=f"{host.route}:websocket")
        self._offer = offer_of(deliver, self.workers) if self.answers else None

    # A hearer of links

    @property
    def full(self) -> bool:
        """Whether twice as many are taken as the route lets in."""
        return self.taken >= self._most_taken

    def heard(self, link: Link, data: bytes, *, text: bool) -> None:
        """Makes a message of a frame and hands it over."""
        if self._confirm:
            self._heard_confirmed(link, data, text=text)
            return
        content_type = self._text_type if text else self._binary_type
        message = Message(raw=data, content_type=content_type, headers=link.headers, transport=link.facts[text])
        slot = Slot(link, message, len(data), b"")
        if self._in_turn:
            link.slots.append(slot)
        self._put(slot)

    def _heard_confirmed(self, link: Link, data: bytes, *, text: bool) -> None:
        envelope = words.opened(data) if text else None
        facts = link.facts[text]
        if envelope is None:
            content_type = self._text_type if text else self._binary_type
            message = Message(raw=data, content_type=content_type, headers=link.headers, transport=facts)
            mark = words.mark_of(message.id, link.count)
        else:
            try:
                body, content_type = words.body_of(envelope, self._content_type)
            except MessageError as error:
                mark = words.mark_of(str(envelope.id)[: words.MOST_ID])
                self._host.refused(error.code, str(error), str(facts.get("peer", "")))
                link.send(words.nack(mark, str(error), error.code), text=True)
                link.settled(len(data))
                return
            sender_id = str(envelope.id)
            message = Message(
                raw=body, content_type=content_type, headers=link.headers, transport=facts, sender_id=sender_id
            )
            mark = words.mark_of(envelope.id)
        self._put(Slot(link, message, len(data), mark))

    def _put(self, slot: Slot) -> None:
        self.taken += 1
        offer = self._offer
        if offer is None or not offer(slot.message, partial(self._told, slot)):
            self.workers.put(slot)

    def missed(self, why: str) -> None:
        """Counts it, where the sender can't be told."""
        if not self.answers:
            self._host.dropped(1, why)

    def gone(self, link: Link) -> None:
        """Its outcomes can't be told any more; the work goes on."""
        link.slots.clear()

    async def settled(self) -> None:
        """Returns once everything that was taken is settled."""
        while self.taken:
            self._idle.clear()
            await self._idle.wait()

    # Outcomes

    async def _work(self, slot: Slot) -> None:
        message = slot.message
        outcome = await self._deliver(message)
        if not self.answers:
            while type(outcome) is Deferred:
                await self._host.clock.sleep(outcome.wait_s)
                outcome = await self._deliver(message)
        self._told(slot, outcome)

    def _told(self, slot: Slot, outcome: Outcome) -> None:
        """The outcome is known."""
        link = slot.link
        self.taken -= 1
        if not self.taken:
            self._idle.set()
        try:
            if link.open:
                self._answer(slot, outcome)
        except Exception:  # one link's answer must not end what serves them all
            log.exception("answer failed", extra={"route": self._host.route, "message_id": slot.message.id})
            link.close(INTERNAL_ERROR, "the gateway failed on an answer")
        link.settled(slot.size)

    def _answer(self, slot: Slot, outcome: Outcome) -> None:
        link = slot.link
        if self._confirm:
            link.send(self._verdict(slot, outcome), text=True)
        elif self._in_turn:
            slot.answer = self._said(slot, outcome)
            while link.slots and link.slots[0].answer is not None:
                done = link.slots.popleft()
                assert done.answer is not None
                link.send(done.answer, text=done.text)
        elif type(outcome) is Accepted and outcome.reply is not None:
            link.send(self._said(slot, outcome), text=slot.text)
        else:
            return
        if type(outcome) is Deferred and not (outcome.too_late or outcome.answerless):
            # Not one target: the gateway itself is full, stopping, or can't write its journal.
            link.part(TRY_AGAIN_LATER, _BUSY)
        elif link.lag_bytes > self._most_lag:
            link.part(TRY_AGAIN_LATER, "too slow")

    def _verdict(self, slot: Slot, outcome: Outcome) -> bytes:
        match outcome:
            case Accepted(reply=reply):
                try:
                    return words.ack(slot.mark, reply)
                except MessageError as error:
                    # It is done: to say otherwise would have it sent again.
                    log.warning("reply not sent", extra={"route": self._host.route, "reason": str(error)})
                    return words.ack(slot.mark)
            case Refused(code=code):
                return words.nack(slot.mark, _reason(outcome), code)
            case Deferred(wait_s=wait_s):
                return words.retry(slot.mark, wait_s)

    def _said(self, slot: Slot, outcome: Outcome) -> bytes:
        """The reply, or why there is none, where messages have no ids."""
        match outcome:
            case Accepted(reply=None):
                return b""
            case Accepted(reply=reply):
                assert reply is not None
                try:
                    body = reply.body
                except MessageError as error:
                    log.warning("reply not sent", extra={"route": self._host.route, "reason": str(error)})
                    return words.error("the target's reply can't be passed on", "bad_reply")
                slot.text = words.is_text(body, reply.content_type)
                return body
            case Refused(code=code):
                return words.error(_reason(outcome), code)
            case Deferred(wait_s=wait_s):
                # The reason names what is inside; the sender needs to know no more than what to do.
                kind = "too_late" if outcome.too_late else "answerless" if outcome.answerless else "busy"
                return words.error("no answer now; try again", kind, wait_s)


def _reason(outcome: Refused) -> str:
    if outcome.code == "internal":
        return "the gateway failed on this message; its operator finds why by the id"
    return outcome.reason
