"""Each test is one moment or one accident of publishing, and its agreed outcome.

By design: a draft is invisible; publishing is one step, so a cycle is there whole or not at all; whoever
comes second changes nothing; whatever a crash leaves, the next sweep puts right. The same holds in a folder and on an
object store; what only one of them does is in test_folder_shelf.py and test_object_shelf.py.
"""

import pickle
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
from pipelines.cycles import find_cycle, latest_cycle, list_cycles
from pipelines.errors import AlreadyPublishedError, IncompleteError, OutputError
from pipelines.grid import Window
from pipelines.shelves import as_opened
from pipelines.sink import abort, check_block, expire, publish, sweep, write_block
from pipelines.team import Team

TIME = "2016-09-28T15:30"


FIRST = "rain_rate/c/0/0/0/0"


@pytest.fixture
def shelf(any_shelf):
    return any_shelf


def plain(store: str, **options) -> xr.Dataset:
    """What xarray reads by itself."""
    return xr.open_zarr(as_opened(store), chunks=None, **options)


# A cycle


def test_a_draft_is_invisible(shelf):
    shelf.filled(TIME)
    assert list_cycles(shelf.root, "rain") == []
    assert latest_cycle(shelf.root, "rain") is None


def test_a_published_cycle_is_whole_and_leaves_no_staging(shelf):
    cycle = shelf.publish(TIME)
    assert list_cycles(shelf.root, "rain") == [cycle]
    assert latest_cycle(shelf.root, "rain") == cycle
    codes = plain(cycle.path, mask_and_scale=False).rain_rate.values[0]
    assert codes.tobytes() == shelf.codes().tobytes()
    assert shelf.staged == []


def test_the_same_cycle_made_twice_has_the_same_bytes_wherever_it_lies(shelf, tmp_path):
    first = shelf.publish(TIME)
    for again in (shelf.but(root=f"{shelf.root}/again"), shelf.but(root=str(tmp_path / "folder"))):
        assert shelf.contents(first.path) == again.contents(again.publish(TIME).path)


def test_the_order_and_cut_of_blocks_do_not_change_the_bytes(shelf):
    other = shelf.but(root=f"{shelf.root}/other")
    draft = other.draft(TIME)
    for window in (Window(12, 20, 0, 13), Window(0, 12, 8, 13), Window(0, 12, 0, 8), Window(0, 12, 0, 13)):
        write_block(draft, window, shelf.codes()[:, *window.slices], Team(3).turn())
    assert shelf.contents(publish(draft).path) == shelf.contents(shelf.publish(TIME).path)


def test_an_undescribed_draft_is_not_published(shelf):
    draft = sink.make_draft(shelf.root, "rain", np.datetime64(TIME, "ns"), shelf.layout)
    write_block(draft, shelf.grid.window, shelf.codes())
    with pytest.raises(OutputError, match=r"No such file|no object"):
        publish(draft)
    assert list_cycles(shelf.root, "rain") == []


def test_a_draft_travels_to_workers(shelf):
    draft = shelf.draft(TIME)
    assert pickle.loads(pickle.dumps(draft)) == draft  # noqa: S301
    assert len(pickle.dumps(draft)) < 2000


def test_the_outcome_is_kept_in_the_store(shelf):
    cycle = publish(shelf.filled(TIME), {"completeness": 1.0})
    assert open_cycle(cycle.path).attrs["squall_completeness"] == 1.0
    assert plain(cycle.path, consolidated=False).attrs["squall_completeness"] == 1.0


def test_written_bytes_are_counted(shelf):
    draft = shelf.draft(TIME)
    written = write_block(draft, shelf.grid.window, shelf.codes())
    files = shelf.contents(draft.store)
    assert written == sum(len(files[draft.layout.shard_key(*s)]) for s in draft.layout.shards)


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
    assert FIRST not in shelf.place.keys(draft.store)


