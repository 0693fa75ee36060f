"""Each test is one moment or one accident of publishing, and its agreed outcome.

By design: a draft is invisible; publishing is one rename, so a cycle is there whole or not at all; whoever
comes second changes nothing; whatever a crash leaves, the next sweep puts right.
"""

import errno
import os
import pickle
import shutil
import stat
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pipelines import sink
from pipelines.archive import open_cycle
from pipelines.cycles import LATEST, find_cycle, latest_cycle, list_cycles
from pipelines.errors import AlreadyPublishedError, ConfigError, IncompleteError, OutputError
from pipelines.grid import Window
from pipelines.sink import abort, expire, open_draft, publish, sweep, write_block
from pipelines.team import Team

TIME = "2016-09-28T15:30"


def contents(folder: str | Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def staged(shelf) -> list[Path]:
    return sorted((shelf.folder / ".staging").iterdir())


def first_shard(draft) -> Path:
    return draft.store / draft.layout.shard_key(0, 0)


# A cycle


def test_a_draft_is_invisible(shelf):
    shelf.filled(TIME)
    assert list_cycles(shelf.root, "rain") == []
    assert not (shelf.folder / LATEST).exists()


def test_a_published_cycle_is_whole_and_leaves_no_staging(shelf):
    cycle = shelf.publish(TIME)
    assert list_cycles(shelf.root, "rain") == [cycle]
    assert (shelf.folder / LATEST).resolve() == Path(cycle.path)
    codes = xr.open_zarr(cycle.path, mask_and_scale=False, chunks=None).rain_rate.values[0]
    assert codes.tobytes() == shelf.codes().tobytes()
    assert staged(shelf) == []


def test_the_same_cycle_made_twice_has_the_same_bytes(shelf, tmp_path):
    first = shelf.publish(TIME)
    second = shelf.but(root=str(tmp_path / "again")).publish(TIME)
    assert contents(first.path) == contents(second.path)


def test_the_order_and_cut_of_blocks_do_not_change_the_bytes(shelf, tmp_path):
    other = shelf.but(root=str(tmp_path / "other"))
    draft = other.draft(TIME)
    for window in (Window(12, 20, 0, 13), Window(0, 12, 8, 13), Window(0, 12, 0, 8), Window(0, 12, 0, 13)):
        write_block(draft, window, shelf.codes()[:, *window.slices], Team(3).turn())
    assert contents(publish(draft).path) == contents(shelf.publish(TIME).path)


def test_every_file_and_folder_is_on_disk_before_a_cycle_is_seen(shelf, monkeypatch):
    synced, fsync, rename = set(), os.fsync, os.rename

    def note(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def check(source, target):
        if Path(source).name == "store":
            made = [Path(source), *Path(source).rglob("*")]
            assert [path for path in made if path.stat().st_ino not in synced] == []
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "rename", check)
    shelf.publish(TIME)


def test_a_folder_that_got_a_shard_is_synced_after_it(shelf, monkeypatch):
    draft, rows = shelf.filled(TIME), []
    monkeypatch.setattr(sink, "sync_folders", lambda folders: rows.extend(folders))
    publish(draft)
    assert set(rows) >= {draft.store, *((draft.store / draft.layout.shard_key(*s)).parent for s in draft.layout.shards)}


def test_an_undescribed_draft_is_not_published(shelf):
    draft = sink.make_draft(shelf.root, "rain", np.datetime64(TIME, "ns"), shelf.layout)
    write_block(draft, shelf.grid.window, shelf.codes())
    with pytest.raises(OutputError, match="No such file"):
        publish(draft)
    assert list_cycles(shelf.root, "rain") == []


def test_a_draft_travels_to_workers(shelf):
    draft = shelf.draft(TIME)
    assert pickle.loads(pickle.dumps(draft)) == draft  # noqa: S301
    assert len(pickle.dumps(draft)) < 2000


def test_published_files_are_read_only(shelf):
    for path in Path(shelf.publish(TIME).path).rglob("*"):
        assert path.is_dir() or not path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)


