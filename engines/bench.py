"""How fast engines are, what memory they take and how far apart their outputs are, measured side by side.

Knows nothing of grids, Ray or the command line. The clock and the memory are read through a `Meter` (engines/meter.py).
"""

import gc
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from engines.base import Accounted, Engine, Overlapping, Split, Timed, as_given
from engines.bench_report import (
    Batch,
    Difference,
    Effort,
    Laps,
    Measurement,
    Memory,
    Report,
    Result,
    differ,
    show_shape,
    typical,
)
from engines.environment import Environment, describe_environment
from engines.graph import first_line
from engines.meter import Growth, Mark, Meter
from engines.spec import Shape, to_shape

__all__ = ["Effort", "Progress", "Report", "Subject", "bench", "noise"]

RUN_UP = 0.2  # of a turn: laps that are not measured, for caches and clocks that idled or were another engine's
LEAST_IN_A_ROW, MOST_SPLITS = 8, 20  # batches of a row; laps of a turn that are split into their parts

Inputs = Callable[[Shape, str], Batch]


@dataclass(frozen=True)
class Subject:
    """An engine to be measured, not loaded yet.

    Args:
        name: for the reader, such as "tensorrt half"; each only once.
        load: gives the engine, ready to run; what it takes is the load time.
        engine_bytes: size of the file that it is loaded from.
        weights_bytes: of its weights.
        notes: more about it for the reader, as names and values.

    Raises:
        ValueError: no name.
    """

    name: str
    load: Callable[[], Engine]
    engine_bytes: int | None = None
    weights_bytes: int | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError(f"the name of a subject is {self.name!r}; expected a word or more")


@dataclass(frozen=True)
class Progress:
    """How far a bench is: steps done of all, and what is being done."""

    done: int
    steps: int
    doing: str


def noise(shape: Shape, dtype: str) -> Batch:
    """A batch of random values, the same for the same shape and type: normal ones, or every code of an integer type."""
    random, kind = np.random.default_rng(shape), np.dtype(dtype)
    if kind.kind == "f":
        return random.standard_normal(shape, np.float32).astype(kind)
    if kind.kind == "b":
        return random.random(shape) < 0.5
    span = np.iinfo(kind)
    return random.integers(span.min, span.max, shape, kind, endpoint=True)


def ignore(progress: Progress) -> None:
    """Tells nobody."""


def bench(
    subjects: Sequence[Subject],
    shapes: Sequence[Shape],
    effort: Effort | None = None,
    *,
    inputs: Inputs = noise,
    meter: Meter | None = None,
    environment: Environment | None = None,
    about: Mapping[str, str] | None = None,
    on_progress: Callable[[Progress], None] = ignore,
) -> Report:
    """Measures engines side by side: all are loaded, then take turns, so that a noisy machine hurts all alike.

    A subject that fails, wherever, is reported with its error and the others go on; a batch that does not fit costs it
    that shape alone. Engines are closed at the end.

    Args:
        subjects: the first is the reference that the others are compared with.
        shapes: (n, channel, h, w) of the batches, in the order of the report.
        inputs: gives a batch of a shape and dtype.
        meter: reads the clock and the memory, of GPU 0 by default.
        environment: what to report as the machine; by default this one.
        about: what is measured, such as the model and its version, as names and values for the reader.

    Raises:
        ValueError: no subjects or shapes, or one given twice, or a batch of `inputs` of another shape or dtype.
    """
    _check(subjects, shapes)
    effort, meter = effort or Effort(), meter or Meter()
    tell = _Teller(on_progress, len(subjects) + len(shapes) * effort.rounds)
    with ExitStack() as owned:
        largest = max(shapes, key=prod)
        loaded = [_load(subject, largest, inputs, meter, tell, owned) for subject in subjects]
        rows = [_measure(loaded, shape, effort, inputs, meter, tell) for shape in shapes]
    tell("done")
    results = tuple(
        replace(one.result, measurements=tuple(row[one.result.name] for row in rows))
        if one.engine is not None
        else one.result
        for one in loaded
    )
    environment = environment or describe_environment(meter.device)
    return Report(environment, effort, tuple(shapes), results, dict(about or {}))


