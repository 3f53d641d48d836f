"""What a measurement gives, and what several of them say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Sample:
    """One measurement of one contender in one round."""

    rate: float
    """Messages a second, of wall time."""
    cpu_us: float
    """Processor time of the measured process for each message, µs."""
    busy: float
    """Share of one core that the measured process used: well below 1 the generator, the disk or a broker was the limit,
    and the rate says little about the process."""
    p99_ms: float | None = None
    """The time that 99 of 100 requests took at most; None: not measured."""
    errors: int = 0
    """Requests that failed, were refused or had no answer."""


@dataclass(frozen=True)
class Summary:
    """The medians of one contender over all rounds."""

    rate: float
    cpu_us: float
    busy: float
    p99_ms: float | None
    errors: int

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Summary:
        """Medians; errors are added up."""
        latencies = [sample.p99_ms for sample in samples if sample.p99_ms is not None]
        return cls(
            rate=median(sample.rate for sample in samples),
            cpu_us=median(sample.cpu_us for sample in samples),
            busy=median(sample.busy for sample in samples),
            p99_ms=median(latencies) if latencies else None,
            errors=sum(sample.errors for sample in samples),
        )


def ratio(subject: Sequence[Sample], against: Sequence[Sample]) -> float:
    """The median over the rounds of how many times the rate of the other the subject reached in the same round."""
    return median(one.rate / other.rate for one, other in zip(subject, against, strict=True))


def cpu_ratio(subject: Sequence[Sample], against: Sequence[Sample]) -> float:
    """The same by processor time: how many messages the subject does in the time of one of the other's."""
    return median(other.cpu_us / one.cpu_us for one, other in zip(subject, against, strict=True))
