"""The reference: made from the classes, complete, and in docs/ as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.reference import KINDS, Reference, listed
from gateway.schema import components

ROOT = Path(__file__).parent.parent.parent
REFERENCE = Reference(ROOT / "examples")
EACH = [(kind, word) for kind in KINDS for word in components(kind)]


def test_the_page_in_docs_is_up_to_date() -> None:
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == REFERENCE.whole().rstrip() + "\n", "run: make docs"


@pytest.mark.parametrize(("kind", "word"), EACH, ids=[f"{kind}-{word}" for kind, word in EACH])
def test_every_component_says_what_it_is_in_one_line(kind: str, word: str) -> None:
    text = dict(listed(kind))[word]  # type: ignore[arg-type]
    assert 3 < len(text) <= 130
    assert "\n" not in text


@pytest.mark.parametrize(("kind", "word"), EACH, ids=[f"{kind}-{word}" for kind, word in EACH])
def test_every_setting_of_every_component_is_on_its_page(kind: str, word: str) -> None:
    found = components(kind)[word]  # type: ignore[arg-type]
    page = REFERENCE.page(word)
    hidden = {getattr(found, "nameless", ""), "sink"}
    for name, field in found.model_fields.items():
        if name not in hidden:
            assert f"`{field.alias or name}`" in page, name


def test_a_page_shows_type_default_bounds_and_description() -> None:
    page = REFERENCE.page("http")
    assert (
        "| **`listen`** | address |  | where to listen, such as 127.0.0.1:8081; many routes share one address |" in page
    )
    assert "| `connect_timeout` | duration | `5s` | time for a connection to be made (at most 5m) |" in page
    assert "| `answer.status` | whole number, 200 to 299 | `202` | the status of the answer |" in page
    assert "| `password` | secret |  |" in page
    assert "| `methods` | list of `GET` `HEAD`" in page


def test_a_page_shows_what_each_entry_of_a_list_may_hold() -> None:
    page = REFERENCE.page("fixed_width")
    assert "| `fields[].width` | whole number, 1 to 32760 |  | characters, once decoded" in page
    assert "| `records[].fields` | list of settings |  | its fields, in order; see `fields` of the format |" in page
    assert "records[].fields[]" not in page


def test_a_page_of_a_component_with_a_connection_says_where_its_settings_are() -> None:
    page = REFERENCE.page("mqtt")
    assert "Without `connection`, the settings of mqtt as a connection may stand here." in page
    assert page.count("| **`url`** | URL |") == 1


def test_each_framing_is_there_with_its_settings() -> None:
    page = REFERENCE.page("framing")
    for word in ("line", "delimiter", "length", "stx_etx", "fixed", "raw", "mllp", "fix"):
        assert f"## framing: {word}\n" in page
    assert "| **`end`** | text |  | the bytes after each body" in page
    assert "| `digits` | whole number, 1 to 10 |  | width of a length in decimal digits, such as 0042 |" in page
    assert "`gateway doc framing`" in REFERENCE.page("tcp")


def test_a_nameless_component_shows_what_its_value_is() -> None:
    assert "Its value, `filter: …`: an expression:" in REFERENCE.page("filter")


def test_a_page_holds_its_examples() -> None:
    page = REFERENCE.page("http")
    assert "Example: [examples/from-http.yaml](../examples/from-http.yaml)" in page
    assert (ROOT / "examples" / "from-http.yaml").read_text(encoding="utf-8").rstrip() in page


def test_without_the_examples_folder_there_are_none(tmp_path: Path) -> None:
    assert "Example:" not in Reference(None).page("http")
    assert "Example:" not in Reference(tmp_path).page("http")


def test_the_whole_page_has_the_language_and_every_component_once() -> None:
    whole = REFERENCE.whole()
    headings = [line for line in whole.splitlines() if line.startswith("### ")]
    assert len(headings) == len(set(headings))
    for word in REFERENCE.words:
        assert f"### {word}" in headings
    for part in ("### A route", "### A target of a route", "### `limits`", "### `retry`"):
        assert part in headings
