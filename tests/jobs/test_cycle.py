"""Whole cycles on a local Ray: what is published, and what accidents leave behind."""

import os
import shutil
import signal
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event
from time import monotonic, sleep

import numpy as np
import pytest
import ray
import xarray as xr
import zarr

from engines.base import EngineError
from jobs import cycle, frames
from jobs.cycle import Status, run_cycle, wait_for_inputs
from jobs.dispatch import STRAGGLER_SECONDS
from jobs.frames import share_frames
from jobs.inspect import describe
from jobs.make import Filled
from jobs.pool import Pool, cluster_resources
from jobs.prepare import load, prepare
from jobs.trace import DRIVER
from pipelines.errors import IncompleteError, InputError, OutputError, RewrittenError
from pipelines.source import Part
from pipelines.spans import Stopwatch
from pipelines.staging import this_process

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
TIME = np.datetime64("2024-06-01T12:20", "ns")


@pytest.fixture
def ready(product):
    """Prepares a product with overrides and gives it a pool."""
    pools = []

    def start(*overrides):
        while pools:
            pools.pop().close()
        prepared = prepare(load(product, overrides), cluster_resources())
        pools.append(Pool(prepared.setup, prepared.workers, prepared.gpu))
        return prepared, pools[-1]

    yield start
    for pool in pools:
        pool.close()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_newest_frame_of_a_time_to_come_makes_no_cycle_unless_it_is_asked_for(product, monkeypatch):
    prepared = prepare(load(product, []), cluster_resources())
    newest, minutes = prepared.source.times[-1], np.timedelta64(1, "m")
    for ahead in (-60 * minutes, 29 * minutes):
        monkeypatch.setattr("jobs.clock.now", lambda ahead=ahead: newest - ahead)
        assert wait_for_inputs(prepared, None)[1].reference_time == newest
    monkeypatch.setattr("jobs.clock.now", lambda: newest - 31 * minutes)
    with pytest.raises(InputError, match=r"is of 2024-06-01T12:25Z, and now it is 2024-06-01T11:54Z"):
        wait_for_inputs(prepared, None)
    assert wait_for_inputs(prepared, newest)[1].reference_time == newest


def lay_out(product: Path, written: int) -> None:
    """Has the store go on without the frames from some on, as one that was laid out ahead."""
    for frame in range(written, 6):
        shutil.rmtree(product.parent / "radar.zarr" / "precip_rate" / "c" / str(frame))


@pytest.mark.parametrize("minutes", [-2, 5, 10])
def test_the_newest_frame_of_a_time_axis_that_is_laid_out_ahead_is_the_last_one_stored(product, monkeypatch, minutes):
    lay_out(product, 3)
    monkeypatch.setattr(
        "jobs.clock.now", lambda: np.datetime64("2024-06-01T12:12", "ns") + np.timedelta64(minutes, "m")
    )
    prepared = prepare(load(product, ()), cluster_resources())
    for _ in range(2):
        assert wait_for_inputs(prepared, None)[1].reference_time == np.datetime64("2024-06-01T12:10", "ns")


def left_in_staging(product: Path) -> list[Path]:
    return list((product.parent / "out" / "tiny" / ".staging").glob("*"))


def test_a_published_cycle_opens_with_times_coordinates_and_units(ready):
    report = run_cycle(*ready(), TIME)
    ds = xr.open_zarr(report.path)
    assert report.status is Status.PUBLISHED
    assert ds.precip_rate.dims == ("init_time", "lead_time", "y", "x")
    assert ds.init_time.values == [TIME]
    assert list(ds.lead_time.values) == [np.timedelta64(m, "m") for m in (5, 10, 15)]
    assert ds.precip_rate.attrs["units"] == "mm h-1"
    assert np.isnan(ds.precip_rate[0, :, -1, -1]).all()
    assert (ds.precip_rate[0, :, -1, 0] == 0).all()


def test_the_forecast_equals_the_whole_frame_run_without_ray(ready):
    prepared, pool = ready()
    cut = xr.open_zarr(run_cycle(prepared, pool, TIME).path, mask_and_scale=False).load()
    whole, lone = ready("tiling.tile=whole", "output.store=whole", "output.shards=[320,384]", "workers=1")
    frame = xr.open_zarr(run_cycle(whole, lone, TIME).path, mask_and_scale=False)
    np.testing.assert_array_equal(cut.precip_rate.values, frame.precip_rate.values)
    assert prepared.plan.tiling.tile == (72, 72)
    assert len(whole.plan.tiling.blocks()) == 1


