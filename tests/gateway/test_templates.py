from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import (
    ConfigError,
    Limits,
    Loading,
    Message,
    MessageError,
    PathTemplate,
    Settings,
    Template,
    TopicTemplate,
    UrlTemplate,
    derived_id,
)
from gateway.formats import formats_with

BODY: dict[str, Any] = {
    "id": "A1",
    "total": 5,
    "net": Decimal("2.50"),
    "flag": True,
    "none": None,
    "name": "Ann Lee",
    "lines": [{"sku": "X", "qty": 2}, {"sku": "Y", "qty": 1}],
    "nested": {"a": {"b": 1}},
    "empty": [],
}
MESSAGE = Message(id="0197f0a0-0000-7000-8000-000000000001", parsed=BODY, time_s=0.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{ body.total }}", 5),
        ("{{body.net}}", Decimal("2.50")),
        ("{{ body.flag }}", True),
        ("{{ body.none }}", None),
        ("{{ body.lines }}", BODY["lines"]),
        ("{{- body.total -}}", 5),
        ("{{ body.x | default(0) }}", 0),
        ("{{ body.lines | sum(attribute='qty') }}", 3),
        ("{{ {'a': body.id} }}", {"a": "A1"}),
        ("{{ '007' }}", "007"),
        ("007", "007"),
        ("1e5", "1e5"),
        (5, 5),
        (1.5, 1.5),
        (True, True),
        (None, None),
    ],
)
def test_exactly_one_expression_and_a_bare_constant_keep_their_type(text: Any, value: object) -> None:
    found = Template(text)(MESSAGE)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("order.{{ body.id }}", "order.A1"),
        (" {{ body.total }}", " 5"),
        ("{{ body.total }}\n", "5\n"),
        ("{{ body.flag }}|{{ body.net }}|{{ 5.0 }}|{{ 1e3 }}|{{ 1e-7 }}", "true|2.50|5.0|1000|0.0000001"),
        ("{{ body.nested }} {{ body.empty }}", '{"a":{"b":1}} []'),
        ("a\rb\r\n{{ body.id }}\r\x0b", "a\rb\r\nA1\r\x0b"),
        ("{{ '\\r\\n' }}.", "\r\n."),
        ("x{# a comment #}y", "xy"),
        ("{% raw %}{{ x }}{% endraw %}", "{{ x }}"),
        ("{% if body.flag %}yes{% elif body.x %}no{% else %}x{% endif %}", "yes"),
        ("{% if not body.flag %}yes{% elif body.total > 3 %}no{% endif %}", "no"),
        ("{% for line in body.lines %}{{ loop.index }}:{{ line.sku }}{% if not loop.last %},{% endif %}{% endfor %}", "1:X,2:Y"),
        ("{% for line in body.lines if line.qty > 1 %}{{ line.sku }}{{ loop.length }}{% endfor %}", "X1"),
        ("{% for line in body.empty %}x{% else %}none{% endfor %}", "none"),
        ("{% for k, v in body.nested | items %}{{ k }}={{ v.b }}{% endfor %}", "a=1"),
        ("{% set t = body.total + 1 %}{{ t }}{% set t = t + 1 %}{{ t }}", "67"),
        ("{% set s = 1 %}{% for l in body.lines %}{{ s }}{% set s = s + 1 %}{{ s }}{% endfor %}{{ s }}", "12121"),
        ("{% for a in [1, 2] %}{% for b in [3, 4] %}{{ a }}{{ b }} {% endfor %}{{ loop.index }}{% endfor %}", "13 14 123 24 2"),
        ("{%- if true -%} x {%- endif -%} y", "xy"),
    ],
)  # fmt: skip
def test_anything_else_is_text(text: str, written: str) -> None:
    assert Template(text)(MESSAGE) == written
    assert Template(text).text_of(MESSAGE) == written


