"""`python: shop.orders:priced`: a function of your own, called with the message."""

from __future__ import annotations

import importlib
import inspect
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema

from gateway import JSON, Message, MessageError, Settings

_NAME = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")
_TOLD = "a step of the gateway failed on this message"
"""All that a sender hears of a mistake in a function."""
_SHOWN = 200


@dataclass(frozen=True)
class Function:
    """A function that was found by its name, `package.module:name`. Equal: of the same name."""

    name: str
    run: Callable[[Message], Any] = field(compare=False, repr=False)
    file: str | None = field(compare=False, repr=False)


def _function(value: object) -> Function:
    if isinstance(value, Function):
        return value
    written = _NAME.fullmatch(value) if isinstance(value, str) else None
    if written is None:
        shown = f'"{value}"' if isinstance(value, str) else repr(value)
        raise ValueError(f"expected package.module:name, such as shop.orders:priced, got {shown:.80}")
    module = _module(written[1])
    found = getattr(module, written[2], None)
    if found is None:
        raise ValueError(_missing(module, written[1], written[2]))
    wrong = _misfit(found)
    if wrong is not None:
        raise ValueError(f"{written[0]} {wrong}")
    return Function(written[0], found, getattr(module, "__file__", None))


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ValueError(
                f"there is no module {error.name}: install its package beside the gateway, or start the gateway with "
                "the folder that holds it in PYTHONPATH"
            ) from None
        raise ValueError(f"{name} can't be imported: {_said(error)}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{name} can't be imported: {_said(error)}") from error


def _missing(module: ModuleType, name: str, wanted: str) -> str:
    known = sorted(key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_")
    near = get_close_matches(wanted, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known[:10])}" if known else "it has no functions"
    return f'{name} has no function "{wanted}"; {hint}'


def _misfit(found: Any) -> str | None:
    """Why this can't be called with a message for what becomes of it; None: it can."""
    if inspect.isclass(found) or not callable(found):
        return f"is {'a class' if inspect.isclass(found) else type(found).__name__}, expected a function"
    forms = (found, found.__call__)
    if any(inspect.iscoroutinefunction(form) for form in forms):
        return "is async, and a step can't wait; write it with def, and ask others with call:"
    if any(inspect.isgeneratorfunction(form) or inspect.isasyncgenfunction(form) for form in forms):
        return "is a generator, expected a function that returns; split: makes many messages of one"
    try:
        signature = inspect.signature(found)
    except ValueError:  # some that are written in C do not say
        return None
    try:
        signature.bind(None)
    except TypeError:
        return f"takes {signature}, expected one argument, the message"
    return None


FunctionField = Annotated[
    Function,
    PlainValidator(_function),
    PlainSerializer(lambda function: function.name, return_type=str),
    WithJsonSchema({"type": "string", "title": "function", "examples": ["shop.orders:priced"]}),
]


class Step(Settings):
    """Calls a function of your own with the message, a `gateway.Message`; what it returns goes on.

    It returns a tree (a mapping, a list, a text, a number), which is a new body in JSON; or a message, made of the one
    that it was given with `message.with_tree(…)`, `with_body(…)` or `replace(…)`; or None for the message as it came.
    What it was given it leaves as it is. A `MessageError` that it raises refuses the message, and its text is what the
    sender hears; any other exception is told to operators only.

    The module is imported when `routes.yaml` is loaded, from an installed package or a folder in PYTHONPATH; changed
    code is read at the next start. The function runs in the gateway, with all that the gateway may do, and everything
    waits until it returns: it is to be quick, and to wait for nobody. It may run again after a crash.
    """

    short: ClassVar[str] = "function"
    acts: ClassVar[bool] = True
    pure: ClassVar[bool] = False

    function: FunctionField = Field(description="`package.module:name` of a function that takes the message")

    def __call__(self, message: Message) -> Message:
        try:
            made = self.function.run(message)
        except MessageError:
            raise
        except (Exception, SystemExit) as error:
            raise self._fault(f"raised {_said(error, self.function.file)}") from error
        if made is None:
            return message
        if isinstance(made, Message):
            if made.id != message.id:
                raise self._fault("returned a message of another id; make it of the one that it is given")
            return made
        if isinstance(made, dict | list | str | int | float | Decimal):
            return self._written(message.with_tree(made, JSON))
        if inspect.iscoroutine(made):
            made.close()
        raise self._fault(
            f"returned {type(made).__name__}, expected a message, a tree such as a mapping, or None; bytes are "
            "message.with_body(…)"
        )

    def _written(self, message: Message) -> Message:
        """The message with its tree as bytes: what JSON can't carry is told here, and nobody else holds the tree."""
        try:
            return message.with_body(message.body)
        except MessageError as error:
            raise self._fault(f"returned a tree that JSON can't carry: {error}") from error

    def _fault(self, text: str) -> MessageError:
        return MessageError(f"python: {self.function.name} {text}", code="internal", told=_TOLD)


def _said(error: BaseException, file: str | None = None) -> str:
    """Type and text of an exception, and where it was raised: the line in this file, or without one, file and line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    if file is not None:
        frames = [frame for frame in frames if frame.filename == file]
    elif frames and not frames[-1].filename.startswith("<"):
        return f"{said} ({Path(frames[-1].filename).name} line {frames[-1].lineno})"
    return f"{said} (line {frames[-1].lineno})" if frames and file is not None else said
