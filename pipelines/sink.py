"""A forecast on its way into the store: open a draft, write shards, publish it whole or not at all.

What a reader sees: nothing until `publish` claims the name of the cycle in one step, then all of it. A crash at any
line leaves work in progress, which the next `sweep` removes, or a published cycle that `latest` does not name yet,
which the next `sweep` or `publish` puts right. Published stores are never changed: a correction is a new revision.
How a folder and an object store do it: pipelines/shelf.py; docs/decisions/003-publish-by-rename.md and
024-publish-by-claim.md
"""

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.cf import Attribute, Provenance, StoreTemplate, add_attributes, store_template
from pipelines.cycles import (
    PublishedCycle,
    all_names,
    as_published,
    cycle_name,
    find_cycle,
    latest_name,
    newest_name,
    parse_name,
)
from pipelines.errors import AlreadyPublishedError, IncompleteError, OutputError
from pipelines.grid import Grid, Window
from pipelines.layout import Layout, choose_layout
from pipelines.shard import encode_shard, shard_fault
from pipelines.shelf import STAGING, Draft, Shelf
from pipelines.shelves import open_shelf
from pipelines.staging import is_abandoned
from pipelines.team import ALONE, Turn
from pipelines.threads import map_on

__all__ = [
    "CHECKED_TOGETHER", "Draft", "Layout", "Provenance", "abort", "check_block", "choose_layout", "describe", "expire",
    "has_drafts", "make_draft", "open_draft", "point_latest", "publish", "refuse_published", "store_template", "sweep",
    "write_block",
]  # fmt: skip

CHECKED_TOGETHER = min(4, os.cpu_count() or 1)  # shards that are checked at the same time; more wait for Python's lock
_NAMED = 8  # shards or files that a message names before it only counts


def open_draft(
    root: str,
    product: str,
    reference_time: np.datetime64,
    grid: Grid,
    lead_times: Sequence[timedelta],
    layout: Layout,
    attributes: Mapping[str, Attribute],
    provenance: Provenance,
    replace: bool = False,
) -> Draft:
    """A store with all metadata and coordinates and no shards yet.

    Args and errors: of `make_draft`, `store_template` and `describe`.
    """
    draft = make_draft(root, product, reference_time, layout, replace)
    try:
        describe(draft, store_template(product, grid, lead_times, layout, attributes), provenance)
    except BaseException:
        abort(draft)
        raise
    return draft


def make_draft(root: str, product: str, reference_time: np.datetime64, layout: Layout, replace: bool = False) -> Draft:
    """An empty store with room for shards; `describe` it before it is published.

    Args:
        replace: whether the cycle may be published already.

    Raises:
        AlreadyPublishedError: the cycle is published and `replace` is False.
        OutputError: the store cannot be written (names the path and the free bytes).
    """
    if not replace:
        refuse_published(root, product, reference_time)
    shelf = open_shelf(root, product)
    with shelf.errors():
        staging, store = shelf.begin(cycle_name(reference_time, suffix=shelf.suffix), layout)
    return Draft(root, product, reference_time, staging, store, layout)


def refuse_published(root: str, product: str, reference_time: np.datetime64) -> None:
    """Raises AlreadyPublishedError if the cycle is published."""
    _refuse(find_cycle(root, product, reference_time))


def describe(draft: Draft, template: StoreTemplate, provenance: Provenance) -> None:
    """Writes all metadata and coordinates, once; shards may be written at the same time.

    Raises:
        OutputError: the store cannot be written (names the path and the free bytes).
    """
    shelf = _shelf_of(draft)
    with shelf.errors(draft.staging):
        shelf.describe(draft, template.files(draft.reference_time, provenance))


def write_block(draft: Draft, window: Window, codes: NDArray[Any], turn: Turn = ALONE, instead: bool = False) -> int:
    """Writes the shards of one block and returns their bytes; safe to repeat, also at the same time.

    A block is the same whoever makes it. Of shards that were written twice either may stay.

    Args:
        window: the cells of the block: whole shards, or up to the end of the grid.
        codes: (lead, y, x) packed codes; missing cells hold the fill value. Not changed.
        turn: of the block with the team that encodes its shards.
        instead: of other codes that may have been written: these stay.

    Raises:
        OutputError: the block cuts a shard, `codes` do not fit it, or the disk refuses.
    """
    layout = draft.layout
    shards = layout.shards_of(window)
    expected = (layout.shape[0], *window.shape)
    if codes.shape != expected or codes.dtype != layout.dtype:
        raise OutputError(
            f"block {window} got {codes.dtype} codes of (lead, y, x) {codes.shape}; "
            f"expected {layout.dtype} of {expected}"
        )
    parts = [codes[:, *layout.shard_window(*shard).within(window).slices] for shard in shards]
    at_once = min(len(shards), turn.threads)
    return sum(map_on(at_once, partial(_write_shard, draft, turn, instead), shards, parts))


