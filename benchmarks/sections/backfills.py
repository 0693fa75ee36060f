"""Sections: many cycles in a row, of FMI and of MRMS size, and of a network that only the GPU can slow down."""

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.cases import CYCLES, MEMBERS, Case
from benchmarks.laps import run_laps, save_task
from benchmarks.tables import HEAD, busy_line, case_row

RIVAL_CYCLES = 4  # of Ray Data in one execution


def backfill_fmi(bench: Bench) -> Iterator[str]:
    """Backfill of FMI size, cycles a second."""
    case = bench.case("fmi_archive", many=True)
    yield from _many(bench, case, bench.sizes.fmi_archive, ">= 50 cycles/s, busy >= 90 %")


def backfill_mrms(bench: Bench) -> Iterator[str]:
    """Backfill of MRMS size, cycles a second, beside Ray Data with several cycles in one execution."""
    case = bench.case("mrms_archive", many=True)
    yield from _many(bench, case, bench.sizes.mrms_archive, ">= 3 cycles/s, busy >= 85 %")
    yield _ray_data(bench, RIVAL_CYCLES)


def _many(bench: Bench, case: Case, count: int, goal: str) -> Iterator[str]:
    """The lines of a backfill: a lap to warm up, two that count."""
    ran = run_laps(bench, case, "backfill", [count] * 3)
    yield HEAD
    yield case_row(bench, case, ran, goal, one_block=False)
    facts = ran.facts[-1]
    how = f"{facts['how']}, {facts['workers']} worker(s), {facts['cycles']} cycles a lap"
    bench.record[f"backfill {case.name}"] |= {"how": how, "busy": busy_line(ran)}
    yield f"\nMade as {how}; {busy_line(ran)}."


def _ray_data(bench: Bench, count: int) -> str:
    case = bench.case("mrms")
    save_task(bench, case)
    seconds = run_laps(bench, case, "engine_ray_data_many", [count]).facts[0]["seconds"]
    bench.record["backfill mrms Ray Data"] = {"cycles": count, "seconds": seconds}
    return f"Ray Data, {count} cycles in one execution: {count / seconds:.2f} cycles/s"


def compute_bound(bench: Bench) -> Iterator[str]:
    """A network of twice the width and ten members, every tile wet, ten cycles."""
    case = bench.case("wet", 2, MEMBERS, many=True)
    ran = run_laps(bench, case, "backfill", [2, CYCLES])
    facts, bare = ran.facts[-1], bench.bare(case)
    batches, wall = facts["run"] / case.batch, ran.median
    share = batches * (bare.gpu or bare.core / bench.cores) / wall
    bench.record["compute bound"] = {"batches": batches, "wall": wall, "bare_share": share}
    yield (
        f"{CYCLES} cycles ({facts['how']}), {batches:.0f} batches in {wall:.2f} s; bare engine / wall "
        f"**{share:.2f}** (goal >= 0.95); {busy_line(ran)}"
    )