@pytest.mark.parametrize(
    ("text", "written"),
    [("{{ body.total }}", "5"), ("{{ body.flag }}", "true"), ("{{ body.lines }}", '[{"sku":"X","qty":2},{"sku":"Y","qty":1}]'), (5, "5"), (1.5, "1.5"), (True, "true"), ("a", "a")],
)  # fmt: skip
def test_text_of_is_always_text(text: Any, written: str) -> None:
    assert Template(text).text_of(MESSAGE) == written


def test_a_template_without_expression_is_constant() -> None:
    assert [Template(text).constant for text in ("a", "", 5, None, "a{# c #}", "{% raw %}{{ x }}{% endraw %}")] == [
        True
    ] * 6
    assert [Template(text).constant for text in ("{{ body.id }}", "a {{ body.id }}", "{% if 1 %}a{% endif %}")] == [
        False
    ] * 3


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("order.{{ body.customer.name }}", "body.customer.name: 'customer' is not there; body has id, total, net, flag, none and 4 more"),
        ("order.{{ body.none }}", "body.none: it is null where text is expected; use | default('…', true) or an if"),
        ("s3cret {{ body.name | int }}", "body.name | int: it is text that is no number; give a default: int(0), float(0)"),
        ("s3cret {{ body.total + 's3cret' }}", "body.total + '…': can't add a number and text; ~ joins text, | int and | float make numbers"),
        ("{% for line in body.lines %}{{ line.price }}{% endfor %}", "line.price: 'price' is not there; line has sku, qty"),
        ("{% for c in body.name %}{% endfor %}", "body.name: it is text, expected a list"),
        ("{% for a, b, c in body.lines %}{% endfor %}", "body.lines: an element is an object, expected a list of 3"),
        ("{% if body.none %}{% set x = 1 %}{% endif %}{{ x }}", "x: it was not given here"),
        ("s3cret {% for i in ['x' * 1000] * 500 %}{{ i }}{{ i }}{{ i }}{% endfor %}", "i: it makes a text of more than 1048576 characters"),
    ],
)  # fmt: skip
def test_what_a_message_lacks_is_refused_with_this_text(text: str, fault: str) -> None:
    with pytest.raises(MessageError) as error:
        Template(text)(MESSAGE)
    assert str(error.value) == fault