def test_the_outcome_is_kept_in_the_store(shelf):
    cycle = publish(shelf.filled(TIME), {"completeness": 1.0})
    assert open_cycle(cycle.path).attrs["squall_completeness"] == 1.0
    assert xr.open_zarr(cycle.path, consolidated=False, chunks=None).attrs["squall_completeness"] == 1.0


def test_written_bytes_are_counted(shelf):
    draft = shelf.draft(TIME)
    written = write_block(draft, shelf.grid.window, shelf.codes())
    assert written == sum((draft.store / draft.layout.shard_key(*s)).stat().st_size for s in draft.layout.shards)


@pytest.mark.parametrize(
    ("window", "shape", "dtype", "message"),
    [
        (Window(0, 12, 0, 10), (2, 12, 10), "int16", "0:10 along x cuts a shard: offset 10 .* shard 8 .* use 8 or 13"),
        (Window(0, 12, 0, 8), (3, 12, 8), "int16", r"int16 codes of .* \(3, 12, 8\); expected int16 of \(2, 12, 8\)"),
        (Window(0, 12, 0, 8), (2, 12, 8), "float32", "got float32 codes"),
        (Window(0, 24, 0, 8), (2, 24, 8), "int16", "leaves the grid 0:20"),
    ],
)
def test_codes_that_are_not_whole_shards_are_refused(shelf, window, shape, dtype, message):
    draft = shelf.draft(TIME)
    with pytest.raises(OutputError, match=message):
        write_block(draft, window, np.zeros(shape, dtype))
    assert not first_shard(draft).exists()


def test_a_root_that_is_a_url_is_refused(shelf):
    with pytest.raises(ConfigError, match="is a URL"):
        shelf.but(root="s3://bucket/rain").draft(TIME)


def test_an_aborted_draft_leaves_nothing_and_can_be_aborted_again(shelf):
    draft = shelf.filled(TIME)
    abort(draft)
    abort(draft)
    assert staged(shelf) == []


# The pointer


def test_latest_follows_the_newest_cycle_and_never_goes_back(shelf):
    newest = shelf.publish("2016-09-28T15:35")
    shelf.publish("2016-09-28T15:30")
    shelf.publish("2015-01-01T00:00")
    assert latest_cycle(shelf.root, "rain") == newest
    shelf.publish("2016-09-29T00:00")
    assert os.readlink(shelf.folder / LATEST) == "2016/09/29/0000.zarr"


def test_latest_may_be_left_to_the_caller_who_publishes_many(shelf):
    first = shelf.publish("2016-09-28T15:30")
    second = sink.publish(shelf.filled("2016-09-28T15:35"), point=False)
    assert latest_cycle(shelf.root, "rain") == first
    sink.point_latest(shelf.root, "rain")
    assert latest_cycle(shelf.root, "rain") == second


def test_a_slow_publisher_does_not_take_latest_back(shelf, monkeypatch):
    """One publisher has seen where `latest` points and then sleeps while another publishes a newer cycle."""
    look, looked, faster_is_done = sink.latest_cycle, threading.Event(), threading.Event()

    def look_slowly(root, product):
        found = look(root, product)
        if threading.current_thread() is slow:
            looked.set()
            faster_is_done.wait(0.3)
        return found

    slow = threading.Thread(target=publish, args=(shelf.filled("2016-09-28T15:30"),))
    monkeypatch.setattr(sink, "latest_cycle", look_slowly)
    slow.start()
    looked.wait()
    newest = shelf.publish("2016-09-28T15:35")
    faster_is_done.set()
    slow.join()
    assert latest_cycle(shelf.root, "rain") == newest


def test_a_reader_of_latest_keeps_to_its_cycle_when_the_pointer_moves(shelf):
    shelf.publish("2016-09-28T15:30", seed=1)
    dataset = open_cycle(shelf.folder / LATEST)
    shelf.publish("2016-09-28T15:35", seed=2)
    np.testing.assert_allclose(np.nan_to_num(dataset.rain_rate.values[0]), np.maximum(shelf.codes(1), 0) * 0.01, 1e-6)


