"""A forecast on its way into the store: open a draft, write shards, publish it whole or not at all.

What a reader sees: nothing until `publish` renames the finished store into place, then all of it. A crash at any
line leaves a staging folder, which the next `sweep` removes, or a published cycle that `latest` does not name
yet, which the next `sweep` or `publish` puts right. Published stores are never changed: a correction is a new
revision. docs/decisions/003-publish-by-rename.md
"""

import errno
import fcntl
import filecmp
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import staging
from pipelines.cf import Attribute, Provenance, StoreTemplate, add_attributes, store_template
from pipelines.cycles import (
    LATEST,
    PublishedCycle,
    all_revisions,
    cycle_name,
    find_cycle,
    latest_cycle,
    newest_cycle,
    parse_cycle,
    product_folder,
)
from pipelines.errors import AlreadyPublishedError, IncompleteError, OutputError
from pipelines.files import (
    folders_of,
    make_folders,
    output_errors,
    replace_file,
    sync_folder,
    sync_folders,
    write_files,
)
from pipelines.grid import Grid, Window
from pipelines.layout import Layout, choose_layout
from pipelines.shard import encode_shard, shard_fault
from pipelines.team import ALONE, Turn
from pipelines.threads import map_on

__all__ = [
    "Draft", "Layout", "Provenance", "abort", "choose_layout", "describe", "expire", "make_draft", "open_draft",
    "point_latest", "publish", "store_template", "sweep", "write_block",
]  # fmt: skip

_TOGETHER = min(16, os.cpu_count() or 1)  # shards that are checked at the same time
_NAMED = 8  # shards or files that a message names before it only counts


@dataclass(frozen=True)
class Draft:
    """A cycle being written: small, picklable, invisible to readers until it is published."""

    root: str
    product: str
    reference_time: np.datetime64
    staging: str
    layout: Layout

    @property
    def store(self) -> Path:
        return Path(self.staging) / "store"


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
    """A store with all metadata and coordinates and no shards yet, in a staging folder of its own.

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
    """An empty store with room for shards, in a staging folder of its own; `describe` it before it is published.

    Args:
        replace: whether the cycle may be published already.

    Raises:
        AlreadyPublishedError: the cycle is published and `replace` is False.
        OutputError: the store cannot be written (names the path and the free bytes).
    """
    if not replace:
        _refuse_published(find_cycle(root, product, reference_time))
    label = cycle_name(reference_time).replace("/", "")
    with output_errors(product_folder(root, product)):
        path = staging.make_staging(root, product, label)
    draft = Draft(root, product, reference_time, str(path), layout)
    try:
        with output_errors(path):
            _make_room(draft)
    except BaseException:
        abort(draft)
        raise
    return draft


def describe(draft: Draft, template: StoreTemplate, provenance: Provenance) -> None:
    """Writes all metadata and coordinates, once; shards may be written at the same time.

    Raises:
        OutputError: the store cannot be written (names the path and the free bytes).
    """
    files = {draft.store / key: data for key, data in template.files(draft.reference_time, provenance).items()}
    with output_errors(Path(draft.staging)):
        for folder in {path.parent for path in files}:
            folder.mkdir(parents=True, exist_ok=True)
        write_files(files)
        sync_folders(folders_of(draft.store))


def write_block(draft: Draft, window: Window, codes: NDArray[Any], turn: Turn = ALONE) -> int:
    """Writes the shards of one block and returns their bytes; safe to repeat, also at the same time.

    Args:
        window: the cells of the block: whole shards, or up to the end of the grid.
        codes: (lead, y, x) packed codes; missing cells hold the fill value. Not changed.
        turn: of the block with the team that encodes its shards.

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
    return sum(map_on(at_once, partial(_write_shard, draft, turn), shards, parts))


def publish(
    draft: Draft, outcome: Mapping[str, Attribute] | None = None, replace: bool = False, point: bool = True
) -> PublishedCycle:
    """Makes the draft visible in one step and moves `latest` to it if it is the newest.

    Args:
        outcome: what is known only at the end, such as the missing share; kept as `squall_...` attributes.
        replace: publish as the next revision if the cycle stands already.
        point: False leaves `latest` to a `point_latest` of the caller, who publishes many cycles.

    Raises:
        IncompleteError: shards are missing or damaged (names them); nothing was published.
        AlreadyPublishedError: the cycle stands already (says whether its bytes are the same).
        OutputError: the disk refuses. After any error the draft remains until `abort`.
    """
    with output_errors(Path(draft.staging)):
        _refuse_incomplete(draft)
        _record_outcome(draft, outcome or {})
        sync_folders([draft.store, *_shard_folders(draft)])  # the others did not change since `describe`
        cycle = _claim(draft, replace)
        if point:
            point_latest(draft.root, draft.product)
    abort(draft)
    return cycle


def abort(draft: Draft) -> None:
    """Removes the draft; does nothing if it is gone."""
    shutil.rmtree(draft.staging, ignore_errors=True)


def sweep(root: str, product: str) -> list[str]:
    """Removes what dead runs left and puts `latest` right; returns the folders removed.

    Work of living processes is left alone, also that of other hosts unless nothing touched it for a day.
    """
    if not product_folder(root, product).exists():
        return []
    with output_errors(product_folder(root, product)):
        swept = [f for f in staging.abandoned(root, product) if staging.discard(root, product, f)]
        point_latest(root, product)
    return [str(folder) for folder in swept]


