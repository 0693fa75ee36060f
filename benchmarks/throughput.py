"""How fast cycles are made and what bounds them: squall beside its floor, and beside others with the same engine.

    python -m benchmarks.throughput --out build/throughput [--data ../shared/data] [--quick] [--gpus 1 2] [--soak]

Prints each section as soon as it is done; one that fails or takes too long says so and the rest goes on. All that is
printed goes into report.md of --out, all numbers into report.json. With a GPU TensorRT runs the network in half, else
ONNX Runtime in float32; each engine is built once. Without --data the frames are storms of the same sizes.

value   median of warm cycles of a squall whose driver and workers stay, from the start of a cycle until it is published
floor   what this machine needs at least for the same work; benchmarks/floor.py says how, each part is measured here
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml

from benchmarks.contender import Contender
from benchmarks.cycle import Store, make_task
from benchmarks.floor import Bare, Floor, floor_of, measure_bare, measure_coding, measure_link, stack
from benchmarks.ours import activities_from, tensors, usable_times
from benchmarks.rivals import EngineTask
from benchmarks.sampler import Gpus, Sample, Sampler, mean
from benchmarks.timeline import busy_share, draw_timeline
from benchmarks.wet import write_archive, write_wet
from engines import cuda
from engines.environment import describe_environment
from engines.supply import Supplied
from engines.zoo import UnetSpec, write_package
from jobs.engine import open_cache, open_engine
from jobs.pool import Resources
from jobs.prepare import Prepared, load, prepare
from jobs.trace import write_trace
from pipelines.cycles import newest_cycle
from pipelines.source import find_inputs
from pipelines.storms import write_storms

FRAMES, LEADS, MEMBERS = 4, 18, 10
SETTLED = 10  # cycles before a leak is looked for
ACTORS = 8  # of Ray Data that share a GPU
HEAD = (
    "| case | squall | goal | floor | ratio | bound by | GPU / link / cores / disk s |\n|---|---|---|---|---|---|---|"
)
NAMES = {"traced": "**squall**", "engine_loop": "plain loop", "engine_ray_data": "Ray Data"}


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    mrms: tuple[int, int] = (3500, 7000)
    fmi: tuple[int, int] = (1226, 760)
    width: int = 32
    depth: int = 4
    archive: int = 300
    laps: int = 7
    peer_laps: int = 3


FULL = Sizes()
QUICK = Sizes((800, 1200), (400, 320), width=8, depth=2, archive=16, laps=3, peer_laps=2)

CUT = {"tiling": {"tile": [256, 256]}}  # of the small grids, which would fit into one tile


@dataclass(frozen=True)
class Case:
    """A product in a folder, prepared as its workers will prepare it."""

    name: str
    folder: Path
    prepared: Prepared

    @property
    def batch(self) -> int:
        return self.prepared.setup.batch


@dataclass
class Ran:
    """What was measured of one contender: facts of its laps (the first one is cold), and the machine beside them."""

    facts: list[dict[str, Any]] = field(default_factory=list)
    samples: list[list[Sample]] = field(default_factory=list)
    worst_bytes: int = 0
    tree_bytes: int = 0
    device_bytes: int | None = None
    differing: int = 0
    worst_codes: int = 0

    @property
    def seconds(self) -> list[float]:
        """Of the warm laps."""
        return [float(one["seconds"]) for one in self.facts[1:] or self.facts]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def typical(self) -> int:
        """Number of the warm lap nearest to the median."""
        laps = range(min(1, len(self.facts) - 1), len(self.facts))
        return min(laps, key=lambda n: abs(self.facts[n]["seconds"] - self.median))


@dataclass
class Bench:
    """The place of one run, its sizes, and what its sections hand on to the next."""

    home: Path
    data: Path | None
    sizes: Sizes
    gpus: list[int]
    soak: bool
    settings: dict[str, Any]
    record: dict[str, Any] = field(default_factory=dict)
    engines: dict[str, Supplied] = field(default_factory=dict)
    bares: dict[str, Bare] = field(default_factory=dict)
    cases: dict[str, Case] = field(default_factory=dict)

    @cached_property
    def link(self) -> tuple[float, float]:
        return measure_link()

    @property
    def has_gpu(self) -> bool:
        return cuda.device_count() > 0

    @property
    def cores(self) -> int:
        return os.cpu_count() or 1

    def store(self, grid: str) -> Store:
        """The frames of a grid: real, made up, all wet, or an archive of them."""
        if grid == "fmi_archive":
            return self._archive(self.store("fmi"))
        if grid == "wet":
            path = self.home / "wet.zarr"
            frames = FRAMES + MEMBERS - 1
            return Store(path if path.exists() else write_wet(path, self.sizes.mrms, frames, 5), *_RAIN, 5)
        if self.data is not None:
            real = {
                "fmi": Store(self.data / "fmi_20160928.zarr", "reflectivity", "zr", 5),
                "mrms": Store(self.data / "mrms_20190610.zarr", "precip_rate", "none", 10),
            }
            return real[grid]
        path, frames = self.home / f"storms-{grid}.zarr", FRAMES + {"fmi": 8, "mrms": 3}[grid]
        return Store(path if path.exists() else write_storms(path, getattr(self.sizes, grid), frames), *_RAIN, 5)

    def _archive(self, store: Store) -> Store:
        path = self.home / "archive.zarr"
        if not path.exists():
            write_archive(path, store.path, store.variable, self.sizes.archive + FRAMES - 1)
        return replace(store, path=path)

    def case(self, grid: str, width: int = 1, many: bool = False) -> Case:
        """The case of a grid, made at the first call; `width` is in widths of the usual network.

        Args:
            many: prepared for a backfill, whose workers make whole cycles.
        """
        name = grid + "-wide" * (width > 1) + "-many" * many
        if name not in self.cases:
            file = self._write(name, self.store(grid), width * self.sizes.width)
            loaded, here = load(file, []), Resources(min(1, cuda.device_count()), self.cores)
            self.cases[name] = Case(name, file.parent, prepare(loaded, here, whole_cycles=many))
        return self.cases[name]

    def _write(self, name: str, store: Store, width: int) -> Path:
        """The product file of a case, in a new folder."""
        folder, step = self.home / name, store.step_minutes
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        spec = UnetSpec(width=width, depth=self.sizes.depth, frames=FRAMES, leads=LEADS, step_minutes=step)
        write_package(spec, folder / "model")
        history = [f"{-step * n}min" for n in reversed(range(FRAMES))]
        product: dict[str, Any] = {
            "name": "rain",
            "input": {
                "store": str(store.path.resolve()),
                "variable": store.variable,
                "convert": store.convert,
                "history": history,
            },
            "model": {"package": "model", "precision": "half" if self.has_gpu else "float32"},
            "lead_times": {"step": f"{step}min", "until": f"{step * LEADS}min"},
            "output": {"store": "out", "variable": "rain"},
        }
        file = folder / "product.yaml"
        file.write_text(yaml.safe_dump(product | self.settings))
        return file

    def engine(self, case: Case) -> Supplied:
        """The engine of a case in this process, beside those of the workers; equal orders share one."""
        key = repr(case.prepared.setup.order.spec) + case.prepared.setup.order.model.weights_sha256
        if key not in self.engines:
            self.engines[key] = open_engine(case.prepared.setup.order)
        return self.engines[key]

    def bare(self, case: Case) -> Bare:
        """The engine of a case alone, on tiles of a cycle that must be run."""
        if case.name not in self.bares:
            engine, prepared = self.engine(case).engine, case.prepared
            tiles = tensors(prepared, find_inputs(prepared.source, prepared.product, usable_times(prepared)[0]))
            self.bares[case.name] = measure_bare(engine, stack(tiles, case.batch, engine.specs[0].dtype))
        return self.bares[case.name]


_RAIN = ("precip_rate", "none")


def engines(bench: Bench) -> Iterator[str]:
    """Engines: built or loaded once, and alone on the tiles of one cycle."""
    yield "| case | tile | batch | blocks | workers | engine | s | ms a batch alone | in a row | GB/s in, out |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    wanted = (("mrms", 1, False), ("fmi", 1, False), ("fmi_archive", 1, True), ("mrms", 1, True), ("wet", 2, True))
    for case in (bench.case(*one) for one in wanted):
        supplied, tiling = bench.engine(case), case.prepared.plan.tiling
        bare = bench.bare(case)
        bench.record.setdefault("bare", {})[case.name] = asdict(bare)
        alone, rates = (bare.gpu or bare.core) * 1e3, " / ".join(f"{rate / 1e9:.0f}" for rate in bench.link)
        yield (
            f"| {case.name} | {tiling.tile[0]} x {tiling.tile[1]} | {case.batch} | {len(tiling.blocks())} | "
            f"{case.prepared.workers} | {supplied.key.flavour} {supplied.key.precision} {supplied.how} | "
            f"{supplied.seconds:.1f} | {alone:.2f} | {bare.in_row * 1e3:.2f} | {rates} |"
        )


def mrms(bench: Bench) -> Iterator[str]:
    """MRMS size, frames on disk until published, beside a plain loop and Ray Data with the same engine."""
    case = bench.case("mrms")
    save_task(bench, case)
    ran = race(bench, case, ("traced", "engine_loop", "engine_ray_data"), bench.sizes.peer_laps)
    yield HEAD
    yield judged(bench, case, ran["traced"], "<= 0.6 s, <= 2.5x", one_block=True)
    yield ""
    yield from rivals_table(bench, case, ran)
    yield from pictures(bench, case, ran["traced"])


def wet(bench: Bench) -> Iterator[str]:
    """The same with every tile wet: nothing can be reused."""
    yield from one_case(bench, bench.case("wet"), "<= 1.0 s, <= 2.5x")


def fmi(bench: Bench) -> Iterator[str]:
    """FMI size, a warm cycle."""
    yield from one_case(bench, bench.case("fmi"), "<= 0.15 s")


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
        yield f"| {case.name} | {numbers} | {share:.1%} | <= 5 % |"


def backfill_fmi(bench: Bench) -> Iterator[str]:
    """Backfill of FMI size, cycles a second."""
    yield from many(bench, bench.case("fmi_archive", many=True), bench.sizes.archive, ">= 50 cycles/s, busy >= 90 %")


def backfill_mrms(bench: Bench) -> Iterator[str]:
    """Backfill of MRMS size, cycles a second, beside Ray Data with as many cycles in one execution."""
    case = bench.case("mrms", many=True)
    count = len(usable_times(case.prepared))
    yield from many(bench, case, count, ">= 3 cycles/s, busy >= 85 %")
    case, few = bench.case("mrms"), min(4, count)
    save_task(bench, case)
    theirs = run_laps(bench, case, "engine_ray_data_many", [few])
    yield f"Ray Data, {few} cycles in one execution: {few / theirs.facts[0]['seconds']:.2f} cycles/s"
    bench.record["backfill mrms Ray Data"] = {"cycles": few, "seconds": theirs.facts[0]["seconds"]}


def compute_bound(bench: Bench) -> Iterator[str]:
    """Compute-bound: a network of twice the width, every tile wet, ten cycles.

    squall has no members: ten cycles of one engine stand for them, the same batches in number and shape.
    """
    case = bench.case("wet", 2, many=True)
    ran = run_laps(bench, case, "backfill", [2, MEMBERS])
    batches, wall = ran.facts[-1]["run"] / case.batch, ran.median
    bare = bench.bare(case)
    busy = batches * (bare.gpu or bare.core / bench.cores) / wall
    bench.record["compute bound"] = {"batches": batches, "wall": wall, "bare_share": busy}
    yield (
        f"{MEMBERS} cycles ({ran.facts[-1]['how']}), {batches:.0f} batches in {wall:.2f} s; bare engine / wall "
        f"**{busy:.2f}** (goal >= 0.95)"
    )


def several_gpus(bench: Bench) -> Iterator[str]:
    """One MRMS cycle and backfills on several GPUs of this host."""
    if cuda.device_count() < max(bench.gpus):
        yield f"{cuda.device_count()} GPU(s) here; --gpus asks for {max(bench.gpus)}"
        return
    work = (
        ("mrms", "traced", list(range(bench.sizes.laps))),
        ("mrms", "backfill", [99] * 2),
        ("fmi_archive", "backfill", [9999] * 2),
    )
    yield "| case | GPUs | s | speed-up | efficiency |"
    yield "|---|---|---|---|---|"
    for grid, contender, laps in work:
        first = None
        for count in bench.gpus:
            shown = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(count)))}
            case = bench.case(grid, many=contender == "backfill")
            median = run_laps(bench, case, contender, laps, shown).median
            first = first or (median, count)
            speedup = first[0] / median
            bench.record.setdefault("several GPUs", []).append([grid, contender, count, median])
            yield f"| {contender} {grid} | {count} | {median:.3f} | {speedup:.2f} | {speedup * first[1] / count:.2f} |"


def leak(bench: Bench) -> Iterator[str]:
    """Memory over many cycles in a row."""
    case, cycles = bench.case("fmi"), 500 if bench.soak else 50 if bench.sizes is FULL else SETTLED + 5
    gpus, marks = Gpus(), []
    with contender_of(bench, case, "traced") as contender:
        for number in range(cycles):
            contender.lap(number, case.folder)
            if number + 1 in (SETTLED, cycles):
                marks.append([*resident(contender), gpus.device_bytes()])
    names = ("driver RSS", "workers RSS", "device memory")
    bench.record["leak"] = {"cycles": cycles, **dict(zip(names, zip(*marks, strict=True), strict=True))}
    yield f"| | after {SETTLED} cycles GB | after {cycles} GB | change | goal |"
    yield "|---|---|---|---|---|"
    for name, start, end in zip(names, *marks, strict=True):
        if start:
            yield f"| {name} | {gb(start)} | {gb(end)} | {end / start - 1:+.2%} | within 1 % |"


def one_case(bench: Bench, case: Case, goal: str) -> Iterator[str]:
    """The lines of a case without rivals."""
    ran = run_laps(bench, case, "traced", range(bench.sizes.laps + 1))
    yield HEAD
    yield judged(bench, case, ran, goal, one_block=True)
    yield from pictures(bench, case, ran)


def many(bench: Bench, case: Case, count: int, goal: str) -> Iterator[str]:
    """The lines of a backfill: a lap to warm up, two that count."""
    ran = run_laps(bench, case, "backfill", [count] * 3)
    yield HEAD
    yield judged(bench, case, ran, goal, one_block=False)
    seen = [sample for samples in ran.samples[1:] for sample in samples]
    busy = {"GPU": mean(s.gpu for s in seen), "cores": mean(s.cores for s in seen)}
    written, link = mean(s.disk for s in seen), mean(s.link for s in seen)
    shares = ", ".join(f"{name} {share:.0%}" for name, share in busy.items() if share is not None)
    rates = f"disk {_rate(written)}, host link {_rate(link)}"
    yield f"\nMade as {ran.facts[-1]['how']}, {ran.facts[-1]['cycles']} cycles a lap. Busy: {shares}; {rates}."


def judged(bench: Bench, case: Case, ran: Ran, goal: str, one_block: bool) -> str:
    """The row of a case: what it took, the floor of the same work, and what bounds it.

    Args:
        one_block: judge the time of one cycle; else cycles a second, whose floor has no last block.
    """
    facts = ran.facts[ran.typical]
    cycles = facts.get("cycles", 1)
    floor = measure_floor(bench, case, facts)
    value, least = ran.median / cycles, floor.seconds if one_block else floor.busy
    parts = " / ".join(f"{seconds:.3f}" for seconds in floor.parts.values())
    shown = (f"{value:.3f} s", f"{least:.3f} s") if one_block else (f"{1 / value:.2f} /s", f"{1 / least:.2f} /s")
    kept = {"value": value, "floor": least, "ratio": value / least, "bound": floor.bound, "goal": goal}
    kept |= {"laps": ran.seconds, "cycles": cycles, "parts": floor.parts, "blocks": floor.blocks}
    kept |= {"run": facts["run"], "reused": facts["reused"], "worst_bytes": ran.worst_bytes}
    bench.record[("cycle " if one_block else "backfill ") + case.name] = kept
    return (
        f"| {case.name}, {facts['run'] / cycles:.0f} tiles run, {facts['reused'] / cycles:.0f} reused | {shown[0]} | "
        f"{goal} | {shown[1]} | {value / least:.2f} | {floor.bound} | {parts} |"
    )


def measure_floor(bench: Bench, case: Case, facts: dict[str, Any]) -> Floor:
    """The floor of a cycle like the one that was published last."""
    prepared, cycles = case.prepared, facts.get("cycles", 1)
    published = newest_cycle(prepared.product.output.store, prepared.product.name)
    assert published is not None
    cycle = find_inputs(prepared.source, prepared.product, published.reference_time)
    share = facts["run"] / max(1, facts["run"] + facts["reused"])
    dtype = bench.engine(case).engine.specs[1].dtype
    coding = measure_coding(prepared, cycle, Path(published.path), case.folder / "scratch", share, dtype)
    batches, blocks = facts["run"] / cycles / case.batch, len(prepared.plan.tiling.blocks())
    return floor_of(bench.bare(case), coding, batches, bench.link, bench.cores, blocks)


def save_task(bench: Bench, case: Case) -> None:
    """What the rivals need to know of a case, and the engine file that they share with squall."""
    setup, layout, engine = case.prepared.setup, case.prepared.layout, ""
    if bench.has_gpu:
        file = open_cache().find(bench.engine(case).key)
        assert file is not None
        (case.folder / "engine.bin").write_bytes(file.data)
        engine = str(case.folder / "engine.bin")
    task = vars(make_task(case.prepared, case.folder)) | {"chunk": layout.chunk[1:]}
    cuts = [
        [(_box(tile.core), _box(tile.window)) for tile in setup.tiling.tiles(block)] for block in setup.tiling.blocks()
    ]
    actors = min(ACTORS, max(1, bench.cores // 2)) if bench.has_gpu else bench.cores
    room = 4 * 10**9 if bench.sizes is FULL else 10**9
    EngineTask(
        **task, engine=engine, blocks=cuts, batch=setup.batch, actors=actors, store_bytes=room
    ).save(case.folder / "rivals.json")  # fmt: skip


def _box(window: Any) -> tuple[int, int, int, int]:
    return window.y0, window.y1, window.x0, window.x1


@contextmanager
def contender_of(
    bench: Bench, case: Case, name: str, environment: Mapping[str, str] | None = None
) -> Iterator[Contender]:
    """A contender; by default it sees one GPU, as a product of one worker would."""
    shown = environment or ({"CUDA_VISIBLE_DEVICES": "0"} if bench.has_gpu else {})
    with Contender(name, case.folder, case.folder / f"{name}.log", shown) as contender:
        yield contender


def run_laps(
    bench: Bench, case: Case, name: str, numbers: Sequence[int], environment: Mapping[str, str] | None = None
) -> Ran:
    """A contender alone: laps of these numbers, the first one cold."""
    with contender_of(bench, case, name, environment) as contender:
        ran = Ran()
        for lap, number in enumerate(numbers):
            take_lap(contender, ran, number, case.folder / "rivals" / name / str(lap))
    shutil.rmtree(case.folder / "rivals", ignore_errors=True)
    return ran


def take_lap(contender: Contender, ran: Ran, number: int, path: Path) -> dict[str, Any]:
    """One lap with the machine watched, the disk quiet before."""
    os.sync()
    gpus = Gpus()
    before = gpus.device_bytes()
    with Sampler() as sampler:
        facts = contender.lap(number, path)
    ran.facts.append(facts)
    ran.samples.append(sampler.samples)
    ran.tree_bytes = max(ran.tree_bytes, contender.memory.tree_bytes)
    ran.worst_bytes = max(ran.worst_bytes, contender.memory.worst_bytes)
    taken = [sample.device for sample in sampler.samples if sample.device is not None]
    if before is not None and taken and ran.device_bytes is None:
        ran.device_bytes = max(taken) - before
    return facts


def race(bench: Bench, case: Case, names: Sequence[str], laps: int) -> dict[str, Ran]:
    """All contenders stay and take turns; what the rivals made of the first cycles is compared with squall's."""
    ran = {name: Ran() for name in names}
    cycles = len(usable_times(case.prepared))
    with ExitStack() as stack_:
        contenders = {name: stack_.enter_context(contender_of(bench, case, name)) for name in names}
        for lap in range(laps + 1):
            for name, contender in contenders.items():
                take_lap(contender, ran[name], lap % cycles, case.folder / "rivals" / name / str(lap))
            if lap < 2:
                compare(case, ran, lap)
            shutil.rmtree(case.folder / "rivals", ignore_errors=True)
    return ran


