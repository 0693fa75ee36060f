"""Refit on every recorded release: all weights that differ are replaced, or it is refused."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines.base import EngineError
from engines.trt import engine as engine_module
from engines.trt.engine import TensorRTEngine
from engines.trt.refit import digest_weights


@pytest.fixture
def engine(surface, host_cuda, monkeypatch):
    monkeypatch.setattr(engine_module, "load_surface", lambda name: surface)
    return TensorRTEngine(b"engine file")


@pytest.fixture
def retrained(conv, tmp_path):
    """The graph of `conv` with its weights, "w", doubled."""
    model = onnx.load(conv)
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(model.graph.initializer[0]) * 2, "w")
    )
    onnx.save(model, tmp_path / "retrained.onnx")
    return tmp_path / "retrained.onnx"


def test_weights_that_differ_are_replaced_and_named(engine, surface, conv, retrained):
    assert engine.refit(retrained, digest_weights(conv)) == ("w",)
    called = [name for name, _ in surface.module.calls]
    assert called[-1] == "Refitter.refit_cuda_engine"
    by_parser = hasattr(surface.module, "OnnxParserRefitter")
    assert ("OnnxParserRefitter.refit_from_file" if by_parser else "Refitter.set_named_weights") in called
    assert engine.serialize() == b"host memory"


def test_equal_weights_are_no_difference(engine, conv):
    assert engine.refit(conv, digest_weights(conv)) == ()


@pytest.mark.parametrize(
    ("call", "refusal", "message"),
    [
        ("Refitter.get_all_weights", [], r"cannot replace the weights \['w'\]; build again"),
        ("Refitter.get_missing_weights", ["b"], r"lacks the weights \['b'\]"),
        ("Refitter.refit_cuda_engine", False, "refuses the refit"),
        ("OnnxParserRefitter.refit_from_file", False, "refuses the refit from"),
        ("Refitter.set_named_weights", False, "refuses the weight w"),
    ],
)
def test_a_refit_that_is_not_whole_is_refused(engine, surface, conv, retrained, call, refusal, message):
    if call.split(".")[-1] == (
        "set_named_weights" if hasattr(surface.module, "OnnxParserRefitter") else "refit_from_file"
    ):
        return  # the other way of handing over weights
    surface.module.refuse[call] = refusal
    with pytest.raises(EngineError, match=message):
        engine.refit(retrained, digest_weights(conv))


def test_an_engine_built_without_refit_is_refused(engine, surface, conv, retrained, monkeypatch):
    monkeypatch.setattr(surface.module.ICudaEngine, "refittable", False)
    with pytest.raises(EngineError, match="was not built with the flag REFIT"):
        engine.refit(retrained, digest_weights(conv))


def test_other_graphs_are_refused(engine, conv, tmp_path):
    model = onnx.load(conv)
    model.graph.initializer.append(numpy_helper.from_array(np.float32([1]), "more"))
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(EngineError, match=r"do not have the same weights: \['more'\]"):
        engine.refit(tmp_path / "other.onnx", digest_weights(conv))
