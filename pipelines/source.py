"""A store of frames: opened, asked which frames a cycle needs, and read window by window as codes.

Zarr v2 and v3 through zarr-python, never through a decoder of values: codes stay as they are stored.
A reader of an append-only store sees what its consolidated metadata shows, where there is such metadata.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product as pairs
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.buffer.cpu import NDBuffer

from pipelines.axes import dim_names, find_dims, is_axis, read_grid
from pipelines.encoding import Encoding, changes, check_sense, count_missing, is_missing, read_encoding
from pipelines.errors import CorruptInputError, InputError, NotYetError, RewrittenError
from pipelines.frames import Cycle, Times, check_missing, check_times, choose_frames, suffice, text_of
from pipelines.grid import Grid, Window
from pipelines.product import InputSpec, Product
from pipelines.threads import map_on
from pipelines.time_axis import read_earlier, read_later, read_times
from pipelines.units import Quantity, least_value
from pipelines.zarr_store import find_array, have_objects, open_array, open_group, reading, stored_array

__all__ = [
    "Cycle",
    "Encoding",
    "Part",
    "Source",
    "arrived",
    "check_missing",
    "check_times",
    "count_missing",
    "cut",
    "find_inputs",
    "is_missing",
    "open_source",
    "without_absent",
]

Raw = NDArray[np.generic]
Axes = tuple[int, int, int]
"""A number for each of (time, y, x)."""

_LOOK_BACK = 300  # frames, a day of 5 minutes


@dataclass(frozen=True, eq=False)
class Source:
    """One variable of a store of frames, as it stood when it was opened; its frames are (y, x), however stored.

    A plain value: it pickles to a few kilobytes and the coordinates, and every process opens the store for itself.

    Attributes:
        times: (time,) datetime64[ns], UTC, as stored (not yet checked); all of them, or the newest.
        first: position of the first of them along the axis: so many were not read.
        time_name, time_metadata: of the Zarr array of the times.
        axes: where time, y and x stand among the dims of the array; any other dim has one cell.
        chunks: (time, y, x) cells of the smallest piece that can be read alone.
        metadata: of the Zarr array.
        given: attributes that count instead of those of the store.
    """

    store: str
    variable: str
    grid: Grid
    times: Times
    first: int
    time_name: str
    time_metadata: Any
    encoding: Encoding
    axes: Axes
    chunks: Axes
    metadata: Any
    given: Mapping[str, Any]

    @property
    def where(self) -> str:
        """The variable and its store, for messages."""
        return f"{self.variable!r} in {self.store}"

    def parts(self, first: Window, least: int = 1) -> tuple[Window, ...]:
        """The grid cut into parts of whole chunks, row by row; the first one is small, so that it is soon read.

        Args:
            first: a window at the corner of the grid, which the first part holds. Rows of parts are as high, and the
                parts of the first row grow from its width on, each as wide as all before it together.
            least: parts, if the grid has so many chunks; about so many then in all.
        """
        (_, *chunk), grid = self.chunks, self.grid.shape
        height, width = (_round_up(max(1, end), size) for end, size in zip((first.y1, first.x1), chunk, strict=True))
        rows = list(_steps(height, height, grid[0]))
        across = ceil(grid[1] / chunk[1])
        most = max(width, ceil(across / max(1, least // len(rows))) * chunk[1])
        return tuple(
            Window(y0, y1, x0, x1) for y0, y1 in rows for x0, x1 in _steps(most if y0 else width, most, grid[1])
        )

    def count_chunks(self, window: Window) -> int:
        """Chunks of a frame that reading a window decodes."""
        inside, (_, height, width) = window.clip(self.grid.window), self.chunks
        rows = -(-inside.y1 // height) - inside.y0 // height
        columns = -(-inside.x1 // width) - inside.x0 // width
        return rows * columns if inside.cells else 0

    def refresh(self) -> "Source":
        """The source as its store stands now; of a time axis that grew only the new end is read.

        Raises:
            InputError: as `open_source`.
            RewrittenError: codes or grid are not those of before: what was made ready for these is wrong for those.
        """
        found = _load(self.store, self.variable, self.given, self)
        self._refuse_changes(changes(self.encoding, found.encoding) + _moves(self.grid, found.grid))
        return found

    def reaching(self, is_enough: Callable[[Times], bool]) -> "Source":
        """The source with as many of its earlier times as are enough, or with all; read in growing steps.

        Raises:
            InputError: the times cannot be read.
        """
        source = self
        while source.first and not is_enough(source.times):
            with reading(f"the coordinates of {self.where}"):
                axis = stored_array(self.store, self.time_name, self.time_metadata)
                times, first = read_earlier(axis, self.where, source.times, source.first)
            source = replace(source, times=times, first=first)
        return source

    @property
    def newest(self) -> int:
        """Position of the newest frame along the time axis; -1 if there is none."""
        return self.first + len(self.times) - 1

    def read(self, cycle: Cycle, window: Window) -> Raw:
        """Codes of the cycle's frames in a window, (frame, y, x), in the encoding's dtype.

        The window may reach beyond the grid. Cells outside it and frames that are not there hold
        `encoding.fill`. Memory: the window, and for each frame the chunk that is being decoded.

        Raises:
            CorruptInputError: stored bytes are damaged or cannot be read (names frame and window), or the store
                has vanished. A changed byte is noticed by a checksum (crc32c, zstd or blosc with one) or when
                the codec stumbles over it; without a checksum it may decode to wrong values unnoticed.
            RewrittenError: the store was written anew since it was opened, with other codes or chunks.
            InputError: values that make no sense, such as a rain rate of -999 (see `check_sense`).
        """
        shape = len(cycle.frame_indices), *window.shape
        inside = window.clip(self.grid.window)
        frames = [position for position, index in enumerate(cycle.frame_indices) if index is not None]
        raw = np.empty(shape, self.encoding.dtype)
        if inside != window or len(frames) < len(raw):
            raw[...] = self.encoding.fill
        if not inside.cells or not frames:
            return raw
        target = raw[:, *inside.within(window).slices]
        try:
            map_on(len(frames), lambda position: self._read_frame(cycle, position, inside, target[position]), frames)
        except InputError:
            self.check_unchanged()  # of another store codes are damaged, or make no sense
            raise
        self.check_unchanged()
        return raw

    def read_frames(self, cycle: Cycle) -> Raw:
        """Codes of the cycle's whole frames, (frame, y, x)."""
        return self.read(cycle, self.grid.window)

    def check_unchanged(self) -> None:
        """Looks whether what was read lately was read rightly.

        Raises:
            CorruptInputError: the store has vanished: its chunks would then read as missing cells.
            RewrittenError: it is another one by now: codes mean something else, or lie elsewhere.
        """
        with reading(f"{self.where}, which was there a moment ago,", CorruptInputError):
            found = self._reopened()
            encoding = _encoding(found, dict(found.attrs) | dict(self.given), self.where)
            before, now = _sizes(self._array()), _sizes(found)
        self._refuse_changes(
            changes(self.encoding, encoding) + [f"chunks are {now}, before {before}"] * (now != before)
        )

    def _refuse_changes(self, found: Sequence[str]) -> None:
        if found:
            raise RewrittenError(
                f"{self.where} was written anew since it was opened: {'; '.join(found)}. Start again, so that it is "
                "read as it is now; if that says the same, renew its consolidated metadata"
            )

    def count_unseen(self) -> int:
        """Frames of which the array knows, but consolidated metadata that was not renewed after an append does not."""
        with reading(self.where):
            array = self._reopened()
        return max(0, int(array.shape[self.axes[0]]) - int(self.metadata.shape[self.axes[0]]))

    def is_stored(self, index: int) -> bool:
        """True if anything of a frame is stored; a frame never written would read as all fill value."""
        return self.are_stored([index])[0]

    def are_stored(self, indices: Sequence[int | None]) -> list[bool]:
        """Of each frame, whether anything of it is stored; not of those that are not on the time axis (None)."""
        keys = [[] if index is None else list(self._chunk_keys(index)) for index in indices]
        frames = ", ".join(self._frame(index) for index in indices if index is not None)
        with reading(frames or self.where):
            return have_objects(self.store, self.variable, keys)

    def is_blank(self, index: int) -> bool:
        """True if every cell of a frame holds the fill value of the array, as where nobody has written it."""
        fill = self.metadata.fill_value
        with reading(self._frame(index), CorruptInputError):
            raw = self._array().get_basic_selection(self._selection(index, self.grid.window))
        return bool((np.isnan(raw) if fill != fill else raw == (fill or 0)).all())

    @property
    def frames_of_chunk(self) -> int:
        """Frames that share a stored object."""
        return _sizes(self._array())[self.axes[0]]

    def _frame(self, index: int) -> str:
        return f"frame {text_of(self.times[index - self.first])} of {self.where}"

    def _read_frame(self, cycle: Cycle, position: int, window: Window, target: Raw) -> None:
        frame = f"frame {text_of(cycle.frame_times[position])} of {self.where}, window {window},"
        selection = self._selection(cycle.frame_indices[position], window)
        stored = target if self.axes[1] < self.axes[2] else np.empty(target.T.shape, target.dtype)
        with reading(frame, CorruptInputError):
            self._array().get_basic_selection(selection, out=NDBuffer.from_numpy_array(stored))
        if stored is not target:
            target[...] = stored.T
        check_sense(target, self.encoding, frame)

    def _selection(self, index: int | None, window: Window) -> tuple[Any, ...]:
        """Of a frame in a window, by the dims of the array; the one cell of any other dim."""
        selection: list[Any] = [0] * len(self.metadata.shape)
        for axis, part in zip(self.axes, (index, *window.slices), strict=True):
            selection[axis] = part
        return tuple(selection)

    def _chunk_keys(self, index: int) -> Iterator[str]:
        sizes = _sizes(self._array())
        along = [range(ceil(n / size)) for n, size in zip(self.metadata.shape, sizes, strict=True)]
        time = index // sizes[self.axes[0]]
        along[self.axes[0]] = range(time, time + 1)
        return map(self.metadata.encode_chunk_key, pairs(*along))

    def _array(self) -> Any:
        return stored_array(self.store, self.variable, self.metadata)

    def _reopened(self) -> Any:
        """The array as it stands now; consolidated metadata is not asked."""
        return open_array(self.store, self.variable, self.metadata.zarr_format)


