"""What a bench found, and the statistics of it: frozen values and pure functions, without an engine or a clock."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import isfinite, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.base import Split
from engines.environment import Environment
from engines.spec import Shape

P99_LAPS = 100  # fewer, and the slowest hundredth is not even one lap
UNSTEADY = 0.25  # of the median: rounds farther apart than this tell of a busy machine
FAR = 0.1  # of the reference's spread: outputs farther off than this are hardly the same model's

Batch = NDArray[Any]


@dataclass(frozen=True)
class Effort:
    """How long to measure: each round, every subject has one turn at a shape.

    Args:
        seconds: of single calls of an engine at a shape, over all rounds; a turn has at least one lap, however long
            that is. Batches in a row take as long again.
        rounds: the more, the more alike a noisy machine treats all.
        most: laps of an engine at a shape.

    Raises:
        ValueError: a number is not above 0, or fewer laps than rounds (names it).
    """

    seconds: float = 10.0
    rounds: int = 10
    most: int = 2000

    def __post_init__(self) -> None:
        for name, number in vars(self).items():
            if not 0 < number < float("inf"):
                raise ValueError(f"{name} of the effort is {number}; expected more than 0")
        if self.most < self.rounds:
            raise ValueError(f"at most {self.most} laps in {self.rounds} rounds; expected one or more in each")

    @property
    def turn_seconds(self) -> float:
        return self.seconds / self.rounds

    @property
    def turn_laps(self) -> int:
        return self.most // self.rounds


@dataclass(frozen=True)
class Laps:
    """Durations of single laps, in seconds, round by round, in the order in which they were taken.

    Raises:
        ValueError: a round without laps, or a duration that is not above 0.
    """

    rounds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not self.rounds or not all(self.rounds):
            raise ValueError(f"rounds have {[len(laps) for laps in self.rounds]} laps; expected one or more in each")
        wrong = [lap for lap in self.seconds if not (isfinite(lap) and lap > 0)]
        if wrong:
            raise ValueError(f"a lap took {wrong[0]} seconds; expected more than 0")

    @property
    def seconds(self) -> tuple[float, ...]:
        return tuple(chain.from_iterable(self.rounds))

    @property
    def count(self) -> int:
        return len(self.seconds)

    @property
    def medians(self) -> tuple[float, ...]:
        """Of each round."""
        return tuple(float(np.median(laps)) for laps in self.rounds)

    @property
    def per_second(self) -> float:
        """Laps a second, over all laps."""
        return self.count / sum(self.seconds)

    def percentile(self, share: float) -> float:
        """The duration that this share of the laps, in percent, does not exceed; interpolated between laps.

        >>> Laps(((1.0, 2.0), (3.0,))).percentile(50)
        2.0
        """
        return float(np.percentile(self.seconds, share))

    @property
    def p50(self) -> float:
        return self.percentile(50)

    @property
    def p90(self) -> float:
        return self.percentile(90)

    @property
    def p99(self) -> float:
        return self.percentile(99)


@dataclass(frozen=True)
class SpeedUp:
    """How many times as fast as the reference: by the medians of all laps, and the range over the rounds."""

    value: float
    low: float
    high: float


def compare(reference: Laps, laps: Laps) -> SpeedUp:
    """How many times as fast as the reference laps are; a round is compared with the same round.

    >>> compare(Laps(((2.0,), (4.0,))), Laps(((1.0,), (1.0,))))
    SpeedUp(value=3.0, low=2.0, high=4.0)
    """
    rounds = [slow / fast for slow, fast in zip(reference.medians, laps.medians, strict=False)]
    return SpeedUp(reference.p50 / laps.p50, min(rounds), max(rounds))


@dataclass(frozen=True)
class Difference:
    """How far outputs are from the reference's for one batch, in units of the output; None is infinite or no number.

    Attributes:
        largest: of a cell.
        rms: root mean square over all cells.
        rms_over_std: the same over the standard deviation of the reference (unitless).
    """

    largest: float | None
    rms: float | None
    rms_over_std: float | None


def differ(found: Batch, wanted: Batch) -> Difference:
    """How far `found` is from `wanted`, both (n, lead, h, w); a cell that is NaN in both is equal."""
    parts = [_off(one, other) for one, other in zip(found, wanted, strict=True)]
    largest, squares, variance = (np.array(column) for column in zip(*parts, strict=True))
    rms, std = float(np.sqrt(squares.mean())), float(np.sqrt(variance.mean()))
    relative = rms / std if std > 0 else (0.0 if rms == 0 else float("nan"))
    return Difference(_finite(float(largest.max())), _finite(rms), _finite(relative))


def _off(found: Batch, wanted: Batch) -> tuple[float, float, float]:
    """Largest and mean square difference of one tile, and the variance of what is wanted."""
    f, w = found.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.where((f == w) | (np.isnan(f) & np.isnan(w)), 0.0, np.abs(f - w))
        known = w[np.isfinite(w)]
        return float(off.max()), float(np.square(off).mean()), float(known.var()) if known.size else 0.0


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def typical(splits: Sequence[Split]) -> Split:
    """The median of each part."""
    parts = np.median([list(vars(split).values()) for split in splits], axis=0)
    return Split(*(round(float(seconds), 9) for seconds in parts))


@dataclass(frozen=True)
class Memory:
    """What an engine takes, bytes; None is unknown or does not apply.

    Attributes:
        engine_bytes: the file that it was loaded from.
        weights_bytes: its weights, as its graph holds them.
        activation_bytes, buffer_bytes: of the GPU, to compute in and for inputs and outputs, as the engine tells.
        host_bytes: growth of the process over loading and the first inference; what an engine shares with another
            that was loaded before is counted there.
        device_bytes: memory of the GPU that was free before and is not any more, everything included.
    """

    engine_bytes: int | None = None
    weights_bytes: int | None = None
    activation_bytes: int | None = None
    buffer_bytes: int | None = None
    host_bytes: int | None = None
    device_bytes: int | None = None


@dataclass(frozen=True)
class Measurement:
    """A subject at one shape.

    Attributes:
        laps: calls from end to end, host to host; None if it failed.
        rows: seconds a batch of batches in a row, one row a round; None if the engine has no such way.
        split: medians of the parts of `split_laps` laps; None if the engine cannot tell.
        difference: from the reference; None for the reference itself and where the outputs are of another kind.
        error: why it failed, in one line.
    """

    shape: Shape
    laps: Laps | None = None
    rows: Laps | None = None
    split: Split | None = None
    split_laps: int = 0
    difference: Difference | None = None
    error: str | None = None

    @property
    def tiles_per_second(self) -> float | None:
        return self.laps.per_second * self.shape[0] if self.laps else None

    @property
    def cells_per_second(self) -> float | None:
        """Cells of the grid, whatever their channels."""
        return self.laps.per_second * cells(self.shape) if self.laps else None

    @property
    def tiles_per_second_in_a_row(self) -> float | None:
        return self.rows.per_second * self.shape[0] if self.rows else None


def cells(shape: Shape) -> int:
    """Cells of a batch.

    >>> cells((8, 4, 512, 256))
    1048576
    """
    n, _, h, w = shape
    return n * h * w


@dataclass(frozen=True)
class Result:
    """All that was found of one subject.

    Attributes:
        tensors: its input and output, in words.
        load_seconds: from nothing to an engine.
        first_seconds: the first inference, which pays for what later ones find ready; at the largest shape.
        measurements: of every shape, in the order of the report's; none if it could not be loaded.
        error: why it could not be loaded, in one line.
    """

    name: str
    notes: Mapping[str, str] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()
    load_seconds: float | None = None
    first_seconds: float | None = None
    memory: Memory = Memory()
    measurements: tuple[Measurement, ...] = ()
    error: str | None = None

    def at(self, shape: Shape) -> Measurement | None:
        """The measurement of a shape, if it succeeded."""
        found = [one for one in self.measurements if one.shape == shape and one.laps]
        return found[0] if found else None


@dataclass(frozen=True)
class Report:
    """What a bench found; the first result is the reference that all are compared with.

    Attributes:
        about: what was measured, such as the model and its version, as names and values for the reader.

    Raises:
        ValueError: no result or no shape, or two results of one name.
    """

    environment: Environment
    effort: Effort
    shapes: tuple[Shape, ...]
    results: tuple[Result, ...]
    about: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.results or not self.shapes:
            raise ValueError(f"a report of {len(self.results)} results at {len(self.shapes)} shapes; expected some")
        names = [result.name for result in self.results]
        if len(set(names)) < len(names):
            raise ValueError(f"results are named {names}; expected each once")

    @property
    def reference(self) -> Result:
        return self.results[0]

    def speed_up(self, result: Result, shape: Shape) -> SpeedUp | None:
        """Of a result over the reference at a shape; None unless both were measured there."""
        mine, theirs = result.at(shape), self.reference.at(shape)
        return compare(theirs.laps, mine.laps) if mine and theirs and mine.laps and theirs.laps else None

    @property
    def main_shape(self) -> Shape:
        """The largest shape at which most results were measured: the one to speak of first."""
        return max(self.shapes, key=lambda shape: (sum(bool(one.at(shape)) for one in self.results), prod(shape)))

    @property
    def errors(self) -> dict[str, str]:
        """What failed and why, by subject, and by shape where only some did."""
        whole = {result.name: result.error for result in self.results if result.error}
        single = {
            f"{result.name} at {show_shape(one.shape)}": one.error
            for result in self.results
            for one in result.measurements
            if one.error
        }
        return whole | single


def show_shape(shape: Sequence[int]) -> str:
    """A shape in words.

    >>> show_shape((8, 4, 512, 512))
    '8x4x512x512'
    """
    return "x".join(map(str, shape))


def warnings(report: Report) -> tuple[str, ...]:
    """What a reader should know before trusting the figures, a sentence each."""
    found = [(result.name, one) for result in report.results for one in result.measurements if one.laps]
    return (*_few_laps(found), *_unsteady(found), *_far(found))


Found = list[tuple[str, Measurement]]


def _few_laps(found: Found) -> Iterator[str]:
    few: dict[str, list[str]] = {}
    for name, one in found:
        if one.laps and one.laps.count < P99_LAPS:
            few.setdefault(name, []).append(f"{one.laps.count} at {show_shape(one.shape)}")
    for name, counts in few.items():
        yield f"The p99 of {name} rests on fewer than {P99_LAPS} laps ({', '.join(counts)}): read it as a maximum."


def _unsteady(found: Found) -> Iterator[str]:
    for name, one in found:
        medians = one.laps.medians if one.laps else (1.0,)
        apart = (max(medians) - min(medians)) / float(np.median(medians))
        if apart > UNSTEADY:
            where = f"{name} at {show_shape(one.shape)}"
            yield f"The rounds of {where} are {apart:.0%} apart: the machine was busy with something else."


def _far(found: Found) -> Iterator[str]:
    for name, one in found:
        off, where = one.difference, f"The output of {name} at {show_shape(one.shape)}"
        if off and off.largest is None:
            yield f"{where} is NaN or infinite where the reference is not."
        elif off and off.rms_over_std is None:
            yield f"{where} differs from the reference's, which is the same in every cell: is it the same model?"
        elif off and (off.rms_over_std or 0.0) > FAR:
            yield f"{where} is {off.rms_over_std:.2g} of its spread away from the reference: is it the same model?"
