"""Which frames a cycle needs: decisions about times, apart from any store."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import InputError, NotYetError
from pipelines.product import InputSpec, Last, format_duration

Times = NDArray[np.datetime64]

RECENT = 100  # steps, by which the usual one is told
_RISING = "expected rising times, as ds.sortby('time').drop_duplicates('time') of xarray gives them"


@dataclass(frozen=True)
class Cycle:
    """One product at one reference time and the frames it is made from: names and times only.

    `frame_times` and `frame_indices` (positions along the store's time axis) are oldest first, one for each
    channel of the model. An index of None is a frame that is missing: its time is the one that was wanted,
    and the model is given all-missing cells.
    """

    product: str
    reference_time: np.datetime64
    frame_times: tuple[np.datetime64, ...]
    frame_indices: tuple[int | None, ...]

    @property
    def found_times(self) -> tuple[np.datetime64, ...]:
        """The times of frames that are there."""
        pairs = zip(self.frame_times, self.frame_indices, strict=True)
        return tuple(time for time, index in pairs if index is not None)

    @property
    def missing_times(self) -> tuple[np.datetime64, ...]:
        """The times of frames that are not there."""
        pairs = zip(self.frame_times, self.frame_indices, strict=True)
        return tuple(time for time, index in pairs if index is None)


def choose_frames(
    times: Times, product: str, spec: InputSpec, reference_time: np.datetime64 | None, where: str, first: int = 0
) -> Cycle:
    """The frames of a cycle, each the nearest to its wanted time within the tolerance.

    Args:
        times: (time,) of the store, datetime64[ns], UTC; all of them, or as many of the newest as `suffice`.
        reference_time: None = the newest time of the store, without parts of a second.
        where: the variable and its store, for messages.
        first: position of the first of the times along the axis of the store.

    Raises:
        NotYetError: a wanted time lies after the newest frame.
        InputError: the time axis is unsorted, duplicated or empty, its step does not fit, or a frame is missing
            (under `use_available`: only if it is the newest).
    """
    check_times(times, where, first)
    reference = _reference(times, reference_time)
    cycle = nearest_frames(times, product, spec, reference, frame_offsets(times, spec, where), where)
    return replace(cycle, frame_indices=tuple(i if i is None else first + i for i in cycle.frame_indices))


def suffice(times: Times, spec: InputSpec, reference_time: np.datetime64 | None) -> bool:
    """Whether the newest times of a store are all that `choose_frames` needs: earlier ones would change nothing."""
    if not len(times) or (isinstance(spec.history, Last) and len(times) <= RECENT):
        return False
    return bool(times[0] <= _reference(times, reference_time) + frame_offsets(times, spec, "")[0])


def nearest_frames(
    times: Times,
    product: str,
    spec: InputSpec,
    reference: np.datetime64,
    offsets: Sequence[np.timedelta64],
    where: str,
) -> Cycle:
    """What `choose_frames` gives, for times that were checked and offsets that are known; for many cycles of a store.

    Raises:
        NotYetError, InputError: a frame is missing, as in `choose_frames`.
    """
    wanted = [reference + offset for offset in offsets]
    found = [find_nearest(times, time, _ns(spec.tolerance)) for time in wanted]
    for time, index in zip(wanted, found, strict=True):
        if index is None and (spec.missing_frame == "refuse" or time == reference):
            raise _absent(times, time, time - reference, spec, where)
    _check_distinct(found, wanted, spec, where)
    used = tuple(time if index is None else times[index] for time, index in zip(wanted, found, strict=True))
    return Cycle(product, reference, used, tuple(found))


def check_times(times: Times, where: str, first: int = 0) -> None:
    """Raises InputError unless the times rise and none stands twice (names the first that does not).

    Args:
        first: position of the first of them along the axis of the store.
    """
    if not len(times):
        raise NotYetError(f"the time axis of {where} is empty; expected at least one frame")
    if np.isnat(times).any():
        raise InputError(f"time {first + int(np.isnat(times).argmax())} of {where} is missing; expected a time")
    steps = np.diff(times)
    if (steps == np.timedelta64(0)).any():
        twice = int((steps == np.timedelta64(0)).argmax())
        raise InputError(
            f"the time {text_of(times[twice])} stands twice in {where} "
            f"(positions {first + twice}, {first + twice + 1}); {_RISING}"
        )
    if (steps < np.timedelta64(0)).any():
        back = int((steps < np.timedelta64(0)).argmax())
        raise InputError(
            f"the time axis of {where} is not sorted: {text_of(times[back + 1])} follows "
            f"{text_of(times[back])} at position {first + back + 1}; {_RISING}"
        )


def frame_offsets(times: Times, spec: InputSpec, where: str) -> list[np.timedelta64]:
    """Offsets from the reference time, oldest first; `last: N` counts in usual steps of the store."""
    if not isinstance(spec.history, Last):
        return [_ns(offset) for offset in spec.history]
    if spec.history.last == 1:
        return [np.timedelta64(0, "ns")]
    step = usual_step(times)
    if step is None:
        raise InputError(f"{where} holds 1 frame; history last: {spec.history.last} needs more")
    return [-step * back for back in range(spec.history.last - 1, -1, -1)]


def usual_step(times: Times) -> np.timedelta64 | None:
    """The median of the newest steps of a time axis, to the second; None for fewer than two times.

    A radar network that once came every 15 minutes may come every 5 now.
    """
    if len(times) < 2:
        return None
    median = float(np.median(np.diff(times[-RECENT - 1 :]).astype("timedelta64[ns]").astype(np.int64)))
    return np.timedelta64(max(round(median / 1e9), 1) * 10**9, "ns")


def find_nearest(times: Times, wanted: np.datetime64, tolerance: np.timedelta64) -> int | None:
    """Position of the time nearest to the wanted one, the earlier of two equals; None if none is within reach."""
    right = int(np.searchsorted(times, wanted))
    near = [i for i in (right - 1, right) if 0 <= i < len(times) and abs(times[i] - wanted) <= tolerance]
    return min(near, key=lambda i: abs(times[i] - wanted)) if near else None


def check_missing(
    counts: Sequence[int] | NDArray[np.integer[Any]],
    cells: int,
    max_missing: float,
    cycle: Cycle,
    missing_frame: str = "refuse",
) -> None:
    """Refuses frames with too many missing cells; frames that the cycle does without are not judged.

    Args:
        counts: (frame,) missing cells of each frame on the grid, summed over all blocks.
        cells: of the grid.
        max_missing: the largest share of missing cells, 0..1.
        missing_frame: under `use_available` an older frame that is all missing counts as one that is not there.

    Raises:
        InputError: a frame is all missing or has too much missing (names its time and share).
    """
    newest = len(cycle.frame_indices) - 1
    for position, (count, time) in enumerate(zip(counts, cycle.frame_times, strict=True)):
        if cycle.frame_indices[position] is None:
            continue
        if count >= cells:
            if position == newest or missing_frame == "refuse":
                raise InputError(f"frame {text_of(time)} of {cycle.product} is all missing ({cells} cells)")
        elif count > max_missing * cells:
            raise InputError(
                f"frame {text_of(time)} of {cycle.product} has {count / cells:.1%} missing cells; "
                f"expected at most {max_missing:.1%} (input.max_missing)"
            )


def text_of(time: np.datetime64) -> str:
    """A time as one writes it.

    >>> text_of(np.datetime64("2016-09-28T15:30:00", "ns"))
    '2016-09-28T15:30Z'
    """
    text = str(time.astype("datetime64[s]")) if not np.isnat(time) else "NaT"
    return text.removesuffix(":00") + "Z"


def _absent(times: Times, wanted: np.datetime64, offset: np.timedelta64, spec: InputSpec, where: str) -> InputError:
    frame = f"frame {text_of(wanted)} ({_duration(offset)}) of {where}"
    if wanted > times[-1]:
        return NotYetError(f"{frame} has not arrived; the newest is {text_of(times[-1])}")
    if wanted < times[0]:
        return InputError(f"{frame} is before the first frame, {text_of(times[0])}")
    near = times[np.abs(times - wanted).argmin()]
    away = f"{_duration(abs(near - wanted))} away, input.tolerance is {format_duration(spec.tolerance)}"
    history = spec.history
    steps = f"; history last: {history.last} takes frames one usual step apart" if isinstance(history, Last) else ""
    return InputError(f"{frame} is missing: the nearest is {text_of(near)} ({away}){steps}")


def _check_distinct(found: Sequence[int | None], wanted: Sequence[np.datetime64], spec: InputSpec, where: str) -> None:
    for older, newer, time in zip(found, found[1:], wanted, strict=False):
        if older is not None and older == newer:
            raise InputError(
                f"one frame of {where} is the nearest to two wanted times, {text_of(time)} and the next; "
                f"input.tolerance {format_duration(spec.tolerance)} is too wide"
            )


def _reference(times: Times, reference_time: np.datetime64 | None) -> np.datetime64:
    wanted = times[-1].astype("datetime64[s]") if reference_time is None else reference_time
    reference: np.datetime64 = wanted.astype("datetime64[ns]")
    return reference


def _ns(value: timedelta) -> np.timedelta64:
    return np.timedelta64(value, "ns")


def _duration(value: np.timedelta64) -> str:
    return format_duration(timedelta(microseconds=int(value / np.timedelta64(1, "us"))))
