"""What a careless or hostile text, or a hostile message, could do: each is refused at load, at run, or is bounded."""

from __future__ import annotations

import time
import tracemalloc
from decimal import Decimal
from typing import Any

import pytest

from gateway import ConfigError, Expression, Message, MessageError, Template

BIG = "x" * 1_000_000
BODY: dict[str, Any] = {
    "id": "A1",
    "big": BIG,
    "list": [1] * 400_000,
    "pairs": [["a", "b"]] * 100_000,
    "huge": Decimal("1e999999"),
    "tiny": Decimal("1e-999999"),
    "digits": 10**399,
    "number": "9" * 1_000_000,
    "inf": float("inf"),
    "nan": float("nan"),
    "template": "{{ 7 * 7 }}{% for i in range(9) %}",
    "evil": "__class__",
    "surrogate": "\ud800",
}
MESSAGE = Message(parsed=BODY)

REFUSED_AT_LOAD = [
    # ways to Python objects
    "''.__class__.__mro__[1].__subclasses__()",
    "().__class__",
    "body.__init__",
    "body['__class__']",
    "body.id.__class__",
    "self.__init__",
    "self._TemplateReference__context",
    "cycler.__init__.__globals__.os.popen('id').read()",
    "lipsum.__globals__",
    "joiner()",
    "namespace(a=1)",
    "dict(a=1)",
    "range(10 ** 9)",
    "config",
    "request",
    "environment",
    "get_flashed_messages()",
    "url_for('x')",
    "body.id.format(1)",
    "'{0.__class__}'.format(1)",
    "'{a.__class__}'.format_map({'a': 1})",
    "body.id | attr('__class__')",
    "body.id | map(attribute='__class__') | attr('x')",
    "['a'] | map('attr', '__class__')",
    "(body.id.upper)()()",
    "now.__globals__",
    "uuid.__call__()",
    "[].append(1)",
    "{}.update({'a': 1})",
    "body.clear()",
    "body.list.pop()",
    "body.id.encode()",
    "body.id.translate({})",
    "body.id.mro()",
    "5 .to_bytes(10 ** 9)",
    "body.id | pprint",
    "body.id | xmlattr",
    "body.id | safe",
    "body.id | random",
    # bombs by method or filter
    "'x'.center(10 ** 9)",
    "'x'.ljust(10 ** 9)",
    "'x'.rjust(10 ** 9)",
    "'x'.zfill(10 ** 9)",
    "'\\t'.expandtabs(10 ** 9)",
    "'%99999999d' | format(1)",
    "'x' | center(10 ** 9)",
    "body.list | list(-(10 ** 9))",
    "'x' | indent(10 ** 9)",
    "'x' | wordwrap(1, wrapstring=body.big)",
    "lipsum(10 ** 9)",
    # bombs of syntax
    "(" * 10_000 + "1" + ")" * 10_000,
    "[" * 500 + "]" * 500,
    "not " * 5_000 + "true",
    "-" * 5_000 + "1",
    "1" + " + 1" * 5_000,
    "1" + " < 1" * 5_000,
    "'a'" + " ~ 'a'" * 5_000,
    "body" + ".a" * 200,
    "body" + "[0]" * 200,
    "body.list" + " | list" * 200,
    "9" * 10_000,
    "x" * 100_000,
    "'" + "x" * 100_000 + "'",
    "a if " * 1_000,
]


@pytest.mark.parametrize("text", REFUSED_AT_LOAD, ids=range(len(REFUSED_AT_LOAD)))
def test_is_refused_at_load(text: str) -> None:
    started = time.process_time()
    with pytest.raises(ConfigError):
        Expression(text)
    assert time.process_time() - started < 3
    with pytest.raises(ConfigError):
        Template(f"a {{{{ {text} }}}}")


def _refused_quickly_and_small(run: Expression | Template) -> None:
    started = time.process_time()
    with pytest.raises(MessageError):
        run(MESSAGE)
    assert time.process_time() - started < 3
    # apart from the clock, as tracing makes it several times slower
    tracemalloc.start()
    try:
        with pytest.raises(MessageError):
            run(MESSAGE)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024**2
    finally:
        tracemalloc.stop()


