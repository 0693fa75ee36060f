"""The reference times of a hindcast: even steps, or the frames of a store, in an interval. A value of a few numbers."""

from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np

from pipelines.errors import ConfigError, InputError
from pipelines.frames import Times, check_times, frame_offsets, text_of, usual_step
from pipelines.product import InputSpec


class ReferenceTimes(Protocol):
    """Reference times that rise, UTC: their number, one of them, or an array of a slice of them."""

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, position: int) -> np.datetime64: ...
    @overload
    def __getitem__(self, position: slice) -> Times: ...


@dataclass(frozen=True)
class EvenTimes:
    """`count` times from `start`, `step` apart.

    >>> times = EvenTimes(np.datetime64("2016-09-28T15:00", "ns"), np.timedelta64(600, "s"), 1_000_000)
    >>> len(times), str(times[2]), len(times[999_990:])
    (1000000, '2016-09-28T15:20:00.000000000', 10)
    """

    start: np.datetime64
    step: np.timedelta64
    count: int

    def __len__(self) -> int:
        return self.count

    @overload
    def __getitem__(self, position: int) -> np.datetime64: ...
    @overload
    def __getitem__(self, position: slice) -> Times: ...

    def __getitem__(self, position: int | slice) -> np.datetime64 | Times:
        chosen = range(self.count)[position]
        if isinstance(chosen, int):
            return self.start + chosen * self.step
        return self.start + np.arange(chosen.start, chosen.stop, chosen.step) * self.step


def times_within(
    times: Times,
    spec: InputSpec,
    start: np.datetime64 | None,
    stop: np.datetime64 | None,
    every: np.timedelta64 | None,
    where: str,
) -> ReferenceTimes:
    """The reference times from `start` to `stop`, both included, whose frames may lie in the store.

    Args:
        times: (time,) of the store, datetime64[ns], UTC.
        spec: which frames a cycle needs; unless it does without, none starts before its oldest frame can be there.
        start, stop: None = as early, or as late, as the frames of the store allow.
        every: step from one to the next, counted from the start; None = every frame of the store, without parts of a
            second, as a cycle of the newest frame is made.
        where: the variable and its store, for messages.

    Raises:
        ConfigError: the interval ends before it starts; or `every` is not a whole number of seconds above 0, or no
            multiple of the step of the store, so that most cycles would have no frames.
        InputError: no cycle of the interval has its frames in the store; the time axis is broken.
    """
    if start is not None and stop is not None and start > stop:
        raise ConfigError(f"the interval starts at {text_of(start)}, after its end {text_of(stop)}; swap them")
    check_times(times, where)
    times = _whole_seconds(times)
    back = np.timedelta64(0) if spec.missing_frame == "use_available" else -frame_offsets(times, spec, where)[0]
    earliest, latest = times[0] + back, times[-1]
    start = earliest if start is None else start.astype("datetime64[ns]")
    stop = latest if stop is None else stop.astype("datetime64[ns]")
    tolerance = np.timedelta64(spec.tolerance, "ns")
    found: ReferenceTimes
    if every is None:
        first = np.searchsorted(times, max(start, earliest - tolerance))
        found = times[first : np.searchsorted(times, stop, side="right")]
    else:
        inside = times[np.searchsorted(times, start) : np.searchsorted(times, stop, side="right")]
        _check_step(every, usual_step(inside), tolerance, where)
        found = _lattice(start, min(stop, latest + tolerance), every, earliest - tolerance)
    if not len(found):
        raise InputError(
            f"no cycle from {text_of(start)} to {text_of(stop)} has its frames in {where}, which holds {len(times)} "
            f"from {text_of(times[0])} to {text_of(times[-1])}"
        )
    return found


def _whole_seconds(times: Times) -> Times:
    """The seconds in which times lie, each once; the times themselves where they are whole."""
    whole = times.astype("datetime64[s]").astype(times.dtype)
    return times if (whole == times).all() else np.unique(whole)


def _lattice(start: np.datetime64, stop: np.datetime64, step: np.timedelta64, earliest: np.datetime64) -> EvenTimes:
    """Steps from `start`, those from `earliest` to `stop`."""
    skipped = max(0, -int((start - earliest) // step))
    first = start + skipped * step
    return EvenTimes(first, step, max(0, int((stop - first) // step) + 1))


def _check_step(every: np.timedelta64, step: np.timedelta64 | None, tolerance: np.timedelta64, where: str) -> None:
    second = np.timedelta64(1, "s")
    if every <= np.timedelta64(0, "ns") or every % second:
        raise ConfigError(f"a cycle every {every / second:g} s; expected whole seconds, at least 1")
    if step is None:
        return
    multiple = max(1, round(every / step)) * step
    if abs(every - multiple) > tolerance:
        raise ConfigError(
            f"a cycle every {every / second:g} s, but frames of {where} come every {step / second:g} s; use a "
            f"multiple of that, such as {multiple / second:g}s"
        )
