"""Engines on a real GPU: what was built, how exact and fast it is, refit, swaps, damage, and `squall publish`.

    python -m benchmarks.gpu_engines --out build/gpu [--quick]

Prints each section as soon as it is done; one that fails says so and the rest goes on. The reference is float32 in ONNX
Runtime on the same machine. Needs a GPU with TensorRT; everything is built anew, in a folder of its own.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from engines import cuda
from engines.base import EngineError
from engines.cache import EngineCache
from engines.environment import describe_environment
from engines.model import ModelPackage, load_package
from engines.precision import Precision
from engines.sealed import DATA
from engines.slot import Candidate, Slot
from engines.spec import BuildSpec
from engines.supply import Supplied, supply
from engines.trt import Memory, TensorRTEngine, build
from engines.trt.runtime import TensorRTRuntime
from engines.typed import TypedModel, type_model
from engines.zoo import AdvectionSpec, UnetSpec, write_package
from jobs import judge as judging
from jobs.engine import batch_spec, describe_engine
from jobs.setting import Purpose, Setting, find_setting

DAMAGES, SWAPS, LAPS = 200, 100, 60
MODELS = {
    "U-Net w32 d4": (UnetSpec(width=32, depth=4), (4, 512, 512), ("float32", "half", "int8")),
    "advection": (AdvectionSpec((1.0, 1.0), lead_minutes=(5, 15, 30, 60, 90)), (1, 1152, 1152), ("float32",)),
}
LOAD = """
import sys, json
from pathlib import Path
from engines.cache import EngineCache
from engines.precision import Precision
from engines.spec import BuildSpec
from engines.supply import supply
from engines.trt.runtime import TensorRTRuntime
from engines.typed import open_typed

