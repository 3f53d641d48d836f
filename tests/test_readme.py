"""What a newcomer meets first: README, the commands that it names, and the first file that it shows."""

from __future__ import annotations

import re

import pytest

from tests.documents import blocks, recipe
from tests.playground import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_two_commands_are_all_that_it_takes() -> None:
    first = next(block for block in blocks("README.md") if block.language == "sh")
    assert first.text.split("\n")[:-1] == ["make run", "make test"]
    assert recipe("run") == "gateway run routes.yaml"
    assert recipe("test") == "pytest"


def test_it_says_in_a_few_sentences_what_it_is() -> None:
    opening = README.partition("\n## ")[0].partition("\n\n")[2]
    assert 4 <= len(re.findall(r"\.\s", opening + " ")) <= 6


def test_the_first_file_is_a_short_one() -> None:
    (first,) = (block for block in blocks("README.md") if block.language == "yaml")
    assert len(first.text.splitlines()) <= 10


@pytest.mark.parametrize("name", ["mqtt-to-amqp", "hl7-to-http", "websocket-to-mqtt"])
def test_bridges_are_shown(name: str) -> None:
    assert f"(examples/{name}.yaml)" in README


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_every_page_of_the_guide_is_found_from_readme(page: str) -> None:
    assert f"(docs/{page})" in README


def test_it_names_its_licence() -> None:
    assert "Apache-2.0" in README
