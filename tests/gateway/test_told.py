"""What a refused sender hears, over every adapter that answers: what it can act upon, and nothing of the inside."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from adapters.memory import box
from gateway import Address, Message, MessageError, Outcome, PeerError
from gateway.observe import Peer
from gateway.testing import until
from tests.adapters.raw_http import Response, peer
from tests.adapters.test_mllp import adt, framed
from tests.gateway.api.desk import Desk, desk
from tests.ports import free_port

INSIDE = "http://10.1.2.3:9100/key-s3cret: /srv/erp/inbox/orders.json"
PIECES = ("10.1.2.3", "9100", "s3cret", "/srv", "orders.json")

TO = "{memory: {name: inside}, name: crm}"


class Desks:
    """A route for each adapter that answers, all with the same targets."""

    def __init__(self, here: Desk, port: Callable[[str], int]) -> None:
        self.here = here
        self.port = port
        self.full: list[str] = []
        here.app.services.observed.watcher = self

    def heard(self, _route: str, _message: Message, outcome: Outcome) -> None:
        self.full.append(getattr(outcome, "full", ""))

    def changed(self, _peer: Peer) -> None:
        """Links come and go."""


def routes(rest: str) -> tuple[str, Callable[[str], int]]:
    """The file, with what all routes say beside `from`, and the port of each adapter."""
    ports: dict[str, int] = {}

    def port(name: str) -> int:
        return ports.setdefault(name, free_port())

    answer = 'answer: {accepted: "OK", refused: "ERROR {{ reason }}", deferred: "BUSY {{ reason }}"}'
    sources = {
        "rest": "rest",
        "http": f'{{http: {{listen: "127.0.0.1:{port("http")}", path: /in}}}}',
        "mllp": f'{{mllp: {{listen: "127.0.0.1:{port("mllp")}"}}}}',
        "tcp": f'{{tcp: {{listen: "127.0.0.1:{port("tcp")}", {answer}}}}}',
        "websocket": f'{{websocket: {{listen: "127.0.0.1:{port("http")}", path: /live, confirm: true}}}}',
        "inner": "{channel: inner}",
    }
    yaml = "version: 1\nroutes:\n"
    for name, source in sources.items():
        yaml += f"  {name}:\n    from: {source}\n    ack: delivered\n{rest}"
    yaml += f"  turn:\n    from: {{websocket: {{listen: '127.0.0.1:{port('http')}', path: /turn, reply: true}}}}\n"
    yaml += "    ack: reply\n    to: {channel: inner}\n"
    yaml += f"  outer:\n    from: {{http: {{listen: '127.0.0.1:{port('http')}', path: /outer}}}}\n    ack: delivered\n"
    yaml += "    to: {channel: inner}\n"
    once = "retry: {attempts: 1}"
    stored = f"{rest}    {once}\n" if "call:" in rest else rest.replace("name: crm}", f"name: crm, {once}}}")
    yaml += f"  kept:\n    from: rest\n{stored}"
    yaml += f"  later:\n    from: {{mllp: {{listen: '127.0.0.1:{port('later')}'}}}}\n{stored}"
    return yaml, port


@asynccontextmanager
async def running(folder: Path, rest: str) -> AsyncIterator[Desks]:
    yaml, port = routes(rest)
    box("inside").failing = None
    async with desk(folder, yaml) as here:
        yield Desks(here, port)


async def by_http(desks: Desks, path: str = "/in") -> str:
    async with peer(Address("127.0.0.1", desks.port("http"))) as client:
        body = b'{"id": 1}'
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        answer: Response = await client.exchange(head.encode() + body)
    assert answer.status >= 400
    return answer.body.decode()


async def by_channel(desks: Desks) -> str:
    return await by_http(desks, "/outer")


async def by_rest(desks: Desks) -> str:
    answer = await desks.here.post("rest", {"id": 1})
    assert answer.status_code >= 400
    return answer.text


async def by_rest_that_waits(desks: Desks) -> str:
    return (await desks.here.post("kept", {"id": 1}, query="?wait=5s")).text


async def by_mllp(desks: Desks) -> str:
    return await exchanged(desks.port("mllp"), framed(adt()), b"\x1c\r")


async def by_mllp_once_it_is_dead(desks: Desks) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", desks.port("later"))
    writer.write(framed(adt(modes="|||AL|AL")))
    async with asyncio.timeout(5):
        assert b"MSA|CA|" in await reader.readuntil(b"\x1c\r")
        dead = await reader.readuntil(b"\x1c\r")
    writer.close()
    return dead.decode()


async def by_tcp(desks: Desks) -> str:
    return await exchanged(desks.port("tcp"), b'{"id": 1}\n', b"\n")


async def by_websocket(desks: Desks) -> str:
    return await said(desks, "/live", json.dumps({"id": "7", "data": {"id": 1}}))


async def by_websocket_in_turn(desks: Desks) -> str:
    return await said(desks, "/turn", '{"id": 1}')


async def said(desks: Desks, path: str, text: str) -> str:
    async with connect(f"ws://127.0.0.1:{desks.port('http')}{path}", proxy=None) as client, asyncio.timeout(5):
        await client.send(text)
        return str(await client.recv())


async def exchanged(port: int, data: bytes, end: bytes) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    async with asyncio.timeout(5):
        answer = await reader.readuntil(end)
    writer.close()
    return answer.decode()


SENDERS = [
    by_http,
    by_rest,
    by_rest_that_waits,
    by_mllp,
    by_mllp_once_it_is_dead,
    by_tcp,
    by_websocket,
    by_websocket_in_turn,
    by_channel,
]
ERRORS = [
    MessageError(INSIDE),
    MessageError(INSIDE, reply=Message(raw=b"{}", transport={"status": 409})),
    MessageError(INSIDE, code="too_large"),
    PeerError(INSIDE),
    PeerError(INSIDE, too_late=True),
    ValueError(INSIDE),
]
PLACES = {
    "a target": f"    to: {TO}\n",
    "a call": "    steps: [{call: {memory: {name: inside}, name: crm}}]\n    to: drop\n",
    "one target of two": f"    to: [{TO}, drop]\n",
}

Sender = Callable[[Desks], Awaitable[str]]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("sender", SENDERS, ids=lambda sender: sender.__name__)
async def test_a_sender_hears_nothing_of_the_inside_and_the_operator_everything(
    tmp_path: Path, sender: Sender, place: str
) -> None:
    async with running(tmp_path, PLACES[place]) as desks:
        for error in ERRORS:
            box("inside").failing = error
            desks.full.clear()
            heard = await sender(desks)
            assert not [piece for piece in PIECES if piece in heard], heard
            bug, answers = isinstance(error, ValueError), sender not in (by_rest_that_waits, by_mllp_once_it_is_dead)
            if answers and not bug and place == "a target":
                assert any(INSIDE in full for full in desks.full)


@pytest.mark.parametrize("sender", SENDERS, ids=lambda sender: sender.__name__)
async def test_who_refused_is_named_as_the_route_names_it(tmp_path: Path, sender: Sender) -> None:
    async with running(tmp_path, PLACES["a target"]) as desks:
        box("inside").failing = MessageError(INSIDE, reply=Message(raw=b"{}", transport={"status": 409}))
        heard = (await sender(desks)).replace('\\"', '"')
        assert 'the target "crm" refused it with 409' in heard, heard


@pytest.mark.parametrize(
    "checks",
    ["    accept: [{filter: body.id > 5}]\n", "    steps: [{map: {total: '{{ body.id.total }}'}}]\n"],
    ids=["accept", "steps"],
)
async def test_what_the_sender_can_mend_is_said_in_full(tmp_path: Path, checks: str) -> None:
    expected = "accept: the condition" if "accept" in checks else "body.id is a number"
    async with running(tmp_path, f"{checks}{PLACES['a target']}") as desks:
        for sender in (by_http, by_rest, by_tcp, by_websocket, by_channel):
            assert expected in await sender(desks), sender.__name__


async def test_what_a_dead_letter_says_is_not_shortened(tmp_path: Path) -> None:
    async with running(tmp_path, PLACES["a target"]) as desks:
        box("inside").failing = MessageError(INSIDE)
        id_ = (await desks.here.post("kept", {"id": 1})).json()["id"]
        await until(lambda: desks.here.journal.records[id_].state == "dead")
        detail = await desks.here.get(f"/messages/{id_}")
        assert detail["reason"]["text"] == INSIDE
        assert detail["attempts"][0]["error"] == INSIDE


async def test_a_real_server_that_refuses_and_a_file_that_is_there_already_stay_unnamed(tmp_path: Path) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 422 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    (tmp_path / "there.json").write_text("{}")
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    to = {
        f'{{http: {{url: "http://{target}/key-s3cret"}}, name: crm}}': 'the target "crm" refused it with 422',
        f'{{file: {{path: "{tmp_path}/there.json", mode: create}}, name: crm}}': 'the target "crm" refused it',
    }
    async with server:
        for settings, expected in to.items():
            async with running(tmp_path, f"    to: {settings}\n") as desks:
                problem = json.loads(await by_http(desks))
                assert problem["detail"] == expected
                assert (target in desks.full[-1]) or ("there.json" in desks.full[-1])


@pytest.mark.parametrize(
    ("to", "heard"),
    [
        ('{http: {url: "http://127.0.0.1:9/{{ body.customer }}"}}', "'customer' is not there; body has id"),
        ('{http: {url: "http://127.0.0.1:9/", headers: {x-n: "{{ 1 / (body.id - 1) }}"}}}', "it divides by zero"),
    ],
)
@pytest.mark.parametrize("place", ["    to: {}\n", "    steps: [{{call: {}}}]\n    to: drop\n"])
async def test_a_sender_hears_what_is_wrong_with_its_message_for_a_setting_of_a_target(
    tmp_path: Path, place: str, to: str, heard: str
) -> None:
    yaml = f"version: 1\nroutes:\n  a:\n    from: rest\n    ack: delivered\n{place.format(to)}"
    async with desk(tmp_path, yaml) as here:
        answer = await here.post("a", {"id": 1})
    assert answer.status_code == 422
    assert heard in answer.text
    assert "refused it" not in answer.text
