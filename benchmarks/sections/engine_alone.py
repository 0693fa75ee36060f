"""Sections: engines alone on the tiles of one cycle, and what the host has to do for a batch of theirs."""

from collections.abc import Iterator
from dataclasses import asdict

from benchmarks.bench import Bench


def host_overhead(bench: Bench) -> Iterator[str]:
    """Host overhead of a tile batch in Python."""
    if not bench.has_gpu:
        yield "no GPU: the host itself infers"
        return
    yield "| case | GPU ms a batch | enqueue ms | calls around it ms | together | goal |"
    yield "|---|---|---|---|---|---|"
    for case in (bench.case("mrms"), bench.case("wet", 2, many=True)):
        bare = bench.bare(case)
        share = (bare.enqueue + bare.around) / bare.gpu
        numbers = " | ".join(f"{seconds * 1e3:.3f}" for seconds in (bare.gpu, bare.enqueue, bare.around))
        bench.record.setdefault("host overhead", {})[case.name] = share
        yield f"| {case.name} | {numbers} | {share:.1%} | <= 5 % |"


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
