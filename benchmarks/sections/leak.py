"""Section: does memory grow over many cycles in a row?"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from benchmarks.bench import Bench
from benchmarks.contender import Contender
from benchmarks.laps import open_contender
from benchmarks.sampler import Gpus
from benchmarks.tables import gb

WITHIN = 0.01
SETTLING = 30  # cycles, or a tenth of all if that is more
LEAST = SETTLING + 20  # cycles for a verdict
EVERY = 100  # cycles between two lines that say how far it is
RESERVE_SECONDS = 15  # for the end of the section
Memory = Mapping[str, int]


@dataclass(frozen=True)
class Growth:
    """Medians of the first and the last quarter of a series, the settling cycles left out; bytes.

    Attributes:
        cycles: between the middles of the two.
    """

    first: float
    last: float
    cycles: int

    @property
    def rate(self) -> float:
        """Bytes a cycle."""
        return (self.last - self.first) / self.cycles

    @property
    def share(self) -> float:
        return self.last / self.first - 1

    @property
    def verdict(self) -> str:
        """Of memory that may change by `WITHIN`: FLAT, GROWS or SHRINKS."""
        if abs(self.last - self.first) <= WITHIN * self.first:
            return "FLAT"
        return "GROWS" if self.last > self.first else "SHRINKS"


def growth_of(series: Sequence[int]) -> Growth:
    """Of a series of bytes, one for each cycle.

    Raises:
        ValueError: fewer than `LEAST` cycles (found, expected).
    """
    if len(series) < LEAST:
        raise ValueError(f"{len(series)} cycles tell nothing about a leak; expected {LEAST} or more")
    settled = series[max(SETTLING, len(series) // 10) :]
    quarter = len(settled) // 4
    first, last = statistics.median(settled[:quarter]), statistics.median(settled[-quarter:])
    return Growth(first, last, len(settled) - quarter)


@dataclass
class Row:
    """Cycles that were made in a row, and the memory after each of them by name, bytes."""

    made: int = 0
    series: dict[str, list[int]] = field(default_factory=dict)

    def note(self, memory: Memory) -> None:
        self.made += 1
        for name, nbytes in memory.items():
            self.series.setdefault(name, []).append(nbytes)


def leak(bench: Bench) -> Iterator[str]:
    """Memory over many cycles in a row."""
    case, wanted, row = bench.case("fmi"), bench.sizes.soak if bench.soak else bench.sizes.row, Row()
    bench.record["leak"] = {"cycles wanted": wanted, "series": row.series}
    gpus = Gpus()
    with open_contender(bench, case, "traced") as (contender, _):
        while row.made < wanted and bench.seconds_left > RESERVE_SECONDS:
            contender.lap(row.made, case.folder)
            row.note(memory_of(contender, gpus))
            if row.made % EVERY == 0:
                yield f"{row.made} cycles: " + ", ".join(f"{name} {gb(s[-1])} GB" for name, s in row.series.items())
    bench.record["leak"]["cycles made"] = row.made
    yield f"{row.made} of {wanted} cycles" + ("" if row.made == wanted else ": the time was up") + "\n"
    yield from _table(bench, row)


def _table(bench: Bench, row: Row) -> Iterator[str]:
    if row.made < LEAST:
        yield f"too few for a verdict, {LEAST} or more are needed"
        return
    yield "| | first quarter GB | last quarter GB | change | kB a cycle | within 1 % |"
    yield "|---|---|---|---|---|---|"
    for name, series in row.series.items():
        growth = growth_of(series)
        bench.record["leak"][name] = {**asdict(growth), "verdict": growth.verdict}
        change = f"{growth.share:+.2%} | {growth.rate / 1e3:+.1f}"
        yield f"| {name} | {gb(growth.first)} | {gb(growth.last)} | {change} | {growth.verdict} |"


def memory_of(contender: Contender, gpus: Gpus) -> Memory:
    """Memory of a squall's driver, of its workers, and of all GPUs where there are some; bytes.

    Private is resident memory less what is shared, such as the pages of Ray's object store that were touched so far.
    """
    driver, *others = contender.memory.tree()
    workers = [memory for process in others if (memory := _of_worker(process)) is not None]
    own, device = driver.memory_info(), gpus.device_bytes()
    found = {
        "driver RSS": own.rss,
        "driver private": own.rss - own.shared,
        "workers RSS": sum(one.rss for one in workers),
        "workers private": sum(one.rss - one.shared for one in workers),
    }
    return found if device is None else {**found, "device memory": device}


def _of_worker(process: psutil.Process) -> Any:
    """Memory of a worker; None for another process of Ray, some of which come and go."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        if " ".join(process.cmdline()).startswith("ray::Worker"):
            return process.memory_info()
    return None
