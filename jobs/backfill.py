"""The cycles of an archive from a product file: `squall backfill FILE`, or `python -m jobs.backfill FILE` as a Ray job.

    interval ──▶ reference times ──▶ not published ──▶ groups ──▶ workers, whole cycles each ──▶ tally, ledger
     (a value of a few numbers)      (a day at once)   (about a second of work)

Memory does not grow with the number of cycles: times are computed as workers have room, and reports go into the ledger.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import ray

from jobs import clock
from jobs.drive import Drive
from jobs.hindcast import Group, GroupResult, Order, given_up_reports
from jobs.make import CycleReport, Status
from jobs.outcome import Exit
from jobs.pool import Pool, cluster_resources, connect, disconnect, the_same_command
from jobs.prepare import Loaded, Prepared, load, prepare
from jobs.raylet import RayGoneError
from pipelines.cycles import find_cycles
from pipelines.interval import ReferenceTimes, times_within
from pipelines.ledger import Ledger, Row
from pipelines.product import format_duration
from pipelines.sink import has_drafts, sweep
from pipelines.source import arrived
from pipelines.spans import Seconds

GROUP_SECONDS = 1.0  # of work in one call: the cost of a call, about a millisecond, vanishes in it
MOST_CYCLES = 512  # of a group, however fast they are
FLUSH_SECONDS = 10.0  # between parts of the ledger
NAMED = 8  # failures that a report names


@dataclass(frozen=True)
class Wanted:
    """Which cycles a backfill is to make; see `times_within`."""

    start: np.datetime64 | None = None
    stop: np.datetime64 | None = None
    every: np.timedelta64 | None = None
    replace_published: bool = False


@dataclass
class Tally:
    """What has become of the cycles of a backfill so far; `stages` in seconds, summed over workers.

    Attributes:
        already: published before, by an earlier run or somebody else.
        warned: published, but something is wrong with it; the ledger says what.
        failures: of the first few cycles that failed, time and reason.
    """

    cycles: int
    published: int = 0
    already: int = 0
    failed: int = 0
    warned: int = 0
    tiles_run: int = 0
    tiles_reused: int = 0
    bytes_written: int = 0
    stages: Seconds = field(default_factory=Seconds)
    publish_seconds: float = 0.0
    failures: list[tuple[np.datetime64, str]] = field(default_factory=list)

    @property
    def settled(self) -> int:
        return self.published + self.already + self.failed

    def add(self, reports: Sequence[CycleReport]) -> None:
        for report in reports:
            self.published += report.status in (Status.PUBLISHED, Status.GAPS)
            self.already += report.status is Status.ALREADY
            self.failed += report.status is Status.FAILED
            self.warned += bool(report.warnings)
            self.tiles_run += report.tiles_run
            self.tiles_reused += report.tiles_reused
            self.bytes_written += report.bytes_written
            self.stages += report.stages
            self.publish_seconds += report.publish_seconds
            if report.status is Status.FAILED and len(self.failures) < NAMED:
                self.failures.append((report.reference_time, report.note))


@dataclass(frozen=True)
class BackfillReport:
    """What a backfill did: its first and last reference time, what became of its cycles, and the seconds it took."""

    product: str
    store: str
    start: np.datetime64
    stop: np.datetime64
    workers: int
    tally: Tally
    seconds: float
    ledger: str
    note: str = ""

    @property
    def cycles_per_second(self) -> float:
        return self.tally.published / max(self.seconds, 1e-9)


Progress = Callable[[Tally], None]
"""Called when cycles are settled."""


def backfill(file: Path, overrides: Sequence[str], wanted: Wanted, progress: Progress) -> BackfillReport:
    """The report of the cycles of an interval, made on the cluster of RAY_ADDRESS or on a local Ray.

    Those published before are left alone. A cycle that fails by itself is recorded and does not stop the others.

    Raises:
        PipelineError, EngineError, RayGoneError: what would end every cycle; those published by then stay.
    """
    loaded = load(file, overrides)
    times = reference_times(loaded, wanted)
    connect()
    try:
        prepared = prepare(loaded, cluster_resources(), whole_cycles=True)
        return _on_workers(prepared, times, wanted.replace_published, progress)
    finally:
        disconnect()
        _sweep_up(loaded.product.output.store, loaded.product.name)


def _sweep_up(store: str, product: str) -> None:
    """Removes the drafts of workers that were stopped; their processes take a moment to end."""
    sweep(store, product)
    for _ in range(20):
        if not has_drafts(store, product):
            break
        sleep(0.1)
        sweep(store, product)


def reference_times(loaded: Loaded, wanted: Wanted) -> ReferenceTimes:
    """Those that are wanted; without an end up to the newest frame that is there, whatever the axis says.

    Raises:
        ConfigError, InputError: as `times_within` and `arrived`.
    """
    source = loaded.source if wanted.stop is not None else arrived(loaded.source, clock.now(), clock.AHEAD)
    return times_within(source.times, loaded.product.input, wanted.start, wanted.stop, wanted.every, source.where)


def _on_workers(
    prepared: Prepared, times: ReferenceTimes, replace_published: bool, progress: Progress
) -> BackfillReport:
    pool = Pool(prepared.setup, prepared.workers, prepared.gpu)
    try:
        return run_backfill(prepared, pool, times, replace_published, progress)
    finally:
        pool.close()


def run_backfill(
    prepared: Prepared,
    pool: Pool,
    times: ReferenceTimes,
    replace_published: bool = False,
    progress: Progress = lambda tally: None,
) -> BackfillReport:
    """The report of cycles that a pool has made.

    Raises:
        PipelineError, EngineError, RayGoneError: what would end every cycle; those published by then stay.
    """
    start, product = monotonic(), prepared.product
    sweep(product.output.store, product.name)
    order = ray.put(Order(secrets.token_hex(8), prepared, replace_published))
    work = Work(prepared, times, replace_published, progress)
    drive = Drive(pool, work.groups(), lambda one, group: one.make.remote(group, order), work.landed, work.gave_up)
    try:
        drive.run()
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{_so_far(work.tally)}; the same command goes on") from stop
    except RayGoneError as error:
        raise RayGoneError(f"{error}; {_so_far(work.tally)}, {the_same_command()} goes on") from error
    finally:
        work.ledger.flush()
    return BackfillReport(
        product=product.name,
        store=product.output.store,
        start=times[0],
        stop=times[-1],
        workers=prepared.workers,
        tally=work.tally,
        seconds=monotonic() - start,
        ledger=str(work.ledger.folder),
        note=_note(prepared, times[0]),
    )


def _so_far(tally: Tally) -> str:
    """What a run that was stopped has done for certain: workers may have published more than they reported."""
    return f"at least {tally.published} cycle(s) were published"


class Work:
    """The cycles of a backfill on their way: groups out, results in."""

    def __init__(self, prepared: Prepared, times: ReferenceTimes, replace_published: bool, progress: Progress) -> None:
        output, self._product = prepared.product.output, prepared.product.name
        self._store, self._times, self._replace = output.store, times, replace_published
        self._workers, self._in_flight, self._progress = prepared.workers, prepared.cycles_in_flight, progress
        self._size, self._flushed = self._in_flight, monotonic()
        self.tally = Tally(len(times))
        self.ledger = Ledger(output.store, self._product)

    def groups(self) -> Iterator[Group]:
        """Groups of the cycles to be made, each as large as the pace of earlier ones suggests."""
        open_cycles = self._open_cycles()
        while members := list(islice(open_cycles, self._fair_size())):
            yield Group(tuple(time for time, _ in members), tuple(revision for _, revision in members))

    def landed(self, group: Group, result: GroupResult, worker: str) -> None:
        self._size = next_size(len(group), result.seconds, self._in_flight)
        self._settle(result.reports)

    def gave_up(self, group: Group, reason: str) -> None:
        self._settle(given_up_reports(self._store, self._product, group, reason))

    def _open_cycles(self) -> Iterator[tuple[np.datetime64, int | None]]:
        """Reference times to be made and the revisions that stand; those published are counted, or made again."""
        times = (self._times[position] for position in range(len(self._times)))
        for time, found in find_cycles(self._store, self._product, times):
            if found is None or self._replace:
                yield time, None if found is None else found.revision
            else:
                self.tally.already += 1

    def _fair_size(self) -> int:
        """Cycles of the next group, few enough at the end that every worker has some."""
        left = len(self._times) - self.tally.settled
        return max(1, min(self._size, left // (2 * self._workers)))

    def _settle(self, reports: Sequence[CycleReport]) -> None:
        self.tally.add(reports)
        self.ledger.add([as_row(report) for report in reports])
        if monotonic() - self._flushed > FLUSH_SECONDS:
            self.ledger.flush()
            self._flushed = monotonic()
        self._progress(self.tally)


def outcome_of(report: BackfillReport) -> Exit:
    """How the command ends: some failed cycles are gaps of the archive, nothing but failed ones a failure."""
    if not report.tally.failed:
        return Exit.PUBLISHED
    return Exit.GAPS if report.tally.failed < report.tally.settled else Exit.FAILED


def next_size(cycles: int, seconds: float, least: int = 1) -> int:
    """Cycles of a group that will take about a second, after one of so many that took so long; at most twice as many.

    >>> next_size(1, 4.0), next_size(1, 0.1), next_size(10, 0.5), next_size(400, 0.1), next_size(4, 9.0, least=3)
    (1, 2, 20, 512, 3)
    """
    fitting = cycles * GROUP_SECONDS / max(seconds, 1e-9)
    return int(max(least, min(fitting, 2 * cycles, MOST_CYCLES)))


def as_row(report: CycleReport) -> Row:
    """A report as the ledger keeps it."""
    stages = report.stages
    return Row(
        product=report.product,
        reference_time=report.reference_time,
        status=str(report.status),
        reason="; ".join(report.warnings) or report.note,
        path=report.path,
        engine="; ".join(report.engines),
        tiles_run=report.tiles_run,
        tiles_reused=report.tiles_reused,
        bytes_written=report.bytes_written,
        missing_share=report.missing_share,
        read_seconds=stages.read,
        infer_seconds=stages.infer,
        write_seconds=stages.write,
        publish_seconds=report.publish_seconds,
        total_seconds=report.total_seconds,
        recorded_at=datetime.now(UTC),
    )


def _note(prepared: Prepared, first: np.datetime64) -> str:
    """A warning that cycles will not stay, if they will not."""
    keep, newest = prepared.product.output.keep, prepared.source.times[-1]
    if keep is None or first >= newest - np.timedelta64(keep):
        return ""
    return (
        f"output.keep is {format_duration(keep)}: the next `squall run` of this product removes cycles that are older; "
        "a hindcast that is to stay needs an output.store of its own"
    )


if __name__ == "__main__":
    from jobs.cli import backfill as command

    command()
