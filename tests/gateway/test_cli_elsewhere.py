"""The commands that ask a running gateway, where something else answers at its address."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from gateway.cli import main

PAGE = b"<html>It works!</html>"


class Page(BaseHTTPRequestHandler):
    """A web server that knows one page, which it shows for every path."""

    def do_GET(self) -> None:
        self.send_response(404 if self.path.endswith("/missing") else 200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", "0")))
        self.do_GET()

    def do_DELETE(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    "command",
    [
        ["messages"],
        ["show", "id"],
        ["show", "missing"],
        ["show", "id", "--body"],
        ["dead", "list"],
        ["dead", "replay", "--all"],
        ["dead", "discard", "id"],
        ["routes"],
        ["routes", "pause", "orders"],
        ["top", "--once"],
        ["tail"],
    ],
    ids=" ".join,
)
def test_what_is_no_gateway_is_told_and_not_taken_for_a_bug(
    command: list[str], url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_TOKEN", "x" * 40)
    monkeypatch.delenv("GATEWAY_DEBUG", raising=False)
    with pytest.raises(SystemExit) as ended:
        main([*command, "--url", url])
    out, told = capsys.readouterr()
    status = 404 if "missing" in command else 200
    assert (ended.value.code, out) == (1, "")
    assert told == (
        f"{url} answers, but not as a gateway's API does: {status}, text/html; look at gateway.api.listen, or --url\n"
    )
