"""Runs sections one after the other within a time for all: whatever goes wrong with one ends it alone."""

import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

from benchmarks.bench import Bench
from benchmarks.report import Report

Section = Callable[[Bench], Iterator[str]]

DONE = "done"
LEAST_SECONDS = 10.0  # of a section that is worth starting


@dataclass(frozen=True)
class Budget:
    """The time for all sections together, and for one of them at most; seconds.

    Raises:
        ValueError: a time that is not above 0.
    """

    total: float
    section: float
    started: float = field(default_factory=monotonic)

    def __post_init__(self) -> None:
        if min(self.total, self.section) <= 0:
            raise ValueError(f"{self.total} s for all and {self.section} s for a section; expected more than 0")

    @property
    def left(self) -> float:
        return self.total - (monotonic() - self.started)

    @property
    def next(self) -> float:
        """What the next section may take."""
        return min(self.section, self.left)


def run_sections(sections: Sequence[Section], bench: Bench, report: Report, budget: Budget) -> dict[str, str]:
    """How each section ended, by its name; the report ends with those that are not done.

    Sections that the record says are done are not run again.
    """
    ended: dict[str, str] = dict(bench.record.get("sections", {}))
    for section in sections:
        if ended.get(section.__name__) == DONE:
            continue
        is_worth_it = budget.left >= LEAST_SECONDS
        ended[section.__name__] = run_section(section, bench, report, budget.next) if is_worth_it else "not run"
        bench.record["sections"] = ended
        report.keep(bench.record)
    report.say(summary(ended, budget))
    return ended


def summary(ended: Mapping[str, str], budget: Budget) -> str:
    """Which sections are done, and which are not and why, by name."""
    kinds: dict[str, list[str]] = {}
    for name, how in ended.items():
        kinds.setdefault(how, []).append(name)
    spent = f"{budget.total - budget.left:.0f} of {budget.total:.0f} s"
    return f"{spent}. " + ". ".join(f"{how}: {', '.join(names)}" for how, names in kinds.items())


def run_section(section: Section, bench: Bench, report: Report, seconds: float) -> str:
    """How a section ended, its lines said one by one: `done`, `FAILED`, or `out of time`."""
    started, how = monotonic(), DONE
    bench.ends = started + seconds
    report.say(f"### {section.__name__}: {(section.__doc__ or '').splitlines()[0]}\n")
    try:
        with _time_limit(seconds):
            for line in section(bench):
                report.say(line)
                report.keep(bench.record)
    except _TimeIsUp:
        how = "out of time"
        report.say(f"OUT OF TIME: the section was ended after {seconds:.0f} s")
    except Exception:
        how = "FAILED"
        report.say(f"FAILED: {traceback.format_exc(limit=-4)}")
    report.say(f"\n({monotonic() - started:.0f} s)\n")
    return how


class _TimeIsUp(BaseException):
    """The section has had its time; not to be caught by who expects that something fails."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises in the main thread, whatever it does, when the time is up."""

    def end(*_: object) -> None:
        raise _TimeIsUp

    former = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
