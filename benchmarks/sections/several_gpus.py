"""Section: one MRMS cycle split over several GPUs of this host, and backfills on them."""

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.cases import Case
from benchmarks.laps import Ran, run_laps
from benchmarks.tables import busy_line
from engines import cuda


def several_gpus(bench: Bench) -> Iterator[str]:
    """One MRMS cycle, and backfills that are as many times as long, on several GPUs of this host."""
    bench.record["several GPUs"] = []
    if cuda.device_count() < max(bench.gpus):
        yield f"{cuda.device_count()} GPU(s) here; --gpus asks for {max(bench.gpus)}"
        return
    yield "| | GPUs | workers | cycles | s | cycles/s | speed-up | efficiency | |"
    yield "|---|---|---|---|---|---|---|---|---|"
    yield from _scaling(bench, bench.case("mrms"), "traced", 0)
    for grid, cycles in (("mrms_archive", bench.sizes.mrms_archive), ("fmi_archive", bench.sizes.fmi_archive)):
        yield from _scaling(bench, bench.case(grid, many=True), "backfill", cycles)


def _scaling(bench: Bench, case: Case, contender: str, cycles: int) -> Iterator[str]:
    """A row for each number of GPUs, compared with the first one.

    Args:
        cycles: of a lap on one GPU; 0 = a lap is one cycle, whatever there is to make it.
    """
    first = 0.0
    for count in bench.gpus:
        laps = [cycles * count] * 2 if cycles else range(bench.sizes.laps + 1)
        ran = run_laps(bench, case, contender, laps, {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(count)))})
        rate = _rate(ran)
        first = first or rate
        speedup, efficiency = rate / first, rate * bench.gpus[0] / (first * count)
        kept = {"case": case.name, "GPUs": count, "cycles/s": rate, "speed-up": speedup, "efficiency": efficiency}
        bench.record["several GPUs"].append(kept | {"busy": busy_line(ran)})
        workers, made = ran.facts[-1]["workers"], ran.facts[-1].get("cycles", 1)
        yield (
            f"| {case.name} | {count} | {workers} | {made} | {ran.median:.3f} | {rate:.2f} | {speedup:.2f} | "
            f"{efficiency:.2f} | {busy_line(ran)} |"
        )


def _rate(ran: Ran) -> float:
    """Cycles a second."""
    return float(ran.facts[-1].get("cycles", 1) / ran.median)