def test_a_rerun_is_a_no_op_and_replace_publishes_the_same_bytes(ready):
    prepared, pool = ready()
    first = run_cycle(prepared, pool, TIME)
    assert run_cycle(prepared, pool, TIME).status is Status.ALREADY
    again = run_cycle(prepared, pool, TIME, replace_published=True)
    assert again.path != first.path
    assert files_of(Path(again.path)) == files_of(Path(first.path))


def test_a_store_that_was_written_anew_between_two_cycles_is_refused_until_all_is_made_ready_for_it(
    ready, product, rescale
):
    prepared, pool = ready()
    first = xr.open_zarr(run_cycle(prepared, pool, TIME).path).load()
    rescale(0.02)
    for time in (TIME - np.timedelta64(5, "m"), None):
        with pytest.raises(RewrittenError, match=r"radar.zarr was written anew .* scale_factor is 0.02, before 0.01"):
            run_cycle(prepared, pool, time)
    assert not left_in_staging(product)
    second = xr.open_zarr(run_cycle(*ready(), TIME, replace_published=True).path)
    np.testing.assert_allclose(second.precip_rate.mean(), 2 * first.precip_rate.mean(), rtol=1e-2)


@pytest.mark.parametrize("per_chunk", [1, 99])
def test_a_store_that_is_written_anew_while_its_frames_are_read_makes_no_cycle(
    ready, product, rescale, monkeypatch, per_chunk
):
    """Whether the driver reads the frames for all workers, or each worker its own."""
    monkeypatch.setattr(frames, "_OFTEN", per_chunk)
    prepared, pool = ready()
    source, found = wait_for_inputs(prepared, TIME)
    rescale(0.02)
    monkeypatch.setattr(cycle, "wait_for_inputs", lambda *_: (source, found))
    with pytest.raises(RewrittenError, match=r"scale_factor is 0.02, before 0.01"):
        run_cycle(prepared, pool, TIME)
    assert not left_in_staging(product)


def test_killing_a_worker_mid_cycle_changes_nothing_in_the_published_bytes(ready):
    prepared, pool = ready()
    calm = run_cycle(prepared, pool, TIME)
    victims = [ray.get(worker.pid.remote()) for worker in pool.workers.values()]

    def kill_one(settled, total, results):
        if settled and victims:
            os.kill(victims.pop(), signal.SIGKILL)

    report = run_cycle(prepared, pool, TIME, replace_published=True, progress=kill_one)
    assert len(victims) < prepared.workers
    assert report.status is Status.PUBLISHED
    assert files_of(Path(report.path)) == files_of(Path(calm.path))


def test_several_blocks_in_flight_give_the_same_bytes_also_when_a_worker_dies(ready):
    prepared, pool = ready()
    calm = run_cycle(prepared, pool, TIME)
    prepared, pool = ready("blocks_in_flight=3")
    victims = [ray.get(worker.pid.remote()) for worker in pool.workers.values()]

    def kill_one(settled, total, results):
        if settled and victims:
            os.kill(victims.pop(), signal.SIGKILL)

    report = run_cycle(prepared, pool, TIME, replace_published=True, progress=kill_one)
    assert pool.at_once == 3
    assert report.status is Status.PUBLISHED
    pages = {name: data for name, data in files_of(Path(report.path)).items() if "/c/" in name}
    assert pages == {name: data for name, data in files_of(Path(calm.path)).items() if "/c/" in name}


def test_a_dry_half_is_run_once_and_reused(ready):
    report = run_cycle(*ready(), TIME)
    assert report.tiles_reused > 0
    assert report.tiles_run + report.tiles_reused == 5 * 5


@pytest.mark.parametrize("incomplete", ["refuse", "publish"])
def test_a_deadline_by_which_no_block_was_done_publishes_nothing(ready, product, incomplete):
    prepared, pool = ready("deadline=0.001s", f"output.incomplete={incomplete}")
    with pytest.raises(IncompleteError, match=r"not published, no block was done:\n  block 0 .*: the deadline passed"):
        run_cycle(prepared, pool, TIME)
    assert not list((product.parent / "out").rglob("*.zarr"))
    assert left_in_staging(product) == []


def give_up_one(monkeypatch):
    """The first block of each cycle counts as given up."""
    drive = cycle._drive

    def all_but_one(*args):
        results = drive(*args).results
        return Filled(results[1:], {results[0].block: "the deadline passed"})

    monkeypatch.setattr(cycle, "_drive", all_but_one)


def test_a_block_that_was_given_up_ends_the_cycle_where_gaps_are_refused(ready, product, monkeypatch):
    give_up_one(monkeypatch)
    with pytest.raises(IncompleteError, match="the product refuses gaps"):
        run_cycle(*ready(), TIME)
    assert not list((product.parent / "out").rglob("*.zarr"))
    assert left_in_staging(product) == []