# The second to come


def test_a_rerun_is_refused_before_any_work(shelf):
    cycle = shelf.publish(TIME)
    before = contents(cycle.path)
    with pytest.raises(AlreadyPublishedError, match=r"1530\.zarr is published already"):
        shelf.draft(TIME)
    assert contents(cycle.path) == before
    assert staged(shelf) == []


@pytest.mark.parametrize(("seed", "message"), [(1, "with the same bytes"), (2, r"with other bytes in 4 of \d+ files")])
def test_of_two_writers_the_second_changes_nothing_and_says_so(shelf, seed, message):
    first, second = shelf.filled(TIME, 1), shelf.filled(TIME, seed)
    cycle = publish(first)
    before = contents(cycle.path)
    with pytest.raises(AlreadyPublishedError, match=message):
        publish(second)
    assert contents(cycle.path) == before
    abort(second)
    assert staged(shelf) == []


def test_of_many_writers_at_once_one_wins(shelf):
    drafts = [shelf.filled(TIME, seed) for seed in range(6)]
    results: list[object] = []
    barrier = threading.Barrier(len(drafts))

    def race(draft):
        barrier.wait()
        try:
            results.append(publish(draft))
        except AlreadyPublishedError as error:
            results.append(error)

    threads = [threading.Thread(target=race, args=(draft,)) for draft in drafts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r for r in results if not isinstance(r, AlreadyPublishedError)] == list_cycles(shelf.root, "rain")


def test_a_writer_that_looked_too_early_still_loses(shelf, monkeypatch):
    """Between looking and renaming another writer publishes; the rename itself must refuse."""
    late = shelf.filled(TIME, 2)
    cycle = shelf.publish(TIME, 1)
    before = contents(cycle.path)
    answers = iter([None, cycle])
    monkeypatch.setattr(sink, "find_cycle", lambda *_: next(answers))
    with pytest.raises(AlreadyPublishedError):
        publish(late)
    assert contents(cycle.path) == before


def test_replacing_publishes_a_revision_beside_the_first(shelf):
    first = shelf.publish(TIME, 1)
    before = contents(first.path)
    second = shelf.publish(TIME, 2, replace=True)
    assert (second.revision, Path(second.path).name) == (1, "1530.r1.zarr")
    assert contents(first.path) == before
    assert list_cycles(shelf.root, "rain") == [second]
    assert latest_cycle(shelf.root, "rain") == second


def test_replacing_what_is_not_there_publishes_it(shelf):
    assert shelf.publish(TIME, replace=True).revision == 0


def test_replacing_an_old_cycle_does_not_take_latest(shelf):
    newest = shelf.publish("2016-09-28T15:35")
    shelf.publish(TIME)
    shelf.publish(TIME, replace=True)
    assert latest_cycle(shelf.root, "rain") == newest


# Accidents


def test_a_missing_shard_is_named_and_nothing_is_published(shelf):
    draft = shelf.filled(TIME)
    (draft.store / draft.layout.shard_key(1, 0)).unlink()
    with pytest.raises(IncompleteError, match=r"1 of 4 shards .*\n  rain_rate/c/0/0/1/0 \(y 12:20, x 0:8\): missing"):
        publish(draft)
    assert list_cycles(shelf.root, "rain") == []


def test_many_missing_shards_are_counted(shelf):
    draft = shelf.but(output=shelf.output.model_copy(update={"shards": (4, 8)})).draft(TIME)
    with pytest.raises(IncompleteError, match=r"10 of 10 shards .*(\n.*)*and 2 more"):
        publish(draft)


@pytest.mark.parametrize("position", [20, -3, -40])
def test_a_flipped_byte_is_an_error_for_us_and_for_plain_readers(shelf, position):
    draft = shelf.filled(TIME)
    damage(first_shard(draft), position)
    with pytest.raises(IncompleteError, match="crc32c"):
        publish(draft)
    with pytest.raises(ValueError, match="checksum"):
        xr.open_zarr(str(draft.store), chunks=None).rain_rate.values  # noqa: B018