def check_block(draft: Draft, window: Window) -> dict[str, str]:
    """The shards of a block that are whole, by key, each with the stamp of what was checked.

    Raises:
        OutputError: a shard cannot be read.
    """
    shelf = _shelf_of(draft)
    with shelf.errors(draft.staging):
        keys = [draft.layout.shard_key(*shard) for shard in draft.layout.shards_of(window)]
        stamps = {key: shelf.stamp(draft.store, key) for key in keys}  # first: what comes later has another one
        return {key: s for key, s in stamps.items() if s is not None and _fault(shelf, draft, key) is None}


def publish(
    draft: Draft,
    outcome: Mapping[str, Attribute] | None = None,
    replace: bool = False,
    point: bool = True,
    whole: Mapping[str, str] = MappingProxyType({}),
) -> PublishedCycle:
    """Makes the draft visible in one step and moves `latest` to it if it is the newest.

    Args:
        outcome: what is known only at the end, such as the missing share; kept as `squall_...` attributes.
        replace: publish as the next revision if the cycle stands already.
        point: False leaves `latest` to a `point_latest` of the caller, who publishes many cycles.
        whole: shards that `check_block` has seen; those that are still the same are not read again.

    Raises:
        IncompleteError: shards are missing or damaged (names them); nothing was published.
        AlreadyPublishedError: the cycle stands already (says whether its bytes are the same).
        OutputError: the disk refuses. After any error the draft remains until `abort`.
    """
    shelf = _shelf_of(draft)
    with shelf.errors(draft.staging):
        _refuse_incomplete(shelf, draft, whole)
        _record_outcome(shelf, draft, outcome or {})
        cycle = _claim(shelf, draft, replace)
        if point:
            _point(shelf)
    abort(draft)
    return cycle


def abort(draft: Draft) -> None:
    """Removes the draft; does nothing if it is gone."""
    _shelf_of(draft).abort(draft)


def sweep(root: str, product: str) -> list[str]:
    """Removes what dead runs left and puts `latest` right; returns the work that was removed, by path or URL.

    Work of living processes is left alone, also that of other hosts unless nothing touched it for a day.
    """
    shelf = open_shelf(root, product)
    with shelf.errors():
        left = [work for work in _work(shelf) if is_abandoned(work, shelf.seconds_untouched)]
        swept = [work for work in left if shelf.clear(work)]
        _point(shelf)
    return [f"{shelf.home}/{STAGING}/{work}" for work in swept]


def has_drafts(root: str, product: str) -> bool:
    """True if any process has work in progress, or has left some."""
    return bool(_work(open_shelf(root, product)))


def expire(root: str, product: str, keep: timedelta, now: np.datetime64) -> list[PublishedCycle]:
    """Removes the cycles, all revisions, that started more than `keep` before `now`, and returns them.

    Each leaves in one step, so no reader opens half a cycle. The newest and the one that `latest` names stay.
    """
    shelf = open_shelf(root, product)
    kept = {name.reference_time for name in (latest_name(shelf), newest_name(shelf)) if name is not None}
    oldest = now - np.timedelta64(keep)
    names = (n for n in all_names(shelf) if n.reference_time < oldest and n.reference_time not in kept)
    old = [cycle for name in sorted(names) if (cycle := as_published(shelf, name)) is not None]
    with shelf.errors():
        return [c for c in old if shelf.remove(cycle_name(c.reference_time, c.revision, shelf.suffix))]


def point_latest(root: str, product: str) -> None:
    """Has `latest` name the newest published cycle; it never moves back in time."""
    shelf = open_shelf(root, product)
    with shelf.errors():
        _point(shelf)


def _point(shelf: Shelf) -> None:
    shelf.point(partial(_newer, shelf))


