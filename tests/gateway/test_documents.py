from __future__ import annotations

import json
import math
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from gateway.config import load_text
from gateway.documents import (
    Complaint,
    Complaints,
    Document,
    Place,
    complaints_of,
    did_you_mean,
    nodes,
    parse,
    read,
    render,
    shown_value,
)
from gateway.exact import Referenced
from gateway.settings import AddressField, Duration, Rate, Settings, Size, Url, duration, rate, size

CASES = sorted((Path(__file__).parent.parent / "cases" / "documents").glob("*.txt"))
ENVIRONMENT = {"TOKEN": "s3cret-token", "SHORT": "5", "PORT": "8080", "EMPTY": ""}


class Http(Settings):
    url: Annotated[str, Url("http", "https")] = Field("http://localhost", description="where")
    method: Literal["GET", "POST", "PUT"] = Field("POST", description="method")
    timeout: Duration = Field(duration("5s"), le=300, description="wait")
    password: SecretStr | None = Field(None, description="secret")
    methods: tuple[str, ...] = Field((), description="methods")
    verify: bool = Field(True, description="check")

    @model_validator(mode="after")
    def _password_needs_https(self) -> Http:
        if self.password is not None and not self.url.startswith("https:"):
            raise ValueError(f"a password such as {self.password.get_secret_value()} needs https")
        return self


class Target(Settings):
    http: Http | None = Field(None, description="http")
    tcp: AddressField | None = Field(None, description="tcp")
    name: str | None = Field(None, description="name")


class Route(Settings):
    source: str = Field(alias="from", description="source")
    to: Target | list[Target] = Field((), description="targets")  # type: ignore[assignment]
    match: Literal["all", "first"] = Field("all", description="match")
    concurrency: int = Field(16, ge=1, le=100, description="sends")
    attempts: int = Field(8, ge=1, description="attempts")
    ratio: float = Field(0.5, gt=0, lt=1, description="ratio")
    buffer: Size = Field(size("1MiB"), ge=1024, description="buffer")
    pace: Rate = Field(rate("10/s"), le=100, description="pace")
    labels: dict[Literal["site", "line"], str] = Field({}, description="labels")
    wait: Duration | Literal["off"] = Field("off", description="wait")
    tags: tuple[str, ...] = Field(("x",), min_length=1, max_length=2, description="tags")


class Root(Settings):
    version: Literal[1] = Field(description="version")
    routes: dict[str, Route] = Field(description="routes")


def complaints_about(text: str, file: Path = Path("routes.yaml")) -> str:
    try:
        document = parse(text, file, ENVIRONMENT)
    except Complaints as complaints:
        return str(complaints)
    try:
        Root.model_validate(document.data)
    except ValidationError as error:
        return render(complaints_of(error, document, model=Root))
    return "none"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_a_mistake_is_told_in_a_sentence_with_its_place(case: Path) -> None:
    given_text, _, expected = case.read_text("utf-8").partition("\n--------\n")
    assert complaints_about(given_text + "\n") == expected.rstrip("\n")


def document_of(text: str, **environment: str) -> Document:
    return parse(text, Path("routes.yaml"), environment)


def complaints_on(text: str, **environment: str) -> list[Complaint]:
    with pytest.raises(Complaints) as raised:
        document_of(text, **environment)
    return raised.value.complaints


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("12:30:00", "12:30:00"),
        ("2026-11-21", "2026-11-21"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("0o17", 15),
        ("017", 17),
        ("0x1F", 31),
        ("-12", -12),
        ("+3", 3),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("-.inf", -math.inf),
        ("~", None),
        ("", None),
        ("Null", None),
        ("nULL", "nULL"),
        ("true", True),
        ("FALSE", False),
        ("tRUE", "tRUE"),
        ('"1"', "1"),
        ("'true'", "true"),
        ('"\\u00e9"', "é"),
        ("=", "="),
        ("5s", "5s"),
    ],
)
def test_plain_values_mean_what_the_core_schema_of_yaml_1_2_says(written: str, value: object) -> None:
    found = document_of(f"a: {written}\n").data["a"]
    assert (found, type(found)) == (value, type(value))


def test_not_a_number_is_a_number() -> None:
    assert math.isnan(document_of("a: .nan").data["a"])


