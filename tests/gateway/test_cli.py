"""The command line: what it prints, and how it ends."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from gateway import doctor
from gateway.cli import main
from gateway.commands import output, serving
from gateway.config import load
from gateway.graph import graph
from gateway.sample import sample
from gateway.starter import start
from tests.ports import free_port

ROOT = Path(__file__).parent.parent.parent

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command line in an empty folder; gives exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATEWAY_DEBUG", raising=False)

    def runs(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, error = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, error

    return runs


# the command itself


def test_help_names_every_command(run: Run) -> None:
    code, out, _ = run("--help")
    named = re.findall(r"^  ([a-z]+) ", out.split("Commands:")[1], re.MULTILINE)
    assert code == 0
    assert {"run", "check", "send", "messages", "show", "dead", "tail", "top", "routes"} <= set(named)
    assert {"init", "list", "doc", "schema", "graph", "eval", "doctor", "version"} <= set(named)


def test_help_imports_nothing_that_it_does_not_need() -> None:
    seen = "import sys, gateway.cli; print([name for name in ('fastapi', 'httpx2', 'lxml', 'apsw') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_the_module_is_the_command() -> None:
    found = subprocess.run([sys.executable, "-m", "gateway", "version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"gateway \d+\.\d+\.\d+\n", found.stdout)


def test_the_version_is_an_option_too(run: Run) -> None:
    assert run("--version") == run("version")


def test_an_unknown_command_is_told_with_exit_code_2(run: Run) -> None:
    code, _, error = run("chekc")
    assert code == 2
    assert "chekc" in error


def test_a_bug_is_told_in_one_line_without_a_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("gateway.config.load", broken)
    assert run("check") == (
        1,
        "",
        "a bug of the gateway: KeyError: 'surprise'; with GATEWAY_DEBUG=1 it shows where\n",
    )


def test_a_bug_shows_where_it_is_when_asked_to(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr("gateway.config.load", broken)
    monkeypatch.setenv("GATEWAY_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["check"])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colors_are_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert output.colored(Terminal())
    assert not output.colored(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not output.colored(Terminal())


def test_a_table_shows_no_character_that_a_terminal_would_act_on(capsys: pytest.CaptureFixture[str]) -> None:
    output.say_table([{"a": "x\033[2Jy\nz", "b_c": True}, {"a": {"k": 1}}], ["a", "b_c"], empty="none")
    assert capsys.readouterr().out == 'A         B C\nx [2Jy z  yes\n{"k": 1}\n'


def test_a_table_is_cut_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    output.say_table([{"a": "x" * 50}], ["a"], empty="none")
    assert capsys.readouterr().out == f"A\n{'x' * 50}\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    output.say_table([{"a": "x" * 50}], ["a"], empty="none")
    assert capsys.readouterr().out == f"A\n{'x' * 19}…\n"


def test_an_output_that_is_read_in_part_ends_quietly() -> None:
    command = f"{shlex.quote(sys.executable)} -m gateway schema | head -n 1"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("{\n", "")


# list, doc, schema, graph, eval


def test_list_shows_all_kinds_with_a_line_each(run: Run) -> None:
    code, out, _ = run("list")
    kinds = {line.split()[0] for line in out.splitlines()[1:]}
    assert (code, kinds) == (0, {"source", "sink", "connection", "format", "step"})


@pytest.mark.parametrize("kind", ["formats", "format", "Formats"])
def test_list_shows_one_kind(run: Run, kind: str) -> None:
    rows = json.loads(run("list", kind, "--json")[1])
    assert {"json", "xml"} <= {row["name"] for row in rows}
    assert {row["kind"] for row in rows} == {"format"}


def test_list_refuses_other_kinds(run: Run) -> None:
    code, _, error = run("list", "sauces")
    assert code == 2
    assert "expected one of sources, sinks, connections, formats, steps" in error


def test_doc_prints_one_component(run: Run) -> None:
    code, out, _ = run("doc", "timer")
    assert code == 0
    assert out.startswith("# timer\n")
    assert "| `every` | duration |" in out


def test_doc_prints_a_setting_that_is_a_choice(run: Run) -> None:
    code, out, _ = run("doc", "framing")
    assert code == 0
    assert "## framing: length" in out
    assert "did you mean framing?" in run("doc", "framming")[2]


def test_doc_suggests_what_was_meant(run: Run) -> None:
    assert run("doc", "mqt") == (1, "", 'there is no component "mqt"; did you mean mqtt?\n')


def test_doc_needs_a_name(run: Run) -> None:
    assert run("doc")[0] == 2


def test_schema_is_a_json_schema(run: Run) -> None:
    code, out, _ = run("schema")
    assert code == 0
    Draft202012Validator.check_schema(json.loads(out))


def test_graph_draws_routes_that_meet_as_joined(run: Run) -> None:
    code, out, _ = run("graph", str(ROOT / "routes.yaml"))
    lines = [line.strip() for line in out.splitlines()]
    assert (code, lines[0]) == (0, "flowchart LR")
    nodes = {line.split('"')[1]: re.split(r"[\[({]", line)[0] for line in lines[1:] if "-->" not in line}
    channel, tcp = nodes["channel live"], nodes["tcp 127.0.0.1:9100"]
    routes = {label.split("<br/>")[0]: node for label, node in nodes.items()}
    assert f'{routes["orders"]} -->|"ledger, when body.total #gt;= 1000"| {tcp}' in lines
    assert f"{tcp} --> {routes['ledger-system']}" in lines
    assert f"{routes['orders']} --> {channel}" in lines
    assert f"{channel} --> {routes['live']}" in lines


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_example_can_be_drawn(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in re.findall(r"\$\{env:(\w+)\}", file.read_text(encoding="utf-8")):
        monkeypatch.setenv(name, os.environ.get(name, "0123456789abcdef"))
    drawn = graph(load(file))
    assert drawn.startswith("flowchart LR\n")
    assert all(
        re.fullmatch(r"  (\w+(\[|\(|\{).*|\w+ (-->|-\.->)(\|.*\|)? \w+)", line) for line in drawn.splitlines()[1:]
    )


def test_calls_taps_and_dead_letters_are_drawn_dashed(tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    file.write_text(
        """\
