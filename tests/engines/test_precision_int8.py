"""INT8 as a rewrite: which operators, which ranges, which cases."""

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engines.base import ModelError
from engines.precision import LayerCounts, choose_cases, describe, to_half, to_int8
from engines.zoo import PersistenceSpec, UnetSpec
from engines.zoo.persistence import write_graph as write_persistence
from engines.zoo.unet import write_graph as write_unet


def run(model, batch):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: batch})[0]


def noise(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(scale=scale, size=shape).astype(np.float32)


def cases(count=3, scale=1.0):
    return [noise(1, 4, 64, 64, seed=seed, scale=scale) for seed in range(count)]


def error(model, reference, batch):
    """RMSE of the correction that the U-Net adds to the newest field, over its standard deviation."""
    want = run(reference, batch)
    return np.sqrt(np.mean((run(model, batch) - want) ** 2)) / np.std(want - batch[:, -1:])


@pytest.fixture(scope="module")
def reference():
    return write_unet(UnetSpec(width=4, depth=2, leads=3))


@pytest.fixture(scope="module")
def quantized(reference):
    return to_int8(reference, cases())


# Which operators

RAISED = 2  # ConvTranspose of the reference, one a level


def test_heavy_operators_are_int8_save_the_last(quantized):
    assert describe(quantized) == LayerCounts(float32=1 + RAISED, int8=12 - RAISED)


def test_transposed_convolutions_stay_as_they_are(reference, quantized):
    made = {node.name: node for node in quantized.graph.node}
    kept = [node for node in reference.graph.node if node.op_type == "ConvTranspose"]
    assert [made[node.name].input[:] for node in kept] == [node.input[:] for node in kept]
    assert len(kept) == RAISED


@pytest.mark.parametrize(("first", "last", "kept"), [(False, False, 0), (True, False, 1), (True, True, 2)])
def test_the_first_and_the_last_layer_are_kept_when_asked(reference, first, last, kept):
    model = to_int8(reference, cases(1), keep_first=first, keep_last=last)
    assert describe(model) == LayerCounts(float32=kept + RAISED, int8=13 - kept - RAISED)


def test_no_result_of_a_heavy_operator_is_quantized_before_its_activation(quantized):
    makers = {name: node for node in quantized.graph.node for name in node.output}
    before = [makers.get(node.input[0]) for node in quantized.graph.node if node.op_type == "QuantizeLinear"]
    assert "Conv" not in {node.op_type for node in before if node is not None}


def test_quantization_is_symmetric_by_channel_with_float32_scales_and_float32_bias(quantized):
    tensors = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    for node in quantized.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = tensors[node.input[1]], tensors[node.input[2]]
            assert scale.dtype == np.float32
            assert zero.dtype == np.int8
            assert not zero.any()
            is_weight = node.input[0] in tensors
            assert scale.size == (tensors[node.input[0]].shape[_channel(quantized, node)] if is_weight else 1)
        if node.op_type == "Conv" and len(node.input) == 3:
            assert tensors[node.input[2]].dtype == np.float32


def _channel(model, dequantize):
    user = next(node for node in model.graph.node if dequantize.output[0] in node.input)
    return 1 if user.op_type == "ConvTranspose" else 0


def test_opset_and_ports_stay_as_they_were(reference, quantized):
    assert quantized.opset_import == reference.opset_import
    assert [*quantized.graph.input, *quantized.graph.output] == [*reference.graph.input, *reference.graph.output]
    assert not quantized.metadata_props


def test_what_computes_coordinates_is_not_quantized(net_type):
    net = net_type(4)
    flow = net.op("Transpose", net.conv(net.relu(net.conv("x", 4, 4)), 4, 2), perm=[0, 2, 3, 1])
    moved = net.op("GridSample", net.conv("x", 4, 3), flow, mode="bilinear")
    model = to_int8(net.model(net.conv(moved, 3, 3), 3), cases(1), keep_last=False)
    assert describe(model) == LayerCounts(float32=2, int8=2)


def test_what_is_left_of_an_int8_model_can_be_half(reference, quantized):
    both = to_half(quantized)
    assert describe(both) == LayerCounts(half=1 + RAISED, int8=12 - RAISED, casts=2 + 2 * RAISED)
    assert to_half(both).SerializeToString() == both.SerializeToString()
    batch = cases(1)[0]
    assert error(both, reference, batch) < 1.2 * error(quantized, reference, batch)


# What comes of it


def test_the_same_model_and_cases_give_the_same_bytes(reference, quantized):
    assert to_int8(reference, cases()).SerializeToString() == quantized.SerializeToString()


def test_int8_is_near_float32_on_what_it_was_calibrated_for(reference, quantized):
    assert error(quantized, reference, noise(1, 4, 64, 64, seed=9)) < 0.25


def test_extremes_survive_only_if_they_were_among_the_cases(reference, quantized):
    extreme = noise(1, 4, 64, 64, seed=9, scale=4)
    with_them = to_int8(reference, [*cases(), noise(1, 4, 64, 64, seed=5, scale=4)])
    assert error(with_them, reference, extreme) < 0.25
    assert error(quantized, reference, extreme) > 3 * error(with_them, reference, extreme)


def test_a_model_without_heavy_operators_comes_back_unchanged_and_the_log_says_so(caplog):
    model = write_persistence(PersistenceSpec(history_minutes=(-15, -10, -5, 0)))
    with caplog.at_level("INFO", logger="engines.precision"):
        assert to_int8(model, cases(1)) is model
    assert "has no operator to compute in int8" in caplog.text


def test_no_file_and_no_logging_handler_is_left_behind(reference, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    handlers, here = list(logging.getLogger().handlers), set(Path().iterdir())
    to_int8(reference, cases(1))
    assert not list(tmp_path.iterdir())
    assert set(Path().iterdir()) == here
    assert logging.getLogger().handlers == handlers


# What is refused


def test_no_case_is_refused(reference):
    with pytest.raises(ValueError, match="no calibration case; expected at least one"):
        to_int8(reference, [])


@pytest.mark.parametrize(
    ("case", "found"),
    [
        (noise(1, 3, 64, 64), r"case 1 is float32 \(1, 3, 64, 64\); the input is float32 \(None, 4, None, None\)"),
        (noise(4, 64, 64), r"case 1 is float32 \(4, 64, 64\)"),
        (noise(1, 4, 64, 64).astype("float64"), "case 1 is float64"),
        (np.full((1, 4, 64, 64), np.nan, np.float32), "case 1 holds NaN or infinity"),
    ],
)
def test_a_case_that_does_not_fit_is_refused(reference, case, found):
    with pytest.raises(ValueError, match=found):
        to_int8(reference, [*cases(1), case])


def test_a_model_that_cannot_be_quantized_is_refused_in_our_words(net_type):
    net = net_type(4)
    model = net.model(net.conv(net.relu(net.conv(net.op("Log", "x"), 4, 8)), 8, 3), 3)
    with pytest.raises(ModelError, match="cannot be quantized; int8 needs finite values before every heavy operator"):
        to_int8(model, [np.zeros((1, 4, 64, 64), np.float32)])


@pytest.mark.parametrize("opset", [12, 18])
def test_an_opset_without_the_q_dq_of_tensorrt_is_refused(reference, opset):
    model = type(reference).FromString(reference.SerializeToString())
    model.opset_import[0].version = opset
    with pytest.raises(ModelError, match=f"has opset {opset}; int8 needs 13 to 17; export it again with opset 17"):
        to_int8(model, cases(1))


def test_a_quantized_model_is_not_quantized_again(quantized):
    with pytest.raises(ModelError, match="is quantized already"):
        to_int8(quantized, cases(1))


def test_a_half_model_has_nothing_to_quantize(reference):
    half = to_half(reference)
    assert to_int8(half, cases(1)) is half


def test_a_graph_of_several_inputs_is_refused(reference):
    model = type(reference).FromString(reference.SerializeToString())
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["n", 1]))
    with pytest.raises(ModelError, match="has 2 inputs; expected one"):
        to_int8(model, cases(1))