def test_the_python_loader_reads_and_complains_as_the_c_loader_does(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {case: complaints_about(case.read_text("utf-8").partition("\n--------\n")[0] + "\n") for case in CASES}
    monkeypatch.setattr(nodes, "_LOADER", yaml.SafeLoader)
    for case, expected in told.items():
        without_places = [line for line in expected.splitlines() if ": " in line]
        again = complaints_about(case.read_text("utf-8").partition("\n--------\n")[0] + "\n")
        assert len(without_places) == len([line for line in again.splitlines() if ": " in line]), case.stem
        assert "this is no YAML" not in again, case.stem


TEXT = """\
version: 1
routes:
  заказы:
    to:
      - http: {url: x}
      - tcp
"""


@pytest.mark.parametrize(
    ("loc", "key", "line", "column"),
    [
        ((), False, 1, 1),
        (("version",), False, 1, 10),
        (("version",), True, 1, 1),
        (("routes", "заказы"), True, 3, 3),
        (("routes", "заказы"), False, 4, 5),
        (("routes", "заказы", "to", 0, "http", "url"), False, 5, 21),
        (("routes", "заказы", "to", 0, "http", "url"), True, 5, 16),
        (("routes", "заказы", "to", 1), True, 6, 9),
        (("routes", "заказы", "to", 7, "x"), False, 5, 7),
        (("routes", "заказы", "from"), True, 3, 3),
        (("nowhere", "at", "all"), False, 1, 1),
    ],
)
def test_every_path_has_a_place(loc: tuple[str | int, ...], key: bool, line: int, column: int) -> None:
    place = document_of(TEXT).place(loc, key=key)
    assert (place.file, place.line, place.column) == ("routes.yaml", line, column)


def test_places_are_right_after_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    file.write_bytes("\ufeffa: 1\r\nb:\r\n  c: é\r\n".encode())
    document = read(file)
    assert document.data == {"a": 1, "b": {"c": "é"}}
    assert str(document.place(("b", "c"))) == f"{file}:3:6"
    assert str(document.place(("a",), key=True)) == f"{file}:1:1"


def test_an_alias_is_placed_where_it_stands_and_its_inside_where_it_is_written() -> None:
    document = document_of("a: &x {k: 1}\nb: *x\n")
    assert document.data == {"a": {"k": 1}, "b": {"k": 1}}
    assert document.data["a"] is not document.data["b"]
    assert document.place(("b",)).line == 2
    assert document.place(("b", "k")).line == 1


def test_an_empty_file_is_an_empty_mapping() -> None:
    assert document_of("# nothing yet\n").data == {}
    assert document_of("---\n").data == {}


def test_aliases_that_explode_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (complaint,) = complaints_on("\n".join(lines))
    assert complaint.text == "aliases repeat more than 10000 values; write fewer of them"


def test_depth_is_refused_also_when_aliases_make_it() -> None:
    deep = "[" * 40 + "]" * 40
    assert document_of(f"a: {'[' * 63}{']' * 63}")
    (complaint,) = complaints_on(f"a: {'[' * 64}{']' * 64}")
    assert complaint.text == "nested deeper than 64 levels"
    (complaint,) = complaints_on(f"a: &a {deep}\nb: {'[' * 40}*a{']' * 40}")
    assert complaint.text == "nested deeper than 64 levels"


def test_an_alias_of_its_own_surroundings_is_refused() -> None:
    (complaint,) = complaints_on("a: &a [*a]")
    assert complaint.text == "*a stands inside of the value that it means"


def test_a_number_too_long_to_be_one_is_refused() -> None:
    assert document_of(f"a: {'9' * 400}").data["a"] == int("9" * 400)
    (complaint,) = complaints_on(f"a: {'9' * 401}")
    assert complaint.text == "a number of more than 400 digits; for text use quotes"


def test_references_are_replaced_anywhere_in_a_text() -> None:
    document = document_of(
        'a: "${env:U}:${env:P}@x"\nb: "$${env:U} $5 $$ ${{ body.total }}"\nc: [{d: "${env:U}"}]\n', U="ann", P="pw"
    )
    assert document.data == {"a": "ann:pw@x", "b": "${env:U} $5 $$ ${{ body.total }}", "c": [{"d": "ann"}]}
    assert document.raw == {
        "a": "${env:U}:${env:P}@x",
        "b": "$${env:U} $5 $$ ${{ body.total }}",
        "c": [{"d": "${env:U}"}],
    }


@pytest.mark.parametrize("secret", ["5", "true", "{a: 1}", "*x", "${env:B}", '"', "a: b\nc: d", "!!int 5", ""])
def test_a_secret_is_never_read_as_yaml_or_as_a_reference(secret: str) -> None:
    assert document_of("a: ${env:A}", A=secret, B="other").data == {"a": secret}


def test_a_key_is_never_a_secret() -> None:
    assert document_of('"${env:A}": 1', A="x").data == {"${env:A}": 1}


def test_the_content_of_a_file_is_put_in_without_its_last_line_end(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"hunter2\n")
    (tmp_path / "two").write_bytes(b"a\n\r\n")
    file = tmp_path / "routes.yaml"
    file.write_text(f'a: "${{file:one}}"\nb: "${{file:{tmp_path}/two}}"\n')
    assert read(file).data == {"a": "hunter2", "b": "a\n"}


def test_a_secret_file_that_is_not_there_or_too_large_or_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * (64 * 1024 + 1))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    file = tmp_path / "routes.yaml"
    file.write_text('a: "${file:missing}"\nb: "${file:large}"\nc: "${file:bytes}"\nd: "${file:.}"\ne: "${file:\\0}"\n')
    with pytest.raises(Complaints) as raised:
        read(file)
    texts = [complaint.text for complaint in raised.value.complaints]
    assert texts == [
        f"the file {tmp_path}/missing can't be read: No such file or directory",
        f"the file {tmp_path}/large is larger than 64KiB, the most for a secret",
        f"the file {tmp_path}/bytes is not UTF-8",
        f"the file {tmp_path} can't be read: Is a directory",
        f"the file {tmp_path}/\0 can't be read: no file can have this name",
    ]


