"""The AMQP adapter without RabbitMQ: settings, what a message becomes, and a server of this process that misbehaves."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pamqp import commands as spec
from pydantic import ValidationError

from adapters import _amqp_frames as frames
from adapters import amqp
from adapters._amqp_declare import ExchangeDeclaration, QueueDeclaration
from adapters._amqp_frames import Delivery, Properties
from adapters._amqp_message import message_of, text_of
from gateway import Limits, Message
from tests.adapters.amqp_fake import ALL

CONNECTION = amqp.Connection(url="amqp://127.0.0.1")


# --- settings


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"url": "http://broker"}, 'expected a URL such as amqp://host/…, got "http://broker"'),
        ({"url": "amqp://me:secret@broker"}, "a URL holds no user and password"),
        ({"url": "amqp://broker", "tls": {}}, "tls needs an amqps:// URL"),
        ({"url": "amqp://broker/a/b"}, "the vhost holds a slash: write it as %2F"),
        ({"url": "amqp://broker", "heartbeat": "10"}, "expected a duration"),
        ({"url": "amqp://broker", "heartbeat": "100ms"}, "greater than or equal to 1"),
        ({"url": "amqp://broker", "user": "me"}, "Extra inputs are not permitted"),
    ],
)
def test_a_connection_refuses_what_it_cannot_mean(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(text)):
        amqp.Connection(**settings)


def test_equal_connections_are_one_and_its_two_directions_are_two() -> None:
    again = amqp.Connection(url="amqp://127.0.0.1")
    assert CONNECTION.consuming == again.consuming
    assert hash(CONNECTION.consuming) == hash(again.consuming)
    assert CONNECTION.consuming != CONNECTION.publishing
    assert CONNECTION.consuming != amqp.Connection(url="amqp://127.0.0.1", username="me").consuming


def test_a_password_is_never_shown() -> None:
    connection = amqp.Connection(url="amqp://127.0.0.1", password="hunter2")
    assert "hunter2" not in repr(connection)
    assert "hunter2" not in repr(connection.consuming)
    assert "hunter2" not in connection.model_dump_json()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"queue": ""}, "an empty queue name needs declare: {exclusive: true}"),
        ({"queue": "q", "prefetch": 0}, "greater than or equal to 1"),
        ({"queue": "q", "refused": "drop"}, "Input should be 'dead_letter' or 'reject'"),
        ({"queue": "q", "declare": {"durible": True}}, "Extra inputs are not permitted"),
        ({"queue": "q" * 256}, "at most 255"),
    ],
)
def test_a_source_refuses_what_it_cannot_mean(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(text)):
        amqp.Source(connection=CONNECTION, **settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "name an exchange, or a routing_key"),
        ({"routing_key": "q", "declare": {}}, "declare needs the name of an exchange"),
        ({"exchange": "e", "timeout": "0s"}, "greater than 0"),
    ],
)
def test_a_sink_refuses_what_it_cannot_mean(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(text)):
        amqp.Sink(connection=CONNECTION, **settings)


def test_settings_are_read_as_routes_yaml_writes_them() -> None:
    source = amqp.Source.model_validate(
        {"connection": CONNECTION, "queue": "q", "declare": {"exchange": "e", "routing_keys": ["a.*", "b"]}}
    )
    assert source.declare == QueueDeclaration(exchange="e", routing_keys=("a.*", "b"))
    assert source.answers is False
    sink = amqp.Sink.model_validate(
        {"connection": CONNECTION, "exchange": "e", "declare": {"type": "fanout"}, "reply": {"timeout": "2s"}}
    )
    assert sink.declare == ExchangeDeclaration(type="fanout")
    assert sink.reply is not None
    assert sink.reply.timeout == 2.0
    assert (sink.mandatory, sink.persistent, sink.timeout) == (True, True, 30.0)


# --- what a delivery becomes


def taken(
    body: bytes = b"{}", *, limits: Limits | None = None, content_type: str | None = None, **properties: Any
) -> Message:
    delivery = Delivery(1, True, "orders", "order.C9", Properties(**properties), body)
    return message_of(delivery, queue="q", content_type=content_type, limits=limits or Limits(), now_s=1000.0)


def test_a_delivery_without_properties_is_json_of_an_unknown_sender() -> None:
    message = taken(b'{"a": 1}')
    assert (message.content_type, message.type, message.time_s) == ("application/json", "amqp.message", 1000.0)
    assert (message.sender_id, message.correlation_id, message.priority, message.expires_at_s) == (None, None, 0, None)
    assert message.headers == {}
    assert message.transport == {"exchange": "orders", "routing_key": "order.C9", "redelivered": True, "queue": "q"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("text", "text"),
        (7, "7"),
        (True, "true"),
        (None, ""),
        (1.5, "1.5"),
        (Decimal("1.50"), "1.50"),
        (b"\xc5\xbe", "ž"),
        (b"\xff", "\\xff"),
        (datetime(2026, 11, 21, tzinfo=UTC), "2026-11-21T00:00:00.000Z"),
        ([1, {"a": b"x", "at": datetime(2026, 11, 21, tzinfo=UTC)}], '[1,{"a":"x","at":"2026-11-21T00:00:00.000Z"}]'),
    ],
)
def test_a_header_is_text_whatever_its_type(value: Any, text: str) -> None:
    assert text_of(value) == text
    assert taken(headers={"Name": value}).headers == {"name": text}


@pytest.mark.parametrize(
    ("table", "count"),
    [
        ([{"count": 2, "reason": "rejected", "queue": "q1"}, {"count": 3, "reason": "expired", "queue": "q2"}], 5),
        ([], 0),
        ("forged", 0),
        ([{"count": "many"}, 7, {"count": True}], 0),
    ],
)
def test_dead_letter_headers_are_summed_up_and_never_trusted_to_be_well_formed(table: Any, count: int) -> None:
    assert taken(headers={"x-death": table}).transport["x_death_count"] == count


@pytest.mark.parametrize(
    ("expiration", "expires_at_s"),
    [("1500", 1001.5), ("0", 1000.0), ("soon", None), ("-1", None), ("9" * 200, 1000.0 + 10**11)],
)
def test_an_expiration_counts_from_the_receipt(expiration: str, expires_at_s: float | None) -> None:
    assert taken(expiration=expiration).expires_at_s == expires_at_s


@pytest.mark.parametrize(
    ("traceparent", "kept"),
    [("00-" + "a" * 32 + "-" + "b" * 16 + "-01", True), ("made up", False), (7, False)],
)
def test_a_trace_goes_on_only_if_it_is_one(traceparent: Any, kept: bool) -> None:
    assert taken(headers={"traceparent": traceparent}).traceparent == (traceparent if kept else None)


PLAIN = b'{"customer": "C9"}' * 20


@pytest.mark.parametrize(
    ("encoding", "body", "content_type", "plain"),
    [
        ("gzip", gzip.compress(PLAIN), "application/json", True),
        ("GZIP", gzip.compress(PLAIN), "application/json", True),
        ("deflate", zlib.compress(PLAIN), "application/json", True),
        ("identity", PLAIN, "application/json", True),
        ("gzip", gzip.compress(bytes(10**6)), "application/gzip", False),
        ("gzip", gzip.compress(PLAIN)[:-9], "application/gzip", False),
        ("gzip", b"not gzip", "application/gzip", False),
        ("br", b"\x00", "application/octet-stream", False),
    ],
    ids=["gzip", "upper case", "deflate", "identity", "bomb", "cut short", "no gzip", "unknown"],
)
def test_a_compressed_body_is_opened_within_the_limits_or_named_as_what_it_is(
    encoding: str, body: bytes, content_type: str, plain: bool
) -> None:
    message = taken(body, content_encoding=encoding)
    assert message.content_type == content_type
    assert message.body == (PLAIN if plain else body)
    assert message.transport["content_encoding"] == encoding


@pytest.mark.parametrize(("size", "cut"), [(10, None), (11, True)])
def test_a_body_over_the_limit_is_marked_as_cut(size: int, cut: bool | None) -> None:
    assert taken(body=b"x" * size, limits=Limits(message="10B")).transport.get("cut") is cut


def test_a_source_that_knows_better_says_the_content_type() -> None:
    assert taken(content_type="text/xml").content_type == "text/xml"
    assert taken(content_type="text/xml").headers == {}


# --- frames, against pamqp


def test_properties_are_read_as_another_codec_writes_them() -> None:
    raw = ALL.marshal()
    read = frames.read_properties(raw, 0, len(raw))
    assert read.headers == {**(ALL.headers or {}), "bytes": b"\x00\xff"}
    assert read.timestamp == int(datetime(2026, 11, 21, tzinfo=UTC).timestamp())
    for name in ("content_type", "content_encoding", "delivery_mode", "priority", "correlation_id", "reply_to"):
        assert getattr(read, name) == getattr(ALL, name)
    assert (read.expiration, read.message_id, read.type, read.user_id, read.app_id) == ("1000", "m", "t", "u", "a")


@pytest.mark.parametrize(
    "value",
    [
        0.1,
        19.99,
        1e300,
        -0.0,
        2**40,
        True,
        None,
        "ž",
        Decimal("19.99"),
        [0.1, {"a": [1]}],
        {"n" * 200: {"b": 0.1}},
        {},
        [],
    ],
)
def test_a_header_is_written_without_a_loss(value: Any) -> None:
    written = frames.written(Properties(headers={"x": value}))
    (length,) = struct.unpack_from(">I", written, 2)
    assert len(written) == 6 + length
    assert frames.read_properties(written, 0, len(written)).headers == {"x": value}


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("52.3702157123", 52.3702157123),
        ("-2147483648.5", -2147483648.5),
        ("1e300", 1e300),
        ("1e-300", 1e-300),
        ("2147483647", Decimal(2147483647)),
        ("-21474836.47", Decimal("-21474836.47")),
        ("1e5", Decimal(100000)),
        ("0e-20", Decimal(0)),
    ],
)
def test_a_number_that_no_decimal_of_amqp_holds_is_sent_as_a_double(value: str, sent: object) -> None:
    written = frames.written(Properties(headers={"x": Decimal(value)}))
    headers = frames.read_properties(written, 0, len(written)).headers
    assert headers == {"x": sent}
    assert type(headers["x"]) is type(sent)


@pytest.mark.parametrize("value", ["0.12345678901234567890123", "1e400", "NaN"])
def test_a_number_that_amqp_would_change_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"headers: (Decimal|Cannot encode)"):
        frames.written(Properties(headers={"x": Decimal(value)}))


def test_properties_are_written_as_another_codec_reads_them() -> None:
    written = frames.written(
        Properties(
            content_type="text/plain",
            headers={"n": 7, "s": "ž"},
            delivery_mode=2,
            priority=9,
            correlation_id="c",
            reply_to="r",
            expiration="5",
            message_id="m",
            timestamp=1_700_000_000,
            type="t",
        )
    )
    read = spec.Basic.Properties()
    flags = int.from_bytes(written[:2], "big")
    read.unmarshal(flags, written[2:])
    assert (read.content_type, read.headers, read.delivery_mode, read.priority) == (
        "text/plain",
        {"n": 7, "s": "ž"},
        2,
        9,
    )
    assert (read.correlation_id, read.reply_to, read.expiration, read.message_id) == ("c", "r", "5", "m")
    assert (read.timestamp, read.message_type) == (datetime.fromtimestamp(1_700_000_000, UTC), "t")


@pytest.mark.parametrize("cut", range(1, 60))
def test_properties_cut_anywhere_are_an_error_and_nothing_else(cut: int) -> None:
    raw = ALL.marshal()[:-cut]
    with pytest.raises((ValueError, IndexError, struct.error)):
        frames.read_properties(raw, 0, len(raw))


def test_a_table_nested_without_end_is_not_read_and_hides_nothing_behind_it() -> None:
    table: dict[str, Any] = {}
    for _ in range(100):
        table = {"t": table}
    raw = spec.Basic.Properties(headers=table, message_id="m").marshal()
    read = frames.read_properties(raw, 0, len(raw))
    assert (read.headers, read.message_id) == ({"amqp-properties": "unreadable"}, "m")
