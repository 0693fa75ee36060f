"""Where published cycles stand: `<root>/<product>/YYYY/MM/DD/HHMM.zarr`, revisions `HHMM.r1.zarr`, `latest.zarr`.

A cycle off the minute is named HHMMSS. Whatever does not have such a name is not a cycle.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.errors import ConfigError

LATEST = "latest.zarr"
_NAME = re.compile(r"(\d{4}|\d{6})(?:\.r([1-9]\d*))?\.zarr")


@dataclass(frozen=True, order=True)
class PublishedCycle:
    """A published cycle; the higher revision of a reference time counts."""

    reference_time: np.datetime64  # ns, UTC
    revision: int
    path: str


def product_folder(root: str, product: str) -> Path:
    """The folder of a product.

    Raises:
        ConfigError: the root is a URL; cycles are published by renaming, which needs a file system.
    """
    if "://" in root:
        raise ConfigError(f"output.store {root} is a URL; cycles are published on a file system, use a path")
    return Path(os.path.abspath(root)) / product


def cycle_name(reference_time: np.datetime64, revision: int = 0) -> str:
    """The path of a cycle below the folder of its product.

    >>> cycle_name(np.datetime64("2016-09-28T15:30", "ns"), 1)
    '2016/09/28/1530.r1.zarr'
    """
    seconds = reference_time.astype("datetime64[s]")
    if np.isnat(seconds) or seconds != reference_time:
        raise ConfigError(f"reference time {reference_time} is not a whole second")
    date, clock = str(seconds).split("T")
    digits = clock.replace(":", "")
    suffix = f".r{revision}" if revision else ""
    return f"{date.replace('-', '/')}/{digits[:4] if digits[4:] == '00' else digits}{suffix}.zarr"


def parse_cycle(folder: Path, name: str) -> PublishedCycle | None:
    """The cycle that a path below the folder of its product names, or None if it names none."""
    parts = name.split("/")
    found = _NAME.fullmatch(parts[-1])
    if found is None or len(parts) != 4 or [len(p) for p in parts[:3]] != [4, 2, 2]:
        return None
    clock = f"{found[1]:0<6}"
    try:
        time = np.datetime64(f"{'-'.join(parts[:3])}T{clock[:2]}:{clock[2:4]}:{clock[4:]}", "ns")
    except ValueError:
        return None
    return PublishedCycle(time, int(found[2] or 0), str(folder / name))


def all_revisions(root: str, product: str) -> Iterator[PublishedCycle]:
    """Every revision of every published cycle, newest day first."""
    folder = product_folder(root, product)
    for year in _subfolders(folder, 4):
        for month in _subfolders(folder / year, 2):
            for day in _subfolders(folder / year / month, 2):
                yield from _cycles_of_day(folder, f"{year}/{month}/{day}")


def list_cycles(root: str, product: str) -> list[PublishedCycle]:
    """The published cycles of a product, oldest first; of each reference time the highest revision."""
    return _highest_revisions(all_revisions(root, product))


def find_cycle(root: str, product: str, reference_time: np.datetime64) -> PublishedCycle | None:
    """The highest revision of one cycle, or None if it is not published."""
    day, _, name = cycle_name(reference_time).rpartition("/")
    cycles = _cycles_of_day(product_folder(root, product), day, name.removesuffix(".zarr"))
    return max((c for c in cycles if c.reference_time == reference_time), default=None)


def find_cycles(
    root: str, product: str, reference_times: Iterable[np.datetime64]
) -> Iterator[tuple[np.datetime64, PublishedCycle | None]]:
    """Each reference time with the highest revision of its cycle, or None; a day is listed once while they rise."""
    listed, standing = None, {}
    for time in reference_times:
        day = time.astype("datetime64[D]")
        if day != listed:
            cycles = _cycles_of_day(product_folder(root, product), str(day).replace("-", "/"))
            listed, standing = day, {c.reference_time: c for c in _highest_revisions(cycles)}
        yield time, standing.get(time)


def newest_cycle(root: str, product: str) -> PublishedCycle | None:
    """The published cycle with the newest reference time, whatever `latest` says."""
    first = next(all_revisions(root, product), None)
    if first is None:
        return None
    folder = product_folder(root, product)
    day = str(Path(first.path).parent.relative_to(folder))
    return max([first, *_cycles_of_day(folder, day)])


def latest_cycle(root: str, product: str) -> PublishedCycle | None:
    """The cycle that `latest.zarr` points at, or None. Its path is the store itself, not the pointer.

    A reader that keeps a store open should open this path: one that reads through the pointer would get its
    later chunks from a later cycle.
    """
    folder = product_folder(root, product)
    try:
        cycle = parse_cycle(folder, os.readlink(folder / LATEST))
    except OSError:
        return None
    return cycle if cycle is not None and os.path.isdir(cycle.path) else None


def _highest_revisions(cycles: Iterable[PublishedCycle]) -> list[PublishedCycle]:
    return list({c.reference_time: c for c in sorted(cycles)}.values())


def _subfolders(folder: Path, digits: int) -> list[str]:
    return sorted((n for n in _names(folder) if len(n) == digits and n.isdigit()), reverse=True)


def _cycles_of_day(folder: Path, day: str, prefix: str = "") -> Iterator[PublishedCycle]:
    for name in _names(folder / day):
        cycle = parse_cycle(folder, f"{day}/{name}") if name.startswith(prefix) else None
        if cycle is not None:
            yield cycle


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
