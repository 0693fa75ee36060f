"""Prints what half, INT8 and packed I/O change in a forecast, in ONNX Runtime on real rain.

    python -m benchmarks.precision [--data ../shared/data] [--width 8] [--depth 3]

The U-Net has random weights, reads log10 of the rain rate and adds a correction to the newest field; errors are given
as a share of the standard deviation of that correction (RMSE/std), since the newest field itself costs nothing.
INT8 is calibrated on as many cases each time: calm ones, random ones, those that `choose_cases` takes, and the latter
with rain four times as strong among them. It is judged on other cases, and on the strongest of them times four.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
from numpy.typing import NDArray

from benchmarks.skill import CASES, Rain, open_rain
from engines.precision import Packing, choose_cases, describe, emulate_half, pack_io, to_half, to_int8
from engines.zoo import UnetSpec
from engines.zoo.unet import write_graph as write_unet

Field = NDArray[np.float32]

FRAMES, SIDE, COUNT, DRY = 4, 128, 16, -2.0
STRONGER = 4


@dataclass(frozen=True)
class Sample:
    """Cases cut from an archive, (1, frame, y, x) rain rate in mm h-1 each, NaN = not observed."""

    rain: list[Field]

    @property
    def intensity(self) -> Field:
        """(case,) highest rain rate, mm h-1."""
        return np.array([np.nanmax(case) for case in self.rain])


def run(model: onnx.ModelProto, batch: NDArray[np.generic], outputs: list[str] | None = None) -> list[Field]:
    """Outputs of a model in ONNX Runtime, two threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(outputs, {session.get_inputs()[0].name: batch})


def cut(rain: Rain) -> Sample:
    """Every window with some rain and at least half of it observed, from runs of frames that share none."""
    cases = []
    for start in range(0, len(rain.source.times) - FRAMES + 1, FRAMES):
        frames = rain.at(list(rain.source.times[start : start + FRAMES]))
        for y in range(0, frames.shape[1] - SIDE + 1, SIDE):
            for x in range(0, frames.shape[2] - SIDE + 1, SIDE):
                case = frames[None, :, y : y + SIDE, x : x + SIDE]
                if np.isfinite(case).mean() > 0.5 and np.nanmax(case) > 0.1:
                    cases.append(case)
    return Sample(cases)


def to_log(rain: Field, factor: float = 1) -> Field:
    """log10 of mm h-1; below 0.1, and missing, the dry value."""
    wet = np.where(rain * factor >= 0.1, rain * factor, 10**DRY)
    return np.log10(wet, dtype=np.float32)


def to_log_from_zero(rain: Field, factor: float = 1) -> Field:
    """log10 of tenths of mm h-1; below 1, and missing, 0: dry is not the largest number."""
    return np.maximum(to_log(rain, factor) + 1, 0)


def to_rate(rain: Field, factor: float = 1) -> Field:
    """mm h-1 itself; missing is 0."""
    return np.nan_to_num(rain * np.float32(factor))


SPACES: dict[str, Callable[..., Field]] = {"log, dry -2": to_log, "log, dry 0": to_log_from_zero, "mm h-1": to_rate}


def error(model: onnx.ModelProto, reference: onnx.ModelProto, cases: list[Field]) -> float:
    """RMSE of the correction over its standard deviation, all cases pooled."""
    batch = np.concatenate(cases)
    made, want = run(model, batch)[0], run(reference, batch)[0]
    return float(np.sqrt(np.mean((made - want) ** 2)) / np.std(want - batch[:, -1:]))


def int8_table(reference: onnx.ModelProto, sample: Sample) -> pd.DataFrame:
    """RMSE/std by model space, by what INT8 was calibrated on (rows) and by what it is judged on (columns)."""
    known, judged = Sample(sample.rain[::2]), Sample(sample.rain[1::2])
    order = np.argsort(known.intensity, kind="stable")
    chosen = [(known.rain[k], 1) for k in choose_cases(known.intensity, COUNT)]
    stronger = [(known.rain[k], STRONGER) for k in order[-COUNT // 4 :]]
    sets = {
        "calm": [(known.rain[k], 1) for k in order[:COUNT]],
        "random": [(known.rain[k], 1) for k in np.random.default_rng(0).permutation(order)[:COUNT]],
        "chosen": chosen,
        f"chosen, and {STRONGER}x": chosen[len(stronger) :] + stronger,
    }
    rows = {}
    for space, convert in SPACES.items():
        ordinary = [convert(case) for case in judged.rain]
        strongest = [convert(judged.rain[k], STRONGER) for k in np.argsort(judged.intensity)[-COUNT:]]
        for name, cases in sets.items():
            model = to_int8(reference, [convert(case, factor) for case, factor in cases])
            errors = [error(model, reference, group) for group in (ordinary, strongest)]
            rows[space, name] = dict(zip(("ordinary", f"strongest {STRONGER}x"), errors, strict=True))
    return pd.DataFrame(rows).T


def half_of_unet(reference: onnx.ModelProto, sample: Sample) -> dict[str, float]:
    """RMSE/std of half on ordinary rain and on rain four times as strong, as ONNX Runtime runs it and as a GPU does."""
    half, cases = to_half(reference), [to_log(case) for case in sample.rain]
    strong = [to_log(sample.rain[k], STRONGER) for k in np.argsort(sample.intensity)[-COUNT:]]
    return {
        "half graph, run by ONNX Runtime": error(half, reference, cases),
        "half graph, every rounding written out": error(emulate_half(half), reference, cases),
        f"the same, strongest {STRONGER}x": error(emulate_half(half), reference, strong),
    }


def packed_unet(reference: onnx.ModelProto, sample: Sample) -> dict[str, float]:
    """Codes from a packed graph against those of the same packing on the host, and the bytes that move."""
    packing = Packing.spanning(DRY, 2.5)
    packed = pack_io(reference, packing, packing, missing=DRY)
    batch = np.concatenate([to_log(case) for case in sample.rain[:COUNT]])
    codes = np.clip(np.rint((batch.astype(float) - packing.offset) / packing.scale), 0, 254).astype(np.uint8)
    codes[np.isnan(np.concatenate(sample.rain[:COUNT]))] = packing.missing_code
    decoded = np.where(codes == packing.missing_code, DRY, codes * packing.scale + packing.offset).astype(np.float32)
    want = np.clip(np.rint((run(reference, decoded)[0].astype(float) - packing.offset) / packing.scale), 0, 254)
    moved = np.abs(run(packed, codes)[0] - want)
    return {
        "largest difference, codes": float(moved.max()),
        "share of codes that differ": float(np.mean(moved > 0)),
        "bytes in and out, share of float32": codes.itemsize / batch.itemsize,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--depth", type=int, default=3)
    options = parser.parse_args()
    rain = open_rain(CASES[0], options.data)
    sample = cut(rain)
    unet = write_unet(UnetSpec(width=options.width, depth=options.depth, frames=FRAMES))
    print(f"{len(sample.rain)} cases, highest rain rate up to {sample.intensity.max():.1f} mm h-1")
    print("\nU-Net in half,", describe(to_half(unet)))
    print(pd.Series(half_of_unet(unet, sample)).to_string(float_format="{:.2g}".format))
    print("\nU-Net in INT8, RMSE/std")
    print(int8_table(unet, sample).to_string(float_format="{:.3f}".format))
    print("\nU-Net with codes")
    print(pd.Series(packed_unet(unet, sample)).to_string(float_format="{:.2g}".format))


if __name__ == "__main__":
    main()
