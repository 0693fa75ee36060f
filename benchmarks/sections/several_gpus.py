"""Section: one MRMS cycle split over several GPUs of this host, and backfills on them."""

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.laps import run_laps
from benchmarks.tables import busy_line
from engines import cuda

ALL = 9999  # cycles: as many as the store has


def several_gpus(bench: Bench) -> Iterator[str]:
    """One MRMS cycle and backfills on several GPUs of this host."""
    if cuda.device_count() < max(bench.gpus):
        yield f"{cuda.device_count()} GPU(s) here; --gpus asks for {max(bench.gpus)}"
        return
    work = (("mrms", "traced", list(range(bench.sizes.laps))), ("mrms", "backfill", [ALL] * 2),
            ("fmi_archive", "backfill", [ALL] * 2))  # fmt: skip
    yield "| case | GPUs | workers | s | cycles/s | speed-up | efficiency | |"
    yield "|---|---|---|---|---|---|---|---|"
    for grid, contender, laps in work:
        yield from _scaling(bench, grid, contender, laps)


def _scaling(bench: Bench, grid: str, contender: str, laps: list[int]) -> Iterator[str]:
    """A row for each number of GPUs, compared with the first."""
    case, first = bench.case(grid, many=contender == "backfill"), 0.0
    for count in bench.gpus:
        shown = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(count)))}
        ran = run_laps(bench, case, contender, laps, shown)
        first, facts = first or ran.median * bench.gpus[0], ran.facts[-1]
        rate, efficiency = facts.get("cycles", 1) / ran.median, first / (ran.median * count)
        bench.record.setdefault("several GPUs", []).append([grid, contender, count, ran.median, efficiency])
        yield (
            f"| {contender} {grid} | {count} | {facts['workers']} | {ran.median:.3f} | {rate:.2f} | "
            f"{efficiency * count / bench.gpus[0]:.2f} | {efficiency:.2f} | {busy_line(ran)} |"
        )
