"""Every example runs: what its comment says to paste is pasted, and what it says to see is seen."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from adapters import mqtt
from adapters.memory import box
from gateway import Message, TopicTemplate
from gateway.testing import FakeHost, Inbox, arriving, opened, running, until
from tests.documents import Walk
from tests.playground import ROOT, Playground, to_paste

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
NEED_A_BROKER = {"from-mqtt", "to-mqtt", "from-amqp", "to-amqp", "mqtt-to-amqp", "websocket-to-mqtt"}
"""Run in tests/brokers/test_examples.py."""
NEED_THE_API = {"from-rest"}
"""Run as a whole process."""

Stimulus = Callable[[Playground], Awaitable[str]]


@dataclass
class Seen:
    """What an example should do. `answers`: patterns of what the pasted commands print, in order."""

    answers: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    log: tuple[str, ...] = ()
    when: Stimulus | None = None


async def nothing(_: Playground) -> str:
    return ""


async def a_file_is_put(place: Playground) -> str:
    await until(lambda: (place.folder / "var/inbox").exists())
    return await place.sh("""echo '{"id": "A1"}' > var/inbox/a1.json""")


async def the_server_comes_late(place: Playground) -> str:
    printed = await place.sh(pasted("route-retry"))
    heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def ledger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readline()).decode()
        writer.write(b"OK\n")
        await writer.drain()
        writer.close()
        if not heard.done():
            heard.set_result(line)

    async with await asyncio.start_server(ledger, "127.0.0.1", place.port(9109)):
        return printed + await heard


async def a_test_hands_over(_: Playground) -> str:
    outcome = await box("in").send(Message(raw=b'{"id": "A1", "price": 1.10, "qty": 3}'))
    return f"{type(outcome).__name__} {box('out').received.pop().body.decode()}"


def of_the_broker(place: Playground) -> mqtt.Connection:
    return mqtt.Connection(url=f"mqtt://127.0.0.1:{place.port(1883)}", version="3.1.1", client_id="someone")


async def a_device_publishes(place: Playground) -> str:
    host = FakeHost()
    sink = mqtt.Sink(connection=of_the_broker(place), topic=TopicTemplate("plant/press-1/telemetry"))
    async with opened(sink, host) as send:
        await send(arriving(host, b'{"temperature": 71.5}'))
    return ""


async def a_client_subscribes(place: Playground) -> str:
    host = FakeHost()
    inbox = Inbox(host)
    source = mqtt.Source(connection=of_the_broker(place), topic="orders/#", qos=1)
    await place.listens(1883)
    async with running(source, inbox, host):
        printed = await place.sh(curl_lines("to-mqtt_broker"))
        (message,) = await inbox.wait(1)
        return f"{printed}{message.transport['topic']} {message.body.decode()}"


async def a_device_talks(place: Playground) -> str:
    async with connect(f"ws://127.0.0.1:{place.port(8081)}/devices/press-1") as client:
        await client.send('{"id": "7", "data": {"temperature": 71.5}}')
        return str(await client.recv())


async def a_page_watches(place: Playground) -> str:
    await place.listens(8081)
    async with connect(f"ws://127.0.0.1:{place.port(8081)}/live?topic=C9") as client:
        printed = await place.sh(curl_lines("to-websocket"))
        return f"{printed} {await client.recv()!s}"


def pasted(example: str) -> str:
    return to_paste((ROOT / f"examples/{example}.yaml").read_text(encoding="utf-8"))


def curl_lines(example: str) -> str:
    return "\n".join(line for line in pasted(example).splitlines() if line.startswith("curl"))


SEEN: dict[str, Seen] = {
    "channel": Seen(("202",), log=("all: A1", "big: A1")),
    "format-csv": Seen(
        ("202", "202"),
        {
            "var/stock.jsonl": '{"sku":"X100","qty":25}\n{"sku":"X200","qty":7}\n',
            "var/stock.csv": "sku,qty\nX100,25\n",
        },
    ),
    "format-fix": Seen(
        ("202", "202"),
        {
            "var/orders.jsonl": '{"id":"A1","symbol":"MSFT","quantity":100,"price":"410.25",'
            '"at":"2026-01-31T09:30:00.123Z","parties":["ACME"]}\n',
            "var/A2.fix": "8=FIX.4.4\x019=106\x0135=D\x0149=BUYER\x0156=SELLER\x0152=20"
            "260131-09:30:00.000\x0111=A2\x0155=MSFT\x0154=1\x0138=25\x0140=1\x01453=1\x01448=ACME\x01447=D\x0145"
            "2=1\x0110=084\x01",
        },
    ),
    "format-fixed_width": Seen(
        ("202", "202"),
        {
            "var/payments.jsonl": '{"account":"CH93007622","amount":123.45,"currency":"CHF"}\n'
            '{"account":"CH56048351","amount":-7.00,"currency":"EUR"}\n',
            "var/payments.txt": "CH93007622000012345CHF\nCH56048351-00000700EUR\n",
        },
    ),
    "format-form": Seen(
        ("200 OK", "Thank you, Anna", "202"),
        {
            "var/contacts.jsonl": '{"name":"Anna","topics":["nuts","bolts"]}\n',
            "var/forms.txt": "name=Anna&topic=nuts&topic=bolts\n",
        },
    ),
    "format-hl7": Seen(
        ("202", "202"),
        {
            "var/results.jsonl": '{"patient":"4711","at":"2026-01-31T09:30:00","values":["140","4"]}\n',
            "var/M8.hl7": "MSH|^~\\&|GW||HIS||||ADT^A08|M8|P|2.5\nPID|1||4711||Muster\n",
        },
    ),
    "format-json": Seen(("202",), {"var/A1.json": '{\n  "id": "A1",\n  "price": 1.10\n}'}),
    "format-msgpack": Seen(
        ("202",), {"var/readings.jsonl": '{"id":"A1","qty":2}\n', "var/A1.msgpack": "", "var/A1-as-text.msgpack": ""}
    ),
    "format-text": Seen(("202",), {"var/lines.jsonl": '{"name":"Grüße","qty":25}\n', "var/lines.txt": ""}),
    "format-xml": Seen(
        ("202", "202"),
        {
            "var/orders.jsonl": '{"@id":"A1","line":["nut"]}\n',
            "var/orders.xml": '<order id="A2"><line>bolt</line><line>nut</line></order>\n',
        },
    ),
    "from-file": Seen(
        (), {"var/orders.jsonl": '{"id":"A1","file":"a1.json"}\n', "var/inbox/done/a1.json": ""}, when=a_file_is_put
    ),
    "from-http": Seen(("201 Created", '"order": "'), {"var/orders.jsonl": '{"customer":"C9","sku":"X100","qty":2}\n'}),
    "from-mllp": Seen(
        (r"MSA\|AA\|M1",), {"var/admissions.jsonl": '{"patient":"4711","family":"Muster","given":"Anna"}\n'}
    ),
    "from-mqtt_broker": Seen(
        (), {"var/telemetry.jsonl": '{"device":"press-1","temperature":71.5}\n'}, when=a_device_publishes
    ),
    "from-tcp": Seen(("OK X100", "ERROR .*1"), {"var/stock.jsonl": '{"sku":"X100","qty":25}\n'}),
    "from-tcp-connect": Seen((), log=("scale says 1 kg", "scale says 2 kg"), when=nothing),
    "from-timer": Seen((), log=("beat 1", "beat 2"), when=nothing),
    "from-udp": Seen((), {"var/status.txt": "pump-3 ok\n"}),
    "from-websocket": Seen(
        (r'\{"ack": ?"7"\}',), {"var/telemetry.jsonl": '{"device":"press-1","temperature":71.5}\n'}, when=a_device_talks
    ),
    "from-websocket-url": Seen((), log=("price 1", "price 2"), when=nothing),
    "hl7-to-http": Seen((r"MSA\|AA\|M1",), log=("ehr got 4711 Muster, ward W3",)),
    "memory": Seen((r'Accepted \{"id":"A1","total":3.30\}',), when=a_test_hands_over),
    "pattern-call": Seen(("202",), {"var/orders.jsonl": '{"id":"A1","customer":"C9","crm":{"name":"Customer C9"}}\n'}),
    "pattern-choose": Seen(("202", "202"), log=("invoice.received I1", "document.received L1")),
    "pattern-dedupe": Seen(("202", "202", "202"), {"var/orders.jsonl": '{"id": "A1"}\n{"id": "A2"}\n'}),
    "pattern-split": Seen(
        ("202",),
        {
            "var/lines.jsonl": '{"sku":"X","qty":2}\n{"sku":"Y","qty":1}\n',
            "var/orders.jsonl": '["2 x X","1 x Y"]\n',
        },
    ),
    "pattern-tap": Seen(("202",), {"var/orders.jsonl": '{"id":"A1","checked":true}\n'}, ("seen A1",)),
    "pattern-try": Seen(("202",), {"var/orders.jsonl": '{"id":"A1","qty":null,"problem":"refused"}\n'}),
    "route-ack": Seen(("202", "202", "200 OK", '"stock": 25'), {"var/orders.jsonl": '{"id": "A1"}\n{"id": "A2"}\n'}),
    "route-dead-letter": Seen(("202",), {"var/dead.jsonl": '{"id": "A1", "qty": "two"}\n'}),
    "route-limits": Seen(("413",)),
    "route-match": Seen(("202", "202", "202"), log=("big A1", "swiss A1", "big A2")),
    "route-order-by": Seen(
        (), {"var/orders.jsonl": "".join(f'{{"customer": "C9", "total": {total}}}\n' for total in (1, 2, 3))}
    ),
    "route-retry": Seen(("202", '{"id": "A1"}'), when=the_server_comes_late),
    "route-sources": Seen(("202", "OK"), {"var/orders.jsonl": '{"id": "A1"}\n{"id": "A2"}\n'}),
    "step-filter": Seen(("202", "202"), {"var/big.jsonl": '{"id": "A2", "total": 5000}\n'}),
    "step-log": Seen(
        ("202",),
        {"var/large.jsonl": '{"id": "A1", "card": "4111", "total": 1100.10}\n'},
        ("order A1 came", "order A1 is large"),
    ),
    "step-map": Seen(
        ("202",),
        {
            "var/orders.jsonl": '{"order":"A1","total":1100.10,"note":"none",'
            '"lines":[{"place":1,"sku":"X"},{"place":2,"sku":"Y"}]}\n'
        },
    ),
    "step-parse-format": Seen(("202",), {"var/orders.jsonl": '{"id":"A1"}\n'}),
    "step-python": Seen(
        ("202", "422", "no tax is known for XY", "500", "the gateway failed on this message"),
        {"var/orders.jsonl": '{"id":"A1","country":"CH","total":100.00,"tax":8.10}\n'},
    ),
    "step-set": Seen(
        ("202",),
        {"var/orders.jsonl": '{"id":"A1","customer":{"name":"Anna","tier":"new"}}\n'},
        ("order.placed A1",),
    ),
    "step-template": Seen(("202",), {"var/orders.txt": "Order A1: 2 x nut, 1 x bolt\n"}),
    "step-validate": Seen(("422", "body.customer is missing", "202")),
    "step-xslt": Seen(
        ("202", "422", "order A2 has no lines"),
        {
            "var/deliveries.xml": '<delivery order="A1" warehouse="north">'
            '<item place="1">nut</item><item place="2">bolt</item></delivery>\n'
        },
    ),
    "tcp-framings": Seen((), log=("first", "second")),
    "to-drop": Seen(("202", "202"), {"var/events.jsonl": '{"kind": "alarm"}\n'}),
    "to-file": Seen(
        ("202",),
        {
            "var/orders.jsonl": '{"id": "A1", "qty": 2}\n',
            "var/orders/A1.json": '{"id": "A1", "qty": 2}',
            "var/latest.json": '{"id": "A1", "qty": 2}',
        },
    ),
    "to-http": Seen(("202",), log=("shop got A1 of Öl & Gas",)),
    "to-log": Seen(("202",), log=("order A1",)),
    "to-mllp": Seen(("202",), log=("his got M7",)),
    "to-mqtt_broker": Seen(("202", "orders/C9 .*A1"), when=a_client_subscribes),
    "to-tcp": Seen(("202",), log=("booked A1: 1100.10",)),
    "to-udp": Seen(("202",), log=("collector got orders:3|c",)),
    "to-websocket": Seen(("202", '"customer": "C9"'), when=a_page_watches),
}
"""Content `""`: the file is there. Logged texts may come in any order."""


@pytest.mark.parametrize("name", sorted(SEEN))
async def test_an_example_does_what_its_comment_says(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway")
    expected = SEEN[name]
    place = Playground(tmp_path)
    place.put_schemas()
    place.put(ROOT / f"examples/{name}.yaml")
    async with place.running(f"{name}.yaml"):
        printed = await (expected.when(place) if expected.when else place.sh(pasted(name)))
        assert re.search(".*?".join(expected.answers), printed, re.DOTALL), printed
        try:
            await until(lambda: all(arrived(place, path, content) for path, content in expected.files.items()))
            await until(lambda: set(expected.log) <= set(logged(caplog)))
        except AssertionError:
            found = {path: place.read(path) for path in expected.files}
            pytest.fail(f"files {found}, log {logged(caplog)}, answers {printed}")


def arrived(place: Playground, name: str, content: str) -> bool:
    if not (place.folder / name).exists():
        return False
    return content == "" or place.read(name) == content


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [vars(record).get("text", "") for record in caplog.records if record.name == "gateway.messages"]


async def test_the_api_takes_messages_of_a_route(tmp_path: Path) -> None:
    walk = Walk(tmp_path)
    async with walk.serving("gateway run examples/from-rest.yaml"):
        printed = await walk.place.sh(pasted("from-rest"))
        assert re.search(r"202 Accepted.*\{\"id\":", printed, re.DOTALL), printed
        await until(lambda: '"text":"hello"' in walk.terminal and '"text":"hello again"' in walk.terminal)


async def test_a_folder_of_files_runs_as_one(tmp_path: Path) -> None:
    walk = Walk(tmp_path)
    async with walk.serving("gateway run examples/folder"):
        await walk.place.sh(
            "curl -H 'content-type: application/json' -d '{\"id\": \"A1\"}' http://127.0.0.1:8081/orders"
        )
        await until(lambda: '"text":"A1"' in walk.terminal)


def test_every_example_is_run_by_a_test() -> None:
    assert {example.stem for example in EXAMPLES} == {*SEEN, *NEED_A_BROKER, *NEED_THE_API}
