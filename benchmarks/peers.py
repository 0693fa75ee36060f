"""The forecast of a cycle by other means: a plain script, Ray Data and Dask. Knows nothing of squall.

Each is what a good afternoon would give: codes are decoded through a table and packed as they are made, both cores
work, no chunk has two writers. All make the same forecast. None of them checks its input, waits for the disk, or hides
a half-written forecast from readers.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import log, log10
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Codes = NDArray[np.int16]
Span = tuple[int, int]
Run = Callable[[int, Path], None]


@dataclass(frozen=True)
class Task:
    """One product: the store, the model, how the grid is cut and how the forecast is packed; plain numbers only.

    Attributes:
        cycles: positions of the frames of each cycle along the time axis, oldest first.
        table: `.npy` file of the model's value of every int16 code, negative codes at the end.
        threshold: log10 of rain rates under it is dry; None = the model works on rain rates.
        missing_below: outputs below it are missing; None = cells missing in the newest frame are.
        grid, core, chunk: (y, x) cells of the grid, of what a tile decides, and of a stored chunk.
        cores: of the machine.
    """

    store: str
    variable: str
    cycles: list[list[int]]
    fill: int
    table: str
    model: str
    leads: int
    threshold: float | None
    missing_below: float | None
    grid: tuple[int, int]
    core: tuple[int, int]
    halo: int
    stride: int
    chunk: tuple[int, int]
    cores: int

    @classmethod
    def load(cls, path: Path) -> "Task":
        tree = json.loads(path.read_text())
        return cls(**{key: tuple(value) if key in ("grid", "core", "chunk") else value for key, value in tree.items()})

    def save(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path

    @property
    def frame(self) -> tuple[int, int]:
        """The grid padded to whole strides."""
        y, x = (-(-n // self.stride) * self.stride for n in self.grid)
        return y, x

    def tiles(self) -> list[tuple[Span, Span]]:
        """Rows and columns of every core."""
        y, x = ([(at, min(at + c, g)) for at in range(0, g, c)] for g, c in zip(self.grid, self.core, strict=True))
        return [(rows, columns) for rows in y for columns in x]

    def window(self, rows: Span, columns: Span) -> tuple[slice, slice]:
        """The tile of a core: its halo, cut off at the frame, on whole strides."""
        return self._window(0, *rows), self._window(1, *columns)

    def _window(self, axis: int, start: int, end: int) -> slice:
        end = -(-(end + self.halo) // self.stride) * self.stride
        return slice(max(0, (start - self.halo) // self.stride * self.stride), min(end, self.frame[axis]))


def session(model: str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Forecaster:
    """Codes of frames (frame, h, w) in, packed codes (lead, h, w) out."""

    def __init__(self, task: Task, threads: int) -> None:
        self._task, self._table, self._session = task, np.load(task.table), session(task.model, threads)

    def __call__(self, raw: Codes, inner: tuple[slice, slice] = (slice(None), slice(None))) -> Codes:
        """The forecast of a part of the window."""
        batch = np.take(self._table, raw, mode="wrap")[None]
        (out,) = self._session.run(None, {self._session.get_inputs()[0].name: batch})
        return pack(out[0][:, *inner], raw[-1][inner], self._task)


def pack(values: NDArray[np.float32], newest: Codes, task: Task) -> Codes:
    """Codes of 0.01 mm h-1; missing cells hold the fill value."""
    missing = newest == task.fill if task.missing_below is None else ~(values >= np.float32(task.missing_below))
    if task.threshold is not None:
        dry = values < np.nextafter(np.float32(log10(task.threshold)), np.float32(-np.inf))
        values = np.exp(values * np.float32(log(10)))
        values[dry] = 0
    codes = np.clip(np.rint(values * np.float32(100)), -32767, 32767).astype(np.int16)
    codes[np.broadcast_to(missing, codes.shape)] = task.fill
    return codes


def inner(window: tuple[slice, slice], rows: Span, columns: Span) -> tuple[slice, slice]:
    """The core inside its tile."""
    y, x = (slice(a - w.start, b - w.start) for w, (a, b) in zip(window, (rows, columns), strict=True))
    return y, x


def read_frames(task: Task, number: int) -> Codes:
    """The frames of a cycle, padded to the frame with missing cells."""
    import xarray as xr

    array = xr.open_zarr(task.store, mask_and_scale=False)[task.variable]
    frames = array.isel(time=task.cycles[number]).values
    edges = [(0, f - g) for f, g in zip(task.frame, task.grid, strict=True)]
    return np.pad(frames, [(0, 0), *edges], constant_values=task.fill)


def encoding(task: Task) -> dict[str, Any]:
    from zarr.codecs import ZstdCodec

    return {"chunks": (task.leads, *task.chunk), "compressors": (ZstdCodec(level=1),)}


ATTRIBUTES = {"units": "mm h-1", "scale_factor": 0.01}


def plain(task: Task) -> Run:
    """xarray -> tiles -> ONNX Runtime on all cores -> to_zarr."""
    import xarray as xr

    forecaster = Forecaster(task, task.cores)

    def run(number: int, path: Path) -> None:
        frames = read_frames(task, number)
        forecast = np.empty((task.leads, *task.grid), np.int16)
        for rows, columns in task.tiles():
            window = task.window(rows, columns)
            forecast[:, slice(*rows), slice(*columns)] = forecaster(frames[:, *window], inner(window, rows, columns))
        attributes = ATTRIBUTES | {"_FillValue": task.fill}
        ds = xr.Dataset({"rain": (("lead_time", "y", "x"), forecast, attributes)})
        ds.to_zarr(path, encoding={"rain": encoding(task)}, zarr_format=3)

    return run


def new_array(task: Task, path: Path) -> None:
    """An empty array of the forecast, for several writers of whole chunks."""
    import zarr

    zarr.create_group(path).create_array(
        "rain",
        shape=(task.leads, *task.grid),
        dtype="int16",
        fill_value=task.fill,
        dimension_names=("lead_time", "y", "x"),
        attributes=ATTRIBUTES | {"_FillValue": task.fill},
        **encoding(task),
    )


class Actor:
    """A callable class for `map_batches`: the session is loaded once, each row is one tile."""

    def __init__(self, task: Task, path: Path, frames: Any) -> None:
        import ray
        import zarr

        self._task, self._frames = task, ray.get(frames[0])
        self._forecaster = Forecaster(task, 1)
        self._array = zarr.open_array(str(path / "rain"), mode="r+")

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for y0, y1, x0, x1 in batch["core"].tolist():
            window = self._task.window((y0, y1), (x0, x1))
            codes = self._forecaster(self._frames[:, *window], inner(window, (y0, y1), (x0, x1)))
            self._array[:, y0:y1, x0:x1] = codes
        return {"core": batch["core"]}


def ray_data(task: Task) -> Run:
    """Ray Data: tiles as rows, `map_batches` with a pool of as many actors as cores, each writing its chunks.

    Frames are put into the object store once; results do not travel through it. An execution of a Dataset starts
    its own actors, also when Ray runs already.
    """
    import os

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    import ray

    ray.init(
        address="local", num_cpus=task.cores, include_dashboard=False, object_store_memory=10**9, log_to_driver=False,
        logging_level="ERROR", _node_ip_address="127.0.0.1",
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False

    def run(number: int, path: Path) -> None:
        new_array(task, path)
        frames = ray.put(read_frames(task, number))
        rows = [{"core": [*rows, *columns]} for rows, columns in task.tiles()]
        ray.data.from_items(rows, override_num_blocks=min(len(rows), 16)).map_batches(
            Actor,
            fn_constructor_args=(task, path, [frames]),
            batch_size=4,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=min(task.cores, len(rows))),
        ).materialize()

    return run


def dask(task: Task) -> Run:
    """Dask: `map_overlap` over chunks of one core, threads sharing a session, then `to_zarr`."""
    import dask
    import dask.array as da
    import xarray as xr

    threads = min(task.cores, len(task.tiles()))
    forecaster = Forecaster(task, task.cores // threads)

    def run(number: int, path: Path) -> None:
        array = xr.open_zarr(task.store, mask_and_scale=False, chunks={})[task.variable]
        frames = array.isel(time=task.cycles[number]).data
        edges = [(0, f - g) for f, g in zip(task.frame, task.grid, strict=True)]
        frames = da.pad(frames, [(0, 0), *edges], constant_values=task.fill)
        sizes = zip(task.core, task.grid, task.frame, strict=True)
        frames = frames.rechunk((-1, *(f if c >= g else c for c, g, f in sizes)))
        seen = ((task.leads,), *(with_halo(sizes, task.halo) for sizes in frames.chunks[1:]))
        forecast = da.map_overlap(
            forecaster, frames, depth=(0, task.halo, task.halo), boundary="none", dtype=np.int16, chunks=seen,
            meta=np.empty((0, 0, 0), np.int16), allow_rechunk=False,
        )[:, : task.grid[0], : task.grid[1]]  # fmt: skip
        attributes = ATTRIBUTES | {"_FillValue": task.fill}
        ds = xr.Dataset({"rain": (("lead_time", "y", "x"), forecast, attributes)})
        with dask.config.set(scheduler="threads", num_workers=threads):
            ds.to_zarr(path, encoding={"rain": encoding(task)}, zarr_format=3)

    return run


def with_halo(sizes: tuple[int, ...], halo: int) -> tuple[int, ...]:
    """Chunks along one axis as `map_overlap` hands them over: with a halo on every inner side."""
    last = len(sizes) - 1
    return tuple(size + halo * (at > 0) + halo * (at < last) for at, size in enumerate(sizes))


PEERS: dict[str, Callable[[Task], Run]] = {"plain": plain, "ray_data": ray_data, "dask": dask}
