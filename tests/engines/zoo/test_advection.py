"""Advection: it finds the motion, carries the mask, and does not depend on how the grid was cut."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.zoo import AdvectionSpec
from engines.zoo.advection import add_motion, write_graph
from engines.zoo.graph import Graph

SHORT = AdvectionSpec((2.0, 2.0), lead_minutes=(5, 10, 20), max_speed_km_h=80)
STORE = Path(__file__).parents[4] / "shared/data/mrms_20190610.zarr"

# All are read by the ONNX parser of TensorRT 8.6. None adds up neighbours: that order may change with the width.
MOVERS = {"Concat", "Gather", "GridSample", "Pad", "Range", "Reshape", "Shape", "Slice", "Transpose"}
CELL_BY_CELL = {
    *("Add", "Cast", "Clip", "Div", "Greater", "Max", "Mul", "Relu", "Round", "Sqrt", "Sub", "Where"),
}
EXACT_IN_ANY_ORDER = {"Resize"}


def tile_and_core(spec, shape, y, x, core):
    """Slices of a tile and, inside it, of the part that is kept: halo = radius, cut off at the frame."""
    halo = -(-spec.radius // spec.stride) * spec.stride
    spans = [(max(0, at - halo), min(size, at + core + halo)) for at, size in zip((y, x), shape, strict=True)]
    tile = tuple(slice(*span) for span in spans)
    kept = tuple(slice(at - span[0], at - span[0] + core) for at, span in zip((y, x), spans, strict=True))
    return tile, kept


def write_motion(spec):
    """Only the motion, before any rounding to whole cells could hide a difference; the finest level is the grid."""
    graph = Graph("motion")
    graph.scale(add_motion(graph, spec), 1.0)
    return graph.model(len(spec.history_minutes), 2, "motion")


class TestCutting:
    """Bit for bit: no tolerance anywhere."""

    shape = (640, 704)

    @settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data(), threads=st.sampled_from([1, 2]), write=st.sampled_from([write_graph, write_motion]))
    def test_a_tile_with_a_halo_of_the_radius_equals_the_whole_frame(self, data, threads, write, drifting, load):
        core, stride = 64, SHORT.stride
        y, x = (stride * data.draw(st.integers(0, (size - core) // stride)) for size in self.shape)
        frames = drifting(self.shape, seed=data.draw(st.integers(0, 5)))
        frames[:, :, 200:260, 300:420] = -1
        tile, kept = tile_and_core(SHORT, self.shape, y, x, core)
        whole = load(write(SHORT))(frames)[..., y : y + core, x : x + core]
        cut = load(write(SHORT), threads)(frames[..., *tile])[..., *kept]
        np.testing.assert_array_equal(cut.view(np.int32), whole.view(np.int32))

    def test_a_halo_of_a_third_of_the_radius_is_too_small(self, drifting, load):
        frames, run = drifting(self.shape, cells=12), load(write_motion(SHORT))
        halo = SHORT.radius // 3 // SHORT.stride * SHORT.stride
        cut = run(frames[..., 320 - halo : 384 + halo, 320 - halo : 384 + halo])
        cut = cut[..., halo : halo + 64, halo : halo + 64]
        assert not np.array_equal(cut, run(frames)[..., 320:384, 320:384])

    def test_the_batch_size_changes_no_bit(self, drifting, load):
        tiles = np.concatenate([drifting((128, 160), seed=n) for n in range(3)])
        run = load(write_graph(SHORT))
        one_by_one = np.concatenate([run(tile[None]) for tile in tiles])
        for size in (2, 3):
            np.testing.assert_array_equal(run(tiles[:size]), one_by_one[:size])

    @pytest.mark.parametrize("write", [write_graph, write_motion])
    def test_tiles_of_a_wide_frame_equal_it(self, write, drifting, load):
        shape, random, halo = (64, 4352), np.random.default_rng(0), -(-SHORT.radius // SHORT.stride) * SHORT.stride
        frames = np.tile(drifting((64, 544)), 8) * random.uniform(0.5, 2, (1, 3, *shape)).astype(np.float32)
        frames[..., 2000:2300] = -1
        run = load(write(SHORT), 2)
        whole = run(frames)
        for x, width in ((1600, 800), (2400, 40), (3696, 256)):
            cut = run(np.ascontiguousarray(frames[..., x - halo : x + width + halo]))[..., halo : halo + width]
            np.testing.assert_array_equal(cut.view(np.int32), whole[..., x : x + width].view(np.int32))

    @pytest.mark.parametrize(("write", "cells"), [(write_graph, 1), (write_motion, 2)])
    def test_tiles_of_a_wide_real_frame_equal_it(self, write, cells, load):
        if not STORE.exists():
            pytest.skip(f"no real radar data at {STORE}")
        import zarr

        codes = zarr.open_group(STORE, mode="r")["precip_rate"]
        rows, spec = slice(1000, 1352), AdvectionSpec((1.11, 0.88), lead_minutes=(4,), max_speed_km_h=60)
        raw = np.stack([codes[n, rows, :6992] for n in (0, 5, 10)])
        frames = np.where(raw < 0, -1, raw * np.float32(codes.attrs["scale_factor"])).astype(np.float32)[None]
        run, halo = load(write(spec), 2), -(-spec.radius // spec.stride) * spec.stride
        whole = run(frames)
        for x in (3008, 6000):
            last = min(x + 960 + halo, frames.shape[3])
            cut = run(np.ascontiguousarray(frames[..., x - halo : last]))[..., halo // cells : (halo + 960) // cells]
            np.testing.assert_array_equal(cut, whole[..., x // cells : (x + 960) // cells])


def hits_share(forecast, observed, threshold=0.5):
    return np.sum((forecast >= threshold) & (observed >= threshold)) / np.sum(
        (forecast >= threshold) | (observed >= threshold)
    )


class TestMotion:
    @pytest.mark.parametrize("step", [(0, 0), (1.5, -2.5), (-4, 1), (3, 5)])
    def test_steady_rain_is_where_it_will_be(self, step, drifting, load):
        spec = AdvectionSpec((1.0, 1.0), lead_minutes=(5, 15, 30))
        run, frames = load(write_graph(spec)), drifting((384, 384), step)
        for forecast, steps in zip(run(frames)[0], (1, 3, 6), strict=True):
            truth = drifting((384, 384), step)[0, -1] if steps == 0 else _moved(drifting, step, steps)
            inside = (slice(60, -60), slice(60, -60))
            assert hits_share(forecast[inside], truth[inside]) > 0.9

    def test_a_lone_storm_keeps_moving_far_from_where_it_was(self, load):
        y, x = np.arange(512)[:, None] - 256, np.arange(512) - 120
        storm = [10 * np.exp(-(y**2 + (x - 5 * n) ** 2) / 60) * (1 + 0.3 * np.sin(y)) for n in range(21)]
        frames = np.stack(storm[:3])[None].astype(np.float32)
        forecast = load(write_graph(AdvectionSpec((1.0, 1.0))))(frames)[0, -1]
        assert hits_share(forecast, storm[20]) > 0.5

    def test_constants_are_kilometres_not_cells(self, drifting, load):
        fine = drifting((512, 512), (2, 4))
        coarse = fine.reshape(1, 3, 256, 2, 256, 2).mean((3, 5))
        leads = (30,)
        at_1_km = load(write_graph(AdvectionSpec((1.0, 1.0), lead_minutes=leads)))(fine)[0, 0]
        at_2_km = load(write_graph(AdvectionSpec((2.0, 2.0), lead_minutes=leads)))(coarse)[0, 0]
        assert hits_share(at_1_km.reshape(256, 2, 256, 2).mean((1, 3)), at_2_km) > 0.9

    def test_frames_ten_minutes_apart_mean_half_the_speed(self, drifting, load):
        slow = AdvectionSpec((1.0, 1.0), (-20, -10, 0), lead_minutes=(20,))
        fast = AdvectionSpec((1.0, 1.0), (-10, -5, 0), lead_minutes=(10,))
        frames = drifting((256, 256))
        assert hits_share(load(write_graph(slow))(frames), load(write_graph(fast))(frames)) > 0.95


def _moved(drifting, step, steps):
    """The field `steps` steps after the newest one."""
    shape = (384, 384)
    return drifting(shape, (-step[0] * steps / 2, -step[1] * steps / 2))[0, 0]


class TestMissing:
    def test_what_comes_from_outside_coverage_is_missing_and_not_dry(self, drifting, load):
        frames = drifting((256, 256), (0, 4), cells=120)
        frames[..., :40] = -1
        forecast = load(write_graph(AdvectionSpec((1.0, 1.0), lead_minutes=(30,))))(frames)[0, 0]
        missing = forecast < -0.5
        assert missing[60:-60, :55].all(), "rain moves 24 cells in 30 minutes, so unknown air has come in"
        assert not missing[60:-60, 75:].any()
        assert (forecast[missing] == -1).all()

    def test_what_comes_from_outside_the_frame_is_missing(self, drifting, load):
        forecast = load(write_graph(AdvectionSpec((1.0, 1.0), lead_minutes=(30,))))(drifting((256, 256), (0, 4)))
        assert (forecast[0, 0, 60:-60, :10] == -1).all()

    @pytest.mark.parametrize("value", [0.0, -1.0])
    def test_nothing_but_dry_or_missing_stays_exactly_so(self, value, load):
        frames = np.full((1, 3, 64, 96), value, np.float32)
        np.testing.assert_array_equal(load(write_graph(SHORT))(frames), np.full((1, 3, 64, 96), value))

    @pytest.mark.parametrize("frame", [0, 1])
    def test_an_earlier_field_that_is_missing_changes_the_motion_little(self, frame, drifting, load):
        frames = drifting((384, 384), (0, 4), cells=120)
        gap = frames.copy()
        gap[:, frame] = -1
        run = load(write_graph(AdvectionSpec((1.0, 1.0), lead_minutes=(30,))))
        inside = (0, 0, slice(60, -60), slice(60, -60))
        assert hits_share(run(gap)[inside], run(frames)[inside]) > 0.97

    def test_the_edge_of_coverage_does_not_hold_rain_back(self, drifting, load):
        frames = drifting((384, 384), (0, 4), cells=120)
        holed = frames.copy()
        holed[..., 150:180, 150:180] = -1
        run = load(write_graph(AdvectionSpec((1.0, 1.0), lead_minutes=(15,))))
        whole, forecast = run(frames)[0, 0], run(holed)[0, 0]
        known = forecast >= 0
        assert hits_share(forecast[known], whole[known]) > 0.95

    def test_the_forecast_is_never_negative_nor_nan_elsewhere(self, drifting, load):
        frames = drifting((256, 256))
        frames[..., 100:120, :] = -1
        forecast = load(write_graph(SHORT))(frames)
        assert ((forecast == -1) | (forecast >= 0)).all()


class TestGraph:
    def test_it_uses_only_operators_that_tensorrt_8_6_reads_and_that_add_no_neighbours(self):
        model = write_graph(SHORT)
        assert {node.op_type for node in model.graph.node} <= MOVERS | CELL_BY_CELL | EXACT_IN_ANY_ORDER
        assert model.opset_import[0].version <= 17

    def test_the_halo_for_the_mrms_cycle_stays_small(self):
        spec = AdvectionSpec((1.11, 0.88), (-20, -10, 0), tuple(range(2, 38, 2)))
        assert spec.stride == 16
        assert spec.radius <= 384

    @pytest.mark.parametrize(
        ("changes", "found"),
        [
            ({"spacing_km": (1.0, 0.0)}, "spacing_km is"),
            ({"spacing_km": (1.0, 2.5)}, "within a factor of 2"),
            ({"history_minutes": (0,)}, "history_minutes is"),
            ({"history_minutes": (-10, -4, 0)}, "even steps"),
            ({"history_minutes": (-10, -5)}, "up to 0"),
            ({"history_minutes": ()}, "history_minutes is"),
            ({"lead_minutes": ()}, "lead_minutes is"),
            ({"lead_minutes": (10, 5)}, "rising"),
            ({"lead_minutes": (0, 5)}, "above 0"),
            ({"max_speed_km_h": 0}, "max_speed_km_h is 0"),
        ],
    )
    def test_a_spec_without_sense_is_refused(self, changes, found):
        with pytest.raises(ValueError, match=found):
            AdvectionSpec(**{"spacing_km": (1.0, 1.0)} | changes)
