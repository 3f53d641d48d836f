"""Handing over without a task that waits for the outcome, where the route takes offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway import Deliver, Message, Offers, Outcome, Workers

Offer = Callable[[Message, Callable[[Outcome], None]], bool]


def offer_of(deliver: Deliver, workers: Workers[Any]) -> Offer | None:
    """`offer` of a `Deliver` as `Offers` has it; None: it takes none. What it says False to is for the workers.

    It says False as well while something that was put to the workers has not begun: nothing overtakes that.
    """
    if not isinstance(deliver, Offers):
        return None
    take = deliver.offer

    def offer(message: Message, then: Callable[[Outcome], None]) -> bool:
        return not workers.waiting and take(message, then)

    return offer
