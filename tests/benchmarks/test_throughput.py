"""The benchmark of throughput: what its floor, its laps, its rivals, its stores and its picture are made of."""

import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bench import Bench
from benchmarks.cases import QUICK
from benchmarks.floor import PARTS, Bare, Coding, Floor, floor_of, measure_bare, stack
from benchmarks.laps import Ran
from benchmarks.rivals import EngineTask, bounds, load_task
from benchmarks.sampler import Gpus, Sample, Sampler, disk_use, mean
from benchmarks.timeline import LANES, busy_share, draw_timeline, rows_of
from benchmarks.wet import STEP_CODES, wet_codes, write_archive, write_wet
from engines.base import Split
from jobs.trace import DRIVER, Activity
from pipelines.product import InputSpec, Last
from pipelines.source import Source, open_source
from pipelines.spans import Span
from pipelines.storms import write_storms

times = st.integers(0, 1000).map(lambda n: n / 8)
floors = st.builds(Floor, times, times, times, times, st.integers(1, 50))


@given(floors)
def test_a_floor_is_its_longest_part_and_a_block_of_the_others(floor: Floor) -> None:
    longest, together = max(floor.parts.values()), sum(floor.parts.values())
    assert floor.parts[floor.bound] == floor.busy == longest
    assert longest <= floor.seconds <= together + 1e-9
    assert tuple(floor.parts) == PARTS


@given(times, times)
def test_a_floor_of_one_block_is_everything_in_turn(gpu: float, cores: float) -> None:
    assert Floor(gpu, 0.0, cores, 0.0, 1).seconds == pytest.approx(gpu + cores)


@given(floors, st.floats(1, 4))
def test_crowded_cores_raise_a_floor_and_nothing_else_of_it(floor: Floor, times: float) -> None:
    crowded = floor.crowded(times)
    assert crowded.parts == floor.parts | {"cores": floor.cores * times}
    assert crowded.seconds >= floor.seconds - 1e-9


@pytest.mark.parametrize("wrong", [(-1.0, 0.0, 0.0, 0.0, 1), (0.0, 0.0, 0.0, 0.0, 0)])
def test_a_floor_of_nonsense_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match="negative time or no blocks"):
        Floor(*wrong)


def test_the_slower_way_over_the_host_link_counts_and_cores_share_the_coding() -> None:
    bare = Bare(gpu=0.5, core=0.0, in_row=0.5, bytes_in=10, bytes_out=80)
    coding = Coding(read=1.0, decode=1.0, pack=2.0, compress=4.0, disk=0.25)
    floor = floor_of(bare, coding, batches=4, link=(10.0, 20.0), cores=16, blocks=8)
    assert floor == Floor(gpu=2.0, link=16.0, cores=0.5, disk=0.25, blocks=8)


def test_without_a_gpu_the_cores_infer_and_no_link_is_crossed() -> None:
    bare = Bare(gpu=0.0, core=3.0, in_row=3.0, bytes_in=10, bytes_out=80)
    floor = floor_of(bare, Coding(0.5, 0.5, 0.5, 0.5, 0.0), batches=2, link=(1.0, 1.0), cores=2, blocks=1)
    assert (floor.gpu, floor.link, floor.cores) == (0.0, 0.0, 4.0)


@given(st.integers(1, 7), st.integers(1, 5))
def test_batches_are_full_however_few_tiles_there_are(tiles: int, batch: int) -> None:
    batches = stack([np.full((2, 3, 4), n, np.float32) for n in range(tiles)], batch, "float16")
    assert {b.shape for b in batches} == {(batch, 2, 3, 4)}
    assert {b.dtype for b in batches} == {np.dtype("float16")}


def test_the_blocks_of_a_rival_survive_the_way_through_its_file(tmp_path: Path) -> None:
    cut = [(0, 4, 0, 5), (0, 8, 0, 8)], [(4, 8, 0, 5), (0, 8, 0, 8)]
    task = EngineTask(
        "s", "v", [[0, 1]], -1, "t", "m", 2, None, None, (8, 5), (4, 5), 2, 2, (8, 5), 2, blocks=[list(cut)], batch=3
    )
    task.save(tmp_path / "rivals.json")
    found = load_task(tmp_path)
    assert (found.batch, found.chunk) == (3, (8, 5))
    assert bounds(found.blocks[0]) == (0, 8, 0, 5)


@pytest.mark.filterwarnings("ignore:Failed to open Zarr store with consolidated metadata")
def test_an_archive_of_objects_with_several_frames_is_refused(tmp_path: Path) -> None:
    ds = xr.Dataset({"rain": (("time", "y"), np.zeros((4, 2), np.int16))}, {"time": np.arange(4)})
    ds.to_zarr(tmp_path / "a.zarr", encoding={"rain": {"chunks": (2, 2)}}, zarr_format=3, consolidated=False)
    with pytest.raises(ValueError, match=r"rain in .* has 2 frames an object; expected 1"):
        write_archive(tmp_path / "b.zarr", tmp_path / "a.zarr", "rain", 8)