def compare(case: Case, ran: Mapping[str, Ran], lap: int) -> None:
    """Notes how far the rivals' codes of a lap are from squall's."""
    ours = xr.open_zarr(ran["traced"].facts[lap]["path"], mask_and_scale=False)["rain"][0]
    for name in (name for name in ran if name != "traced"):
        path = case.folder / "rivals" / name / str(lap)
        theirs = xr.open_zarr(path, mask_and_scale=False, consolidated=False)["rain"]
        for a, b in zip(ours, theirs, strict=True):
            apart = np.abs(a.values.astype(np.int32) - b.values)
            ran[name].differing += int(np.count_nonzero(apart))
            ran[name].worst_codes = max(ran[name].worst_codes, int(apart.max()))


def rivals_table(bench: Bench, case: Case, ran: Mapping[str, Ran]) -> Iterator[str]:
    """Contenders side by side; those whose forecast is another one are said to be so."""
    engine, ours = bench.engine(case).engine, ran["traced"].median
    yield "| by | warm s (range) | / squall | cells that differ, most codes | GB worst / tree | pinned GB | device GB |"
    yield "|---|---|---|---|---|---|---|"
    for name, one in ran.items():
        pinned, gbs = one.facts[-1].get("pinned", getattr(engine, "buffer_bytes", 0)), (one.worst_bytes, one.tree_bytes)
        away = "" if name == "traced" else f"{one.differing}, {one.worst_codes}" + " WRONG" * (one.worst_codes > 1)
        device = "" if one.device_bytes is None else gb(one.device_bytes)
        yield (
            f"| {NAMES[name]} | {one.median:.3f} ({min(one.seconds):.3f} to {max(one.seconds):.3f}) | "
            f"{one.median / ours:.2f} | {away} | {' / '.join(map(gb, gbs))} | {gb(pinned)} | {device} |"
        )
    kept = {name: {k: v for k, v in asdict(one).items() if k not in ("facts", "samples")} for name, one in ran.items()}
    bench.record[f"rivals {case.name}"] = {n: kept[n] | {"seconds": one.seconds} for n, one in ran.items()}


