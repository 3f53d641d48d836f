"""Dead letters by filter: all that match are sent again or discarded, at a rate, and what is done matches no more."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec
from fastapi import APIRouter, Request, Response

from gateway.api.access import OPERATE, Caller, Calling
from gateway.api.bodies import answer, moment, one_of, only, read_json
from gateway.api.control import Control, Running
from gateway.api.messages import let_go, poke, replay_one
from gateway.api.problems import Problem
from gateway.failpoints import failpoint
from gateway.journal import REASONS, Filter
from gateway.route import Route
from gateway.units import rate

log = logging.getLogger("gateway.api")

router = APIRouter(prefix="/api/v1/dead-letters", tags=["dead letters"])

CHUNK = 256
MOST = 100_000
"""How many one call handles at most; `more` in its answer says that there are others: call again."""
RATE = "1000/s"
FILTERS = ("route", "reason", "since", "until", "q", "correlation_id", "sender_id")


class Bulk(msgspec.Struct, forbid_unknown_fields=True):
    """Which dead letters, and how fast. What is not given does not matter; without a filter `all` has to be true."""

    route: str | None = None
    reason: str | None = None
    since: str | None = None
    until: str | None = None
    q: str | None = None
    correlation_id: str | None = None
    sender_id: str | None = None
    rate: str = RATE
    all: bool = False


class BulkReplay(Bulk, forbid_unknown_fields=True):
    """As `Bulk`; `target`: only what is for this one."""

    target: str | None = None


Chosen = tuple[str, str]
"""The id of a dead letter and its route."""


@router.post("/replay", dependencies=OPERATE)
async def replay(request: Request, control: Running, caller: Calling) -> Response:
    """Sends all dead letters that match again, those first that came first."""
    only(request)
    wanted = await read_json(request, BulkReplay)
    bulk = _Bulk(control, request, wanted, caller)

    async def replayed(route: str, ids: Sequence[str]) -> None:
        running = control.routes.get(route)
        target = wanted.target
        names = [] if running is None else [one.name for one in running.inside.targets]
        if running is None:
            bulk.skip("route_gone", len(ids))
        elif target is not None and target not in names:
            bulk.skip("unknown_target", len(ids))
        elif running.delivering is None:
            if target is None or names == [target]:
                await _one_by_one(bulk, running, ids)
            else:  # they go to all targets
                bulk.skip("nothing_to_replay", len(ids))
        else:
            done = await control.services.journal.replay(ids, target, caller.shown)
            bulk.done += done
            if done < len(ids):
                bulk.skip("nothing_to_replay", len(ids) - done)
            failpoint("replay.bulk")
            if running.paused and done:
                bulk.paused.add(route)
            poke(running)

    return await bulk.run("replayed", replayed)


async def _one_by_one(bulk: _Bulk, route: Route, ids: Sequence[str]) -> None:
    """Dead letters of a route that stores nothing."""
    for message_id in ids:
        detail = await bulk.control.services.journal.find(message_id)
        if detail is None:
            continue
        try:
            await replay_one(bulk.control, route, detail, None, bulk.caller)
            bulk.done += 1
        except Problem as problem:
            bulk.skip(problem.code, 1)


@router.post("/discard", dependencies=OPERATE)
async def discard(request: Request, control: Running, caller: Calling) -> Response:
    """Discards all dead letters that match. Their bodies are kept until retention removes them."""
    only(request)
    wanted = await read_json(request, Bulk)
    bulk = _Bulk(control, request, wanted, caller)

    async def discarded(route: str, ids: Sequence[str]) -> None:
        done = await control.services.journal.discard(ids, caller.shown)
        control.services.observed.route(route).discarded += done
        bulk.done += done
        let_go(control.routes.get(route), ids)

    return await bulk.run("discarded", discarded)


class _Bulk:
    """One bulk action: what it chose, how it goes on, what it has done."""

    def __init__(self, control: Control, request: Request, wanted: Bulk, caller: Caller) -> None:
        self.control = control
        self.caller = caller
        self.done = 0
        self.paused: set[str] = set()
        """Routes that keep what was replayed until they are resumed."""
        self._wanted = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value}
        if wanted.q is not None:
            self._wanted["q"] = "(hidden)"  # what people search for may be of the messages, and no thing for a log
        self._request = request
        if not wanted.all and all(getattr(wanted, name) is None for name in FILTERS):
            text = f'expected a filter ({", ".join(FILTERS)}), or "all": true for all dead letters'
            raise Problem(422, "invalid", text)
        for name in FILTERS:
            if getattr(wanted, name) == "":  # a script's variable that is not set would mean every dead letter
                raise Problem(422, "invalid", f"{name}: expected a text, got an empty one; leave it out, or say it")
        one_of("reason", wanted.reason, REASONS)
        self._skipped: Counter[str] = Counter()
        clock = control.services.clock
        until_s = moment("until", wanted.until, clock)
        self._filter = Filter(
            route=wanted.route,
            status="dead",
            reason=wanted.reason,
            since_s=moment("since", wanted.since, clock),
            until_s=until_s,
            text=wanted.q,
            correlation_id=wanted.correlation_id,
            sender_id=wanted.sender_id,
        )
        try:
            self._rate = rate(wanted.rate)
        except ValueError as error:
            raise Problem(422, "invalid", f"rate: {error}") from None
        if self._rate <= 0:
            raise Problem(422, "invalid", f"rate: expected more than 0, got {wanted.rate}")

    def skip(self, code: str, count: int) -> None:
        """Notes messages that stay dead, and why."""
        self._skipped[code] += count

    async def run(self, word: str, act: Callable[[str, Sequence[str]], Awaitable[None]]) -> Response:
        """Acts on all that were there when it began, oldest first, and says how many."""
        chosen, more = await self._chosen()
        stopped = False
        async for route, ids in self._paced(chosen):
            if await self._request.is_disconnected() or self.control.phase == "stopping":
                stopped = True
                break
            await act(route, ids)
        told = {"count": self.done, "skipped": dict(self._skipped), "wanted": self._wanted, "by": self.caller.shown}
        log.info(word, extra=told)
        paused = {"paused": sorted(self.paused)} if self.paused else {}
        return answer({word: self.done, "skipped": dict(self._skipped), "more": more or stopped, **paused})

    async def _chosen(self) -> tuple[list[Chosen], bool]:
        """What matches now, oldest first: a message that dies again while we work is not sent twice."""
        chosen: list[Chosen] = []
        cursor = None
        while len(chosen) < MOST:
            page = await self.control.services.journal.browse(self._filter, cursor, 500)
            chosen += [(row.id, row.route) for row in page.rows]
            cursor = page.next
            if cursor is None:
                return chosen[::-1], False
        return chosen[::-1], True

    async def _paced(self, chosen: list[Chosen]) -> AsyncIterator[tuple[str, list[str]]]:
        """Runs of messages of one route, no faster than the rate: at most a tenth of a second's worth at once."""
        clock = self.control.services.clock
        size = max(1, min(CHUNK, int(self._rate / 10)))
        began, given = clock.monotonic(), 0
        while given < len(chosen):
            route = chosen[given][1]
            ids = []
            for message_id, its_route in chosen[given : given + size]:
                if its_route != route:
                    break
                ids.append(message_id)
            wait_s = began + given / self._rate - clock.monotonic()
            if wait_s > 0:
                await clock.sleep(wait_s)
            yield route, ids
            given += len(ids)
