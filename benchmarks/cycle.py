"""What a cycle costs: squall, the limit of its engine, and three other ways to make the same forecast.

    python -m benchmarks.cycle [--data ../shared/data] [--grid fmi mrms] [--model unet advection] [--quick]

Without --data it makes storms of the same sizes, once, in the folder of --work. Every contender is a process of its
own, alone on the machine; contenders take turns, each cycle has other frames than the one before, what was written is
compared with squall's code by code and removed, and the disk is quiet before every start.

cold        from the start of the process until the forecast stands, Ray started and modules imported on the way
warm        a cycle of a process (and its workers) that has made one before; median
limit       the engine on the tiles that squall had to run, in as many processes, without reading or writing anything
efficiency  limit / warm
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml

from benchmarks.aside import remove_aside, set_aside
from benchmarks.contender import Contender
from benchmarks.ours import usable_times
from benchmarks.peers import PEERS, Task
from engines.cores import usable_cores
from jobs.pool import Resources
from jobs.prepare import Prepared, load, prepare
from pipelines.source import find_inputs
from pipelines.storms import write_storms

LEADS = 18
TILE = 256  # of the U-Net
NAMES = {"squall": "**squall**", "plain": "plain script", "ray_data": "Ray Data", "dask": "Dask"}


@dataclass(frozen=True)
class Store:
    """Frames to forecast from, and how a product reads them."""

    path: Path
    variable: str
    convert: str
    step_minutes: int  # between the frames that a model is given


@dataclass
class Laps:
    """What was measured of one contender on one case."""

    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)
    tree_bytes: int = 0
    worst_bytes: int = 0
    written_bytes: int = 0
    objects: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.warm)


def find_store(grid: str, data: Path | None, work: Path, quick: bool) -> Store:
    """The real store under `data`, or storms of the same size."""
    if data is not None:
        real = {
            "fmi": Store(data / "fmi_20160928.zarr", "reflectivity", "zr", 5),
            "mrms": Store(data / "mrms_20190610.zarr", "precip_rate", "none", 10),
        }
        return real[grid]
    shape, frames = {"fmi": ((1226, 760), 20), "mrms": ((3500, 7000), 6)}[grid]
    shape = (shape[0] // 2, shape[1] // 2) if quick else shape
    path = work / f"storms-{shape[0]}x{shape[1]}.zarr"
    if not path.exists():
        print(f"making storms in {path}", flush=True)
        write_storms(path, shape, frames)
    return Store(path, "precip_rate", "none", 5)


def product_on(store: Store, frames: int) -> dict[str, Any]:
    """What every product file of a benchmark holds: so many frames of a store in, rain out."""
    return {
        "name": "rain",
        "input": {
            "store": str(store.path.resolve()),
            "variable": store.variable,
            "convert": store.convert,
            "history": [f"{-store.step_minutes * n}min" for n in reversed(range(frames))],
        },
        "output": {"store": "out", "variable": "rain"},
    }


def make_case(folder: Path, model: str, store: Store) -> Prepared:
    """A product file with its model's package, and the task of the peers, in a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    step, frames = store.step_minutes, {"unet": 4, "advection": 3}[model]
    lead_step = {"unet": step, "advection": 5}[model]
    product = product_on(store, frames) | {
        "model": {"package": f"builtin:{model}"},
        "lead_times": {"step": f"{lead_step}min", "until": f"{lead_step * LEADS}min"},
        "tiling": {"tile": [TILE, TILE]} if model == "unet" else {},
    }
    file = folder / "product.yaml"
    file.write_text(yaml.safe_dump(product))
    shutil.copytree(load(file, []).package.onnx_path.parent, folder / "model")
    file.write_text(yaml.safe_dump(product | {"model": {"package": "model"}}))
    prepared = prepare(load(file, []), Resources(0, usable_cores()))
    make_task(prepared, folder).save(folder / "task.json")
    return prepared