def pictures(bench: Bench, case: Case, ran: Ran) -> Iterator[str]:
    """Timeline and trace of the warm cycle nearest to the median, and what of it some thread was in each stage."""
    facts, samples = ran.facts[ran.typical], ran.samples[ran.typical]
    activities = activities_from(facts)
    title = f"{case.name}, {facts['seconds'] * 1e3:.0f} ms, {facts['run']} tiles run, {facts['reused']} reused"
    draw_timeline(bench.home / f"timeline-{case.name}.png", title, activities, samples)
    write_trace(bench.home / f"trace-{case.name}.json", activities)
    (cycle,) = (a.span for a in activities if a.span.stage == "cycle")
    stages = sorted({a.span.stage for a in activities} - {"cycle"})
    shares = {stage: busy_share(activities, stage, cycle.start, cycle.end) for stage in stages}
    yield "\nShare of the cycle in which some thread was in: " + ", ".join(f"{k} {v:.0%}" for k, v in shares.items())


def resident(contender: Contender) -> tuple[int, int]:
    """Resident bytes of a squall's driver, and of its workers."""
    driver, *others = contender.memory.tree()
    workers = [p for p in others if " ".join(p.cmdline()).startswith("ray::Worker")]
    return driver.memory_info().rss, sum(p.memory_info().rss for p in workers)