def open_source(spec: InputSpec, all_times: bool = True) -> Source:
    """The variable that a product reads, its grid, times and encoding; no frame is read.

    Unless all times are asked for, the newest are read: enough to tell the usual step, and for most cycles made from
    the newest frames. `find_inputs` and `arrived` read earlier ones where they need them.

    `spec.store` is a local path or a URL: s3://, gs://, az://, http(s):// (obstore, credentials from the
    environment), or anything that fsspec knows.

    Raises:
        InputError: no such store or variable (lists those there are), wrong dims, an attribute that is no number.
        CorruptInputError: the store is there but cannot be read.
    """
    return _load(spec.store, spec.variable, spec.attributes, all_times=all_times)


def find_inputs(source: Source, product: Product, reference_time: np.datetime64 | None = None) -> Cycle:
    """The frames that a cycle needs, found by their times and known to be stored.

    Args:
        reference_time: UTC; None = the newest time of the store. It is kept as given, the frames may lie within
            the tolerance of it.

    Raises:
        NotYetError: a frame has not arrived, or its time is there but nothing of it is stored yet.
        InputError: the time axis or its step does not fit, or a frame is missing.
    """
    spec = product.input
    source = source.reaching(lambda times: suffice(times, spec, reference_time))
    cycle = choose_frames(source.times, product.name, spec, reference_time, source.where, source.first)
    return without_absent(cycle, source.are_stored(cycle.frame_indices), spec.missing_frame, source.where)