def test_a_variable_that_is_no_utf8_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "LATIN", "caf\udce9")
    with pytest.raises(Complaints, match="LATIN is not UTF-8"):
        parse("a: ${env:LATIN}", Path("routes.yaml"))


def test_a_place_knows_whether_a_secret_is_there() -> None:
    document = document_of('a: {b: ["${env:S}", x]}\nc: "$${env:S}"\n', S="hunter2")
    secret = [("a",), ("a", "b"), ("a", "b", 0), ()]
    plain = [("a", "b", 1), ("c",), ("nowhere",)]
    assert [document.is_secret(loc) for loc in secret] == [True] * 4
    assert [document.is_secret(loc) for loc in plain] == [False] * 3
    assert document.shown(("a", "b", 0)) == '"${env:S}"'


@pytest.mark.parametrize("secret", ["hunter2-hunter2", "5", "a\nb\nlong enough", 'quo"te\\back', "ünïcode-ünïcode"])
def test_no_complaint_shows_a_secret(secret: str) -> None:
    document = document_of("http: {timeout: '${env:S}', method: 'x${env:S}', verify: '${env:S}'}\n", S=secret)
    with pytest.raises(ValidationError) as raised:
        Target.model_validate(document.data)
    shown = render(complaints_of(raised.value, document, model=Target))
    assert '"${env:S}"' in shown
    assert '"x${env:S}"' in shown
    assert f'got "{secret}' not in shown
    assert len(secret) < 6 or (secret not in shown and repr(secret)[1:-1] not in shown)


