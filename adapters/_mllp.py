"""What an mllp sink holds while it is open: links that carry one message at a time, each waiting for its answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple, cast

from adapters._frames_mllp import Mllp
from adapters._sockets import dial, lost, prepare
from gateway import Address, ClientTls, MessageError, PeerError
from transforms._hl7_ack import Answer, read_answer

_LATER = 64
"""Messages of one link whose second, application acknowledgement may still come."""
_NO_RETURN_S = 0.2
"""How long an end without its carriage return is given to bring one."""


class Answered(NamedTuple):
    """An acknowledgement: its bytes, and what it says."""

    payload: bytes
    answer: Answer


class _Question:
    """A message that was sent: whose answer is waited for, and which codes end the wait."""

    def __init__(self, control_id: bytes, codes: frozenset[str], *, twice: bool) -> None:
        self.control_id = control_id
        self.codes = codes
        self.twice = twice
        self.answered: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()


class _Link(asyncio.Protocol):
    """One connection to the receiver. It has one question at a time, and is closed by any answer that is not its."""

    def __init__(self, who: str, max_frame_bytes: int, gone: Callable[[_Link, PeerError], None]) -> None:
        self.open = False
        self._who = who
        self._framer = Mllp(max_frame_bytes=max_frame_bytes)
        self._skipped = 0  # when the question was asked
        self._gone = gone
        self._transport: asyncio.Transport | None = None
        self._question: _Question | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._error: PeerError | None = None
        self._answers = 0
        self._later: deque[bytes] = deque(maxlen=_LATER)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it
        self.open = True
        prepare(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        error = lost(self._who, exc, answered=self._answers > 0)
        if self._answers == 1:  # many old receivers want a connection for each message
            habit = "after one answer; if it always does so, set keep_open: false"
            error = PeerError(f"{error} {habit}", reconnect=True, answered=True)
        self._end(error)

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._framer.feed(data):
                self._heard(payload)
        except MessageError as error:
            self._end(PeerError(f"{self._who}: the answer can't be read: {error}", reconnect=True))
        if self.open and self._framer.ended:
            asyncio.get_running_loop().call_later(_NO_RETURN_S, self._take_ended, self._framer.pending)

    def ask(self, framed: bytes, question: _Question, timeout_s: float) -> None:
        """Sends a message; `question.answered` gets its answer, or the PeerError that ended the link."""
        assert self._question is None
        assert self._transport is not None
        self._question = question
        self._skipped = self._framer.skipped
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._too_late, timeout_s)
        # uvloop raises when a transport that the peer has closed is written to.
        if self._transport.is_closing():
            self._end(lost(self._who, None))
        else:
            self._transport.write(framed)

    def close(self, error: PeerError) -> None:
        """Ends the connection; who still waits for an answer gets this error."""
        if self._question is None and self.open and self._transport is not None:
            self._transport.close()
        self._end(error)

    def _take_ended(self, pending: int) -> None:
        if self.open and self._framer.ended and self._framer.pending == pending:
            payload = self._framer.eof()
            if payload is not None:
                self._heard(payload)

    def _heard(self, payload: bytes) -> None:
        if not self.open:
            return
        answer = read_answer(payload)
        question = self._question
        if answer is None:
            self._end(PeerError(f"{self._who}: answered {payload[:40]!r}, expected an HL7 MSA segment", reconnect=True))
        elif question is None or answer.control_id != question.control_id:
            if answer.control_id not in self._later:
                self._end(self._mismatch(answer, question))
        elif answer.code in question.codes:
            if answer.code[:1] == "C" and question.twice:
                self._later.append(question.control_id)
            self._settle()
            self._answers += 1
            question.answered.set_result(Answered(payload, answer))
        elif answer.code != "CA":  # when only AA will do, CA says that it is on its way
            self._end(
                PeerError(
                    f"{self._who}: the answer's MSA-1 is {answer.code!r:.20}, expected AA, AE, AR, CA, CE or CR",
                    reconnect=True,
                )
            )

    def _mismatch(self, answer: Answer, question: _Question | None) -> PeerError:
        found = f"{self._who}: an answer for message {answer.control_id[:40]!r} came"
        if question is None:
            return PeerError(f"{found}, expected none", reconnect=True)
        return PeerError(f"{found}, expected one for {question.control_id[:40]!r}", reconnect=True)

    def _too_late(self, timeout_s: float) -> None:
        count = self._framer.pending + self._framer.skipped - self._skipped
        but = f", but {count} bytes that are no whole MLLP frame: 0B, the answer, 1C 0D" if count else ""
        self._end(PeerError(f"{self._who}: no answer within {timeout_s:g} s{but}", reconnect=True, too_late=True))

    def _settle(self) -> None:
        self._question = None
        if self._timer is not None:
            self._timer.cancel()

    def _end(self, error: PeerError) -> None:
        if self._error is not None:
            return
        self._error = error
        self.open = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.abort()
        question = self._question
        if question is not None:
            self._settle()
            question.answered.set_exception(error)
        self._gone(self, error)


class Links:
    """Up to `count` connections to one receiver, dialled when there is something to send. Make it with `linked`.

    An error says `reconnect` when no connection is left: one that others still use need not be opened anew.
    """

    def __init__(
        self, address: Address, tls: ClientTls | None, *, count: int, timeout_s: float, max_frame_bytes: int, who: str
    ) -> None:
        self._address = address
        self._tls = tls
        self._timeout_s = timeout_s
        self._max_frame_bytes = max_frame_bytes
        self._who = who
        self._turns = asyncio.Semaphore(count)
        self._links: set[_Link] = set()
        self._free: list[_Link] = []
        self.when_none_is_left: Callable[[PeerError], None] = lambda error: None

    async def dial(self) -> None:
        """Makes a connection, to be used by the next message.

        Raises:
            PeerError: there is nobody, or not the one that the TLS settings expect.
            ConfigError: a file of the TLS settings can't be used.
        """
        self._free.append(await self._dialled())

    async def ask(
        self, framed: bytes, control_id: bytes, codes: frozenset[str], *, twice: bool, keep: bool
    ) -> Answered:
        """Sends a framed message over a connection of its own and returns the answer with one of these codes.

        twice: after a commit acknowledgement, a second one may come later. keep: the connection stays open.
        Cancelled, it leaves the connection to itself until the answer came or is late.

        Raises:
            PeerError: no connection, no answer in time, or one that is not for this message.
        """
        await self._turns.acquire()
        try:
            link = self._free.pop() if self._free else await self._dialled()
            question = _Question(control_id, codes, twice=twice)
            link.ask(framed, question, self._timeout_s)
        except BaseException:
            self._turns.release()
            raise

        def over(answered: asyncio.Future[Answered]) -> None:
            answered.exception()  # a cancelled caller does not take it
            if keep and link.open:
                self._free.append(link)
            else:
                link.close(PeerError(f"{self._who}: closed after its answer"))
            self._turns.release()

        question.answered.add_done_callback(over)
        try:
            return await asyncio.shield(question.answered)
        except PeerError as error:
            raise PeerError(
                str(error), reconnect=not self._links, too_late=error.too_late, answered=error.answered
            ) from error

    def close(self) -> None:
        """Closes all; who still waits for an answer gets a PeerError."""
        for link in list(self._links):
            link.close(PeerError(f"{self._who}: closed before the answer came", reconnect=True))

    async def _dialled(self) -> _Link:
        _, link = await dial(
            lambda: _Link(self._who, self._max_frame_bytes, self._gone),
            self._address,
            self._tls,
            timeout_s=self._timeout_s,
            who=self._who,
        )
        if not link.open:
            raise lost(self._who, None)
        self._links.add(link)
        return link

    def _gone(self, link: _Link, error: PeerError) -> None:
        if link in self._links:
            self._links.discard(link)
            if link in self._free:
                self._free.remove(link)
            if not self._links:
                self.when_none_is_left(error)


@asynccontextmanager
async def linked(links: Links, *, keep: bool) -> AsyncIterator[Links]:
    """The links, open for as long as the context lasts; `keep`: with a connection from the start to the end.

    Raises:
        PeerError: out of the context: no connection could be made, or the last one was lost.
    """
    if not keep:
        try:
            yield links
        finally:
            links.close()
        return
    loop = asyncio.get_running_loop()
    scope = asyncio.timeout(None)
    why: list[PeerError] = []

    def none_is_left(error: PeerError) -> None:
        why.append(error)
        if not scope.expired():
            scope.reschedule(loop.time())

    try:
        await links.dial()
        async with scope:
            links.when_none_is_left = none_is_left
            try:
                yield links
            finally:
                links.when_none_is_left = lambda error: None
    except TimeoutError as error:
        if not scope.expired() or not why:
            raise
        raise PeerError(str(why[0]), reconnect=True, answered=why[0].answered) from error
    finally:
        links.close()
