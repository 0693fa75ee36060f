"""From a typed graph to an engine: loaded, refitted or built; each way and each refusal."""

import threading
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines import supply as supply_module
from engines.base import EngineError, ModelError
from engines.cache import EngineCache
from engines.model import load_package
from engines.ort import OnnxRuntime, OrtEngine
from engines.precision import Precision
from engines.runtime import BuiltFile
from engines.spec import BuildSpec, EngineKey, Profile
from engines.supply import find_runtime, supply
from engines.typed import type_model
from engines.zoo import AdvectionSpec, UnetSpec, write_package

UNET = UnetSpec(width=2, depth=1, frames=2, leads=2)
SHAPE = (1, 2, 64, 48)
SPEC = BuildSpec((Profile.up_to(SHAPE),))
REFITTABLE = BuildSpec((Profile.up_to(SHAPE),), frozenset({"REFIT"}))


@dataclass
class FakeEngine:
    weights: str
    closed: bool = False

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeRuntime:
    """Builds a file that holds the digest of the weights; refits unless told to refuse."""

    label: str = "fake 1.0"
    refuses_refit: bool = False
    refuses_to_build: bool = False
    builds: list[bytes] = field(default_factory=list)
    loaded: list[FakeEngine] = field(default_factory=list)
    merged: list[tuple[bytes, bytes]] = field(default_factory=list)

    def key(self, model, spec) -> EngineKey:
        weights = None if "REFIT" in spec.flags else model.weights_sha256
        return replace(OnnxRuntime().key(model, spec), weights_sha256=weights, flavour="fake")

    def build(self, model, spec, timings, tell) -> BuiltFile:
        self.builds.append(timings)
        if self.refuses_to_build:
            raise ModelError("node conv_3 (Conv): no")
        tell("building: 50%")
        return BuiltFile(model.weights_sha256.encode(), {"obtained": "float32"}, timings + b"+")

    def merge(self, kept: bytes, fresh: bytes) -> bytes:
        self.merged.append((kept, fresh))
        return fresh

    def refuse(self, data: bytes) -> str | None:
        return "built by another release" if data == b"foreign" else None

    def load(self, data: bytes) -> FakeEngine:
        self.loaded.append(FakeEngine(data.decode()))
        return self.loaded[-1]

    def refit(self, engine, model, notes) -> tuple[str, ...]:
        if self.refuses_refit:
            raise EngineError("cannot replace the weights ['w']; build again")
        engine.weights = model.weights_sha256
        return ("w",)


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "cache")


def typed(folder, spec=UNET, precision="float32"):
    package = load_package(write_package(spec, folder / "package"))
    return type_model(package, Precision.parse(precision), folder / "graphs")


@pytest.fixture
def model(tmp_path):
    return typed(tmp_path)


@pytest.fixture
def retrained(tmp_path):
    """The same graph with other weights."""
    return typed(tmp_path / "retrained", replace(UNET, seed=1))


def test_an_engine_is_built_once_and_loaded_from_then_on(cache, model):
    runtime = FakeRuntime()
    assert [supply(runtime, cache, model, SPEC).how for _ in range(3)] == ["built", "loaded", "loaded"]
    assert len(runtime.builds) == 1


def test_news_of_a_build_are_told(cache, model):
    told = []
    supply(FakeRuntime(), cache, model, SPEC, told.append)
    assert told == ["building: 50%"]


def test_other_weights_are_put_into_a_loaded_engine_and_never_built(cache, model, retrained):
    runtime = FakeRuntime()
    assert model.graph_sha256 == retrained.graph_sha256
    first = supply(runtime, cache, model, REFITTABLE)
    second = supply(runtime, cache, retrained, REFITTABLE)
    assert (first.how, second.how, len(runtime.builds)) == ("built", "refitted", 1)
    assert second.engine.weights == retrained.weights_sha256
    assert first.engine.weights == model.weights_sha256
    assert first.engine is not second.engine


def test_a_refit_that_is_refused_leads_to_a_build_with_these_weights(cache, model, retrained, caplog):
    runtime = FakeRuntime(refuses_refit=True)
    supply(runtime, cache, model, REFITTABLE)
    found = supply(runtime, cache, retrained, REFITTABLE)
    assert (found.how, found.engine.weights) == ("built", retrained.weights_sha256)
    assert found.key.weights_sha256 == retrained.weights_sha256
    assert runtime.loaded[1].closed
    assert "cannot replace the weights ['w']" in caplog.text
    assert supply(runtime, cache, model, REFITTABLE).engine.weights == model.weights_sha256


