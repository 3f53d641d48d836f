"""What the journal's writer is given to do, and who waits for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from adapters._sqlite_changes import Expansion, Prepared
from gateway.journal import Waiting

APPEND, END, CHANGES, CALL, PATIENT_CALL = range(5)
"""Kinds of operations. A call is a function of the tables; a patient one waits for room as changes do."""


class Then:
    """Calls something once an operation is durable: a third of what a future with a callback costs."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def done(self) -> bool:
        """Somebody always waits."""
        return False

    def set_result(self, _result: Any) -> None:
        """Calls."""
        self._call()

    def set_exception(self, _error: BaseException) -> None:
        """Calls nothing: a journal that is broken tells it to everybody."""


class Op:
    """Something to write, and who waits for it."""

    __slots__ = ("count", "data", "error", "future", "kind", "result", "size")

    def __init__(self, kind: int, data: Any, future: Waiting[Any], *, size: int = 0, count: int = 1) -> None:
        self.kind = kind
        self.data = data
        self.future = future
        self.size = size
        self.count = count
        """How many messages it is about."""
        self.result: Any = None
        self.error: Exception | None = None

    @property
    def patient(self) -> bool:
        """Whether it is kept until there is room: it moves messages on rather than bringing some."""
        return self.kind in (END, CHANGES, PATIENT_CALL)


def size_of(changes: Sequence[Prepared]) -> int:
    """About how many bytes of bodies these changes are."""
    return sum(len(parcel.body) for change in changes if isinstance(change, Expansion) for parcel in change.parcels)
