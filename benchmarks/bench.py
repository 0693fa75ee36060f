"""The place of one run of the benchmark, and what its sections share: cases, engines, and what engines take alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks.cases import FRAMES, LEADS, OF_MEMBERS, Case, Sizes, Stores, write_product
from benchmarks.cycle import Store
from benchmarks.floor import Bare, measure_bare, measure_link, stack
from benchmarks.ours import tensors, usable_times
from engines import cuda
from engines.base import Packs
from engines.cores import usable_cores
from engines.supply import Supplied
from engines.zoo import UnetSpec
from jobs.engine import open_engine
from jobs.outfit import code_table, value_table
from jobs.pool import Resources
from jobs.prepare import load, prepare
from pipelines.source import find_inputs


@dataclass
class Bench:
    """One run: its folder and sizes, and what one section made and others need.

    Attributes:
        gpus: numbers of GPUs to compare.
        soak: look for a leak in many cycles.
        settings: more of every product.
        ends: when the section that runs now has to be done, on the clock of `monotonic`.
        record: all numbers, as they go into report.json.
    """

    home: Path
    data: Path | None
    sizes: Sizes
    gpus: list[int]
    soak: bool
    settings: Mapping[str, Any]
    ends: float = float("inf")
    record: dict[str, Any] = field(default_factory=dict)
    engines: dict[str, Supplied] = field(default_factory=dict)
    bares: dict[str, Bare] = field(default_factory=dict)
    cases: dict[str, Case] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        """Of the section that runs now."""
        return self.ends - monotonic()

    @cached_property
    def link(self) -> tuple[float, float]:
        """Bytes a second from host to GPU and back."""
        return measure_link()

    @property
    def has_gpu(self) -> bool:
        return cuda.device_count() > 0

    @property
    def cores(self) -> int:
        return usable_cores()

    def store(self, grid: str) -> Store:
        """The frames of a grid."""
        return Stores(self.home, self.data, self.sizes, max(self.gpus)).find(grid)

    def case(self, grid: str, width: int = 1, members: int = 1, many: bool = False, alone: bool = False) -> Case:
        """The case of a grid, made at the first call.

        Args:
            width: of the network, in widths of the usual one.
            members: of the network.
            many: prepared for a backfill, whose workers make whole cycles.
            alone: made by one worker, with the tiles and so the engine of the usual case.
        """
        names = {"wide": width > 1, f"{members}-members": members > 1, "many": many, "one-worker": alone}
        name = "-".join([grid, *(name for name, applies in names.items() if applies)])
        if name not in self.cases:
            settings = self._one_worker(grid) if alone else {**(OF_MEMBERS if members > 1 else {}), **self.settings}
            store, sizes = self.store(grid), self.sizes
            spec = UnetSpec(width * sizes.width, sizes.depth, FRAMES, LEADS, store.step_minutes, members=members)
            precision = "half" if self.has_gpu else "float32"
            file = write_product(self.home / name, store, spec, settings, precision)
            here = Resources(min(1, cuda.device_count()), self.cores)
            self.cases[name] = Case(name, file.parent, prepare(load(file, []), here, whole_cycles=many))
        return self.cases[name]

    def _one_worker(self, grid: str) -> dict[str, Any]:
        tile = list(self.case(grid).prepared.plan.tiling.tile)
        return {**self.settings, "workers": 1, "tiling": {**self.settings.get("tiling", {}), "tile": tile}}

    def engine(self, case: Case) -> Supplied:
        """The engine of a case in this process, beside those of the workers; equal orders share one."""
        order = case.prepared.setup.order
        key = f"{order.spec} {order.lanes} {order.model.weights_sha256}"
        if key not in self.engines:
            self.engines[key] = open_engine(order)
        return self.engines[key]

    def pinned_bytes(self, case: Case, workers: int) -> int:
        """Pinned memory of so many workers, as their engines say."""
        return workers * getattr(self.engine(case).engine, "pinned_bytes", 0)

    def crossing(self, case: Case) -> tuple[str, str]:
        """Types that go over the host link, in and out: codes where the GPU decodes and packs and the host does not."""
        setup, engine = case.prepared.setup, self.engine(case).engine
        given, returned = (spec.dtype for spec in engine.specs)
        is_able = isinstance(engine, Packs) and setup.tiling.mode == "crop" and code_table(setup.encoder) is not None
        if not is_able:
            return given, returned
        values = value_table(setup, given)
        return given if values is None else values.dtype, setup.encoder.dtype.name

    def bare(self, case: Case) -> Bare:
        """The engine of a case alone, on tiles of a cycle that must be run."""
        if case.name not in self.bares:
            engine, prepared = self.engine(case).engine, case.prepared
            tiles = tensors(prepared, find_inputs(prepared.source, prepared.product, usable_times(prepared)[0]))
            self.bares[case.name] = measure_bare(engine, stack(tiles, case.batch, engine.specs[0].dtype))
        return self.bares[case.name]
