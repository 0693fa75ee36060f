"""Sections: engines alone on the tiles of one cycle, and what the host has to do for a batch of theirs."""

from collections.abc import Iterator
from dataclasses import asdict
from time import thread_time

import numpy as np

from benchmarks.bench import Bench
from benchmarks.cases import MEMBERS
from engines.base import OpenLane
from engines.spec import Shape
from jobs.outfit import open_lanes

HOST_LAPS = 50


def host_overhead(bench: Bench) -> Iterator[str]:
    """Host overhead of a tile batch in Python."""
    if not bench.has_gpu:
        yield "no GPU: the host itself infers"
        return
    yield "| case | batch | GPU ms a batch | processor ms of the host | share | goal |"
    yield "|---|---|---|---|---|---|"
    for case in (bench.case("mrms"), bench.case("wet", 2, MEMBERS, many=True)):
        gpu, shape = bench.bare(case).gpu, case.prepared.setup.order.spec.profiles[0].opt
        host = host_seconds(open_lanes(case.prepared.setup, bench.engine(case).engine)[0], shape)
        bench.record.setdefault("host overhead", {})[case.name] = host / gpu
        size = " x ".join(map(str, shape))
        yield f"| {case.name} | {size} | {gpu * 1e3:.3f} | {host * 1e3:.3f} | {host / gpu:.1%} | <= 5 % |"


def host_seconds(open_lane: OpenLane, shape: Shape) -> float:
    """Processor seconds of a thread to take a lane, send a batch and have its result, not to fill the lane; median."""
    return float(np.median([_host_seconds(open_lane, shape) for _ in range(HOST_LAPS)]))


def _host_seconds(open_lane: OpenLane, shape: Shape) -> float:
    started = thread_time()
    with open_lane(shape) as lane:
        taken = thread_time()
        lane.given[...] = 0
        filled = thread_time()
        lane.run()
    return thread_time() - filled + taken - started


def engines(bench: Bench) -> Iterator[str]:
    """Engines of the cases above, alone on the tiles of one cycle."""
    measured = [case for case in bench.cases.values() if case.name in bench.bares]
    yield "| case | tile | batch | blocks | workers | engine | s | ms a batch alone | in a row | GB/s in, out |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    rates = " / ".join(f"{rate / 1e9:.0f}" for rate in bench.link) if bench.has_gpu else "no GPU"
    for case in measured or [bench.case("mrms")]:
        supplied, tiling, bare = bench.engine(case), case.prepared.plan.tiling, bench.bare(case)
        bench.record.setdefault("bare", {})[case.name] = asdict(bare)
        yield (
            f"| {case.name} | {tiling.tile[0]} x {tiling.tile[1]} | {case.batch} | {len(tiling.blocks())} | "
            f"{case.prepared.workers} | {supplied.key.flavour} {supplied.key.precision} {supplied.how} | "
            f"{supplied.seconds:.1f} | {(bare.gpu or bare.core) * 1e3:.2f} | {bare.in_row * 1e3:.2f} | {rates} |"
        )
