"""The repository speaks of the product alone, and keeps to its own habits."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.playground import ROOT

_TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".json", ".txt", ".sh", ".conf", ".lock", ""}
_LINES_MAX = 500
"""About 400 is the aim; what grows beyond this is two things."""
_HOMELESS = {"utils", "util", "helpers", "common", "misc", "base", "core", "manager"}


def _files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        found = [ROOT / line for line in listed.stdout.splitlines()]
    else:
        found = [path for path in ROOT.rglob("*") if not {".venv", ".git"} & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in found if path.is_file() and path.suffix in _TEXT)


FILES = _files()
OURS = [path for path in FILES if path.parts[len(ROOT.parts)] in {"gateway", "adapters", "transforms"}]
CODE = [path for path in OURS if path.suffix == ".py"]

# In pieces, so that this file does not hold what it looks for.
UNWANTED = {
    "a path of one machine": r"(?<![\w.])/(?:ho" + r"me/\w|ro" + r"ot/\w|Use" + r"rs/\w|wo" + r"rk/\w)",
    "a host of a package registry": r"py" + r"pi\.|python" + r"hosted|npm" + r"js\.|crates" + r"\.io|gh" + r"cr\.io",
    "what is left to do": r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX)\b",
    "who or what wrote it": r"(?i)\b(?:cla"
    + r"ude|chat"
    + r"gpt|co"
    + r"pilot|anth"
    + r"ropic|open"
    + r"ai|ll"
    + r"m)\b",
    "what is beside the repository": r"\.\./sha" + r"red|shared/des" + r"ign|LIBRA" + r"RIES\.md|RELIA" + r"BILITY\.md",
}


@pytest.mark.parametrize("what", UNWANTED)
def test_nothing_is_in_it_that_does_not_belong(what: str) -> None:
    pattern = re.compile(UNWANTED[what])
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip():.80}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_files_hold_one_thing() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in CODE}
    assert {name: length for name, length in lengths.items() if length > _LINES_MAX} == {}


def test_every_module_has_a_home() -> None:
    assert [str(path.relative_to(ROOT)) for path in CODE if _HOMELESS & {path.stem, path.parent.name}] == []


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not tree.body or ast.get_docstring(tree), "expected a docstring at the top"


def test_the_licence_is_the_one_that_is_named() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_change_log_has_this_version() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_no_secret_is_in_an_example() -> None:
    said = [
        f"{path.name}: {line.strip()}"
        for path in FILES
        if path.suffix == ".yaml" and "tests" not in path.parts
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"(?i)\b(?:password|token|secret)\w*: *[\"']?(?![\"']?\$\{)[\w]", line)
    ]
    assert said == []