def arrived(source: Source, now: np.datetime64, ahead: np.timedelta64) -> Source:
    """The source up to its newest frame, if its time axis is laid out ahead: to times after `now`, of empty frames.

    Args:
        ahead: how far after `now` a frame may be; an axis is laid out ahead also if it ends before that.

    Raises:
        NotYetError: none of the last times up to then has a frame.
        InputError: it does not show which frames have arrived, for they share chunks.
    """
    limit = now + ahead
    if not len(source.times) or not source.times[-1] > now or _is_last_there(source):
        return source
    source = source.reaching(lambda times: _until(limit, times) >= _LOOK_BACK)
    times, past = source.times, _until(limit, source.times)
    positions = range(past, max(0, past - _LOOK_BACK), -1)
    count = next((n for n in positions if source.is_stored(source.first + n - 1)), 0)
    if not count:
        raise NotYetError(
            f"the time axis of {source.where} goes on to {text_of(times[-1])}, but nothing is stored of the last "
            f"{min(past, _LOOK_BACK)} frames before {text_of(limit)}"
        )
    return replace(source, times=times[:count])


def _steps(first: int, most: int, end: int) -> Iterator[tuple[int, int]]:
    """A stretch cut into steps, the first so long, each of the others as long as all before it, but at most `most`.

    >>> list(_steps(2, 4, 13))
    [(0, 2), (2, 4), (4, 8), (8, 12), (12, 13)]
    """
    start = 0
    while start < end:
        stop = min(start + min(max(first, start), most), end)
        yield start, stop
        start = stop


