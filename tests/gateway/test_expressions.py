from __future__ import annotations

import operator
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import StrictUndefined, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway import (
    ConfigError,
    Expression,
    Limits,
    Loading,
    Message,
    MessageError,
    Principal,
    Settings,
    UrlTemplate,
    derived_id,
    registry,
)
from gateway.expressions import PLACE, plug_filters
from gateway.expressions.paths import Key, body_against, exact, quick, root

BODY: dict[str, Any] = {
    "id": "A1",
    "items": [{"sku": "X", "qty": 2, "price": Decimal("1.10")}, {"sku": "Y", "qty": 1}],
    "total": 5,
    "name": "Ann Lee",
    "none": None,
    "net": Decimal("2.50"),
    "ratio": 1.1,
    "flag": True,
    "_id": "u1",
    "nested": {"a": {"b": 1}},
    "empty": [],
    "text": "12",
}
MESSAGE = Message(
    id="0197f0a0-0000-7000-8000-000000000001",
    parsed=BODY,
    headers={"content-type": "x/y"},
    transport={"topic": "plant/7/telemetry", "params": {"id": "9"}},
    type="ADT^A01",
    time_s=0.5,
    principal=Principal("ada"),
    expires_at_s=60.0,
)

VALUES = [
    # paths
    ("body.id", "A1"),
    ("body['id']", "A1"),
    ("body.items[0].sku", "X"),
    ("body.items[-1].sku", "Y"),
    ("body.items.0.qty", 2),
    ("body._id", "u1"),
    ("body.nested.a.b", 1),
    ("body.items[body.total - 4].sku", "Y"),
    ("{5: 'five'}[body.total]", "five"),
    ("{'5': 'five'}[body.total]", "five"),
    ("{'55': 'MSFT'}.55", "MSFT"),
    ("[{'55': 'MSFT'}] | map(attribute='55') | first", "MSFT"),
    ("{'A1': 'first'}[body.id]", "first"),
    ("body.name[0:3]", "Ann"),
    ("body.name[::-1]", "eeL nnA"),
    ("(body.items | first).sku", "X"),
    ("headers['content-type']", "x/y"),
    ("transport.params.id", "9"),
    ("transport.topic.split('/')[1]", "7"),
    ("context", {}),
    # the message
    ("message.type", "ADT^A01"),
    ("message['type']", "ADT^A01"),
    ("message.time", "1970-01-01T00:00:00.500Z"),
    ("message.expires_at", "1970-01-01T00:01:00.000Z"),
    ("message.principal", "ada"),
    ("message.key", None),
    ("message.type.split('^')[0]", "ADT"),
    ("now()", "1970-01-01T00:00:00.500Z"),
    ("message.type in ['ADT^A01', 'ADT^A08']", True),
    ("message.type not in ['ADT^A01', 'ADT^A08']", False),
    # what is not there
    ("body.x | default('n')", "n"),
    ("body.x.y.z | default('n')", "n"),
    ("body.none.z | default('n')", "n"),
    ("body.none | default('n')", None),
    ("body.none | default('n', true)", "n"),
    ("body.id | default(body.x)", "A1"),
    ("body.x | default(body.y) | default(3)", 3),
    ("body.x is defined", False),
    ("body.x.y is undefined", True),
    ("body.none is defined", True),
    ("body.empty | first | default('z')", "z"),
    ("('a' if body.x is defined) | default('b')", "b"),
    # numbers are exact
    ("body.net * 1.1", Decimal("2.750")),
    ("0.1 + 0.2 == 0.3", True),
    ("body.ratio == 1.1", True),
    ("body.ratio + 0.1", Decimal("1.2")),
    ("1.1 in [body.net, 1.1]", True),
    ("1.1 in [body.ratio]", True),
    ("body.ratio in [1, 1.1]", True),
    ("body.ratio not in [body.net, 1]", True),
    ("0.12345678901234567890123456789 * 1", Decimal("0.12345678901234567890123456789")),
    ("body.total / 4", Decimal("1.25")),
    ("1000 / 10", Decimal(100)),
    ("7 // 2", 3),
    ("-7.5 // 2", Decimal(-4)),
    ("-7 % 2", 1),
    ("-7.5 % 2", Decimal("0.5")),
    ("2 ** 10", 1024),
    ("2 ** -1", Decimal("0.5")),
    ("-body.net", Decimal("-2.50")),
    ("+body.total", 5),
    ("1 < body.total < 10", True),
    ("1 < body.total < 3", False),
    # filters
    ("body.items | sum(attribute='qty')", 3),
    ("body.items | map(attribute='price', default=0) | sum", Decimal("1.10")),
    ("body.items | map(attribute='sku') | join(',')", "X,Y"),
    ("body.items | join(',', attribute='sku')", "X,Y"),
    ("['a', 'b'] | map('upper')", ["A", "B"]),
    ("body.items | selectattr('price', 'defined') | map(attribute='sku')", ["X"]),
    ("body.items | rejectattr('qty', 'gt', 1) | map(attribute='sku')", ["Y"]),
    ("[1, 2, 3, 4] | select('even')", [2, 4]),
    ("[0, 1, none] | reject", [0, None]),
    ("body.text | int + 1", 13),
    ("'12.9' | int", 12),
    ("'ff' | int(0, 16)", 255),
    ("body.name | int(0)", 0),
    ("'1.10' | float", Decimal("1.10")),
    ("'x' | float(1.5)", Decimal("1.5")),
    ("2.5 | round", Decimal(2)),
    ("2.567 | round(2)", Decimal("2.57")),
    ("2.567 | round(1, 'floor')", Decimal("2.5")),
    ("1234 | round(-2)", Decimal(1200)),
    ("body.net | abs", Decimal("2.50")),
    ("[3, 1.5, 2] | sort", [Decimal("1.5"), 2, 3]),
    ("[3, 1] | max", 3),
    ("[3, 1] | min", 1),
    ("['b', 'A'] | sort", ["A", "b"]),
    ("['b', 'A'] | sort(reverse=true)", ["b", "A"]),
    ("['b', 'B'] | unique", ["b"]),
    ("[1, 2, 3] | batch(2, 0)", [[1, 2], [3, 0]]),
    ("[1, 2] | reverse", [2, 1]),
    ("'abc' | reverse", "cba"),
    ("'abc' | list", ["a", "b", "c"]),
    ("body.nested | items", [["a", {"b": 1}]]),
    ("{'b': 1, 'a': 2} | dictsort", [["a", 2], ["b", 1]]),
    ("{'b': 1, 'a': 2} | dictsort(by='value')", [["b", 1], ["a", 2]]),
    ("[{'c': 'x'}, {'c': 'y'}, {'c': 'x'}] | groupby('c') | map('first')", ["x", "y"]),
    ("body.items | length", 2),
    ("body.name | replace('Ann', 'Bo') | lower", "bo lee"),
    ("'aaa' | replace('a', 'b', 2)", "bba"),
    ("'hello big world' | truncate(12, leeway=0)", "hello..."),
    ("'hello' | truncate(3, true, '', 0)", "hel"),
    ("'ann lee' | title", "Ann Lee"),
    ("'  x ' | trim", "x"),
    ("'--x-' | trim('-')", "x"),
    ("'ann' | capitalize", "Ann"),
    ("'a b c' | wordcount", 3),
    ("'a b/ü' | urlencode", "a%20b/%C3%BC"),
    ("{'a': 'b c', 'd': 1} | urlencode", "a=b%20c&d=1"),
    ("body.nested | tojson", '{"a":{"b":1}}'),
    ("body.net | string", "2.50"),
    ("'abc' | hash", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    ("'2026-11-21T02:34:41+01:00' | date('%d.%m.%Y %H:%M %z')", "21.11.2026 02:34 +0100"),
    ("0 | date", "1970-01-01T00:00:00Z"),
    ("now() | date('%Y%m%d%%')", "19700101%"),
    # methods
    ("body.name.upper()", "ANN LEE"),
    ("'a,b'.split(',')", ["a", "b"]),
    ("'a=b'.partition('=')", ["a", "=", "b"]),
    ("', '.join(['a', 1, 2.50])", "a, 1, 2.50"),
    ("'abc'.replace('b', '')", "ac"),
    ("'abc'.startswith(['x', 'a'])", True),
    ("body.net.is_integer()", False),
    ("(5).is_integer()", True),
    # tests, logic, text
    ("true is number", False),
    ("body.net is number and body.net is float", True),
    ("body.total is integer", True),
    ("body.items is iterable", True),
    ("body.total is divisibleby 5", True),
    ("body.total is odd", True),
    ("'a' is in ['a']", True),
    ("body.none is none", True),
    ("body.id is sameas 'A1'", True),
    ("body.id and body.none", None),
    ("body.none or body.id", "A1"),
    ("not body.empty", True),
    ("'a' if body.flag else body.x", "a"),
    ("'a' ~ 1 ~ true ~ 1.50 ~ body.nested", 'a1true1.50{"a":{"b":1}}'),
    ("'a' + 'b' * 3", "abbb"),
    ("[1] + [2] * 2", [1, 2, 2]),
    ("(1, body.id)", [1, "A1"]),
    ("{'a': body.id, 'b': [body.total]}", {"a": "A1", "b": [5]}),
    ("'id' in body", True),
    ("'nn' in body.name", True),
]


@pytest.mark.parametrize(("text", "value"), VALUES, ids=[text for text, _ in VALUES])
def test_an_expression_has_this_value(text: str, value: object) -> None:
    found = Expression(text)(MESSAGE)
    assert (found, type(found)) == (value, type(value))


FAULTS = [
    ("body.customer.name", "body.customer.name: 'customer' is not there; body has id, items, total, name, none and 7 more"),
    ("body.nested.a.c", "body.nested.a.c: 'c' is not there; body.nested.a has b"),
    ("not body.nested.a.c", "body.nested.a.c: 'c' is not there; body.nested.a has b"),
    ("body.nested['x y'].z", "body.nested['x y'].z: 'x y' is not there; body.nested has a"),
    ("body.items[5].sku", "body.items[5].sku: there is no element 5; body.items has 2"),
    ("body.items.sku", "body.items.sku: 'sku' is not there; body.items is a list"),
    ("body.none.b", "body.none.b: body.none is null, so 'b' is not there"),
    ("body.total.x", "body.total.x: 'x' is not there; body.total is a number"),
    ("body.name.upper", "body.name.upper: upper is a method: write upper()"),
    ("body.nested.get", "body.nested.get: 'get' is not there; body.nested has a; for Python's get() write | default(…)"),
    ("body.nested.split()", "body.nested.split: 'split' is not there; body.nested has a"),
    ("body.none.split()", "body.none.split(): body.none is null, which has no split()"),
    ("body.name.is_integer()", "body.name.is_integer(): body.name is text, which has no is_integer()"),
    ("body.name.split('')", "body.name.split('…'): split() takes no such arguments: text"),
    ("body.nested[body.id]", "body.nested[body.id]: [body.id] is not there; body.nested has a"),
    ("body.nested[body.items]", "body.nested[body.items]: [body.items] is a list, expected text"),
    ("body.items[body.total]", "body.items[body.total]: there is no element [body.total]; body.items has 2"),
    ("context.x", "context.x: 'x' is not there; context is empty"),
    ("headers.x", "headers.x: 'x' is not there; headers has content-type"),
    ("body.total >= 'a'", "body.total >= '…': can't order a number and text; convert with | int, | float or | string"),
    ("body.name >= 5", "body.name >= 5: can't order text and a number; convert with | int, | float or | string"),
    ("body.items > body.total", "body.items > body.total: can't order a list and a number; convert with | int, | float or | string"),
    ("5 in body.name", "5 in body.name: can't look for a number in text"),
    ("5 in body.total", "5 in body.total: can't look into a number, expected text, a list or an object"),
    ("body.total + 'a'", "body.total + '…': can't add a number and text; ~ joins text, | int and | float make numbers"),
    ("body.none + 1", "body.none + 1: can't add null and a number; convert with | int or | float"),
    ("-body.name", "-body.name: can't put a sign before text; convert with | int or | float"),
    ("'%s' % 1", "'…' % 1: % does not format text; join it with ~"),
    ("1 / (body.total - 5)", "1 / (body.total - 5): it divides by zero"),
    ("body.net % 0", "body.net % 0: it divides by zero"),
    ("'a' ~ body.none", "body.none: it is null where text is expected; use | default('…', true) or an if"),
    ("body.items | sum(attribute='price')", "price of element 1: 'price' is not there; the element has sku, qty"),
    ("body.items | sum", "body.items | sum: can't add a number and an object; convert with | int or | float"),
    ("['1'] | sum", "[…] | sum: can't sum text; convert with map('int') or map('float')"),
    ("body.empty | first", "body.empty | first: the list is empty"),
    ("body.empty | max", "body.empty | max: the list is empty"),
    ("body.name | int", "body.name | int: it is text that is no number; give a default: int(0), float(0)"),
    ("'NaN' | float", "'…' | float: a number is infinite or not a number"),
    ("body.items | map('int')", "body.items | map: it is an object, expected a number"),
    ("body.total | length", "body.total | length: it is a number, which has no length"),
    ("[3, 'a'] | sort", "[…] | sort: can't order a number and text"),
    ("body.name | date", "body.name | date: it is no moment, expected one such as 2026-11-21T02:34:41Z"),
    ("now() | date('%9Y')", "now() | date: the format of date has no directive %9"),
    ("body.id | hash('md5')", "body.id | hash: hash knows sha256 and sha512"),
    ("body.items | map(attribute='sku', x=1)", "body.items | map: map takes the name of a filter, or attribute= and default="),
]  # fmt: skip


@pytest.mark.parametrize(("text", "fault"), FAULTS, ids=[text for text, _ in FAULTS])
def test_a_message_that_does_not_fit_is_refused_with_this_text(text: str, fault: str) -> None:
    expression = Expression(text)
    with pytest.raises(MessageError) as error:
        expression(MESSAGE)
    assert str(error.value) == fault


NAMES = "body, context, headers, message, now, transport, uuid"
MISTAKES = [
    ("bdy.id > 1", "bdy.id > 1: there is no name 'bdy'; did you mean body?"),
    ("self", f"self: there is no name 'self'; there are: {NAMES}"),
    ("message.typ", "message.typ: message has no 'typ'; did you mean type?"),
    ("body.name | uper", "body.name | uper: no filter is called 'uper'; did you mean upper?"),
    ("['a'] | map('uper')", "['…'] | map('…'): no filter is called 'uper'; did you mean upper?"),
    ("['a'] | map(body.id)", "['…'] | map(body.id): map takes the name of a filter as constant text"),
    ("body.x is defind", "body.x is defind: no test is called 'defind'; did you mean defined?"),
    ("body.items | select('evn')", "body.items | select('…'): no test is called 'evn'; did you mean even?"),
    ("body.x.items()", "body.x.items(): no method is called items(); for Python's items() write | items"),
    ("body.x.get('a')", "body.x.get('…'): no method is called get(); for Python's get() write | default(…)"),
    ("body.name.uper()", "body.name.uper(): no method is called uper(); did you mean upper?"),
    ("now", "now: now is a function: write now()"),
    ("uuid(1)", "uuid(1): uuid() takes no arguments"),
    ("body.id()", "body.id(): no method is called id(); there are: "),
    ("body(1)", "body(1): body(…): only methods of text and numbers, now() and uuid() can be called"),
    ("body.", "body.: expected name or number"),
    ("body.id ==", "body.id ==: unexpected end of the text"),
    ("1 2", "1 2: unexpected '2' after the expression"),
    ("", "'': unexpected end of the text"),
    ("{{ body.id }}", "{{ body.id }}: an expression is written bare here, without {{ }}"),
    ("'a' if body.id", "'…' if body.id: an if without else has no value when it does not hold: add an else"),
    ("body.id | replace('a')", "body.id | replace('…'): replace: missing a required argument: 'new'"),
    ("body.items | selectattr", "body.items | selectattr: selectattr: missing a required argument: 'attribute'"),
    ("body.id | upper('a')", "body.id | upper('…'): upper: too many positional arguments"),
    ("body.id | default(1, 2, 3)", "body.id | default(1, 2, 3): default: too many positional arguments"),
    ("body.id | lower(*body.x)", "body.id | lower(*body.x): arguments can't be unpacked with * here"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "fault"), MISTAKES, ids=[text or "nothing" for text, _ in MISTAKES])
def test_an_expression_that_cannot_be_compiled_is_refused_at_load_with_this_text(text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        Expression(text)
    assert str(error.value) == fault or (fault.endswith("there are: ") and str(error.value).startswith(fault))


def test_errors_show_no_value_of_the_message_and_no_text_of_the_expression() -> None:
    message = Message(parsed={"token": "s3cret", "list": ["s3cret"]})
    for text in ("body.token >= 5", "body.token + 5", "body.token | int", "body.list['x']", "body.list ~ ('k3y' + 1)"):
        with pytest.raises(MessageError) as error:
            Expression(text)(message)
        assert "s3cret" not in str(error.value)
        assert "k3y" not in str(error.value)
    with pytest.raises(ConfigError) as refused:
        Expression("headers.token == 'k3y' | nope")
    assert "k3y" not in str(refused.value)
    assert "k3y" not in repr(Expression("headers.token == 'k3y'"))


def test_a_malformed_body_keeps_its_own_refusal() -> None:
    class Broken:
        limits = Limits()

        def parse(self, body: bytes, content_type: str) -> Any:
            raise MessageError("body: not JSON", code="malformed")

        def format(self, tree: Any, content_type: str) -> bytes:
            raise AssertionError

    message = Message(raw=b"{", formats=Broken(), headers={"a": "b"})
    with pytest.raises(MessageError, match="body: not JSON") as error:
        Expression("body.id == 'A1'")(message)
    assert error.value.code == "malformed"
    assert Expression("headers.a")(message) == "b", "who reads headers alone never parses"


def test_the_body_is_parsed_once_when_it_is_first_read() -> None:
    class Counting:
        count = 0
        limits = Limits()

        def parse(self, body: bytes, content_type: str) -> Any:
            self.count += 1
            return {"total": 1200}

        def format(self, tree: Any, content_type: str) -> bytes:
            raise AssertionError

    formats = Counting()
    message = Message(raw=b"...", formats=formats)
    expression = Expression("body.total >= 1000")
    assert [expression.holds(message), expression.holds(message)] == [True, True]
    assert formats.count == 1


def test_uuid_differs_by_call_and_place_and_is_the_same_when_run_again() -> None:
    expression = Expression("[uuid(), uuid()]")
    first, second = expression(MESSAGE)
    assert first == derived_id(MESSAGE.id, "uuid", 0)
    assert second == derived_id(MESSAGE.id, "uuid", 1)
    assert expression(MESSAGE) == [first, second]
    assert expression(MESSAGE, {PLACE: "lines/0"}) != [first, second]
    assert Expression("uuid()")(MESSAGE.replace(id="0197f0a0-0000-7000-8000-000000000002")) != first


def test_names_given_along_are_known_at_load_and_read_at_run() -> None:
    names = frozenset({"item"})
    expression = Expression("item.qty * 2", names)
    assert expression(MESSAGE, {"item": {"qty": 3}}) == 6
    assert Expression("item.a.b == 1 and item", names)(MESSAGE, {"item": {"a": {"b": 1}}}) == {"a": {"b": 1}}
    with pytest.raises(MessageError, match=r"item\.qty: it was not given here"):
        expression(MESSAGE)
    with pytest.raises(ConfigError, match="there is no name"):
        Expression("item.qty")


def test_a_name_given_along_wins_over_a_usual_one() -> None:
    assert Expression("body.id", frozenset({"body"}))(MESSAGE, {"body": {"id": "other"}}) == "other"
    assert Expression("body.id == 'other'", frozenset({"body"}))(MESSAGE, {"body": {"id": "other"}}) is True


def test_equal_texts_and_names_are_equal_and_other_classes_are_not() -> None:
    assert Expression("body.id") == Expression("body.id")
    assert hash(Expression("body.id")) == hash(Expression("body.id"))
    assert Expression("a", frozenset({"a"})) != Expression("a", frozenset({"a", "b"}))
    assert UrlTemplate("http://h/") != Expression("body.id")


class Filtering(Settings):
    when: Expression


def test_a_setting_is_an_expression_compiled_with_the_names_of_its_place() -> None:
    settings = Filtering.model_validate({"when": "item.qty > 1"}, context=Loading(names=frozenset({"item"})))
    assert settings.when.holds(MESSAGE, {"item": {"qty": 2}})
    assert Filtering(when=settings.when).when is settings.when
    assert settings.model_dump() == {"when": "item.qty > 1"}
    with pytest.raises(ValueError, match=r"item.qty > 1: there is no name 'item'"):
        Filtering.model_validate({"when": "item.qty > 1"})
    with pytest.raises(ValueError, match=r"expected an expression such as body\.total >= 1000, got True"):
        Filtering.model_validate({"when": True})


def test_its_schema_is_text_with_a_description() -> None:
    schema = Filtering.model_json_schema()["properties"]["when"]
    assert schema["type"] == "string"
    assert schema["description"] == "an expression in Jinja2, without {{ }}"


@pytest.fixture
def _a_lent_filter() -> Iterator[None]:
    def hl7(tree: Any, path: str) -> str:
        if path == "PID-9":
            raise MessageError("hl7: there is no PID-9")
        return f"{tree}{path}"

    plug_filters({"hl7": hl7}.get)
    yield
    plug_filters(registry._filter)


@pytest.mark.usefixtures("_a_lent_filter")
def test_a_filter_that_is_lent_is_found_at_load() -> None:
    assert Expression("body.id | hl7('PID-3.1')")(MESSAGE) == "A1PID-3.1"
    assert Expression("['a', 'b'] | map('hl7', 'x')")(MESSAGE) == ["ax", "bx"]
    with pytest.raises(MessageError, match="hl7: there is no PID-9"):
        Expression("body.id | hl7('PID-9')")(MESSAGE)
    with pytest.raises(ConfigError, match="hl7: missing a required argument: 'path'"):
        Expression("body.id | hl7")


# --- properties

KEYS = st.sampled_from(["a", "b", "items", 0, 1, -1])
TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "a", "zz", Decimal("1.5"), 1.5]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "items"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def _outcome(run: Any, *args: Any) -> object:
    try:
        value = run(*args)
    except MessageError as error:
        return str(error)
    return value, type(value)


@given(
    tree=TREES,
    keys=st.lists(KEYS, min_size=1, max_size=4),
    name=st.sampled_from(["body", "headers", "transport", "item"]),
)
def test_a_quick_path_and_an_exact_one_agree_on_values_and_on_errors(tree: Any, keys: list[Any], name: str) -> None:
    given_along = name == "item"
    steps = [Key(key, repr(key), f"step {index}") for index, key in enumerate(keys)]
    message = Message(parsed=tree, headers=tree, transport=tree)
    slow = exact(root(name, given=given_along), steps, "path", lenient=False)
    fast = quick(name, given=given_along, keys=steps, slow=slow)
    assert _outcome(fast, message, {"item": tree}) == _outcome(slow, message, {"item": tree})


@given(
    tree=TREES,
    key=KEYS,
    word=st.sampled_from(["eq", "ne", "gt", "gteq", "lt", "lteq"]),
    constant=st.integers(-9, 9) | st.text(max_size=2),
)
def test_a_quick_comparison_and_an_exact_one_agree(tree: Any, key: Any, word: str, constant: Any) -> None:
    sign = {"eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<="}[word]
    message = Message(parsed=tree)
    general = Expression(f"(body)[{key!r}] {sign} other", frozenset({"other"}))
    special = Expression(f"(body)[{key!r}] {sign} {constant!r}" if isinstance(constant, int) else f"body[{key!r}] {sign} other", frozenset({"other"}))  # fmt: skip
    expected = _outcome(general, message, {"other": constant})
    found = _outcome(special, message, {"other": constant})
    assert isinstance(found, str) == isinstance(expected, str)
    if not isinstance(expected, str):
        assert found == expected

    def slow(message: Any, names: Any) -> Any:
        return general(message, {"other": constant})

    assert _outcome(body_against(word, key, constant, slow), message, {}) == expected


def _jinja() -> ImmutableSandboxedEnvironment:
    class Environment(ImmutableSandboxedEnvironment):
        def getattr(self, obj: Any, attribute: str) -> Any:
            if isinstance(obj, dict):
                return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
            return super().getattr(obj, attribute)

    return Environment(undefined=StrictUndefined)


JINJA = _jinja()
LEAVES = st.sampled_from(["body.a", "body.b", "body.items", "body.a.b", "body.items[0]", "1", "0", "7", "'a'", "'zz'", "true", "none", "[1, 2]"])  # fmt: skip
TERMS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(
            inner, st.sampled_from(["and", "or", "==", "!=", "<", ">=", "+", "-", "*", "//", "%", "in"]), inner
        ).map(lambda parts: f"({' '.join(parts)})"),
        inner.map(lambda term: f"(not {term})"),
        inner.map(lambda term: f"({term} | default('d'))"),
        inner.map(lambda term: f"({term} | length)"),
        inner.map(lambda term: f"({term} is string)"),
        st.tuples(inner, inner, inner).map(lambda parts: f"({parts[0]} if {parts[1]} else {parts[2]})"),
    ),
    max_leaves=5,
)


@given(text=TERMS, tree=st.dictionaries(st.sampled_from(["a", "b", "items"]), TREES, max_size=3))
def test_what_has_a_value_here_has_the_same_value_in_jinja2(text: str, tree: Any) -> None:
    try:
        value = Expression(text)(Message(parsed=tree))
    except MessageError:
        return  # ours is the stricter one
    try:
        expected: Any = JINJA.compile_expression(text, undefined_to_none=False)(body=tree)
    except UndefinedError:
        return  # ours goes on for `default` where a path breaks before its end
    if operator.ne(type(value), Decimal):
        assert value == expected
    else:
        assert float(value) == pytest.approx(float(expected))
