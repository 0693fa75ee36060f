"""Finds how far a model looks and on which lattice it may be cut, by running it: perturb a cell; shift the input."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.base import InferenceError, ModelError

Infer = Callable[[NDArray[np.float32]], NDArray[np.float32]]

STRIDES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
OFFSETS = (0, 1, 2, 3, 5, 7, 11, 15, 23, 31)  # where in a stride a cell lies decides how far it reaches


@dataclass(frozen=True)
class Reach:
    """How far a model looks (`radius`, cells; None = everywhere) and its lattice (`stride`, cells)."""

    radius: int | None
    stride: int


def probe(infer: Infer, channels: int, size: int = 256) -> Reach:
    """The reach of a model, measured on random tiles of `size` x `size` cells.

    A radius of more than `size` / 2 - 32 cells cannot be told from a global one and comes out as None.

    Raises:
        ModelError: the model runs on no tile of this size, or is the same under no shift that was tried.
    """
    noise = np.random.default_rng(0).normal(size=(1, channels, 2 * size, 2 * size)).astype(np.float32)
    try:
        radius = _radius(infer, np.ascontiguousarray(noise[..., :size, :size]))
    except InferenceError as error:
        raise ModelError(
            f"cannot probe the model on a {size} x {size} tile, declare tile.radius and tile.stride: {error}"
        ) from error
    return Reach(radius, _stride(infer, noise, size, radius))


def _radius(infer: Infer, tile: NDArray[np.float32]) -> int | None:
    size, before, radius = tile.shape[-1], infer(tile), 0
    for offset in OFFSETS:
        cell = size // 2 - 16 + offset
        for bump in (1e3, -1e3):
            changed = tile.copy()
            changed[..., cell, cell] += bump
            rows, columns = np.nonzero((infer(changed) != before).any(axis=(0, 1)))
            radius = max([radius, *np.abs(rows - cell), *np.abs(columns - cell)])
    return None if radius >= size // 2 - 32 else int(radius)


def _stride(infer: Infer, noise: NDArray[np.float32], size: int, radius: int | None) -> int:
    """The least shift of the input that shifts the output alike, judged away from the tile's border."""
    margin = (size // 4 if radius is None else radius) + 1
    first = infer(np.ascontiguousarray(noise[..., :size, :size]))
    for shift in STRIDES:
        if margin * 2 + shift < size and _runs_on(infer, noise, size, shift):
            moved = infer(np.ascontiguousarray(noise[..., shift : shift + size, shift : shift + size]))
            inner = slice(margin + shift, size - margin), slice(margin, size - margin - shift)
            if np.array_equal(first[..., inner[0], inner[0]], moved[..., inner[1], inner[1]]):
                return shift
    raise ModelError(
        f"shifting the input by none of {STRIDES} cells shifts the output alike; "
        "declare tile.stride, or `radius: global` and run whole frames"
    )


def _runs_on(infer: Infer, noise: NDArray[np.float32], size: int, stride: int) -> bool:
    """True if the model takes a tile whose edge is a multiple of the stride but of little else."""
    edge = max(stride, (size // 2 // stride) * stride - stride)
    try:
        return infer(np.ascontiguousarray(noise[..., :edge, :edge])).shape[-2:] == (edge, edge)
    except InferenceError:
        return False
