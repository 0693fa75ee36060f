"""Section: is the forecast that squall publishes the forecast of its network, code by code?

The reference is made tile by tile in this process: one tile after the other, each run, none reused, no threads. Reuse
cannot be switched off in a product, so this is also what tells whether it changes anything.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import Bench
from benchmarks.cases import Case
from benchmarks.codes import Apart, compare, open_published
from benchmarks.laps import Ran, run_laps
from benchmarks.ours import usable_times
from engines.base import Engine
from jobs.engine import batch_spec, open_engine
from jobs.prepare import Prepared
from pipelines.source import Cycle, find_inputs
from pipelines.tiling import Block, Tiling

Codes = NDArray[np.generic]
GOAL = "bitwise where the tactic does not depend on the batch, otherwise within one code"
WHAT = "All cells of all lead times of one cycle are compared, for a halo is never less than the radius."


def exact(bench: Bench) -> Iterator[str]:
    """Published codes against those of the same network by other ways."""
    yield f"Goal: {GOAL}. {WHAT}\n"
    yield "| cycle | squall | against | cells | with rain | differ | by more than 1 | most codes | |"
    yield "|---|---|---|---|---|---|---|---|---|"
    bench.record["exact"] = {}
    for grid in ("fmi", "mrms"):
        yield from _one_grid(bench, grid)


def _one_grid(bench: Bench, grid: str) -> Iterator[str]:
    case, ran = bench.case(grid), _publish(bench, bench.case(grid))
    prepared, tiling = case.prepared, case.prepared.plan.tiling
    by = f"{_crew(ran)}, tile {tiling.tile[0]} x {tiling.tile[1]}, halo {tiling.halo} for radius {_radius(case)}"
    ours = open_published(ran.facts[0]["path"])
    if prepared.workers > 1:
        alone = _publish(bench, bench.case(grid, alone=True))
        yield _row(bench, grid, by, _crew(alone), compare(ours, open_published(alone.facts[0]["path"])))
    cycle = find_inputs(prepared.source, prepared.product, usable_times(prepared)[0])
    loop = forecast_plainly(prepared, bench.engine(case).engine, tiling, cycle)
    yield _row(bench, grid, by, "the same engine file, tile by tile, no reuse", compare(ours, loop))
    if grid == "fmi":
        with _whole_frame(prepared) as (engine, whole):
            codes = forecast_plainly(prepared, engine, whole, cycle)
        yield _row(bench, grid, by, f"the whole frame {whole.tile[0]} x {whole.tile[1]} at once", compare(ours, codes))


def _publish(bench: Bench, case: Case) -> Ran:
    """The first cycle of a case, published by squall."""
    return run_laps(bench, case, "traced", [0])


def _crew(ran: Ran) -> str:
    facts = ran.facts[0]
    return f"{facts['workers']} worker(s), {facts['run']} tiles run, {facts['reused']} reused"


def _radius(case: Case) -> str:
    return f"{case.prepared.package.contract.tile.radius}"


@contextmanager
def _whole_frame(prepared: Prepared) -> Iterator[tuple[Engine, Tiling]]:
    """An engine of the same graph in the same precision for the whole padded frame in one piece.

    It is another engine file, for an engine is built for one shape; TensorRT may choose other kernels for it.
    """
    tiling, order = prepared.plan.tiling, prepared.setup.order
    whole = Tiling(tiling.grid, tiling.frame, tiling.grid, 0, tiling.stride)
    frames = order.spec.profiles[0].opt[1]
    engine = open_engine(replace(order, spec=batch_spec((1, frames, *whole.tile), order.model.precision))).engine
    try:
        yield engine, whole
    finally:
        engine.close()


def forecast_plainly(prepared: Prepared, engine: Engine, tiling: Tiling, cycle: Cycle) -> Codes:
    """Packed codes (lead, y, x) of a cycle by a plain loop over the tiles of a tiling."""
    setup = prepared.setup
    codes = np.empty((len(setup.leads), *tiling.grid), setup.encoder.dtype)
    for block in tiling.blocks():
        _fill_block(prepared, engine, tiling, block, cycle, codes[:, *block.window.slices])
    return codes


def _fill_block(prepared: Prepared, engine: Engine, tiling: Tiling, block: Block, cycle: Cycle, codes: Codes) -> None:
    """The codes (lead, y, x) of a block."""
    setup, seen = prepared.setup, tiling.reads(block)
    raw = prepared.source.read(cycle, seen)
    for tile in tiling.tiles(block):
        given = setup.decoder.decode(raw[:, *tile.window.within(seen).slices])
        core = tile.core.within(tile.window).slices
        values = engine(given[None])[0][list(setup.leads)][:, *core]
        setup.encoder.encode(values, codes[:, *tile.core.within(block.window).slices])
    if setup.mask_from_input:
        setup.encoder.mask(codes, setup.decoder.is_missing(raw[-1][block.window.within(seen).slices]))


def _row(bench: Bench, grid: str, by: str, against: str, found: Apart) -> str:
    kept = {"squall": by, "against": against, **asdict(found), "verdict": found.verdict}
    bench.record["exact"].setdefault(grid, []).append(kept)
    return (
        f"| {grid} | {by} | {against} | {found.cells} | {found.wet / found.cells:.1%} | {found.differing} | "
        f"{found.beyond} | {found.most} | {found.verdict} |"
    )