def open_frames(path: Path) -> Source:
    return open_source(InputSpec(store=str(path), variable="precip_rate", history=Last(last=2)))


def codes_of(path: Path) -> np.ndarray:
    return xr.open_zarr(path, mask_and_scale=False, consolidated=False).precip_rate.values


def test_every_cell_of_the_wet_store_is_wet_in_every_frame(tmp_path: Path) -> None:
    write_wet(tmp_path / "wet.zarr", (64, 80), 3, 5)
    rain = codes_of(tmp_path / "wet.zarr")
    assert rain.min() >= STEP_CODES
    assert (rain % STEP_CODES == 0).all()
    assert (rain[0] != rain[1]).any()
    assert len(np.unique(wet_codes((64, 80)))) > 20
    assert open_frames(tmp_path / "wet.zarr").grid.shape == (64, 80)


def test_an_archive_repeats_the_frames_of_its_store(tmp_path: Path) -> None:
    write_storms(tmp_path / "storms.zarr", (48, 64), 3)
    write_archive(tmp_path / "archive.zarr", tmp_path / "storms.zarr", "precip_rate", 8)
    few, many = (open_frames(tmp_path / name) for name in ("storms.zarr", "archive.zarr"))
    assert len(many.times) == 8
    assert set(np.diff(many.times)) == set(np.diff(few.times))
    np.testing.assert_array_equal(codes_of(Path(many.store)), codes_of(Path(few.store))[np.arange(8) % 3])
    assert few.encoding == many.encoding


spans = st.builds(lambda start, length: Span("infer", start, start + length, "a"), times, times)


@given(st.lists(spans, max_size=8))
def test_a_busy_share_counts_no_moment_twice_and_none_outside(some: list[Span]) -> None:
    activities = [Activity("worker-0", span) for span in some]
    grid = np.arange(0, 100, 0.125) + 0.0625
    busy = np.any([(s.start < grid) & (grid < s.end) for s in some], 0) if some else np.zeros(grid.size)
    assert busy_share(activities, "infer", 0.0, 100.0) == pytest.approx(busy.mean())
    assert busy_share(activities, "read", 0.0, 100.0) == 0


def test_a_busy_share_of_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="no stretch of time"):
        busy_share([], "infer", 1.0, 1.0)


def test_the_driver_is_drawn_first_and_workers_in_their_order(tmp_path: Path) -> None:
    names = ["worker-10", "worker-2", DRIVER]
    some = [Activity(name, Span("infer", n, n + 1.0, "main"), n) for n, name in enumerate(names)]
    assert [process for process, _ in rows_of(some)] == [DRIVER, "worker-2", "worker-10"]
    samples = [Sample(n / 4, 0.5, 1e6, None, None, None) for n in range(12)]
    draw_timeline(tmp_path / "cycle.png", "three spans", some, samples)
    assert (tmp_path / "cycle.png").read_bytes().startswith(b"\x89PNG")
    assert [lane.name for lane in LANES if lane.read(samples[0]) is not None] == ["cores %", "disk MB/s"]


def test_a_timeline_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no activities"):
        draw_timeline(tmp_path / "cycle.png", "", [], [])


def test_a_sampler_looks_while_something_runs_and_no_longer() -> None:
    with Sampler(0.001) as sampler:
        while len(sampler.samples) < 3:
            time.sleep(0.001)
    known = len(sampler.samples)
    assert [s.time for s in sampler.samples] == sorted(s.time for s in sampler.samples)
    assert all(0 <= s.cores <= 1 for s in sampler.samples)
    assert len(sampler.samples) == known


def test_the_busiest_disk_counts_and_one_that_came_later_does_not() -> None:
    before, after = {"a": (100, 1.0), "b": (0, 0.0)}, {"a": (300, 1.5), "b": (20, 1.5), "c": (10**9, 9.0)}
    assert disk_use(before, after, 2.0) == (100.0, 0.75)
    assert disk_use({}, after, 2.0) == (None, None)


def test_a_mean_leaves_out_what_could_not_be_read() -> None:
    assert mean([None, 1.0, 3.0]) == 2.0
    assert mean([None]) is None


def test_the_first_lap_is_cold_and_not_counted() -> None:
    ran = Ran(facts=[{"seconds": 9.0}, {"seconds": 1.0}, {"seconds": 3.0}, {"seconds": 2.0}])
    assert ran.median == 2.0
    assert ran.typical == 3


