"""Drifting rain cells of known speed, and a way to run a graph."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

Tensor = NDArray[np.float32]


def rain(shape: tuple[int, int], moved: tuple[float, float], seed: int = 0, cells: int = 60) -> Tensor:
    """(y, x) rain rate, mm h-1, of round showers moved by (y, x) cells; 0 where dry."""
    random = np.random.default_rng(seed)
    y, x = np.arange(shape[0])[:, None], np.arange(shape[1])
    field = np.zeros(shape)
    for _ in range(cells):
        at_y, at_x = random.uniform(0, 1, 2) * shape + moved
        size, peak = random.uniform(3, 10), random.uniform(1, 20)
        field += peak * np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / (2 * size**2))
    return np.where(field < 0.05, 0, field).astype(np.float32)


@pytest.fixture
def drifting() -> Callable[..., Tensor]:
    """Three frames (1, 3, y, x) of rain that moves by (y, x) cells a frame; the last one is not moved at all."""

    def make(shape: tuple[int, int], step: tuple[float, float] = (2, -3), seed: int = 0, cells: int = 60) -> Tensor:
        frames = [rain(shape, (step[0] * n, step[1] * n), seed, cells) for n in (-2, -1, 0)]
        return np.stack(frames)[None]

    return make


@pytest.fixture(scope="session")
def load() -> Callable[[onnx.ModelProto], Callable[[Tensor], Tensor]]:
    """A graph as a function of its input."""

    def make(model: onnx.ModelProto, threads: int = 1) -> Callable[[Tensor], Tensor]:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return lambda frames: np.asarray(session.run(None, {"frames": frames})[0])

    return make
