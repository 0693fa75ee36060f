"""Which cycles of a product are published: by their names, `YYYY/MM/DD/HHMM.zarr`, revisions `HHMM.r1.zarr`.

A cycle off the minute is named HHMMSS. Whatever does not have such a name is not a cycle. On an object store the name
is that of a small object that names the store, `HHMM.json`.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipelines.errors import ConfigError
from pipelines.shelf import Shelf
from pipelines.shelves import open_shelf
from pipelines.threads import map_on

_STEM = re.compile(r"(\d{4}|\d{6})(?:\.r([1-9]\d*))?")


@dataclass(frozen=True, order=True)
class CycleName:
    """A published cycle by its name; the higher revision of a reference time counts."""

    reference_time: np.datetime64  # ns, UTC
    revision: int


@dataclass(frozen=True, order=True)
class PublishedCycle:
    """A published cycle; the higher revision of a reference time counts. The path may be a URL."""

    reference_time: np.datetime64  # ns, UTC
    revision: int
    path: str


def cycle_name(reference_time: np.datetime64, revision: int = 0, suffix: str = ".zarr") -> str:
    """The name of a cycle below its product.

    >>> cycle_name(np.datetime64("2016-09-28T15:30", "ns"), 1)
    '2016/09/28/1530.r1.zarr'
    """
    seconds = reference_time.astype("datetime64[s]")
    if np.isnat(seconds) or seconds != reference_time:
        raise ConfigError(f"reference time {reference_time} is not a whole second")
    date, clock = str(seconds).split("T")
    digits = clock.replace(":", "")
    number = f".r{revision}" if revision else ""
    return f"{date.replace('-', '/')}/{digits[:4] if digits[4:] == '00' else digits}{number}{suffix}"


def parse_name(name: str, suffix: str = ".zarr") -> CycleName | None:
    """The cycle that a name below its product stands for, or None if it is not one of a cycle."""
    parts = name.split("/")
    found = _STEM.fullmatch(parts[-1].removesuffix(suffix)) if name.endswith(suffix) else None
    if found is None or len(parts) != 4 or [len(p) for p in parts[:3]] != [4, 2, 2]:
        return None
    clock = f"{found[1]:0<6}"
    try:
        time = np.datetime64(f"{'-'.join(parts[:3])}T{clock[:2]}:{clock[2:4]}:{clock[4:]}", "ns")
    except ValueError:
        return None
    return CycleName(time, int(found[2] or 0))


def all_names(shelf: Shelf) -> Iterator[CycleName]:
    """Every revision of every published cycle, newest day first."""
    for year in _numbers(shelf, (), 4):
        for month in _numbers(shelf, (year,), 2):
            for day in _numbers(shelf, (year, month), 2):
                yield from _names_of_day(shelf, f"{year}/{month}/{day}")


def list_cycles(root: str, product: str) -> list[PublishedCycle]:
    """The published cycles of a product, oldest first; of each reference time the highest revision."""
    shelf = open_shelf(root, product)
    found = map_on(shelf.together, partial(as_published, shelf), _highest(all_names(shelf)))
    return [cycle for cycle in found if cycle is not None]


def find_cycle(root: str, product: str, reference_time: np.datetime64) -> PublishedCycle | None:
    """The highest revision of one cycle, or None if it is not published."""
    shelf = open_shelf(root, product)
    day, _, stem = cycle_name(reference_time, suffix="").rpartition("/")
    names = (name for name in _names_of_day(shelf, day, stem) if name.reference_time == reference_time)
    return as_published(shelf, max(names, default=None))


def find_cycles(
    root: str, product: str, reference_times: Iterable[np.datetime64]
) -> Iterator[tuple[np.datetime64, CycleName | None]]:
    """Each reference time with the highest revision of its cycle, or None; a day is listed once while they rise."""
    shelf, listed, standing = open_shelf(root, product), None, {}
    for time in reference_times:
        day = time.astype("datetime64[D]")
        if day != listed:
            names = _highest(_names_of_day(shelf, str(day).replace("-", "/")))
            listed, standing = day, {name.reference_time: name for name in names}
        yield time, standing.get(time)


def newest_cycle(root: str, product: str) -> PublishedCycle | None:
    """The published cycle with the newest reference time, whatever `latest` says."""
    shelf = open_shelf(root, product)
    return as_published(shelf, newest_name(shelf))


def newest_name(shelf: Shelf) -> CycleName | None:
    """The name of the newest cycle, or None if none is published."""
    first = next(all_names(shelf), None)
    if first is None:
        return None
    day = str(first.reference_time.astype("datetime64[D]")).replace("-", "/")
    return max([first, *_names_of_day(shelf, day)])


def latest_cycle(root: str, product: str) -> PublishedCycle | None:
    """The cycle that `latest.zarr`, or `latest.json`, points at, or None. Its path is the store itself.

    A reader that keeps a store open should open this path: one that reads through the pointer would get its
    later chunks from a later cycle.
    """
    shelf = open_shelf(root, product)
    return as_published(shelf, latest_name(shelf))


def latest_name(shelf: Shelf) -> CycleName | None:
    """The cycle that the pointer names, if it stands."""
    name = shelf.latest()
    return None if name is None else parse_name(name, shelf.suffix)


def as_published(shelf: Shelf, name: CycleName | None) -> PublishedCycle | None:
    """The cycle with its store; None if it is gone."""
    if name is None:
        return None
    store = shelf.store_of(cycle_name(name.reference_time, name.revision, shelf.suffix))
    return None if store is None else PublishedCycle(name.reference_time, name.revision, store)


def _highest(names: Iterable[CycleName]) -> list[CycleName]:
    return list({name.reference_time: name for name in sorted(names)}.values())


def _numbers(shelf: Shelf, parts: tuple[str, ...], digits: int) -> list[str]:
    return sorted((n for n in shelf.names(*parts) if len(n) == digits and n.isdigit()), reverse=True)


def _names_of_day(shelf: Shelf, day: str, prefix: str = "") -> Iterator[CycleName]:
    for text in shelf.names(*day.split("/")):
        name = parse_name(f"{day}/{text}", shelf.suffix) if text.startswith(prefix) else None
        if name is not None:
            yield name
