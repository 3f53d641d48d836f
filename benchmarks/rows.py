"""The rows of the table: what is driven, how, beside what, and the bar that it has to reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from benchmarks.bodies import LARGE_ORDER, ORDER, SMALL_ORDER
from benchmarks.broker_loads import QUEUE, TOPIC, AmqpToHttp, MqttToAmqp
from benchmarks.contenders import Contender, bare, gateway
from benchmarks.loads import Generator, Load, Wrk
from benchmarks.long import after_growth, backlog
from benchmarks.singles import Found, idle_memory, start_time
from benchmarks.steady import steady

P99_MS = 15.0


@dataclass(frozen=True)
class Row:
    """One line: a contender under a load, and how it has to do."""

    name: str
    """What `--only` takes."""
    text: str
    subject: Contender
    load: Load
    against: Contender | None = None
    """What is run beside it under the same load, in the same round."""
    bar: float | None = None
    """How many times the rate of `against` it has to reach."""
    rate_bar: float | None = None
    """The rate that it has to reach."""
    p99_bar_ms: float | None = None
    needs: tuple[Literal["wrk", "rabbitmq", "mosquitto"], ...] = ()


@dataclass(frozen=True)
class Single:
    """One line that is no throughput: a number with a bar it must not exceed."""

    name: str
    text: str
    measure: Callable[..., list[Found]]
    """Called with the folder, the cores and the seconds."""
    long: bool = False


def _http(rest: str, *, first: str = "", ack: str = "delivered", route: str = "orders") -> str:
    return f"""\
{first}routes:
  {route}:
    from: {{http: {{listen: "127.0.0.1:$port", path: /orders}}}}
    ack: {ack}
{rest}"""


_MAP = """\
    steps:
      - map: {id: "{{ body.id }}", customer: "{{ body.customer.name }}", total: "{{ body.total }}"}
    to: {drop: {}, when: body.total >= 1000}
"""
_TO_SINK = """\
    concurrency: 64
    to: {http: {url: "http://127.0.0.1:$sink/orders"}}
"""
_CHOICE = """\
    concurrency: 64
    match: first
    to:
      - {http: {url: "http://127.0.0.1:$sink/large"}, name: large, when: body.total >= 1000}
      - {http: {url: "http://127.0.0.1:$sink/small"}, name: small}
"""
_XML = """\
    concurrency: 64
    steps: [{format: {xml: {root: order}}}]
    to: {http: {url: "http://127.0.0.1:$sink/orders"}}
"""
_DROP = "    to: {drop: {}}\n"
_OTHERS = "".join(
    f"""\
  other-{index}:
    from: {{http: {{listen: "127.0.0.1:$port", path: /other/{index}}}}}
    ack: delivered
    to: {{drop: {{}}}}
"""
    for index in range(499)
)
_LINES = """\
routes:
  lines:
    from: {tcp: {listen: "127.0.0.1:$port", framing: line, answer: {accepted: OK}}}
"""
_MLLP = """\
routes:
  admissions:
    from: {mllp: {listen: "127.0.0.1:$port"}}
    ack: delivered
    to: {drop: {}}
"""
_WEBSOCKET = """\
routes:
  feed:
    from: {websocket: {listen: "127.0.0.1:$port", path: /in}}
    ack: delivered
    to: {drop: {}}
"""
_MQTT_TO_AMQP = f"""\
connections:
  plant: {{mqtt: {{url: "$mqtt", client_id: bridge}}}}
  erp: {{amqp: {{url: "$amqp"}}}}
routes:
  bridge:
    from: {{mqtt: {{connection: plant, topic: {TOPIC}, qos: 1}}}}
    ack: delivered
    concurrency: 64
    to: {{amqp: {{connection: erp, routing_key: {QUEUE}}}}}
"""
_AMQP_TO_HTTP = f"""\
connections:
  erp: {{amqp: {{url: "$amqp"}}}}
routes:
  bridge:
    from: {{amqp: {{connection: erp, queue: {QUEUE}, prefetch: 64}}}}
    ack: delivered
    concurrency: 64
    to: {{http: {{url: "http://127.0.0.1:$sink/orders"}}}}
