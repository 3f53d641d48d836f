"""Durations, sizes and rates: read as people write them, shown as they can be read again."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from gateway.units import Duration, Rate, Size, duration, rate, shown_duration, shown_rate, shown_size, size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("5s", 5.0), ("2m", 120.0), ("1h", 3600.0), ("7d", 604_800.0), ("1.5h", 5400.0), ("0s", 0.0)],
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "count"),
    [("0B", 0), ("512B", 512), ("64KiB", 65_536), ("1MiB", 1_048_576), ("1.5KiB", 1536), ("2TiB", 2 * 1024**4)],
)
def test_a_size_is_read_in_bytes(text: str, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize(("text", "per_second"), [("100/s", 100.0), ("30/m", 0.5), ("36/h", 0.01), ("2/ms", 2000.0)])
def test_a_rate_is_read_in_events_a_second(text: str, per_second: float) -> None:
    assert rate(text) == pytest.approx(per_second)


WRONG: list[Any] = ["", "5", 5, 5.0, None, True, "5 s", "-5s", "5S", "5sec", "1e3s", "٥s", "s", "5s ", "1.s", "9" * 400]


@pytest.mark.parametrize("value", [*WRONG, "9" * 400 + "s"], ids=lambda value: str(value)[:10])
def test_what_is_no_duration_is_refused_with_examples(value: Any) -> None:
    shown = f'"{value}"' if isinstance(value, str) else repr(value)
    with pytest.raises(
        ValueError, match=f"^{re.escape(f'expected a duration such as 250ms, 5s, 2m, 1h or 7d, got {shown}')}$"
    ):
        duration(value)


@pytest.mark.parametrize("value", [*WRONG, "5KB", "5kib", "9" * 400 + "B"], ids=lambda value: str(value)[:10])
def test_what_is_no_size_is_refused_with_examples(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^expected a size such as 512B, 64KiB, 1MiB or 10GiB, got "):
        size(value)


@pytest.mark.parametrize("text", ["1.5B", "0.1KiB"])
def test_a_size_is_a_whole_number_of_bytes(text: str) -> None:
    with pytest.raises(ValueError, match=f'^expected a whole number of bytes, got "{text}"$'):
        size(text)


@pytest.mark.parametrize("value", [*WRONG, "5", "5/", "/s", "5/w"], ids=lambda value: str(value)[:10])
def test_what_is_no_rate_is_refused_with_examples(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^expected a rate such as 100/s or 10/m, got "):
        rate(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "250ms"), (5.0, "5s"), (90.0, "1.5m"), (5400.0, "1.5h"), (86_400.0, "1d"), (10_000_001.0, "10000001s")],
)
def test_a_duration_is_shown_as_people_write_it(seconds: float, text: str) -> None:
    assert shown_duration(seconds) == text


@pytest.mark.parametrize(
    ("per_second", "text"), [(100.0, "100/s"), (10 / 60, "10/m"), (1 / 86_400, "1/d"), (0.000_003, "0.000003/s")]
)
def test_a_rate_is_shown_as_people_write_it(per_second: float, text: str) -> None:
    assert shown_rate(per_second) == text


@given(st.floats(0.001, 1e9))
def test_a_shown_duration_is_read_as_the_same(seconds: float) -> None:
    assert duration(shown_duration(seconds)) == pytest.approx(seconds, rel=1e-9)


@given(st.integers(0, 2**50))
def test_a_shown_size_is_read_as_the_same(count: int) -> None:
    if len(shown_size(count)) < 16:
        assert size(shown_size(count)) == count


class Settings(BaseModel):
    wait: Duration
    most: Size
    pace: Rate


def test_as_fields_they_are_numbers_inside_and_texts_outside() -> None:
    settings = Settings.model_validate({"wait": "5s", "most": "1MiB", "pace": "10/m"})
    assert (settings.wait, settings.most) == (5.0, 1_048_576)
    assert settings.pace == pytest.approx(1 / 6)
    assert settings.model_dump(mode="json") == {"wait": "5s", "most": "1MiB", "pace": "10/m"}


def test_a_bare_number_has_no_unit_and_is_refused() -> None:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate({"wait": 5, "most": 1024, "pace": 1})
    assert len(refused.value.errors()) == 3


def test_their_schema_says_how_they_are_written() -> None:
    properties = Settings.model_json_schema()["properties"]
    for name, good, bad in (("wait", "5s", "5"), ("most", "1MiB", "1MB"), ("pace", "100/s", "100")):
        pattern = properties[name]["pattern"]
        assert re.match(pattern, good)
        assert not re.match(pattern, bad)
