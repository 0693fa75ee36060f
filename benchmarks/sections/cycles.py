"""Sections: one warm cycle, of MRMS size beside others with the same engine, with every tile wet, and of FMI size."""

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.cases import Case
from benchmarks.laps import race, run_laps
from benchmarks.tables import HEAD, case_row, pictures, rivals_table


def mrms(bench: Bench) -> Iterator[str]:
    """MRMS size, frames on disk until published, beside a plain loop and Ray Data with the same engine."""
    case = bench.case("mrms")
    ran = race(bench, case, ("traced", "engine_loop", "engine_ray_data"), bench.sizes.peer_laps)
    yield HEAD
    yield case_row(bench, case, ran["traced"], "<= 0.6 s, <= 2.5x", one_block=True)
    yield ""
    yield from rivals_table(bench, case, ran)
    yield from pictures(bench, case, ran["traced"])


def wet(bench: Bench) -> Iterator[str]:
    """The same with every tile wet: nothing can be reused."""
    yield from _one_case(bench, bench.case("wet"), "<= 1.0 s, <= 2.5x")


def fmi(bench: Bench) -> Iterator[str]:
    """FMI size, a warm cycle."""
    yield from _one_case(bench, bench.case("fmi"), "<= 0.15 s")


def _one_case(bench: Bench, case: Case, goal: str) -> Iterator[str]:
    ran = run_laps(bench, case, "traced", range(bench.sizes.laps + 1))
    yield HEAD
    yield case_row(bench, case, ran, goal, one_block=True)
    yield from pictures(bench, case, ran)