def _round_up(number: int, step: int) -> int:
    return ceil(number / step) * step


def _until(limit: np.datetime64, times: Times) -> int:
    """How many of the times lie up to a limit."""
    return int(np.searchsorted(times, limit, "right"))


def _is_last_there(source: Source) -> bool:
    """Whether the last frame is; a chunk of several frames is stored as soon as one of them is, so cells are read."""
    last, together = source.newest, source.frames_of_chunk
    is_there = source.is_stored(last) and (together == 1 or not source.is_blank(last))
    if together > 1 and not is_there:
        raise InputError(
            f"the time axis of {source.where} goes on to {text_of(source.times[-1])}, and {together} frames share a "
            "chunk, so that it does not show which have arrived; expected one frame a chunk, or a time given with the "
            "command (--time, --to)"
        )
    return is_there


def without_absent(cycle: Cycle, stored: Sequence[bool], missing_frame: str, where: str) -> Cycle:
    """The cycle without the frames of which nothing is stored.

    Args:
        stored: whether each frame is.

    Raises:
        NotYetError: such a frame is the newest, or `missing_frame` is `refuse`.
    """
    for time, index, is_there in zip(cycle.frame_times, cycle.frame_indices, stored, strict=True):
        newest = time == cycle.frame_times[-1]
        if index is not None and not is_there and (newest or missing_frame == "refuse"):
            raise NotYetError(f"frame {text_of(time)} of {where} is on the time axis, but nothing of it is stored")
    indices = (index if is_there else None for index, is_there in zip(cycle.frame_indices, stored, strict=True))
    return replace(cycle, frame_indices=tuple(indices))


@dataclass(frozen=True, eq=False)
class Part:
    """Frames (frame, y, x), codes as stored, of a window of the grid."""

    window: Window
    raw: Raw


def cut(parts: Sequence[Part], window: Window, fill: float) -> Raw:
    """Codes of a window of frames read before, (frame, y, x); cells that are in no part hold `fill`.

    A window inside one part is a view of it, not a copy.
    """
    for part in parts:
        if part.window.contains(window):
            return part.raw[:, *window.within(part.window).slices]
    raw = np.empty((len(parts[0].raw), *window.shape), parts[0].raw.dtype)
    met = {shared: part for part in parts if (shared := window.clip(part.window)).cells}
    _fill_around(raw, [shared.within(window) for shared in met], fill)
    for shared, part in met.items():
        raw[:, *shared.within(window).slices] = part.raw[:, *shared.within(part.window).slices]
    return raw


