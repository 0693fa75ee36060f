"""Prints how well `advection` forecasts real rain, beside pysteps and persistence, and what each costs.

    python -m benchmarks.skill [--data ../shared/data] [--only fmi|mrms] [--peer pysteps] [--json FILE]

Each case is one init time. A score is the mean over the cases, as in the reference figures; cells observed at the
valid time count, and cells that a forecast says are missing count as dry. Core-seconds are those of the forecast alone,
all lead times of the product, on `--threads` threads. `--peer pysteps` makes the pysteps forecasts anew (needs opencv;
minutes for MRMS) in place of the figures measured once.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from engines.ort import OrtEngine
from engines.zoo import AdvectionSpec, write_package
from engines.zoo.advection import MISSING, MISSING_BELOW
from pipelines.frames import Cycle
from pipelines.model_space import ModelSpace
from pipelines.product import InputSpec
from pipelines.source import Source, open_source
from pipelines.transform import Decoder
from pipelines.verify import Rules, Score, as_table, pool, score_case

Field = NDArray[np.float32]
Forecast = dict[float, Field]

THRESHOLDS = (0.1, 1.0, 5.0)
TILE_CORE = 1024


@dataclass(frozen=True)
class Case:
    """A store of real rain, the cycles made from it, and what others scored on it.

    Attributes:
        scored: lead times (minutes) that are compared.
        peer: CSI of pysteps at (lead minutes, threshold): dense Lucas-Kanade on the same frames and semi-Lagrangian
            extrapolation, pysteps 1.21.5.
        whole: the forecast is made in one piece; else in tiles with a halo.
    """

    name: str
    store: str
    variable: str
    convert: str
    init_times: tuple[str, ...]
    history: tuple[int, ...]
    leads: tuple[int, ...]
    scored: tuple[int, ...]
    peer: dict[tuple[int, float], float]
    whole: bool


def _reference(rows: dict[int, tuple[float, float, float]]) -> dict[tuple[int, float], float]:
    return {(lead, t): csi for lead, row in rows.items() for t, csi in zip(THRESHOLDS, row, strict=True)}


CASES = (
    Case(
        name="fmi",
        store="fmi_20160928.zarr",
        variable="reflectivity",
        convert="zr",
        init_times=tuple(f"2016-09-28T{t}" for t in ("14:55", "15:10", "15:30", "15:50", "16:10", "16:30")),
        history=(-10, -5, 0),
        leads=tuple(range(5, 95, 5)),
        scored=(15, 30, 60, 90),
        peer=_reference(
            {
                15: (0.833, 0.509, 0.208),
                30: (0.761, 0.399, 0.113),
                60: (0.674, 0.281, 0.045),
                90: (0.617, 0.222, 0.017),
            }
        ),
        whole=True,
    ),
    Case(
        name="mrms",
        store="mrms_20190610.zarr",
        variable="precip_rate",
        convert="none",
        init_times=("2019-06-10T00:20", "2019-06-10T00:30", "2019-06-10T00:40"),
        history=(-20, -10, 0),
        leads=tuple(range(2, 38, 2)),
        scored=(30,),
        peer=_reference({30: (0.591, 0.505, 0.226)}),
        whole=False,
    ),
)


@dataclass(frozen=True)
class Rain:
    """Rain rate of a store, mm h-1, NaN = not observed."""

    source: Source
    decoder: Decoder

    def at(self, times: list[np.datetime64]) -> Field:
        """(time, y, x) at times of the store."""
        indices = tuple(int(np.flatnonzero(self.source.times == moment)[0]) for moment in times)
        cycle = Cycle("skill", times[-1], tuple(times), indices)
        return self.decoder.decode(self.source.read_frames(cycle))


def open_rain(case: Case, data: Path) -> Rain:
    """The rain of a case, read as squall reads it."""
    spec = InputSpec(store=str(data / case.store), variable=case.variable, history=["0min"], convert=case.convert)
    source = open_source(spec)
    return Rain(source, Decoder(source.encoding, ModelSpace(missing=float("nan")), is_zr=case.convert == "zr"))


def forecast_advection(case: Case, rain: Rain, threads: int) -> Callable[[Field], Forecast]:
    """A function from frames to the scored lead times."""
    spec = AdvectionSpec(rain.source.grid.spacing_km, case.history, case.leads)
    with tempfile.TemporaryDirectory() as folder:
        engine = OrtEngine(write_package(spec, Path(folder)) / "model.onnx", threads)
    planes = [case.leads.index(lead) for lead in case.scored]

    def run(frames: Field) -> Forecast:
        framed = _pad(np.where(np.isnan(frames), np.float32(MISSING), frames), spec.stride)
        made = np.empty((len(planes), *framed.shape[1:]), np.float32)
        core = max(framed.shape) if case.whole else TILE_CORE
        for tile, inside, target in _tiles(framed.shape[1:], core, spec):
            made[:, *target] = engine(np.ascontiguousarray(framed[None, :, *tile]))[0][planes][:, *inside]
        made[made < MISSING_BELOW] = np.nan
        return dict(zip(case.scored, made[:, : frames.shape[1], : frames.shape[2]], strict=True))

    return run


def forecast_persistence(case: Case, rain: Rain, threads: int) -> Callable[[Field], Forecast]:
    """A function from frames to the newest one at every scored lead time."""
    return lambda frames: dict.fromkeys(case.scored, frames[-1])


def forecast_pysteps(case: Case, rain: Rain, threads: int) -> Callable[[Field], Forecast]:
    """A function from frames to what pysteps makes of them: Lucas-Kanade on dB above 0.1 mm h-1, then extrapolation."""
    from pysteps import motion, nowcasts

    track, extrapolate = motion.get_method("LK"), nowcasts.get_method("extrapolation")
    step = -case.history[-2]
    last = -(-max(case.scored) // step)

    def run(frames: Field) -> Forecast:
        decibels = 10 * np.log10(np.maximum(frames, np.float32(0.1)))
        decibels[frames < 0.1] = -15
        made = extrapolate(frames[-1], track(decibels), last)
        return {lead: made[lead // step - 1].astype(np.float32) for lead in case.scored}

    return run


def _pad(frames: Field, stride: int) -> Field:
    ends = [(0, -size % stride) for size in frames.shape[1:]]
    return np.pad(frames, [(0, 0), *ends], constant_values=np.float32(MISSING))


Box = tuple[slice, slice]


def _tiles(shape: tuple[int, ...], core: int, spec: AdvectionSpec) -> Iterator[tuple[Box, Box, Box]]:
    """Tiles with their halo, the part of each that is kept, and where it goes."""
    halo = -(-spec.radius // spec.stride) * spec.stride
    for y in range(0, shape[0], core):
        for x in range(0, shape[1], core):
            spans = [_span(at, core, halo, size) for at, size in zip((y, x), shape, strict=True)]
            yield tuple(zip(*spans, strict=True))  # type: ignore[misc]


def _span(at: int, core: int, halo: int, size: int) -> tuple[slice, slice, slice]:
    first, last, end = max(0, at - halo), min(size, at + core + halo), min(size, at + core)
    return slice(first, last), slice(at - first, end - first), slice(at, end)


MODELS = {"advection": forecast_advection, "pysteps": forecast_pysteps, "persistence": forecast_persistence}


def evaluate(case: Case, rain: Rain, model: str, threads: int) -> tuple[list[Score], float]:
    """Scores over all cases, and the mean core-seconds of one forecast."""
    run, seconds, scored = MODELS[model](case, rain, threads), [], []
    minutes = np.timedelta64(60_000_000_000, "ns")
    for text in case.init_times:
        init = np.datetime64(text, "ns")
        frames = rain.at([init + offset * minutes for offset in case.history])
        start = time.process_time()
        made = run(frames)
        seconds.append(time.process_time() - start)
        for lead, field in made.items():
            scored.append((lead, _score(rain, field, init, lead * minutes)))
    means = [pool([one for at, one in scored if at == lead], "cases") for lead in case.scored]
    return [score for rows in means for score in rows], float(np.mean(seconds))


def _score(rain: Rain, field: Field, init: np.datetime64, lead: np.timedelta64) -> xr.Dataset:
    grid = {"y": rain.source.grid.y, "x": rain.source.grid.x}
    forecast = xr.DataArray(field[None], {"lead_time": [lead], "init_time": init} | grid, ("lead_time", "y", "x"))
    observed = xr.DataArray(rain.at([init + lead]), {"time": [init + lead]} | grid, ("time", "y", "x"))
    return score_case(forecast, observed, Rules(THRESHOLDS))


def compare(case: Case, data: Path, threads: int, peer: bool) -> tuple[pd.DataFrame, dict[str, float]]:
    """One row for each lead time and threshold, one column of CSI for each model; and core-seconds by model."""
    rain, seconds = open_rain(case, data), {}
    names = [name for name in MODELS if peer or name != "pysteps"]
    columns: dict[str, Any] = {}
    for name in names:
        scores, seconds[name] = evaluate(case, rain, name, threads)
        table = as_table(scores).set_index(["lead_minutes", "threshold"])
        columns[name] = table["csi"]
        if name == "advection":
            columns["bias"] = table["frequency_bias"]
    reference = pd.Series(case.peer)
    reference.index = reference.index.set_levels(reference.index.levels[0].astype(float), level=0)
    columns.setdefault("pysteps", reference)
    table = pd.DataFrame(columns)[["advection", "pysteps", "persistence", "bias"]]
    table.insert(2, "ahead", table["advection"] - table["pysteps"])
    return table, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data")
    parser.add_argument("--only", choices=[case.name for case in CASES])
    parser.add_argument("--peer", choices=["pysteps"], help="make its forecasts anew")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options, figures = parser.parse_args(), {}
    for case in CASES:
        if options.only in (None, case.name):
            table, seconds = compare(case, options.data, options.threads, options.peer is not None)
            print(f"\n{case.name}: CSI, mean of {len(case.init_times)} init times")
            print(table.round(3).to_string())
            print("core-seconds a forecast:", ", ".join(f"{name} {value:.2f}" for name, value in seconds.items()))
            rows = table.reset_index(names=["lead_minutes", "threshold"]).to_dict("records")
            figures[case.name] = {"scores": rows, "core_seconds": seconds}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
