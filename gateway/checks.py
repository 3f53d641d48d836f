"""What a single setting can't know: checks across the parts of a route and across routes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.errors import ConfigError
from gateway.language import Gateway, Route, Target
from gateway.path import Pattern, word_of
from gateway.patterns import Call, Choose, Split, Tap, Try, When
from gateway.settings import Address, ClientTls, ListenAt, ServerTls
from gateway.tls import client_context, server_context

Loc = tuple[str | int, ...]
Finding = tuple[Loc, str]

ENOUGH_RESERVE = 128 * 1024**2
"""What the journal needs of the disk to deliver what it has: its log of up to 64 MiB, and as much to write it."""
_CHECKS = ("validate", "filter", "parse")


def cross_checks(
    routes: Mapping[str, Route], *, api: Address | None = None, all_known: bool = True
) -> Iterator[Finding]:
    """What is wrong, with its place.

    api: where the gateway's own API listens.
    all_known: these are all routes of the file; else nothing is said of what may be in the others.
    """
    for name, route in routes.items():
        at: Loc = ("routes", name)
        yield from _names(route, at)
        yield from _accept(route, at)
        yield from _acknowledgement(route, at)
        yield from _dead_letter(route, at)
    yield from _claims(routes)
    yield from _addresses(routes, api)
    yield from _channels(routes, all_known=all_known)


def notes(routes: Mapping[str, Route], gateway: Gateway) -> Iterator[Finding]:
    """Where messages can be lost or stuck although nothing is wrong: at-most-once components say so of themselves."""
    if gateway.retention.reserve < ENOUGH_RESERVE:
        yield (
            ("gateway", "retention", "reserve"),
            "the journal's own log may fill less than 128MiB, and then nothing is delivered; give it more, "
            "unless 5 % of the disk are",
        )
    for name, route in routes.items():
        at: Loc = ("routes", name)
        for place, component in (
            *_sources(route, at),
            *((where, target.sink) for where, target in _targets(route, at)),
        ):
            said = getattr(component, "at_most_once", None)
            if said:
                yield place, f"at most once: {said}"


def _names(route: Route, at: Loc) -> Iterator[Finding]:
    seen: dict[str, Loc] = {}
    named = [(place, target.name) for place, target in _targets(route, at)]
    named += [(place, step.name) for place, step in steps_of(route, at) if isinstance(step, Call)]
    for place, name in named:
        if name in seen:
            yield place, f'the name "{name}" is taken in this route; give this one a name: of its own'
        seen[name] = place


def _accept(route: Route, at: Loc) -> Iterator[Finding]:
    for index, step in enumerate(route.accept):
        if word_of(step) not in _CHECKS:
            yield (
                (*at, "accept", index),
                f"{word_of(step)} is no check: accept takes {', '.join(_CHECKS)}; write it under steps:",
            )


def _acknowledgement(route: Route, at: Loc) -> Iterator[Finding]:
    if route.order_by is not None and route.ack != "stored":
        yield (*at, "order_by"), f"it needs ack: stored, got ack: {route.ack}; order is kept by the journal"
    if route.ack != "stored":
        for place, target in _targets(route, at):
            if "retry" in target.model_fields_set and target is not route.dead_letter:
                yield (
                    (*place, "retry"),
                    f"it needs ack: stored, got ack: {route.ack}: without the journal the sender tries again, not we",
                )
    if route.ack == "reply":
        if len(route.to) > 1 and route.match == "all":
            yield (
                (*at, "to"),
                "ack: reply needs one target, or match: first; with several nobody knows whose reply counts",
            )
        for place, target in _targets(route, at):
            if getattr(target.sink, "replies", None) is False and target is not route.dead_letter:
                word = word_of(target.sink)
                yield (
                    (*place, word),
                    f"ack: reply needs a target that replies, and {word} as it is here gives none; use ack: delivered, "
                    "or a target that answers (http, mllp, tcp and amqp with reply:)",
                )
        for place, step in steps_of(route, at):
            if isinstance(step, Split) and step.join is None:
                yield place, "ack: reply needs a split with join: list; otherwise nobody knows whose reply counts"


def _dead_letter(route: Route, at: Loc) -> Iterator[Finding]:
    """What would be said of the target for dead letters in vain."""
    given = set() if route.dead_letter is None else route.dead_letter.model_fields_set
    for key in ("when", "retry"):
        if key in given:
            yield (
                (*at, "dead_letter", key),
                f"a target for dead letters has no {key}: it gets each one once, and the gateway keeps what it does "
                "not take; remove it",
            )


def components_of(route: Route, at: Loc) -> Iterator[tuple[Loc, Any]]:
    """Every source and sink of a route with the place of its settings."""
    yield from _sources(route, at)
    for place, target in _targets(route, at):
        yield (*place, word_of(target.sink)), target.sink
    for place, step in steps_of(route, at):
        if isinstance(step, Call | Tap):
            yield (*place, step.word, word_of(step.sink)), step.sink


def tls_fault(tls: ClientTls | ServerTls | None) -> str | None:
    """What is wrong with the files of these settings: no PEM, or a key of another certificate; None: nothing."""
    try:
        if isinstance(tls, ServerTls):
            server_context(tls)
        elif tls is not None and (tls.ca or tls.certificate):
            client_context(tls)
    except ConfigError as error:
        return str(error).removeprefix("tls: ")
    return None


def _claims(routes: Mapping[str, Route]) -> Iterator[Finding]:
    """Components name what they need for themselves (an address, a path on it) in `claims`."""
    taken: dict[str, str] = {}
    shared: dict[str, str] = {}
    for name, route in routes.items():
        at: Loc = ("routes", name)
        for place, component in (
            *_sources(route, at),
            *((where, target.sink) for where, target in _targets(route, at)),
        ):
            claims = claims_of(component)
            address = _listens_at(component)
            clashing = [(claim, taken[claim]) for claim in claims if claim in taken]
            if address is not None and address not in claims and address in taken:
                clashing.append((address, taken[address]))
            if address is not None and address in claims and address in shared:
                clashing.append((address, shared[address]))
            for claim, owner in clashing[:1]:
                yield place, f"{claim} is taken by {owner}; choose another"
            for claim in claims:
                taken.setdefault(claim, f"route {name}")
            if address is not None and address not in claims:
                shared.setdefault(address, f"{word_of(component)} of route {name}")


def _addresses(routes: Mapping[str, Route], api: Address | None) -> Iterator[Finding]:
    """Who listens on all addresses of a port leaves it to nobody else, and the API shares its address with nobody."""
    taken = {api: "gateway.api"} if api is not None and api.port else {}
    for name, route in routes.items():
        at: Loc = ("routes", name)
        for place, component in (
            *_sources(route, at),
            *((where, target.sink) for where, target in _targets(route, at)),
        ):
            listen = getattr(component, "listen", None)
            if not isinstance(listen, ListenAt) or not listen.address.port:
                continue
            mine = listen.address
            for other, owner in taken.items():
                shared = mine == other and other != api  # of routes that listen on one address: see _claims
                if mine.port == other.port and not shared and (mine == other or _everywhere(mine, other)):
                    yield place, f"{mine} is taken by {owner}, which listens on {other}; choose another"
                    break
            taken.setdefault(mine, f"route {name}")


def _everywhere(*addresses: Address) -> bool:
    """Whether one of them is all addresses of IPv4, and the others are of IPv4 as well."""
    hosts = [address.host for address in addresses]
    return "0.0.0.0" in hosts and not any(":" in host for host in hosts)  # noqa: S104 - compared, never bound


def claims_of(component: object) -> tuple[str, ...]:
    """What a component needs for itself alone: what it says in `claims`, else the address that it listens on."""
    said = getattr(component, "claims", None)
    if isinstance(said, tuple):
        return said
    address = _listens_at(component)
    if address is not None:
        return (address,)
    listen = getattr(component, "listen", None)  # not TCP's: its ports are others
    return (f"{word_of(component)} {listen}",) if isinstance(listen, Address) and listen.port else ()


def _listens_at(component: object) -> str | None:
    """The TCP address that it listens on; None: none, or any free port."""
    listen = getattr(component, "listen", None)
    return f"{listen}" if isinstance(listen, ListenAt) and listen.address.port else None


def _channels(routes: Mapping[str, Route], *, all_known: bool) -> Iterator[Finding]:
    readers: dict[str, list[str]] = {}
    for name, route in routes.items():
        for _, source in _sources(route, ()):
            if word_of(source) == "channel":
                readers.setdefault(getattr(source, "name", ""), []).append(name)
    writers: dict[str, list[tuple[Loc, str]]] = {}
    for name, route in routes.items():
        for place, sink in _all_sinks(route, ("routes", name)):
            if word_of(sink) != "channel":
                continue
            channel = getattr(sink, "name", "")
            writers.setdefault(name, []).append((place, channel))
            if channel not in readers and all_known:
                yield (
                    place,
                    f'nobody reads the channel "{channel}"; give a route from: {{channel: {channel}}}, or use drop',
                )
    yield from _cycles(readers, writers)


def _cycles(readers: dict[str, list[str]], writers: dict[str, list[tuple[Loc, str]]]) -> Iterator[Finding]:
    for start, sinks in writers.items():
        for place, channel in sinks:
            seen: set[str] = set()
            ahead = list(readers.get(channel, []))
            while ahead:
                route = ahead.pop()
                if route == start:
                    yield (
                        place,
                        f"the channel {channel} leads back to this route, {start}: messages would go round for ever",
                    )
                    break
                if route not in seen:
                    seen.add(route)
                    ahead += [reader for _, out in writers.get(route, []) for reader in readers.get(out, [])]


def _sources(route: Route, at: Loc) -> Iterator[tuple[Loc, Any]]:
    for index, source in enumerate(route.sources):
        yield (*at, "from", index, word_of(source)), source


def _targets(route: Route, at: Loc) -> Iterator[tuple[Loc, Target]]:
    for index, target in enumerate(route.to):
        yield (*at, "to", index), target
    if route.dead_letter is not None:
        yield (*at, "dead_letter"), route.dead_letter


def _all_sinks(route: Route, at: Loc) -> Iterator[tuple[Loc, Any]]:
    for place, target in _targets(route, at):
        yield place, target.sink
    for place, step in steps_of(route, at):
        if isinstance(step, Call | Tap):
            yield place, step.sink


def steps_of(route: Route, at: Loc) -> Iterator[tuple[Loc, Any]]:
    """Every step of a route with its place, those inside other steps too."""
    yield from _walk(route.accept, (*at, "accept"))
    yield from _walk(route.steps, (*at, "steps"))
    for place, target in _targets(route, at):
        yield from _walk(target.steps, (*place, "steps"))


def _walk(steps: tuple[Any, ...], at: Loc) -> Iterator[tuple[Loc, Any]]:
    for index, step in enumerate(steps):
        place: Loc = (*at, index)
        yield place, step
        if not isinstance(step, Pattern):
            continue
        inner: Loc = (*place, step.word)
        if isinstance(step, Choose):
            for number, branch in enumerate(step.branches):
                kind = "steps" if isinstance(branch, When) else "otherwise"
                yield from _walk(branch.steps if isinstance(branch, When) else branch.otherwise, (*inner, number, kind))
        elif isinstance(step, Split):
            yield from _walk(step.steps, (*inner, "steps"))
        elif isinstance(step, Try):
            yield from _walk(step.steps, (*inner, "steps"))
            yield from _walk(step.catch, (*inner, "catch"))
