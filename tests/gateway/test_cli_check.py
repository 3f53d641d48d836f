"""`gateway check`: what a person reads who made a mistake. The cases are files as people write them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.cli import main
from tests.certificates import Authority

CASES = sorted((Path(__file__).parent.parent / "cases" / "check").glob("*.txt"))
ROUTES = """\
version: 1
routes:
  orders:
    from: rest
    to: drop
"""

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


def parts(case: Path) -> tuple[str, str]:
    broken, told = case.read_text(encoding="utf-8").split("--------\n")
    return broken, told


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_a_broken_file_is_told_as_a_person_would_want_to_read_it(case: Path, tmp_path: Path, run: Run) -> None:
    broken, told = parts(case)
    (tmp_path / "routes.yaml").write_text(broken, encoding="utf-8")
    assert run("check") == (2, "", told)


def test_there_are_twenty_broken_files_at_least() -> None:
    assert len(CASES) >= 20


CERTIFICATES = """\
version: 1
listeners:
  "127.0.0.1:8443": {tls: {certificate: one.pem, private_key: other.key}}
connections:
  plant: {mqtt: {url: "mqtts://plant", client_id: gw, tls: {ca: routes.yaml}}}
routes:
  orders:
    from: {http: {listen: "127.0.0.1:8443"}}
    steps:
      - call: {http: {url: "https://crm", tls: {certificate: one.pem, private_key: other.key}}, into: body.crm}
      - tap: {tcp: {connect: "127.0.0.1:9", tls: {ca: one.key}}}
    to:
      - mqtt: {connection: plant, topic: a}
      - mqtt: {url: "mqtts://other", topic: a, tls: {ca: one.key}}
        name: other
      - mllp: {connect: "127.0.0.1:9", tls: {ca: test-authority.pem, certificate: one.pem, private_key: one.key}}
"""


def test_certificates_and_keys_that_can_not_be_used_are_found_at_load(tmp_path: Path, run: Run) -> None:
    authority = Authority(tmp_path)
    authority.issue("one")
    authority.issue("other")
    (tmp_path / "routes.yaml").write_text(CERTIFICATES)
    code, _, error = run("check")
    told = [line.split(" (")[0] for line in error.splitlines() if line.startswith("routes.yaml:")]
    misfit = "other.key is not the private key of one.pem; name the key that it was issued for"
    assert (code, told) == (
        2,
        [
            f"routes.yaml:3:27: listeners.127.0.0.1:8443.tls: {misfit}",
            "routes.yaml:5:60: connections.plant.mqtt.tls: routes.yaml holds no PEM certificates",
            f"routes.yaml:10:48: routes.orders.steps[0].call.http.tls: {misfit}",
            "routes.yaml:11:50: routes.orders.steps[1].tap.tcp.tls: one.key holds no PEM certificates",
            "routes.yaml:14:53: routes.orders.to[1].mqtt.tls: one.key holds no PEM certificates",
        ],
    )


EXPIRED = """\
version: 1
listeners:
  "127.0.0.1:8443": {tls: {certificate: old.pem, private_key: old.key}}
routes:
  orders:
    from: {http: {listen: "127.0.0.1:8443"}}
    to:
      - mllp: {connect: "127.0.0.1:9", tls: {certificate: old.pem, private_key: old.key}}
      - http: {url: "https://crm", tls: {certificate: new.pem, private_key: new.key}}
