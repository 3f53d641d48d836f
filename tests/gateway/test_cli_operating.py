"""The commands that ask a running gateway, each against a real one: its API, its journal, its routes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters.memory import box
from gateway.api import serving
from gateway.app import App, running
from gateway.cli import main
from gateway.commands.watching import events_in
from gateway.config import load
from gateway.errors import MessageError
from tests.conftest import loop_of_the_gateway

ROUTES = """\
version: 1
gateway:
  data: ./var
  api: {{listen: "127.0.0.1:{port}"}}
connections:
  plant: {{mqtt: {{url: "mqtt://127.0.0.1:1", client_id: gw, username: gw, password: "${{env:PLANT_PASSWORD}}"}}}}
routes:
  orders:
    from: rest
    accept: [{{filter: body.id is defined}}]
    to:
      - memory: {{name: {box}}}
        name: shop
  asked:
    from: rest
    ack: reply
    to: {{channel: {box}}}
  answering:
    from: {{channel: {box}}}
    ack: delivered
    to: drop
  parts:
    from: rest
    steps: [{{split: {{each: body}}}}]
    to: {{memory: {{name: {box}}}}}
  plant:
    from: {{mqtt: {{connection: plant, topic: a, qos: 0}}}}
    to: drop
"""


class Asked:
    """One command line after the other against one gateway."""

    def __init__(self, folder: Path, url: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.url, self.name = folder, url, name
        self._capsys = capsys

    def __call__(self, *arguments: str, ends: int = 0) -> str:
        """The output; errors are in `told`."""
        options = ["--url", self.url, "--token-file", str(self.folder / "var" / "admin.token")]
        return self.bare(*arguments, *options, ends=ends)

    def bare(self, *arguments: str, ends: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, self.told = self._capsys.readouterr()
        assert ended.value.code == ends, self.told
        return out

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))

    def sent(self, body: str, *more: str, ends: int = 0) -> str:
        """The id of a message that was sent to `orders` and has come to its end."""
        file = self.folder / "body.json"
        file.write_text(body, encoding="utf-8")
        return self("send", "orders", str(file), "--wait", "10s", *more, ends=ends).split()[1]


@contextmanager
def gateway_at(file: Path) -> Iterator[tuple[App, str]]:
    """A gateway in a thread of its own, as the commands have loops of their own."""
    found: list[tuple[App, str]] = []
    failed: list[BaseException] = []
    ready, stop = threading.Event(), asyncio.Event()
    loop = loop_of_the_gateway()

    async def serve() -> None:
        async with running(load(file)) as app, serving(app) as place:
            found.append((app, place.url))
            ready.set()
            await stop.wait()

    def runs() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=runs)
    thread.start()
    ready.wait(20)
    try:
        assert not failed, failed
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()
    assert not failed, failed


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    folder = tmp_path_factory.mktemp("gateway")
    name = folder.name
    patch = pytest.MonkeyPatch()
    patch.setenv("PLANT_PASSWORD", "hunter2")
    (folder / "routes.yaml").write_text(ROUTES.format(port=0, box=name), encoding="utf-8")
    try:
        with gateway_at(folder / "routes.yaml") as (_, url):
            patch.undo()  # an operator's shell need not have the gateway's secrets
            yield folder, url, name
    finally:
        patch.undo()


@pytest.fixture
def ask(started: tuple[Path, str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Asked:
    for name in ("GATEWAY_URL", "GATEWAY_TOKEN", "GATEWAY_DEBUG", "PLANT_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    box(started[2]).failing = None
    return Asked(*started, capsys)


def test_what_is_sent_is_found_and_shown(ask: Asked) -> None:
    id_ = ask.sent('{"id": "A1"}')
    assert ask("messages", "--q", id_).splitlines()[1].split()[1:5] == [id_, "orders", "delivered", "rest.message"]
    shown = ask("show", id_)
    assert f"id            {id_}" in shown
    assert "status        delivered" in shown
    assert shown.split("attempts\n")[1].splitlines()[1].split()[1] == "shop"
    assert ask("show", id_, "--body") == '{"id": "A1"}'
    assert ask.json("show", id_)["content_type"] == "application/json"


def test_a_message_is_read_from_standard_input(ask: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"id": "A2"}')))
    told = json.loads(ask("send", "orders", "-", "--json"))
    assert set(told) == {"id", "status_url"}


def test_without_a_wait_it_says_that_the_message_is_stored(ask: Asked) -> None:
    (ask.folder / "a.json").write_text('{"id": 1}')
    assert ask("send", "orders", str(ask.folder / "a.json")).startswith("stored ")


def test_the_same_key_is_the_same_message(ask: Asked) -> None:
    first = ask.sent('{"id": "K"}', "--idempotency-key", "key-1")
    assert ask.sent('{"id": "K"}', "--idempotency-key", "key-1") == first


def test_what_is_refused_is_told_and_ends_with_1(ask: Asked) -> None:
    (ask.folder / "a.json").write_text('{"id": 1')
    assert ask("send", "orders", str(ask.folder / "a.json"), ends=1) == ""
    assert ask.told.startswith("json: ")


def test_a_route_that_stores_nothing_accepts(ask: Asked) -> None:
    (ask.folder / "a.json").write_text("{}")
    assert ask("send", "asked", str(ask.folder / "a.json")).startswith("accepted ")


def test_an_unknown_route_is_told_with_the_right_name(ask: Asked) -> None:
    (ask.folder / "a.json").write_text("{}")
    ask("send", "ordres", str(ask.folder / "a.json"), ends=1)
    assert ask.told == 'there is no route "ordres"; did you mean orders?\n'


def test_an_unknown_message_is_told(ask: Asked) -> None:
    ask("show", "a b?c#d", ends=1)
    assert ask.told.startswith("there is no message with this id")
    assert "a sender's own id, such as MSH-10, is found by sender_id" in ask.told


def test_a_list_has_pages(ask: Asked) -> None:
    ids = [ask.sent(f'{{"id": "page-{number}"}}') for number in range(3)]
    first = ask.json("messages", "--route", "orders", "--limit", "2")
    assert [row["id"] for row in first["messages"]] == ids[:0:-1]
    ask("messages", "--route", "orders", "--limit", "2")
    assert ask.told == f"there are more: --cursor {first['next']}\n"
    second = ask.json("messages", "--route", "orders", "--limit", "1", "--cursor", first["next"])
    assert [row["id"] for row in second["messages"]] == ids[:1]


def test_nothing_found_is_said(ask: Asked) -> None:
    assert ask("messages", "--q", "no-such-text") == "there are none\n"


@pytest.mark.parametrize("command", ["messages", "dead list", "dead replay", "dead discard"])
def test_a_filter_by_a_route_that_is_not_there_is_told(ask: Asked, command: str) -> None:
    ask(*command.split(), "--route", "ordesr", ends=1)
    assert ask.told == 'there is no route "ordesr"; did you mean orders?\n'


def test_a_route_that_has_nothing_is_no_mistake(ask: Asked) -> None:
    assert ask("messages", "--route", "asked") == "there are none\n"
    assert ask("dead", "replay", "--route", "asked") == "replayed 0\n"


def test_a_target_that_is_not_there_is_told(ask: Asked) -> None:
    ask("show", ask.sent('{"id": "T"}'), "--body", "--target", "shpo", ends=1)
    assert ask.told == 'route orders has no target "shpo"; did you mean shop?\n'


def test_a_wrong_filter_is_told(ask: Asked) -> None:
    ask("messages", "--status", "deda", ends=1)
    assert ask.told == 'status: unknown "deda"; did you mean dead?\n'


@contextmanager
def closed(ask: Asked) -> Iterator[None]:
    """Nothing is delivered to the shop. What others replayed has come to its end before: it is not to die of this."""
    while ask.json("messages", "--status", "pending")["messages"]:
        pass
    box(ask.name).failing = MessageError("shop: closed")
    try:
        yield
    finally:
        box(ask.name).failing = None


def dead(ask: Asked, body: str = '{"id": "D"}') -> str:
    with closed(ask):
        return ask.sent(body, ends=1)


def test_a_dead_letter_is_listed_shown_fixed_and_replayed(ask: Asked) -> None:
    id_ = dead(ask)
    (row,) = [row for row in ask("dead", "list").splitlines() if id_ in row]
    assert row.endswith("refused: shop: closed")
    assert "reason        refused: shop: closed\nplace         shop\n" in ask("dead", "show", id_)
    assert ask("dead", "replay", id_) == f"replayed {id_}\n"
    assert ask.sent('{"id": "after"}')
    assert ask.json("show", id_)["status"] == "delivered"
    assert id_ not in ask("dead", "list")


def test_a_dead_letter_is_replayed_edited_as_a_new_message(ask: Asked) -> None:
    id_ = dead(ask)
    (ask.folder / "better.json").write_text('{"id": "better"}')
    told = ask("dead", "replay", id_, "--body", str(ask.folder / "better.json"))
    new = told.split()[3].rstrip(";")
    assert told == f"replayed {id_} as {new}; the old one stays as it is, discard it if it is not needed\n"
    assert ask("show", new, "--body") == '{"id": "better"}'
    assert ask.json("show", new)["causation_id"] == id_
    assert ask("dead", "discard", id_) == f"discarded {id_}\n"


def test_a_dead_letter_of_a_paused_route_is_sent_once_it_is_resumed(ask: Asked) -> None:
    id_ = dead(ask)
    ask("routes", "pause", "orders")
    assert ask("dead", "replay", id_) == f"replayed {id_}; it is sent once the route orders is resumed\n"
    assert ask.json("show", id_)["status"] == "pending"
    ask("routes", "resume", "orders")
    assert ask.sent('{"id": "after"}')
    assert ask.json("show", id_)["status"] == "delivered"


def test_what_is_replayed_by_filter_on_a_paused_route_says_that_it_waits(
    ask: Asked, caplog: pytest.LogCaptureFixture
) -> None:
    ask("dead", "discard", "--all")
    id_ = dead(ask)
    ask("routes", "pause", "orders")
    caplog.set_level("INFO", "gateway.api")
    assert ask("dead", "replay", "--route", "orders", "--q", id_) == "replayed 1\nsent once they are resumed: orders\n"
    assert ask("dead", "replay", "--route", "orders") == "replayed 0\n"
    told = [record.__dict__["wanted"] for record in caplog.records if record.getMessage() == "replayed"]
    assert told == [
        {"route": "orders", "q": "(hidden)", "rate": "1000/s"},
        {"route": "orders", "rate": "1000/s"},
    ]
    ask("routes", "resume", "orders")


def test_dead_letters_are_replayed_and_discarded_by_filter(ask: Asked) -> None:
    for body in ('{"id": "x1"}', '{"id": "x2"}', '{"id": "x3"}'):
        dead(ask, body)
    count = len(ask.json("dead", "list", "--route", "orders")["messages"])
    assert ask("dead", "discard", "--route", "orders", "--rate", "1000/s") == f"discarded {count}\n"
    id_ = dead(ask)
    assert ask("dead", "replay", "--all") == "replayed 1\n"
    assert id_ not in ask("dead", "list")


@pytest.mark.parametrize("word", ["replay", "discard"])
def test_what_is_done_to_a_part_is_said_to_be_done_to_the_whole(ask: Asked, word: str) -> None:
    file = ask.folder / "parts.json"
    file.write_text("[1, 2]")
    with closed(ask):
        whole = ask("send", "parts", str(file), "--wait", "10s", ends=1).split()[1]
    part = ask.json("show", whole)["deliveries"][1]["id"]
    done = {"replay": "replayed", "discard": "discarded"}[word]
    assert part != whole
    assert ask("dead", word, part) == f"{done} {part}; it is a part of {whole}, which is {done} as a whole\n"


def test_dead_letters_of_one_conversation_are_found_and_handled_together(ask: Asked) -> None:
    def event(conversation: str) -> str:
        return json.dumps(
            {"specversion": "1.0", "id": conversation, "source": "/shop", "type": "order", "data": {"id": "D"}}
            | {"correlationid": conversation}
        )

    as_event = ("--content-type", "application/cloudevents+json")
    with closed(ask):
        ours, other = (ask.sent(event(conversation), *as_event, ends=1) for conversation in ("ours", "other"))
    chosen = ("--correlation-id", "ours")
    assert [row["id"] for row in ask.json("dead", "list", *chosen)["messages"]] == [ours]
    assert ask("dead", "replay", *chosen) == "replayed 1\n"
    ask("dead", "discard", "--correlation-id", "other")
    assert ask.json("show", other)["status"] == "discarded"
    assert ask.json("show", ours)["status"] in ("pending", "delivered")


def test_messages_are_found_and_handled_by_their_senders_own_id(ask: Asked) -> None:
    with closed(ask):
        ours, other = (
            ask.sent('{"id": "D"}', "--idempotency-key", key, ends=1) for key in ("sender-4711", "sender-47110")
        )
    chosen = ("--sender-id", "sender-4711")
    assert [row["id"] for row in ask.json("messages", *chosen)["messages"]] == [ours]
    assert [row["id"] for row in ask.json("dead", "list", *chosen)["messages"]] == [ours]
    assert ask("dead", "replay", *chosen) == "replayed 1\n"
    assert ask("dead", "discard", "--sender-id", "sender-47110") == "discarded 1\n"
    assert ask.json("show", other)["status"] == "discarded"
    assert ask.json("show", ours)["status"] in ("pending", "delivered")


def test_one_id_that_fails_leaves_the_others_theirs(ask: Asked) -> None:
    id_ = dead(ask)
    assert ask("dead", "discard", "nothing", id_, ends=1) == f"discarded {id_}\n"
    assert ask.told.startswith("nothing: there is no message with this id")


@pytest.mark.parametrize("word", ["replay", "discard"])
def test_nothing_is_done_to_all_dead_letters_by_leaving_something_out(ask: Asked, word: str) -> None:
    ask("dead", word, ends=2)
    assert "expected ids, a filter such as --route, or --all" in ask.told
    ask("dead", word, "some-id", "--all", ends=2)
    assert "expected either ids, or filters and --all" in ask.told


def test_a_body_is_for_one_message(ask: Asked) -> None:
    ask("dead", "replay", "a", "b", "--body", "x.json", ends=2)
    assert "expected exactly one ID with --body" in ask.told


def test_a_content_type_is_for_one_message_and_never_left_out_of_a_replay_by_filter(ask: Asked) -> None:
    id_ = dead(ask)
    for which in (["--route", "orders"], ["--all"], [id_, id_]):
        ask("dead", "replay", *which, "--content-type", "text/plain", ends=2)
        assert "expected exactly one ID with --content-type" in ask.told
    assert id_ in ask("dead", "list")
    ask("dead", "discard", id_)


def test_routes_are_listed_with_what_they_do(ask: Asked) -> None:
    rows = {line.split()[0]: line for line in ask("routes").splitlines()[1:]}
    assert set(rows) == {"orders", "asked", "answering", "parts", "plant"}
    assert rows["orders"].endswith("rest → shop")
    assert " up " in rows["orders"]
    assert "down: mqtt" in rows["plant"]


def test_a_route_is_shown_with_its_targets(ask: Asked) -> None:
    ask.sent('{"id": "R"}')
    targets = ask("routes", "show", "orders").split("targets\n")[1].splitlines()
    assert targets[1].split()[:3] == ["shop", "memory", "up"]
    assert ask.json("routes", "show", "orders")["name"] == "orders"


def test_a_route_is_paused_and_resumed(ask: Asked) -> None:
    assert ask("routes", "pause", "asked") == "asked is paused\n"
    assert any("paused" in line for line in ask("routes").splitlines() if line.startswith("asked"))
    assert ask("routes", "resume", "asked") == "asked goes on\n"


def test_what_can_not_be_done_with_a_route_is_told(ask: Asked) -> None:
    ask("routes", "pause", ends=2)
    assert "expected one of pause, resume, show and the name of a route" in ask.told
    ask("routes", "stop", "orders", ends=2)
    ask("routes", "pause", "ordres", ends=1)
    assert "did you mean orders?" in ask.told


def test_top_shows_rates(ask: Asked) -> None:
    head, *rows = ask("top", "--once", "--interval", "0.2").splitlines()[1:]
    assert head.split()[:3] == ["ROUTE", "PER", "SECOND"]
    assert {row.split()[0] for row in rows} == {"orders", "asked", "answering", "parts", "plant"}
    assert {row["route"]: row["per_second"] for row in ask.json("top", "--interval", "0.2")}["plant"] == 0


def test_tail_follows_what_routes_answer(ask: Asked, tmp_path: Path) -> None:
    """Messages are sent from a thread until the tail, which is in this one, has seen two of them."""
    import httpx2

    seen = threading.Event()
    token = (ask.folder / "var" / "admin.token").read_text().strip()

    def sends() -> None:
        with httpx2.Client(base_url=ask.url, headers={"authorization": f"Bearer {token}"}, trust_env=False) as client:
            while not seen.wait(0.05):
                client.post("/api/v1/routes/orders/messages", json={"id": "T"})
                client.post("/api/v1/routes/asked/messages", json={"id": "T"})

    thread = threading.Thread(target=sends)
    thread.start()
    try:
        lines = ask("tail", "orders", "-n", "2").splitlines()
        as_json = [json.loads(line) for line in ask("tail", "orders", "-n", "1", "--json").splitlines()]
    finally:
        seen.set()
        thread.join()
    assert len(lines) == 2
    assert all(line.split()[1:3] == ["orders", "accepted"] for line in lines)
    assert [(row["kind"], row["route"]) for row in as_json] == [("message", "orders")]


def test_an_unknown_route_can_not_be_followed(ask: Asked) -> None:
    ask("tail", "ordres", ends=1)
    assert ask.told == 'there is no route "ordres"; did you mean orders?\n'
    ask("tail", "orders", "-n", "0", ends=2)
    assert "-n" in ask.told


def test_the_configuration_says_where_the_api_is(ask: Asked, tmp_path: Path) -> None:
    """Neither the secrets of the configuration nor its routes need to be right for that."""
    file = tmp_path / "routes.yaml"
    port = ask.url.rpartition(":")[2]
    text = ROUTES.format(port=port, box="other").replace("./var", str(ask.folder / "var")).replace("rest", "rset")
    file.write_text(text, encoding="utf-8")
    assert "orders" in ask.bare("routes", "--config", str(file))


def test_address_and_token_may_come_from_the_environment(ask: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_URL", ask.url)
    monkeypatch.setenv("GATEWAY_TOKEN", (ask.folder / "var" / "admin.token").read_text())
    assert "orders" in ask.bare("routes", "--config", "no-such-file.yaml")


def test_a_wrong_token_is_told(ask: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_TOKEN", "x" * 40)
    ask.bare("routes", "--url", ask.url, ends=1)
    assert ask.told == "this token is not known; the right one is in the admin.token file\n"


def test_a_gateway_that_does_not_run_is_told(ask: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_TOKEN", "x" * 40)
    ask.bare("routes", "--url", "http://127.0.0.1:1", ends=1)
    assert ask.told == "http://127.0.0.1:1 does not answer; is the gateway running? start it with: gateway run\n"


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8080", "http://", "http://127.0.0.1:port", "http://127.0.0.1:99999", "ftp://a"]
)
def test_an_address_that_is_none_is_told(ask: Asked, url: str) -> None:
    ask.bare("routes", "--url", url, ends=2)
    assert ask.told.startswith(f"--url, or GATEWAY_URL: expected one such as http://127.0.0.1:8080, got '{url}'")


def test_a_file_that_holds_no_token_is_told_and_not_shown(ask: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    ask.bare("routes", "--url", ask.url, "--token-file", str(ask.folder / "routes.yaml"), ends=2)
    assert ask.told.startswith(f"{ask.folder}/routes.yaml holds no token; expected one word")
    assert "hunter2" not in ask.told
    assert "version" not in ask.told
    monkeypatch.setenv("GATEWAY_TOKEN", "two words")
    ask.bare("routes", "--url", ask.url, ends=2)
    assert ask.told.startswith("GATEWAY_TOKEN holds no token; expected one word")


def test_what_says_where_the_gateway_is_and_is_not_there_is_told(ask: Asked, tmp_path: Path) -> None:
    file = tmp_path / "nowhere.yaml"
    ask.bare("routes", "--config", str(file), ends=2)
    assert ask.told.startswith(f"{file}: there is no such file, which would say where the gateway's API is; name it")
    ask.bare("routes", "--config", str(file), "--url", ask.url, ends=2)
    assert ask.told.startswith(f"{file}: there is no such file, which would say the token of {ask.url}; name it with")


def test_a_missing_token_is_told(ask: Asked, tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    file.write_text("version: 1\n", encoding="utf-8")
    ask.bare("routes", "--config", str(file), ends=2)
    assert ask.told.startswith(f"the token file {tmp_path}/var/admin.token can't be read: No such file or directory")


def test_a_free_port_can_not_be_known(ask: Asked) -> None:
    ask.bare("routes", "--config", str(ask.folder / "routes.yaml"), ends=2)
    assert "say it with --url" in ask.told


def test_a_body_that_can_not_be_read_is_told(ask: Asked) -> None:
    ask("send", "orders", "no-such-file.json", ends=2)
    assert "no-such-file.json can't be read: No such file or directory" in ask.told


def test_a_wait_that_is_no_duration_is_told(ask: Asked) -> None:
    ask("send", "orders", "-", "--wait", "5", ends=2)
    assert "expected a duration such as 250ms" in ask.told


Lines = Callable[[str], list[tuple[str, Any]]]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        ("", []),
        (": heartbeat\n\n", []),
        ("retry: 2000\n\nevent: peer\ndata: {}\n\n", [("peer", {})]),
        ('data:{"a":\ndata: 1}\n\n', [("message", {"a": 1})]),
        ("event: a\n\nevent: b\ndata: {}\n\n", [("b", {})]),
        ("event: a\ndata: {}\n", []),
    ],
    ids=["nothing", "comment", "fields", "two lines", "without data", "cut"],
)
def test_a_stream_of_events_is_read_as_html_defines_it(stream: str, events: list[tuple[str, Any]]) -> None:
    assert list(events_in(stream.splitlines())) == events
