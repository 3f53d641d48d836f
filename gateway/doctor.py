"""`gateway doctor`: which gateway this is, and what about its surroundings is known to bite."""

from __future__ import annotations

import importlib
import os
import platform
import re
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

DISTRIBUTION = "interchange-gateway"
PACKAGES = ("gateway", "adapters", "transforms")
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?([^;]*)(?:;(.*))?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w-]+)['"]""")
# SQLite's own notes on 3.51.3: with two connections that write or checkpoint, a reset of the WAL could corrupt it.
_WAL_BUG = ((3, 7, 0), (3, 51, 2))

Row = dict[str, Any]


@dataclass
class Findings:
    """What was found, section by section, and what to look at."""

    python: list[Row] = field(default_factory=list)
    packages: list[Row] = field(default_factory=list)
    libraries: list[Row] = field(default_factory=list)
    accelerators: list[Row] = field(default_factory=list)
    extras: list[Row] = field(default_factory=list)
    plugins: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def sections(self) -> Iterator[tuple[str, list[Row]]]:
        """Title and rows."""
        for name in ("python", "packages", "libraries", "accelerators", "extras", "plugins"):
            yield name.capitalize(), getattr(self, name)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**{title.lower(): rows for title, rows in self.sections()}, "warnings": self.warnings}


def examine() -> Findings:
    """Looks at this process and its installation; opens no connection and writes nothing."""
    found = Findings()
    _python(found)
    _packages(found)
    _libraries(found)
    _accelerators(found)
    _sqlite(found)
    _surroundings(found)
    for group in ("gateway.adapters", "gateway.transforms"):
        found.plugins += [
            {"group": group, "name": each.name, "module": each.value} for each in entry_points(group=group)
        ]
    return found


def _python(found: Findings) -> None:
    found.python = [
        {"what": "gateway", "is": _version(DISTRIBUTION) or "not installed"},
        {"what": "python", "is": f"{platform.python_implementation()} {platform.python_version()}"},
        {"what": "executable", "is": sys.executable},
        {"what": "system", "is": f"{platform.system()} {platform.release()} {platform.machine()}"},
        {"what": "tls", "is": ssl.OPENSSL_VERSION},
    ]
    try:
        import resource

        found.python.append({"what": "open files", "is": f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]} at most"})
    except ImportError:
        pass


def _packages(found: Findings) -> None:
    """The three top-level packages have ordinary names, so that another package may come first on the path."""
    home = Path(__file__).parent.parent
    for name in PACKAGES:
        module = importlib.import_module(name)
        folders = [Path(folder) for folder in module.__path__]
        found.packages.append({"package": name, "from": ", ".join(map(str, folders))})
        if folders != [home / name]:
            found.warnings.append(
                f"{name} was imported from {', '.join(map(str, folders))}, not from {home / name}: "
                f"another package of that name comes first; run the gateway in an environment of its own"
            )


def _libraries(found: Findings) -> None:
    extras: dict[str, list[str]] = {}
    for requirement in requires(DISTRIBUTION) or []:
        parsed = _REQUIREMENT.fullmatch(requirement)
        if parsed is None:
            continue
        name, wanted, marker = parsed[1], (parsed[2] or "").strip(), parsed[3] or ""
        extra = _EXTRA.search(marker)
        if extra is not None and extra[1] == "all":
            continue  # the others together
        if name == DISTRIBUTION or (extra is None and "win32" in marker and sys.platform == "win32"):
            continue
        has = _version(name)
        if extra is not None:
            extras.setdefault(extra[1], []).append(f"{name} {has or 'missing'}")
            if has is None:
                continue
        found.libraries.append({"library": name, "has": has or "missing", "wants": wanted or "any"})
        found.warnings += _too_old(name, has, wanted)
    for name, parts in extras.items():
        active = not any(part.endswith("missing") for part in parts)
        how = "active" if active else f"pip install '{DISTRIBUTION}[{name}]'"
        found.extras.append({"extra": name, "libraries": ", ".join(parts), "state": how})


def _too_old(name: str, has: str | None, wanted: str) -> Iterator[str]:
    if has is None:
        yield f"{name} is missing; install the gateway again"
        return
    for bound in wanted.split(","):
        sign, text = bound.strip()[:2], bound.strip().lstrip("<>=!~")
        if sign == ">=" and _numbers(has) < _numbers(text):
            yield f"{name} {has} is older than {text}, which the gateway needs; install it again with its dependencies"
        elif sign.startswith("<") and sign != "<=" and _numbers(has) >= _numbers(text):
            yield f"{name} {has} is newer than what the gateway knows (below {text}); install it again"


def _accelerators(found: Findings) -> None:
    yaml = importlib.import_module("yaml")
    known = (
        ("uvloop", "the event loop", _there("uvloop"), "asyncio's own loop is used"),
        ("httptools", "HTTP parsing", _there("httptools"), "HTTP sources do not work"),
        ("jsonschema-rs", "validate", _there("jsonschema_rs"), "validation is hundreds of times slower"),
        ("libyaml", "reading routes.yaml", bool(getattr(yaml, "__with_libyaml__", False)), "loading is slower"),
        ("msgspec", "JSON", _there("msgspec._core"), "JSON does not work"),
        ("websockets.speedups", "WebSocket frames", _there("websockets.speedups"), "masking is slow"),
    )
    for name, what, active, else_ in known:
        found.accelerators.append({"accelerator": name, "for": what, "state": "active" if active else f"off: {else_}"})
        if not active:
            found.warnings.append(f"{name} is off: {else_}; install the gateway again with its dependencies")


def _sqlite(found: Findings) -> None:
    try:
        has: str = importlib.import_module("apsw").sqlite_lib_version()
    except ImportError:
        return  # it is among the libraries that are missing
    found.libraries.append({"library": "SQLite in apsw", "has": has, "wants": ">3.51.2"})
    if _WAL_BUG[0] <= _numbers(has) <= _WAL_BUG[1]:
        found.warnings.append(
            f"SQLite {has} can corrupt its log (WAL reset, 3.7.0 to 3.51.2); install apsw 3.54 or newer"
        )


def _surroundings(found: Findings) -> None:
    if sys.flags.optimize:
        found.warnings.append("python runs with -O, which removes checks; run without it")
    if os.environ.get("PYTHONPATH"):
        found.warnings.append("PYTHONPATH is set, so that packages may come from elsewhere; unset it")
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        found.warnings.append("PROMETHEUS_MULTIPROC_DIR is set; metrics are of this process alone: unset it")
    if not sys.flags.utf8_mode and sys.getfilesystemencoding().lower() != "utf-8":
        found.warnings.append(f"file names are {sys.getfilesystemencoding()}, not UTF-8; set LC_ALL=C.UTF-8")


def _there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])
