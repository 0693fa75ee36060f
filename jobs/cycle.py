"""One cycle on all workers of a pool: inputs, then draft, blocks, check and publication, or nothing at all."""

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic, sleep
from typing import Any

import numpy as np

from jobs import clock
from jobs.checks import Checks
from jobs.drive import Drive
from jobs.frames import SharedFrames, share_frames
from jobs.make import CycleReport, Filled, Status, describe_cycle, make_cycle
from jobs.pool import Pool
from jobs.prepare import Prepared
from pipelines.cycles import find_cycle
from pipelines.errors import AlreadyPublishedError, InputError, NotYetError, OutputError, PipelineError
from pipelines.frames import text_of
from pipelines.run import BlockResult
from pipelines.sink import Draft, expire, refuse_published, sweep
from pipelines.source import Cycle, Source, arrived, find_inputs
from pipelines.spans import Stopwatch
from pipelines.tiling import Block

__all__ = ["CycleReport", "Progress", "Status", "run_cycle", "wait_for_inputs"]

_POLL_SECONDS = 1.0

Progress = Callable[[int, int, Sequence[BlockResult]], None]
"""Called with blocks settled, blocks in all, and the results so far."""


def run_cycle(
    prepared: Prepared,
    pool: Pool,
    reference_time: np.datetime64 | None = None,
    replace_published: bool = False,
    progress: Progress = lambda settled, total, results: None,
) -> CycleReport:
    """The report of a cycle that is published now, or was before.

    Args:
        reference_time: UTC; None = the newest frame of the store, which may not be of a time to come. Where the time
            axis is laid out ahead, frames of which nothing is stored are not there yet.
        replace_published: publish a revision if the cycle stands already.
        progress: called as blocks are settled.

    Raises:
        InputError: the frames are not there or not fit for use.
        IncompleteError: blocks were given up (names them) and the product refuses gaps, or all were.
        OutputError: the forecast could not be written. After any error nothing was published.
    """
    start, watch = monotonic(), Stopwatch()
    with watch("wait"):
        source, cycle = wait_for_inputs(prepared, reference_time)
    waited = monotonic() - start

    def fill(frames: SharedFrames, draft: Draft) -> Filled:
        _sweep(prepared, watch)  # while frames are read
        with Checks(draft, watch) as checks, watch("blocks"):
            board = _Board(draft, len(prepared.plan.tiling.blocks()), progress, watch, checks)
            return _drive(prepared, pool, cycle, frames, board, _deadline(prepared, start))

    try:
        if not replace_published:
            refuse_published(prepared.product.output.store, prepared.product.name, cycle.reference_time)
        shared = share_frames(source, cycle, prepared.plan.tiling, watch, at_once=prepared.gpu)
        with closing(shared) as frames:  # read from now on, also while the draft is made
            report = make_cycle(prepared, cycle, partial(fill, frames), start, watch, replace_published)
    except AlreadyPublishedError as error:
        _sweep(prepared, watch)
        return _already(prepared, cycle, str(error))
    except OutputError:
        with suppress(OutputError):  # there may be no room for a draft before what dead runs left is removed
            _sweep(prepared, watch)
        raise
    return replace(report, wait_seconds=waited, warnings=(*report.warnings, *_expire(prepared, cycle)))


def _deadline(prepared: Prepared, start: float) -> float | None:
    """When what is left of the blocks is given up, on the monotonic clock."""
    after = prepared.product.deadline
    return None if after is None else start + after.total_seconds()


def _sweep(prepared: Prepared, watch: Stopwatch) -> None:
    with watch("sweep"):
        sweep(prepared.product.output.store, prepared.product.name)


def wait_for_inputs(prepared: Prepared, reference_time: np.datetime64 | None) -> tuple[Source, Cycle]:
    """The store as it stands and the cycle's frames in it, looked for until they are there or `input.wait` has passed.

    Raises:
        InputError: the frames are not there or not fit for use.
    """
    give_up = monotonic() + prepared.product.input.wait.total_seconds()
    while True:
        try:
            source = prepared.source.refresh()
            if reference_time is None:
                source = arrived(source, clock.now(), clock.AHEAD)
            cycle = find_inputs(source, prepared.product, reference_time)
            break
        except NotYetError:
            if monotonic() >= give_up:
                raise
            sleep(_POLL_SECONDS)
    if reference_time is None:
        _refuse_future(cycle, clock.now(), source.where)
    return source, cycle


def _refuse_future(cycle: Cycle, now: np.datetime64, where: str) -> None:
    """Raises InputError if the newest frame is of a time to come: `latest` would stay at it, and `keep` start there."""
    if cycle.reference_time > now + clock.AHEAD:
        raise InputError(
            f"the newest frame of {where} is of {text_of(cycle.reference_time)}, and now it is {text_of(now)}: a time "
            "or the clock of this machine is wrong; --time makes the cycle of an earlier frame"
        )


def _already(prepared: Prepared, cycle: Cycle, note: str) -> CycleReport:
    """The report of a cycle that another run has published."""
    product = prepared.product
    found = find_cycle(product.output.store, product.name, cycle.reference_time)
    path = "" if found is None else found.path
    return CycleReport(product.name, cycle.reference_time, Status.ALREADY, path, note=note)


def _drive(
    prepared: Prepared, pool: Pool, cycle: Cycle, frames: SharedFrames, board: "_Board", give_up: float | None
) -> Filled:
    """The blocks of a draft, each written by a worker of the pool or given up; its metadata meanwhile.

    Args:
        give_up: when, on the monotonic clock.
    """
    tiling, draft = prepared.plan.tiling, board.draft

    def send(worker: Any, block: Block) -> Any:
        return worker.run.remote(block, cycle, draft, *frames.of(tiling.reads(block)))

    Drive(
        pool,
        tiling.blocks(),
        send,
        landed=board.landed,
        gave_up=board.gave_up,
        meanwhile=lambda: describe_cycle(prepared, cycle, draft, board.watch),
        deadline=give_up,
    ).run()
    return board.filled()


@dataclass
class _Board:
    """What has come of the blocks of a draft so far."""

    draft: Draft
    blocks: int
    progress: Progress
    watch: Stopwatch
    checks: Checks
    _results: dict[int, BlockResult] = field(default_factory=dict)
    _given_up: dict[int, str] = field(default_factory=dict)

    def landed(self, block: Block, result: BlockResult, worker: str) -> None:
        self.checks.begin(block)
        self._results[block.index] = replace(result, worker=worker)
        self._tell()

    def gave_up(self, block: Block, reason: str) -> None:
        self._given_up[block.index] = reason
        self._tell()

    def filled(self) -> Filled:
        """All of it, once the last check is done.

        Raises:
            OutputError: a shard cannot be read.
        """
        return Filled([self._results[index] for index in sorted(self._results)], self._given_up, self.checks.whole())

    def _tell(self) -> None:
        self.progress(len(self._results) + len(self._given_up), self.blocks, list(self._results.values()))


def _expire(prepared: Prepared, cycle: Cycle) -> tuple[str, ...]:
    """Removes old cycles; a warning if they stay, for the new one is published all the same."""
    output = prepared.product.output
    try:
        if output.keep is not None:
            expire(output.store, prepared.product.name, output.keep, cycle.reference_time)
    except (OSError, PipelineError) as error:
        return (f"cycles older than output.keep were not removed, the next run tries again: {error}",)
    return ()