def test_a_block_that_was_given_up_is_missing_where_gaps_are_allowed(ready, monkeypatch):
    give_up_one(monkeypatch)
    prepared, pool = ready("output.incomplete=publish")
    report = run_cycle(prepared, pool, TIME)
    assert report.status is Status.GAPS
    first = prepared.plan.tiling.blocks()[0]
    assert report.gaps == (f"{first}: the deadline passed",)
    ds = xr.open_zarr(report.path)
    assert ds.attrs["squall_gaps"] == str(first)
    assert "squall_missing_share_of_newest_frame" not in ds.attrs
    assert ds.attrs["squall_completeness"] == (report.blocks - 1) / report.blocks
    window = first.window
    inside = ds.precip_rate.values[..., window.y0 : window.y1, window.x0 : window.x1]
    assert np.isnan(inside).all()
    assert not np.isnan(ds.precip_rate.values).all()


def test_a_damaged_frame_ends_the_cycle_and_leaves_nothing(ready, product):
    prepared, pool = ready()
    chunk = product.parent / "radar.zarr" / "precip_rate" / "c" / "4" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2 :] = b""
    chunk.write_bytes(bytes(data))
    with pytest.raises(InputError, match="precip_rate"):
        run_cycle(prepared, pool, TIME)
    assert left_in_staging(product) == []


def test_a_frame_that_is_all_missing_is_refused(ready, product):
    prepared, pool = ready()
    radar = zarr.open_group(product.parent / "radar.zarr", mode="r+")
    radar["precip_rate"][4] = -32768
    radar["precip_rate"][4, 0, 0] = 0
    with pytest.raises(InputError, match="missing"):
        run_cycle(prepared, pool, TIME)
    assert left_in_staging(product) == []


def test_an_interrupted_cycle_leaves_nothing_and_the_pool_works_on(ready, product):
    prepared, pool = ready()

    def interrupt(settled, total, results):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cycle(prepared, pool, TIME, progress=interrupt)
    assert left_in_staging(product) == []
    assert run_cycle(prepared, pool, TIME).status is Status.PUBLISHED


def test_frames_read_by_the_workers_or_shared_by_the_node_give_the_same_bytes(ready, rechunk):
    whole = xr.open_zarr(run_cycle(*ready("output.store=whole"), TIME).path, mask_and_scale=False).load()
    for edge, parts in ((64, 4), (8, 1)):
        rechunk(edge)
        prepared, pool = ready(f"output.store=chunks{edge}")
        assert count_parts(prepared) == parts
        found = xr.open_zarr(run_cycle(prepared, pool, TIME).path, mask_and_scale=False)
        np.testing.assert_array_equal(found.precip_rate.values, whole.precip_rate.values)


def test_frames_read_all_at_once_give_the_same_bytes(ready, rechunk):
    rechunk(64)
    one_by_one = run_cycle(*ready("workers=1"), TIME)
    prepared, pool = ready("workers=1")
    spare = replace(prepared, gpu=True)  # a core is left, as beside a GPU
    at_once = run_cycle(spare, pool, TIME, replace_published=True)
    assert files_of(Path(at_once.path)) == files_of(Path(one_by_one.path))
    seen = {one.span.stage for one in at_once.activities if one.process == DRIVER}
    assert {"read", "check", "publish"} <= seen


def test_the_driver_reads_what_other_processes_have_not_read_in_time(ready, rechunk, monkeypatch):
    def never(*_):
        sleep(20)
        raise AssertionError("the cycle waited for this")

    rechunk(64)
    one_by_one = run_cycle(*ready("workers=1"), TIME)
    monkeypatch.setattr(frames, "_read", ray.remote(num_cpus=0)(never))
    prepared, pool = ready("workers=1")
    alone = run_cycle(replace(prepared, gpu=True), pool, TIME, replace_published=True)
    assert files_of(Path(alone.path)) == files_of(Path(one_by_one.path))


