"""The graph of a model in one precision: made once, honest about what it obtained, refused where it cannot be."""

import numpy as np
import onnx
import pytest

from engines.base import ModelError
from engines.model import load_package
from engines.ort import OrtEngine
from engines.precision import Precision
from engines.typed import PrecisionError, open_typed, type_model, write_emulated
from engines.zoo import PersistenceSpec, UnetSpec, write_package

UNET = UnetSpec(width=2, depth=1, frames=2, leads=2)


@pytest.fixture
def package(tmp_path):
    return load_package(write_package(UNET, tmp_path / "package"))


@pytest.fixture
def cases():
    return [np.random.default_rng(n).normal(size=(1, 2, 32, 32)).astype(np.float32) for n in range(2)]


def test_float32_is_the_model_itself(package, tmp_path):
    model = type_model(package, Precision(), tmp_path / "graphs")
    assert model.path == package.onnx_path
    assert (model.graph_sha256, model.weights_sha256) == (package.graph_sha256, package.weights_sha256)


@pytest.mark.parametrize("asked", ["half", "int8"])
def test_a_rewritten_graph_is_made_once_and_has_what_was_asked_for(package, tmp_path, cases, asked):
    model = type_model(package, Precision.parse(asked), tmp_path / "graphs", cases)
    assert model.conversion.is_honoured
    before = model.path.stat().st_mtime_ns
    again = type_model(package, Precision.parse(asked), tmp_path / "graphs", cases)
    assert again == model
    assert again.path.stat().st_mtime_ns == before
    assert open_typed(model.path, Precision.parse(asked)) == model


@pytest.mark.parametrize("left", [0, 200])
def test_a_graph_that_was_left_empty_or_in_part_is_rewritten(package, tmp_path, left):
    model = type_model(package, Precision.parse("half"), tmp_path / "graphs")
    whole = model.path.read_bytes()
    model.path.write_bytes(whole[:left])
    assert type_model(package, Precision.parse("half"), tmp_path / "graphs") == model
    assert model.path.read_bytes() == whole


def test_other_calibration_is_another_graph_of_int8_and_the_same_of_half(package, tmp_path, cases):
    def path(asked, some):
        return type_model(package, Precision.parse(asked), tmp_path / "graphs", some).path

    assert path("int8", cases) != path("int8", cases[:1])
    assert path("half", cases) == path("half", cases[:1])


def test_a_graph_without_heavy_operators_has_no_half_unless_allowed(tmp_path):
    package = load_package(write_package(PersistenceSpec((-5, 0), (5, 10)), tmp_path / "package"))
    with pytest.raises(PrecisionError, match=r"half was asked of model.onnx, but .* is float32 .*ask for float32"):
        type_model(package, Precision("half"), tmp_path / "graphs")
    assert not type_model(package, Precision("half"), tmp_path / "graphs", allow=True).conversion.is_honoured


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Precision("int8"), "int8 needs inputs to calibrate on.*expected a version of the registry"),
        (Precision("half", is_packed=True), "needs the packing"),
    ],
)
def test_what_cannot_be_rewritten_is_refused_and_leaves_nothing(package, tmp_path, asked, message):
    with pytest.raises(ModelError, match=message):
        type_model(package, asked, tmp_path / "graphs")
    assert not list((tmp_path / "graphs").rglob("*.onnx"))


def test_emulated_half_rounds_and_float32_is_left_as_it_is(package, tmp_path, cases):
    half = type_model(package, Precision("half"), tmp_path / "graphs")
    emulated = write_emulated(half, tmp_path / "emulated")
    exact = OrtEngine(package.onnx_path)(cases[0])
    rounded = OrtEngine(emulated)(cases[0])
    assert 0 < np.abs(rounded - exact).max() < 0.1
    assert not any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in onnx.load(emulated).graph.initializer)
    plain = type_model(package, Precision(), tmp_path / "graphs")
    assert write_emulated(plain, tmp_path / "other") == plain.path
