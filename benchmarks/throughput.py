"""How fast cycles are made and what bounds them: squall beside its floor, and beside others with the same engine.

    python -m benchmarks.throughput --out build/throughput [--data ../shared/data] [--quick] [--gpus 1 2] [--soak]
                                    [--budget 540] [--resume] [--only mrms fmi]

Sections run in order of importance, each within what is left of --budget; one that fails or takes too long says so and
the rest goes on. The same command with --resume makes those that are not done. What they say goes into report.md of
--out and their numbers into report.json, as they come. With a GPU TensorRT runs the network in half, else ONNX Runtime
in float32; each engine is built once and kept in SQUALL_CACHE (--out, unless it is set). Without --data the frames are
storms of the same sizes.

value   median of warm cycles of a squall whose driver and workers stay, from the start of a cycle until it is published
floor   what this machine needs at least for the same work; benchmarks/floor.py says how, each part is measured here

sections/ holds the sections; cases.py what is forecast, bench.py what sections share, laps.py how they measure,
tables.py how they show it, schedule.py how they are run.
"""

import argparse
import importlib.metadata
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import yaml

from benchmarks.aside import remove_aside
from benchmarks.bench import Bench
from benchmarks.cases import CUT, FULL, QUICK
from benchmarks.report import Report
from benchmarks.schedule import Budget, Section, run_sections
from benchmarks.sections.backfills import backfill_fmi, backfill_mrms, compute_bound
from benchmarks.sections.cycles import fmi, mrms, wet
from benchmarks.sections.engine_alone import engines, host_overhead
from benchmarks.sections.exact import exact
from benchmarks.sections.leak import leak
from benchmarks.sections.several_gpus import several_gpus
from benchmarks.sections.warm_pool import warm_pool
from engines.environment import describe_environment

SECTIONS: tuple[Section, ...] = (
    mrms, wet, fmi, backfill_fmi, backfill_mrms, compute_bound, exact, host_overhead, warm_pool, leak, several_gpus,
    engines,
)  # fmt: skip
"""The most important first."""


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/throughput"))
    parser.add_argument("--data", type=Path, help="folder of the real stores")
    parser.add_argument("--resume", action="store_true", help="go on with the report in --out: what is done stays")
    parser.add_argument("--quick", action="store_true", help="small grids and a small network")
    parser.add_argument("--only", nargs="+", choices=[s.__name__ for s in SECTIONS], help="sections")
    parser.add_argument("--gpus", nargs="+", type=int, default=[1], help="numbers of GPUs to compare, such as 1 2 4")
    parser.add_argument("--soak", action="store_true", help="500 cycles in the section leak, not 100")
    parser.add_argument("--product", default="{}", help='more of the product as YAML, such as "{tiling: {batch: 4}}"')
    parser.add_argument("--limit", type=float, default=300, help="seconds that a section may take")
    parser.add_argument("--budget", type=float, default=3600, help="seconds for all sections together")
    arguments = parser.parse_args(given)
    if arguments.quick and arguments.data:
        parser.error("--quick makes small storms; it does not go with --data")
    return arguments


def chosen(only: list[str] | None) -> list[Section]:
    """The sections of these names, in order of importance; all of them if there are no names."""
    return [section for section in SECTIONS if only is None or section.__name__ in only]


def open_bench(arguments: argparse.Namespace, home: Path) -> Bench:
    sizes, settings = (QUICK, CUT) if arguments.quick else (FULL, {})
    settings = settings | yaml.safe_load(arguments.product)
    return Bench(home, arguments.data, sizes, arguments.gpus, arguments.soak, settings)


def describe(bench: Bench, report: Report) -> None:
    """The first line: where this ran, and with what."""
    versions = {name: importlib.metadata.version(name) for name in ("zarr", "ray")}
    facts = describe_environment().describe() | versions
    frames = "real frames" if bench.data else "storms"
    report.say("; ".join(f"{name} {value}" for name, value in facts.items()) + f"; input: {frames}\n")
    bench.record |= {"environment": facts, "sizes": asdict(bench.sizes), "data": frames}


def main() -> None:
    arguments = parse()
    budget, home = Budget(arguments.budget, arguments.limit), arguments.out.resolve()
    os.environ.setdefault("SQUALL_CACHE", str(home / "cache"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    report, bench = Report(home, arguments.resume), open_bench(arguments, home)
    bench.record |= report.numbers
    describe(bench, report)
    try:
        run_sections(chosen(arguments.only), bench, report, budget)
    finally:
        remove_aside(home)


if __name__ == "__main__":
    main()
