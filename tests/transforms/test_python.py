from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway import Message, MessageError
from gateway.registry import read_component
from gateway.testing import FakeHost, arriving

HOST = FakeHost()
BODY = b'{"id": "A1", "total": 1.10}'
HEAD = "import asyncio, datetime, functools, json\nfrom gateway import Message, MessageError, PeerError\n\n"

Step = Callable[[Message], Message]
Put = Callable[[str], None]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Writes the module `shop.orders`, from its fourth line on."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/__init__.py").write_text("")
    for name in ("shop", "shop.orders", "shop.broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def write(text: str) -> None:
        monkeypatch.delitem(sys.modules, "shop.orders", raising=False)
        (tmp_path / "shop/orders.py").write_text(HEAD + text)

    return write


def step(value: Any = "shop.orders:f") -> Step:
    return read_component("Step", {"python": value})  # type: ignore[return-value]


def run(message: Message | None = None) -> Message:
    return step()(message or arriving(HOST, BODY))


def refusal() -> MessageError:
    with pytest.raises(MessageError) as refused:
        run()
    return refused.value


def complaint(value: Any) -> tuple[tuple[str | int, ...], str]:
    with pytest.raises(ValidationError) as refused:
        step(value)
    ((error),) = refused.value.errors()
    return error["loc"], error["msg"].removeprefix("Value error, ")


@pytest.mark.parametrize(
    ("returned", "body"),
    [
        ("{**m.tree, 'n': 1}", b'{"id":"A1","total":1.10,"n":1}'),
        ("[1, 'é', None, True]", '[1,"é",null,true]'.encode()),
        ("'text'", b'"text"'),
        ("7", b"7"),
        ("m.tree['total'] * 3", b"3.30"),
        ("False", b"false"),
        ("{}", b"{}"),
    ],
)
def test_a_tree_is_a_new_body_in_json(put: Put, returned: str, body: bytes) -> None:
    put(f"def f(m): return {returned}")
    made = run(arriving(HOST, BODY).replace(content_type="application/vnd.shop+json"))
    assert (made.body, made.content_type) == (body, "application/json")


def test_a_message_is_what_goes_on(put: Put) -> None:
    put("def f(m): return m.with_body(b'<a/>', 'text/xml').replace(subject='s')")
    made = run()
    assert (made.body, made.content_type, made.subject) == (b"<a/>", "text/xml", "s")


def test_none_is_the_message_as_it_came(put: Put) -> None:
    put("def f(m): m.tree")
    came = arriving(HOST, BODY)
    assert run(came) is came


@pytest.mark.parametrize(
    "text",
    [
        "def f(m, more=1): return 'called'",
        "f = lambda *all: 'called'",
        "f = functools.partial(lambda a, m: a, 'called')",
        "class F:\n    def __call__(self, m): return 'called'\nf = F()",
        "class F:\n    def g(self, m): return 'called'\nf = F().g",
    ],
)
def test_whatever_can_be_called_with_a_message_is_taken(put: Put, text: str) -> None:
    put(text)
    assert run().tree == "called"
    assert step({"function": "shop.orders:f"})(arriving(HOST, BODY)).tree == "called"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(m): return m.tree['gift']", "raised KeyError: 'gift' (line 4)"),
        ("def f(m):\n    json.loads('{')", "raised JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1) (line 5)"),
        ("def f(m): raise RuntimeError", "raised RuntimeError (line 4)"),
        ("def f(m): raise SystemExit(3)", "raised SystemExit: 3 (line 4)"),
        ("def f(m): raise PeerError('away')", "raised PeerError: away (line 4)"),
        ("def f(m): return b'x'", "returned bytes, expected a message, a tree such as a mapping, or None; bytes are message.with_body(…)"),
        ("async def g(): pass\ndef f(m): return g()", "returned coroutine, expected a message, a tree such as a mapping, or None; bytes are message.with_body(…)"),
        ("def f(m): return Message(raw=b'{}')", "returned a message of another id; make it of the one that it is given"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_function_is_told_to_operators_only(put: Put, text: str, said: str) -> None:
    put(text)
    error = refusal()
    assert (error.code, str(error)) == ("internal", f"python: shop.orders:f {said}")
    assert error.for_sender == "a step of the gateway failed on this message"


def test_what_json_has_a_text_for_is_that_text(put: Put) -> None:
    put("def f(m): return {'at': datetime.datetime(2026, 1, 31, 9, 30), 'pair': (1, 2)}")
    made = run()
    assert made.tree == {"at": "2026-01-31T09:30:00", "pair": [1, 2]}
    assert made.body == b'{"at":"2026-01-31T09:30:00","pair":[1,2]}'


@pytest.mark.parametrize("tree", ["{'f': json.loads}", "['\\ud800']", "{'a': Message()}", "[float('nan')]"])
def test_a_tree_that_json_can_not_carry_is_the_mistake_of_the_function(put: Put, tree: str) -> None:
    put(f"def f(m): return {tree}")
    error = refusal()
    assert str(error).startswith("python: shop.orders:f returned a tree that JSON can't carry: ")
    assert error.for_sender == "a step of the gateway failed on this message"


def test_what_the_function_refuses_is_refused_in_its_words(put: Put) -> None:
    put("def f(m): raise MessageError('no tax for XY', code='forbidden')")
    error = refusal()
    assert (str(error), error.for_sender, error.code) == ("no tax for XY", "no tax for XY", "forbidden")


def test_a_body_that_the_function_can_not_read_is_malformed(put: Put) -> None:
    put("def f(m): return m.tree")
    with pytest.raises(MessageError) as refused:
        run(arriving(HOST, b"{"))
    assert refused.value.code == "malformed"


def test_a_long_text_is_cut(put: Put) -> None:
    put("def f(m): raise ValueError('x' * 5000)")
    assert len(str(refusal())) < 300


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("f = 7", "shop.orders:f is int, expected a function"),
        ("class f: pass", "shop.orders:f is a class, expected a function"),
        ("async def f(m): pass", "shop.orders:f is async, and a step can't wait; write it with def, and ask others with call:"),
        ("class F:\n    async def __call__(self, m): pass\nf = F()", "shop.orders:f is async, and a step can't wait; write it with def, and ask others with call:"),
        ("def f(m): yield m", "shop.orders:f is a generator, expected a function that returns; split: makes many messages of one"),
        ("def f(): pass", "shop.orders:f takes (), expected one argument, the message"),
        ("def f(a, b): pass", "shop.orders:f takes (a, b), expected one argument, the message"),
        ("def priced(m): pass\ndef g(m): pass", 'shop.orders has no function "f"; it has g, priced'),
        ("", 'shop.orders has no function "f"; it has no functions'),
        ("1 / 0", "shop.orders can't be imported: ZeroDivisionError: division by zero (orders.py line 4)"),
        ("raise SystemExit", "shop.orders can't be imported: SystemExit (orders.py line 4)"),
        ("import nowhere.at_all", "shop.orders can't be imported: ModuleNotFoundError: No module named 'nowhere' (orders.py line 4)"),
        ("def f(m) pass", "shop.orders can't be imported: SyntaxError: expected ':' (orders.py, line 4)"),
    ],
)  # fmt: skip
def test_what_is_no_function_of_a_message_is_told_at_load(put: Put, text: str, said: str) -> None:
    put(text)
    assert complaint("shop.orders:f") == (("python",), said)


