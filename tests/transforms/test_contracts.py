"""Every format keeps the contract of `gateway.testing`, and every step the one of steps."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from decimal import Decimal
from typing import Any

import pytest

from gateway import Format, Message, MessageError, Step, Tree
from gateway.registry import component, read_component, words
from gateway.testing import FORMAT_CHECKS, Check, FakeHost, FormatBench, arriving, checks_for
from gateway.testing.source_checks import documented


class Bench(FormatBench):
    """The format of one word."""

    word: str
    settings: dict[str, Any] = {}

    def format(self) -> Format:
        found = component("Format", self.word).model_validate(self.settings)
        assert isinstance(found, Format)
        return found


class Json(Bench):
    word = "json"
    limited = True

    def trees(self) -> Sequence[Tree]:
        return [
            {"a": [1, -2, 2**70, Decimal("0.10"), True, None, "grüße 🌍", ""], "b": {"c": {}}},
            [],
            {},
            "text",
            7,
            None,
            False,
        ]

    def malformed(self) -> Sequence[bytes]:
        return [b"", b"{", b"{]", b"nul", b"NaN", b"[1,]", b'{"a":1,"a":2}', b'"\xff"', b"[1]x", b"\x00"]

    def foreign(self) -> Sequence[Tree]:
        return [{"a": "\ud800"}]

    def deep(self, levels: int) -> bytes:
        return b"[" * levels + b"]" * levels


class Xml(Bench):
    word = "xml"
    limited = True

    def trees(self) -> Sequence[Tree]:
        return [
            {"order": {"@id": "7", "line": ["a", "b <&> grüße"], "note": None}},
            {"empty": None},
            {"only": "text"},
        ]

    def malformed(self) -> Sequence[bytes]:
        return [b"", b"<a>", b"<a></b>", b"text", b"<a/><b/>", b"<!DOCTYPE a []><a/>", b"<a>&x;</a>", b"<a>\xff</a>"]

    def foreign(self) -> Sequence[Tree]:
        return [{"a": 1, "b": 2}, [1], {"no name": 1}, {"a": "\x00"}]

    def deep(self, levels: int) -> bytes:
        return b"<a>" * levels + b"</a>" * levels


class Text(Bench):
    word = "text"

    def trees(self) -> Sequence[Tree]:
        return ["", "grüße 🌍", "two\r\nlines\x00"]

    def malformed(self) -> Sequence[bytes]:
        return [b"\xff"]

    def foreign(self) -> Sequence[Tree]:
        return [{"a": 1}, [1]]


class Form(Bench):
    word = "form"

    def trees(self) -> Sequence[Tree]:
        return [{}, {"a": "1", "b": ["x y", "&=+%"], "grüße": ""}]

    def malformed(self) -> Sequence[bytes]:
        return [b"a=%ff", b"\xff=1", b"&" * 100_000]

    def foreign(self) -> Sequence[Tree]:
        return [[1], "text", {"a": {"b": 1}}]


class Csv(Bench):
    word = "csv"

    def trees(self) -> Sequence[Tree]:
        return [
            [{"a": "1", "b": "x, y"}, {"a": "", "b": 'two\nlines "quoted"'}],
            [{"grüße": "🌍"}],
        ]

    def malformed(self) -> Sequence[bytes]:
        return [b"a,b\n1\n", b'a\n"open', b"a\n\xff\n"]

    def foreign(self) -> Sequence[Tree]:
        return ["text", [{"a": [1]}]]


class Fix(Bench):
    word = "fix"
    settings = {"groups": {"453": [448, 447]}}

    def trees(self) -> Sequence[Tree]:
        return [
            {"8": "FIX.4.4", "35": "D", "49": "A", "55": "MSFT", "453": [{"448": "x", "447": "D"}, {"448": "y"}]},
            {"8": "FIXT.1.1", "35": "B", "96": "a\x01b", "58": "grüße 🌍", "355": {"base64": "/w=="}},
        ]

    def malformed(self) -> Sequence[bytes]:
        return [b"", b"8", b"8=FIX.4.4", b"8=FIX.4.4\x01", b"8=FIX.4.4\x019=5\x0135=D\x0110=000\x01", b"\xff=1\x01"]

    def foreign(self) -> Sequence[Tree]:
        return [
            "text",
            {},
            {"8": "FIX.4.4"},
            {"8": "FIX.4.4", "35": "D", "x": 1},
            {"8": "FIX.4.4", "35": "D", "1": [1]},
        ]


class FixedWidth(Bench):
    word = "fixed_width"
    settings = {
        "records": [
            {"name": "header", "fields": [{"constant": "H"}, {"name": "date", "width": 8}, {"width": 2}]},
            {
                "name": "payment",
                "fields": [
                    {"constant": "D"},
                    {"name": "payer", "width": 6},
                    {"name": "amount", "width": 9, "type": "number", "decimals": 2},
                    {"name": "count", "width": 3, "type": "number", "pad": " ", "sign": "trailing_minus"},
                ],
            },
        ]
    }

    def trees(self) -> Sequence[Tree]:
        return [
            [],
            [
                {"record": "header", "date": "20260131"},
                {"record": "payment", "payer": "Grüße", "amount": Decimal("-123.45"), "count": -7},
                {"record": "payment", "payer": "🌍", "amount": Decimal("0.10"), "count": 12},
                {"record": "payment", "payer": "", "amount": None, "count": None},
            ],
        ]

    def malformed(self) -> Sequence[bytes]:
        return [b"X", b"Dpayer 0000", b"H20260131   ", b"Dpayer 00000001x", b"H\xff"]

    def foreign(self) -> Sequence[Tree]:
        return ["text", ["text"], [{"record": "x"}], [{"record": "header", "date": "2026-01-31"}]]


class MsgPack(Bench):
    word = "msgpack"
    limited = True

    def trees(self) -> Sequence[Tree]:
        return [{"a": [1, -2, True, None, "grüße 🌍", 1.5], "b": {"c": {}}}, [], "text", None]

    def malformed(self) -> Sequence[bytes]:
        return [b"", b"\x92\x01", b"\xc1", b"\xa1\xff", b"\x01\x02"]

    def foreign(self) -> Sequence[Tree]:
        return [{"a": 2**70}]

    def deep(self, levels: int) -> bytes:
        return b"\x91" * levels + b"\xc0"


class Hl7(Bench):
    word = "hl7"

    def trees(self) -> Sequence[Tree]:
        body = "MSH|^~\\&|ADT1|GHH|LAB|H2|20240131||ADT^A01^ADT_A01|M1|P|2.4\rPID|1||4711^^^H~12||Grüße^Anna\r".encode()
        return [self.format().parse(body, "application/hl7-v2", FakeHost().limits)]

    def malformed(self) -> Sequence[bytes]:
        return [b"", b"PID|1", b"MSH", b"{}"]


BENCHES: list[type[Bench]] = [Json, Xml, Text, Form, Csv, FixedWidth, Fix, MsgPack, Hl7]


def test_no_format_is_left_out() -> None:
    assert sorted(bench.word for bench in BENCHES) == words("Format")


@pytest.mark.parametrize(
    ("bench", "check"),
    [
        pytest.param(bench, check, id=f"{bench.word}-{check.__name__}")
        for bench in BENCHES
        for check in checks_for(bench, FORMAT_CHECKS)
    ],
)
async def test_a_format_keeps_its_contract(bench: type[Bench], check: Check) -> None:
    await check(bench())


def doubled(message: Message) -> Tree:
    """What the step `python` calls here."""
    tree: Any = message.tree
    return {"n": tree["n"] * 2}


STEPS: dict[str, tuple[Any, bytes, str]] = {
    "filter": ("body.n > 1", b'{"n": 2}', "application/json"),
    "format": ("xml", b'{"order": {"n": 1}}', "application/json"),
    "log": ("n is {{ body.n }}", b'{"n": 2}', "application/json"),
    "map": ({"m": "{{ body.n }}"}, b'{"n": 2}', "application/json"),
    "parse": ("csv", b"a,b\n1,2\n", "text/plain"),
    "python": (f"{__name__}:doubled", b'{"n": 2}', "application/json"),
    "set": ({"subject": "{{ body.n }}"}, b'{"n": 2}', "application/json"),
    "template": ("n is {{ body.n }}", b'{"n": 2}', "application/json"),
    "validate": (None, b'{"n": 2}', "application/json"),
    "xslt": (None, b"<a><n>2</n></a>", "application/xml"),
}
_XSL = """<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
  <xsl:template match="/"><m><xsl:value-of select="a/n"/></m></xsl:template>
