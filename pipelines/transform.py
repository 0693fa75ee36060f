"""Codes of a store to model space and model space to codes of a forecast; missing stays missing on the way."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from math import isfinite, isnan, log, log10, prod
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.encoding import Encoding, is_missing, unpack
from pipelines.errors import ConfigError
from pipelines.layout import FILL_VALUES
from pipelines.product import InputSpec, OutputSpec, Packing
from pipelines.thresholds import find_thresholds
from pipelines.units import UNCHANGED, Linear, Quantity, convert_units

Floats = NDArray[np.floating[Any]]

BLOCK_CELLS = 65_536  # a scratch of 256 KiB and its operands stay in the nearest caches
SHARED_CELLS = 524_288  # where many threads pack: fewer calls, so that they seldom wait for each other between two


class Step(Protocol):
    """One invertible step to model space. Both ways change `values` in place; NaN stays NaN."""

    def apply(self, values: Floats) -> None: ...

    def undo(self, values: Floats) -> None: ...


@dataclass(frozen=True)
class Logarithm:
    """factor * log10(value + offset), and `zero` for values below the threshold.

    The factor is 1 for log10, 10 for dB, log(10) for the natural logarithm. Back again everything below the threshold
    is 0.

    Attributes:
        bound: the number below which that is so; None = just below the threshold. Steps that follow may round.
    """

    threshold: float = 0.0
    offset: float = 0.0
    zero: float | None = None
    factor: float = 1.0
    bound: np.float32 | None = None

    def __post_init__(self) -> None:
        if self.threshold + self.offset <= 0:
            raise ConfigError(
                f"threshold {self.threshold:g} + offset {self.offset:g} has no logarithm; expected a sum above 0"
            )
        if self.threshold > 0 and (self.zero is None or self.zero >= self.least):
            raise ConfigError(
                f"zero {self.zero} does not lie below the threshold {self.threshold:g}, which is {self.least:g} in "
                "model space, so dry could not be told from wet"
            )

    @property
    def least(self) -> float:
        """The threshold in model space."""
        return self.factor * log10(self.threshold + self.offset)

    @property
    def dry_below(self) -> np.float32:
        """The number that this step gives below which every value is 0."""
        return _next_below(np.float32(self.least)) if self.bound is None else self.bound

    def apply(self, values: Floats) -> None:
        dry = values < self.threshold
        values[dry] = self.threshold
        values += self.offset
        np.log10(values, out=values)
        values *= self.factor
        values[dry] = self.least if self.zero is None else self.zero

    def undo(self, values: Floats) -> None:
        dry = values < self.dry_below
        values *= log(10.0) / self.factor
        np.exp(values, out=values)
        if self.offset:
            values -= self.offset
        values *= np.logical_not(dry, out=dry)  # three times as fast as an assignment by mask


@dataclass(frozen=True)
class Clip:
    """Values held between two ends, either of which may be open; both ways."""

    minimum: float = -np.inf
    maximum: float = np.inf

    def __post_init__(self) -> None:
        if not self.minimum < self.maximum:
            raise ConfigError(f"clip from {self.minimum:g} to {self.maximum:g} leaves nothing")

    def apply(self, values: Floats) -> None:
        np.maximum(values, self.minimum, out=values)
        np.minimum(values, self.maximum, out=values)

    undo = apply


@dataclass(frozen=True)
class Standardise:
    """(value - mean) / std."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (self.std > 0 and isfinite(self.std) and isfinite(self.mean)):
            raise ConfigError(f"mean is {self.mean:g}, std is {self.std:g}; expected finite numbers, std above 0")

    def apply(self, values: Floats) -> None:
        values -= self.mean
        values /= self.std

    def undo(self, values: Floats) -> None:
        values *= self.std
        values += self.mean


def _decibel(threshold: float = 0.0, offset: float = 0.0, zero: float | None = None) -> Logarithm:
    return Logarithm(threshold, offset, zero, 10.0)


def _log(threshold: float = 0.0, offset: float = 0.0, zero: float | None = None) -> Logarithm:
    return Logarithm(threshold, offset, zero, log(10.0))


def _log10(threshold: float = 0.0, offset: float = 0.0, zero: float | None = None) -> Logarithm:
    return Logarithm(threshold, offset, zero)


def _log1p(threshold: float = 0.0, zero: float | None = None) -> Logarithm:
    return Logarithm(threshold, 1.0, zero, log(10.0))


_STEPS: Mapping[str, Callable[..., Step]] = {
    "clip": Clip,
    "db": _decibel,
    "dbr": _decibel,
    "log": _log,
    "log10": _log10,
    "log1p": _log1p,
    "standardise": Standardise,
}