@pytest.mark.parametrize(
    "secret", ["hunter2-again", "again hunter2", "12hunter2", "a|hunter2", "hunter2.again()", "hunter2(again)"]
)
@pytest.mark.parametrize(
    "expression", ["body.key == ${env:S}", "body.${env:S}", "body | ${env:S}", "${env:S}()", "body.${env:S}()"]
)
def test_a_secret_that_lacks_quotes_in_an_expression_is_not_shown_in_pieces(
    secret: str, expression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S", secret)
    text = f"version: 1\nroutes:\n  a:\n    from: rest\n    steps: [{{filter: '{expression}'}}]\n    to: drop\n"
    shown = ""
    try:
        load_text(text, tmp_path / "routes.yaml")
    except Complaints as complaints:
        shown = str(complaints)
    assert not re.search("again|hunter2", shown)


def test_a_complaint_of_a_whole_mapping_shows_no_secret_of_its_inside() -> None:
    document = document_of("url: http://x\npassword: '${env:S}'\n", S="hunter2-hunter2")
    with pytest.raises(ValidationError) as raised:
        Http.model_validate(document.data)
    (complaint,) = complaints_of(raised.value, document)
    assert complaint.text == "a password such as ${env:S} needs https"


def test_a_value_that_is_shown_cut_shows_no_part_of_a_secret() -> None:
    document = document_of("url: http://x\npassword: '${env:S}'\n", S="hunter2-hunter2")
    complaint = document.complaint((), f"expected a name, got {document.data!r:.40}")
    assert complaint.text == "expected a name, got a mapping"


def test_all_mistakes_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("routes: {x: {a: 1, a: 2}}\n1: x\n")
    (tmp_path / "b.yaml").write_text("routes: {y: [\n")
    (tmp_path / "c.yaml").write_text("a: ${env:NOT_SET_ANYWHERE}\nb: !tag x\n")
    with pytest.raises(Complaints) as raised:
        read(tmp_path)
    places = [(Path(each.place.file).name, each.place.line) for each in raised.value.complaints]
    assert places == [("a.yaml", 1), ("a.yaml", 2), ("b.yaml", 1), ("c.yaml", 1), ("c.yaml", 2)]
    assert str(raised.value).endswith("\n5 complaints")


def test_a_folder_is_merged_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "20.yaml").write_text("version: 1\nroutes:\n  b: {from: http}\n")
    (tmp_path / "10.yaml").write_text("version: 1\nroutes:\n  a: {from: mqtt}\ngateway: {name: x}\n")
    (tmp_path / "30.yaml").write_text("routes:\nconnections: {c: {}}\n")
    (tmp_path / "40.yaml").write_text("# nothing\n")
    (tmp_path / "10.test.yaml").write_text("route: a\n")
    (tmp_path / ".10.yaml").write_text("{{{")
    (tmp_path / "notes.txt").write_text("{{{")
    document = read(tmp_path)
    assert document.data == {
        "version": 1,
        "routes": {"a": {"from": "mqtt"}, "b": {"from": "http"}},
        "gateway": {"name": "x"},
        "connections": {"c": {}},
    }
    assert list(document.data["routes"]) == ["a", "b"]
    assert str(document.place(("routes", "b", "from"))) == f"{tmp_path / '20.yaml'}:3:13"
    assert document.folder(("routes", "b")) == tmp_path


