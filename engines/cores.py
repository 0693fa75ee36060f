"""The cores that this process may use: what a scheduler, `taskset` or a container leaves of those of the machine."""

import os
from collections.abc import Iterator
from contextlib import suppress
from math import ceil
from pathlib import Path

_CGROUPS, _OURS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = _CGROUPS, ours: Path = _OURS) -> int:
    """At least 1: the cores of the process's affinity, or the quota of its control group (v2) if that is less.

    Args:
        cgroups: where control groups are mounted.
        ours: the file that names the one of this process.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(ceil(quota) for quota in _quotas(cgroups, ours))]))


def _quotas(cgroups: Path, ours: Path) -> Iterator[float]:
    """Cores that the control group of this process and those above it may use at the same time."""
    with suppress(OSError):
        for line in ours.read_text().splitlines():
            number, _, path = line.split(":", 2)
            if number == "0":
                group = cgroups / path.lstrip("/")
                yield from (quota for folder in (group, *group.parents) if (quota := _quota(folder)) is not None)


def _quota(folder: Path) -> float | None:
    """The quota of one control group in cores; None if it has none."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota) / int(period)  # "max" is no number
    return None