def _fill_around(raw: Raw, known: Sequence[Window], fill: float) -> None:
    """Fills the cells of frames (frame, y, x) that lie in none of these windows, which do not overlap.

    Known cells are seldom written: most often the windows are one rectangle together.
    """
    y0, x0 = (min((getattr(one, name) for one in known), default=0) for name in ("y0", "x0"))
    y1, x1 = (max((getattr(one, name) for one in known), default=0) for name in ("y1", "x1"))
    if sum(one.cells for one in known) < (y1 - y0) * (x1 - x0):
        raw[...] = fill
        return
    for beside in (raw[:, :y0], raw[:, y1:], raw[:, :, :x0], raw[:, :, x1:]):
        beside[...] = fill


def _load(
    store: str, variable: str, given: Mapping[str, Any], known: Source | None = None, all_times: bool = True
) -> Source:
    """The source; dims, grid and times are taken from what is known where the store still has them."""
    with reading(f"Zarr store {store}"):
        group = open_group(store, None if known is None else known.metadata.zarr_format)
        array = find_array(group, variable, store)
        attributes = dict(array.attrs) | dict(given)
    where = f"{variable!r} in {store}"
    axis, axes, grid = _read_layout(group, array, attributes, where, known)
    with reading(f"the coordinates of {where}"):
        times, first = _read_axis(axis, array.shape[axes[0]], where, known, all_times)
    chunks = _three(array.chunks[axis] for axis in axes)
    stretch, encoding = (times, first, axis.basename, axis.metadata), _encoding(array, attributes, where)
    return Source(store, variable, grid, *stretch, encoding, axes, chunks, array.metadata, given)


def _encoding(array: Any, attributes: Mapping[str, Any], where: str) -> Encoding:
    """What the codes of an array mean."""
    is_v2 = array.metadata.zarr_format == 2
    encoding = read_encoding(array.dtype, attributes, array.fill_value, where, means_missing=is_v2)
    return replace(encoding, least=least_value(Quantity(encoding.standard_name, encoding.units)))


def _sizes(array: Any) -> tuple[int, ...]:
    """Cells of a stored object along each dim."""
    return tuple(map(int, array.shards or array.chunks))


def _moves(before: Grid, now: Grid) -> list[str]:
    """In words, how a grid that was read anew is not that of before."""
    if now.shape != before.shape:
        return ["the grid is {} x {}, before {} x {}".format(*now.shape, *before.shape)]
    is_same = now is before or (np.array_equal(now.y, before.y) and np.array_equal(now.x, before.x))
    return [] if is_same else ["the coordinates of the grid are others"]


def _read_layout(
    group: Any, array: Any, attributes: Mapping[str, Any], where: str, known: Source | None
) -> tuple[Any, Axes, Grid]:
    """The array of the times, where the dims stand, and the grid; dims of the same names and sizes are known."""
    with reading(f"the coordinates of {where}"):
        axis = group.get(known.time_name) if known is not None and _has_cells_of(array, known) else None
    if known is not None and is_axis(axis):
        return axis, known.axes, known.grid
    dims = find_dims(array, group, where)
    names = tuple(dims)
    with reading(f"the coordinates of {where}"):
        return group[names[0]], _three(dims.values()), read_grid(group, attributes, names, where)


def _has_cells_of(array: Any, known: Source) -> bool:
    """Whether an array has the dims of a source, each but time as long as there."""
    if dim_names(array.metadata) != dim_names(known.metadata):
        return False
    return tuple(array.shape[axis] for axis in known.axes[1:]) == known.grid.shape


def _read_axis(axis: Any, frames: int, where: str, known: Source | None, all_times: bool) -> tuple[Times, int]:
    """Times and the position of the first; an append in progress lengthens the axis before the frames, or after."""
    if known is None:
        return read_times(axis, frames, where, all_times)
    later = read_later(axis, frames, where, known.times, known.first)
    return read_times(axis, frames, where, known.first == 0) if later is None else (later, known.first)


def _three(numbers: Iterable[int]) -> Axes:
    time, y, x = numbers
    return time, y, x
