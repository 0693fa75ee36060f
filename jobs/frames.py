"""The frames of a cycle in Ray's object store: what several workers need, a node decodes once.

The driver reads one part after the other, a small one first, so that the first blocks begin soon. Beside GPUs there are
cores to spare, so Ray's processes read the other parts at the same time, too, and the driver only those that are not
there yet: processes that were not there before take a second or more to start. Once they have been in time it waits for
them, for what it reads beside them makes all of them slower.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from threading import Event
from time import monotonic
from typing import Any

import ray

from jobs.heap import keep_freed_memory
from pipelines.grid import Window
from pipelines.source import Cycle, Part, Source
from pipelines.spans import Stopwatch
from pipelines.threads import end, staying
from pipelines.tiling import Tiling

AT_ONCE = 8  # parts that are read at the same time, or a few more
_PATIENCE_SECONDS = 0.2  # more than processes that are there need for all parts of a continent
_OFTEN = 2  # times that workers would decode a chunk on average, from which on it is decoded for all of them


@dataclass(frozen=True)
class SharedFrames:
    """Parts of the frames, or the source to read them from, by the window that each serves."""

    parts: Mapping[Window, Future[Any]]

    def of(self, window: Window) -> list[Any]:
        """References to what a window is read from; waits until it is there.

        Raises:
            InputError: the store cannot give the frames.
        """
        return [part.result() for served, part in self.parts.items() if window.clip(served).cells]

    def close(self) -> None:
        """What is not read yet is not read any more: a deadline has passed, or an error ends the cycle."""
        end(self.parts.values())


def share_frames(
    source: Source, cycle: Cycle, tiling: Tiling, watch: Stopwatch | None = None, at_once: bool = False
) -> SharedFrames:
    """The frames for the blocks of a tiling, put into the object store by another thread; to be closed.

    Args:
        at_once: Ray's processes read, too, all parts but the first at the same time.
    """
    watch, side = watch or Stopwatch(), staying(1, "frames")  # with the memory that it has touched
    seen = [tiling.reads(block) for block in tiling.blocks()]
    if sum(map(source.count_chunks, seen)) < _OFTEN * source.count_chunks(source.grid.window):
        return SharedFrames({source.grid.window: side.submit(ray.put, source)})
    parts = source.parts(seen[0].clip(source.grid.window), AT_ONCE if at_once else 1)
    put = partial(_put, source=source, cycle=cycle, watch=watch)
    shared = {parts[0]: side.submit(put, parts[0])}
    asked = {part: _read.remote(source, cycle, part) for part in parts[1:]} if at_once else {}
    take = partial(_take, put=put, until=monotonic() + (_PATIENCE_SECONDS if _are_in_time.is_set() else 0.0))
    return SharedFrames(shared | {part: side.submit(take, asked.get(part), part) for part in parts[1:]})


_are_in_time = Event()  # processes of Ray, when this one asked them last


def _take(asked: Any, part: Window, put: Callable[[Window], Any], until: float) -> Any:
    """The part that another process was asked for if it is there by then, else one that is read here."""
    if asked is None:
        return put(part)
    there, _ = ray.wait([asked], timeout=max(0.0, until - monotonic()), fetch_local=False)
    if there:
        _are_in_time.set()
        return there[0]
    _are_in_time.clear()
    return put(part)


def _put(part: Window, source: Source, cycle: Cycle, watch: Stopwatch) -> Any:
    with watch("read"):
        frames = _read_part(source, cycle, part)
    with watch("share"):
        return ray.put(frames)


def _read_part(source: Source, cycle: Cycle, part: Window) -> Part:
    keep_freed_memory()
    return Part(part, source.read(cycle, part))


_read: Any = ray.remote(num_cpus=0, max_retries=1)(_read_part)  # never waits for a core that workers have
