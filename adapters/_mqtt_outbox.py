"""What an MQTT link sent and has no answer to yet: packet ids, the broker's window, one timer for all."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from adapters._mqtt_packets import Answer
from gateway import PeerError

MAX_UNANSWERED = 1024
"""Packets of one link that wait for an answer, at most; the broker may allow fewer."""
_MAX_ID = 65_535


class _Sent(Struct, gc=False):
    answer: asyncio.Future[Answer]
    deadline_s: float


class Outbox:
    """Gives packet ids to what is sent, in the order in which it came, and their answers back.

    late: called when an answer did not come in time. A packet id can't be used again before, so the link has to end.
    """

    def __init__(self, peer: str, late: Callable[[PeerError], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._peer = peer
        self._late = late
        self._sent: dict[int, _Sent] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._admitted = 0
        self._last_id = 0
        self._timer: asyncio.TimerHandle | None = None
        self._error: PeerError | None = None
        self.window = MAX_UNANSWERED
        self.paused = False
        """Whether the broker reads slower than we write."""
        self.unread = ""
        """While we read nothing, why: the answer may be among it."""

    @property
    def busy(self) -> bool:
        """Whether `room` would wait."""
        return (
            self.paused or len(self._sent) >= self.window or self._admitted > 0 or bool(self._waiting)
        ) or self._error is not None

    async def room(self, deadline_s: float) -> None:
        """Returns when it is the caller's turn to send, who then must send before anything else is awaited.

        Raises:
            PeerError: it did not come in time, or the link was lost.
        """
        if self._error is not None:
            raise self._again(self._error)
        turn: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(turn)
        self._admit_soon()
        try:
            async with asyncio.timeout_at(deadline_s):
                await turn
        except TimeoutError:
            waiting = f"{len(self._sent)} packets wait for its acknowledgement"
            raise PeerError(f"{self._peer}: the broker is slow: {waiting}") from None
        finally:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._admitted -= 1
                self._admit_soon()
            elif turn in self._waiting:
                self._waiting.remove(turn)

    def next_id(self) -> int:
        """A packet id that is free."""
        packet_id = self._last_id
        while True:
            packet_id = packet_id % _MAX_ID + 1
            if packet_id not in self._sent:
                self._last_id = packet_id
                return packet_id

    def sent(self, packet_id: int, deadline_s: float) -> asyncio.Future[Answer]:
        """A packet with this id was sent: its answer, once it comes. Cancelling it gives up the wait, not the id."""
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._sent[packet_id] = _Sent(answer, deadline_s)
        if self._timer is None:
            self._timer = self._loop.call_at(deadline_s, self._find_late)
        return answer

    def answered(self, answer: Answer) -> None:
        """An answer came. One that nobody waits for is ignored."""
        sent = self._sent.pop(answer.packet_id, None)
        if sent is not None and not sent.answer.done():
            sent.answer.set_result(answer)
        if self._waiting:
            self.admit()

    def admit(self) -> None:
        """Lets those who wait send, as far as there is room."""
        room = self.window - len(self._sent) - self._admitted
        while room > 0 and self._waiting and not self.paused:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._admitted += 1
                room -= 1

    def close(self, error: PeerError) -> None:
        """The link is lost: all that wait hear this error."""
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
        for sent in self._sent.values():
            if not sent.answer.done():
                sent.answer.set_exception(self._again(error))
                sent.answer.exception()  # who sent it may have given up: then nobody needs to hear it
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(self._again(error))
        self._sent.clear()

    def _admit_soon(self) -> None:
        # Not at once: who was admitted just now has still to send, and order is kept.
        self._loop.call_soon(self.admit)

    def _find_late(self) -> None:
        now_s = self._loop.time()
        late = [sent for sent in self._sent.values() if sent.deadline_s <= now_s]
        if late:
            text = f"{self._peer}: the broker did not answer a packet in time{self.unread}"
            for sent in late:
                if not sent.answer.done():
                    sent.answer.set_exception(PeerError(text, reconnect=True, too_late=True))
            self._late(PeerError(text, reconnect=True))
        elif self._sent:
            self._timer = self._loop.call_at(min(sent.deadline_s for sent in self._sent.values()), self._find_late)
        else:
            self._timer = None

    @staticmethod
    def _again(error: PeerError) -> PeerError:
        return PeerError(str(error), reconnect=True)