@pytest.mark.parametrize(
    ("value", "place", "said"),
    [
        ("shop.orders", ("python",), 'expected package.module:name, such as shop.orders:priced, got "shop.orders"'),
        ("shop.orders.priced()", ("python",), 'expected package.module:name, such as shop.orders:priced, got "shop.orders.priced()"'),
        (":f", ("python",), 'expected package.module:name, such as shop.orders:priced, got ":f"'),
        ("../shop:f", ("python",), 'expected package.module:name, such as shop.orders:priced, got "../shop:f"'),
        (7, ("python",), "expected package.module:name, such as shop.orders:priced, got 7"),
        ("shop.nowhere:f", ("python",), "there is no module shop.nowhere: install its package beside the gateway, or start the gateway with the folder that holds it in PYTHONPATH"),
        ("nowhere_at_all.orders:f", ("python",), "there is no module nowhere_at_all: install its package beside the gateway, or start the gateway with the folder that holds it in PYTHONPATH"),
        ("shop.orders:pricd", ("python",), 'shop.orders has no function "pricd"; did you mean priced?'),
        ({"function": "shop.orders:x"}, ("python", "function"), 'shop.orders has no function "x"; it has priced'),
        ({"func": "shop.orders:x"}, ("python", "func"), 'unknown key "func"; did you mean function?'),
        (None, ("python",), "expected the settings of python as key: value, such as python: {function: …}, got nothing"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_settings_is_told_at_its_place(
    put: Put, value: Any, place: tuple[str, ...], said: str
) -> None:
    put("def priced(m): pass\ndef _inner(m): pass")
    with pytest.raises(ValidationError) as refused:
        step(value)
    assert (place, said) in [
        (line["loc"], line["msg"].removeprefix("Value error, ")) for line in refused.value.errors()
    ]


def test_it_says_that_it_may_not_give_the_same_again(put: Put) -> None:
    put("def f(m): pass")
    found: Any = step()
    assert (found.pure, found.acts) == (False, True)
    assert found == step(), "a reload must not take it for another"
    assert found.model_dump(mode="json") == {"function": "shop.orders:f"}
