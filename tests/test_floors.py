"""Who may import what, beyond the floors that `lint-imports` checks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateway

ROOT = Path(__file__).parent.parent
COMPONENTS = sorted([*(ROOT / "adapters").glob("*.py"), *(ROOT / "transforms").glob("*.py")])
# The journal (sqlite) is no plug-in: it is the engine's own store, behind a port of its own, and may see lower floors.
# A failpoint marks a place, wherever that is.


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module in {"adapters", "transforms"}:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def allowed(name: str, file: Path) -> bool:
    top, _, rest = name.partition(".")
    if top == "gateway":
        return not rest or "sqlite" in file.name or name == "gateway.failpoints"
    if top in {"adapters", "transforms"}:
        return rest.startswith("_") and not (top == "adapters" and file.parent.name == "transforms")
    return True


@pytest.mark.parametrize("file", COMPONENTS, ids=lambda file: f"{file.parent.name}.{file.stem}")
def test_a_component_imports_the_plug_in_api_and_underscore_files_only(file: Path) -> None:
    assert [name for name in imported(file) if not allowed(name, file)] == []


def test_the_plug_in_api_says_all_that_it_exports() -> None:
    public = {name for name in vars(gateway) if not name.startswith("_")}
    modules = {name for name in public if hasattr(getattr(gateway, name), "__path__") or name in _submodules()}
    assert public - modules - {"annotations"} == set(gateway.__all__)


def _submodules() -> set[str]:
    return {path.stem for path in (ROOT / "gateway").glob("*.py")} | {
        path.parent.name for path in (ROOT / "gateway").glob("*/__init__.py")
    }