def test_the_driver_waits_for_processes_that_were_in_time_before(ready, rechunk, monkeypatch):
    def slowly(source, cycle, part):
        sleep(0.3)
        return Part(part, source.read(cycle, part))

    rechunk(64)
    prepared, _ = ready("workers=1")
    source, cycle_ = wait_for_inputs(prepared, TIME)
    monkeypatch.setattr(frames, "_read", ray.remote(num_cpus=0)(slowly))
    monkeypatch.setattr(frames, "_are_in_time", in_time := Event())

    def read(patience):
        """Parts that the driver reads."""
        monkeypatch.setattr(frames, "_PATIENCE_SECONDS", patience)
        watch = Stopwatch()
        with closing(share_frames(source, cycle_, prepared.plan.tiling, watch, at_once=True)) as shared:
            assert shared.of(source.grid.window)
        return sum(span.stage == "read" for span in watch.spans)

    assert read(60) > 1
    assert not in_time.is_set()
    in_time.set()
    assert read(60) == 1
    assert in_time.is_set()
    assert read(0.01) > 1


def test_a_damaged_frame_that_is_read_all_at_once_ends_the_cycle(ready, product, rechunk):
    rechunk(64)
    prepared, pool = ready("workers=1")
    chunk = product.parent / "radar.zarr" / "precip_rate" / "c" / "4" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(InputError, match=r"2024-06-01T12:20.*precip_rate"):
        run_cycle(replace(prepared, gpu=True), pool, TIME)
    assert left_in_staging(product) == []


def test_the_frames_of_a_published_cycle_are_not_read(ready, monkeypatch):
    prepared, pool = ready()
    run_cycle(prepared, pool, TIME)
    monkeypatch.setattr(cycle, "share_frames", lambda *_, **__: pytest.fail("frames were read"))
    assert run_cycle(prepared, pool, TIME).status is Status.ALREADY


def test_frames_that_nobody_asks_for_any_more_are_not_read(product, rechunk, monkeypatch):
    rechunk(64)
    prepared, read = prepare(load(product, ()), cluster_resources()), []
    source, cycle_ = wait_for_inputs(prepared, TIME)
    monkeypatch.setattr(frames, "_put", lambda part, **_: (sleep(0.1), read.append(part)))
    with closing(share_frames(source, cycle_, prepared.plan.tiling)) as shared:
        pass
    assert all(part.done() for part in shared.parts.values())
    assert len(read) < len(shared.parts)


def test_what_a_dead_run_left_is_swept_also_if_no_draft_can_be_made(ready, product, monkeypatch):
    left = product.parent / "out" / "tiny" / ".staging" / f"20240601~{this_process().host}~0-0~1~1~aa"
    (left / "store").mkdir(parents=True)
    monkeypatch.setattr("jobs.make.make_draft", no_room)
    with pytest.raises(OutputError, match="no room"):
        run_cycle(*ready(), TIME)
    assert left_in_staging(product) == []


def no_room(*args, **kwargs):
    raise OutputError("no room")


def count_parts(prepared) -> int:
    """The parts in which the frames of a cycle come to the workers."""
    source, cycle = wait_for_inputs(prepared, TIME)
    with closing(share_frames(source, cycle, prepared.plan.tiling)) as shared:
        return len(shared.parts)


def test_a_store_that_vanishes_mid_run_ends_the_cycle_and_leaves_nothing(ready, product, chunked_radar):
    prepared, pool = ready("workers=1")

    def vanish(settled, total, results):
        if settled and chunked_radar.exists():
            shutil.rmtree(chunked_radar)

    with pytest.raises(InputError, match=r"radar\.zarr"):
        run_cycle(prepared, pool, TIME, progress=vanish)
    assert not list((product.parent / "out").rglob("*.zarr"))
    assert left_in_staging(product) == []


def test_new_frames_are_seen_by_a_warm_driver(ready, product):
    prepared, pool = ready()
    run_cycle(prepared, pool, TIME)
    newest = xr.open_zarr(product.parent / "radar.zarr").isel(time=[-1]).load()
    newest["time"] = newest.time + np.timedelta64(5, "m")
    for name in ("x", "y"):
        newest = newest.drop_vars(name)
    newest.to_zarr(product.parent / "radar.zarr", append_dim="time")
    assert run_cycle(prepared, pool).reference_time == np.datetime64("2024-06-01T12:30", "ns")


def test_a_late_frame_is_waited_for(ready, product):
    prepared, pool = ready("input.wait=1s")
    with pytest.raises(InputError, match=r"12:35Z .* has not arrived"):
        run_cycle(prepared, pool, np.datetime64("2024-06-01T12:40", "ns"))


def test_old_cycles_are_removed_when_their_time_is_over(ready, product):
    prepared, pool = ready("output.keep=10min")
    for minute in (5, 10, 25):
        run_cycle(prepared, pool, np.datetime64(f"2024-06-01T12:{minute:02}", "ns"))
    assert [p.name for p in sorted((product.parent / "out" / "tiny" / "2024").rglob("*.zarr"))] == ["1225.zarr"]