def test_a_draft_that_is_published_changes_no_more(shelf):
    draft = shelf.filled("2016-09-28T15:30")
    cycle = publish(draft)
    before = shelf.contents(cycle.path)
    with pytest.raises((OutputError, IncompleteError)):
        publish(draft, {"completeness": 0.5}, replace=True)
    with pytest.raises(OutputError):
        write_block(draft, shelf.grid.window, shelf.codes(seed=1), instead=True)
    assert shelf.contents(cycle.path) == before
    assert list_cycles(shelf.root, shelf.product) == [cycle]


def test_an_aborted_draft_leaves_nothing_and_can_be_aborted_again(shelf):
    draft = shelf.filled(TIME)
    abort(draft)
    abort(draft)
    assert shelf.staged == []


# The pointer


def test_latest_follows_the_newest_cycle_and_never_goes_back(shelf):
    newest = shelf.publish("2016-09-28T15:35")
    shelf.publish("2016-09-28T15:30")
    shelf.publish("2015-01-01T00:00")
    assert latest_cycle(shelf.root, "rain") == newest
    newest = shelf.publish("2016-09-29T00:00")
    assert latest_cycle(shelf.root, "rain") == newest


def test_latest_may_be_left_to_the_caller_who_publishes_many(shelf):
    first = shelf.publish("2016-09-28T15:30")
    second = sink.publish(shelf.filled("2016-09-28T15:35"), point=False)
    assert latest_cycle(shelf.root, "rain") == first
    sink.point_latest(shelf.root, "rain")
    assert latest_cycle(shelf.root, "rain") == second


def test_a_slow_publisher_does_not_take_latest_back(shelf, monkeypatch):
    """One publisher has seen which cycle is the newest and then sleeps while another publishes a newer one."""
    look, looked, faster_is_done = sink.newest_name, threading.Event(), threading.Event()

    def look_slowly(place):
        found = look(place)
        if threading.current_thread() is slow:
            looked.set()
            faster_is_done.wait(0.3)
        return found

    slow = threading.Thread(target=publish, args=(shelf.filled("2016-09-28T15:30"),))
    monkeypatch.setattr(sink, "newest_name", look_slowly)
    slow.start()
    looked.wait()
    newest = shelf.publish("2016-09-28T15:35")
    faster_is_done.set()
    slow.join()
    assert latest_cycle(shelf.root, "rain") == newest


def test_a_reader_of_latest_keeps_to_its_cycle_when_the_pointer_moves(shelf):
    shelf.publish("2016-09-28T15:30", seed=1)
    dataset = open_cycle(f"{shelf.root}/rain/latest{shelf.place.suffix}")
    shelf.publish("2016-09-28T15:35", seed=2)
    np.testing.assert_allclose(np.nan_to_num(dataset.rain_rate.values[0]), np.maximum(shelf.codes(1), 0) * 0.01, 1e-6)


# The second to come


def test_a_rerun_is_refused_before_any_work(shelf):
    cycle = shelf.publish(TIME)
    before = shelf.contents(cycle.path)
    with pytest.raises(AlreadyPublishedError, match=r"1530.*\.zarr is published already"):
        shelf.draft(TIME)
    assert shelf.contents(cycle.path) == before
    assert shelf.staged == []


@pytest.mark.parametrize(("seed", "message"), [(1, "with the same bytes"), (2, r"with other bytes in 4 of \d+ files")])
def test_of_two_writers_the_second_changes_nothing_and_says_so(shelf, seed, message):
    first, second = shelf.filled(TIME, 1), shelf.filled(TIME, seed)
    cycle = publish(first)
    before = shelf.contents(cycle.path)
    with pytest.raises(AlreadyPublishedError, match=message):
        publish(second)
    assert shelf.contents(cycle.path) == before
    abort(second)
    assert shelf.staged == []


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
    before = shelf.contents(cycle.path)
    answers = iter([None, cycle])
    monkeypatch.setattr(sink, "find_cycle", lambda *_: next(answers))
    with pytest.raises(AlreadyPublishedError):
        publish(late)
    assert shelf.contents(cycle.path) == before


