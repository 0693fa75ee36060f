"""squall as the benchmark runs it, and the limit: its engine on the same tiles and nothing else."""

import mmap
import multiprocessing
from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.aside import set_aside
from engines.cores import usable_cores
from engines.ort import OrtEngine
from jobs.backfill import run_backfill
from jobs.cycle import run_cycle
from jobs.pool import Pool, Resources, cluster_resources, connect
from jobs.prepare import Prepared, load, prepare
from jobs.trace import Activity
from pipelines.cycles import newest_cycle
from pipelines.frames import Times
from pipelines.reuse import constant_key
from pipelines.source import Cycle, find_inputs
from pipelines.spans import Span

Start = Callable[[int, Path], Callable[[], dict[str, Any]]]


def squall(folder: Path) -> Start:
    """What `squall run` does, with driver and workers kept from cycle to cycle."""
    prepared, pool, times = _open(folder)

    def run(number: int) -> dict[str, Any]:
        report = run_cycle(prepared, pool, times[number])
        stages = {"read": report.stages.read, "infer": report.stages.infer, "write": report.stages.write}
        tiles = {"run": report.tiles_run, "reused": report.tiles_reused}
        return {"path": report.path, "publish": report.publish_seconds, **tiles, **stages}

    return lambda number, path: partial(run, number)


def traced(folder: Path) -> Start:
    """As squall, with what was done when; what the cycle before has published is set aside first, and not timed.

    All laps but the first one begin when all workers are ready.
    """
    prepared, pool, times = _open(folder)
    laps = count()

    def start(number: int, path: Path) -> Callable[[], dict[str, Any]]:
        set_aside(Path(prepared.product.output.store))
        if next(laps) and pool.starting:
            ray.wait(list(pool.starting), num_returns=len(pool.starting))
        return partial(run, number)

    def run(number: int) -> dict[str, Any]:
        report = run_cycle(prepared, pool, times[number % len(times)])
        activities = [[a.process, a.block, *astuple(a.span)] for a in report.activities]
        facts = {"path": report.path, "run": report.tiles_run, "reused": report.tiles_reused, "blocks": report.blocks}
        facts |= {"workers": report.workers, "pinned": report.memory.pinned, "device": report.memory.device}
        return facts | {"engines": report.engines, "activities": activities}

    return start


def activities_from(facts: dict[str, Any]) -> list[Activity]:
    """What `traced` tells of a cycle."""
    return [Activity(process, Span(*span), block) for process, block, *span in facts["activities"]]


def backfill(folder: Path) -> Start:
    """Many cycles of a product on warm workers, as `squall backfill` makes them; the number is how many."""
    prepared, pool, times = _open(folder, whole_cycles=True)
    output = prepared.product.output

    def start(number: int, path: Path) -> Callable[[], dict[str, Any]]:
        set_aside(Path(output.store))
        return partial(run, np.array(times[:number]))

    def run(some: Times) -> dict[str, Any]:
        tally = run_backfill(prepared, pool, some).tally
        if tally.published < len(some):
            raise RuntimeError(f"{len(some) - tally.published} of {len(some)} cycles failed: {tally.failures}")
        newest = newest_cycle(output.store, prepared.product.name)
        how = f"backfill, {prepared.cycles_in_flight} in flight"
        facts = {"cycles": tally.published, "how": how, "workers": prepared.workers}
        return facts | {"run": tally.tiles_run, "reused": tally.tiles_reused, "path": newest.path if newest else ""}

    return start


def _open(folder: Path, whole_cycles: bool = False) -> tuple[Prepared, Pool, list[np.datetime64]]:
    """A product on warm workers, and the reference times that its store has frames for."""
    loaded = load(folder / "product.yaml", [])
    connect()
    prepared = prepare(loaded, cluster_resources(), whole_cycles)
    return prepared, Pool(prepared.setup, prepared.workers, prepared.gpu), usable_times(prepared)


def usable_times(prepared: Prepared) -> list[np.datetime64]:
    """The reference times whose frames are all in the store, oldest first."""
    newest = find_inputs(prepared.source, prepared.product)
    history = newest.reference_time - newest.frame_times[0]
    return [time for time in prepared.source.times if time - history >= prepared.source.times[0]]


def tensors(prepared: Prepared, cycle: Cycle) -> list[np.ndarray]:
    """The decoded tiles (frame, h, w) of a cycle that reuse cannot save."""
    setup, tensors = prepared.setup, []
    for block in setup.tiling.blocks():
        seen = setup.tiling.reads(block)
        raw = prepared.source.read(cycle, seen)
        cuts = (raw[:, *tile.window.within(seen).slices] for tile in setup.tiling.tiles(block))
        tensors += [setup.decoder.decode(cut) for cut in cuts if constant_key(cut) is None]
    return tensors


class Bare:
    """The engine alone, in as many processes with as many threads as squall has workers; tiles wait in memory."""

    def __init__(self, prepared: Prepared, most_tiles: int, frames: int) -> None:
        fork = multiprocessing.get_context("fork")
        self.prepared, self._shape = prepared, (most_tiles, 1, frames, *prepared.setup.tiling.tile)
        memory = mmap.mmap(-1, int(np.prod(self._shape)) * 4)
        self._tiles = np.frombuffer(memory, np.float32).reshape(self._shape)
        self._next, self._count = fork.Value("i", 0), fork.Value("i", 0)
        self._gate = fork.Barrier(prepared.workers + 1)
        for _ in range(prepared.workers):
            fork.Process(target=self._work, daemon=True).start()

    def fill(self, tiles: list[np.ndarray]) -> None:
        for place, tile in zip(self._tiles, tiles, strict=False):
            place[0] = tile
        self._next.value, self._count.value = 0, len(tiles)

    def run(self) -> dict[str, Any]:
        self._gate.wait()
        self._gate.wait()
        return {"run": self._count.value}

    def _work(self) -> None:
        engine = OrtEngine(self.prepared.setup.order.model.path, self.prepared.setup.order.threads)
        engine.warm(self._shape[1:])
        while True:
            self._gate.wait()
            while (number := self._take()) < self._count.value:
                engine(self._tiles[number])
            self._gate.wait()

    def _take(self) -> int:
        with self._next.get_lock():
            self._next.value += 1
            return int(self._next.value) - 1


def bare(folder: Path) -> Start:
    """The limit of what squall can reach on the tiles that it has to run."""
    prepared = prepare(load(folder / "product.yaml", []), Resources(0, usable_cores()))
    times = usable_times(prepared)
    cycles = [find_inputs(prepared.source, prepared.product, time) for time in times]
    engine = Bare(prepared, prepared.plan.tiling.tile_count, len(cycles[0].frame_times))

    def fill(number: int, path: Path) -> Callable[[], dict[str, Any]]:
        tiles = tensors(prepared, cycles[number])
        engine.fill(tiles)
        return engine.run

    return fill
