"""The U-Net: exact radius, finite and dry where the input is dry, and refusals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.ort import OrtEngine
from engines.probe import probe
from engines.zoo import UnetSpec, write_package
from engines.zoo.unet import SPREAD, write_graph


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_radius_is_the_one_that_probing_finds(depth: int, tmp_path: Path):
    spec = UnetSpec(width=4, depth=depth, frames=2, leads=3)
    reach = probe(OrtEngine(write_package(spec, tmp_path) / "model.onnx"), spec.frames)
    assert (reach.radius, reach.stride) == (spec.radius, spec.stride)


def test_a_tile_with_a_halo_of_the_radius_equals_the_whole_frame(load):
    spec = UnetSpec(width=4, frames=2, leads=3)
    frames = np.random.default_rng(0).uniform(-2, 2, (1, 2, 256, 320)).astype(np.float32)
    run, halo = load(write_graph(spec)), -(-spec.radius // spec.stride) * spec.stride
    cut = run(frames[..., 96 - halo : 128 + halo, 160 - halo : 200 + halo])[..., halo:-halo, halo:-halo]
    np.testing.assert_array_equal(cut, run(frames)[..., 96:128, 160:200])


def test_forecasts_are_finite_and_dry_stays_below_the_threshold(load):
    run = load(write_graph(UnetSpec()))
    wet = run(np.random.default_rng(1).uniform(-2, 2.5, (2, 4, 64, 64)).astype(np.float32))
    assert wet.shape == (2, 18, 64, 64)
    assert np.isfinite(wet).all()
    assert np.abs(wet).max() < 4
    assert (run(np.full((1, 4, 64, 64), -2, np.float32)) < np.log10(0.1)).all()


def test_another_seed_is_another_model():
    assert write_graph(UnetSpec(seed=1)) != write_graph(UnetSpec(seed=2))


def test_the_forecast_of_members_is_the_mean_of_theirs(load):
    spec = UnetSpec(width=4, depth=2, frames=2, leads=3)
    frames = np.random.default_rng(2).uniform(-2, 2.5, (2, 2, 32, 48)).astype(np.float32)
    alone, newest = load(write_graph(spec)), frames[:, -1:]
    each = [alone(frames * factor) - newest * factor for factor in np.float32([1, 1 + SPREAD, 1 + 2 * SPREAD])]
    made = load(write_graph(replace(spec, members=3)))(frames)
    np.testing.assert_allclose(made, newest + np.mean(each, axis=0), atol=1e-5)


@pytest.mark.parametrize("name", ["width", "depth", "frames", "leads", "step_minutes", "members"])
def test_sizes_below_one_are_refused(name: str):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        UnetSpec(**{name: 0})
