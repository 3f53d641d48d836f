"""Durations, sizes and rates as people write them, and as numbers with one unit each.

`Duration` is seconds (float), `Size` is bytes (int), `Rate` is events per second (float). As field types of a
settings class they take the text of `routes.yaml` and refuse a bare number, whose unit nobody could know.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}
_NUMBER = r"([0-9]{1,15}(?:\.[0-9]{1,15})?)"
_DURATION = re.compile(rf"{_NUMBER}(ms|s|m|h|d)")
_SIZE = re.compile(rf"{_NUMBER}(B|KiB|MiB|GiB|TiB)")
_RATE = re.compile(rf"{_NUMBER}/(ms|s|m|h|d)")


def duration(text: object) -> float:
    """Seconds of a text such as `250ms`, `5s`, `2m`, `1h`, `7d`.

    Raises:
        ValueError: it is not such a text.
    """
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"expected a duration such as 250ms, 5s, 2m, 1h or 7d, got {_shown(text)}")
    return float(found[1]) * _SECONDS[found[2]]


def size(text: object) -> int:
    """Bytes of a text such as `512B`, `64KiB`, `1MiB`, `10GiB`.

    Raises:
        ValueError: it is not such a text, or not a whole number of bytes.
    """
    found = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"expected a size such as 512B, 64KiB, 1MiB or 10GiB, got {_shown(text)}")
    found_bytes = Decimal(found[1]) * _BYTES[found[2]]
    if found_bytes != int(found_bytes):
        raise ValueError(f"expected a whole number of bytes, got {_shown(text)}")
    return int(found_bytes)


def rate(text: object) -> float:
    """Events per second of a text such as `100/s`, `10/m`.

    Raises:
        ValueError: it is not such a text.
    """
    found = _RATE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"expected a rate such as 100/s or 10/m, got {_shown(text)}")
    return float(found[1]) / _SECONDS[found[2]]


def shown_duration(seconds: float) -> str:
    """The shortest text that `duration` reads as these seconds, such as `5s` or `1.5h`."""
    for unit, unit_s in (("d", 86400.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0)):
        if seconds >= unit_s and (seconds / unit_s * 10).is_integer():
            return f"{_plain(seconds / unit_s)}{unit}"
    return f"{_plain(seconds * 1000)}ms"


def shown_size(size_bytes: int) -> str:
    """The shortest text that `size` reads as these bytes, such as `1MiB`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes >= _BYTES[unit] and size_bytes % _BYTES[unit] == 0:
            return f"{size_bytes // _BYTES[unit]}{unit}"
    return f"{size_bytes}B"


def shown_rate(per_second: float) -> str:
    """A text that `rate` reads as these events per second, such as `100/s` or `10/m`."""
    for unit, unit_s in (("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86400.0)):
        events = round(per_second * unit_s, 9)
        if events >= 1 and events.is_integer():
            return f"{_plain(events)}/{unit}"
    return f"{_plain(per_second)}/s"


def _plain(number: float) -> str:
    """Without an exponent, which no unit has: 12 digits behind the point at most."""
    text = f"{number:.12f}"
    return text.rstrip("0").rstrip(".")


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _schema(title: str, pattern: re.Pattern[str], example: str) -> Any:
    return WithJsonSchema({"title": title, "type": "string", "pattern": f"^{pattern.pattern}$", "examples": [example]})


Duration = Annotated[
    float,
    BeforeValidator(duration),
    PlainSerializer(shown_duration, return_type=str),
    _schema("duration", _DURATION, "5s"),
]
Size = Annotated[
    int, BeforeValidator(size), PlainSerializer(shown_size, return_type=str), _schema("size", _SIZE, "1MiB")
]
Rate = Annotated[
    float,
    BeforeValidator(rate),
    PlainSerializer(shown_rate, return_type=str),
    _schema("rate", _RATE, "100/s"),
]
