"""Many cycles of an archive: the same bytes as one by one, whatever dies on the way, in memory that does not grow."""

import os
import shutil
import signal
import tracemalloc
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pyarrow.dataset
import pytest
import ray
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs.backfill import MOST_CYCLES, Wanted, Work, backfill, next_size, outcome_of, reference_times, run_backfill
from jobs.cycle import run_cycle
from jobs.drive import Drive
from jobs.hindcast import Group, GroupResult
from jobs.make import CycleReport, Status
from jobs.outcome import Exit
from jobs.pool import Pool, Resources, cluster_resources
from jobs.prepare import load, prepare
from jobs.raylet import RayGoneError, Raylet
from pipelines.cycles import list_cycles
from pipelines.errors import ConfigError, InputError, OutputError, RewrittenError
from pipelines.interval import EvenTimes, times_within
from pipelines.ledger import ledger_folder

FMI = Path(__file__).parents[3] / "shared/data/fmi_20160928.zarr"
TIMES = [np.datetime64(f"2024-06-01T12:{minute:02}", "ns") for minute in (5, 10, 15, 20, 25)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def ledger_of(product: Path) -> list[dict]:
    folder = ledger_folder(str(product.parent / "out"), "tiny")
    return pyarrow.dataset.dataset(folder).to_table().sort_by("reference_time").to_pylist()


def stores_of(product: Path) -> dict[np.datetime64, dict[str, bytes]]:
    """The files of every published cycle."""
    cycles = list_cycles(str(product.parent / "out"), "tiny")
    return {cycle.reference_time: files_of(Path(cycle.path)) for cycle in cycles}


def published(product: Path) -> list[np.datetime64]:
    return [c.reference_time for c in list_cycles(str(product.parent / "out"), "tiny")]


def damage(product: Path, frame: int) -> None:
    chunk = product.parent / "radar.zarr" / "precip_rate" / "c" / str(frame) / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:100])


@pytest.fixture
def ready(product, local_ray):
    """Prepares a product for a backfill, or for one cycle after the other, and gives it a pool."""
    pools = []

    def start(*overrides, whole_cycles=True):
        while pools:
            pools.pop().close()
        prepared = prepare(load(product, overrides), cluster_resources(), whole_cycles)
        pools.append(Pool(prepared.setup, prepared.workers, prepared.gpu))
        return prepared, pools[-1]

    yield start
    for pool in pools:
        pool.close()


def every_frame(prepared):
    return times_within(prepared.source.times, prepared.product.input, None, None, None, prepared.source.where)


def fill(ready, *overrides, **how):
    prepared, pool = ready(*overrides)
    return run_backfill(prepared, pool, every_frame(prepared), **how)


@pytest.mark.ray
@pytest.mark.parametrize("overrides", [(), ("tiling.tile=auto", "output.shards=auto", "output.chunks=auto")])
@pytest.mark.parametrize("in_flight", [1, 3])
def test_a_backfill_publishes_what_single_runs_publish_byte_for_byte(ready, product, overrides, in_flight):
    overrides = (*overrides, f"blocks_in_flight={in_flight}")
    prepared, pool = ready(*overrides, whole_cycles=False)
    single = {time: files_of(Path(run_cycle(prepared, pool, time).path)) for time in TIMES}
    shutil.rmtree(product.parent / "out")
    report = fill(ready, *overrides)
    assert (report.tally.published, report.tally.failed, outcome_of(report)) == (5, 0, Exit.PUBLISHED)
    assert stores_of(product) == single
    assert os.readlink(product.parent / "out" / "tiny" / "latest.zarr") == "2024/06/01/1225.zarr"
    assert not list((product.parent / "out" / "tiny" / ".staging").glob("*"))


@pytest.mark.ray
@pytest.mark.skipif(not FMI.exists(), reason=f"needs the radar store {FMI.name}")
def test_a_backfill_of_real_radar_data_publishes_what_single_runs_publish(ready, product):
    frames = ["-10min", "-5min", "0min"]
    tree = yaml.safe_load(product.read_text()) | {
        "input": {"store": str(FMI), "variable": "reflectivity", "convert": "zr", "history": frames},
        "model": {"package": "builtin:advection"},
        "tiling": {},
        "output": {"store": "out", "variable": "precip_rate"},
    }
    product.write_text(yaml.safe_dump(tree))
    prepared, pool = ready(whole_cycles=False)
    wanted = np.datetime64("2016-09-28T15:30", "ns") + np.arange(3) * np.timedelta64(10, "m")
    single = {time: files_of(Path(run_cycle(prepared, pool, time).path)) for time in wanted}
    shutil.rmtree(product.parent / "out")
    prepared, pool = ready()
    report = run_backfill(prepared, pool, EvenTimes(wanted[0], np.timedelta64(600, "s"), 3))
    assert (report.tally.published, report.tally.failed) == (3, 0)
    assert stores_of(product) == single


