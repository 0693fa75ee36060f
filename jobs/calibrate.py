"""Measures the pace of a product on this machine, on blocks that are thrown away."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engines import cuda
from engines.cores import usable_cores
from engines.scratch import scratch_folder
from jobs import clock
from jobs.pace import keep_pace
from jobs.pool import Resources
from jobs.prepare import Prepared, load, prepare
from jobs.worker import Worker
from pipelines.errors import InputError
from pipelines.planner import Pace
from pipelines.run import BlockResult
from pipelines.sink import make_draft
from pipelines.source import arrived, find_inputs
from pipelines.tiling import Tiling

BLOCKS = 6  # that a measurement makes, after one that is not counted


def calibrate(file: Path, overrides: Sequence[str]) -> Pace:
    """The pace of a product's model on this machine, now kept for its planner.

    Raises:
        ConfigError, InputError, EngineError: of the product, its frames, or its engine.
    """
    loaded = load(file, overrides, all_times=False)
    pace = measure_pace(prepare(loaded, Resources(cuda.device_count(), usable_cores())))
    keep_pace(loaded.package, pace)
    return pace


def measure_pace(prepared: Prepared) -> Pace:
    """Makes blocks of the newest cycle in this thread, one after the other, and throws them away.

    Raises:
        InputError: the frames cannot be read, or the blocks need no inference (all dry or missing).
        EngineError: the engine cannot be had.
    """
    cycle = find_inputs(arrived(prepared.source, clock.now(), clock.AHEAD), prepared.product)
    tiling, worker = prepared.plan.tiling, Worker(replace(prepared.setup, team=1))
    blocks = tiling.blocks()[:BLOCKS]
    with scratch_folder("squall-scratch-pace-") as folder:
        draft = make_draft(str(folder), prepared.product.name, cycle.reference_time, prepared.layout)
        results = [worker.run(block, cycle, draft, prepared.source) for block in (blocks[0], *blocks)][1:]
    return pace_of(results, tiling)


def pace_of(results: Sequence[BlockResult], tiling: Tiling) -> Pace:
    """The pace by the spans of blocks that were made one after the other.

    Raises:
        InputError: no tile was run.
    """
    inferred = sum(result.tiles_run for result in results) * tiling.tile[0] * tiling.tile[1]
    if not inferred:
        raise InputError("the newest frames are dry or missing all over, so there is no inference to measure")
    windows = [block.window for block in tiling.blocks()]
    cells = sum(windows[result.block].cells for result in results)
    spent = {stage: _seconds(results, stage) for stage in ("read", "infer", "decode", "lane", "pack", "write")}
    host = spent["read"] + spent["decode"] + spent["pack"] + spent["write"]
    return Pace((spent["infer"] - spent["decode"] - spent["lane"]) / inferred, host / cells)


def _seconds(results: Sequence[BlockResult], stage: str) -> float:
    return sum(span.seconds for result in results for span in result.spans if span.stage == stage)