def test_without_refit_other_weights_are_another_engine(cache, model, retrained):
    runtime = FakeRuntime()
    assert [supply(runtime, cache, one, SPEC).how for one in (model, retrained, model)] == ["built", "built", "loaded"]


def test_a_build_that_fails_says_why_and_leaves_nothing(cache, model):
    with pytest.raises(ModelError, match="node conv_3"):
        supply(FakeRuntime(refuses_to_build=True), cache, model, SPEC)
    assert supply(FakeRuntime(), cache, model, SPEC).how == "built"


def test_timings_of_one_build_help_the_next(cache, model, retrained):
    runtime = FakeRuntime()
    supply(runtime, cache, model, SPEC)
    supply(runtime, cache, retrained, SPEC)
    assert runtime.builds == [b"", b"+"]
    assert runtime.merged == [(b"+", b"++")]


def test_a_file_that_the_runtime_refuses_is_built_again(cache, model):
    runtime = FakeRuntime()
    cache.get_or_build(runtime.key(model, SPEC), lambda log: b"foreign")
    assert supply(runtime, cache, model, SPEC).how == "built"


def test_many_who_want_one_engine_cause_one_build(cache, model):
    runtime, found = FakeRuntime(), []
    threads = [threading.Thread(target=lambda: found.append(supply(runtime, cache, model, SPEC))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runtime.builds) == 1
    assert sorted(one.how for one in found) == ["built", "loaded", "loaded", "loaded"]


@pytest.mark.parametrize("spec", [UNET, AdvectionSpec((8.0, 8.0), (-10, 0), (10, 20), max_speed_km_h=60.0)])
def test_an_engine_file_of_onnx_runtime_gives_the_same_bits_as_its_model(spec, cache, tmp_path):
    model = typed(tmp_path, spec)
    batch = np.random.default_rng(0).gamma(1, 2, (2, 2, 256, 192)).astype(np.float32)
    engines = [supply(OnnxRuntime(), cache, model, SPEC).engine for _ in range(2)]
    for engine in engines:
        np.testing.assert_array_equal(engine(batch), OrtEngine(model.path)(batch))
        assert engine.specs == OrtEngine(model.path).specs


def test_a_broken_engine_file_of_onnx_runtime_is_one_clear_error():
    with pytest.raises(ModelError, match="ONNX Runtime cannot load an engine file"):
        OnnxRuntime().load(b"no graph at all")


def test_without_a_gpu_auto_is_onnx_runtime_and_tensorrt_is_refused(monkeypatch):
    monkeypatch.setattr(supply_module.cuda, "device_count", lambda: 0)
    assert isinstance(find_runtime(), OnnxRuntime)
    with pytest.raises(EngineError):
        find_runtime("tensorrt")


def test_weights_kept_beside_the_model_are_typed_too(tmp_path):
    package = write_package(UNET, tmp_path / "package")
    whole = typed(tmp_path / "whole", precision="half")
    onnx.save(onnx.load(package / "model.onnx"), package / "model.onnx", save_as_external_data=True,
              location="weights.bin", size_threshold=64)  # fmt: skip
    split = type_model(load_package(package), Precision("half"), tmp_path / "graphs")
    assert (split.graph_sha256, split.weights_sha256) == (whole.graph_sha256, whole.weights_sha256)
    assert numpy_helper.to_array(onnx.load(split.path).graph.initializer[0]).size


def test_an_engine_file_of_onnx_runtime_holds_weights_that_lay_beside_the_model(cache, tmp_path):
    folder = write_package(UNET, tmp_path / "spread")
    batch = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    wanted = OrtEngine(folder / "model.onnx")(batch)
    graph = onnx.load(folder / "model.onnx")
    onnx.save(graph, folder / "model.onnx", save_as_external_data=True, location="w", size_threshold=99)
    model = type_model(load_package(folder), Precision(), tmp_path)
    supply(OnnxRuntime(), cache, model, SPEC).engine.close()
    (folder / "w").unlink()
    np.testing.assert_array_equal(supply(OnnxRuntime(), cache, model, SPEC).engine(batch), wanted)
