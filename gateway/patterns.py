"""Integration patterns that wait or branch: steps of `routes.yaml` that hold other steps or sinks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, WithJsonSchema, model_validator

from gateway.errors import MessageError, PeerError
from gateway.expressions import Expression
from gateway.message import JSON, Message, Tree
from gateway.path import Binding, Path, Pattern, Trace, Walk
from gateway.ports import Sink, Step
from gateway.registry import component_in, read_component, with_hints
from gateway.settings import Settings
from gateway.units import Duration, duration


def _read_step(value: Any, info: ValidationInfo) -> Any:
    return read_component("Step", value, info.context, PATTERNS)


def _read_steps(value: Any) -> Any:
    if not isinstance(value, list):
        raise ValueError("expected a list of steps: write each on its own line after a dash")
    return value


StepField = Annotated[Any, BeforeValidator(_read_step), WithJsonSchema({"x-component": "Step"})]
Steps = Annotated[tuple[StepField, ...], BeforeValidator(_read_steps)]
"""A list of steps and patterns."""


class When(Settings):
    """One branch of a choose: its steps run when its condition holds."""

    when: Expression = Field(description="the condition")
    steps: Steps = Field(description="the steps of this branch")


class Otherwise(Settings):
    """The last branch of a choose: its steps run when no condition held."""

    otherwise: Steps = Field(description="the steps when no condition held")


def _read_branch(value: Any, info: ValidationInfo) -> When | Otherwise:
    kind = Otherwise if isinstance(value, Mapping) and "otherwise" in value else When
    try:
        return kind.model_validate(value, context=info.context)
    except ValidationError as error:
        raise with_hints(error, "a branch", kind) from error


class Choose(Settings):
    """Content-Based Router: runs the steps of the first branch whose `when` holds, or those of `otherwise`.

    Without an `otherwise`, a message that no branch takes goes on unchanged.
    """

    word: ClassVar[str] = "choose"
    nameless: ClassVar[str] = "branches"
    branches: tuple[Annotated[When | Otherwise, BeforeValidator(_read_branch)], ...] = Field(
        min_length=1, description="`when:` with `steps:`, any number of them, and one `otherwise:` at the end"
    )

    @model_validator(mode="after")
    def _otherwise_is_last(self) -> Choose:
        if any(isinstance(branch, Otherwise) for branch in self.branches[:-1]):
            raise ValueError("otherwise stands before another branch, which it makes unreachable; put it last")
        return self

    @property
    def pure(self) -> bool:
        """Whether all steps of all branches are."""
        return all(_pure(_steps_of(branch)) for branch in self.branches)

    def bind(self, binding: Binding, place: str) -> Walk:
        """The pattern as it runs."""
        paths: list[tuple[Expression | None, Path]] = [
            (
                branch.when if isinstance(branch, When) else None,
                binding.path(_steps_of(branch), f"{place}.{index}"),
            )
            for index, branch in enumerate(self.branches)
        ]

        async def walk(message: Message, trace: Trace | None) -> list[Message]:
            for when, path in paths:
                if when is None or when.holds(message):
                    return await path(message, trace)
            return [message]

        return walk


def _steps_of(branch: When | Otherwise) -> tuple[Step | Pattern, ...]:
    return branch.steps if isinstance(branch, When) else branch.otherwise


class Split(Settings):
    """Splitter: one message for each element of a list, each with an id derived from its parent's.

    In its steps and after, `body` is the element. With `join: list` they come together again: `body` is the list of
    what came out. When the steps refuse one element, the whole message is refused, and nothing of it was sent.
    """

    word: ClassVar[str] = "split"
    pure: ClassVar[bool] = False
    each: Expression = Field(description="what to split: an expression that gives a list")
    steps: Steps = Field((), description="steps that each element goes through")
    join: Literal["list"] | None = Field(None, description="`list`: the results become one message again, in order")

    def bind(self, binding: Binding, place: str) -> Walk:
        """The pattern as it runs."""
        path = binding.path(self.steps, f"{place}.steps")

        async def walk(message: Message, trace: Trace | None) -> list[Message]:
            elements = self.each(message)
            if not isinstance(elements, list | tuple):
                raise MessageError(
                    f"split: {self.each.text} is {_kind(elements)}, expected a list; "
                    "write an expression that gives a list"
                )
            if trace is not None:
                trace.note(place, "split", message)
            out: list[Message] = []
            for index, element in enumerate(elements):
                out += await path(message.child(place, index).with_tree(element, JSON), trace)
            if self.join is None:
                return out
            joined = message.with_tree([child.tree for child in out], JSON)
            if trace is not None:
                trace.note(place, "changed", message, joined)
            return [joined]

        return walk


class Call(Settings):
    """Content Enricher: sends the message to a sink, waits for its reply and puts it into a named place.

    Without `into` the reply's body becomes the body. The route's `retry:` covers it.
    """

    word: ClassVar[str] = "call"
    pure: ClassVar[bool] = False
    sink: Sink = Field(description="where to send: the name of a sink with its settings")
    into: str | None = Field(
        None,
        pattern=r"^(body|context)(\.[A-Za-z_][A-Za-z0-9_-]*)+$",
        description="where the reply's body goes: `body.` or `context.` and a path; default: it becomes the body",
    )
    name: str = Field("", description="its name in metrics and in the stable id; default: the sink's word")

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, value: Any, handler: Any, info: ValidationInfo) -> Call:
        return component_in(cls, "sink", "Sink", value, handler, info.context)

    def bind(self, binding: Binding, place: str) -> Walk:
        """The pattern as it runs."""
        send = binding.call(self.sink, self.name)
        into = self.into.split(".") if self.into else None

        async def walk(message: Message, trace: Trace | None) -> list[Message]:
            reply = await send(message)
            if reply is None:
                raise MessageError(f"call {self.name}: it gives no reply; use it as a target, or a sink that replies")
            answered = _with_reply(message, reply, into)
            if trace is not None:
                trace.note(place, "changed", message, answered)
            return [answered]

        return walk


def _with_reply(message: Message, reply: Message, into: list[str] | None) -> Message:
    if into is None:
        if reply.raw is None:
            return message.with_tree(reply.tree, reply.content_type)
        return message.replace(raw=reply.raw, parsed=reply.parsed, content_type=reply.content_type)
    reply.formats = message.formats
    if into[0] == "context":
        return message.replace(context=_with(dict(message.context), into[1:], reply.tree, "context"))
    return message.with_tree(_with(message.tree, into[1:], reply.tree, "body"), JSON)


class Tap(Settings):
    """Wire Tap: hands a copy to a sink, best effort: dropped and counted when it is full or away.

    What must arrive is a target of the route, not a tap.
    """

    word: ClassVar[str] = "tap"
    pure: ClassVar[bool] = True
    nameless: ClassVar[str] = "sink"
    sink: Sink = Field(description="where the copies go: the name of a sink with its settings")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        return {"sink": read_component("Sink", value["sink"], info.context)}

    def bind(self, binding: Binding, place: str) -> Walk:
        """The pattern as it runs."""
        hand_over = binding.tap(self.sink, place)

        async def walk(message: Message, trace: Trace | None) -> list[Message]:
            hand_over(message.child(place))
            return [message]

        return walk


class Try(Settings):
    """Runs steps; when one of them fails, the message goes through the `catch` steps instead, as it was before.

    In `catch`, `context.error` has `text`, `place` and `kind`: `refused` (the content is wrong) or `unavailable`
    (a call found its peer away).
    """

    word: ClassVar[str] = "try"
    steps: Steps = Field(description="the steps to try")
    catch: Steps = Field(
        description="the steps for a message that those refused; an empty list lets it go on unchanged"
    )

    @property
    def pure(self) -> bool:
        """Whether all of its steps are."""
        return _pure(self.steps) and _pure(self.catch)

    def bind(self, binding: Binding, place: str) -> Walk:
        """The pattern as it runs."""
        path, catch = binding.path(self.steps, f"{place}.steps"), binding.path(self.catch, f"{place}.catch")

        async def walk(message: Message, trace: Trace | None) -> list[Message]:
            try:
                return await path(message, trace)
            except MessageError as error:
                caught: dict[str, Any] = {"kind": "refused", "text": str(error), "place": error.place}
            except PeerError as error:
                caught = {"kind": "unavailable", "text": str(error), "place": place}
            return await catch(message.replace(context={**message.context, "error": caught}), trace)

        return walk


class Dedupe(Settings):
    """Idempotent Consumer: a message that came before, within a window, is acknowledged and goes no further.

    What came before is remembered on disk, for a time and up to a number. A message whose `by` is empty can't be
    compared, and goes on. A message that runs again after a crash, or is replayed, is no duplicate of itself. One that
    became a dead letter, or was discarded, has come all the same: replay it, as its sender's next try ends here. In a
    route that stores nothing, a message is remembered once it is delivered; until then the same one is deferred.
    """

    word: ClassVar[str] = "dedupe"
    pure: ClassVar[bool] = True
    by: Expression | None = Field(
        None, description="what makes two messages the same; default: the sender's own id, `message.sender_id`"
    )
    window: Duration = Field(duration("24h"), gt=0, description="how long a message is remembered after it came first")
    max_count: int = Field(
        1_000_000, ge=1, description="how many are remembered; when there are more, those that came first are forgotten"
    )

    def bind(self, binding: Binding, place: str) -> Walk:
        """The pattern as it runs."""
        remember = binding.remember(place, self.window, self.max_count)

        async def walk(message: Message, trace: Trace | None) -> list[Message]:
            value = message.sender_id if self.by is None else self.by(message)
            if value is None or value == "":
                return [message]
            first = await remember(str(value), message.id)
            if first in (message.id, message.causation_id):
                return [message]
            if trace is not None:
                trace.note(place, "filtered", message)
            return []

        return walk


PATTERNS: dict[str, type[Settings]] = {pattern.word: pattern for pattern in (Choose, Split, Call, Tap, Try, Dedupe)}
"""The patterns by their words, which no plug-in may take."""


def _pure(steps: tuple[Step | Pattern, ...]) -> bool:
    return all(getattr(step, "pure", True) for step in steps)


def _with(tree: Tree, path: list[str], value: Tree, at: str) -> dict[str, Any]:
    """A copy of the tree with the value at the path; mappings on the way are made where they miss."""
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise MessageError(f"call: {at} is {_kind(tree)}, expected a mapping to put {path[0]!r} into")
    head, rest = path[0], path[1:]
    return {**tree, head: _with(tree.get(head), rest, value, f"{at}.{head}") if rest else value}


def _kind(value: object) -> str:
    return {
        dict: "a mapping",
        list: "a list",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }.get(type(value), "a number")