@dataclass(frozen=True)
class ModelSpace:
    """How a model sees physical values.

    Attributes:
        steps: from physical values to model space, in order; none is the identity.
        missing: what a missing cell is given as.
        missing_below: cells of the model's output below it are missing; None if it never says so. NaN always is.
    """

    steps: tuple[Step, ...] = ()
    missing: float = 0.0
    missing_below: float | None = None

    @property
    def dry_below(self) -> np.float32:
        """Below it all numbers mean the same physical value; -inf if no such bound is known.

        A logarithm that other steps follow has one, too, but not to the last bit: what they undo is rounded.
        """
        last = self.steps[-1] if self.steps else None
        return last.dry_below if isinstance(last, Logarithm) else np.float32(-np.inf)

    def apply(self, values: Floats) -> None:
        """Physical values become model space, in place; NaN stays NaN."""
        for step in self.steps:
            step.apply(values)

    def undo(self, values: Floats) -> None:
        """Model space becomes physical values, in place; NaN stays NaN."""
        for step in reversed(self.steps):
            step.undo(values)


def make_space(
    transform: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    missing: float = 0.0,
    missing_below: float | None = None,
) -> ModelSpace:
    """The model space that a contract describes.

    Args:
        transform: `{name: log10, threshold: 0.1, zero: -2}`, or several of them, applied in order and undone in
            reverse. Names are identity, log, log10, log1p, db (also dbr), clip, standardise.

    Raises:
        ConfigError: an unknown name, an unknown or unfit number, or steps between which dry cells would not stay dry
            (names the step and what is known).
    """
    parts = [transform] if isinstance(transform, Mapping) else transform
    named = [(str(p.get("name")), _step_of(parts, p)) for p in parts if p.get("name") != "identity" or len(p) > 1]
    steps = (_bounded(named, place) for place in range(len(named)))
    return ModelSpace(tuple(steps), missing, missing_below)


def _step_of(parts: Sequence[Mapping[str, Any]], part: Mapping[str, Any]) -> Step:
    """The step of a part; an error says in which chain it stands."""
    try:
        return _step(part)
    except ConfigError as error:
        if len(parts) == 1:
            raise
        raise ConfigError(f"in {' -> '.join(str(p.get('name')) for p in parts)}: {error}") from error


def _bounded(named: Sequence[tuple[str, Step]], place: int) -> Step:
    """The step at a place of a chain; a logarithm with its bound as far down as the steps after it round.

    Raises:
        ConfigError: dry would come back as another number than 0, or could not be told from wet.
    """
    name, step = named[place]
    if not isinstance(step, Logarithm) or len(named) == 1:
        return step
    before, after = (ModelSpace(tuple(s for _, s in part)) for part in (named[:place], named[place + 1 :]))
    dry = np.zeros(1)
    with np.errstate(invalid="ignore", over="ignore"):
        before.undo(dry)
        least, bound = _there_and_back(after, step.least), _there_and_back(after, step.least, _next_below)
        zero = -np.inf if step.zero is None else _there_and_back(after, step.zero)
    chain = f"in {' -> '.join(n for n, _ in named)}: {name}"
    if dry[0]:
        raise ConfigError(f"{chain} gives 0 back for dry, which the steps before it make {dry[0]:g}; expected 0")
    if not np.isclose(least, step.least, rtol=1e-3, atol=1e-3):
        raise ConfigError(
            f"{chain} gives {step.least:g} for its threshold {step.threshold:g}, which the steps after it give back as "
            f"{least:g}; expected the same"
        )
    if zero >= bound:
        raise ConfigError(
            f"{chain} has the zero {step.zero}, which the steps after it give back as {zero:g}; the threshold is "
            f"{least:g}, so dry could not be told from wet"
        )
    return replace(step, bound=bound)


def _there_and_back(
    space: ModelSpace, number: float, change: Callable[[np.float32], np.float32] = np.float32
) -> np.float32:
    """What a number becomes that is taken to model space, changed there, and taken back in float32."""
    there = np.array([number], np.float64)
    space.apply(there)
    back = np.array([change(np.float32(there[0]))], np.float32)
    space.undo(back)
    return np.float32(back[0])


def _next_below(number: np.float32) -> np.float32:
    return np.float32(np.nextafter(number, np.float32(-np.inf)))


def _step(part: Mapping[str, Any]) -> Step:
    name, numbers = str(part.get("name")), {key: value for key, value in part.items() if key != "name"}
    if name not in _STEPS:
        known = ", ".join(["identity", *_STEPS])
        raise ConfigError(f"transform {name!r} with {sorted(numbers)} is not known; expected one of {known}")
    unfit = [f"{key}={value!r}" for key, value in numbers.items() if not _is_number(value)]
    if unfit:
        raise ConfigError(f"transform {name!r} has {', '.join(unfit)}; expected numbers")
    try:
        return _STEPS[name](**numbers)
    except TypeError as error:
        raise ConfigError(f"transform {name!r} does not take {sorted(numbers)}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not isnan(value)


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
    space: ModelSpace = ModelSpace()
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
        codes = np.arange(2 ** (8 * dtype.itemsize), dtype=f"u{dtype.itemsize}").view(dtype)
        return self.compute(codes)

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
    space: ModelSpace = ModelSpace()
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
        keep = np.where(missing, 0, ~self.dtype.type(0)).astype(self.dtype)  # bits, so that no branch is guessed
        fill = np.where(missing, self.fill, 0).astype(self.dtype)
        for lead in codes:
            lead &= keep
            lead |= fill

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