def test_replacing_publishes_a_revision_beside_the_first(shelf):
    first = shelf.publish(TIME, 1)
    before = shelf.contents(first.path)
    second = shelf.publish(TIME, 2, replace=True)
    assert second.revision == 1
    assert f"1530.r1{shelf.place.suffix}" in shelf.place.names("2016", "09", "28")
    assert shelf.contents(first.path) == before
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
    shelf.damage(draft.store, draft.layout.shard_key(1, 0))
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
    shelf.damage(draft.store, FIRST, lambda data: data.__setitem__(position, data[position] ^ 0x10))
    with pytest.raises(IncompleteError, match="crc32c"):
        publish(draft)
    with pytest.raises(ValueError, match="checksum"):
        plain(draft.store).rain_rate.values  # noqa: B018


def test_a_truncated_shard_is_not_published(shelf):
    draft = shelf.filled(TIME)
    shelf.damage(draft.store, FIRST, lambda data: data.__delitem__(slice(len(data) // 2, None)))
    with pytest.raises(IncompleteError, match="c/0/0/0/0"):
        publish(draft)


def test_a_shard_that_was_checked_is_not_read_again(shelf, monkeypatch):
    draft = shelf.filled(TIME)
    whole = check_block(draft, shelf.grid.window)
    assert sorted(whole) == sorted(draft.layout.shard_key(*shard) for shard in draft.layout.shards)
    rest = {key: stamp for key, stamp in whole.items() if key != FIRST}
    read, fault = [], sink._fault
    monkeypatch.setattr(sink, "_fault", lambda *place: (read.append(place[-1]), fault(*place))[1])
    publish(draft, whole=rest)
    assert read == [FIRST]


@pytest.mark.parametrize(
    ("change", "said"), [(None, "missing"), (lambda data: data.__delitem__(slice(len(data) // 2, None)), "crc32c")]
)
def test_a_shard_that_was_changed_after_its_check_is_not_published(shelf, change, said):
    draft = shelf.filled(TIME)
    whole = check_block(draft, shelf.grid.window)
    shelf.damage(draft.store, FIRST, change)
    with pytest.raises(IncompleteError, match=f"1 of 4 shards .*\n  {FIRST} .*{said}"):
        publish(draft, whole=whole)
    assert list_cycles(shelf.root, "rain") == []


def test_a_damaged_or_missing_shard_is_not_known_as_whole(shelf):
    draft = shelf.filled(TIME)
    shelf.damage(draft.store, FIRST, lambda data: data.__setitem__(20, data[20] ^ 0x10))
    shelf.damage(draft.store, draft.layout.shard_key(1, 0))
    others = {draft.layout.shard_key(0, 1), draft.layout.shard_key(1, 1)}
    assert set(check_block(draft, shelf.grid.window)) == others


def run_and_die(shelf, line: str) -> None:
    """Publishes in a child that kills itself right before `line` of pipelines would run."""
    script = (
        "import os, pickle, signal, sys\n"
        "from pipelines import folder_shelf, objects, sink\n"
        "draft = pickle.load(sys.stdin.buffer)\n"
        "draft = sink.open_draft(*draft)\n"
        "codes, shards = sys.modules['numpy'].zeros(draft.layout.shape, 'int16'), draft.layout.shards\n"
        f"{line} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
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


LINES = {
    "folder": ["folder_shelf.replace_file", "sink._refuse_incomplete", "folder_shelf.sync_folders", "sink._claim"],
    "file": ["objects.create", "sink._refuse_incomplete", "sink._record_outcome", "sink._claim"],
}


@pytest.mark.parametrize(
    ("shared_shelf", "line"), [(place, line) for place in LINES for line in LINES[place]], indirect=["shared_shelf"]
)
def test_a_crash_before_publishing_leaves_only_staging_that_the_next_run_sweeps(shared_shelf, line):
    shelf = shared_shelf
    run_and_die(shelf, line)
    assert list_cycles(shelf.root, "rain") == []
    assert len(shelf.staged) == 1
    assert len(sweep(shelf.root, "rain")) == 1
    assert shelf.staged == []
    shelf.publish(TIME)


@pytest.mark.parametrize("repair", ["sweep", "publish"])
def test_a_crash_between_claim_and_pointer_is_put_right_by_the_next_run(shared_shelf, repair):
    shelf = shared_shelf
    shelf.publish("2016-09-28T15:25")
    run_and_die(shelf, "sink._point")
    cycle = find_cycle(shelf.root, "rain", np.datetime64(TIME, "ns"))
    assert open_cycle(cycle.path).rain_rate.shape == (1, 2, 20, 13)
    assert latest_cycle(shelf.root, "rain") != cycle
    sweep(shelf.root, "rain") if repair == "sweep" else shelf.publish("2016-09-28T15:20")
    assert latest_cycle(shelf.root, "rain") == cycle


@pytest.mark.parametrize(
    ("shared_shelf", "line"), [("folder", "sink.abort"), ("file", "objects.delete")], indirect=["shared_shelf"]
)
def test_a_crash_before_the_staging_is_removed_is_swept(shared_shelf, line):
    shelf = shared_shelf
    run_and_die(shelf, line)
    assert len(list_cycles(shelf.root, "rain")) == len(shelf.staged) == 1
    sweep(shelf.root, "rain")
    assert shelf.staged == []


def test_a_sweep_leaves_living_drafts_alone(shelf):
    draft = shelf.filled(TIME)
    assert sweep(shelf.root, "rain") == []
    publish(draft)


def test_a_draft_swept_by_mistake_is_not_published_in_part(shelf, monkeypatch):
    """The sweep comes after the check of the shards and before the claim."""
    draft, claim = shelf.filled(TIME), sink._claim
    monkeypatch.setattr(sink, "is_abandoned", lambda *_: True)
    monkeypatch.setattr(sink, "_claim", lambda *a: (sweep(shelf.root, "rain"), claim(*a))[1])
    with pytest.raises(OutputError, match="cannot write"):
        publish(draft)
    assert list_cycles(shelf.root, "rain") == shelf.staged == []


def test_a_sweep_of_a_product_that_was_never_run_does_nothing(shelf):
    assert sweep(shelf.root, "rain") == []
    assert shelf.place.names() == []


def test_a_straggler_cannot_touch_a_published_cycle(shelf):
    draft = shelf.filled(TIME)
    cycle = publish(draft)
    before = shelf.contents(cycle.path)
    with pytest.raises(OutputError, match="cannot write"):
        write_block(draft, shelf.grid.window, shelf.codes(5))
    assert shelf.contents(cycle.path) == before
    assert shelf.staged == []


def test_a_draft_that_was_swept_away_is_not_published(shelf):
    draft = shelf.filled(TIME)
    assert shelf.place.clear(draft.staging)
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
    assert [(str(c.reference_time)[:10], c.revision) for c in gone] == [("2016-09-26", 0), ("2016-09-26", 1)]
    kept = [str(c.reference_time)[:10] for c in list_cycles(shelf.root, "rain")]
    assert kept == ["2016-09-27", "2016-09-28"]
    assert [key for key in shelf.place.keys(f"{shelf.root}/rain") if "2016/09/26" in key] == []
    assert shelf.staged == []


def test_the_newest_cycle_is_kept_however_old(shelf):
    cycle = shelf.publish(TIME)
    assert expire(shelf.root, "rain", hours(1), np.datetime64("2020-01-01", "ns")) == []
    assert latest_cycle(shelf.root, "rain") == cycle
