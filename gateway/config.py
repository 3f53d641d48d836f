"""`routes.yaml` → checked settings. Every complaint at once, each with file, line, column and what to write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gateway.checks import components_of, cross_checks, notes, tls_fault
from gateway.documents import (
    Complaint,
    Complaints,
    Document,
    complaints_of,
    did_you_mean,
    masked,
    parse,
    read,
    subject_of,
)
from gateway.language import File, Gateway, Route, checked_name
from gateway.path import word_of
from gateway.registry import BROKEN_CONNECTION, read_component
from gateway.settings import Address, AddressField, Loading, ServerTls, Settings
from gateway.tls import out_of_date

Loc = tuple[str | int, ...]

_ADDRESS: TypeAdapter[Address] = TypeAdapter(AddressField)


@dataclass(frozen=True)
class Configured:
    """One route as configured. Equal: nothing that it depends on has changed (files that it names included)."""

    name: str
    settings: Route
    files: Mapping[Path, str]


@dataclass(frozen=True)
class Config:
    """A whole configuration that can run."""

    path: Path
    gateway: Gateway
    routes: Mapping[str, Configured]
    connections: Mapping[str, Any]
    """The clients that routes share, by name."""
    shown: Mapping[str, Any] = field(repr=False)
    """The file as written, for display: with references, never with secrets."""
    notes: tuple[str, ...] = ()
    """What an operator should know of it: where messages can be lost, with file and line."""
    secrets: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict, repr=False)
    """By route, the references in it and in the connections, each with its secret."""

    def hidden(self, route: str, text: str) -> str:
        """A text about a route, for display: with references, never with secrets."""
        return masked(text, self.secrets.get(route, ()))


def load(path: Path) -> Config:
    """The configuration in a file, or in a folder whose `*.yaml` files are merged.

    Raises:
        Complaints: all that is wrong with it.
    """
    return _read(lambda: read(path), path)


def load_text(text: str, path: Path) -> Config:
    """The configuration in a text, as if it stood in the file at `path`; nothing is written.

    Raises:
        Complaints: all that is wrong with it.
    """
    return _read(lambda: parse(text, path), path)


def _read(document: Callable[[], Document], path: Path) -> Config:
    try:
        return _Reading(document(), path).config()
    except Complaints as found:
        if not isinstance(found.document, Document):
            raise
        # A machine that has not all secrets, such as one that only checks, still hears what else is wrong.
        complaints = [*found.complaints, *_others(found.document, path, [each.subject for each in found.complaints])]
    raise Complaints(complaints)


def _others(document: Document, path: Path, without_value: list[str]) -> list[Complaint]:
    """What else is wrong with it; not what may only follow from the references that have no value."""
    try:
        _Reading(document, path).config()
    except Complaints as found:
        return [
            complaint
            for complaint in found.complaints
            if complaint.text.startswith(("a required key", "unknown key"))
            or not _holds(complaint.subject, without_value)
        ]
    return []


def _holds(subject: str, others: list[str]) -> bool:
    """Whether one of the others is this, or stands inside of it."""
    return any(other.startswith(subject) and other[len(subject) :][:1] in ("", ".", "[") for other in others)


class _Listener(Settings):
    tls: ServerTls | None = None


class _Reading:
    """Reads one document section by section, collecting complaints."""

    def __init__(self, document: Document, path: Path) -> None:
        self._document = document
        self._path = path
        self._complaints: list[Complaint] = []
        self._notes: list[tuple[Loc, str]] = []
        self._connections: dict[str, Any] = {}
        self._listeners: dict[Address, ServerTls | None] = {}
        self._used: set[str] = set()

    def config(self) -> Config:
        data = self._document.data
        self._check_top(data)
        gateway = self._read_gateway(data.get("gateway"))
        self._read_listeners(data.get("listeners"))
        self._read_connections(data.get("connections"))
        routes = self._read_routes(data.get("routes"), gateway)
        known = {name: route.settings for name, route in routes.items()}
        written = data.get("routes")
        all_known = not isinstance(written, dict) or len(known) == len(written)
        for place, text in cross_checks(known, api=gateway.api.listen if gateway else None, all_known=all_known):
            self._complain(place, text)
        self._check_certificates(routes)
        if not self._complaints:
            self._check_unused()
        if self._complaints or gateway is None:
            raise Complaints(self._complaints)
        found = [*self._notes, *notes(known, gateway)]
        told = tuple(self._note(self._as_written(place), text) for place, text in found)
        shared = self._document.secrets(("connections",))
        secrets = {name: (*self._document.secrets(("routes", name)), *shared) for name in routes}
        return Config(self._path, gateway, routes, self._connections, self._document.raw, told, secrets)

    def _note(self, place: Loc, text: str) -> str:
        return f"{self._document.place(place)}: {subject_of(place)}: {text}"

    def _check_top(self, data: dict[str, Any]) -> None:
        known = list(File.model_fields)
        for key in data:
            if key not in known:
                hint = did_you_mean(key, known) or f"; there are: {', '.join(known)}"
                self._complain((key,), f'unknown key "{key}"{hint}', key=True)
        if "version" not in data:
            self._complain((), "a required key is missing: version; write version: 1 at the top")
        elif data["version"] != 1 or isinstance(data["version"], bool):
            self._complain(("version",), f"expected 1, got {self._document.shown(('version',))}")
        if not isinstance(data.get("routes"), dict) or not data["routes"]:
            self._complain(("routes",), "expected at least one route, as name: {from: …, to: …}")

    def _read_gateway(self, value: Any) -> Gateway | None:
        given = value if isinstance(value, dict) else {}
        if value is not None and not isinstance(value, dict):
            self._complain(("gateway",), f"expected key: value, got {self._document.shown(('gateway',))}")
        try:
            return Gateway.model_validate({**Gateway.defaults, **given}, context=self._loading(("gateway",)))
        except ValidationError as error:
            self._complaints += complaints_of(error, self._document, ("gateway",), Gateway)
            return None

    def _read_listeners(self, value: Any) -> None:
        for text in self._mapping(value, ("listeners",)):
            place: Loc = ("listeners", text)
            try:
                address = _ADDRESS.validate_python(text)
                settings = _Listener.model_validate(value[text], context=self._loading(place))
            except ValidationError as error:
                self._complaints += complaints_of(error, self._document, place, _Listener)
                continue
            self._listeners[address] = settings.tls
            self._check_tls(place, settings)

    def _read_connections(self, value: Any) -> None:
        for name in self._mapping(value, ("connections",)):
            place: Loc = ("connections", name)
            self._check_name(name, place)
            try:
                self._connections[name] = read_component("Connection", value[name], self._loading(place))
                continue
            except ValidationError as error:
                self._complaints += complaints_of(error, self._document, place)
            except ValueError as error:
                self._complain(place, str(error))
            self._connections[name] = None

    def _read_routes(self, value: Any, gateway: Gateway | None) -> dict[str, Configured]:
        routes: dict[str, Configured] = {}
        common = (self._document.data.get("gateway") or {}).get("limits") if gateway else None
        for name in self._mapping(value, ("routes",)):
            place: Loc = ("routes", name)
            self._check_name(name, place)
            given = value[name]
            if not isinstance(given, dict):
                self._complain(place, "expected a route as key: value, with from: and to:")
                continue
            if common and isinstance(given.get("limits", {}), dict):
                given = {**given, "limits": {**common, **given.get("limits", {})}}
            loading = self._loading(place)
            try:
                settings = Route.model_validate(given, context=loading)
                routes[name] = Configured(name, settings, loading.files)
            except ValidationError as error:
                self._complaints += [
                    complaint
                    for complaint in complaints_of(error, self._document, place, Route)
                    if complaint.text != BROKEN_CONNECTION
                ]
        return routes

    def _check_certificates(self, routes: dict[str, Configured]) -> None:
        shared = [connection for connection in self._connections.values() if connection is not None]
        for name, connection in self._connections.items():
            if connection is not None:
                self._check_tls(("connections", name, word_of(connection)), connection)
        for name, route in routes.items():
            for place, component in components_of(route.settings, ("routes", name)):
                connection = getattr(component, "connection", None)
                self._check_tls(place, component if connection in [None, *shared] else connection)

    def _check_tls(self, place: Loc, settings: Any) -> None:
        """Complains of certificates and keys that can't be used: at load, not when the first link is opened."""
        tls = getattr(settings, "tls", None)
        fault = tls_fault(tls)
        if fault is not None:
            self._complain((*place, "tls"), fault)
        elif tls is not None and tls.certificate is not None:
            late = out_of_date(tls.certificate, datetime.now(UTC))
            if late is not None:
                self._notes.append(((*place, "tls", "certificate"), late))

    def _check_unused(self) -> None:
        for name in self._connections:
            if f"connections.{name}" not in self._used:
                self._complain(("connections", name), "no route uses this connection; use it or remove it", key=True)
        for text in self._document.data.get("listeners") or {}:
            if f"listeners.{_ADDRESS.validate_python(text)}" not in self._used:
                self._complain(("listeners", text), "no route listens on this address; use it or remove it", key=True)

    def _mapping(self, value: Any, place: Loc) -> list[str]:
        if value is None:
            return []
        if not isinstance(value, dict):
            self._complain(place, f"expected name: {{…}} entries, got {self._document.shown(place)}")
            return []
        return list(value)

    def _check_name(self, name: str, place: Loc) -> None:
        try:
            checked_name(name)
        except ValueError as error:
            self._complain(place, str(error), key=True)

    def _loading(self, place: Loc) -> Loading:
        return Loading(
            folder=self._document.folder(place),
            connections=self._connections,
            listeners={address: tls for address, tls in self._listeners.items() if tls is not None},
            used=self._used,
        )

    def _complain(self, place: Loc, text: str, *, key: bool = False) -> None:
        self._complaints.append(self._document.complaint(self._as_written(place), text, key=key))

    def _as_written(self, place: Loc) -> Loc:
        """The place without the index of what stands alone where a list may stand."""
        written: Loc = ()
        for part in place:
            if isinstance(part, int) and not isinstance(self._document.value(written), list):
                continue
            written = (*written, part)
        return written