@pytest.mark.ray
def test_each_cycle_has_a_row_in_the_ledger(ready, product):
    report = fill(ready)
    rows = ledger_of(product)
    assert [np.datetime64(row["reference_time"].replace(tzinfo=None), "ns") for row in rows] == TIMES
    assert {row["status"] for row in rows} == {"published"}
    assert all(row["engine"].startswith("onnxruntime") and row["bytes_written"] > 0 for row in rows)
    assert all(0 < row["infer_seconds"] < row["total_seconds"] for row in rows)
    assert sum(row["tiles_run"] for row in rows) == report.tally.tiles_run
    assert published(product) == TIMES, "the folder of the ledger is taken for a cycle"


@pytest.mark.ray
@pytest.mark.parametrize("in_flight", [1, 3])
def test_a_store_that_is_written_anew_on_the_way_ends_the_backfill_and_the_same_command_goes_on(
    ready, product, rescale, in_flight
):
    prepared, pool = ready(f"blocks_in_flight={in_flight}")
    run_backfill(prepared, pool, every_frame(prepared)[:2])
    rescale(0.02)
    with pytest.raises(RewrittenError, match=r"radar.zarr was written anew .* scale_factor is 0.02, before 0.01"):
        run_backfill(prepared, pool, every_frame(prepared))
    assert published(product) == TIMES[:2]
    assert fill(ready).tally.published == 3


@pytest.mark.ray
def test_killing_a_worker_on_the_way_changes_nothing_in_the_published_bytes(ready, product):
    fill(ready)
    calm = {
        time: files_of(Path(c.path))
        for time, c in zip(TIMES, list_cycles(str(product.parent / "out"), "tiny"), strict=True)
    }
    shutil.rmtree(product.parent / "out")
    prepared, pool = ready()
    victims = [ray.get(next(iter(pool.workers.values())).pid.remote())]

    def kill_one(tally):
        if victims:
            os.kill(victims.pop(), signal.SIGKILL)

    report = run_backfill(prepared, pool, every_frame(prepared), progress=kill_one)
    assert not victims
    assert report.tally.failed == 0
    assert stores_of(product) == calm


@pytest.mark.ray
def test_of_a_group_that_was_given_up_only_what_does_not_stand_has_failed(ready, product):
    prepared, pool = ready()
    run_backfill(prepared, pool, every_frame(prepared)[:2])
    work = Work(prepared, every_frame(prepared), False, lambda tally: None)
    work.gave_up(Group(tuple(TIMES[1:4]), (None,) * 3), "worker-0 died; worker-1 died")
    assert (work.tally.already, work.tally.failed) == (1, 2)
    assert work.tally.failures == [(time, "worker-0 died; worker-1 died") for time in TIMES[2:4]]


@pytest.mark.ray
def test_cycles_without_a_value_are_counted_and_named_in_the_ledger(blind_model, ready, product):
    report = fill(ready)
    assert (report.tally.published, report.tally.warned, outcome_of(report)) == (5, 5, Exit.PUBLISHED)
    assert all("every cell of the forecast is missing" in row["reason"] for row in ledger_of(product))


@pytest.mark.ray
def test_a_cycle_that_fails_is_recorded_and_does_not_stop_the_others(ready, product):
    damage(product, 2)
    report = fill(ready)
    assert (report.tally.published, report.tally.failed, outcome_of(report)) == (3, 2, Exit.GAPS)
    assert published(product) == [TIMES[0], *TIMES[3:]]
    failed = [row for row in ledger_of(product) if row["status"] == "failed"]
    assert ["12:10" in row["reason"] for row in failed] == [True, True]
    assert {reason for _, reason in report.tally.failures} == {row["reason"] for row in failed}


@pytest.mark.ray
def test_a_backfill_of_nothing_but_failures_has_failed(ready, product):
    for frame in range(6):
        damage(product, frame)
    report = fill(ready)
    assert (report.tally.failed, outcome_of(report)) == (5, Exit.FAILED)
    assert published(product) == []


@pytest.mark.ray
@pytest.mark.parametrize("error", [KeyboardInterrupt, RayGoneError])
def test_a_backfill_that_was_stopped_goes_on_where_it_was_and_claims_no_more_than_it_knows(ready, product, error):
    prepared, pool = ready("workers=1", "blocks_in_flight=1")

    def stop(tally):
        raise error

    with pytest.raises(error, match=r"at least 1 cycle\(s\) were published"):
        run_backfill(prepared, pool, every_frame(prepared), progress=stop)
    before = published(product)
    assert before
    assert len(ledger_of(product)) == 1
    report = run_backfill(prepared, pool, every_frame(prepared))
    assert report.tally.already >= len(before)
    assert report.tally.published + report.tally.already == 5
    assert published(product) == TIMES


