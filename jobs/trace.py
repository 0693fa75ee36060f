"""A cycle as a timeline: which process and thread did what when, for ui.perfetto.dev or chrome://tracing.

Times are of CLOCK_MONOTONIC: processes of one host lie beside each other as they ran, those of other hosts do not.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.run import BlockResult
from pipelines.spans import Span

DRIVER = "driver"

Event = dict[str, Any]


@dataclass(frozen=True)
class Activity:
    """A span of a cycle, the process that it ran in, and the block that it belongs to; None = to the whole cycle."""

    process: str
    span: Span
    block: int | None = None


def activities_of(driver: Iterable[Span] = (), results: Iterable[BlockResult] = ()) -> tuple[Activity, ...]:
    """What the driver and its workers did, each in the order of its beginning; the longer of two comes first."""
    own = [Activity(DRIVER, span) for span in driver]
    theirs = [Activity(result.worker, span, result.block) for result in results for span in result.spans]
    return tuple(sorted(own + theirs, key=lambda activity: (activity.span.start, -activity.span.end)))


def chrome_trace(activities: Sequence[Activity]) -> dict[str, Any]:
    """Trace events in the Chrome format, microseconds since the first activity; one complete event for each.

    Source: "Trace Event Format", the public description of the format of chrome://tracing.
    """
    origin = min((activity.span.start for activity in activities), default=0.0)
    processes = {name: pid for pid, name in enumerate(_in_order(activity.process for activity in activities))}
    threads = {key: tid for tid, key in enumerate(_in_order((a.process, a.span.thread) for a in activities))}
    names = [_name("process_name", pid, 0, name) for name, pid in processes.items()]
    names += [_name("thread_name", processes[key[0]], tid, key[1]) for key, tid in threads.items()]
    spans = [
        _complete(activity, origin, processes[activity.process], threads[activity.process, activity.span.thread])
        for activity in activities
    ]
    return {"traceEvents": names + spans, "displayTimeUnit": "ms"}


def write_trace(path: Path, activities: Sequence[Activity]) -> None:
    """Write a timeline to a JSON file.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_text(json.dumps(chrome_trace(activities)))


def _in_order(values: Iterable[Any]) -> list[Any]:
    """Each value once, the first to come first."""
    return list(dict.fromkeys(values))


def _name(kind: str, pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _complete(activity: Activity, origin: float, pid: int, tid: int) -> Event:
    span = activity.span
    times = {"ts": (span.start - origin) * 1e6, "dur": span.seconds * 1e6}
    whose = {} if activity.block is None else {"args": {"block": f"block {activity.block}"}}
    return {"ph": "X", "name": span.stage, "cat": "squall", "pid": pid, "tid": tid} | times | whose
