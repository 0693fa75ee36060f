"""The probe against graphs whose reach is known from their operators."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engines.base import InferenceError, ModelError
from engines.ort import OrtEngine
from engines.probe import STRIDES, Reach, probe, takes_batches


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """An engine of a graph under construction; `leads` are the planes of its last tensor `y`."""

    def make(model) -> OrtEngine:
        path = tmp_path_factory.mktemp("probe") / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return OrtEngine(path)

    return make


# batches


def test_a_model_of_convolutions_takes_batches(engine, net_type):
    net = net_type(2)
    model = net.model(net.conv(net.op("Relu", net.conv("x", 2, 16)), 16, 3), 3)
    assert takes_batches(engine(model), 2, (64, 48))


def test_a_model_that_mixes_the_tiles_of_a_batch_takes_one(engine, net_type):
    net = net_type(2)
    mean = net.op("ReduceMean", "x", axes=[0, 2, 3], keepdims=1)  # as batch normalization left in training does
    assert not takes_batches(engine(net.model(net.op("Sub", "x", mean), 2)), 2, (64, 48))


@pytest.mark.parametrize("shape", [[1, 2, 64, 48], [1, -1, 64, 48]])
def test_a_model_exported_for_one_tile_inside_takes_one(engine, net_type, shape):
    net = net_type(2)
    model = net.model(net.op("Reshape", "x", net.constant(shape, "int64")), 2)
    assert not takes_batches(engine(model), 2, (64, 48))


def test_a_result_that_is_not_finite_is_the_same_in_a_batch(engine, net_type):
    net = net_type(2)
    assert takes_batches(engine(net.model(net.op("Log", "x"), 2)), 2, (64, 48))


# known graphs


def test_a_model_that_looks_at_one_cell_has_no_radius(engine, net_type):
    net = net_type(2)
    assert probe(engine(net.model(net.op("Identity", "x"), 2)), 2) == Reach(0, 1)


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (5, 1), (3, 7), (31, 1)])
def test_a_convolution_reaches_half_its_kernel(engine, net_type, kernel, dilation):
    net = net_type(1)
    model = net.model(net.conv("x", 1, 1, kernel, dilation), 1)
    assert probe(engine(model), 1) == Reach(kernel // 2 * dilation, 1)


@pytest.mark.parametrize("activation", ["Relu", "Tanh", "Sigmoid"])
def test_a_path_through_thirty_layers_is_not_lost_to_rounding(engine, net_type, activation):
    net, x, planes = net_type(2), "x", 2
    for _ in range(30):
        x, planes = net.op(activation, net.conv(x, planes, 3)), 3
    assert probe(engine(net.model(x, 3)), 2) == Reach(30, 1)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_change_that_only_one_sign_lets_through_is_seen(engine, net_type, sign):
    net = net_type(1)
    threshold = net.op("Relu", net.op("Sub", net.op("Mul", "x", net.constant(sign)), net.constant(50)))
    model = net.model(net.op("AveragePool", threshold, kernel_shape=[9, 9], pads=[4] * 4), 1)
    assert probe(engine(model), 1) == Reach(4, 1)


def test_a_clipped_input_hides_nothing(engine, net_type):
    net = net_type(1)
    clipped = net.op("Clip", "x", net.constant(-0.5), net.constant(0.5))
    model = net.model(net.op("MaxPool", clipped, kernel_shape=[7, 7], pads=[3] * 4), 1)
    assert probe(engine(model), 1) == Reach(3, 1)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_stride_of_a_unet_is_two_to_the_power_of_its_depth(engine, unet, depth):
    assert probe(engine(unet(width=4, depth=depth)), 4).stride == 2**depth


def test_a_unet_is_probed_in_about_a_second(engine, unet):
    model = engine(unet())
    start = perf_counter()
    assert probe(model, 4) == Reach(46, 8)
    assert perf_counter() - start < 10  # 0.7 s on an idle core


def test_a_radius_of_two_hundred_cells_is_measured_on_larger_tiles(engine, net_type):
    net = net_type(1)
    model = net.model(net.conv(net.conv("x", 1, 1, 3, 100), 1, 1, 3, 100), 1)
    assert probe(engine(model), 1) == Reach(200, 1)


@pytest.mark.parametrize("norm", ["GlobalAveragePool", "GlobalMaxPool"])
def test_a_model_that_looks_everywhere_has_no_finite_radius(engine, net_type, norm):
    net = net_type(2)
    assert probe(engine(net.model(net.op("Add", "x", net.op(norm, "x")), 2)), 2) == Reach(None, 1)


@pytest.mark.parametrize("threshold", [0.1, 5])
def test_a_model_that_asks_whether_it_rains_anywhere_looks_everywhere(engine, net_type, threshold):
    net = net_type(1)
    is_wet = net.op("Cast", net.op("Greater", "x", net.constant(threshold)), to=1)
    model = net.model(net.op("Mul", net.conv("x", 1, 2), net.op("GlobalMaxPool", is_wet)), 2)
    assert probe(engine(model), 1) == Reach(None, 1)


def test_a_global_model_still_takes_multiples_of_its_stride_only(engine, net_type):
    net = net_type(2)
    small = net.grow(net.pool("x", factor=4), 4)
    model = net.model(net.op("Add", net.op("Add", "x", small), net.op("GlobalAveragePool", "x")), 2)
    assert probe(engine(model), 2) == Reach(None, 4)
    assert probe(engine(model), 2, radius="global") == Reach(None, 4)


@pytest.mark.parametrize("stride", [3, 5, 7, 8, 12, 14, 20, 28, 64])
def test_a_model_that_takes_only_multiples_of_its_stride_is_probed_on_them(engine, net_type, stride):
    net = net_type(1)
    small = net.grow(net.pool("x", "AveragePool", stride), stride)
    assert probe(engine(net.model(net.op("Add", "x", small), 1)), 1) == Reach(0, stride)


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("offset", [0, 1, 5, 7])
def test_the_cell_of_a_stride_that_reaches_furthest_counts(net_type, kind, offset):
    """Only cells at one offset of a stride of 8 are felt, 8 cells further: the halo must cover the next stride."""

    def infer(tile):
        if any(edge % 8 for edge in tile.shape[-2:]):
            raise InferenceError(f"{tile.shape}")
        chosen = tile[..., offset::8, offset::8]
        wide = np.pad(chosen, ((0, 0), (0, 0), (1, 1), (1, 1)))[..., :-2, :-2]
        return np.repeat(np.repeat(wide, 8, -1), 8, -2)

    assert probe(infer, 1) == Reach(8, 8)


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_model_that_pads_its_input_itself_is_cut_where_it_need_not(side):
    """Away from its borders it is the same at every size; at them only at multiples of 4."""

    def infer(tile):
        pads = [(0, 0), (0, 0), *((-edge % 4, 0) if side == "before" else (0, -edge % 4) for edge in tile.shape[-2:])]
        padded = np.pad(np.pad(tile, pads, constant_values=5), [(0, 0), (0, 0), (1, 1), (1, 1)])
        rows, columns = tile.shape[-2:]
        return padded[..., :rows, :columns] if side == "before" else padded[..., -rows:, -columns:]

    assert probe(infer, 1).stride == 4


# what cannot be probed


def test_a_model_that_adds_the_position_is_refused_with_advice(net_type):
    def infer(tile):
        return tile + np.arange(tile.shape[-1], dtype=np.float32)

    with pytest.raises(
        ModelError, match=r"shifting the input .* by none of .* knows where on a tile a cell lies, .* `radius: global`"
    ):
        probe(infer, 1)


def test_a_declared_radius_that_is_too_small_is_named(engine, net_type):
    net = net_type(1)
    model = engine(net.model(net.conv("x", 1, 1, 9), 1))
    with pytest.raises(ModelError, match="shifts its output alike, 1 cells away from borders; declare a larger"):
        probe(model, 1, radius=1)


def test_a_model_that_takes_no_such_tile_is_refused(engine, net_type):
    net = net_type(1)
    model = engine(net.model(net.conv("x", 1, 1), 1, size=(40, 40)))
    with pytest.raises(ModelError, match=r"no finite result .*: a batch of shape \(1, 1, 256, 256\) does not fit"):
        probe(model, 1)


def test_a_model_whose_result_is_smaller_is_refused_for_that():
    with pytest.raises(ModelError, match=r"\(1, 1, 256, 256\) becomes \(1, 1, 252, 252\)"):
        probe(lambda tile: tile[..., 2:-2, 2:-2], 1)


def test_a_model_that_gives_nan_for_finite_input_is_refused():
    with pytest.raises(ModelError, match="no finite result"):
        probe(lambda tile: tile * np.float32(np.nan), 1)


def test_a_model_for_positive_input_is_probed_on_positive_input():
    def infer(tile):
        with np.errstate(invalid="ignore"):
            return np.sqrt(tile) + np.sqrt(np.roll(tile, 3, -1))

    with np.errstate(all="ignore"):
        reach = probe(infer, 1, fixed=(256, 256))
    assert reach.stride == 1
    assert reach.radius is None  # np.roll brings the right border to the left one


def test_other_errors_than_a_refused_shape_are_not_swallowed():
    def infer(tile):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        probe(infer, 1)


# declared values


def test_a_fixed_tile_is_probed_as_it_is(engine, net_type):
    net = net_type(1)
    model = engine(net.model(net.grow(net.pool(net.conv("x", 1, 1, 5), factor=4), 4), 1, size=(64, 96)))
    assert probe(model, 1, fixed=(64, 96)) == Reach(4, 4)


@pytest.mark.parametrize("reach", ["too far", "position"])
def test_a_fixed_tile_that_cannot_be_cut_is_run_whole(reach):
    def infer(tile):
        if reach == "position":
            return tile + np.arange(tile.shape[-1], dtype=np.float32)
        return np.roll(tile, 25, -1) + np.repeat(np.repeat(tile[..., ::8, ::8], 8, -1), 8, -2)

    assert probe(infer, 1, fixed=(64, 96)).radius is None


def test_a_declared_stride_is_the_only_one_that_is_tried(engine, unet):
    model = engine(unet(width=4))
    assert probe(model, 4, stride=24) == Reach(46, 24)
    with pytest.raises(ModelError, match=r"for any stride of \(4,\)"):
        probe(model, 4, stride=4)


def test_a_stride_that_would_not_be_guessed_can_be_declared(engine, net_type):
    net = net_type(1)
    small = net.grow(net.pool("x", "AveragePool", 22), 22)
    assert probe(engine(net.model(net.op("Add", "x", small), 1)), 1, stride=22) == Reach(0, 22)


def test_a_declared_radius_is_kept_and_only_the_stride_is_measured(engine, unet):
    model, calls = engine(unet(width=4)), []

    def infer(tile):
        calls.append(np.isfinite(tile).all())
        return model(tile)

    assert probe(infer, 4, radius=64) == Reach(64, 8)
    assert all(calls)  # a sampler may do anything when its coordinates are not finite


# any graph


@dataclass(frozen=True)
class Layers:
    """A random graph and, for a row of its result, the rows of the input that it may feel."""

    build: Callable
    feels: Callable[[int], tuple[int, int]]
    stride: int


def _chain(convs, planes):
    """Convolutions and activations: (kernel, dilation, activation)."""
    reach = sum(kernel // 2 * dilation for kernel, dilation, _ in convs)

    def build(net, x, given_):
        for kernel, dilation, activation in convs:
            x, given_ = net.conv(x, given_, planes, kernel, dilation), planes
            x = net.op(activation, x) if activation else x
        return x, given_

    return Layers(build, lambda row: (row - reach, row + reach), 1)


def _level(before, below, after, factor, kind, has_skip):
    """A level of a U-Net around another."""

    def build(net, x, given_):
        x, planes = before.build(net, x, given_)
        low, made = below.build(net, net.pool(x, kind, factor), planes)
        up = net.grow(low, factor)
        x = net.op("Concat", up, x, axis=1) if has_skip else up
        return after.build(net, x, made + planes * has_skip)

    def feels(row):
        rows = after.feels(row)
        low = below.feels(rows[0] // factor)[0] * factor, below.feels(rows[1] // factor)[1] * factor + factor - 1
        both = (min(low[0], rows[0]), max(low[1], rows[1])) if has_skip else low
        return before.feels(both[0])[0], before.feels(both[1])[1]

    return Layers(build, feels, below.stride * factor)


def chains():
    conv = st.tuples(st.sampled_from([1, 3, 5]), st.integers(1, 3), st.sampled_from(["Relu", "Tanh", ""]))
    return st.builds(_chain, st.lists(conv, min_size=1, max_size=3), st.integers(3, 5))


def graphs():
    level = st.tuples(chains(), chains(), st.sampled_from([2, 2, 3]), st.sampled_from(["MaxPool", "AveragePool"]))
    return st.recursive(
        chains(),
        lambda below: st.builds(
            lambda parts, low, skip: _level(parts[0], low, parts[1], parts[2], parts[3], skip),
            level, below, st.booleans(),
        ),
        max_leaves=3,
    )  # fmt: skip


def depth_at_borders(layers: Layers) -> int:
    """Rows beside a border on the lattice (0) that feel the other side, the deeper of both sides."""
    rows = range(-400, 400)
    after = max((row + 1 for row in rows if row >= 0 and layers.feels(row)[0] < 0), default=0)
    before = max((-row for row in rows if row < 0 and layers.feels(row)[1] >= 0), default=0)
    return max(after, before)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(layers=graphs(), seed=st.integers(0, 99))
def test_the_measured_radius_is_the_analytic_one(engine, net_type, layers, seed):
    assume(layers.stride in STRIDES)
    net = net_type(1, seed)
    y, planes = layers.build(net, "x", 1)
    assert probe(engine(net.model(y, planes)), 1) == Reach(depth_at_borders(layers), layers.stride)
