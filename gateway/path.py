"""Steps, compiled at load to one path: plain steps are called, only what waits is awaited."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, Literal, Protocol, runtime_checkable

from gateway.errors import MessageError
from gateway.journal import Hop
from gateway.message import Message
from gateway.ports import Clock, Send, Sink, Step

HOP_BYTES = 64 * 1024
"""With `history: full`, how much of a body is kept before and after each step."""
MOST_HOPS, MOST_HOP_BYTES = 100, 1024**2
"""How many steps of one message are kept, and bodies around them in all: a split can have any number of children."""


class Trace:
    """Takes down which steps changed, ended or split a message, for its history."""

    def __init__(self, hops: list[Hop], history: str) -> None:
        self._hops = hops
        self._room = MOST_HOP_BYTES if history == "full" else 0

    def note(
        self,
        place: str,
        outcome: Literal["changed", "filtered", "split"],
        before: Message,
        after: Message | None = None,
    ) -> None:
        """One step, and with `history: full` the bodies around it."""
        if len(self._hops) >= MOST_HOPS:
            return
        if self._room <= 0:
            self._hops.append(Hop(place, outcome))
            return
        hop = Hop(place, outcome, _shown(before), _shown(after))
        self._room -= len(hop.before or b"") + len(hop.after or b"")
        self._hops.append(hop)


def _shown(message: Message | None) -> bytes | None:
    try:
        return None if message is None else message.body[:HOP_BYTES]
    except MessageError:  # nobody may need its bytes: that is no reason to refuse it
        return None


Walk = Callable[[Message, Trace | None], Awaitable[list[Message]]]
"""What a pattern runs as: one message in; those that go on out, none when it was filtered."""


class Binding(Protocol):
    """What a route lends to its patterns when it starts."""

    clock: Clock

    def path(self, steps: Sequence[Step | Pattern], place: str) -> Path:
        """These steps, bound to the same route."""
        ...

    def call(self, sink: Sink, name: str) -> Send:
        """A send to a sink that the route holds open, with the route's retry."""
        ...

    def tap(self, sink: Sink, name: str) -> Callable[[Message], None]:
        """A best-effort hand-over to a sink that the route holds open: dropped and counted when full."""
        ...

    def remember(self, place: str, window_s: float, most: int) -> Callable[[str, str], Awaitable[str]]:
        """A memory on disk of this place: called with a key and a value, it gives the first value of that key, which
        is this one when the key is new, was last set longer than the window ago, or is not among the `most` newest."""
        ...


@runtime_checkable
class Pattern(Protocol):
    """A step that waits, branches or remembers."""

    word: ClassVar[str]

    @property
    def pure(self) -> bool:
        """Whether running it again on the same message gives the same and touches nothing."""
        ...

    def bind(self, binding: Binding, place: str) -> Walk:
        """The pattern as it runs in one route; `place` is where it stands, such as `steps.2.choose`."""
        ...


class Path:
    """A bound list of steps. Call it with a message to get those that go on."""

    def __init__(self, steps: Sequence[Step | Pattern], binding: Binding, place: str) -> None:
        self.pure = all(getattr(step, "pure", True) for step in steps)
        self._parts: list[_Plain | Walk] = []
        plain: list[tuple[str, Step]] = []
        for index, step in enumerate(steps):
            at = f"{place}.{index}.{word_of(step)}"
            if isinstance(step, Pattern):
                if plain:
                    self._parts.append(_Plain(plain))
                    plain = []
                self._parts.append(_placed(step.bind(binding, at), at))
            else:
                plain.append((at, step))
        if plain:
            self._parts.append(_Plain(plain))
        only_plain = len(self._parts) == 1 and isinstance(self._parts[0], _Plain)
        self.plain: _Plain | None = self._parts[0] if only_plain else None  # type: ignore[assignment]
        """All of it as one plain call, when nothing in it waits: message to message, None when filtered."""
        self.empty = not self._parts

    def ended_by(self, message: Message) -> tuple[str, Step] | None:
        """Place and step at which a message ends, found by running it again; None: a pattern is among the steps."""
        return None if self.plain is None else self.plain.ended_by(message)

    async def __call__(self, message: Message, trace: Trace | None = None) -> list[Message]:
        """The messages that go on. trace: takes down what the steps do; None: nobody asks.

        Raises:
            MessageError: with `place`, from the step that refused it.
            PeerError: from a call that could not be made.
        """
        messages = [message]
        for part in self._parts:
            if isinstance(part, _Plain):
                run = part
                if trace is None:
                    messages = [after for before in messages if (after := run(before)) is not None]
                else:
                    messages = [after for before in messages if (after := run.traced(before, trace)) is not None]
            else:
                messages = [after for before in messages for after in await part(before, trace)]
        return messages


class _Plain:
    """Steps that are called one after the other."""

    __slots__ = ("_places", "_steps", "_written")

    def __init__(self, steps: list[tuple[str, Step]]) -> None:
        self._written = steps
        self._places = [place for place, _ in steps]
        self._steps = [step.__call__ for _, step in steps]

    def __call__(self, message: Message) -> Message | None:
        index = 0
        after: Message | None = message
        try:
            for step in self._steps:
                after = step(after)  # type: ignore[arg-type]
                if after is None:
                    return None
                index += 1
        except MessageError as error:
            error.place = error.place or self._places[index]
            raise
        return after

    def ended_by(self, message: Message) -> tuple[str, Step] | None:
        """Place and step at which this message ends."""
        after: Message | None = message
        for place, step in self._written:
            assert after is not None
            after = step(after)
            if after is None:
                return place, step
        return None

    def traced(self, message: Message, trace: Trace) -> Message | None:
        """As a call, noting each step that changed, ended or refused the message."""
        after: Message | None = message
        for step, place in zip(self._steps, self._places, strict=True):
            before = after
            assert before is not None
            try:
                after = step(before)
            except MessageError as error:
                error.place = error.place or place
                raise
            if after is None:
                trace.note(place, "filtered", before)
                return None
            if after is not before:
                trace.note(place, "changed", before, after)
        return after


def _placed(walk: Walk, place: str) -> Walk:
    async def placed(message: Message, trace: Trace | None) -> list[Message]:
        try:
            return await walk(message, trace)
        except MessageError as error:
            error.place = error.place or place
            raise

    return placed


def word_of(component: object) -> str:
    """The word of `routes.yaml` that names this component: the name of its module, or a pattern's own word."""
    word = getattr(component, "word", None)
    return word if isinstance(word, str) else type(component).__module__.rpartition(".")[2]