def _check(subjects: Sequence[Subject], shapes: Sequence[Shape]) -> None:
    for what, things in (("subjects", [subject.name for subject in subjects]), ("shapes", list(shapes))):
        if not things:
            raise ValueError(f"no {what} were given; expected one or more")
        twice = [thing for thing, times in Counter(things).items() if times > 1]
        if twice:
            raise ValueError(f"{what} have {twice[0]!r} twice; expected each once")
    for shape in shapes:
        if len(shape) != 4 or min(shape) < 1:
            raise ValueError(f"a batch of shape {shape} was asked for; expected (n, channel, h, w), all 1 or more")


class _Teller:
    """Counts steps."""

    def __init__(self, tell: Callable[[Progress], None], steps: int) -> None:
        self._tell, self._steps, self._done = tell, steps, 0

    def __call__(self, doing: str) -> None:
        """Before a step, and after the last."""
        self._tell(Progress(self._done, self._steps, doing))
        self._done += 1


@dataclass(frozen=True)
class _Loaded:
    """A subject's engine, None if it failed, and what is known so far."""

    engine: Engine | None
    result: Result


def _load(subject: Subject, shape: Shape, inputs: Inputs, meter: Meter, tell: _Teller, owned: ExitStack) -> _Loaded:
    """Load a subject and run it once at a shape."""
    tell(f"loading {subject.name}")
    known = Result(subject.name, dict(subject.notes), memory=Memory(subject.engine_bytes, subject.weights_bytes))
    gc.collect()
    before = Mark(meter)
    try:
        engine = subject.load()
        owned.callback(engine.close)
        np.dtype(engine.specs[0].dtype)
    except Exception as error:  # of any kind: the other subjects go on
        return _Loaded(None, replace(known, error=_say(error)))
    load = before.passed()
    batch = _batch(engine, shape, inputs)
    first = _run_first(engine, batch, meter)
    tensors = tuple(str(spec) for spec in engine.specs)
    known = replace(
        known, tensors=tensors, load_seconds=_seconds(load.seconds), memory=_memory(subject, engine, load, first)
    )
    return _Loaded(engine, replace(known, first_seconds=_seconds(first.seconds) if first else None))


def _run_first(engine: Engine, batch: Batch, meter: Meter) -> Growth | None:
    """Over the first inference; None if it fails, which is reported where the shape is measured."""
    before = Mark(meter)
    try:
        engine(batch)
    except Exception:
        return None
    return before.passed()


def _memory(subject: Subject, engine: Engine, load: Growth, first: Growth | None) -> Memory:
    """The growth over loading and the first inference, without that of the batch between them."""
    host, device = load.host, load.device
    if first:
        host += first.host
        device = None if device is None or first.device is None else device + first.device
    return Memory(
        subject.engine_bytes,
        subject.weights_bytes,
        engine.activation_bytes if isinstance(engine, Accounted) else None,
        engine.buffer_bytes if isinstance(engine, Accounted) else None,
        max(0, host),
        None if device is None else max(0, device),
    )


def _batch(engine: Engine, shape: Shape, inputs: Inputs) -> Batch:
    dtype = engine.specs[0].call_dtype
    batch = inputs(shape, dtype)
    if batch.shape != shape or batch.dtype != dtype:
        raise ValueError(f"inputs gave {batch.shape} of {batch.dtype}; expected {shape} of {dtype}")
    return batch


@dataclass(frozen=True)
class _Turn:
    """What one subject did in one round."""

    laps: tuple[float, ...]
    row: float | None
    splits: tuple[Split, ...]


@dataclass
class _Run:
    """A subject at one shape, while it is measured."""

    name: str
    engine: Engine
    batch: Batch
    turns: list[_Turn] = field(default_factory=list)
    difference: Difference | None = None
    error: str | None = None

    def attempt(self, step: "Callable[[_Run], None]") -> None:
        """A step of the measurement, unless one has failed."""
        if self.error is None:
            try:
                step(self)
            except Exception as error:  # of any kind: the other subjects go on
                self.error = _say(error)