REFUSED_AT_RUN = [
    "'a' * 10 ** 9",
    "10 ** 9 * 'a'",
    "body.big * 2",
    "[1] * 10 ** 9",
    "[body.list] * 10 ** 6",
    "['" + "a" * 1000 + "'] * 100000",
    "body.big ~ body.big",
    "body.big + body.big",
    "body.list + body.list + body.list + body.list + body.list + body.list",
    "body.big | replace('x', 'yyyyyyyyyy')",
    "body.big.replace('', body.big)",
    "body.list | join(body.big)",
    "body.big.join(body.list)",
    "body.list | map('replace', '1', body.big)",
    "body.list | map('default', body.big, true) | map('string') | join",
    "body.list | select('number') | batch(300007, body.list)",
    "[1] | batch(100000, body.list)",
    "body.list | list | list | list | list | list | list | list | list | list | list | list",
    "body.list | sort | sort | sort | sort",
    "[body.list, body.list] | tojson | length",
    "[body.list, body.list] ~ ''",
    "[body.list, body.list] | string",
    "10 ** (10 ** 10)",
    "9 ** 9999999",
    "(10 ** 900) * (10 ** 900)",
    "(2 ** 0.5) ** (10 ** 100)",
    "1.1 ** (10 ** 100)",
    "1e9999 ** 1e9999",
    "body.digits ** 100",
    "body.huge + 1",
    "body.huge * body.huge",
    "body.huge | int",
    "body.huge | string",
    "body.huge | round",
    "body.huge // 1",
    "body.tiny | string",
    "body.inf + 1",
    "body.nan | string",
    "body.nan * 1.0",
    "body.inf | int",
    "body.number | int",
    "body.number | float",
    "1.5 | round(10 ** 6)",
    "1 | round(-(10 ** 6))",
    "'x' | truncate(10 ** 9)",
    "now() | date('%999999999Y')",
    "now() | date('%-9999d')",
    "body.big | date",
    "10 ** 300 | date",
    "'%s' % body.big",
    "body.big % 2",
    "body | tojson(10 ** 9)",
    "body.surrogate | tojson",
    "body.surrogate | hash",
    "body[body.evil]",
    "body.id[body.evil]",
    "body.list[10 ** 30]",
    "body.list[::0]",
    "body.list[body.list]",
    "{body.list: 1}",
    "[1, 2] | map(attribute='__class__')",
    "[1, 2] | sum(attribute='__class__')",
    "body.pairs | map('map', 'upper') | list",
    "body.id.count()",
    "body.big.split('')",
    "body.list is divisibleby 0",
    "1 is divisibleby 0",
]


@pytest.mark.parametrize("text", REFUSED_AT_RUN)
def test_is_refused_at_run_within_a_second_and_without_much_memory(text: str) -> None:
    _refused_quickly_and_small(Expression(text))


TEMPLATES = [
    "{% for a in body.list %}{% for b in body.list %}{% endfor %}{% endfor %}",
    "{% for a in body.list %}x{% endfor %}",
    "{% for a in body.pairs %}{{ body.id }}{{ body.id }}{{ body.id }}{{ body.id }}{{ body.id }}{% endfor %}{{ body.big }}",
    "{% for a in body.pairs %}{% if a in body.list %}{% endif %}{% endfor %}",
    "{% for a in body.pairs %}{% if body.list == body.pairs or body.list == body.list %}{% endif %}{% endfor %}",
    "{% for a in body.pairs %}{% set x = body.big ~ '' %}{% endfor %}",
    "{% for a in body.pairs %}{% set x = body.big.upper() %}{% endfor %}",
    "{% for a in body.pairs %}{% set x = body.list | length %}{% set y = [body.list] %}{% endfor %}",
    "{% for a in body.pairs %}{{ body.big }}{% endfor %}",
    "{{ body.big }}{{ body.big }}",
    "{{ body.big }}" * 50,
    "{% set a = ['x'] * 1000 %}" + "".join(f"{{% set a = [{', '.join('a' * 10)}] %}}" for _ in range(12)) + "{{ a }}",
    "{% set a = 'xxxxxxxxxx' %}" + "{% set a = a ~ a ~ a ~ a %}" * 30,
    "{% set a = [1] %}" + "{% set a = a + a + a + a %}" * 30,
    "{% for a in body.pairs if a in body.list %}{% endfor %}",
    "{% for a, b, c in body.pairs %}{% endfor %}",
]


@pytest.mark.parametrize("text", TEMPLATES, ids=range(len(TEMPLATES)))
def test_a_template_that_grows_is_refused_within_a_second_and_without_much_memory(text: str) -> None:
    _refused_quickly_and_small(Template(text))


STATEMENTS = [
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% from 'x' import y %}",
    "{% extends 'x' %}",
    "{% macro x() %}{% endmacro %}",
    "{% call x() %}{% endcall %}",
    "{% block x %}{% endblock %}",
    "{% filter upper %}x{% endfilter %}",
    "{% with a = 1 %}{% endwith %}",
    "{% set body = 1 %}",
    "{% set now = 1 %}",
    "{% set __class__ = 1 %}",
    "{% set a.b = 1 %}",
    "{% set a, b = 1 %}",
    "{% set a %}x{% endset %}",
    "{% for body in [1] %}{% endfor %}",
    "{% for a.b in [1] %}{% endfor %}",
    "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{% for a in [1] %}{{ loop.cycle(1, 2) }}{% endfor %}",
    "{% autoescape true %}{% endautoescape %}",
    "{% do x %}",
    "{% trans %}x{% endtrans %}",
    "{% debug %}",
    "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "{% for a in [1] %}" * 300 + "{% endfor %}" * 300,
]


@pytest.mark.parametrize("text", STATEMENTS, ids=range(len(STATEMENTS)))
def test_a_statement_that_is_not_on_the_list_is_refused_at_load(text: str) -> None:
    with pytest.raises(ConfigError):
        Template(text)


def test_data_is_never_evaluated() -> None:
    assert Template("{{ body.template }}")(MESSAGE) == BODY["template"]
    assert Template("a {{ body.template }}")(MESSAGE) == f"a {BODY['template']}"


def test_a_message_can_not_change_what_an_expression_shares_between_messages() -> None:
    expression = Expression("body.list | default([1, 2])")
    assert expression(Message(parsed={})) == [1, 2]
    assert Template("{% set a = a | default(0) %}{{ a }}", frozenset({"a"}))(MESSAGE) == "0"
    assert expression(Message(parsed={})) == [1, 2]


def test_one_evaluation_spends_nothing_of_the_next() -> None:
    expression = Expression("body.list | list | list | list | length")
    assert [expression(MESSAGE) for _ in range(5)] == [400_000] * 5