def test_old_cycles_that_cannot_be_removed_are_a_warning_of_the_cycle_that_is_published(ready, monkeypatch):
    prepared, pool = ready("output.keep=10min")
    monkeypatch.setattr("jobs.cycle.expire", refuse)
    report = run_cycle(prepared, pool, TIME)
    assert report.status is Status.PUBLISHED
    assert report.warnings == ("cycles older than output.keep were not removed, the next run tries again: no room",)


def test_a_pointer_that_cannot_be_moved_is_a_warning_and_the_next_run_moves_it(ready, product, monkeypatch):
    prepared, pool = ready()
    with monkeypatch.context() as patch:
        patch.setattr("jobs.make.point_latest", refuse)
        report = run_cycle(prepared, pool, TIME)
    latest = product.parent / "out" / "tiny" / "latest.zarr"
    assert report.warnings == ("latest was not moved, the next run tries again: no room",)
    assert Path(report.path).exists()
    assert not latest.exists()
    run_cycle(prepared, pool, TIME)
    assert latest.resolve() == Path(report.path).resolve()


def refuse(*args, **kwargs):
    raise OSError("no room")


def test_a_forecast_without_a_value_is_published_with_a_warning(blind_model, ready):
    report = run_cycle(*ready(), TIME)
    assert report.status is Status.PUBLISHED
    assert np.isnan(xr.open_zarr(report.path).precip_rate).all()
    (warning,) = report.warnings
    assert warning.startswith("every cell of the forecast is missing, but 96.9% of the newest frame has values")
    assert warning.endswith("the model blur 1 gave none")


def test_a_lead_time_without_a_value_is_named_in_a_warning_and_in_the_store(blind_at, ready):
    blind_at([1])
    report = run_cycle(*ready(), TIME)
    ds = xr.open_zarr(report.path)
    assert np.isnan(ds.precip_rate).all(["init_time", "y", "x"]).values.tolist() == [False, True, False]
    (warning,) = report.warnings
    assert warning.startswith("every cell at lead time(s) 10min is missing, but 96.9% of the newest frame has values")
    assert describe(report.path)["lead_times_without_values"] == "10min"


def test_blocks_share_in_what_a_lead_time_holds(ready, product):
    """One block alone has values: they count."""
    rain = zarr.open(product.parent / "radar.zarr")["precip_rate"]
    rain[:, 64:], rain[:, :, 64:] = -32768, -32768
    prepared, pool = ready("tiling.tile=[64,64]")
    report = run_cycle(prepared, pool, TIME)
    assert report.blocks > 1
    assert (report.warnings, report.blank_leads) == ((), ())
    assert "lead_times_without_values" not in describe(report.path)


def test_a_frame_that_is_not_there_is_named_in_a_warning_and_in_the_store(ready, product):
    (product.parent / "radar.zarr/precip_rate/c/3/0/0").unlink()
    report = run_cycle(*ready("input.missing_frame=use_available"), TIME)
    assert report.frame_times == (TIME,)
    assert report.warnings == ("not there, and given to the model as missing (input.missing_frame): 2024-06-01T12:15Z",)
    assert describe(report.path)["missing_frame_times"] == "2024-06-01T12:15:00"


def test_a_dry_forecast_is_no_reason_to_warn(ready, product):
    zarr.open(product.parent / "radar.zarr")["precip_rate"][:, :-40] = 0
    report = run_cycle(*ready(), TIME)
    assert xr.open_zarr(report.path).precip_rate.max() == 0
    assert report.warnings == ()


def test_no_block_waits_for_a_worker_that_is_still_starting(ready):
    prepared, pool = ready()
    calm = run_cycle(prepared, pool, TIME)
    first = next(iter(pool.workers))
    pool.drop(first)
    pool.fill()
    late = dict(pool.starting)
    begun = monotonic()
    report = run_cycle(prepared, pool, TIME, replace_published=True)
    assert late
    assert monotonic() - begun < STRAGGLER_SECONDS, "blocks were sent to the one that starts, and copied"
    assert files_of(Path(report.path)) == files_of(Path(calm.path))
    assert set(pool.workers) >= set(late.values()), "a worker that starts is not ended with the cycle"


class DeadlyToRead:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_workers_that_die_before_they_are_ready_end_the_run(ready, monkeypatch):
    prepared, pool = ready("workers=1")
    setup = replace(prepared.setup, leads=DeadlyToRead())
    bad = Pool(setup, 1, gpu=False)
    pool.close()
    try:
        with pytest.raises(EngineError, match="workers died before they were ready"):
            run_cycle(prepared, bad, TIME)
    finally:
        bad.close()