home, path, precision, spec = sys.argv[1:]
model, spec = open_typed(Path(path), Precision.parse(precision)), BuildSpec.from_json(json.loads(spec))
found = supply(TensorRTRuntime(), EngineCache(Path(home)), model, spec)
print(f"{found.how} in {found.seconds:.2f} s")
found.engine.close()
"""


@dataclass
class Bench:
    """The place of one run, and the engines that its sections hand on to the next."""

    home: Path
    quick: bool
    runtime: TensorRTRuntime = field(default_factory=TensorRTRuntime)
    made: dict[tuple[str, str], tuple[TypedModel, BuildSpec, Supplied]] = field(default_factory=dict)

    @property
    def cache(self) -> EngineCache:
        return EngineCache(self.home / "engine-cache")

    def spec(self, shape: tuple[int, ...], precision: str) -> BuildSpec:
        spec = batch_spec(shape, Precision.parse(precision))
        return replace(spec, level=1) if self.quick else spec

    def setting(self, name: str) -> Setting:
        """Of a zoo model and the shape that it is built for."""
        zoo, tile, _ = MODELS[name]
        return find_setting(load_package(write_package(zoo, self.home / name.replace(" ", "-"))), Purpose(tile=tile))

    def make(self, name: str, precision: str) -> tuple[TypedModel, BuildSpec, Supplied]:
        """A zoo model in a precision, with its engine; built when it is first asked for."""
        if (name, precision) not in self.made:
            setting = self.setting(name)
            cases = setting.gather_cases(None, True).inputs if precision == "int8" else ()
            model = type_model(setting.package, Precision.parse(precision), self.home / "graphs", cases)
            spec = self.spec(setting.shape, precision)
            self.made[name, precision] = model, spec, supply(self.runtime, self.cache, model, spec)
        return self.made[name, precision]

    @property
    def unet(self) -> tuple[TypedModel, BuildSpec, Supplied]:
        return self.make("U-Net w32 d4", "half")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--quick", action="store_true", help="smaller networks, builder optimization level 1")
    names = [section.__name__ for section in SECTIONS]
    parser.add_argument("--only", nargs="+", choices=names, help="sections; each builds what it needs")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    if arguments.quick:
        MODELS["U-Net w32 d4"] = (UnetSpec(width=8, depth=2), (4, 128, 128), ("float32", "half", "int8"))
    bench = Bench(arguments.out.resolve(), arguments.quick)
    environment = describe_environment()
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {bench.runtime.label}, {environment}\n", flush=True)
    for section in SECTIONS:
        if arguments.only is None or section.__name__ in arguments.only:
            _run(section, bench)


def _run(section: Callable[[Bench], Iterator[str]], bench: Bench) -> None:
    started = time.monotonic()
    print(f"### {(section.__doc__ or '').splitlines()[0]}", flush=True)
    try:
        for line in section(bench):
            print(line, flush=True)
    except Exception:
        print(f"FAILED: {traceback.format_exc(limit=-4)}", flush=True)
    print(f"({time.monotonic() - started:.0f} s)\n", flush=True)


def engines(bench: Bench) -> Iterator[str]:
    """Builds, precision obtained, gate and speed."""
    yield "| model | precision | build s | MB | obtained, layers | gate | worst reading | p50 ms a batch |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, (_, _, precisions) in MODELS.items():
        setting = bench.setting(name)
        cases, reference = setting.gather_cases(None, True), judging.reference_of(setting)
        for precision in precisions:
            try:
                model, _, supplied = bench.make(name, precision)
            except EngineError as error:
                yield f"| {name} | {precision} | FAILED | | {str(error)[:300]} | | | |"
                continue
            folder = bench.home / f"gate-{name.replace(' ', '-')}-{precision}"
            trial = judging.Candidate(model, supplied.engine, describe_engine(supplied))
            verdict = judging.judge(setting, cases, reference, trial, bench.runtime, folder)
            notes, worst = supplied.manifest.notes, verdict.worst
            layers = json.loads(notes["report"])["engine_layers"]
            yield (
                f"| {name} | {precision} | {supplied.seconds:.1f} | {supplied.manifest.size_bytes / 1e6:.1f} | "
                f"{notes['obtained']} {layers} | {'go' if verdict.is_go else 'no-go'} | "
                f"{worst.measure} {worst.found:.2g} of {worst.limit(verdict.limits):.2g} | "
                f"{p50(supplied.engine, setting.shape):.2f} |"
            )


def p50(engine: Any, shape: tuple[int, ...]) -> float:
    """Milliseconds of GPU compute of a batch, the median."""
    batch = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for _ in range(5):
        engine.warm(shape)
    return float(np.median([engine.timed(batch).compute_seconds for _ in range(LAPS)]) * 1e3)


def half_against_float32(bench: Bench) -> Iterator[str]:
    """Half against float32 without TF32, interleaved."""
    shape = bench.unet[1].profiles[0].opt
    pair = [bench.make("U-Net w32 d4", precision)[2].engine for precision in ("float32", "half")]
    batch = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    laps: list[list[float]] = [[], []]
    for _ in range(LAPS):
        for engine, kept in zip(pair, laps, strict=True):
            kept.append(engine.timed(batch).compute_seconds)
    slow, fast = (float(np.median(one)) * 1e3 for one in laps)
    yield f"compute {slow:.2f} ms against {fast:.2f} ms: {slow / fast:.2f} times as fast"


def batches_and_bits(bench: Bench) -> Iterator[str]:
    """Does the result of a tile depend on the batch around it?"""
    for precision in ("float32", "half"):
        _, spec, supplied = bench.make("U-Net w32 d4", precision)
        batch = np.random.default_rng(1).normal(size=spec.profiles[0].max).astype(np.float32)
        whole = supplied.engine(batch)
        alone = np.concatenate([supplied.engine(batch[n : n + 1]) for n in range(len(batch))])
        differing, most = int((whole != alone).sum()), np.abs(whole - alone).max()
        yield f"{precision}: {differing} of {whole.size} values differ, most {most:.1e}"


def refit(bench: Bench) -> Iterator[str]:
    """Other weights: refit of a loaded engine, and the same from the cache."""
    _, spec, _ = bench.unet
    retrained = _retrained(bench)
    found = supply(bench.runtime, bench.cache, retrained, spec)
    engine, file = found.engine, bench.cache.find(found.key)
    assert file is not None
    fresh = TensorRTEngine(file.data)
    started = time.perf_counter()
    replaced = bench.runtime.refit(fresh, retrained, file.manifest.notes)
    seconds = time.perf_counter() - started
    batch = np.random.default_rng(2).normal(size=spec.profiles[0].opt).astype(np.float32)
    rebuilt = TensorRTEngine(build(retrained.path, replace(spec, flags=frozenset())).engine)
    a, b, c = engine(batch), rebuilt(batch), bench.unet[2].engine(batch)
    yield f"{found.how} in {found.seconds:.2f} s all in all; the refit of {len(replaced)} weights alone {seconds:.3f} s"
    near, far = rms(a - b) / a.std(), rms(a - c) / a.std()
    yield f"against a rebuild: RMS {near:.1e} of the spread; against the former weights {far:.1e}"
    for one in (engine, fresh, rebuilt):
        one.close()


def refit_cost(bench: Bench) -> Iterator[str]:
    """What being refittable costs: half with and without REFIT, interleaved."""
    model, spec, supplied = bench.unet
    fixed = supply(bench.runtime, bench.cache, model, replace(spec, flags=frozenset()))
    batch = np.random.default_rng(0).normal(size=spec.profiles[0].opt).astype(np.float32)
    laps: list[list[float]] = [[], []]
    for _ in range(LAPS):
        for engine, kept in zip((supplied.engine, fixed.engine), laps, strict=True):
            kept.append(engine.timed(batch).compute_seconds)
    slow, fast = (float(np.median(one)) * 1e3 for one in laps)
    yield f"refittable {slow:.2f} ms, not {fast:.2f} ms; built in {fixed.seconds:.1f} s with the first one's timings"
    fixed.engine.close()


def timing_cache(bench: Bench) -> Iterator[str]:
    """The same float32 build without and with a timing cache."""
    model, spec, _ = bench.make("U-Net w32 d4", "float32")
    spec = replace(spec, level=1)
    cold = build(model.path, spec)
    warm = build(model.path, spec, timing_cache=cold.timing_cache)
    yield f"{cold.report.seconds:.1f} s, then {warm.report.seconds:.1f} s; equal bytes: {cold.engine == warm.engine}"


def swaps(bench: Bench) -> Iterator[str]:
    """Hot swaps under load: latency of batches beside undisturbed ones, engines in memory of their own or shared."""
    yield from _swaps(bench, "memory of their own", None)
    with closing(Memory()) as memory:
        yield from _swaps(bench, "shared memory", memory)


def _swaps(bench: Bench, what: str, memory: Memory | None) -> Iterator[str]:
    file, shape = _file(bench), bench.unet[1].profiles[0].opt
    batch = np.random.default_rng(3).normal(size=shape).astype(np.float32)

    def open_engine() -> TensorRTEngine:
        return TensorRTEngine(file, memory=memory)

    slot = Slot(Candidate("0", len(file), open_engine), fits=lambda size: size < cuda.free_bytes())
    slot.warm(shape)
    calm = [_lap(slot, batch)[0] for _ in range(300)]
    stop, laps, failures = threading.Event(), [], []

    def load() -> None:
        while not stop.is_set():
            try:
                laps.append(_lap(slot, batch))
            except EngineError as error:
                failures.append(error)

    worker = threading.Thread(target=load)
    worker.start()
    versions = [str(n) for n in range(1, SWAPS + 1)]
    for version in versions:
        slot.prepare(Candidate(version, len(file), open_engine), shape)
        slot.swap()
    stop.set()
    worker.join()
    seen = [version for _, version in laps]
    in_order = sorted(map(int, seen)) == list(map(int, seen))
    busy, quiet = (np.percentile([one * 1e3 for one in some], 99) for some in ([lap for lap, _ in laps], calm))
    yield f"{what}: {SWAPS} swaps, {len(laps)} batches, {len(failures)} failed; versions in order: {in_order}"
    worst = max(lap for lap, _ in laps) * 1e3
    yield f"{what}: p99 {busy:.2f} ms while swapping, {quiet:.2f} ms undisturbed; worst {worst:.1f} ms"
    slot.close()


def _lap(slot: Slot, batch: np.ndarray) -> tuple[float, str]:
    started = time.perf_counter()
    with slot.lane(batch.shape) as lane:
        np.copyto(lane.given, batch)
        lane.run()
    return time.perf_counter() - started, lane.version


def damage(bench: Bench) -> Iterator[str]:
    """Single bits of an engine file changed: refused every time?"""
    supplied = bench.unet[2]
    path = bench.cache._engines / supplied.key.digest / DATA
    data, chance = path.read_bytes(), random.Random(0)
    refused = 0
    path.chmod(0o644)
    for _ in range(DAMAGES):
        at = chance.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :])
        refused += bench.cache.find(supplied.key) is None
    path.write_bytes(data)
    yield f"{refused} of {DAMAGES} refused; the whole file is found: {bench.cache.find(supplied.key) is not None}"


def second_process(bench: Bench) -> Iterator[str]:
    """The same engine in another process: from the cache, without a build."""
    model, spec, _ = bench.unet
    arguments = [str(bench.home / "engine-cache"), str(model.path), str(model.precision), json.dumps(spec.to_json())]
    ran = subprocess.run([sys.executable, "-c", LOAD, *arguments], capture_output=True, text=True, check=False)
    yield ran.stdout.strip() or ran.stderr[-500:]


def published(bench: Bench) -> Iterator[str]:
    """`squall publish` end to end: cold, then with other weights."""
    with _environment(bench.home / "publish"):
        for number, seed in enumerate((0, 1)):
            zoo = replace(MODELS["U-Net w32 d4"][0], seed=seed)
            folder = write_package(zoo, bench.home / f"trained-{number}")
            contract = folder / "model.yaml"
            contract.write_text(contract.read_text().replace("version: '1.0'", f"version: '1.{number}'"))
            n, y, x = MODELS["U-Net w32 d4"][1]
            command = [sys.executable, "-m", "jobs.cli", "publish", str(folder), "--as", "rain", "--precision", "half"]
            command += ["--shape", f"{n}x{y}x{x}", "--promote", "production", "--why", "benchmark", "--format", "json"]
            started = time.monotonic()
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            seconds = time.monotonic() - started
            if ran.returncode:
                yield f"exit {ran.returncode} after {seconds:.0f} s: {(ran.stderr or ran.stdout)[-600:]}"
                continue
            tree = json.loads(ran.stdout)
            steps = ", ".join(f"{step['name']} {step['seconds']:.1f}" for step in tree["steps"])
            hows = [each["built"]["how"] for each in tree["precisions"]]
            what = "other weights" if number else "cold"
            yield f"{what}: {seconds:.1f} s, {tree['status']}, engine {hows}; {steps}"
            yield f"  {tree['change']}; bench: {tree['bench']}"


@contextmanager
def _environment(home: Path) -> Iterator[None]:
    """Cache and registry of squall in a folder of their own."""
    os.environ |= {"SQUALL_CACHE": str(home / "cache"), "SQUALL_REGISTRY": str(home / "registry")}
    try:
        yield
    finally:
        del os.environ["SQUALL_CACHE"], os.environ["SQUALL_REGISTRY"]


def _file(bench: Bench) -> bytes:
    file = bench.cache.find(bench.unet[2].key)
    assert file is not None
    return file.data


def _retrained(bench: Bench) -> TypedModel:
    zoo = replace(MODELS["U-Net w32 d4"][0], seed=1)
    package: ModelPackage = load_package(write_package(zoo, bench.home / "retrained"))
    return type_model(package, Precision("half"), bench.home / "graphs")


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


SECTIONS = (
    engines,
    half_against_float32,
    batches_and_bits,
    damage,
    second_process,
    swaps,
    refit,
    timing_cache,
    refit_cost,
    published,
)

if __name__ == "__main__":
    main()
