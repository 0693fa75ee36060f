"""Laps: contenders make cycles one after the other, alone or in turn, with the machine watched."""

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.aside import set_aside
from benchmarks.bench import Bench
from benchmarks.cases import FULL, Case
from benchmarks.codes import Apart, compare, open_published, open_rival
from benchmarks.contender import Contender
from benchmarks.cycle import make_task
from benchmarks.ours import usable_times
from benchmarks.rivals import EngineTask
from benchmarks.sampler import Gpus, Sample, Sampler
from jobs.engine import open_cache
from pipelines.grid import Window

ACTORS = 8  # of Ray Data that share a GPU
COMPARED = 2  # laps whose codes are compared with squall's


@dataclass
class Ran:
    """What was measured of one contender: facts of its laps (the first one is cold), and the machine beside them.

    Attributes:
        before_bytes: device memory taken before it started; None where that cannot be read.
        device_bytes: that it took in its first lap.
        apart: its codes from squall's.
    """

    facts: list[dict[str, Any]] = field(default_factory=list)
    samples: list[list[Sample]] = field(default_factory=list)
    worst_bytes: int = 0
    tree_bytes: int = 0
    before_bytes: int | None = None
    device_bytes: int | None = None
    apart: Apart = field(default_factory=Apart)

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

    @property
    def warm_samples(self) -> list[Sample]:
        """Of the warm laps, one after the other."""
        return [sample for samples in self.samples[1:] or self.samples for sample in samples]


@contextmanager
def open_contender(
    bench: Bench, case: Case, name: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[Contender, Ran]]:
    """A contender and what will be measured of it; by default it sees one GPU, as a product of one GPU would."""
    shown = environment or ({"CUDA_VISIBLE_DEVICES": "0"} if bench.has_gpu else {})
    ran = Ran(before_bytes=Gpus().settled_bytes())
    with Contender(name, case.folder, case.folder / f"{name}.log", shown) as contender:
        yield contender, ran


def run_laps(
    bench: Bench, case: Case, name: str, numbers: Sequence[int], environment: Mapping[str, str] | None = None
) -> Ran:
    """A contender alone: laps of these numbers, the first one cold."""
    with open_contender(bench, case, name, environment) as (contender, ran):
        for lap, number in enumerate(numbers):
            take_lap(contender, ran, number, case.folder / "rivals" / name / str(lap))
    set_aside(case.folder / "rivals")
    return ran


def take_lap(contender: Contender, ran: Ran, number: int, path: Path) -> None:
    """One lap with the machine watched, the disk quiet before."""
    os.sync()
    with Sampler() as sampler:
        facts = contender.lap(number, path)
    ran.facts.append(facts)
    ran.samples.append(sampler.samples)
    ran.tree_bytes = max(ran.tree_bytes, contender.memory.tree_bytes)
    ran.worst_bytes = max(ran.worst_bytes, contender.memory.worst_bytes)
    taken = [sample.device for sample in sampler.samples if sample.device is not None]
    if ran.before_bytes is not None and taken and ran.device_bytes is None:
        ran.device_bytes = max(taken) - ran.before_bytes


def race(bench: Bench, case: Case, names: Sequence[str], laps: int) -> dict[str, Ran]:
    """squall (`traced`, the first) and rivals: each starts and makes its cold lap, then all stay and take turns.

    What the rivals made of the first cycles is compared with squall's.
    """
    save_task(bench, case)
    contenders: dict[str, Contender] = {}
    ran: dict[str, Ran] = {}
    cycles = len(usable_times(case.prepared))
    with ExitStack() as opened:
        for lap in range(laps + 1):
            for name in names:
                if not lap:
                    contenders[name], ran[name] = opened.enter_context(open_contender(bench, case, name))
                take_lap(contenders[name], ran[name], lap % cycles, case.folder / "rivals" / name / str(lap))
            if lap < COMPARED:
                _compare_with_squall(case, ran, lap)
            set_aside(case.folder / "rivals")
    return ran


def _compare_with_squall(case: Case, ran: Mapping[str, Ran], lap: int) -> None:
    ours = open_published(ran["traced"].facts[lap]["path"])
    for name, one in ran.items():
        if name != "traced":
            one.apart += compare(ours, open_rival(case.folder / "rivals" / name / str(lap)))


def save_task(bench: Bench, case: Case) -> None:
    """What the rivals need to know of a case, and the engine file that they share with squall."""
    setup, tiling = case.prepared.setup, case.prepared.setup.tiling
    task = vars(make_task(case.prepared, case.folder)) | {"chunk": case.prepared.layout.chunk[1:]}
    cuts = [[(_box(t.core), _box(t.window)) for t in tiling.tiles(block)] for block in tiling.blocks()]
    actors = min(ACTORS, max(1, bench.cores // 2)) if bench.has_gpu else bench.cores
    room = 4 * 10**9 if bench.sizes is FULL else 10**9
    EngineTask(
        **task, engine=_save_engine(bench, case), blocks=cuts, batch=setup.batch, actors=actors, store_bytes=room
    ).save(case.folder / "rivals.json")  # fmt: skip


def _save_engine(bench: Bench, case: Case) -> str:
    """The engine file of a case beside its product; empty where ONNX Runtime infers."""
    if not bench.has_gpu:
        return ""
    kept = open_cache().find(bench.engine(case).key)
    assert kept is not None
    file = case.folder / "engine.bin"
    file.write_bytes(kept.data)
    return str(file)


def _box(window: Window) -> tuple[int, int, int, int]:
    return window.y0, window.y1, window.x0, window.x1
