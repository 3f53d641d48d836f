"""What the engine and its components promise each other. The first file to read.

The gateway decides, adapters touch the world, transforms are pure. An adapter module holds `Source`, `Sink` and
`Connection`; a transform module holds `Format` or `Step`. Each is a frozen settings class (`gateway.Settings`) that
also runs, found by the name of its module: nothing registers itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

from msgspec import Struct

from gateway.limits import Limits
from gateway.message import Formats, Message, Outcome, Principal, Tree

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Send = Callable[[Message], Awaitable[Message | None]]
"""Inside a route: hands a message to a target and returns its reply, or None when it has none.

Returning means delivered, as the sink's documentation defines it. Called concurrently. Cancelling the call gives up
the wait for the answer, never the link that others use.

Raises:
    MessageError: this message can't be delivered there, now or later.
    PeerError: the peer did not take it now; `reconnect=True`: and the link is broken.
"""

Deliver = Callable[[Message], Awaitable[Outcome]]
"""At the edge of a route: takes a message in and returns what became of it. Never raises, except CancelledError.

Call it concurrently; outcomes come in any order. Cancelling a call cancels the wait, not the message: it may be
accepted all the same.
"""


@runtime_checkable
class Offers(Protocol):
    """A `Deliver` that may take a message without a task that waits for the outcome: where a commit is all to wait for.

    Sources that can do with a call back ask for it (`isinstance(deliver, Offers)`); all must do with `Deliver`.
    """

    def offer(self, message: Message, then: Callable[[Outcome], None]) -> bool:
        """Takes the message in, and calls `then` with the outcome: at once, later, or when the source is gone.

        `then` never raises. False: nothing was done and `then` is not called. Hand it over as usual; how it is refused
        is found out there.
        """
        ...


class Clock(Protocol):
    """Time, so that tests can bend it."""

    def time(self) -> float:
        """Seconds since 1970-01-01 UTC. May jump; for display and for records only."""
        ...

    def monotonic(self) -> float:
        """Seconds from an unknown start. Never goes back; for every wait and age."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns after that many seconds."""
        ...


class Credentials(Struct, frozen=True):
    """What a peer showed to say who it is. Each field that is None was not shown."""

    username: str | None = None
    password: str | None = None
    bearer: str | None = None
    certificate_subject: str | None = None
    address: str | None = None


class Shared(Protocol[T_co]):
    """A connection or a listener that several components use: equal settings are one instance.

    It is hashable, and equal to another one with the same settings. The first user opens, the last closes.

    One that has a property `place`, a text such as `tcp port 8081`, stays open while routes are changed: a user that
    comes until then finds it as it was. Before another one with the same place is opened it is closed.
    """

    def open(self, host: Host) -> AbstractAsyncContextManager[T_co]:
        """Opens it for as long as the context lasts; a PeerError out of the context means that the link was lost."""
        ...


class Host(Protocol):
    """What the engine lends to a component while it runs."""

    route: str
    """The name of the route; of a shared connection, that of the connection."""
    target: str
    """The name of the target or call that a sink serves: the stable id that it sends is `message.id + "." + target`."""
    wants_reply: bool
    """Whether somebody needs the reply of a sink; if not, one that can't be read is no reason to send again."""
    limits: Limits
    data: Path
    """A folder of the gateway's own, 0700."""
    clock: Clock
    formats: Formats
    """Formats by content type, with the route's limits."""

    def share(self, what: Shared[T]) -> AbstractAsyncContextManager[T]:
        """The one open instance of `what`. The context ends with PeerError(reconnect=True) when the link is lost."""
        ...

    async def identify(self, credentials: Credentials) -> Principal:
        """Who this is.

        Raises:
            MessageError: code "unauthenticated": these credentials are not known here.
        """
        ...

    async def settled(self, message_id: str, wait_s: float) -> Outcome | None:
        """What became of a stored message: Accepted once every target has it, Refused once it is dead or expired.

        None: neither within that many seconds.
        """
        ...

    def refused(self, code: str, reason: str, peer: str) -> None:
        """Counts and logs what was refused before it was a message, and its sender was told so: too large, say.

        reason: as the sender heard it, but with nothing of the body. peer: the sender's address.
        """
        ...

    def dropped(self, count: int, why: str) -> None:
        """Counts messages that an at-most-once component had to let go; `why` is a constant word such as "full"."""
        ...


@runtime_checkable
class Source(Protocol):
    """Where messages come from (`from`). Its body is its lifecycle: cancel = stop, PeerError = start me again later.

    It hands messages over through `gateway.Workers`, settles each with its peer by the outcome, and never settles
    before it. When it loses its link it discards the outcomes that it can no longer report, never the work.
    """

    @property
    def answers(self) -> bool:
        """Whether the sender waits for, and is told, the outcome. If not, a refusal becomes a dead letter first."""
        ...

    async def run(self, host: Host, deliver: Deliver, ready: Callable[[], None]) -> None:
        """Takes messages until cancelled. Calls `ready` once it can take the first one (listening, subscribed).

        Raises:
            PeerError: the link could not be made or was lost. The engine runs it again after a growing wait.
        """
        ...


@runtime_checkable
class Names(Protocol):
    """A `Source` that reads in the body what a message is. Optional.

    The engine asks it where a message comes into its route in another way: by REST, or replayed edited.
    """

    def named(self, body: bytes) -> tuple[str, str | None] | None:
        """The type and the sender's id that the source gives to a message with this body; None: it is none for it."""
        ...


@runtime_checkable
class Sink(Protocol):
    """Where messages go (`to`, `call`, `tap`). What exists only while connected is local to `open`."""

    def open(self, host: Host) -> AbstractAsyncContextManager[Send]:
        """Connects for as long as the context lasts. The engine holds it in a task of its own.

        Raises:
            PeerError: out of the context: the link could not be made or was lost. The engine opens it again.
        """
        ...


@runtime_checkable
class Format(Protocol):
    """Bytes to tree and back: one class, both directions, one set of settings, so a round trip is its contract."""

    content_types: ClassVar[tuple[str, ...]]
    """What it reads; the first is what it writes. Without parameters, in lower case."""

    def parse(self, body: bytes, content_type: str, limits: Limits) -> Tree:
        """The tree of these bytes; `content_type` carries the parameters (charset, boundary).

        Raises:
            MessageError: code "malformed": the bytes are not of this format, or over a limit.
        """
        ...

    def format(self, tree: Tree) -> bytes:
        """The bytes of this tree.

        Raises:
            MessageError: this format can't carry that tree.
        """
        ...


@runtime_checkable
class Step(Protocol):
    """One step of a route: pure and synchronous. What waits, branches or remembers is a pattern.

    One that does more than to change the message says so. `acts: ClassVar[bool] = True`: it is run for messages that
    came, never to try something out. `pure: ClassVar[bool] = False`: it may not give the same again, so what came of
    it is stored before it is sent.
    """

    def __call__(self, message: Message, /) -> Message | None:
        """The message as it goes on; None: filtered, it goes no further and counts as handled.

        Raises:
            MessageError: the message can't pass.
        """
        ...
