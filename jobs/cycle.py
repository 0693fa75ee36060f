"""One cycle, from frames to a published forecast: inputs, draft, blocks, check, publish, or nothing at all."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from threading import current_thread
from time import monotonic, sleep

import numpy as np

from jobs.drive import Drive, Progress
from jobs.frames import SharedFrames, share_frames
from jobs.pool import Pool
from jobs.prepare import Prepared
from jobs.trace import Activity, activities_of
from pipelines.cycles import find_cycle
from pipelines.errors import AlreadyPublishedError, IncompleteError, NotYetError
from pipelines.run import BlockResult
from pipelines.sink import Draft, abort, describe, expire, make_draft, publish, sweep, write_block
from pipelines.source import Cycle, Source, check_missing, find_inputs
from pipelines.spans import Seconds, Span, Stopwatch
from pipelines.tiling import Block

_POLL_SECONDS = 1.0


class Status(StrEnum):
    """What became of a cycle."""

    PUBLISHED = "published"
    GAPS = "published with gaps"
    ALREADY = "already published"


@dataclass(frozen=True)
class CycleReport:
    """What a cycle did and what it took; times in seconds, `stages` summed over workers.

    `total_seconds` is the time to product: from the start of the cycle to its publication. `activities` are what driver
    and workers did when.
    """

    product: str
    reference_time: np.datetime64
    status: Status
    path: str
    frame_times: tuple[np.datetime64, ...] = ()
    blocks: int = 0
    workers: int = 0
    tiles_run: int = 0
    tiles_reused: int = 0
    bytes_written: int = 0
    missing_share: float = 0.0
    gaps: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    note: str = ""
    stages: Seconds = field(default_factory=Seconds)
    wait_seconds: float = 0.0
    publish_seconds: float = 0.0
    total_seconds: float = 0.0
    activities: tuple[Activity, ...] = field(default=(), repr=False)

    @property
    def reused_share(self) -> float:
        return self.tiles_reused / max(1, self.tiles_run + self.tiles_reused)


def run_cycle(
    prepared: Prepared,
    pool: Pool,
    reference_time: np.datetime64 | None = None,
    replace_published: bool = False,
    progress: Progress = lambda settled, total, results: None,
) -> CycleReport:
    """The report of a cycle that is published now, or was before.

    Args:
        reference_time: UTC; None = the newest frame of the store.
        replace_published: publish a revision if the cycle stands already.
        progress: called as blocks are settled.

    Raises:
        InputError: the frames are not there or not fit for use.
        IncompleteError: blocks were given up (names them) and the product refuses gaps.
        OutputError: the forecast could not be written. After any error nothing was published.
    """
    start, watch = monotonic(), Stopwatch()
    with watch("wait"):
        source, cycle = wait_for_inputs(prepared, reference_time)
    waited = monotonic() - start
    with watch("sweep"):
        sweep(prepared.product.output.store, prepared.product.name)
    try:
        with _draft(prepared, cycle, replace_published) as draft, ThreadPoolExecutor(1) as side:
            frames = share_frames(source, cycle, prepared.plan.tiling, side, watch, at_once=prepared.gpu)
            described = side.submit(_describe, prepared, cycle, draft, watch)
            with watch("blocks"):
                report = _fill(prepared, pool, cycle, draft, frames, start, progress)
            described.result()
            publishing = monotonic()
            with watch("publish"):
                path = publish(draft, _outcome(report), replace_published).path
            done = monotonic()
    except AlreadyPublishedError as error:
        return _already(prepared, cycle, str(error))
    _expire(prepared, cycle)
    return replace(
        report,
        path=path,
        wait_seconds=waited,
        publish_seconds=done - publishing,
        total_seconds=done - start,
        activities=(
            *activities_of([Span("cycle", start, done, current_thread().name), *watch.spans]),
            *report.activities,
        ),
    )


def wait_for_inputs(prepared: Prepared, reference_time: np.datetime64 | None) -> tuple[Source, Cycle]:
    """The store as it stands and the cycle's frames in it, looked for until they are there or `input.wait` has passed.

    Raises:
        InputError: the frames are not there or not fit for use.
    """
    give_up = monotonic() + prepared.product.input.wait.total_seconds()
    while True:
        try:
            source = prepared.source.refresh()
            return source, find_inputs(source, prepared.product, reference_time)
        except NotYetError:
            if monotonic() >= give_up:
                raise
            sleep(_POLL_SECONDS)


@contextmanager
def _draft(prepared: Prepared, cycle: Cycle, replace_published: bool) -> Iterator[Draft]:
    """A draft of the cycle, removed if it does not come to be published."""
    product = prepared.product
    draft = make_draft(
        product.output.store, product.name, cycle.reference_time, prepared.layout, replace=replace_published
    )
    try:
        yield draft
    except BaseException:
        abort(draft)
        raise


def _describe(prepared: Prepared, cycle: Cycle, draft: Draft, watch: Stopwatch) -> None:
    grid, leads = prepared.source.grid, prepared.product.leads
    with watch("describe"):
        describe(draft, grid, leads, prepared.attributes, prepared.provenance(cycle))


def _already(prepared: Prepared, cycle: Cycle, note: str) -> CycleReport:
    """The report of a cycle that another run has published."""
    product = prepared.product
    found = find_cycle(product.output.store, product.name, cycle.reference_time)
    path = "" if found is None else found.path
    return CycleReport(product.name, cycle.reference_time, Status.ALREADY, path, note=note)


def _fill(
    prepared: Prepared, pool: Pool, cycle: Cycle, draft: Draft, frames: SharedFrames, start: float, progress: Progress
) -> CycleReport:
    """The draft with every shard written, and what it took.

    Raises:
        IncompleteError: blocks were given up and the product refuses gaps.
    """
    tiling, deadline = prepared.plan.tiling, prepared.product.deadline
    blocks = tiling.blocks()
    drive = Drive(
        pool,
        blocks,
        lambda block: (cycle, draft, *frames.of(tiling.reads(block))),
        None if deadline is None else start + deadline.total_seconds(),
        progress,
    )
    try:
        given_up = drive.run()
    except BaseException:
        drive.recall()
        raise
    results = [drive.results[index] for index in sorted(drive.results)]
    _check_missing(prepared, cycle, results, complete=not given_up)
    gaps = _leave_gaps(prepared, draft, [(blocks[index], why) for index, why in sorted(given_up.items())])
    return _report(prepared, cycle, blocks, results, gaps)


def _check_missing(prepared: Prepared, cycle: Cycle, results: list[BlockResult], complete: bool) -> None:
    if complete:
        counts = np.sum([result.missing for result in results], axis=0)
        cells = prepared.layout.shape[1] * prepared.layout.shape[2]
        spec = prepared.product.input
        check_missing(counts, cells, spec.max_missing, cycle, spec.missing_frame)


def _leave_gaps(prepared: Prepared, draft: Draft, given_up: list[tuple[Block, str]]) -> tuple[str, ...]:
    """Fills the blocks that were given up with missing values, if the product allows gaps."""
    gaps = tuple(f"{block}: {why}" for block, why in given_up)
    if gaps and prepared.product.output.incomplete == "refuse":
        raise IncompleteError("not published, the product refuses gaps (output.incomplete):\n  " + "\n  ".join(gaps))
    layout = prepared.layout
    for block, _ in given_up:
        shape = (layout.shape[0], *block.window.shape)
        write_block(draft, block.window, np.full(shape, layout.fill_value, layout.dtype))
    return gaps


def _report(
    prepared: Prepared, cycle: Cycle, blocks: tuple[Block, ...], results: list[BlockResult], gaps: tuple[str, ...]
) -> CycleReport:
    done_cells = sum(blocks[result.block].window.cells for result in results)
    missing = sum(result.missing[-1] for result in results)
    return CycleReport(
        product=prepared.product.name,
        reference_time=cycle.reference_time,
        status=Status.GAPS if gaps else Status.PUBLISHED,
        path="",
        frame_times=cycle.frame_times,
        blocks=len(blocks),
        workers=prepared.workers,
        tiles_run=sum(result.tiles_run for result in results),
        tiles_reused=sum(result.tiles_reused for result in results),
        bytes_written=sum(result.bytes_written for result in results),
        missing_share=missing / max(1, done_cells),
        gaps=gaps,
        stages=sum((result.seconds for result in results), Seconds()),
        engines=tuple(sorted({result.engine for result in results})),
        activities=activities_of(results=results),
    )


def _outcome(report: CycleReport) -> dict[str, str | int | float]:
    """What the published store says of itself: how complete it is. Nothing that differs from run to run."""
    gaps: dict[str, str | int | float] = {"gaps": "; ".join(gap.split(":")[0] for gap in report.gaps)}
    done = report.blocks - len(report.gaps)
    completeness: dict[str, str | int | float] = {
        "completeness": done / report.blocks,
        "missing_share_of_newest_frame": report.missing_share,
        "engines": "; ".join(report.engines),
    }
    return completeness | (gaps if report.gaps else {})


def _expire(prepared: Prepared, cycle: Cycle) -> None:
    keep = prepared.product.output.keep
    if keep is not None:
        expire(prepared.product.output.store, prepared.product.name, keep, cycle.reference_time)
