"""Finds how far a model looks and on which lattice it may be cut, by running it: change a border; shift the input.

A tile is exact where nothing that lies outside it could have changed the result. So the probe changes everything
outside the borders of a tile and looks how deep the change comes. Borders lie on the lattice of the stride, as the
borders of all tiles do, so every offset within a stride is tried at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from math import gcd
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engines.base import InferenceError, ModelError

Tensor = NDArray[np.float32]
Infer = Callable[[Tensor], Tensor]
Shape = tuple[int, int]

PROBE_VERSION = "4"  # raise it with every change of what a probe finds: needs are kept by it
STRIDES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 18, 20, 24, 28, 32, 36, 40, 48, 56, 64)
PRIMES = 2 * 3 * 5 * 7  # of the strides
SIZES = (256, 512, 1024)
BAND = 32
PATCH = 8
FAINT = 1e-4  # of a random field: below any threshold
ROUNDING = 1e-4  # of the largest result: what tiles that are computed together may differ by


@dataclass(frozen=True)
class Reach:
    """How far a model looks and where it may be cut.

    Attributes:
        radius: cells along a border of a tile that may feel what lies outside it; None = every cell may.
        stride: tile sizes and starts are multiples of it, cells.
    """

    radius: int | None
    stride: int


def probe(
    infer: Infer,
    channels: int,
    fixed: Shape | None = None,
    radius: int | Literal["global"] | None = None,
    stride: int | None = None,
) -> Reach:
    """The reach of a model, measured on random tiles of about 256 cells a side, up to 1024 if it looks far.

    A radius of more than about 500 cells, or of nearly half a fixed tile, comes out as None; so does a model of one
    fixed tile that is the same under no shift, as that tile can only be run whole. It may be too large (a
    weight of exactly zero counts like any other); too small only for a network so narrow that its activations are
    dead on all of the random tile: none of 800 random stacks of 2 to 4 planes, 1 of 200 with a single plane.

    Args:
        infer: (n, channel, h, w) to (n, lead, h, w); raises InferenceError for a shape that it does not take.
        channels: of the input.
        fixed: the one tile size (y, x) that the model takes; None = it takes many.
        radius: the declared one, if any; then only the stride is measured.
        stride: the declared one, if any; no other is tried.

    Raises:
        ModelError: the model runs on no such tile, gives NaN for finite input, or is the same under no shift.
    """
    reach, strides = None, STRIDES if stride is None else (stride,)
    for size in _sizes(fixed, radius):
        trials = _trials(infer, channels, size, fixed, strides)
        first = next(trials, None)
        if first is not None:
            reach = _settle(first, chain([first], trials), radius, strides)
        if first is None or reach is None or reach.radius is not None:
            break
    if reach is None:
        raise ModelError(
            f"the model gives no finite result on a random tile of {fixed or SIZES[0]} cells, nor on one a little "
            f"larger for any stride of {strides}: {_fault(infer, channels, fixed)}; if it takes other tiles, declare "
            "tile.stride and tile.radius"
        )
    return reach


def takes_batches(infer: Infer, channels: int, shape: Shape) -> bool:
    """True if two tiles (y, x) of random numbers have the same results in one batch as each alone.

    So not if the graph was exported for one tile inside, whatever its input says, or if it mixes the tiles of a batch.

    Args:
        infer: of `probe`.
    """
    tiles = _field(channels, 2 * shape[0], shape[1]).reshape(channels, 2, *shape).swapaxes(0, 1).copy()
    try:
        alone, together = np.concatenate([infer(tile[np.newaxis]) for tile in tiles]), infer(tiles)
    except InferenceError:
        return False
    rounding = ROUNDING * np.abs(alone[np.isfinite(alone)]).max(initial=0)
    return alone.shape == together.shape and np.allclose(alone, together, 0, rounding, equal_nan=True)


def _fault(infer: Infer, channels: int, fixed: Shape | None) -> str:
    """What is wrong with the result of the tile that is tried first."""
    tile = _field(channels, *(fixed or (SIZES[0], SIZES[0])))
    try:
        out = infer(tile)
    except InferenceError as error:
        return str(error)
    return "NaN or infinity" if out.shape[-2:] == tile.shape[-2:] else f"a tile of {tile.shape} becomes {out.shape}"


def _sizes(fixed: Shape | None, radius: int | Literal["global"] | None) -> tuple[int, ...]:
    if isinstance(radius, int):
        return (max(SIZES[0], 2 * radius + 4 * STRIDES[-1]),)
    return SIZES if fixed is None and radius is None else SIZES[:1]


@dataclass(frozen=True)
class _Trial:
    """One stride on trial: a random field (1, channel, y, x), and the result of the tile at its corner."""

    infer: Infer
    noise: Tensor
    out: Tensor
    stride: int
    is_fixed: bool

    @property
    def shape(self) -> Shape:
        return self.out.shape[-2], self.out.shape[-1]

    @property
    def tile(self) -> Tensor:
        return np.ascontiguousarray(self.noise[..., : self.shape[0], : self.shape[1]])

    @property
    def deepest(self) -> int:
        """The largest radius that leaves a whole stride of cells to compare."""
        return (min(self.shape) - 3 * self.stride) // 2


def _trials(infer: Infer, channels: int, size: int, fixed: Shape | None, strides: tuple[int, ...]) -> Iterator[_Trial]:
    """Strides whose multiples the model takes; the edge of the tile is a multiple of the stride and of little else."""
    for stride in strides:
        count = next(n for n in range(-(-size // stride), size + PRIMES) if gcd(n, PRIMES) == 1)
        shape = fixed or (count * stride, count * stride)
        if all(edge % stride == 0 for edge in shape):
            field = _field(channels, shape[0] + stride, shape[1] + stride)
            for noise in (field, np.abs(field)):
                out = _result(infer, np.ascontiguousarray(noise[..., : shape[0], : shape[1]]))
                if out is not None and np.isfinite(out).all():
                    yield _Trial(infer, noise, out, stride, fixed is not None)
                    break


def _field(channels: int, rows: int, columns: int) -> Tensor:
    """Random numbers (1, channel, y, x) in patches of very different size, so that no activation is dead everywhere."""
    random = np.random.default_rng(0)
    patches = random.choice([0, 0.01, 1, 1, 100], size=(-(-rows // PATCH), -(-columns // PATCH)))
    sizes = np.kron(patches, np.ones((PATCH, PATCH)))[:rows, :columns]
    return (random.normal(size=(1, channels, rows, columns)) * sizes).astype(np.float32)


def _result(infer: Infer, tile: Tensor) -> Tensor | None:
    """The result of a tile; None if the model does not take this size or changes it."""
    try:
        out = infer(tile)
    except InferenceError:
        return None
    return out if out.shape[-2:] == tile.shape[-2:] else None


def _settle(
    first: _Trial, trials: Iterator[_Trial], radius: int | Literal["global"] | None, strides: tuple[int, ...]
) -> Reach:
    """The reach at the least stride under which the model is the same when shifted."""
    if radius == "global" or (radius is None and any(_depth(t, _wild) > t.deepest for t in (first, _faint(first)))):
        return Reach(None, first.stride)
    for trial in trials:
        if _is_same_when_shifted(trial, trial.deepest if radius is None else radius):
            found = max(_depth(trial, change) for change in CHANGES) if radius is None else radius
            if found > trial.deepest:
                return Reach(None, trial.stride)
            if _is_same_when_shifted(trial, found):
                return Reach(found, trial.stride)
    if first.is_fixed:
        return Reach(None, first.stride)
    reason = "so it knows where on a tile a cell lies, or has another stride; declare `radius: global` for whole frames"
    advice = f"{reason}, or tile.stride and tile.radius"
    if radius is not None:
        advice = f"{radius} cells away from borders; declare a larger tile.radius, or tile.stride, too, or `global`"
    raise ModelError(f"shifting the input of the model by none of {strides} cells shifts its output alike, {advice}")


def _faint(trial: _Trial) -> _Trial:
    """The same on weak rain: a model may ask whether there is more than so much anywhere, which the field answers."""
    weak = replace(trial, noise=trial.noise * np.float32(FAINT))
    return replace(weak, out=trial.infer(weak.tile))


def _is_same_when_shifted(trial: _Trial, margin: int) -> bool:
    """True if tiles cut off one stride further have the same values `margin` cells away from where they were cut.

    Up to the borders that they share with the tile, too: there a model that pads its input itself, to multiples of
    more than the stride, gives other values to a tile of another size. A fixed tile can only be moved as a whole.
    """
    stride = trial.stride
    cuts = [(stride, stride)] if trial.is_fixed else [(stride, 0), (0, -stride)]
    return all(_is_same_when_cut(trial, *ends, margin) for ends in cuts)


def _is_same_when_cut(trial: _Trial, start: int, more: int, margin: int) -> bool:
    """As `_is_same_when_shifted`, for one tile: from `start` to `more` cells beyond the end of the tile."""
    rows, columns = (slice(start, edge + more) for edge in trial.shape)
    moved = _result(trial.infer, np.ascontiguousarray(trial.noise[..., rows, columns]))
    if moved is None:
        return False
    low = start + margin if start else 0
    highs = [min(edge, edge + more) - margin if more else edge for edge in trial.shape]
    here, there = (tuple(slice(low - origin, high - origin) for high in highs) for origin in (0, start))
    return np.array_equal(trial.out[:, :, here[0], here[1]], moved[:, :, there[0], there[1]])


def _depth(trial: _Trial, change: Callable[[Tensor], Tensor]) -> int:
    """Cells along a border that change when everything outside is changed, on any side."""
    band = -(-BAND // trial.stride) * trial.stride
    return max(_depth_of_corner(trial, band, change, side) for side in (1, -1))


def _depth_of_corner(trial: _Trial, band: int, change: Callable[[Tensor], Tensor], side: int) -> int:
    """As `_depth`, for the upper and left borders (side 1) or the lower and right ones (side -1)."""
    tile = trial.tile
    outside = np.ones(trial.shape, bool)
    outside[band:, band:] = False
    tile = np.where(outside[::side, ::side], change(tile), tile)
    changed = (_bits(trial.infer(tile)) != _bits(trial.out)).any(axis=(0, 1))
    rows, columns = np.nonzero(changed[::side, ::side][band:, band:])
    return int(np.minimum(rows, columns).max(initial=-1)) + 1


def _missing(tile: Tensor) -> Tensor:
    """NaN: no sum drowns it, no activation ends it, only a maximum may."""
    return np.full_like(tile, np.nan)


def _huge(tile: Tensor) -> Tensor:
    """So large that no path through many layers loses it to rounding."""
    return np.full_like(tile, 1e30)


def _hugely_negative(tile: Tensor) -> Tensor:
    return np.full_like(tile, -1e30)


def _wild(tile: Tensor) -> Tensor:
    """Huge, of both signs."""
    return np.copysign(np.float32(1e30), tile[..., ::-1, ::-1])


def _other(tile: Tensor) -> Tensor:
    """Like the inside, for models that clip."""
    return tile[..., ::-1, :]


CHANGES = (_wild, _missing, _huge, _hugely_negative, _other)


def _bits(values: Tensor) -> NDArray[np.uint32]:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)
