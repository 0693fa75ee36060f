"""TensorRT as a runtime, on every recorded release: keys, headers, precision obtained, timing caches, refit."""

import json
from dataclasses import replace

import pytest

from engines.base import EngineError
from engines.graph import count_narrow_weights
from engines.model import load_package
from engines.precision import Precision
from engines.spec import BuildSpec, Profile
from engines.trt import runtime as runtime_module
from engines.trt.builder import Built
from engines.trt.header import Header, read_header, refuse_header
from engines.trt.progress import Progress
from engines.trt.report import BuildReport, count_engine_layers, is_too_small_for_float32, obtained
from engines.trt.runtime import TensorRTRuntime
from engines.trt.timing import merge_timings
from engines.typed import PrecisionError, type_model
from engines.zoo import UnetSpec, write_package

SPEC = BuildSpec((Profile.up_to((1, 2, 64, 48)),))
REFITTABLE = replace(SPEC, flags=frozenset({"REFIT"}))


def plan(*version: int, magic: bytes = b"ftrt") -> bytes:
    return magic + bytes(20) + bytes(version) + bytes(100)


@pytest.fixture
def runtime(surface, host_cuda, monkeypatch):
    monkeypatch.setattr(runtime_module, "load_surface", lambda: surface)
    return TensorRTRuntime()


@pytest.fixture
def half(tmp_path):
    package = load_package(write_package(UnetSpec(width=2, depth=1, frames=2, leads=2), tmp_path / "package"))
    return type_model(package, Precision("half"), tmp_path / "graphs")


LARGE = 1 << 30


def report(engine_layers, network_layers=None, flags=(), size=LARGE):
    return BuildReport("tensorrt 8.6.1", 1.0, size, flags, network_layers or {"float32": 3}, engine_layers, False)


@pytest.fixture
def built_as(monkeypatch):
    """Builds come out with layers of these types, in engine files of this size."""

    def arrange(layers, size=LARGE):
        built = Built(plan(8, 6, 0, 12), b"timings", report(layers, size=size))
        monkeypatch.setattr(runtime_module, "build", lambda path, spec, timing_cache, on_progress: built)

    return arrange


def test_a_key_names_the_gpu_and_of_refittable_engines_no_weights(runtime, half):
    key = runtime.key(half, SPEC)
    assert (key.gpu, key.multiprocessors, key.weights_sha256) == ("Stand-in", 132, half.weights_sha256)
    assert runtime.key(half, REFITTABLE).weights_sha256 is None
    assert runtime.label.endswith("on Stand-in")


def test_half_that_came_out_as_float32_is_refused(runtime, half, built_as):
    built_as({"float32": 18, "unknown": 8})
    with pytest.raises(PrecisionError, match=r"is half, but the engine .* computes in float32"):
        runtime.build(half, SPEC, b"", lambda text: None)


@pytest.mark.parametrize(("layers", "found"), [({"float16": 18, "float32": 1}, "half"), ({"unknown": 26}, "unknown")])
def test_what_a_build_obtained_is_kept_with_the_file(runtime, half, built_as, layers, found):
    built_as(layers)
    built = runtime.build(half, REFITTABLE, b"", lambda text: None)
    assert built.notes["obtained"] == found
    assert json.loads(built.notes["report"])["engine_layers"] == layers
    assert json.loads(built.notes["weights"])


def test_where_layers_tell_nothing_an_engine_too_small_for_float32_shows_that_it_is_half(runtime, half, built_as):
    weights = count_narrow_weights(half.path)
    for size, found in ((4 * weights - 1, "half"), (4 * weights, "unknown")):
        built_as({"unknown": 26}, size)
        assert runtime.build(half, SPEC, b"", lambda text: None).notes["obtained"] == found
    assert not is_too_small_for_float32(report({"unknown": 26}, flags=("STRIP_PLAN",), size=1), weights)