</xsl:stylesheet>"""


def step(word: str, tmp_path: Any) -> tuple[Any, Message]:
    settings, raw, content_type = STEPS[word]
    if word == "validate":
        (tmp_path / "schema.json").write_text('{"type": "object", "required": ["n"]}')
        settings = {"schema": str(tmp_path / "schema.json")}
    if word == "xslt":
        (tmp_path / "a.xsl").write_text(_XSL)
        settings = str(tmp_path / "a.xsl")
    host = FakeHost()
    return read_component("Step", {word: settings}), arriving(host, raw, content_type=content_type)


def test_no_step_is_left_out() -> None:
    assert sorted(STEPS) == words("Step")


@pytest.mark.parametrize("word", sorted(STEPS))
def test_a_step_is_a_documented_settings_class(word: str, tmp_path: Any) -> None:
    found, _ = step(word, tmp_path)
    assert isinstance(found, Step)
    documented(found)


@pytest.mark.parametrize("word", sorted(STEPS))
def test_a_step_is_pure(word: str, tmp_path: Any) -> None:
    found, message = step(word, tmp_path)
    tree, raw, fields = deepcopy(message.tree), message.raw, (message.id, message.subject, message.type)
    first, again = found(message), found(message)
    assert isinstance(first, Message)
    assert isinstance(again, Message)
    assert (first.body, first.id, first.subject) == (again.body, again.id, again.subject)
    assert message.tree == tree, "it changed the tree that it was given"
    assert (message.raw, message.id, message.subject, message.type) == (raw, *fields)


@pytest.mark.parametrize("word", sorted(set(STEPS) - {"set"}))
def test_a_step_refuses_what_it_can_not_read(word: str, tmp_path: Any) -> None:
    found, message = step(word, tmp_path)
    broken = message.with_body(b"\xff{", "application/json" if word != "parse" else message.content_type)
    with pytest.raises(MessageError):
        found(broken)
