"""What publishing in a folder does beyond what holds everywhere (test_sink.py): fsync, rename, names, a full disk."""

import errno
import os
import stat
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from pipelines import folder_shelf, sink
from pipelines.cycles import list_cycles
from pipelines.errors import OutputError
from pipelines.folder_shelf import LATEST
from pipelines.sink import abort, expire, open_draft, publish, sweep, write_block
from pipelines.staging import this_process

TIME = "2016-09-28T15:30"


def test_names_are_what_the_documentation_says(shelf):
    shelf.publish(TIME)
    assert (shelf.folder / LATEST).resolve() == shelf.folder / "2016/09/28/1530.zarr"
    assert os.readlink(shelf.folder / LATEST) == "2016/09/28/1530.zarr"
    assert shelf.publish(TIME, replace=True).path == str(shelf.folder / "2016/09/28/1530.r1.zarr")


def test_a_draft_lies_in_a_folder_of_its_own_and_no_pointer_is_there(shelf):
    draft = shelf.filled(TIME)
    assert Path(draft.store) == shelf.folder / ".staging" / draft.staging / "store"
    assert not (shelf.folder / LATEST).exists()


def test_a_folder_of_another_host_is_swept_after_a_day_untouched(shelf):
    mine = shelf.folder / ".staging" / shelf.draft(TIME).staging
    theirs = mine.rename(mine.with_name(mine.name.replace(this_process().host, "another-host")))
    for touched in ([], [theirs], [theirs, *theirs.rglob("*")]):
        assert sweep(shelf.root, "rain") == []
        for path in touched:
            os.utime(path, (0, 0))
    assert sweep(shelf.root, "rain") == [str(theirs)]


def test_days_that_retention_empties_are_removed(shelf):
    shelf.publish("2016-09-26T12:00")
    shelf.publish(TIME)
    expire(shelf.root, "rain", timedelta(hours=24), np.datetime64(TIME, "ns"))
    assert not (shelf.folder / "2016/09/26").exists()
    assert (shelf.folder / "2016/09/28").exists()


def test_a_product_that_was_never_run_gets_no_folder(shelf):
    sweep(shelf.root, "rain")
    assert not shelf.folder.exists()


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
    monkeypatch.setattr(folder_shelf, "sync_folders", lambda folders: rows.extend(folders))
    publish(draft)
    store = Path(draft.store)
    assert set(rows) >= {store, *((store / draft.layout.shard_key(*s)).parent for s in draft.layout.shards)}


def test_the_folders_of_a_new_day_are_on_disk_before_the_cycle_is_in_them(shelf, monkeypatch):
    shelf.publish("2016-09-27T12:00")
    draft, synced = shelf.filled(TIME), []
    monkeypatch.setattr(folder_shelf, "sync_folders", lambda folders: synced.extend(folders))
    monkeypatch.setattr(os, "rename", full_disk)
    with pytest.raises(OutputError):
        publish(draft)
    assert shelf.folder / "2016" / "09" in synced
    assert not {shelf.folder, shelf.folder / "2016"} & set(synced)  # their entries were there


def test_published_files_are_read_only(shelf):
    for path in Path(shelf.publish(TIME).path).rglob("*"):
        assert path.is_dir() or not path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)


def test_a_full_disk_is_named_with_path_and_room_and_nothing_is_published(shelf, monkeypatch):
    draft = shelf.filled(TIME)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match=r"cannot write .*\.staging.*No space left on device \([\d,]+ bytes free\)"):
        write_block(draft, shelf.grid.window, shelf.codes())
    assert list(Path(draft.store).with_name("parts").iterdir()) == []
    with pytest.raises(OutputError, match="No space left"):
        publish(draft)
    with pytest.raises(OutputError, match="No space left"):
        shelf.draft("2016-09-28T15:35")
    monkeypatch.undo()
    assert list_cycles(shelf.root, "rain") == []
    abort(draft)
    assert shelf.staged == []


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_root_that_cannot_be_written_is_named(shelf, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file"):
        shelf.but(root=str(tmp_path / "file")).draft(TIME)


def test_a_crash_while_deleting_leaves_no_half_cycle_and_is_swept(shelf, monkeypatch):
    shelf.publish("2016-09-26T12:00")
    newest = shelf.publish(TIME)
    monkeypatch.setattr(folder_shelf.shutil, "rmtree", full_disk)
    with pytest.raises(OutputError):
        expire(shelf.root, "rain", timedelta(hours=1), np.datetime64(TIME, "ns"))
    monkeypatch.undo()
    assert list_cycles(shelf.root, "rain") == [newest]


def test_a_hindcast_can_be_published_into_a_day_that_retention_just_removed(shelf, monkeypatch):
    """The day vanishes between making it and renaming into it."""
    draft = shelf.filled("2016-09-26T12:00")
    make, calls = folder_shelf.make_folders, []

    def make_then_remove(path, top):
        entered = make(path, top)
        if not calls:
            path.rmdir()
        calls.append(path)
        return entered

    monkeypatch.setattr(folder_shelf, "make_folders", make_then_remove)
    publish(draft)
    assert len(calls) == 2


def test_open_draft_cleans_up_after_itself(shelf, monkeypatch):
    monkeypatch.setattr(folder_shelf, "write_files", full_disk)
    with pytest.raises(OutputError):
        open_draft(
            shelf.root, "rain", np.datetime64(TIME, "ns"), shelf.grid, shelf.leads, shelf.layout, {"units": "1"},
            shelf.provenance,
        )  # fmt: skip
    assert shelf.staged == []


def test_a_draft_swept_between_check_and_rename_is_not_published_in_part(shelf, monkeypatch):
    draft = shelf.filled(TIME)
    monkeypatch.setattr(sink, "is_abandoned", lambda *_: True)
    check = folder_shelf.sync_folders
    monkeypatch.setattr(folder_shelf, "sync_folders", lambda top: (check(top), sweep(shelf.root, "rain")))
    with pytest.raises(OutputError, match="cannot write"):
        publish(draft)
    assert list_cycles(shelf.root, "rain") == shelf.staged == []