def make_task(prepared: Prepared, folder: Path) -> Task:
    """What the peers need to know of a product."""
    setup, layout, tiling = prepared.setup, prepared.layout, prepared.plan.tiling
    np.save(folder / "table.npy", setup.decoder.table)
    steps = prepared.setup.encoder.space.steps
    core = (min(tiling.core[0], tiling.grid[0]), min(tiling.core[1], tiling.grid[1]))
    return Task(
        store=prepared.source.store,
        variable=prepared.source.variable,
        cycles=[
            list(find_inputs(prepared.source, prepared.product, time).frame_indices) for time in usable_times(prepared)
        ],
        fill=int(prepared.source.encoding.fill),
        table=str(folder / "table.npy"),
        model=str(setup.order.model.path),
        leads=len(setup.leads),
        threshold=steps[0].threshold if steps else None,
        missing_below=setup.encoder.space.missing_below,
        grid=tiling.grid,
        core=core,
        halo=tiling.halo,
        stride=tiling.stride,
        chunk=tuple(chunk_edge(c, g, k) for c, g, k in zip(core, tiling.grid, layout.chunk[1:], strict=True)),
        cores=usable_cores(),
    )


def chunk_edge(core: int, grid: int, chunk: int) -> int:
    """The chunk edge of squall where cores are made of such, else the core: no chunk has two writers."""
    return chunk if core >= grid or core % chunk == 0 else core


def race(folder: Path, names: Sequence[str], rounds: int, repeats: int) -> dict[str, Laps]:
    """In every round each contender in turn starts anew, makes its cold cycle and then the warm ones.

    Only one of them is there at a time: together they would not fit into the memory of a small machine.
    """
    laps, cycles = {name: Laps() for name in names}, len(Task.load(folder / "task.json").cycles)
    for number in range(rounds):
        for name in names:
            with Contender(name, folder, folder / f"{name}.log") as contender:
                for lap in range(repeats + 1):
                    path = folder / "peers" / name / str(lap)
                    os.sync()
                    facts = contender.lap((number * (repeats + 1) + lap) % cycles, path)
                    note(laps[name], contender, facts, is_cold=lap == 0)
                    what = f"{folder.name:16} {name:10} {'warm' if lap else 'cold'} {facts['seconds']:8.2f} s"
                    print(f"{what}, {facts['cold']:6.2f} s since start, load {os.getloadavg()[0]:.1f}", flush=True)
        settle(folder, laps)
    return laps


def note(laps: Laps, contender: Contender, facts: dict[str, Any], is_cold: bool) -> None:
    """Keeps what one cycle took and wrote."""
    (laps.cold if is_cold else laps.warm).append(facts["cold" if is_cold else "seconds"])
    laps.facts.append(facts)
    laps.tree_bytes = max(laps.tree_bytes, contender.memory.tree_bytes)
    laps.worst_bytes = max(laps.worst_bytes, contender.memory.worst_bytes)
    files = [p for p in Path(facts["path"]).rglob("*") if p.is_file()]
    laps.objects, laps.written_bytes = len(files), sum(p.stat().st_size for p in files)


def settle(folder: Path, laps: dict[str, Laps]) -> None:
    """Compares the forecasts of a round code by code with squall's, then sets them aside.

    Raises:
        ValueError: a peer made another forecast (says in how many cells).
    """
    for name in (name for name in laps if name in PEERS):
        for path in sorted((folder / "peers" / name).iterdir()):
            facts = laps["squall"].facts[int(path.name) - len(list(path.parent.iterdir()))]
            ours = xr.open_zarr(facts["path"], mask_and_scale=False)["rain"][0]
            differing = count_differing(ours, path)
            if differing:
                raise ValueError(f"the forecast of {name} differs from squall's in {differing} of {ours.size} cells")
    set_aside(folder / "peers")
    set_aside(folder / "out")


def count_differing(ours: xr.DataArray, path: Path) -> int:
    theirs = xr.open_zarr(path, mask_and_scale=False, consolidated=False)["rain"]
    return sum(int(np.count_nonzero(a.values != b.values)) for a, b in zip(ours, theirs, strict=True))


def rows_of(case: str, laps: dict[str, Laps]) -> list[str]:
    """The table rows of one case."""
    limit, ours = laps["bare"].median, laps["squall"]
    lines = [f"| {case} | *limit* | | {limit:.2f} | 1.00 | | | | | |"]
    for name, one in laps.items():
        if name != "bare":
            times = [middle(one.cold), middle(one.warm), f"{limit / one.median:.2f}"]
            ratios = [middle(one.cold, ours.cold), middle(one.warm, ours.warm)]
            sizes = [
                f"{gb(one.worst_bytes)} / {gb(one.tree_bytes)}",
                f"{one.written_bytes / 1e6:.1f}",
                str(one.objects),
            ]
            lines.append(f"| {case} | {NAMES[name]} | " + " | ".join(times + ratios + sizes) + " |")
    return lines