def damage(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.unlink()
    path.write_bytes(data)


def test_a_truncated_shard_is_not_published(shelf):
    draft = shelf.filled(TIME)
    data = first_shard(draft).read_bytes()
    first_shard(draft).unlink()
    first_shard(draft).write_bytes(data[: len(data) // 2])
    with pytest.raises(IncompleteError, match="c/0/0/0/0"):
        publish(draft)


def run_and_die(shelf, line: str) -> None:
    """Publishes in a child that kills itself right before `line` of the sink would run."""
    script = (
        "import os, pickle, signal, sys\n"
        "from pipelines import sink\n"
        "draft = pickle.load(sys.stdin.buffer)\n"
        "draft = sink.open_draft(*draft)\n"
        "codes, shards = sys.modules['numpy'].zeros(draft.layout.shape, 'int16'), draft.layout.shards\n"
        f"sink.{line} = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "for s in shards:\n"
        "    w = draft.layout.shard_window(*s)\n"
        "    sink.write_block(draft, w, codes[:, *w.slices])\n"
        "sink.publish(draft)\n"
    )
    arguments = (
        shelf.root, shelf.product, np.datetime64(TIME, "ns"), shelf.grid, shelf.leads, shelf.layout,
        {"units": "mm h-1"}, shelf.provenance,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(arguments), cwd=Path(sink.__file__).parents[1]
    )
    assert done.returncode == -9


@pytest.mark.parametrize("line", ["replace_file", "_refuse_incomplete", "sync_folders", "_claim"])
def test_a_crash_before_publishing_leaves_only_staging_that_the_next_run_sweeps(shelf, line):
    run_and_die(shelf, line)
    assert list_cycles(shelf.root, "rain") == []
    assert len(staged(shelf)) == 1
    assert len(sweep(shelf.root, "rain")) == 1
    assert staged(shelf) == []
    shelf.publish(TIME)


@pytest.mark.parametrize("repair", ["sweep", "publish"])
def test_a_crash_between_rename_and_pointer_is_put_right_by_the_next_run(shelf, repair):
    shelf.publish("2016-09-28T15:25")
    run_and_die(shelf, "point_latest")
    cycle = find_cycle(shelf.root, "rain", np.datetime64(TIME, "ns"))
    assert open_cycle(cycle.path).rain_rate.shape == (1, 2, 20, 13)
    assert latest_cycle(shelf.root, "rain") != cycle
    sweep(shelf.root, "rain") if repair == "sweep" else shelf.publish("2016-09-28T15:20")
    assert latest_cycle(shelf.root, "rain") == cycle


def test_a_crash_before_the_staging_is_removed_is_swept(shelf):
    run_and_die(shelf, "abort")
    assert len(list_cycles(shelf.root, "rain")) == len(staged(shelf)) == 1
    sweep(shelf.root, "rain")
    assert staged(shelf) == []


def test_a_sweep_leaves_living_drafts_alone(shelf):
    draft = shelf.filled(TIME)
    assert sweep(shelf.root, "rain") == []
    publish(draft)


def test_a_draft_swept_by_mistake_is_not_published_in_part(shelf, monkeypatch):
    """The sweep comes after the check of the shards and before the rename."""
    draft = shelf.filled(TIME)
    monkeypatch.setattr(sink.staging, "abandoned", lambda *_: [Path(draft.staging)])
    check = sink.sync_folders
    monkeypatch.setattr(sink, "sync_folders", lambda top: (check(top), sweep(shelf.root, "rain")))
    with pytest.raises(OutputError, match="cannot write"):
        publish(draft)
    assert list_cycles(shelf.root, "rain") == staged(shelf) == []


def test_a_sweep_of_a_product_that_was_never_run_does_nothing(shelf):
    assert sweep(shelf.root, "rain") == []
    assert not shelf.folder.exists()


def test_a_full_disk_is_named_with_path_and_room_and_nothing_is_published(shelf, monkeypatch):
    draft = shelf.filled(TIME)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match=r"cannot write .*\.staging.*No space left on device \([\d,]+ bytes free\)"):
        write_block(draft, shelf.grid.window, shelf.codes())
    assert list((draft.store.parent / "parts").iterdir()) == []
    with pytest.raises(OutputError, match="No space left"):
        publish(draft)
    with pytest.raises(OutputError, match="No space left"):
        shelf.draft("2016-09-28T15:35")
    monkeypatch.undo()
    assert list_cycles(shelf.root, "rain") == []
    abort(draft)
    assert staged(shelf) == []


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_root_that_cannot_be_written_is_named(shelf, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file"):
        shelf.but(root=str(tmp_path / "file")).draft(TIME)


def test_a_straggler_cannot_touch_a_published_cycle(shelf):
    draft = shelf.filled(TIME)
    cycle = publish(draft)
    before = contents(cycle.path)
    with pytest.raises(OutputError, match="cannot write"):
        write_block(draft, shelf.grid.window, shelf.codes(5))
    assert contents(cycle.path) == before
    assert staged(shelf) == []


def test_a_draft_that_was_swept_away_is_not_published(shelf):
    draft = shelf.filled(TIME)
    shutil.rmtree(draft.staging)
    with pytest.raises(OutputError):
        publish(draft)
    assert list_cycles(shelf.root, "rain") == []


# Retention


def hours(count: int) -> timedelta:
    return timedelta(hours=count)


def test_cycles_older_than_keep_are_removed_with_their_revisions_and_empty_days(shelf):
    for time in ("2016-09-26T12:00", "2016-09-27T12:00", "2016-09-28T12:00"):
        shelf.publish(time)
    shelf.publish("2016-09-26T12:00", replace=True)
    gone = expire(shelf.root, "rain", hours(24), np.datetime64("2016-09-28T12:00", "ns"))
    assert [Path(c.path).name for c in gone] == ["1200.zarr", "1200.r1.zarr"]
    kept = [str(c.reference_time)[:10] for c in list_cycles(shelf.root, "rain")]
    assert kept == ["2016-09-27", "2016-09-28"]
    assert not (shelf.folder / "2016/09/26").exists()
    assert staged(shelf) == []


def test_the_newest_cycle_is_kept_however_old(shelf):
    cycle = shelf.publish(TIME)
    assert expire(shelf.root, "rain", hours(1), np.datetime64("2020-01-01", "ns")) == []
    assert latest_cycle(shelf.root, "rain") == cycle


def test_a_crash_while_deleting_leaves_no_half_cycle_and_is_swept(shelf, monkeypatch):
    shelf.publish("2016-09-26T12:00")
    newest = shelf.publish(TIME)
    monkeypatch.setattr(sink.staging.shutil, "rmtree", full_disk)
    with pytest.raises(OutputError):
        expire(shelf.root, "rain", hours(1), np.datetime64(TIME, "ns"))
    monkeypatch.undo()
    assert list_cycles(shelf.root, "rain") == [newest]


def test_a_hindcast_can_be_published_into_a_day_that_retention_just_removed(shelf, monkeypatch):
    """The day vanishes between making it and renaming into it."""
    draft = shelf.filled("2016-09-26T12:00")
    make, calls = sink.make_folders, []

    def make_then_remove(path, top):
        make(path, top)
        if not calls:
            path.rmdir()
        calls.append(path)

    monkeypatch.setattr(sink, "make_folders", make_then_remove)
    publish(draft)
    assert len(calls) == 2


def test_open_draft_cleans_up_after_itself(shelf, monkeypatch):
    monkeypatch.setattr(sink, "write_files", full_disk)
    with pytest.raises(OutputError):
        open_draft(
            shelf.root, "rain", np.datetime64(TIME, "ns"), shelf.grid, shelf.leads, shelf.layout, {"units": "1"},
            shelf.provenance,
        )  # fmt: skip
    assert staged(shelf) == []
