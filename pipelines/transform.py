"""Codes of a store to model space and model space to codes of a forecast; missing stays missing on the way."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from math import log, prod
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pipelines.encoding import Encoding, is_missing, unpack
from pipelines.errors import ConfigError
from pipelines.layout import FILL_VALUES
from pipelines.model_space import IDENTITY, Floats, ModelSpace
from pipelines.product import InputSpec, OutputSpec, Packing
from pipelines.thresholds import find_thresholds
from pipelines.units import UNCHANGED, Linear, Quantity, convert_units

BLOCK_CELLS = 65_536  # a scratch of 256 KiB and its operands stay in the nearest caches
_GLANCE = 64  # rows: one of so many is looked at first
SHARED_CELLS = 524_288  # where many threads pack: fewer calls, so that they seldom wait for each other between two


@dataclass(frozen=True)
class ModelNeeds:
    """What a model contract asks of its input and promises of its output, as plain values.

    Attributes:
        frames: channels of the tensor, oldest first, `cadence` apart (None for a single frame).
        quantity, space: of the input; `output_quantity`, `output_space`: of the output.
        leads: lead times of the output's channels.
        coverage: `input` = cells missing in the newest frame are missing at every lead time; `model` = the model
            says itself what is missing.
    """

    name: str
    version: str
    frames: int
    cadence: timedelta | None
    quantity: Quantity
    space: ModelSpace
    leads: tuple[timedelta, ...]
    output_quantity: Quantity
    output_space: ModelSpace
    coverage: Literal["model", "input"] = "input"


def every_code(dtype: DTypeLike) -> NDArray[np.integer[Any]]:
    """All numbers of an integer type, by their bits: negative ones at the end."""
    dtype = np.dtype(dtype)
    return np.arange(2 ** (8 * dtype.itemsize), dtype=f"u{dtype.itemsize}").view(dtype)


@dataclass(frozen=True)
class Decoder:
    """Codes as stored -> model space.

    Integer codes of up to 16 bits go through one table, others are computed; both give the same bits.

    Attributes:
        change: of units, after the Z-R conversion if there is one.
        is_zr: reflectivity becomes rain rate (mm h-1) by the store's Z-R relation; no echo is 0 mm h-1.
        block_cells: that are decoded in one call; makes no difference to the values.
    """

    encoding: Encoding
    space: ModelSpace = IDENTITY
    change: Linear = UNCHANGED
    is_zr: bool = False
    block_cells: int = BLOCK_CELLS

    def decode(self, raw: NDArray[Any], out: Floats | None = None) -> Floats:
        """Values in model space, the shape of `raw`; missing cells hold the space's number for missing.

        Args:
            raw: (frame, y, x) codes as stored. Not changed.
            out: where to write, float32 or float16 (the float32 values, rounded); fresh float32 memory if None.
        """
        out = np.empty(raw.shape, np.float32) if out is None else out
        table = self.half_table if out.dtype == np.float16 else self.table
        for codes, target in _blocks(raw, out, self.block_cells):
            if table is not None:
                np.take(table, codes, out=target, mode="wrap")  # negative codes count from the table's end
            else:
                target[...] = self.compute(codes)
        return out

    def is_missing(self, raw: NDArray[Any]) -> NDArray[np.bool_]:
        """True where codes as stored mean missing; the shape of `raw`."""
        return is_missing(raw, self.encoding)

    def compute(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """As `decode`, cell by cell in float64."""
        values = unpack(raw, self.encoding)
        with np.errstate(invalid="ignore", over="ignore"):
            if self.is_zr:
                self._to_rain_rate(values)
            values *= self.change.factor
            values += self.change.offset
            self.space.apply(values)
            values[np.isnan(values)] = self.space.missing
            return values.astype(np.float32)

    @cached_property
    def table(self) -> NDArray[np.float32] | None:
        """Model space of every code, negative ones at the end; None where codes are not enumerable."""
        dtype = np.dtype(self.encoding.dtype)
        if self.encoding.is_float or dtype.itemsize > 2:
            return None
        return self.compute(every_code(dtype))

    @cached_property
    def half_table(self) -> NDArray[np.float16] | None:
        """As `table`, rounded to float16."""
        with np.errstate(over="ignore"):
            return None if self.table is None else self.table.astype(np.float16)

    def _to_rain_rate(self, dbz: NDArray[np.float64]) -> None:
        """R = (10^(dBZ/10) / a)^(1/b), mm h-1, in place."""
        a, b = self.encoding.zr or (float("nan"), 1.0)
        no_echo = self.encoding.no_echo_value
        nothing = np.isclose(dbz, no_echo, rtol=0, atol=1e-4) if no_echo is not None else None
        np.exp((dbz / 10 * log(10) - log(a)) / b, out=dbz)
        if nothing is not None:
            dbz[nothing] = 0.0


@dataclass(frozen=True)
class Encoder:
    """Model output -> packed codes of the forecast store. Safe to use from several threads.

    Attributes:
        change: of units, from the model's output to the store's.
        block_cells: that are packed in one call; makes no difference to the codes.
    """

    packing: Packing
    space: ModelSpace = IDENTITY
    change: Linear = UNCHANGED
    block_cells: int = BLOCK_CELLS

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.packing.dtype)

    @property
    def fill(self) -> int:
        """The code of missing cells; no value is ever packed into it."""
        return FILL_VALUES[self.packing.dtype]

    @cached_property
    def limits(self) -> tuple[int, int]:
        """The least and the greatest code of a value."""
        info = np.iinfo(self.dtype)
        return (info.min + 1, int(info.max)) if self.fill == info.min else (int(info.min), info.max - 1)

    def encode(self, values: Floats, out: NDArray[Any]) -> None:
        """Writes packed codes: rounded half to even, values beyond the packing's range at its ends.

        NaN and values below `missing_below` become the fill code.

        Args:
            values: (lead, y, x) model output, float32 or float16, strided as it likes. Not changed.
            out: (lead, y, x) of the packing's dtype, strided as it likes.
        """
        if values.dtype == np.float16:
            for block, target in _blocks(values, out, self.block_cells):
                np.take(self._half_codes, block.view(np.uint16), out=target, mode="wrap")
            return
        scratch = np.empty(self.block_cells + values.shape[-1], np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            for block, target in _blocks(values, out, self.block_cells):
                work = scratch[: block.size].reshape(block.shape)
                np.copyto(work, block)
                missing = None if self._is_whole(work) else self._is_missing(work)
                if missing is None and work.max(initial=-np.inf) < self._dry[0]:
                    target[...] = self._dry[1]
                    continue
                self._pack(work)
                np.copyto(target, work, casting="unsafe")
                if missing is not None:
                    np.copyto(target, self.fill, where=missing)

    def mark_missing(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Model output with NaN where the model says missing; `values` itself if it never says so."""
        below = self.space.missing_below
        return values if below is None else np.where(values < np.float32(below), np.float32("nan"), values)

    def mask(self, codes: NDArray[Any], missing: NDArray[np.bool_]) -> None:
        """Makes cells missing at every lead time, in place.

        Args:
            codes: (lead, y, x) packed.
            missing: (y, x), for example where the newest frame is.
        """
        if not missing.any():
            return
        least, greatest = self.limits
        pick, other = (np.minimum, greatest) if self.fill < least else (np.maximum, least)
        bounds = np.where(missing, self.fill, other).astype(self.dtype)  # one look at each code, no branch is guessed
        pick(codes, bounds, out=codes)

    def has_values(self, codes: NDArray[Any]) -> tuple[bool, ...]:
        """Of each field of packed codes (lead, y, x), whether any cell is not missing.

        A few rows say so of nearly every field; only without a value there all of it is looked at.
        """
        return tuple(any(bool((part != self.fill).any()) for part in (field[::_GLANCE], field)) for field in codes)

    @cached_property
    def thresholds(self) -> NDArray[np.float32] | None:
        """The packing as a table, for those who pack elsewhere: the least value of each code but the least one.

        (code,) rising, for the codes limits[0] + 1 to limits[1]; NaN at the end for codes that no value has. A value
        that is not missing has the code limits[0] + how many of them it reaches; within a few neighbours of one it may
        be one code off. None if no table tells the packing: larger values have lesser codes, as with a negative factor.
        """
        whole = replace(self, space=replace(self.space, missing_below=None))

        def code_of(values: NDArray[np.float32]) -> NDArray[np.int64]:
            codes = np.empty((1, 1, values.size), self.dtype)
            whole.encode(values.reshape(codes.shape), codes)
            return codes.ravel().astype(np.int64)

        return find_thresholds(code_of, self.limits)

    @cached_property
    def _half_codes(self) -> NDArray[Any]:
        """The code of every float16, by its bits: one look-up takes a third of the time of the formula."""
        values = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
        codes = np.empty((1, 1, values.size), self.dtype)
        self.encode(values.reshape(codes.shape), codes)
        return codes.ravel()

    @cached_property
    def _dry(self) -> tuple[np.float32, int]:
        """The number below which all model output has one code, and that code."""
        work = np.full(1, -np.inf, np.float32)
        self._pack(work)
        return self.space.dry_below, int(work[0])

    def _is_whole(self, values: NDArray[np.float32]) -> bool:
        """True if no cell is missing."""
        below = self.space.missing_below
        return bool(values.min(initial=np.inf) >= np.float32(-np.inf if below is None else below))

    def _is_missing(self, values: NDArray[np.float32]) -> NDArray[np.bool_]:
        below = self.space.missing_below
        return np.isnan(values) if below is None else ~(values >= np.float32(below))

    def _pack(self, work: NDArray[np.float32]) -> None:
        """Model space becomes whole numbers, every one a code of a value; NaN stays."""
        self.space.undo(work)
        work *= self.change.factor / self.packing.scale_factor
        shift = (self.change.offset - self.packing.add_offset) / self.packing.scale_factor
        if shift:
            work += shift
        np.rint(work, out=work)
        np.clip(work, *self.limits, out=work)