def gb(count: float) -> str:
    return f"{count / 1e9:.3f}"


def _rate(rate: float | None) -> str:
    return "not known" if rate is None else f"{rate / 1e6:.0f} MB/s"


SECTIONS: tuple[Callable[[Bench], Iterator[str]], ...] = (
    engines, mrms, wet, fmi, host_overhead, backfill_fmi, backfill_mrms, compute_bound, several_gpus, leak,
)  # fmt: skip


class Report:
    """What is printed, kept in a file beside the numbers."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def say(self, line: str) -> None:
        print(line, flush=True)
        with (self._home / "report.md").open("a") as file:
            file.write(line + "\n")

    def keep(self, record: dict[str, Any]) -> None:
        (self._home / "report.json").write_text(json.dumps(record, indent=1))


def run_section(section: Callable[[Bench], Iterator[str]], bench: Bench, report: Report, limit_seconds: int) -> None:
    """A section, its lines said one by one; whatever goes wrong ends it alone."""
    started = time.monotonic()
    report.say(f"### {(section.__doc__ or '').splitlines()[0]}\n")
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(limit_seconds)
    try:
        for line in section(bench):
            report.say(line)
    except Exception:
        report.say(f"FAILED: {traceback.format_exc(limit=-4)}")
    finally:
        signal.alarm(0)
    report.say(f"\n({time.monotonic() - started:.0f} s)\n")
    report.keep(bench.record)


def _too_long(*_: object) -> None:
    raise TimeoutError("the section took longer than --limit")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/throughput"))
    parser.add_argument("--data", type=Path, help="folder of the real stores")
    parser.add_argument("--quick", action="store_true", help="small grids and a small network")
    parser.add_argument("--only", nargs="+", choices=[s.__name__ for s in SECTIONS], help="sections")
    parser.add_argument("--gpus", nargs="+", type=int, default=[1], help="numbers of GPUs to compare, such as 1 2")
    parser.add_argument("--soak", action="store_true", help="500 cycles in the section leak, not 50")
    parser.add_argument("--product", default="{}", help='more of the product as YAML, such as "{tiling: {batch: 4}}"')
    parser.add_argument("--limit", type=int, default=400, help="seconds that a section may take")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    home = arguments.out.resolve()
    home.mkdir(parents=True, exist_ok=True)
    (home / "report.md").unlink(missing_ok=True)
    os.environ["SQUALL_CACHE"] = str(home / "cache")
    if arguments.quick and arguments.data:
        raise SystemExit("--quick makes small storms; it does not go with --data")
    sizes, settings = (QUICK, CUT) if arguments.quick else (FULL, {})
    settings = settings | yaml.safe_load(arguments.product)
    bench = Bench(home, arguments.data, sizes, arguments.gpus, arguments.soak, settings)
    report, environment = Report(home), describe_environment()
    frames = "real frames" if arguments.data else "storms"
    facts = environment.describe() | {name: importlib.metadata.version(name) for name in ("zarr", "ray")}
    report.say("; ".join(f"{name} {value}" for name, value in facts.items()) + f"; input: {frames}\n")
    bench.record |= {"environment": facts, "sizes": asdict(sizes), "data": frames}
    for section in SECTIONS:
        if arguments.only is None or section.__name__ in arguments.only:
            run_section(section, bench, report, arguments.limit)


if __name__ == "__main__":
    main()