@pytest.mark.ray
def test_a_backfill_made_again_changes_nothing_and_replace_publishes_the_same_bytes(ready, product):
    fill(ready)
    first = files_of(product.parent / "out" / "tiny" / "2024")
    again = fill(ready)
    assert (again.tally.published, again.tally.already) == (0, 5)
    assert files_of(product.parent / "out" / "tiny" / "2024") == first
    replaced = fill(ready, replace_published=True)
    assert replaced.tally.published == 5
    for cycle in list_cycles(str(product.parent / "out"), "tiny"):
        assert cycle.revision == 1
        assert files_of(Path(cycle.path)) == files_of(Path(cycle.path.replace(".r1", "")))


@pytest.mark.ray
def test_old_cycles_stay_when_a_backfill_makes_them_and_the_report_says_for_how_long(ready, product):
    report = fill(ready, "output.keep=10min")
    assert published(product) == TIMES
    assert "output.keep is 10min" in report.note
    assert fill(ready, "output.keep=20min").note == ""


@pytest.mark.ray
def test_an_error_that_ends_every_cycle_ends_the_backfill(ready, product):
    folder = product.parent / "out" / "tiny"
    folder.mkdir(parents=True)
    (folder / "2024").write_text("in the way")
    with pytest.raises(OutputError, match="2024"):
        fill(ready)


def test_frames_that_are_laid_out_ahead_are_asked_for_only_by_their_times(product, monkeypatch):
    for frame in ("4", "5"):
        shutil.rmtree(product.parent / "radar.zarr" / "precip_rate" / "c" / frame)
    monkeypatch.setattr("jobs.clock.now", lambda: np.datetime64("2024-06-01T12:17", "ns"))
    loaded = load(product, ())
    assert list(reference_times(loaded, Wanted())) == list(TIMES[:3])
    assert list(reference_times(loaded, Wanted(stop=TIMES[-1]))) == list(TIMES)


@pytest.mark.parametrize(
    ("wanted", "error", "says"),
    [
        (Wanted(TIMES[3], TIMES[1]), ConfigError, "swap"),
        (Wanted(np.datetime64("2030-01-01")), InputError, "no cycle from 2030"),
        (Wanted(np.datetime64("2030-01-01"), np.datetime64("2030-01-02")), InputError, "2024-06-01T12:25Z"),
        (Wanted(None, None, np.timedelta64(7, "m")), ConfigError, "multiple"),
    ],
)
def test_an_interval_that_gives_no_cycles_is_refused_before_ray_is_started(product, wanted, error, says):
    with pytest.raises(error, match=says):
        backfill(product, (), wanted, lambda tally: None)
    assert not (product.parent / "out").exists()


@given(st.integers(1, MOST_CYCLES), st.floats(0, 1e6), st.integers(1, 16))
def test_a_group_grows_and_shrinks_with_the_pace(cycles, seconds, least):
    size = next_size(cycles, seconds, least)
    assert least <= size <= max(least, min(MOST_CYCLES, 2 * cycles))
    assert size == least or size * seconds / cycles <= 1.0 + 1e-9


class FakePool:
    """Workers that answer at once."""

    at_once, starting = 2, MappingProxyType({})
    raylet = Raylet(None)

    def __init__(self, product: str) -> None:
        self.product = product
        self.workers = {f"worker-{n}": SimpleNamespace(make=SimpleNamespace(remote=self.make)) for n in range(3)}

    def make(self, group):
        reports = (CycleReport(self.product, time, Status.PUBLISHED, "somewhere") for time in group.reference_times)
        return id(group), GroupResult(tuple(reports), 1e-3 * len(group))

    def fill(self):
        return []

    def drop(self, name):
        pass


FAKE_RAY = SimpleNamespace(
    wait=lambda refs, num_returns, timeout: (refs[:1], refs[1:]), get=lambda ref: ref[1], exceptions=ray.exceptions
)


class Enough(Exception):
    """Ends a run whose memory was seen for long enough."""


def test_memory_does_not_depend_on_the_number_of_cycles(product, monkeypatch):
    monkeypatch.setattr("jobs.drive.ray", FAKE_RAY)
    prepared = prepare(load(product, ()), Resources(0, 3), whole_cycles=True)
    million = EvenTimes(TIMES[0], np.timedelta64(60, "s"), 1_000_000)
    peaks = []

    def look(tally):
        if tally.settled >= 20_000 * (len(peaks) + 1):
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.reset_peak()
        if len(peaks) == 5:
            raise Enough

    work, pool = Work(prepared, million, False, look), FakePool("tiny")
    drive = Drive(pool, work.groups(), lambda worker, group: worker.make.remote(group), work.landed, work.gave_up)
    tracemalloc.start()
    with pytest.raises(Enough):
        drive.run()
    tracemalloc.stop()
    assert (work.tally.cycles, work.tally.failed) == (1_000_000, 0)
    assert max(peaks[1:]) < 1.05 * peaks[1]
    assert peaks[-1] < 20e6