def test_a_build_is_told_with_a_bar_where_tensorrt_says_how_far_it_is(runtime, half, monkeypatch):
    told, done = [], Built(plan(8, 6, 0, 12), b"timings", report({"float16": 18}))

    def building(path, spec, timing_cache, on_progress):
        on_progress(Progress("timing kernels", 0.25, 12.3))
        on_progress(Progress("building", None, 13.0))
        return done

    monkeypatch.setattr(runtime_module, "build", building)
    runtime.build(half, SPEC, b"", told.append)
    assert told == [f"building: {'━' * 5}{'╌' * 15} 25%, 12 s (timing kernels)", "building: 13 s (building)"]


def test_another_precision_can_be_allowed(surface, host_cuda, monkeypatch, half, built_as):
    monkeypatch.setattr(runtime_module, "load_surface", lambda: surface)
    built_as({"float32": 18})
    assert TensorRTRuntime(allow=True).build(half, SPEC, b"", lambda text: None).notes["obtained"] == "float32"


def test_only_an_engine_of_tensorrt_can_be_refitted_by_it(runtime, half):
    with pytest.raises(EngineError, match="cannot be refitted by TensorRT"):
        runtime.refit(object(), half, {})


def test_without_a_gpu_there_is_no_tensorrt(surface, no_gpu, monkeypatch):
    monkeypatch.setattr(runtime_module, "load_surface", lambda: surface)
    with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
        TensorRTRuntime()


def test_timing_caches_are_merged_and_what_cannot_be_read_is_left_out(surface, host_cuda):
    assert merge_timings(surface, b"kept", b"fresh") == b"host memory"
    surface.module.refuse["ITimingCache.combine"] = False
    assert merge_timings(surface, b"of another GPU", b"fresh") == b"fresh"


@pytest.mark.parametrize(
    ("layers", "network", "flags", "found"),
    [
        ({"int8": 2, "float16": 1}, None, (), "int8"),
        ({"float16": 1, "float32": 9}, None, (), "half"),
        ({"float32": 9, "unknown": 1}, None, (), "float32"),
        ({"unknown": 9}, None, (), None),
        (None, {"float16": 2, "float32": 3}, ("STRONGLY_TYPED",), "half"),
        (None, {"float32": 3}, (), None),
        ({"unknown": 9}, {"float16": 2, "float32": 3}, ("STRONGLY_TYPED",), "half"),
    ],
)
def test_what_an_engine_computes_in_is_read_off_its_layers(layers, network, flags, found):
    assert obtained(report(layers, network, flags)) == found


def test_where_types_of_tensors_are_not_told_those_of_weights_count():
    tensor = {"Name": "t", "Format/Datatype": "N/A due to dynamic shapes"}
    layers = [{"Inputs": [tensor], "Outputs": [tensor], "Weights": {"Type": "Half", "Count": 576}},
              {"Inputs": [tensor], "Outputs": [tensor]}]  # fmt: skip
    assert count_engine_layers(json.dumps({"Layers": layers})) == {"float16": 1, "unknown": 1}


@pytest.mark.parametrize(
    ("data", "version"),
    [(plan(8, 6, 0, 12), "8.6.0.12"), (plan(1, 7, 1, 116, magic=b"vtrt"), "1.7.1.116")],
)
def test_the_header_names_the_release_that_built(data, version):
    assert str(read_header(data)) == version


@pytest.mark.parametrize("data", [b"", b"ftrt", plan(8, 6, 0, 12, magic=b"ONNX"), b"\x08\x08\x12\x05torch" * 20])
def test_what_is_no_engine_file_has_no_header(data, surface):
    assert read_header(data) is None
    assert "are no engine file of TensorRT" in refuse_header(surface, data)


def test_an_engine_file_of_another_release_is_refused_before_tensorrt_sees_it(surface, runtime):
    major, minor = (int(part) for part in surface.version.split(".")[:2])
    assert refuse_header(surface, plan(major, minor, 99, 1)) is None
    assert f"built by TensorRT {Header((major, minor + 1, 0, 0))}; this is" in runtime.refuse(
        plan(major, minor + 1, 0, 0)
    )
