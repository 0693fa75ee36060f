"""Section: `squall run` as cron starts it, a fresh process every time, on a cluster where workers stay warm."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench
from benchmarks.cases import Case
from benchmarks.cluster import open_cluster
from benchmarks.ours import usable_times
from jobs.show import utc

RUNS = 3
SETTLE_SECONDS = 5  # Ray starts some processes in advance
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Command:
    """One command: its own wall time, and the time to product that it reports; seconds."""

    wall: float
    product: float
    workers: int

    @property
    def rest(self) -> float:
        """Interpreter, imports, reading the product, joining Ray, leaving it."""
        return self.wall - self.product


def warm_pool(bench: Bench) -> Iterator[str]:
    """`squall run` as cron starts it, on a running cluster; the first run is cold."""
    yield "| product | run | wall s | time to product s | rest s | workers |"
    yield "|---|---|---|---|---|---|"
    bench.record["warm pool"] = {}
    gpu = {"CUDA_VISIBLE_DEVICES": "0"} if bench.has_gpu else {}
    cases = [bench.case("fmi"), bench.case("mrms")]
    for case in cases:
        bench.engine(case)  # in the cache from now on: a cold run loads it
    with open_cluster(bench.home / "cluster.log", gpu) as environment:
        time.sleep(SETTLE_SECONDS)
        for case in cases:
            yield from _runs(bench, case, environment)


def _runs(bench: Bench, case: Case, environment: Mapping[str, str]) -> Iterator[str]:
    times = usable_times(case.prepared)
    for number in range(RUNS):
        run, name = run_command(case, times[number % len(times)], environment), "warm" if number else "cold"
        bench.record["warm pool"].setdefault(case.name, []).append(asdict(run))
        yield f"| {case.name} | {name} | {run.wall:.2f} | {run.product:.3f} | {run.rest:.2f} | {run.workers} |"


def run_command(case: Case, moment: Any, environment: Mapping[str, str]) -> Command:
    """`squall run` for one reference time.

    Raises:
        RuntimeError: the command failed; ends with what it said.
    """
    own = [f"name={case.name}", f"output.store={case.folder / 'warm-pool'}"]
    command = [sys.executable, "-m", "jobs.cli", "run", str(case.folder / "product.yaml"), *own]
    command += ["--time", utc(moment), "--replace", "--format", "json"]
    started = time.perf_counter()
    done = subprocess.run(command, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    wall = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"squall run ended with {done.returncode}: {done.stderr[-2000:]}")
    report = json.loads(done.stdout)
    return Command(wall, report["total_seconds"], report["workers"])