# Which cases

intensities = st.lists(st.floats(0, 300, width=32), min_size=1, max_size=60)


@given(intensities, st.integers(1, 40), st.integers(1, 8))
def test_as_many_cases_as_asked_each_once_and_in_order(values, count, extremes):
    chosen = choose_cases(values, count, extremes)
    assert len(chosen) == min(count, len(values))
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(len(values)))


@given(intensities, st.integers(1, 40), st.integers(1, 8))
def test_the_most_intense_cases_are_always_in(values, count, extremes):
    taken = sorted((values[k] for k in choose_cases(values, count, extremes)), reverse=True)
    strongest = sorted(values, reverse=True)[: min(count, extremes)]
    assert taken[: len(strongest)] == strongest


@given(intensities, st.integers(2, 40))
def test_the_calmest_case_is_in_if_there_is_room(values, count):
    assert min(values[k] for k in choose_cases(values, count, extremes=1)) == min(values)


@given(intensities, st.integers(3, 40), st.integers(1, 8))
def test_every_stratum_that_has_a_case_has_one_among_the_chosen(values, count, extremes):
    chosen = choose_cases(values, count, extremes)
    strata = len(chosen) - min(count, extremes) - 1
    if strata > 0 and max(values) > min(values):
        places = (np.array(values) - min(values)) / (max(values) - min(values)) * strata
        inside = np.abs(places - np.rint(places)) > 1e-6  # on an edge a case belongs to either side
        assert {int(p) for p in places[inside]} <= {int(np.floor(places[k])) for k in chosen} | {
            int(np.floor(places[k] - 1e-6)) for k in chosen
        }


@pytest.mark.parametrize(
    ("values", "count", "extremes"),
    [([], 3, 1), ([1, np.nan], 1, 1), ([[1, 2]], 1, 1), ([1, 2], 0, 1), ([1, 2], 1, 0)],
)
def test_a_choice_that_makes_no_sense_is_refused(values, count, extremes):
    with pytest.raises(ValueError, match=r"expected one finite number a case|must be at least 1"):
        choose_cases(values, count, extremes)