def test_null_is_a_value_but_no_text() -> None:
    for template in (Template(None), Template("{{ body.none }}")):
        assert template(MESSAGE) is None
        with pytest.raises(MessageError, match="it is null where text is expected"):
            template.text_of(MESSAGE)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a {{ bdy.id }} b", "bdy.id: there is no name 'bdy'; did you mean body?"),
        ("{{ body.id", "unexpected end of the text, expected }}"),
        ("{{ }}", "expected an expression, got }}"),
        ("{% if %}x{% endif %}", "expected an expression, got %}"),
        ("{% include 'x' %}", "{% include %} is not here; there are: for, if, set"),
        ("{% do body.pop() %}", "encountered unknown tag 'do'"),
        ("{% set body = 1 %}", "the name body is taken: choose another one"),
        ("{% for line in body.lines %}{% set x = 1 %}{% endfor %}{{ x }}", "x: there is no name 'x'; there are: body, context, headers, message, now, transport, uuid"),
        ([1], "expected text, a number, true, false or null, got a list"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_compiled_is_refused_at_load_with_this_text(text: Any, fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        Template(text)
    assert str(error.value).startswith(fault)


def test_what_it_writes_has_the_limit_of_the_route() -> None:
    for text in (
        "{{ body.a }}{{ body.b }}",
        "x{{ body.b }}",
        "{% if true %}{{ body.a }}{{ body.b }}{% endif %}",
        "{{ body.a + body.b }}",
    ):
        template = Template(text)
        formats = formats_with(Limits.model_validate({"template_output": "10B"}))
        fitting = Message(parsed={"a": "x", "b": "x" * 9}, formats=formats)
        assert template(fitting) == "x" * 10
        with pytest.raises(MessageError, match="more than 10 characters"):
            template(Message(parsed={"a": "xx", "b": "x" * 10}, formats=formats))


def test_uuid_counts_through_a_whole_template() -> None:
    first, second = Template("{{ uuid() }} {{ uuid() }}")(MESSAGE).split()
    assert first == derived_id(MESSAGE.id, "uuid", 0)
    assert second == derived_id(MESSAGE.id, "uuid", 1)
    looped = Template("{% for i in [1, 2] %}{{ uuid() }} {% endfor %}")(MESSAGE).split()
    assert looped == [first, second]


def test_names_given_along_are_used_and_not_changed() -> None:
    names = {"item": {"qty": 2}}
    template = Template("{% set item = item.qty %}{{ item }}", frozenset({"item"}))
    assert template(MESSAGE, names) == "2"
    assert names == {"item": {"qty": 2}}
    assert Template("{{ item.qty }}", frozenset({"item"}))(MESSAGE, names) == 2


def test_equality_tells_types_and_classes_apart() -> None:
    assert Template("a {{ body.id }}") == Template("a {{ body.id }}")
    assert Template(1) != Template(True)
    assert Template(1) != Template(1.0)
    assert Template("a/b") != TopicTemplate("a/b")
    assert len({Template("a"), Template("a"), TopicTemplate("a")}) == 2


def test_its_representation_shows_no_constant_text() -> None:
    assert repr(UrlTemplate("https://h/?token=s3cret&id={{ body.id }}")) == "UrlTemplate({{ body.id }})"


class Sending(Settings):
    url: UrlTemplate
    key: Template = Template("x")
    file: PathTemplate = PathTemplate("out.json")
    topic: TopicTemplate | None = None


def test_settings_hold_templates(tmp_path: Path) -> None:
    loading = Loading(folder=tmp_path, names=frozenset({"item"}))
    given_text = {"url": "http://h/{{ item }}", "key": 5, "file": "{{ item }}.json", "topic": "a/{{ item }}"}
    settings = Sending.model_validate(given_text, context=loading)
    assert settings.url(MESSAGE, {"item": "x y"}) == "http://h/x%20y"
    assert settings.file(MESSAGE, {"item": "x"}) == str(tmp_path / "x.json")
    assert settings.topic is not None
    assert settings.topic(MESSAGE, {"item": "x"}) == "a/x"
    assert settings.model_dump() == given_text
    assert settings == Sending.model_validate(given_text, context=loading)
    assert hash(settings) == hash(Sending.model_validate(given_text, context=loading))
    schema = Sending.model_json_schema()["properties"]
    assert schema["url"]["type"] == "string"
    assert schema["key"]["type"] == ["string", "number", "boolean", "null"]
    with pytest.raises(ValueError, match="expected text, got a number"):
        Sending.model_validate({"url": 5})


# --- URLs


def _said(kind: Any, text: Any, value: Any) -> str:
    """What a template typed by its place gives for a value, or how it refuses it."""
    try:
        written: str = kind(text, frozenset({"v"}))(MESSAGE, {"v": value})
    except (MessageError, ConfigError) as error:
        return f"{type(error).__name__}: {error}"
    return written


@pytest.mark.parametrize(
    ("text", "value", "said"),
    [
        ("https://h/a/{{ v }}/b", "x y", "https://h/a/x%20y/b"),
        ("https://h/a/{{ v }}", "../../etc", "https://h/a/..%2F..%2Fetc"),
        ("https://h/a/{{ v }}", "a\\b", "https://h/a/a%5Cb"),
        ("https://h/a/{{ v }}", "a?b#c", "https://h/a/a%3Fb%23c"),
        ("https://h/a/{{ v }}", "%2e%2e", "https://h/a/%252e%252e"),
        ("https://h/a/{{ v }}", "é\r\n", "https://h/a/%C3%A9%0D%0A"),
        ("https://h/?q={{ v }}&r=1", "a&b=c#d+e", "https://h/?q=a%26b%3Dc%23d%2Be&r=1"),
        ("https://h?q={{ v }}", "", "https://h?q="),
        ("https://h/?q={{ v }}", "..", "https://h/?q=.."),
        ("https://h/#{{ v }}", "a b", "https://h/#a%20b"),
        ("https://h:8443/v{{ v }}", 5, "https://h:8443/v5"),
        ("http://[::1]:80/{{ v }}", True, "http://[::1]:80/true"),
        ("https://h/x%20y/{{ v }}", Decimal("1.50"), "https://h/x%20y/1.50"),
        ("https://h", None, "https://h"),
        ("https://h/{{ v }}", "..", "MessageError: v: it is only dots, which leads elsewhere in a URL"),
        ("https://h/.{{ v }}", ".", "MessageError: v: it is only dots, which leads elsewhere in a URL"),
        ("https://h/{{ v }}%2e/x", ".", "MessageError: v: it is only dots, which leads elsewhere in a URL"),
        ("https://h/{{ v }}/x", "", "MessageError: v: it is empty"),
        ("https://h/{{ v }}", None, "MessageError: v: it is null where text is expected; use | default('…', true) or an if"),
        ("https://h/{{ v }}", [1], "MessageError: v: it is a list, expected text or a number"),
        ("https://h/{{ v }}", {}, "MessageError: v: it is an object, expected text or a number"),
        ("https://h/?q={{ v }}", "\ud800", "MessageError: {{ v }}: a value holds half of a surrogate pair"),
        ("https://{{ v }}/", "evil", "ConfigError: expected a URL that begins with a constant scheme and host"),
        ("https://h{{ v }}/", ".evil", "ConfigError: expected a URL that begins with a constant scheme and host"),
        ("https://h:{{ v }}/", "80@evil", "ConfigError: expected a URL that begins with a constant scheme and host"),
        ("https:{{ v }}", "//evil", "ConfigError: expected a URL that begins with a constant scheme and host"),
        ("{{ v }}://h/", "https", "ConfigError: expected a URL that begins with a constant scheme and host"),
        ("/a/{{ v }}", "x", "ConfigError: expected a URL that begins with a constant scheme and host"),
        ("https://h%2eevil/{{ v }}", "x", "ConfigError: expected a URL that begins with a constant scheme and host"),
        ("https://u:p@h/{{ v }}", "x", "ConfigError: a URL holds no user and password: write them as username: and password:"),
        ("https://h/%2{{ v }}", "e", "ConfigError: a URL holds no space, control sign or backslash, and % only as in %20"),
        ("https://h/a b/{{ v }}", "e", "ConfigError: a URL holds no space, control sign or backslash, and % only as in %20"),
        ("https://h/{{ v | urlencode }}", "e", "ConfigError: values in a URL are percent-encoded already: leave out | urlencode"),
        ("https://h/{% if v %}x{% endif %}", "e", "ConfigError: {% %} has no place here, only {{ }}"),
        (5, "e", "ConfigError: expected text, got a number"),
    ],
)  # fmt: skip
def test_a_value_stays_where_it_stands_in_a_url(text: Any, value: Any, said: str) -> None:
    found = _said(UrlTemplate, text, value)
    assert found == said or (said.startswith("ConfigError") and found.startswith(said))


def test_a_url_tells_its_constant_origin() -> None:
    assert UrlTemplate("https://crm.example:8443/customers/{{ body.id }}").origin == "https://crm.example:8443"
    assert UrlTemplate("http://[::1]").origin == "http://[::1]"


@given(value=st.text())
def test_no_value_changes_the_shape_of_a_url(value: str) -> None:
    template = UrlTemplate("https://h:1/a/{{ v }}/b?q={{ v }}&r=1", frozenset({"v"}))
    try:
        parts = urlsplit(template(MESSAGE, {"v": value}))
    except MessageError:
        assert not value.strip(".") or re.search("[\ud800-\udfff]", value)
        return
    assert (parts.scheme, parts.netloc, parts.fragment) == ("https", "h:1", "")
    assert re.fullmatch("/a/[^/]+/b", parts.path)
    assert parse_qsl(parts.query, keep_blank_values=True) == [("q", value), ("r", "1")]


# --- paths


@pytest.mark.parametrize(
    ("text", "value", "said"),
    [
        ("out/{{ v }}.json", "A1", "/srv/out/A1.json"),
        ("/abs/{{ v }}", "a b", "/abs/a b"),
        ("{{ v }}", "~root", "/srv/~root"),
        ("../{{ v }}", "x", "/srv/../x"),
        ("a/{{ v }}/", "x", "/srv/a/x"),
        ("a/b.{{ v }}", 5, "/srv/a/b.5"),
        ("a/{{ v }}", "..", "MessageError: v: it is only dots, which is no file name"),
        ("a/.{{ v }}", ".", "MessageError: v: it is only dots, which is no file name"),
        ("a/{{ v }}", "", "MessageError: v: it is empty"),
        ("a/{{ v }}", "x/y", "MessageError: v: it holds /, which a file name can't"),
        ("a/{{ v }}", "/etc/passwd", "MessageError: v: it holds /, which a file name can't"),
        ("a/{{ v }}", "x\\y", "MessageError: v: it holds a backslash, which a file name can't"),
        ("a/{{ v }}", "x\0", "MessageError: v: it holds NUL, which a file name can't"),
        ("a/{{ v }}", None, "MessageError: v: it is null where text is expected; use | default('…', true) or an if"),
        ("a/{{ v }}", ["x"], "MessageError: v: it is a list, expected text or a number"),
        ("a/{{ v }}.json", "é" * 126, "MessageError: {{ v }}: a file name has 257 bytes, at most 255 are possible"),
        ("a/{{ v }}", "\ud800", "MessageError: {{ v }}: a value holds half of a surrogate pair"),
        ("", "x", "ConfigError: expected a file path, got nothing"),
        ("a\0", "x", "ConfigError: a file path holds no NUL"),
    ],
)  # fmt: skip
def test_a_value_stays_within_one_name_of_a_path(text: str, value: Any, said: str) -> None:
    def made(text: str, names: frozenset[str]) -> PathTemplate:
        return PathTemplate(text, names, Path("/srv"))

    assert _said(made, text, value) == said


def test_a_path_begins_at_home_where_that_is_written() -> None:
    assert PathTemplate("~/{{ body.id }}")(MESSAGE) == str(Path.home() / "A1")


def test_paths_of_other_folders_are_not_equal() -> None:
    assert PathTemplate("a", folder=Path("/x")) != PathTemplate("a", folder=Path("/y"))
    assert PathTemplate("a", folder=Path("/x")) == PathTemplate("a", folder=Path("/x"))


# --- topics


@pytest.mark.parametrize(
    ("text", "value", "said"),
    [
        ("plant/{{ v }}/orders", "7", "plant/7/orders"),
        ("plant/{{ v }}", "a/b", "plant/a/b"),
        ("plant/{{ v }}", "$x", "plant/$x"),
        ("plant/{{ v }}", "+", "MessageError: v: it holds +, which a topic can't"),
        ("plant/{{ v }}", "a#", "MessageError: v: it holds #, which a topic can't"),
        ("plant/{{ v }}", "a\0", "MessageError: v: it holds NUL, which a topic can't"),
        ("{{ v }}/x", "$SYS", "MessageError: v: it begins with $, which is the broker's own"),
        ("{{ v }}", "", "MessageError: {{ v }}: the topic has 0 bytes, expected 1 to 65535"),
        ("{{ v }}", "é" * 32768, "MessageError: {{ v }}: the topic has 65536 bytes, expected 1 to 65535"),
        ("{{ v }}", "x" * 65535, "x" * 65535),
        ("plant/+/{{ v }}", "x", "ConfigError: a topic to publish to holds no +, # and NUL"),
        ("", "x", "ConfigError: expected a topic, got nothing"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_value_stays_a_name_in_a_topic(text: str, value: Any, said: str) -> None:
    assert _said(TopicTemplate, text, value) == said
