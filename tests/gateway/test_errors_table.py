"""Texts of `gateway/` that no other test looks at, as a table: what raises them, and word for word what they say."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gateway
from gateway import ConfigError, Message, MessageError, PeerError
from gateway.errors import GatewayError
from gateway.failpoints import _armed
from gateway.message import Principal
from gateway.testing import FakeHost

FOLDER = Path(gateway.__file__).parent


def test_the_errors_are_a_tree_of_three() -> None:
    assert {kind.__name__ for kind in (ConfigError, MessageError, PeerError)} <= {
        kind.__name__ for kind in GatewayError.__subclasses__()
    }
    for kind in (ConfigError, MessageError, PeerError):
        assert issubclass(kind, GatewayError)
        assert not issubclass(kind, OSError | ValueError)


def test_errors_say_what_to_do_with_them() -> None:
    refused, away = MessageError("no"), PeerError("away")
    assert (refused.code, refused.reply, refused.place) == ("refused", None, None)
    assert (refused.for_sender, away.for_sender) == ("no", "it was not taken")
    assert MessageError("/srv/x", told="not here").for_sender == PeerError("9:9", told="not here").for_sender
    assert (away.reconnect, away.wait_s, away.too_late, away.reply) == (False, None, False, None)
    told = PeerError("late", reconnect=True, wait_s=7.0, too_late=True, reply=Message())
    assert (told.reconnect, told.wait_s, told.too_late) == (True, 7.0, True)
    assert str(told) == "late"


TABLE: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: _armed("nowhere=kill"),
        ValueError,
        "GATEWAY_FAILPOINTS: expected name=kill or name=kill:3, got 'nowhere=kill'; names: listener.half_body, ",
    ),
    (
        lambda: _armed("ack.sent=stop"),
        ValueError,
        "GATEWAY_FAILPOINTS: expected name=kill or name=kill:3, got 'ack.sent=stop'; names: ",
    ),
    (
        lambda: _armed("ack.sent=kill:x"),
        ValueError,
        "GATEWAY_FAILPOINTS: expected name=kill or name=kill:3, got 'ack.sent=kill:x'; names: ",
    ),
    (
        lambda: Message(raw=b"{}").tree,
        MessageError,
        "message: no format was lent to parse 'application/json'; is it outside a route?",
    ),
    (
        lambda: FakeHost().formats.parse(b"", "image/png"),
        MessageError,
        "body: no format reads 'image/png'; known are application/hl7-v2, application/json, ",
    ),
]


@pytest.mark.parametrize(("act", "kind", "text"), TABLE, ids=[text[:40] for _, _, text in TABLE])
def test_an_error_says_what_was_found_and_what_to_do(act: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as error:
        act()
    assert str(error.value).startswith(text)


def test_failpoints_that_are_not_armed_do_nothing() -> None:
    point = _armed("")
    for name in ("ack.sent", "journal.committed", "nowhere"):
        point(name)


def texts() -> list[tuple[str, int, str]]:
    """The constant parts of all texts that `gateway/` raises its errors with, with file and line."""
    found = []
    for file in sorted(FOLDER.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            name = getattr(node.exc.func, "id", "")
            if name in {"ConfigError", "MessageError", "PeerError", "FaultError"} and node.exc.args:
                text = _constant(node.exc.args[0])
                if text is not None:
                    found.append((str(file.relative_to(FOLDER)), node.lineno, text))
    return found


def _constant(node: ast.expr) -> str | None:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in values)
        case _:
            return None


def test_there_are_texts_to_look_at() -> None:
    assert len(texts()) > 40


@pytest.mark.parametrize(("file", "line", "text"), texts(), ids=lambda value: str(value)[:50])
def test_a_text_is_a_sentence_of_the_house(file: str, line: int, text: str) -> None:
    place = f"{file}:{line}: {text!r}"
    assert not text.endswith((".", "!")), f"{place} ends in a full stop"
    assert not re.match(r"[A-Z][a-z]", text), f"{place} begins with a capital"
    assert "\n" not in text, f"{place} has more than one line"
    assert not re.search(r"\b(please|sorry|oops|invalid|illegal)\b", text, re.IGNORECASE), f"{place}: say what is wrong"
    assert len(text) > 3


def test_who_sent_a_message_is_a_value() -> None:
    assert Principal("ann", ("admin",)) == Principal("ann", ("admin",))