def test_the_product_of_a_case_takes_settings_and_cuts_its_grid(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SQUALL_CACHE", str(tmp_path / "cache"))
    bench = Bench(tmp_path, None, QUICK, [1], False, {"tiling": {"tile": [128, 128]}})
    case = bench.case("fmi")
    assert case.prepared.plan.tiling.tile == (128, 128)
    assert yaml.safe_load((case.folder / "product.yaml").read_text())["tiling"] == {"tile": [128, 128]}
    assert bench.case("fmi") is case


SMALL = {"tiling": {"tile": [128, 128]}, "output": {"store": "out", "variable": "rain", "shards": [64, 64]}}


def test_a_case_made_by_one_worker_has_the_tiles_of_the_usual_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SQUALL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Bench, "cores", 4)
    bench = Bench(tmp_path, None, QUICK, [1], False, SMALL)
    usual, alone = bench.case("fmi"), bench.case("fmi", alone=True)
    assert usual.prepared.workers > 1
    assert alone.prepared.workers == 1
    assert alone.prepared.plan.tiling.tile == usual.prepared.plan.tiling.tile
    assert alone.folder != usual.folder


class TimedEngine:
    """An engine whose parts take as long as it is told: 1 ms in, 4 ms of compute, 3 ms back, 0.5 ms to queue."""

    def __call__(self, batch):
        time.sleep(0.010)
        return np.zeros((len(batch), 3, 4, 4), np.float16)

    def timed(self, batch):
        return Split(0.001, 0.004, 0.003, 0.0005)

    def map(self, batches):
        yield from (batch for batch in batches if time.sleep(0.006) is None)


class HalfEngine(TimedEngine):
    """As one with half input and output: a call takes float32, a lane shows half."""

    def __init__(self):
        self.called = []

    def timed(self, batch):
        self.called.append(batch.dtype)
        return super().timed(batch)

    @contextmanager
    def lane(self, shape):
        out = np.zeros((shape[0], 3, 4, 4), np.float16)
        yield SimpleNamespace(given=np.zeros(shape, np.float16), run=lambda: out)


def test_an_engine_of_half_is_given_float32_where_it_is_called_and_half_in_its_lanes() -> None:
    engine = HalfEngine()
    bare = measure_bare(engine, [np.zeros((2, 2, 4, 4), np.float16)] * 3)
    assert set(engine.called) == {np.dtype(np.float32)}
    assert (bare.bytes_in, bare.bytes_out) == (2 * 2 * 16 * 2, 2 * 3 * 16 * 2)


def test_the_time_of_the_engine_alone_is_the_gpus_own() -> None:
    batches = [np.zeros((2, 2, 4, 4), np.float16)] * 3
    bare = measure_bare(TimedEngine(), batches)
    assert (bare.gpu, bare.core) == (0.004, 0.0)
    assert bare.in_row >= 0.006
    assert (bare.bytes_in, bare.bytes_out) == (2 * 2 * 16 * 2, 2 * 3 * 16 * 2)


def test_an_engine_on_the_cores_costs_the_cores() -> None:
    bare = measure_bare(lambda batch: np.sort(batch.ravel()), [np.random.default_rng(0).random((1, 1, 300, 300))])
    assert bare.gpu == 0
    assert bare.core > 0


class Nvml:
    """A driver library with two GPUs, one of which tells nothing about its link."""

    def __getattr__(self, name):
        def answer(*arguments):
            *given, place = arguments or (None,)
            if name == "nvmlDeviceGetCount_v2":
                place._obj.value = 2
            elif name == "nvmlDeviceGetHandleByIndex_v2":
                place._obj.value = given[0] + 1
            elif name == "nvmlDeviceGetUtilizationRates":
                place._obj.gpu = 40 * given[0].value
            elif name == "nvmlDeviceGetMemoryInfo":
                place._obj.used = 1000
            elif name == "nvmlDeviceGetPcieThroughput":
                place._obj.value = 7
                return 0 if given[0].value == 1 else 3
            return 0

        return answer


def test_gpus_are_read_together_and_what_cannot_be_read_is_left_out(monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.sampler.ctypes.CDLL", lambda name: Nvml())
    assert Gpus().look() == (0.8, 14_000, 2000)


def test_memory_of_a_gpu_is_read_once_those_who_ended_gave_theirs_back(monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.sampler.WAIT_SECONDS", 0)
    readings = iter([900, 700, 400, 400, 100])
    monkeypatch.setattr(Gpus, "device_bytes", lambda self: next(readings))
    assert Gpus().settled_bytes() == 400
    monkeypatch.setattr(Gpus, "device_bytes", lambda self: None)
    assert Gpus().settled_bytes() is None


def test_without_the_library_of_the_driver_there_are_no_gpus(monkeypatch) -> None:
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr("benchmarks.sampler.ctypes.CDLL", missing)
    assert Gpus().look() == (None, None, None)
