"""The documentation is executed: what it shows is loaded, what it says to type is typed, what it says exists."""

from __future__ import annotations

import json
import re
import shutil
from decimal import Decimal
from pathlib import Path

import pytest

from gateway import Expression, Message
from gateway.config import load_text
from gateway.formats import formats_with
from gateway.limits import Limits
from tests.documents import Block, Walk, blocks, check_yaml, pages, recipe, whole
from tests.playground import ROOT

PAGES = list(pages())
PLUGINS = "docs/plugins.md"
"""Its configuration has words that its tour makes."""
SERVED = {"docs/rest.md": "gateway run routes.yaml", "docs/cli.md": "gateway run routes.yaml"}
"""Pages whose commands talk to a gateway that runs already."""
TOURS = ["README.md", "docs/getting-started.md", "docs/tls.md", PLUGINS, *SERVED]
BLOCKS = [block for page in PAGES for block in blocks(page)]
KNOWN: dict[str, set[str] | None] = {
    "sh": {"", "terminal", "by"},
    "yaml": None,
    "python": None,
    "toml": None,
    "json": {""},
    "text": {""},
    "": {""},
}


@pytest.mark.slow
@pytest.mark.timeout(300)  # dozens of processes; each of them has a limit of its own
@pytest.mark.parametrize("page", TOURS)
async def test_a_tour_works_as_written(page: str, tmp_path: Path) -> None:
    await Walk(tmp_path).through(page, SERVED.get(page))


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "json"], ids=str)
def test_json_that_is_shown_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "yaml" and block.page != PLUGINS], ids=str
)
def test_what_is_shown_as_configuration_can_be_loaded(block: Block, tmp_path: Path) -> None:
    check_yaml(block, tmp_path)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_each_block_says_what_it_is(block: Block) -> None:
    assert block.language in KNOWN, f"nobody checks {block.language} blocks"
    known = KNOWN[block.language]
    word = block.words[0] if block.words else ""
    assert known is None or word in known, f"{word!r} is none of {known}"
    if block.language == "sh" and block.words != ["by", "hand"]:
        assert block.page in TOURS, "commands are run in tours only; say by hand, or make this page one"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_python_that_is_shown_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.words == ["by", "hand"]], ids=str)
def test_commands_to_type_by_hand_are_there(block: Block) -> None:
    for line in block.text.splitlines():
        words = line.split()
        if words[:1] == ["make"]:
            assert recipe(words[1])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith(("http://", "https://")):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{target} is not there"


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the table behind a row that begins with these cells."""
    table = (ROOT / page).read_text(encoding="utf-8").partition(heading)[2].partition("\n\n")[0]
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    return [
        [cell.strip().replace("\\|", "|").strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines
    ]


EXPRESSIONS = rows("docs/language.md", "| expression | gives |")


@pytest.mark.parametrize(("expression", "gives"), EXPRESSIONS, ids=[row[0] for row in EXPRESSIONS])
def test_an_expression_gives_what_the_table_says(expression: str, gives: str) -> None:
    order = re.search(r"On the order `(\{.*\})`", (ROOT / "docs/language.md").read_text(encoding="utf-8"))
    assert order is not None
    message = Message(raw=order[1].encode(), formats=formats_with(Limits()))
    value = Expression(expression)(message)
    expected = json.loads(gives, parse_float=Decimal)
    assert value == expected
    assert isinstance(value, str) is isinstance(expected, str)


PATHS = rows("docs/hl7.md", "| expression | gives | because |")


@pytest.mark.parametrize(("expression", "gives", "because"), PATHS, ids=[row[0] for row in PATHS])
def test_an_hl7_path_gives_what_the_table_says(expression: str, gives: str, because: str) -> None:
    shown = next(block for block in blocks("docs/hl7.md") if block.text.startswith("MSH|"))
    body = shown.text.replace("\n", "\r").encode()
    message = Message(raw=body, content_type="application/hl7-v2", formats=formats_with(Limits()))
    assert Expression(expression)(message) == json.loads(gives), because


def test_the_hl7_message_that_is_shown_shorter_can_be_written() -> None:
    steps = next(block for block in blocks("docs/hl7.md") if block.text.startswith("- map:"))
    route = load_text(whole(steps), ROOT / "routes.yaml").routes["example"].settings
    message = Message(raw=b'{"id": "M1"}', formats=formats_with(Limits()))
    for step in route.steps:
        message = step(message)
    assert message.body.startswith(b"MSH|^~\\&|gateway||ledger||20240131093000||ACK|M1|P|2.5\rMSA|AA|M1\r")


def test_there_is_a_table_of_expressions() -> None:
    assert len(EXPRESSIONS) > 5
    assert len(PATHS) > 5


def test_curl_and_openssl_of_the_tours_are_there() -> None:
    assert shutil.which("curl")
    assert shutil.which("openssl")
