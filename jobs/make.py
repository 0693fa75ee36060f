"""A cycle made whole: draft, metadata and shards, check, publication; or nothing at all.

A nowcast has the blocks made by all workers of a pool (jobs/cycle.py), a hindcast makes whole cycles in each worker
(jobs/hindcast.py); what is checked, and in which order, is the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from threading import current_thread
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from jobs.trace import Activity, activities_of
from pipelines.errors import IncompleteError, PipelineError
from pipelines.frames import text_of
from pipelines.memory import Memory, together
from pipelines.product import format_duration
from pipelines.run import BlockResult
from pipelines.sink import Draft, abort, describe, make_draft, point_latest, publish, write_block
from pipelines.source import Cycle, check_missing
from pipelines.spans import Seconds, Span, Stopwatch
from pipelines.tiling import Block

if TYPE_CHECKING:  # it imports the worker, which makes cycles
    from jobs.prepare import Prepared


class Status(StrEnum):
    """What became of a cycle."""

    PUBLISHED = "published"
    GAPS = "published with gaps"
    ALREADY = "already published"
    FAILED = "failed"


@dataclass(frozen=True)
class CycleReport:
    """What a cycle did and what it took; times in seconds, `stages` summed over workers.

    `total_seconds` is the time to product: from the start of the cycle to its publication. `memory` is that of all
    workers. `missing_share` is that of the newest frame, of blocks that were done. `activities` are what driver and
    workers did when. `blank_leads` are lead times at which every cell is missing. `warnings` say what is wrong with a
    published cycle.
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
    blank_leads: tuple[timedelta, ...] = ()
    gaps: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    note: str = ""
    warnings: tuple[str, ...] = ()
    stages: Seconds = field(default_factory=Seconds)
    wait_seconds: float = 0.0
    publish_seconds: float = 0.0
    total_seconds: float = 0.0
    memory: Memory = field(default_factory=Memory)
    activities: tuple[Activity, ...] = field(default=(), repr=False)

    @property
    def reused_share(self) -> float:
        return self.tiles_reused / max(1, self.tiles_run + self.tiles_reused)


@dataclass(frozen=True)
class Filled:
    """What came of the blocks of a draft: results, and the reasons of those that were given up, by index.

    Attributes:
        whole: shards that were checked, as `check_block` gives them.
    """

    results: Sequence[BlockResult]
    given_up: Mapping[int, str] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)


def make_cycle(
    prepared: "Prepared",
    cycle: Cycle,
    fill: Callable[[Draft], Filled],
    start: float,
    watch: Stopwatch,
    replace_published: bool = False,
    point: bool = True,
) -> CycleReport:
    """The report of a cycle that is published now.

    Args:
        fill: writes the shards and, by `describe_cycle`, the metadata of a draft.
        start: of the cycle on the clock of `monotonic`, seconds.
        watch: of what is done beside the blocks; publication is added.
        replace_published: publish a revision if the cycle stands already.
        point: move `latest` too.

    Raises:
        AlreadyPublishedError: the cycle stands already.
        InputError: a frame is not fit for use.
        IncompleteError: blocks were given up (names them) and the product refuses gaps, or all were.
        OutputError: the forecast could not be written. After any error nothing was published.
    """
    with _draft(prepared, cycle, replace_published) as draft:
        filled = fill(draft)
        blocks = prepared.plan.tiling.blocks()
        _check_missing(prepared, cycle, filled)
        gaps = _leave_gaps(prepared, draft, [(blocks[index], why) for index, why in sorted(filled.given_up.items())])
        report = _report(prepared, cycle, blocks, filled.results, gaps)
        publishing = monotonic()
        with watch("publish"):
            path = publish(draft, _outcome(report), replace_published, point=False, whole=filled.whole).path
            late = _point(prepared) if point else ()
        done = monotonic()
    spans = [Span("cycle", start, done, current_thread().name), *watch.spans]
    return replace(
        report,
        path=path,
        warnings=(*_absent(cycle), *_blank(prepared, report), *late),
        publish_seconds=done - publishing,
        total_seconds=done - start,
        activities=(*activities_of(spans), *report.activities),
    )


def describe_cycle(prepared: "Prepared", cycle: Cycle, draft: Draft, watch: Stopwatch) -> None:
    """Writes the metadata and coordinates of a cycle."""
    with watch("describe"):
        describe(draft, prepared.template, prepared.provenance(cycle))


@contextmanager
def _draft(prepared: "Prepared", cycle: Cycle, replace_published: bool) -> Iterator[Draft]:
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