def _measure(
    loaded: Sequence[_Loaded], shape: Shape, effort: Effort, inputs: Inputs, meter: Meter, tell: _Teller
) -> dict[str, Measurement]:
    """All engines at one shape: their outputs once, then rounds of turns, every other one in reverse order."""
    runs = [
        _Run(one.result.name, one.engine, _batch(one.engine, shape, inputs)) for one in loaded if one.engine is not None
    ]
    _compare_outputs(runs, loaded[0].result.name)
    for number in range(effort.rounds):
        tell(f"{show_shape(shape)}, round {number + 1} of {effort.rounds}")
        for run in runs if number % 2 == 0 else reversed(runs):
            run.attempt(lambda one: one.turns.append(_take_turn(one.engine, one.batch, effort, meter)))
    return {run.name: _sum_up(run, shape) for run in runs}


def _compare_outputs(runs: Sequence[_Run], reference: str) -> None:
    """Run every engine once; each one's difference from the reference, if that could be run."""
    wanted: list[tuple[str, Batch]] = []  # the dtype of the reference's input, and its output

    def look(run: _Run) -> None:
        output, dtype = run.engine(run.batch), str(run.batch.dtype)
        if run.name == reference:
            wanted.append((dtype, output))
        elif wanted and _are_alike((dtype, output), wanted[0]):
            run.difference = differ(output, wanted[0][1])

    for run in runs:
        run.attempt(look)


def _are_alike(one: tuple[str, Batch], other: tuple[str, Batch]) -> bool:
    return (one[0], one[1].dtype, one[1].shape) == (other[0], other[1].dtype, other[1].shape)


def _take_turn(engine: Engine, batch: Batch, effort: Effort, meter: Meter) -> _Turn:
    """A run-up that is not kept; laps; batches in a row and laps that are split, where the engine can."""
    _run_laps(engine, batch, effort.turn_seconds * RUN_UP, effort.turn_laps, meter)
    laps = _run_laps(engine, batch, effort.turn_seconds, effort.turn_laps, meter)
    count = min(max(LEAST_IN_A_ROW, int(effort.turn_seconds / float(np.median(laps)))), effort.most)
    row = _run_row(engine, batch, count, meter) if isinstance(engine, Overlapping) else None
    splits = [engine.timed(batch) for _ in laps[:MOST_SPLITS]] if isinstance(engine, Timed) else []
    return _Turn(laps, row, tuple(splits))


def _run_laps(engine: Engine, batch: Batch, seconds: float, most: int, meter: Meter) -> tuple[float, ...]:
    """Durations of calls, one or more, until so much time has passed."""
    laps: list[float] = []
    began = meter.now()
    while not laps or (len(laps) < most and meter.now() - began < seconds):
        started = meter.now()
        engine(batch)
        laps.append(_seconds(meter.now() - started))
    return tuple(laps)


def _run_row(engine: Overlapping, batch: Batch, count: int, meter: Meter) -> float:
    """Seconds a batch, of some that a thread a lane shares; the first one's way in and the last one's out included."""
    given = as_given(batch, engine.specs[0])

    def run(_: int) -> None:
        with engine.lane(to_shape(batch.shape)) as lane:
            np.copyto(lane.given, given)
            lane.run()

    with ThreadPoolExecutor(engine.lanes) as pool:
        started = meter.now()
        list(pool.map(run, range(count)))
        return _seconds((meter.now() - started) / count)


def _sum_up(run: _Run, shape: Shape) -> Measurement:
    if run.error is not None:
        return Measurement(shape, error=run.error)
    splits = [split for turn in run.turns for split in turn.splits]
    rows = tuple((turn.row,) for turn in run.turns if turn.row is not None)
    return Measurement(
        shape,
        Laps(tuple(turn.laps for turn in run.turns)),
        Laps(rows) if rows else None,
        typical(splits) if splits else None,
        len(splits),
        run.difference,
    )


def _seconds(seconds: float) -> float:
    """To the nanosecond, and never nothing, whatever the clock can tell apart."""
    return max(round(seconds, 9), 1e-9)


def _say(error: Exception) -> str:
    """An error in one line, without the folders of the files that it names: a report leaves the house."""
    text = re.sub(r"(?<![\w.])[~/][^\s:;,'\"]*/", "", first_line(error))
    return f"{type(error).__name__}: {text}"
