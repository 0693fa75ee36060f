"""How a model sees physical values: steps such as log10 and standardise, there and back; missing stays missing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, isnan, log, log10
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConfigError

Floats = NDArray[np.floating[Any]]


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


IDENTITY = ModelSpace()


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