def expire(root: str, product: str, keep: timedelta, now: np.datetime64) -> list[PublishedCycle]:
    """Removes the cycles, all revisions, that started more than `keep` before `now`, and returns them.

    Each leaves in one step, so no reader opens half a cycle. The newest and the one that `latest` names stay.
    """
    kept = {c.reference_time for c in (latest_cycle(root, product), newest_cycle(root, product)) if c is not None}
    oldest = now - np.timedelta64(keep)
    old = sorted(c for c in all_revisions(root, product) if c.reference_time < oldest and c.reference_time not in kept)
    with output_errors(product_folder(root, product)):
        return [c for c in old if _remove(root, product, c)]


def point_latest(root: str, product: str) -> None:
    """Points `latest.zarr` at the newest published cycle; it never moves back in time."""
    folder = product_folder(root, product)
    with _locked(folder):
        newest, current = newest_cycle(root, product), latest_cycle(root, product)
        if newest is None or (current is not None and current >= newest):
            return
        fresh = folder / ".latest.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(newest.path, folder))
        os.replace(fresh, folder / LATEST)
        sync_folder(folder)


def _write_shard(draft: Draft, turn: Turn, shard: tuple[int, int], codes: NDArray[Any]) -> int:
    pieces = encode_shard(codes, draft.layout, turn)
    with output_errors(Path(draft.staging)):
        replace_file(draft.store / draft.layout.shard_key(*shard), _part(draft), *pieces)
    return sum(map(len, pieces))


def _make_room(draft: Draft) -> None:
    (Path(draft.staging) / "parts").mkdir()
    for folder in _shard_folders(draft):
        folder.mkdir(parents=True)


def _shard_folders(draft: Draft) -> list[Path]:
    """Where the shards lie: a folder for each row."""
    return [(draft.store / draft.layout.shard_key(row, 0)).parent for row in range(draft.layout.shard_grid[0])]


def _part(draft: Draft) -> Path:
    """A file beside the store, so that nothing half written is ever inside it."""
    return Path(draft.staging) / "parts" / secrets.token_hex(8)


def _refuse_published(cycle: PublishedCycle | None, difference: str = "") -> None:
    if cycle is not None:
        raise AlreadyPublishedError(f"cycle {cycle.path} is published already{difference}; nothing was changed")


def _refuse_incomplete(draft: Draft) -> None:
    layout = draft.layout
    paths = [draft.store / layout.shard_key(*shard) for shard in layout.shards]
    found = map_on(min(_TOGETHER, len(paths)), lambda path: _fault(path, layout), paths)
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


def _fault(path: Path, layout: Layout) -> str | None:
    try:
        with path.open("rb") as file:
            return shard_fault(file, layout)
    except FileNotFoundError:
        return "missing"


def _record_outcome(draft: Draft, outcome: Mapping[str, Attribute]) -> None:
    path = draft.store / "zarr.json"
    attributes = {f"squall_{name}": value for name, value in outcome.items()}
    replace_file(path, _part(draft), add_attributes(path.read_bytes(), attributes))


def _claim(draft: Draft, replace: bool) -> PublishedCycle:
    """Renames the store to the name of its cycle; of two writers one gets it.

    rename(2) refuses a folder that holds something, and every store does: no flag is needed.
    """
    while True:
        found = find_cycle(draft.root, draft.product, draft.reference_time)
        if found is not None and not replace:
            _refuse_published(found, _difference(draft.store, Path(found.path)))
        folder = product_folder(draft.root, draft.product)
        name = cycle_name(draft.reference_time, 0 if found is None else found.revision + 1)
        make_folders((folder / name).parent, folder)
        try:
            os.rename(draft.store, folder / name)
        except OSError as error:
            _refuse_unless_outrun(error, draft)
        else:
            sync_folder((folder / name).parent)
            cycle = parse_cycle(folder, name)
            assert cycle is not None
            return cycle


def _refuse_unless_outrun(error: OSError, draft: Draft) -> None:
    """Passes if another writer took the name, or retention removed the emptied day, since we looked."""
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return
    if error.errno == errno.ENOENT and draft.store.exists():
        return
    raise error


def _difference(ours: Path, theirs: Path) -> str:
    names = sorted({str(p.relative_to(top)) for top in (ours, theirs) for p in top.rglob("*") if p.is_file()})
    _, mismatch, errors = filecmp.cmpfiles(ours, theirs, names, shallow=False)
    differing = sorted(mismatch + errors)
    if not differing:
        return " with the same bytes"
    files = f"{len(differing)} of {len(names)} files, first {differing[0]}"
    return f" with other bytes in {files} (--replace publishes a revision)"


def _remove(root: str, product: str, cycle: PublishedCycle) -> bool:
    if not staging.discard(root, product, Path(cycle.path)):
        return False
    with suppress(OSError):  # folders that still hold cycles stay
        for folder in Path(cycle.path).parents[:3]:
            folder.rmdir()
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone with the pointer of a product; a killed holder lets go by itself."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: the next publish or sweep puts `latest` right
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
