"""Every kind of package that squall writes: valid, loadable, and always the same bytes."""

from datetime import timedelta

import numpy as np
import onnx
import pytest

from engines.model import load_package
from engines.ort import OrtEngine
from engines.zoo import KINDS, AdvectionSpec, PersistenceSpec, UnetSpec, write_package

SPECS = {
    "advection": AdvectionSpec((1.11, 0.88), (-20, -10, 0), tuple(range(2, 38, 2))),
    "persistence": PersistenceSpec((-10, -5, 0), (2.5, 5)),
    "unet": UnetSpec(width=4, depth=2),
}

each_kind = pytest.mark.parametrize("kind", KINDS)


def test_every_kind_has_a_spec_here():
    assert set(SPECS) == set(KINDS)


@each_kind
def test_the_same_spec_gives_the_same_bytes(kind, tmp_path):
    first, second = (write_package(SPECS[kind], tmp_path / name) for name in ("first", "second"))
    for name in ("model.onnx", "model.yaml"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@each_kind
def test_a_package_loads_and_says_what_its_spec_says(kind, tmp_path):
    package = load_package(write_package(SPECS[kind], tmp_path / "made" / "here"))
    contract = package.contract
    assert (contract.name, contract.description) == (kind, KINDS[kind])
    assert contract.tile.stride is not None
    assert contract.tile.radius is not None


@each_kind
def test_a_graph_is_valid_onnx_of_an_opset_that_tensorrt_8_6_reads(kind, tmp_path):
    model = onnx.load(write_package(SPECS[kind], tmp_path) / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 17}
    sizes = [axis.dim_param or axis.dim_value for axis in inferred.graph.output[0].type.tensor_type.shape.dim]
    assert sizes == ["n", len(load_package(tmp_path).contract.output.leads), "h", "w"]


@each_kind
def test_batch_height_and_width_are_free(kind, tmp_path):
    package = load_package(write_package(SPECS[kind], tmp_path))
    engine, contract = OrtEngine(package.onnx_path), package.contract
    for n, h, w in ((1, 48, 64), (3, 32, 16)):
        frames = np.zeros((n, contract.input.frames, h, w), np.float32)
        assert engine(frames).shape == (n, len(contract.output.leads), h, w)


def test_lead_times_and_cadence_are_those_of_the_spec(tmp_path):
    contract = load_package(write_package(SPECS["advection"], tmp_path)).contract
    assert contract.input.cadence == timedelta(minutes=10)
    assert contract.output.leads == tuple(timedelta(minutes=m) for m in range(2, 38, 2))
    assert (contract.input.missing, contract.output.missing_below) == (-1.0, -0.5)
