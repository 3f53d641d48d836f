"""The limits: their defaults are those of the documents, their bounds hold, and who is trusted."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway import Limits

DEFAULTS = {
    "message": "1MiB",
    "headers": "32KiB",
    "header_count": 100,
    "header_line": "8KiB",
    "handshake": "10s",
    "body_rate": "1024/s",
    "idle": "1m",
    "request": "1m",
    "frame": "1m",
    "connections": 10_000,
    "connections_per_address": 256,
    "new_connections": "50/s",
    "trusted": ["127.0.0.0/8", "::1/128"],
    "json_depth": 64,
    "json_string": "1MiB",
    "json_digits": 400,
    "xml_depth": 64,
    "xml_elements": 100_000,
    "xml_attributes": 128,
    "decompressed_ratio": 100,
    "template_output": "1MiB",
    "in_flight": 256,
    "in_memory": 256,
    "in_memory_size": "64MiB",
}


def test_the_defaults_are_those_that_are_promised() -> None:
    assert Limits().model_dump(mode="json") == DEFAULTS


def test_what_is_written_out_is_read_as_the_same() -> None:
    assert Limits.model_validate(DEFAULTS) == Limits()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("message", "65MiB"),
        ("json_depth", 513),
        ("json_depth", 0),
        ("xml_depth", 257),
        ("in_flight", 0),
        ("connections", 0),
        ("header_count", 0),
        ("trusted", ["127.0.0.1/8"]),
        ("trusted", ["here"]),
        ("messages", "1MiB"),
    ],
)
def test_what_is_out_of_bounds_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError):
        Limits.model_validate({name: value})


def test_a_message_may_have_64_mebibytes() -> None:
    assert Limits.model_validate({"message": "64MiB"}).message == 64 * 1024**2


@pytest.mark.parametrize(
    ("address", "trusted"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("", False),
        ("localhost", False),
    ],
)
def test_loopback_is_trusted_and_nobody_else(address: str, trusted: bool) -> None:
    assert Limits().trusts(address) is trusted


def test_networks_that_are_named_are_trusted_instead() -> None:
    limits = Limits.model_validate({"trusted": ["10.0.0.0/8"]})
    assert (limits.trusts("10.1.2.3"), limits.trusts("127.0.0.1")) == (True, False)


def test_limits_have_descriptions_and_do_not_change() -> None:
    assert all(field.description for field in Limits.model_fields.values())
    with pytest.raises(ValidationError):
        Limits().in_flight = 3  # type: ignore[misc]