def _check_missing(prepared: "Prepared", cycle: Cycle, filled: Filled) -> None:
    if not filled.given_up:
        counts = np.sum([result.missing for result in filled.results], axis=0)
        cells = prepared.layout.shape[1] * prepared.layout.shape[2]
        spec = prepared.product.input
        check_missing(counts, cells, spec.max_missing, cycle, spec.missing_frame)


def _leave_gaps(prepared: "Prepared", draft: Draft, given_up: list[tuple[Block, str]]) -> tuple[str, ...]:
    """Fills the blocks that were given up with missing values, if the product allows gaps and some block was done."""
    gaps = tuple(f"{block}: {why}" for block, why in given_up)
    if len(gaps) == len(prepared.plan.tiling.blocks()):
        raise IncompleteError("not published, no block was done:\n  " + "\n  ".join(gaps))
    if gaps and prepared.product.output.incomplete == "refuse":
        raise IncompleteError("not published, the product refuses gaps (output.incomplete):\n  " + "\n  ".join(gaps))
    layout = prepared.layout
    for block, _ in given_up:
        shape = (layout.shape[0], *block.window.shape)
        write_block(draft, block.window, np.full(shape, layout.fill_value, layout.dtype), instead=True)
    return gaps


def _point(prepared: "Prepared") -> tuple[str, ...]:
    """Moves `latest` to the newest cycle; a warning if it stays, for the cycle is published all the same."""
    product = prepared.product
    try:
        point_latest(product.output.store, product.name)
    except (OSError, PipelineError) as error:
        return (f"latest was not moved, the next run tries again: {error}",)
    return ()


def _absent(cycle: Cycle) -> tuple[str, ...]:
    """A warning if the model was given frames as missing that are not there."""
    times = ", ".join(map(text_of, cycle.missing_times))
    return (f"not there, and given to the model as missing (input.missing_frame): {times}",) if times else ()


def _blank(prepared: "Prepared", report: CycleReport) -> tuple[str, ...]:
    """A warning if a lead time holds no value; the newest frame has some, or there would be no forecast."""
    if not report.blank_leads:
        return ()
    model, is_all = prepared.package.contract, report.blank_leads == prepared.product.leads
    where = "of the forecast" if is_all else f"at lead time(s) {_listed(report.blank_leads)}"
    share = f"{1 - report.missing_share:.1%} of the newest frame has values"
    return (f"every cell {where} is missing, but {share}: the model {model.name} {model.version} gave none",)


def _blank_leads(prepared: "Prepared", results: Sequence[BlockResult], gaps: tuple[str, ...]) -> tuple[timedelta, ...]:
    """Lead times without a value in any block; none if blocks are not there, for they may have had some."""
    if gaps:
        return ()
    has_values = np.any([result.has_values for result in results], axis=0)
    return tuple(lead for lead, known in zip(prepared.product.leads, has_values, strict=True) if not known)


def _listed(leads: Sequence[timedelta]) -> str:
    return ", ".join(map(format_duration, leads))


def _report(
    prepared: "Prepared",
    cycle: Cycle,
    blocks: tuple[Block, ...],
    results: Sequence[BlockResult],
    gaps: tuple[str, ...],
) -> CycleReport:
    done_cells = sum(blocks[result.block].window.cells for result in results)
    missing = sum(result.missing[-1] for result in results)
    return CycleReport(
        product=prepared.product.name,
        reference_time=cycle.reference_time,
        status=Status.GAPS if gaps else Status.PUBLISHED,
        path="",
        frame_times=cycle.found_times,
        blocks=len(blocks),
        workers=prepared.workers,
        tiles_run=sum(result.tiles_run for result in results),
        tiles_reused=sum(result.tiles_reused for result in results),
        bytes_written=sum(result.bytes_written for result in results),
        missing_share=missing / max(1, done_cells),
        blank_leads=_blank_leads(prepared, results, gaps),
        gaps=gaps,
        stages=sum((result.seconds for result in results), Seconds()),
        engines=tuple(sorted({result.engine for result in results})),
        memory=together({result.worker: result.memory for result in results}.values()),
        activities=activities_of(results=results),
    )


def _outcome(report: CycleReport) -> dict[str, str | int | float]:
    """What the published store says of itself: how complete it is. Nothing that differs from run to run."""
    done = report.blocks - len(report.gaps)
    said: dict[str, str | int | float] = {"completeness": done / report.blocks}
    if not report.gaps:
        said["missing_share_of_newest_frame"] = report.missing_share
    said["engines"] = "; ".join(report.engines)
    if report.gaps:
        said["gaps"] = "; ".join(gap.split(": ")[0] for gap in report.gaps)
    if report.blank_leads:
        said["lead_times_without_values"] = _listed(report.blank_leads)
    return said
