"""What the steps of publishing a model give, and the report of them all: plain values, kept as JSON between runs."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from engines.gate import Verdict
from engines.gate_page import summarize
from engines.registry import Move, Release
from jobs.watch import StepReport


@dataclass(frozen=True)
class Gathered:
    """Where the cases come from."""

    origin: str


@dataclass(frozen=True)
class Typed:
    """What a rewritten graph has obtained; `fault` says why it may not stand for the precision asked for."""

    obtained: str
    layers: str
    graph_sha256: str
    weights_sha256: str
    fault: str = ""


@dataclass(frozen=True)
class Built:
    """How an engine came about: loaded from the cache, refitted or built; `fault` says why there is none.

    Attributes:
        seconds: of the engine alone.
        digest: name of its file in the cache.
        computed: where the runtime computes in something else than the graph says; else empty.
    """

    how: str = ""
    seconds: float = 0.0
    digest: str = ""
    size_bytes: int = 0
    label: str = ""
    obtained: str = ""
    computed: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Measured:
    """What the bench found, in a sentence or two."""

    headline: str


@dataclass(frozen=True)
class Failure:
    """A reading beyond its limit; None where nothing could be found."""

    measure: str
    group: str
    lead_seconds: float
    threshold: float | None
    case: str
    found: float | None
    limit: float


@dataclass(frozen=True)
class Judged:
    """The verdict of the gate on a precision."""

    is_go: bool
    summary: str
    failures: tuple[Failure, ...] = ()


def judged(verdict: Verdict, units: str) -> Judged:
    """What the gate found, in short."""
    failures = tuple(
        Failure(
            reading.measure,
            reading.group,
            reading.lead_time.total_seconds(),
            reading.threshold,
            reading.case,
            reading.found if isfinite(reading.found) else None,
            reading.limit(verdict.limits),
        )
        for reading in verdict.failures
    )
    return Judged(verdict.is_go, summarize(verdict, units), failures)


@dataclass(frozen=True)
class PrecisionReport:
    """What became of a precision that was asked for."""

    asked: str
    typed: Typed
    built: Built
    judged: Judged


@dataclass(frozen=True)
class PublishReport:
    """What was published, and how.

    Attributes:
        change: against the version in production before.
        shape: of the batches, (n, channel, h, w).
        move: of the alias; None where none was asked for or a precision was refused.
    """

    name: str
    version: str
    identity: str
    graph_sha256: str
    weights_sha256: str
    change: str
    runtime: str
    shape: tuple[int, ...]
    cases: str
    bench: str
    precisions: tuple[PrecisionReport, ...]
    steps: tuple[StepReport, ...]
    release: Release
    reports: Path
    move: Move | None

    @property
    def refused(self) -> tuple[str, ...]:
        """The precisions that may not be used."""
        return tuple(each.asked for each in self.precisions if not each.judged.is_go)

    @property
    def total_seconds(self) -> float:
        """Of this run."""
        return sum(step.seconds for step in self.steps if not step.was_finished)