"""


def test_an_expired_certificate_of_ours_is_noted_with_its_place(tmp_path: Path, run: Run) -> None:
    authority = Authority(tmp_path)
    authority.issue("old", expires_in=timedelta(days=-2))
    authority.issue("new")
    (tmp_path / "routes.yaml").write_text(EXPIRED)
    code, out, _ = run("check")
    late = f"it expired on {datetime.now(UTC) - timedelta(days=2):%Y-%m-%d}, so that peers refuse it; renew it"
    assert (code, out.splitlines()) == (
        0,
        [
            "good: 1 route",
            f"note: routes.yaml:3:41: listeners.127.0.0.1:8443.tls.certificate: {late}",
            f"note: routes.yaml:8:59: routes.orders.to[0].mllp.tls.certificate: {late}",
        ],
    )


def test_a_good_file_is_called_good(tmp_path: Path, run: Run) -> None:
    (tmp_path / "routes.yaml").write_text(ROUTES)
    assert run("check") == (0, "good: 1 route\n", "")


def test_what_can_get_lost_is_noted_once_with_its_place(tmp_path: Path, run: Run) -> None:
    lossy = ROUTES.replace("from: rest", 'from: {udp: {listen: "127.0.0.1:5514"}}')
    (tmp_path / "routes.yaml").write_text(lossy)
    code, out, error = run("check")
    (note,) = [line for line in out.splitlines() if line.startswith("note: ")]
    assert (code, error) == (0, "")
    assert note.startswith("note: routes.yaml:4:17: routes.orders.from.udp: at most once: ")


def test_a_missing_file_says_how_to_start(run: Run) -> None:
    code, out, error = run("check", "nothing.yaml")
    assert (code, out) == (2, "")
    assert error.startswith("nothing.yaml: there is no such file or folder; write one, or start with: gateway init\n")


def test_a_folder_of_files_is_one_configuration(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "routes.d"
    folder.mkdir()
    (folder / "a.yaml").write_text(ROUTES)
    (folder / "b.yaml").write_text("routes:\n  more: {from: rest, to: drop}\n")
    assert run("check", "routes.d") == (0, "good: 2 routes\n", "")


def test_complaints_as_json_have_place_subject_and_text(tmp_path: Path, run: Run) -> None:
    (tmp_path / "routes.yaml").write_text(ROUTES.replace("to: drop", "to: dorp"))
    code, out, error = run("check", "--json")
    assert (code, error) == (2, "")
    assert json.loads(out) == {
        "good": False,
        "complaints": [
            {
                "file": "routes.yaml",
                "line": 5,
                "column": 9,
                "subject": "routes.orders.to",
                "text": 'no sink is called "dorp"; did you mean drop?',
            }
        ],
    }


def test_good_as_json(tmp_path: Path, run: Run) -> None:
    (tmp_path / "routes.yaml").write_text(ROUTES)
    code, out, _ = run("check", "--json")
    assert (code, json.loads(out)) == (0, {"good": True, "routes": 1, "notes": [], "peers": []})


def test_no_secret_is_shown(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIDDEN", "hunter2-hunter2")
    (tmp_path / "routes.yaml").write_text(
        ROUTES.replace("to: drop", 'to: {http: {url: "${env:HIDDEN}", timeout: "${env:HIDDEN}"}}')
    )
    code, out, error = run("check")
    assert code == 2
    assert "hunter2" not in out + error
    assert '"${env:HIDDEN}"' in error


@contextmanager
def listening() -> Iterator[int]:
    """A TCP server that closes what connects, in a thread of its own: the command has its own loop."""
    started: list[int] = []
    ready, loop = threading.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
        started.append(server.sockets[0].getsockname()[1])
        ready.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            server.close()
            await server.wait_closed()

    task = loop.create_task(serve())
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.gather(task, return_exceptions=True)))
    thread.start()
    ready.wait(5)
    try:
        yield started[0]
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(5)
        loop.close()


def test_connect_says_of_each_peer_whether_it_is_there(tmp_path: Path, run: Run) -> None:
    with listening() as port:
        (tmp_path / "routes.yaml").write_text(
            f"""\
version: 1
connections:
  plant: {{mqtt: {{url: "mqtt://127.0.0.1:1", client_id: gw}}}}
routes:
  orders:
    from: {{mqtt: {{connection: plant, topic: orders}}}}
    to:
      - http: {{url: "http://127.0.0.1:{port}/orders/{{{{ body.id }}}}"}}
      - tcp: {{connect: "127.0.0.1:1", reply: {{accepted: "OK*"}}}}
      - mllp: {{connect: "no-such-host.invalid:2575"}}
      - websocket: {{url: "ws://127.0.0.1:{port}/live", confirm: true}}
      - http: {{url: "http://127.0.0.1:1/"}}
        name: other
      - http: {{url: "https://127.0.0.1:{port}/"}}
        name: secure
      - drop
"""
        )
        code, out, _ = run("check", "--connect")
        as_json = json.loads(run("check", "--connect", "--json")[1])
    lines = out.splitlines()
    assert code == 1
    assert lines[0] == "good: 1 route"
    assert f"ok    http http://127.0.0.1:{port} (of orders)" in lines
    assert "failed tcp 127.0.0.1:1 (of orders): connection refused" in lines
    assert "failed http http://127.0.0.1:1 (of orders): connection refused" in lines
    assert "failed mqtt mqtt://127.0.0.1:1 (of orders): mqtt 127.0.0.1:1: connection refused" in lines
    unknown = "failed mllp no-such-host.invalid:2575 (of orders): the host name is not known ("
    assert any(line.startswith(unknown) for line in lines)
    closed = f"ws://127.0.0.1:{port}/live: it closed the connection during the handshake"
    assert f"failed websocket ws://127.0.0.1:{port} (of orders): websocket {closed}" in lines
    assert any(line.startswith(f"failed http https://127.0.0.1:{port} (of orders): ") for line in lines)
    assert [peer["problem"] is None for peer in as_json["peers"]].count(True) == 1
    assert len(as_json["peers"]) == 7
    assert "[Errno" not in out
    assert "_ssl.c" not in out


def test_connect_without_peers_says_so(tmp_path: Path, run: Run) -> None:
    (tmp_path / "routes.yaml").write_text(ROUTES)
    assert run("check", "--connect") == (0, "good: 1 route\nthere are no peers to connect to\n", "")