def middle(seconds: list[float], reference: list[float] | None = None) -> str:
    """The median, or its ratio to that of a reference; empty if nothing was measured."""
    if not seconds:
        return ""
    return f"{statistics.median(seconds) / (statistics.median(reference) if reference else 1):.2f}"


def tiles_line(case: str, prepared: Prepared, laps: dict[str, Laps]) -> str:
    """How the grid was cut and where squall's time went, one sentence."""
    ranked = sorted(laps["squall"].facts, key=lambda f: float(f["seconds"]))
    facts = next(f for f in ranked if f["seconds"] >= laps["squall"].median)
    run, reused, plan = facts["run"], facts["reused"], prepared.plan
    stages = ", ".join(f"{name} {facts[name]:.2f}" for name in ("read", "infer", "write", "publish"))
    spread = f"{min(laps['squall'].warm):.2f} to {max(laps['squall'].warm):.2f}"
    return (
        f"- {case}: {plan.reason}. Of {run + reused} tiles squall ran {run} and reused {reused} "
        f"({reused / (run + reused):.0%}). {prepared.workers} workers of {prepared.setup.order.threads} thread(s). "
        f"Seconds of one warm cycle of {facts['seconds']:.2f} s, summed over workers: {stages}. "
        f"Warm cycles of squall took {spread} s."
    )


def gb(count: int) -> str:
    return f"{count / 1e9:.2f}"


def header(arguments: argparse.Namespace) -> list[str]:
    """Where, when and with what."""
    names = ("squall", "numpy", "onnxruntime", "zarr", "xarray", "ray", "dask")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    data = "real frames (FMI 2016-09-28, MRMS 2019-06-10)" if arguments.data else "storms of the same sizes"
    rounds, warm = arguments.rounds, arguments.rounds * arguments.repeats
    return [
        f"{datetime.now(UTC):%Y-%m-%d}, {usable_cores()} cores ({processor()}), Python {platform.python_version()}, "
        f"{versions}. Input: {data}. Cold: median of {rounds} cycles; warm: median of {warm}.",
        "",
        "| case | by | cold s | warm s | efficiency | cold / squall | warm / squall | GB worst / tree | MB | objects |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the real stores")
    parser.add_argument("--work", type=Path, default=Path("build/benchmark"), help="folder for storms and forecasts")
    parser.add_argument("--grid", choices=["fmi", "mrms"], nargs="+", default=["fmi", "mrms"])
    parser.add_argument("--model", choices=["unet", "advection"], nargs="+", default=["unet", "advection"])
    parser.add_argument("--only", choices=[*NAMES], nargs="+", default=[*NAMES], help="contenders beside the limit")
    parser.add_argument("--rounds", type=int, default=3, help="cold starts of each contender")
    parser.add_argument("--repeats", type=int, default=2, help="warm cycles after each cold start")
    parser.add_argument("--quick", action="store_true", help="one round; storms of half the size each way")
    parser.add_argument("--json", type=Path, help="where to write every lap")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 1
    return arguments


def main() -> None:
    arguments = parse()
    table, notes, record = header(arguments), [], {}
    for grid in arguments.grid:
        for model in arguments.model:
            case, folder = f"{grid} {model}", arguments.work.resolve() / f"{grid}-{model}"
            store = find_store(grid, arguments.data, arguments.work, arguments.quick)
            prepared = make_case(folder, model, store)
            laps = race(folder, ["bare", *arguments.only], arguments.rounds, arguments.repeats)
            table += rows_of(case, laps)
            notes.append(tiles_line(case, prepared, laps))
            record[case] = {name: asdict(one) for name, one in laps.items()}
            if arguments.json:
                arguments.json.write_text(json.dumps(record, indent=1))
            print("\n".join([*table, "", *notes]), flush=True)
    remove_aside(arguments.work.resolve())


if __name__ == "__main__":
    main()
