"""The frames of a cycle in Ray's object store: what several workers need, a node decodes once.

Beside GPUs there are cores to spare, so all parts are read at the same time, by Ray's processes. Where workers have all
cores, the driver reads one part after the other, so that the first is there soon.
"""

from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import ray

from pipelines.grid import Window
from pipelines.source import Cycle, Part, Source
from pipelines.spans import Stopwatch
from pipelines.tiling import Tiling

AT_ONCE = 8  # parts that are read at the same time, or a few more
_OFTEN = 2  # times that workers would decode a chunk on average, from which on it is decoded for all of them
_TICK_SECONDS = 0.1


@dataclass(frozen=True)
class SharedFrames:
    """Parts of the frames, or the source to read them from, by the window that each serves.

    Attributes:
        over: set when nobody asks for a part any more.
    """

    parts: Mapping[Window, Future[Any]]
    over: Event = field(default_factory=Event)

    def of(self, window: Window) -> list[Any]:
        """References to what a window is read from; waits until it is there.

        Raises:
            InputError: the store cannot give the frames.
        """
        return [part.result() for served, part in self.parts.items() if window.clip(served).cells]

    def close(self) -> None:
        """What is not read yet is not waited for any more: a deadline has passed, or an error ends the cycle."""
        self.over.set()
        for part in self.parts.values():
            part.cancel()


def share_frames(
    source: Source, cycle: Cycle, tiling: Tiling, side: Executor, watch: Stopwatch | None = None, at_once: bool = False
) -> SharedFrames:
    """The frames for the blocks of a tiling, put into the object store by `side`.

    Args:
        at_once: by processes of Ray, all parts at the same time.
    """
    watch = watch or Stopwatch()
    decoded = sum(source.count_chunks(tiling.reads(block)) for block in tiling.blocks())
    if decoded < _OFTEN * source.count_chunks(source.grid.window):
        return SharedFrames({source.grid.window: side.submit(ray.put, source)})
    if at_once:
        parts = {strip: _read.remote(source, cycle, strip) for strip in source.parts(AT_ONCE)}
        frames = SharedFrames({strip: _known(part) for strip, part in parts.items()})
        side.submit(_see_them_read, list(parts.values()), frames.over, watch)
        return frames
    return SharedFrames({strip: side.submit(_put, source, cycle, strip, watch) for strip in source.strips})


def _put(source: Source, cycle: Cycle, strip: Window, watch: Stopwatch) -> Any:
    with watch("read"):
        part = Part(strip, source.read(cycle, strip))
    with watch("share"):
        return ray.put(part)


def _see_them_read(parts: list[Any], over: Event, watch: Stopwatch) -> None:
    """Records how long other processes read, until all is read or nobody asks for it any more."""
    with watch("read"):
        while parts and not over.is_set():
            _, parts = ray.wait(parts, num_returns=len(parts), timeout=_TICK_SECONDS, fetch_local=False)


def _read_part(source: Source, cycle: Cycle, strip: Window) -> Part:
    return Part(strip, source.read(cycle, strip))


_read: Any = ray.remote(num_cpus=0, max_retries=1)(_read_part)  # never waits for a core that workers have


def _known(reference: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(reference)
    return future