def test_what_two_files_both_say_is_told_with_both_places(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("version: 1\nroutes: {x: 1}\ngateway: {name: p, data: d}\nextra: 1\n")
    (tmp_path / "b.yaml").write_text("version: 2\nroutes: {y: 1, x: 2}\ngateway: {name: p}\nextra: 1\n")
    with pytest.raises(Complaints) as raised:
        read(tmp_path)
    told = {each.subject: (each.place.line, each.place.column, each.text) for each in raised.value.complaints}
    a = tmp_path / "a.yaml"
    assert told == {
        "version": (1, 1, f"it is already written at {a}:1:1; keep one of the two"),
        "routes.x": (2, 16, f"it is already written at {a}:2:10; keep one of the two"),
        "gateway.name": (3, 11, f"it is already written at {a}:3:11; keep one of the two"),
        "extra": (4, 1, f"it is already written at {a}:4:1; keep one of the two"),
    }


def test_what_is_not_there_or_can_not_be_read_is_a_complaint(tmp_path: Path) -> None:
    with pytest.raises(Complaints, match=r"missing\.yaml: there is no such file or folder"):
        read(tmp_path / "missing.yaml")
    with pytest.raises(Complaints, match=r"no file in this folder is called \*\.yaml"):
        read(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(Complaints, match=r"latin\.yaml: line 2 is not UTF-8; save the file as UTF-8"):
        read(latin)


def test_a_file_of_4_mib_is_read_and_a_larger_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    file.write_bytes(b"a: 1\n#" + b"x" * (4 * 1024**2 - 6))
    assert read(file).data == {"a": 1}
    file.write_bytes(b"a: 1\n#" + b"x" * (4 * 1024**2 - 5))
    with pytest.raises(Complaints, match="larger than 4MiB"):
        read(file)


def test_complaints_are_sorted_by_place_and_told_once() -> None:
    one = Complaint(Place("a.yaml", 2, 3, "  b: 1"), "x", "second")
    two = Complaint(Place("a.yaml", 1, 1, "a: 1"), "", "first")
    assert render([one, two, one]) == (
        "a.yaml:1:1: first\n  a: 1\n  ^\na.yaml:2:3: x: second\n    b: 1\n    ^\n2 complaints"
    )


def test_colors_are_there_when_asked_for_and_only_then() -> None:
    complaint = Complaint(Place("a.yaml", 1, 1, "a: 1"), "x", "wrong \x1b[31m red")
    assert "\x1b" not in render([complaint])
    assert render([complaint], color=True).startswith("\x1b[1ma.yaml:1:1:\x1b[0m x: wrong  [31m red\n")


def test_the_caret_stands_under_the_place_also_behind_tabs_wide_and_far_text() -> None:
    wide = render([Complaint(Place("f", 1, 4, "\t漢é: x"), "", "t")]).splitlines()
    assert wide[1:3] == ["   漢é: x", "      ^"]
    line = "x" * 300 + "HERE" + "y" * 300
    far = render([Complaint(Place("f", 1, 301, line), "", "t")]).splitlines()
    assert len(far[1]) < 180
    near = render([Complaint(Place("f", 1, 110, "x" * 150), "", "t")]).splitlines()
    assert near[1] == "  " + "x" * 150
    assert far[1][far[2].index("^") :].startswith("HERE")


def test_the_nearest_word_is_proposed() -> None:
    assert did_you_mean("methds", ["path", "methods"]) == "; did you mean methods?"
    assert did_you_mean("Shared-Group", ["shared_group"]) == "; did you mean shared_group?"
    assert did_you_mean("zzz", ["path", "methods"]) == ""


def test_keys_can_be_told_by_the_caller() -> None:
    document = document_of("routes: {x: {from: a, mtch: first}}")
    with pytest.raises(ValidationError) as raised:
        Route.model_validate(document.data["routes"]["x"])
    seen: list[Any] = []

    def keys_at(loc: tuple[str | int, ...]) -> list[str]:
        seen.append(loc)
        return ["match", "from"]

    (complaint,) = complaints_of(raised.value, document, ("routes", "x"), keys_at=keys_at)
    assert complaint.text == 'unknown key "mtch"; did you mean match?'
    assert complaint.subject == "routes.x.mtch"
    assert seen == [("routes", "x")]


def test_data_that_the_document_has_not_is_placed_at_what_it_was_made_from() -> None:
    document = document_of("from: http\nto: 5\n")
    with pytest.raises(ValidationError) as raised:
        Route.model_validate({})
    (complaint,) = complaints_of(raised.value, document, ("from", "http"), model=Route)
    assert (complaint.place.line, complaint.subject) == (1, "from.http")
    assert complaint.text == "a required key is missing: from"


def test_a_model_without_a_schema_costs_hints_only() -> None:
    class Opaque(BaseModel, arbitrary_types_allowed=True, extra="forbid"):
        value: Complaint | None = None
        thing: type[Document] | None = None
        number: Annotated[int, Field(ge=1)] = 1

    document = document_of("number: 0\nnumbr: 1")
    with pytest.raises(ValidationError) as raised:
        Opaque.model_validate(document.data)
    texts = [complaint.text for complaint in complaints_of(raised.value, document, model=Opaque)]
    assert texts[0].startswith("expected")
    assert texts[1].startswith('unknown key "numbr"')


def test_a_list_is_not_called_short_because_its_entries_are_wrong() -> None:
    document = document_of("from: x\ntags: [5]\n")
    with pytest.raises(ValidationError) as raised:
        Route.model_validate(document.data)
    (complaint,) = complaints_of(raised.value, document, (), Route)
    assert (complaint.subject, complaint.text) == ("tags[0]", "expected text, got 5")


def test_the_sentences_of_custom_errors_are_passed_as_they_are() -> None:
    document = document_of("a:\n  whne: ${env:S}\n", S="hunter2")
    lines = [
        InitErrorDetails(
            type=PydanticCustomError("unknown_name", 'unknown key "whne"; for hunter2'), loc=("a", "whne"), input=None
        ),
        InitErrorDetails(type=PydanticCustomError("settings", "no such thing"), loc=("a",), input=None),
    ]
    told = complaints_of(ValidationError.from_exception_data("x", lines), document)
    assert [(str(each.place), each.text) for each in told] == [
        ("routes.yaml:2:3", 'unknown key "whne"; for ${env:S}'),
        ("routes.yaml:2:3", "no such thing"),
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("fast", '"fast"'),
        ("a\nb", '"a\\nb"'),
        (5, "5"),
        (True, "true"),
        (None, "nothing"),
        ([1], "a list"),
        ({"password": "x"}, "a mapping"),
        ("x" * 100, '"' + "x" * 77 + '…"'),
    ],
)
def test_values_are_shown_as_people_write_them(value: object, shown: str) -> None:
    assert shown_value(value) == shown


# fmt: off
_PIECES = st.sampled_from([
    "a", "b: ", "- ", "\n", "  ", "\t", "'", '"', "[", "]", "{", "}", ",", ": ", "#", "|", ">", "&x ", "*x", "!t ", "? ", "%", "@",
    "`", "---\n", "...\n", "<<: ", "${env:TOKEN}", "${", "1", "~", "\r\n", "\u2028", "\x00", "é", "\\", "\\x",
])
# fmt: on


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
@settings(max_examples=400, deadline=None)
@given(text=st.one_of(st.lists(_PIECES, max_size=40).map("".join), st.text(max_size=60)))
def test_any_text_is_read_or_complained_about(loader: str, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nodes, "_LOADER", getattr(yaml, loader))
        told = complaints_about(text)
    assert "s3cret" not in told
    assert told == "none" or told.splitlines()[-1].partition(" ")[2] in ("complaint", "complaints")


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=60))
def test_any_bytes_are_read_or_complained_about(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("bytes") / "routes.yaml"
    file.write_bytes(content)
    with suppress(Complaints):
        assert isinstance(read(file).data, dict)


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"]), max_size=8)
_DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | _TEXT.filter(lambda text: "${" not in text),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(data=st.dictionaries(_TEXT, _DATA, max_size=3))
def test_what_is_written_as_json_is_read_as_it_is(data: dict[str, Any]) -> None:
    assert document_of(json.dumps(data, ensure_ascii=False)).data == data


@pytest.mark.parametrize(
    ("text", "column", "sign"),
    [("bad: [\n", 6, "["), ("bad: [1, 2", 6, "["), ("bad: {b: [1, {c: 2}]\n\n", 6, "{"), ("bad: [{c: 1,\n", 7, "{")],
)
def test_a_bracket_that_is_never_closed_is_told_where_it_opens(text: str, column: int, sign: str) -> None:
    (complaint,) = complaints_on(f"a: 1\n{text}")
    closing = {"[": "]", "{": "}"}[sign]
    assert complaint.text == f"the {sign} that opens here is never closed; write {closing} where it ends"
    assert (complaint.place.line, complaint.place.column) == (2, column)


def test_a_value_that_is_one_reference_is_told_from_text() -> None:
    data = document_of('a: "${env:N}"\nb: "x${env:N}"\nc: "5"\n', N="5").data
    assert [type(value) for value in data.values()] == [Referenced, str, str]


def test_text_where_a_truth_value_or_a_number_belongs_is_told_as_it_is_written() -> None:
    document = document_of('flag: no\ncount: "5"\nother: "${env:WRONG}"\n', WRONG="five")
    with pytest.raises(ValidationError) as raised:
        Counted.model_validate(document.data)
    assert [complaint.text for complaint in complaints_of(raised.value, document, (), Counted)] == [
        'expected true or false, got "no"',
        'expected a whole number, got "5"',
        'expected a whole number, got "${env:WRONG}"',
    ]


class Counted(Settings):
    flag: bool = Field(default=False, description="flag")
    count: int = Field(1, description="count")
    other: int = Field(1, description="other")