def _newer(shelf: Shelf, current: str | None) -> str | None:
    """The name of the newest cycle, or None if the pointer names it, or a newer one."""
    newest = newest_name(shelf)
    named = None if current is None else parse_name(current, shelf.suffix)
    if newest is None or (named is not None and named >= newest):
        return None
    return cycle_name(newest.reference_time, newest.revision, shelf.suffix)


def _shelf_of(draft: Draft) -> Shelf:
    return open_shelf(draft.root, draft.product)


def _work(shelf: Shelf) -> list[str]:
    return sorted(name for name in shelf.names(STAGING) if "~" in name)


def _write_shard(draft: Draft, turn: Turn, instead: bool, shard: tuple[int, int], codes: NDArray[Any]) -> int:
    pieces, shelf = encode_shard(codes, draft.layout, turn), _shelf_of(draft)
    with shelf.errors(draft.staging):
        write = shelf.put if instead else shelf.put_shard
        write(draft, draft.layout.shard_key(*shard), *pieces)
    return sum(map(len, pieces))


def _refuse(cycle: PublishedCycle | None, difference: str = "") -> None:
    if cycle is not None:
        raise AlreadyPublishedError(f"cycle {cycle.path} is published already{difference}; nothing was changed")


def _refuse_incomplete(shelf: Shelf, draft: Draft, whole: Mapping[str, str]) -> None:
    layout = draft.layout
    keys = [layout.shard_key(*shard) for shard in layout.shards]
    at_once = min(max(CHECKED_TOGETHER, shelf.together), len(keys))
    found = map_on(at_once, partial(_fault_now, shelf, draft, whole), keys)
    faults = [
        f"  {layout.shard_key(*shard)} ({layout.shard_window(*shard)}): {fault}"
        for shard, fault in zip(layout.shards, found, strict=True)
        if fault is not None
    ]
    if faults:
        more = [f"  and {len(faults) - _NAMED} more"] if len(faults) > _NAMED else []
        text = "\n".join(faults[:_NAMED] + more)
        where = f"{len(faults)} of {len(layout.shards)} shards of {draft.product} {draft.reference_time}"
        raise IncompleteError(f"{where} are missing or damaged; nothing was published:\n{text}")


def _fault_now(shelf: Shelf, draft: Draft, whole: Mapping[str, str], key: str) -> str | None:
    if key in whole and shelf.stamp(draft.store, key) == whole[key]:
        return None
    return _fault(shelf, draft, key)


def _fault(shelf: Shelf, draft: Draft, key: str) -> str | None:
    try:
        with shelf.read(draft.store, key) as file:
            return shard_fault(file, draft.layout)
    except FileNotFoundError:
        return "missing"


def _record_outcome(shelf: Shelf, draft: Draft, outcome: Mapping[str, Attribute]) -> None:
    with shelf.read(draft.store, "zarr.json") as file:
        root = file.read()
    shelf.put(draft, "zarr.json", add_attributes(root, {f"squall_{name}": value for name, value in outcome.items()}))


def _claim(shelf: Shelf, draft: Draft, replace: bool) -> PublishedCycle:
    """Publishes the store under the name of its cycle, or of its next revision; of two writers one gets it."""
    while True:
        found = find_cycle(draft.root, draft.product, draft.reference_time)
        if found is not None and not replace:
            _refuse(found, _difference(shelf, draft.store, found.path))
        revision = 0 if found is None else found.revision + 1
        store = shelf.claim(draft, cycle_name(draft.reference_time, revision, shelf.suffix))
        if store is not None:
            return PublishedCycle(draft.reference_time, revision, store)


def _difference(shelf: Shelf, ours: str, theirs: str) -> str:
    names = sorted({*shelf.keys(ours), *shelf.keys(theirs)})
    is_same = map_on(shelf.together, partial(_is_same, shelf, ours, theirs), names)
    differing = [name for name, same in zip(names, is_same, strict=True) if not same]
    if not differing:
        return " with the same bytes"
    files = f"{len(differing)} of {len(names)} files, first {differing[0]}"
    return f" with other bytes in {files} (--replace publishes a revision)"


def _is_same(shelf: Shelf, ours: str, theirs: str, key: str) -> bool:
    try:
        with shelf.read(ours, key) as one, shelf.read(theirs, key) as other:
            return one.read() == other.read()
    except FileNotFoundError:
        return False
