"""The forecast of a cycle by other means with squall's own engine file: a plain loop, and Ray Data.

As `benchmarks.peers`, but for engines that take tiles of one size: each cuts the grid as squall does, runs every tile,
and writes whole chunks. Neither checks its input, waits for the disk, or hides a half-written forecast.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import ATTRIBUTES, Codes, Task, encoding, new_array, pack, read_frames, session

Box = tuple[int, int, int, int]  # y0, y1, x0, x1
Cut = tuple[Box, Box]  # what a tile decides, and what it sees
Lap = Callable[[int, Path], dict[str, Any]]


@dataclass(frozen=True)
class EngineTask(Task):
    """A product whose engine takes batches of tiles of one size.

    Attributes:
        engine: engine file of TensorRT; empty = ONNX Runtime with `model`.
        blocks: the tiles of every block; a block is whole chunks.
        batch: tiles of one inference.
        actors: of Ray Data; on a GPU they share it.
        store_bytes: of Ray's object store.
    """

    engine: str = ""
    blocks: list[list[Cut]] = field(default_factory=list)
    batch: int = 1
    actors: int = 1
    store_bytes: int = 10**9


def load_task(folder: Path) -> EngineTask:
    """The task that `EngineTask.save` left in a folder."""
    return EngineTask.load(folder / "rivals.json")  # type: ignore[return-value]


class Model:
    """Batches (n, frame, h, w) in, forecasts (n, lead, h, w) out, float32."""

    def __init__(self, task: EngineTask, threads: int) -> None:
        self.pinned_bytes = 0
        if task.engine:
            from engines.trt import TensorRTEngine

            self._engine = TensorRTEngine(Path(task.engine).read_bytes())
            self.pinned_bytes = self._engine.pinned_bytes
            self._run, self._dtype = self._engine, self._engine.specs[0].call_dtype
        else:
            runner = session(task.model, threads)
            name = runner.get_inputs()[0].name
            self._run, self._dtype = (lambda batch: runner.run(None, {name: batch})[0]), "float32"

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        out: NDArray[np.float32] = self._run(batch.astype(self._dtype, copy=False)).astype(np.float32, copy=False)
        return out


class Forecaster:
    """Blocks of frames in, packed codes out."""

    def __init__(self, task: EngineTask, threads: int) -> None:
        self._task, self._table, self.model = task, np.load(task.table), Model(task, threads)

    def block(self, frames: Codes, cuts: Sequence[Cut], target: Codes, origin: tuple[int, int] = (0, 0)) -> None:
        """Writes the cores of some tiles into codes (lead, y, x) whose corner is at `origin`."""
        for start in range(0, len(cuts), self._task.batch):
            some = cuts[start : start + self._task.batch]
            raws = [frames[:, y0:y1, x0:x1] for _, (y0, y1, x0, x1) in some]
            batch = np.take(self._table, np.stack(raws), mode="wrap")
            for (core, seen), raw, out in zip(some, raws, self.model(batch), strict=True):
                y, x = slice(core[0] - seen[0], core[1] - seen[0]), slice(core[2] - seen[2], core[3] - seen[2])
                there = slice(core[0] - origin[0], core[1] - origin[0]), slice(core[2] - origin[1], core[3] - origin[1])
                target[:, *there] = pack(out[:, y, x], raw[-1][y, x], self._task)


def bounds(cuts: Sequence[Cut]) -> Box:
    """The cells that some tiles decide together."""
    cores = np.array([core for core, _ in cuts])
    y0, y1, x0, x1 = cores[:, 0].min(), cores[:, 1].max(), cores[:, 2].min(), cores[:, 3].max()
    return int(y0), int(y1), int(x0), int(x1)


def plain(folder: Path) -> Lap:
    """xarray -> tiles -> the engine -> to_zarr, in one process."""
    import xarray as xr

    task = load_task(folder)
    forecaster = Forecaster(task, task.cores)

    def run(number: int, path: Path) -> dict[str, Any]:
        frames = read_frames(task, number)
        forecast = np.empty((task.leads, *task.grid), np.int16)
        for cuts in task.blocks:
            forecaster.block(frames, cuts, forecast)
        attributes = ATTRIBUTES | {"_FillValue": task.fill}
        ds = xr.Dataset({"rain": (("lead_time", "y", "x"), forecast, attributes)})
        ds.to_zarr(path, encoding={"rain": encoding(task)}, zarr_format=3)
        return {"pinned": forecaster.model.pinned_bytes}

    return run


class Actor:
    """A callable class for `map_batches`: the engine is loaded once, each row is one block of one cycle."""

    def __init__(self, task: EngineTask, paths: Sequence[Path], frames: Sequence[Any]) -> None:
        import zarr

        self._task, self._frames = task, frames
        self._forecaster = Forecaster(task, 1)
        self._arrays = [zarr.open_array(str(path / "rain"), mode="r+") for path in paths]

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        import ray

        for cycle, block in batch["work"].tolist():
            cuts = self._task.blocks[block]
            y0, y1, x0, x1 = bounds(cuts)
            codes = np.empty((self._task.leads, y1 - y0, x1 - x0), np.int16)
            self._forecaster.block(ray.get(self._frames[cycle]), cuts, codes, (y0, x0))
            self._arrays[cycle][:, y0:y1, x0:x1] = codes
        return {"pinned": np.full(len(batch["work"]), self._forecaster.model.pinned_bytes)}


def start_ray(task: EngineTask) -> None:
    """A Ray of our own."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    import ray

    ray.init(
        address="local", num_cpus=task.cores, include_dashboard=False, object_store_memory=task.store_bytes,
        log_to_driver=False, logging_level="ERROR", _node_ip_address="127.0.0.1",
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False


def ray_data(folder: Path, many: bool = False) -> Lap:
    """Blocks as rows, `map_batches` with a pool of actors, each writing its chunks.

    Frames go through the object store, results do not. An execution of a Dataset starts its own actors.

    Args:
        many: a lap makes the first so many cycles in one execution, not the cycle of that number.
    """
    task = load_task(folder)
    start_ray(task)

    def run(number: int, path: Path) -> dict[str, Any]:
        import ray

        cycles = [n % len(task.cycles) for n in range(number)] if many else [number]
        paths = [path / str(n) for n in range(number)] if many else [path]
        for one in paths:
            new_array(task, one)
        frames = [ray.put(read_frames(task, cycle)) for cycle in cycles]
        rows = [{"work": [n, block]} for n in range(len(cycles)) for block in range(len(task.blocks))]
        actors = min(task.actors, len(rows))
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Actor,
            fn_constructor_args=(task, paths, frames),
            batch_size=1,
            num_cpus=1,
            num_gpus=1 / actors if task.engine else 0,
            compute=ray.data.ActorPoolStrategy(size=actors),
        )
        pinned = [int(row["pinned"]) for row in done.materialize().take_all()]
        return {"cycles": len(cycles), "pinned": actors * max(pinned)}

    return run


RIVALS: dict[str, Callable[[Path], Lap]] = {
    "engine_loop": plain,
    "engine_ray_data": ray_data,
    "engine_ray_data_many": partial(ray_data, many=True),
}
