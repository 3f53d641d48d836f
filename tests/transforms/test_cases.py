"""Golden files: steps, dashes, the body that comes, dashes, the body that goes or the error text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway import Loading, Message, MessageError
from gateway.registry import read_component
from gateway.testing import FakeHost, arriving

FOLDER = Path(__file__).parents[1] / "cases" / "transforms"
CASES = sorted(FOLDER.glob("*.txt"))


def outcome(steps: list[Any], body: str) -> str:
    message: Message | None = arriving(FakeHost(), body.encode())
    try:
        for value in steps:
            assert message is not None
            step: Any = read_component("Step", value, Loading(folder=FOLDER))
            message = step(message)
        return "filtered" if message is None else message.body.decode()
    except MessageError as error:
        return f"{error.code}: {error}"


@pytest.mark.parametrize("case", CASES, ids=[case.stem for case in CASES])
def test_case(case: Path) -> None:
    steps, body, expected = case.read_text("utf-8").split("\n---\n")
    assert outcome(yaml.safe_load(steps), body).strip() == expected.strip()