def input_quantity(encoding: Encoding, convert: str) -> Quantity:
    """What the frames hold after the product's conversion.

    Raises:
        ConfigError: `convert: zr` of something else than reflectivity in dBZ, or without the store's zr_a and zr_b.
    """
    found = Quantity(encoding.standard_name, encoding.units)
    if convert == "none":
        return found
    if encoding.units.strip().lower() != "dbz":
        raise ConfigError(f"found {found}; input.convert: zr expects equivalent_reflectivity_factor in dBZ")
    if encoding.zr is None:
        raise ConfigError("the attributes zr_a and zr_b of the Z-R relation are missing; input.convert: zr needs both")
    return Quantity("lwe_precipitation_rate", "mm h-1")


def output_quantity(output: OutputSpec, needs: ModelNeeds) -> Quantity:
    """What the forecast holds: the model's output, or what the product's attributes say instead."""
    return Quantity(
        str(output.attributes.get("standard_name", needs.output_quantity.standard_name)),
        str(output.attributes.get("units", needs.output_quantity.units)),
    )


def make_decoder(encoding: Encoding, spec: InputSpec, needs: ModelNeeds) -> Decoder:
    """The decoder from a store's codes to what the model takes.

    Raises:
        ConfigError: the quantity or units of the store do not fit the model (names both).
    """
    try:
        change = convert_units(input_quantity(encoding, spec.convert), needs.quantity)
    except ConfigError as error:
        raise ConfigError(
            f"variable {spec.variable!r} in {spec.store} does not fit the model {needs.name} {needs.version}: {error}"
        ) from error
    return Decoder(encoding, needs.space, change, spec.convert == "zr")


def make_encoder(output: OutputSpec, needs: ModelNeeds) -> Encoder:
    """The encoder from the model's output to the packed codes of the forecast store.

    Raises:
        ConfigError: the product's attributes name a quantity or units that the model's output does not fit.
    """
    try:
        change = convert_units(needs.output_quantity, output_quantity(output, needs))
    except ConfigError as error:
        raise ConfigError(
            f"output.attributes do not fit the output of the model {needs.name} {needs.version}: {error}"
        ) from error
    return Encoder(output.packing, needs.output_space, change)


def _blocks(source: NDArray[Any], target: NDArray[Any], most: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Views of both arrays, a few fields or a few rows at a time, of about so many cells."""
    cells = prod(source.shape[1:])
    if source.ndim > 2 and cells > most // 2:
        for one, other in zip(source, target, strict=True):
            yield from _blocks(one, other, most)
        return
    step = max(1, most // max(1, cells))
    for start in range(0, len(source), step):
        yield source[start : start + step], target[start : start + step]