version: 1
routes:
  a:
    from: rest
    steps:
      - call: {http: {url: "http://127.0.0.1:9/{{ body.id }}"}, name: crm}
      - tap: {log: {text: 'a "b"'}}
    to: drop
    dead_letter: {file: {path: dead.jsonl}}
""",
        encoding="utf-8",
    )
    drawn = graph(load(file))
    assert '-.->|"call crm"|' in drawn
    assert '-.->|"tap"|' in drawn
    assert '-.->|"dead letters"|' in drawn


def test_neither_the_graph_nor_the_banner_shows_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.banner import banner

    monkeypatch.setenv("KEY", "hunter2-hunter2")
    file = tmp_path / "routes.yaml"
    file.write_text(
        """\
version: 1
routes:
  hook:
    from:
      - http: {listen: "127.0.0.1:8081", path: "/hook/${env:KEY}"}
      - websocket: {url: "ws://127.0.0.1:9/feed?token=${env:KEY}"}
    steps:
      - call: {http: {url: "http://127.0.0.1:9/{{ body.id }}?key=${env:KEY}"}, name: crm}
    to:
      http: {url: "http://127.0.0.1:9/?key=${env:KEY}"}
      when: body.key != '${env:KEY}'
""",
        encoding="utf-8",
    )
    config = load(file)
    drawn, said = graph(config), banner(config)
    assert "hunter2" not in drawn + said
    assert "http://127.0.0.1:8081/hook/${env:KEY}" in drawn
    assert "http://127.0.0.1:8081/hook/${env:KEY}" in said
    assert "ws://127.0.0.1:9/feed?token=${env:KEY}" in said


def test_eval_of_an_expression_keeps_its_type(run: Run, tmp_path: Path) -> None:
    (tmp_path / "order.json").write_text('{"items": [{"price": 600.10}, {"price": 500}], "id": "A1"}')
    assert run("eval", "body.items | sum(attribute='price')", "--body", "order.json")[1] == "1100.10\n"
    assert run("eval", "body.items | length > 1", "--body", "order.json")[1] == "true\n"
    assert run("eval", "body.id", "--body", "order.json")[1] == "A1\n"
    assert run("eval", "body.id", "--body", "order.json", "--json")[1] == '"A1"\n'
    assert run("eval", "order {{ body.id }}", "--body", "order.json")[1] == "order A1\n"


def test_eval_sees_headers_transport_and_other_formats(run: Run, tmp_path: Path) -> None:
    (tmp_path / "order.xml").write_text("<Order><id>7</id></Order>")
    assert run("eval", "body.Order.id", "--body", "order.xml")[1] == "7\n"
    assert run("eval", "headers['x-shop']", "--header", "X-Shop: north")[1] == "north\n"
    assert run("eval", "transport.topic", "--transport", "topic=plant/7")[1] == "plant/7\n"
    nested = ("--transport", "params.name=Anna", "--transport", "params.id=7=8")
    assert run("eval", "transport.params.name ~ transport.params.id", *nested)[1] == "Anna7=8\n"


def test_eval_tells_of_a_fact_that_is_a_value_and_holds_others(run: Run) -> None:
    code, _, error = run("eval", "1", "--transport", "params=1", "--transport", "params.name=Anna")
    assert code == 2
    assert "expected params to be a value or to hold others, got both" in error


def test_eval_tells_what_is_undefined_and_what_can_not_be_compiled(run: Run) -> None:
    assert run("eval", "body.total") == (1, "", "body.total: 'total' is not there; body is empty\n")
    assert run("eval", "body.") == (2, "", "body.: expected name or number\n")


def test_eval_tells_of_a_body_that_is_not_there(run: Run) -> None:
    code, _, error = run("eval", "body.a", "--body", "no.json")
    assert code == 2
    assert "no.json can't be read: No such file or directory" in error


@pytest.mark.parametrize("option", ["--header", "--transport"])
def test_eval_tells_how_a_header_is_written(run: Run, option: str) -> None:
    code, _, error = run("eval", "1", option, "nonsense")
    assert code == 2
    assert "got 'nonsense'" in error


# init, doctor


def test_init_writes_what_runs_and_what_the_schema_takes(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("init", "first")
    assert code == 0
    assert (
        out
        == "wrote first/routes.yaml\nwrote first/order.json\nwrote first/routes.schema.json\nnow: cd first && gateway run\n"
    )
    assert run("check", "first")[:2] == (0, "good: 1 route\n")
    text = (tmp_path / "first" / "routes.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=./routes.schema.json\n")
    Draft202012Validator.check_schema(json.loads((tmp_path / "first" / "routes.schema.json").read_text()))


def test_init_overwrites_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "routes.yaml").write_text("mine")
    code, _, error = run("init")
    assert (code, error) == (2, "routes.yaml: it is there already and stays as it is; name another folder\n")
    assert (tmp_path / "routes.yaml").read_text() == "mine"
    assert not (tmp_path / "routes.schema.json").exists()


def test_doctor_shows_versions_paths_accelerators_and_extras(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    found = json.loads(run("doctor", "--json")[1])
    assert {row["package"]: Path(row["from"]) for row in found["packages"]} == {
        name: ROOT / name for name in ("gateway", "adapters", "transforms")
    }
    assert {"uvloop", "httptools", "jsonschema-rs", "libyaml"} <= {row["accelerator"] for row in found["accelerators"]}
    assert {row["extra"] for row in found["extras"]} == {"amqp", "mqtt"}
    assert any(row["library"] == "SQLite in apsw" for row in found["libraries"])
    text = run("doctor")[1]
    assert all(title in text for title in ("Python", "Packages", "Libraries", "Accelerators", "Extras", "Plugins"))


def test_doctor_warns_of_a_foreign_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import adapters

    monkeypatch.setattr(adapters, "__path__", ["/elsewhere/adapters"])
    (warning,) = [text for text in doctor.examine().warnings if text.startswith("adapters was imported from ")]
    assert "/elsewhere/adapters" in warning


@pytest.mark.parametrize("version", ["3.7.0", "3.51.2", "3.40.1"])
def test_doctor_warns_of_the_sqlite_that_can_corrupt_its_log(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apsw.sqlite_lib_version", lambda: version)
    assert any(text.startswith(f"SQLite {version} can corrupt its log") for text in doctor.examine().warnings)


def test_doctor_does_not_warn_of_a_later_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apsw.sqlite_lib_version", lambda: "3.51.3")
    assert not any("corrupt" in text for text in doctor.examine().warnings)


def test_doctor_warns_of_libraries_that_are_too_old_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    has = {"uvloop": "0.22.1", "jinja2": None}
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: has[name] if name in has else known(name))
    warnings = doctor.examine().warnings
    assert (
        "uvloop 0.22.1 is older than 0.23, which the gateway needs; install it again with its dependencies" in warnings
    )
    assert "jinja2 is missing; install the gateway again" in warnings


def test_doctor_says_how_to_get_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "aio-pika" else known(name))
    found = doctor.examine()
    (extra,) = [row for row in found.extras if row["extra"] == "amqp"]
    assert extra["state"] == "pip install 'interchange-gateway[amqp]'"
    assert not any("aio-pika" in text for text in found.warnings)


def test_a_warning_of_the_doctor_ends_with_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/tmp")
    code, _, error = run("doctor")
    assert code == 1
    assert "warning: PROMETHEUS_MULTIPROC_DIR is set" in error


# samples


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "text"),
        ({"type": "string", "minLength": 6, "maxLength": 6}, "textxx"),
        ({"type": "string", "format": "date"}, "2026-01-31"),
        ({"type": "integer"}, 1000),
        ({"type": "integer", "maximum": 7}, 7),
        ({"type": "number", "exclusiveMinimum": 2000}, 2001),
        ({"type": "integer", "maximum": 10, "multipleOf": 4}, 8),
        ({"enum": ["a", "b"]}, "a"),
        ({"const": 5}, 5),
        ({"default": None}, None),
        ({"examples": [{"id": 1}], "type": "object"}, {"id": 1}),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [True, True]),
        ({"properties": {"a": {"type": "null"}, "b": {}}, "required": ["a"]}, {"a": None}),
        ({"properties": {"b": {}}}, {"b": "text"}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"const": 1}}}, 1),
        ({"$ref": "other.json"}, None),
        ({"anyOf": [{"const": 2}, {"const": 3}]}, 2),
        ({"type": ["integer", "null"]}, 1000),
        (True, None),
    ],
)
def test_a_sample_keeps_to_its_schema(schema: Any, value: Any) -> None:
    assert sample(schema) == value


def test_a_schema_without_an_end_has_a_sample_all_the_same() -> None:
    node = {"$ref": "#/$defs/node", "$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}}}}}
    assert json.dumps(sample(node)).count("next") < 20


def test_the_sample_of_the_bundled_schema_is_an_order_of_a_thousand_and_more() -> None:
    schema = json.loads((ROOT / "examples" / "schemas" / "order.json").read_text())
    order = sample(schema)
    Draft202012Validator(schema).validate(order)
    assert sum(item["price"] for item in order["items"]) >= 1000


# run


@contextmanager
def process(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with (folder / "log").open("w") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "gateway", "run", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        yield started
    finally:
        started.kill()
        started.wait(10)
        assert started.stdout is not None
        started.stdout.close()


def banner_of(started: subprocess.Popen[str]) -> list[str]:
    """The lines up to the second command."""
    assert started.stdout is not None
    lines: list[str] = []
    for line in started.stdout:
        lines.append(line.rstrip("\n"))
        if lines[-1].startswith("  tail "):
            return lines
    raise AssertionError(f"no banner: {lines}")


def test_run_says_what_to_paste_and_what_is_pasted_works(tmp_path: Path) -> None:
    ports = {old: free_port() for old in (8080, 8081)}
    start(tmp_path)
    text = (tmp_path / "routes.yaml").read_text()
    text = text.replace("  data: ./var ", f'  api: {{listen: "127.0.0.1:{ports[8080]}"}}\n  data: ./var ')
    (tmp_path / "routes.yaml").write_text(text.replace("8081", str(ports[8081])))
    with process(tmp_path) as started:
        lines = banner_of(started)
        curl, look = lines[-2].strip(), lines[-1].strip()
        assert "my-gateway is running; Ctrl-C stops it" in lines
        assert any(
            line.split() == ["http", f"http://127.0.0.1:{ports[8081]}/orders", "route", "orders"] for line in lines
        )
        assert any(line.split()[:2] == ["API", f"http://127.0.0.1:{ports[8080]}/api/v1"] for line in lines)
        assert any("admin token in var/admin.token" in line for line in lines)
        answer = subprocess.run(shlex.split(curl), capture_output=True, text=True, check=True).stdout
        assert answer.startswith("HTTP/1.1 202")
        arrived = ""
        deadline = time.monotonic() + 10
        while not arrived and time.monotonic() < deadline:
            arrived = subprocess.run(
                shlex.split(look), cwd=tmp_path, capture_output=True, text=True, check=False
            ).stdout
        assert json.loads(arrived) == {"id": "A1", "customer": "NORTH", "total": 1250.5}
        started.send_signal(signal.SIGTERM)
        assert started.wait(15) == 0
    assert all(json.loads(line)["time"] for line in (tmp_path / "log").read_text().splitlines())


def test_run_refuses_what_check_refuses_with_exit_code_2(run: Run, tmp_path: Path) -> None:
    (tmp_path / "routes.yaml").write_text("version: 1\nroutes:\n  a:\n    from: rest\n    to: dorp\n")
    assert run("run") == run("check")
    assert run("run")[0] == 2


def test_run_leaves_logging_as_it_was(run: Run) -> None:
    def now() -> tuple[Any, ...]:
        return list(logging.root.handlers), logging.root.level, logging.getLogger("gateway").level

    before, threads = now(), set(threading.enumerate())
    assert run("run")[0] == 2
    assert now() == before
    for thread in set(threading.enumerate()) - threads:
        thread.join(5)
        assert not thread.is_alive()


def test_run_tells_of_an_address_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "routes.yaml").write_text(
            f'version: 1\ngateway: {{api: {{listen: "127.0.0.1:{port}"}}}}\nroutes:\n  a: {{from: rest, to: drop}}\n'
        )
        with process(tmp_path) as started:
            assert started.wait(20) == 2
        told = (tmp_path / "log").read_text().splitlines()[-1]
    assert told.startswith(f"gateway.api.listen: 127.0.0.1:{port} is in use by another program")


def test_run_refuses_a_level_that_does_not_exist(run: Run) -> None:
    code, _, error = run("run", "--log-level", "loud")
    assert code == 2
    assert "expected one of debug, info, warning, error" in error


def test_the_banner_of_the_bundled_file_ends_at_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.banner import banner

    monkeypatch.chdir(ROOT)
    lines = banner(load(serving.ROUTES)).splitlines()
    assert lines[-1] == "  tail -n 1 var/ledger.xml"
    assert lines[-2].startswith('  curl -i -H \'content-type: application/json\' -d \'{"id": "A1001"')
    assert lines[-2].endswith("http://127.0.0.1:8081/orders")


def test_a_banner_without_http_and_files_uses_commands_of_the_gateway(tmp_path: Path, run: Run) -> None:
    from gateway.banner import commands

    (tmp_path / "routes.yaml").write_text("version: 1\nroutes:\n  a: {from: rest, to: drop}\n")
    send, look = commands(load(Path("routes.yaml")))
    assert send.startswith('printf %s \'{"hello": "world"}\' | ')
    assert send.endswith("gateway send a -")
    assert look.endswith("gateway messages")


@pytest.mark.parametrize(
    ("steps", "body", "sure"),
    [
        ('[{map: {order: "{{ body.id }}", total: "{{ body.total * 2 }}"}}]', {"id": "text", "total": 1000}, True),
        ("[{filter: body.total >= 5000 and body.customer.kind == 'shop'}]", {"total": 5000, "customer": {"kind": "shop"}}, True),
        ("[{filter: body.total < 10}, {set: {subject: '{{ body.id.lower() }}'}}]", {"total": 9, "id": "text"}, True),
        ('[{map: {who: "{{ transport.params.name }}", asked: "{{ body.question }}"}}]', {"question": "text"}, True),
        ("[{map: {lines: {each: body.items, as: item, do: {sku: '{{ item.sku }}'}}}}]", {"items": "text"}, False),
        ("[{try: {steps: [{set: {subject: '{{ body.id }}'}}], catch: []}}]", {"id": "text"}, False),
        ("[{log: {text: 'order {{ body.id }}', fields: {n: '{{ body.n }}'}}}]", {"id": "text", "n": "text"}, False),
    ],
    ids=["map", "compared", "methods", "params", "list", "pattern", "log"],
)  # fmt: skip
def test_a_banner_suggests_a_body_that_the_route_takes(
    tmp_path: Path, run: Run, steps: str, body: Any, sure: bool, caplog: pytest.LogCaptureFixture
) -> None:
    from gateway.banner import commands

    caplog.set_level(logging.DEBUG, "gateway")
    source = '{http: {listen: "127.0.0.1:8081", path: "/hello/{name}"}}'
    text = f"version: 1\nroutes:\n  a:\n    from: {source}\n    steps: {steps}\n    to: {{file: {{path: out.jsonl}}}}\n"
    (tmp_path / "routes.yaml").write_text(text)
    send, look = commands(load(Path("routes.yaml")))
    assert json.loads(shlex.split(send)[-2]) == body
    assert look == "tail -n 1 out.jsonl" if sure else look.endswith("gateway messages")
    assert caplog.records == [], "a body that is made up is none to log"


def test_a_banner_with_a_path_parameter_and_without_a_body(tmp_path: Path, run: Run) -> None:
    from gateway.banner import commands

    source = '{http: {listen: "0.0.0.0:8081", path: "/orders/{id}", methods: [GET]}}'
    (tmp_path / "more.yaml").write_text(f"version: 1\nroutes:\n  a:\n    from: {source}\n    to: drop\n")
    send, look = commands(load(Path("more.yaml")))
    assert send == "curl -i -X GET http://127.0.0.1:8081/orders/1"
    assert look.endswith("gateway messages --config more.yaml")