"""

_A = bare("A", "bare_http", "answer")
_A_BOTH = bare("A, both cores", "bare_http", "answer", both_cores=True)
_B = bare("B", "bare_http", "forward")
_ELEMENTS = bare("lxml by hand", "bare_http", "elements")
_ONE = gateway("one route", _http(_DROP))
_ORDER = Wrk((ORDER,))
_WRK: tuple[Literal["wrk"], ...] = ("wrk",)


def rows() -> list[Row]:
    """All rows that are throughput, those beside the same loop behind each other."""
    return [*_http_rows(), *_stream_rows(), *_broker_rows(), *_stored_rows()]


def singles() -> list[Single]:
    """All rows that are not."""
    return [
        Single("start", "the bundled routes.yaml, import to listening", start_time),
        Single("memory", "the bundled routes.yaml, idle", idle_memory),
        Single("backlog", "1,000,000 pending messages", backlog, long=True),
        Single("steady", "all protocols at once", steady, long=True),
        Single("growth", "after 5,000,000 delivered messages", after_growth, long=True),
    ]


def _http_rows() -> list[Row]:
    drop = gateway("drop", _http(_DROP))
    mapped = gateway("map", _http(_MAP))
    forward = gateway("http", _http(_TO_SINK, ack="reply"))
    choice = gateway("choice", _http(_CHOICE, ack="reply"))
    xml = gateway("xml", _http(_XML, ack="reply"))
    many = gateway("500 routes", _http(_DROP) + _OTHERS)
    both = Wrk((ORDER, SMALL_ORDER))
    return [
        Row("http-drop", "http → drop", drop, _ORDER, _A, 1.5, p99_bar_ms=P99_MS, needs=_WRK),
        Row("http-map", "http → when on the body, map → drop", mapped, _ORDER, _A, 1.2, p99_bar_ms=P99_MS, needs=_WRK),
        Row("http-http", "http → http, reply", forward, _ORDER, _B, 1.2, p99_bar_ms=P99_MS, needs=_WRK),
        Row("http-choice", "http → one of two http, reply", choice, both, _B, 1.1, p99_bar_ms=P99_MS, needs=_WRK),
        Row("http-xml", "http JSON → XML → http, reply", xml, _ORDER, _B, 0.8, p99_bar_ms=P99_MS, needs=_WRK),
        Row("http-xml-10k", "the same, 10 kB", xml, Wrk((LARGE_ORDER,)), _ELEMENTS, 2.0, needs=_WRK),
        Row("routes-500", "http → drop, 500 routes", many, _ORDER, _ONE, 0.9, needs=_WRK),
        Row("connections", "http → drop, 1,000 connections", drop, Wrk((ORDER,), connections=1000), needs=_WRK),
    ]


def _stream_rows() -> list[Row]:
    lines = gateway("lines", _LINES + "    ack: delivered\n" + _DROP)
    mllp = gateway("mllp", _MLLP)
    feed = gateway("websocket", _WEBSOCKET)
    line_loop = bare("bare lines", "bare_streams", "line")
    return [
        Row("tcp", "TCP line → drop, answered, 32 connections", lines, Generator("line", 32), line_loop, 0.35, 50_000),
        Row("tcp-16", "the same, 16 at a time each", lines, Generator("line", 32, 16), rate_bar=80_000),
        Row(
            "mllp",
            "MLLP → drop, AA, 16 connections",
            mllp,
            Generator("mllp", 16),
            bare("bare MLLP", "bare_streams", "mllp"),
            0.3,
            20_000,
        ),
        Row(
            "websocket",
            "WebSocket in → drop",
            feed,
            Generator("websocket", 16),
            bare("bare websockets", "bare_streams", "websocket"),
            0.8,
        ),
    ]


def _broker_rows() -> list[Row]:
    return [
        Row(
            "mqtt-amqp",
            "MQTT QoS 1 → AMQP with confirms",
            gateway("mqtt-amqp", _MQTT_TO_AMQP, listens=False),
            MqttToAmqp(),
            bare("gmqtt + aio-pika", "bare_brokers", "mqtt-to-amqp", listens=False),
            0.9,
            needs=("rabbitmq", "mosquitto"),
        ),
        Row(
            "amqp-http",
            "AMQP → http",
            gateway("amqp-http", _AMQP_TO_HTTP, listens=False),
            AmqpToHttp(),
            bare("aio-pika + pyreqwest", "bare_brokers", "amqp-to-http", listens=False),
            0.8,
            needs=("rabbitmq",),
        ),
    ]


def _stored_rows() -> list[Row]:
    stored = gateway("stored", _http(_DROP, ack="stored"), both_cores=True)
    lines = gateway("lines stored", _LINES + "    ack: stored\n" + _DROP, both_cores=True)
    many = Wrk((ORDER,), connections=256)
    return [
        Row("stored", "http stored (fsync) → drop", stored, _ORDER, _A_BOTH, 0.8, p99_bar_ms=25.0, needs=_WRK),
        Row("stored-256", "the same, 256 connections", stored, many, _A_BOTH, 1.1, p99_bar_ms=25.0, needs=_WRK),
        Row("tcp-stored", "TCP line → stored, 16 at a time", lines, Generator("line", 32, 16), rate_bar=20_000),
    ]
