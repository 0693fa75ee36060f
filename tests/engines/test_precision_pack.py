"""Packed I/O: the codes of a packed graph are those of the same packing on the host, at most one apart."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from engines.base import ModelError
from engines.ort import OrtEngine
from engines.precision import Packing, Precision, emulate_half, pack_io, record_conversion, to_half
from engines.zoo import AdvectionSpec, UnetSpec
from engines.zoo.advection import write_graph as write_advection
from engines.zoo.unet import write_graph as write_unet

PACKING = Packing.spanning(-2.0, 2.5)
TENSORRT_8_6 = {"Cast", "Mul", "Add", "Where", "Equal", "Greater", "Clip", "Round"}


def run(model, batch):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: batch})[0]


def copying(*operators):
    """A model of one channel that gives back its input, through the operators named."""
    nodes = [helper.make_node(kind, [f"v{k}"], [f"v{k + 1}"]) for k, kind in enumerate(operators)]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1, "h", "w"])
        for name in ("v0", nodes[-1].output[0])
    ]
    graph = helper.make_graph(nodes, "copy", ports[:1], ports[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def decode(codes, packing, missing):
    """What the host would give to an unpacked model."""
    values = (codes.astype(np.float64) * packing.scale + packing.offset).astype(np.float32)
    return np.where(codes == packing.missing_code, np.float32(missing), values)


def encode(values, packing, missing_below):
    """What the host would make of the output of an unpacked model."""
    with np.errstate(invalid="ignore", over="ignore"):
        steps = np.clip(
            np.rint((values.astype(np.float64) - packing.offset) / packing.scale), packing.lowest, packing.highest
        )
        is_missing = np.isnan(values) | (values < np.float32(-np.inf if missing_below is None else missing_below))
    return np.where(is_missing, packing.missing_code, steps).astype(packing.dtype)


@pytest.fixture(scope="module")
def unet():
    return write_unet(UnetSpec(width=4, depth=2, leads=3))


# Equal to the host


@st.composite
def packings(draw):
    dtype = draw(st.sampled_from(["uint8", "int32"]))
    low, high = (0, 255) if dtype == "uint8" else (-40_000, 40_000)
    lowest = draw(st.integers(low + 1, high - 2))
    highest = draw(st.integers(lowest + 1, high - 1))
    scale = draw(st.floats(1e-3, 10))
    offset = draw(st.floats(-1000, 1000)) * scale
    missing_code = draw(st.sampled_from([low, high]))
    return Packing(scale, offset, lowest, highest, missing_code, dtype)


@given(packings(), st.integers(0, 2**32 - 1), st.sampled_from([0.0, -1.0, -999.0]))
@settings(max_examples=40, deadline=None)
def test_input_codes_are_decoded_as_on_the_host(packing, seed, missing):
    random = np.random.default_rng(seed)
    codes = random.integers(packing.lowest, packing.highest, (1, 1, 5, 7), endpoint=True).astype(packing.dtype)
    codes[random.random(codes.shape) < 0.2] = packing.missing_code
    got = run(pack_io(copying("Identity"), packing, None, missing=missing), codes)
    want = decode(codes, packing, missing)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * abs(packing.offset) + 1e-6 * packing.scale)
    np.testing.assert_array_equal(got[codes == packing.missing_code], np.float32(missing))


@given(packings(), st.integers(0, 2**32 - 1), st.sampled_from([None, 0.0, -0.5]))
@settings(max_examples=40, deadline=None)
def test_output_codes_are_those_of_the_host_at_most_one_apart(packing, seed, missing_below):
    random = np.random.default_rng(seed)
    middle, width = (packing.lowest + packing.highest) / 2, packing.highest - packing.lowest
    steps = random.normal(middle, width, (1, 1, 5, 7))
    values = (steps * packing.scale + packing.offset).astype(np.float32)
    values[random.random(values.shape) < 0.1] = np.nan
    values[0, 0, 0, :2] = np.inf, 3e38
    got = run(pack_io(copying("Identity"), None, packing, missing=0, missing_below=missing_below), values)
    want = encode(values, packing, missing_below)
    assert got.dtype == np.dtype(packing.dtype)
    np.testing.assert_array_equal(got == packing.missing_code, want == packing.missing_code)
    assert np.abs(got.astype(int) - want.astype(int)).max() <= 1


@given(packings())
@settings(max_examples=40, deadline=None)
def test_every_code_comes_back_as_itself(packing):
    count = min(packing.highest - packing.lowest, 500)
    codes = np.linspace(packing.lowest, packing.highest, count + 1).astype(packing.dtype)
    codes = np.append(codes, np.asarray(packing.missing_code, packing.dtype)).reshape(1, 1, 1, -1)
    model = pack_io(copying("Identity"), packing, packing, missing=np.nan)
    np.testing.assert_array_equal(run(model, codes), codes)


def test_rounding_is_half_to_even():
    values = np.array([0.5, 1.5, 2.5, 3.5], np.float32).reshape(1, 1, 1, 4)
    packed = pack_io(copying("Identity"), None, Packing(1.0, 0.0), missing=0)
    assert run(packed, values).ravel().tolist() == [0, 2, 2, 4]


def test_the_bound_of_missing_itself_is_not_missing():
    values = np.array([-0.5, np.nextafter(np.float32(-0.5), np.float32(-1)), -np.inf, np.nan], np.float32)
    packed = pack_io(copying("Identity"), None, Packing(0.5, -1.0), missing=0, missing_below=-0.5)
    assert run(packed, values.reshape(1, 1, 1, 4)).ravel().tolist() == [1, 255, 255, 255]


def test_without_a_bound_only_nan_and_minus_infinity_are_missing():
    values = np.array([-1e38, -np.inf, np.nan, np.inf], np.float32).reshape(1, 1, 1, 4)
    packed = pack_io(copying("Identity"), None, Packing(1.0, 0.0), missing=0)
    assert run(packed, values).ravel().tolist() == [0, 255, 255, 254]


@pytest.mark.parametrize("rewrite", [lambda m: m, lambda m: emulate_half(to_half(m))], ids=["float32", "half"])
def test_a_network_gives_the_codes_of_the_host_at_most_one_apart(unet, rewrite):
    model = rewrite(unet)
    codes = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32)).astype(np.uint8)
    got = run(pack_io(model, PACKING, PACKING, missing=-2.0), codes)
    want = encode(run(model, decode(codes, PACKING, -2.0)), PACKING, None)
    assert np.abs(got.astype(int) - want.astype(int)).max() <= 1
    assert np.mean(got != want) < 0.001


def test_missing_cells_of_an_advection_are_the_same_cells():
    model = write_advection(AdvectionSpec(spacing_km=(1, 1), lead_minutes=(15, 30)))
    packing = Packing.spanning(0.0, 25.4)
    codes = np.random.default_rng(0).integers(0, 60, (1, 3, 64, 64)).astype(np.uint8)
    codes[..., :20] = packing.missing_code
    got = run(pack_io(model, packing, packing, missing=-1.0, missing_below=-0.5), codes)
    want = encode(run(model, decode(codes, packing, -1.0)), packing, -0.5)
    assert (want == packing.missing_code).any()
    assert (want != packing.missing_code).any()
    assert np.abs(got.astype(int) - want.astype(int)).max() <= 1


# What the graph is


def test_ports_keep_their_names_and_shapes_and_become_codes(unet, tmp_path):
    packed = pack_io(unet, PACKING, PACKING, missing=-2.0)
    (tmp_path / "model.onnx").write_bytes(packed.SerializeToString())
    given, returned = OrtEngine(tmp_path / "model.onnx").specs
    assert (given.name, given.dtype, given.shape) == ("frames", "uint8", (None, 4, None, None))
    assert (returned.name, returned.dtype, returned.shape) == ("forecast", "uint8", (None, 3, None, None))


def test_only_operators_that_tensorrt_8_6_has_are_added(unet):
    packed = pack_io(unet, PACKING, PACKING, missing=-2.0, missing_below=-3)
    before = {node.name for node in unet.graph.node}
    added = [node.op_type for node in packed.graph.node if node.name not in before]
    assert set(added) == TENSORRT_8_6
    assert len(added) == 12


def test_one_side_can_stay_float32(unet):
    only_in = pack_io(unet, PACKING, None, missing=-2.0)
    assert [port.type.tensor_type.elem_type for port in (*only_in.graph.input, *only_in.graph.output)] == [
        TensorProto.UINT8,
        TensorProto.FLOAT,
    ]
    assert not record_conversion(Precision("float32", is_packed=True), only_in).is_honoured
    both = pack_io(unet, PACKING, PACKING, missing=-2.0)
    assert record_conversion(Precision("float32", is_packed=True), both).is_honoured


def test_an_output_that_the_graph_itself_reads_and_an_input_that_a_branch_captures_are_followed():
    model = copying("Identity")
    del model.graph.node[:]
    branches = {
        f"{side}_branch": helper.make_graph(
            [helper.make_node("Identity", ["v0"], [side])], side, [], [helper.make_tensor_value_info(side, 1, None)]
        )
        for side in ("then", "else")
    }
    go = onnx.numpy_helper.from_array(np.array(True), "go")
    model.graph.initializer.append(go)
    model.graph.node.append(helper.make_node("If", ["go"], ["v1"], **branches))
    model.graph.node.append(helper.make_node("Abs", ["v1"], ["unused"]))
    codes = np.arange(6, dtype=np.uint8).reshape(1, 1, 2, 3)
    np.testing.assert_array_equal(run(pack_io(model, PACKING, PACKING, missing=0), codes), codes)


def test_the_model_that_was_given_is_not_changed(unet):
    before = unet.SerializeToString()
    pack_io(unet, PACKING, PACKING, missing=-2.0)
    assert unet.SerializeToString() == before


# What is refused


def test_a_packed_model_is_not_packed_again(unet):
    packed = pack_io(unet, PACKING, PACKING, missing=-2.0)
    with pytest.raises(ModelError, match="has I/O frames UINT8, forecast UINT8; only one FLOAT"):
        pack_io(packed, PACKING, PACKING, missing=-2.0)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"dtype": "int16"}, "dtype is 'int16'.*TensorRT has no 16-bit integers"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"scale": -1.0}, "scale is -1.0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": 1e-40}, "scale is 1e-40"),
        ({"offset": float("inf")}, "offset inf"),
        ({"offset": 1e9}, "offset is 1000000000.0, more than 1048576 scales"),
        ({"lowest": -1}, "codes run from -1 to 254; uint8 has 0 to 255"),
        ({"highest": 256}, "codes run from 0 to 256"),
        ({"lowest": 9, "highest": 9}, "codes run from 9 to 9"),
        ({"missing_code": 7}, "missing_code is 7; expected a uint8 outside 0 to 254"),
        ({"missing_code": 256}, "missing_code is 256"),
    ],
)
def test_a_packing_that_cannot_hold_is_refused(change, found):
    with pytest.raises(ValueError, match=found):
        replace(Packing(0.1, 0.0), **change)
