"""The API on a real socket: its address, its limits, its events, its end."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.api import Serving, serving
from gateway.api.events import Hub
from gateway.api.server import bound
from gateway.errors import ConfigError
from gateway.settings import Address
from gateway.testing import until
from tests.gateway.api.desk import Desk, desk


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[Desk, Serving, httpx2.AsyncClient]]:
    async with desk(folder) as here, serving(here.app) as place:
        token = place.token_file.read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(base_url=place.url, headers=headers, timeout=10) as client:
            yield here, place, client


async def test_it_answers_at_the_address_that_it_names_with_the_token_in_its_file(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, place, client):
        assert place.address.port > 0
        assert (await client.get("/api/v1/routes")).status_code == 200
        answer = await client.get("/health/live")
        assert "server" not in answer.headers
        calls = (await client.get("/api/v1/openapi.json")).json()["paths"]
        assert "/api/v1/routes/{name}/messages" in calls


def test_an_address_in_use_is_one_plain_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ConfigError, match=f"gateway.api.listen: {address} is in use by another program"):
            bound(address)


def test_localhost_and_ipv6_loopback_can_be_listened_on() -> None:
    for host in ("localhost", "::1"):
        with bound(Address(host, 0)) as listening:
            assert listening.getsockname()[1] > 0


async def test_a_body_that_never_ends_is_cut_at_the_limit(tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    async with served(tmp_path) as (_, _, client):
        try:
            answer = await client.post("/api/v1/routes/orders/messages", content=pieces())
            assert answer.status_code == 413
        except httpx2.TransportError:
            pass  # the connection may be closed before the client looks at the answer
        assert (await client.get("/api/v1/routes")).status_code == 200


async def test_a_client_that_leaves_in_the_middle_of_its_body_stores_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as (here, place, client):
        reader, writer = await asyncio.open_connection(*place.address)
        authorization = client.headers["authorization"]
        head = (
            f"POST /api/v1/routes/orders/messages HTTP/1.1\r\nhost: {place.address}\r\n"
            f"authorization: {authorization}\r\ncontent-length: 1000\r\n\r\n"
        )
        writer.write(head.encode() + b'{"id": 1')
        await writer.drain()
        writer.close()
        await reader.read()
        assert (await client.get("/health/live")).status_code == 200
        assert here.journal.records == {}


async def test_a_head_without_an_end_is_cut_by_its_size(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, place, client):
        reader, writer = await asyncio.open_connection(*place.address)
        writer.write(b"GET /health/live HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"y" * (80 * 1024))
        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
        writer.close()
        assert (await client.get("/health/live")).status_code == 200


async def test_a_head_that_does_not_come_is_cut_by_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.api.server.HEAD_S", 0.05)
    async with served(tmp_path) as (_, place, client):
        for start in (b"", b"GET /health/live HT", b"GET /health/live HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\nGET /"):
            reader, writer = await asyncio.open_connection(*place.address)
            writer.write(start)
            async with asyncio.timeout(4):
                await reader.read()
            writer.close()
        answer = await client.post("/api/v1/routes/orders/messages?wait=200ms", json={"id": 1})
        assert answer.status_code in (200, 202)  # the time for the head is not that of the answer


async def test_its_end_answers_who_waits_and_closes_the_port(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        async with serving(here.app) as place:
            token = place.token_file.read_text().strip()
            async with httpx2.AsyncClient(base_url=place.url, headers={"authorization": f"Bearer {token}"}) as client:
                await here.app.pause("orders")
                waiting = asyncio.create_task(
                    client.post("/api/v1/routes/orders/messages?wait=5m", json={"id": 1}, timeout=20)
                )
                await until(lambda: here.journal.records)
                await here.app.stop(0)
                answer = await waiting
                assert (answer.status_code, answer.json()["status"]) == (202, "pending")
        with pytest.raises(OSError):
            await asyncio.open_connection(*place.address)


# -- events ----------------------------------------------------------------------------------------------------------


class Events:
    """What a stream of events said so far."""

    def __init__(self, response: httpx2.Response) -> None:
        self._lines = response.aiter_lines()

    async def next(self, kind: str) -> Any:
        """The data of the next event of this kind."""
        named = ""
        async for line in self._lines:
            field, _, value = line.partition(": ")
            if field == "event":
                named = value
            elif field == "data" and named == kind:
                return json.loads(value)
        raise AssertionError("the stream ended")


async def test_events_show_outcomes_links_and_counters_as_they_happen(tmp_path: Path) -> None:
    async with served(tmp_path) as (here, _, client), client.stream("GET", "/api/v1/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = Events(response)
        assert set((await events.next("counters"))["routes"]) == {"orders", "asks", "passes"}
        await client.post("/api/v1/routes/orders/messages", json={"no": "id"})
        (row,) = (await events.next("messages"))["messages"]
        assert (row["route"], row["outcome"], row["type"]) == ("orders", "refused", "rest.message")
        observed = here.app.services.observed
        observed.became(observed.peers["orders", "target", "ledger"], "down", "away")
        peer = await events.next("peer")
        assert (peer["name"], peer["state"], peer["reason"]) == ("ledger", "down", "away")
        counted = await events.next("counters")
        assert counted["routes"]["orders"]["counters"]["refused"] == 1


async def test_events_of_one_route_say_nothing_of_others(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, _, client), client.stream("GET", "/api/v1/events?route=passes") as response:
        events = Events(response)
        assert set((await events.next("counters"))["routes"]) == {"passes"}
        await client.post("/api/v1/routes/orders/messages", json={"id": 1})
        await client.post("/api/v1/routes/passes/messages", json={"id": 2})
        (row,) = (await events.next("messages"))["messages"]
        assert row["route"] == "passes"


async def test_nobody_watches_when_nobody_listens(tmp_path: Path) -> None:
    async with served(tmp_path) as (here, _, client):
        observed = here.app.services.observed
        assert observed.watcher is None
        async with client.stream("GET", "/api/v1/events") as response:
            await Events(response).next("counters")
            assert observed.watcher is not None
        await until(lambda: observed.watcher is None)


async def test_events_end_when_the_api_does(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        async with serving(here.app) as place:
            token = place.token_file.read_text().strip()
            client = httpx2.AsyncClient(base_url=place.url, headers={"authorization": f"Bearer {token}"})
            stream = await client.send(client.build_request("GET", "/api/v1/events"), stream=True)
        assert b"event: counters" in await stream.aread()
        await client.aclose()


async def test_a_client_that_does_not_read_misses_the_oldest_and_is_told(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        hub: Hub = here.guard.app.state.hub
        stream = hub.stream(None)
        await anext(stream)
        observed = here.app.services.observed
        peer = observed.peers["orders", "target", "ledger"]
        for number in range(300):
            observed.became(peer, "down", f"reason {number}")
        first = await anext(stream)
        assert first.startswith(b"event: missed")
        assert b'"events":44' in first
        assert b'"reason 44"' in await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        assert observed.watcher is None


async def test_many_outcomes_are_shown_as_a_sample_with_the_number_of_the_others(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        hub: Hub = here.guard.app.state.hub
        stream = hub.stream(None)
        await anext(stream)
        for number in range(120):
            await here.post("passes", {"id": number})
        shown = 0
        while shown < 120:
            event = await anext(stream)
            if event.startswith(b"event: messages"):
                data = json.loads(event.partition(b"data: ")[2])
                assert len(data["messages"]) <= 50
                shown += len(data["messages"]) + data["more"]
        assert shown == 120
        await stream.aclose()  # type: ignore[attr-defined]
