"""Every call that we make of TensorRT, against the recorded names of every release; every refused call is an error."""

import logging
from dataclasses import replace

import pytest

from engines.base import EngineError, ModelError
from engines.spec import BuildSpec, Profile
from engines.trt.builder import build_here
from engines.trt.progress import new_monitor
from engines.trt.surface import load_surface

SPEC = BuildSpec((Profile((1, 2, 8, 8), (2, 2, 16, 16), (4, 2, 16, 16)),), workspace_bytes=1 << 30, level=2)
FULL = replace(SPEC, flags=frozenset({"REFIT", "TF32"}))


def build(surface, model, spec=SPEC, cache=b"", sink=lambda level, message: None):
    return build_here(surface, model, spec, cache, sink, new_monitor(surface, lambda phase, share: None))


def calls(surface, name):
    return [given for called, given in surface.module.calls if called == name]


def test_a_build_uses_only_names_that_the_release_has(surface, conv, host_cuda):
    built = build(surface, conv, FULL)
    assert built.engine == b"host memory"
    assert built.report.tensorrt == f"{surface.flavour} {surface.version}"
    assert built.report.engine_layers == {"float32": 1}
    assert {"REFIT", "TF32"} <= set(built.report.flags)
    assert calls(surface, "IBuilderConfig.set_memory_pool_limit") == [
        (surface.module.MemoryPoolType.WORKSPACE, 1 << 30)
    ]
    assert calls(surface, "IBuilderConfig.builder_optimization_level=") == [(2,)]


def test_float32_means_float32_unless_tf32_is_asked_for(surface, conv, host_cuda):
    assert "TF32" not in build(surface, conv).report.flags


def test_a_half_graph_is_honoured_by_a_typed_network_or_by_flags_and_constraints(surface, mixed, host_cuda):
    report = build(surface, mixed).report
    held = [name for name, _ in surface.module.calls if name == "ILayer.precision="]
    if "STRONGLY_TYPED" in surface.members("NetworkDefinitionCreationFlag"):
        assert set(report.flags) == {"STRONGLY_TYPED"}
        assert not held
    else:
        assert set(report.flags) == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}
        assert (
            len(held) == 2
        )  # the float32 convolution and the layer the parser added; no constant, no half convolution


def test_a_flag_that_a_release_lacks_is_refused_with_those_that_it_has(surface, conv, host_cuda):
    with pytest.raises(EngineError, match=r"has no flag NO_SUCH_FLAG; it has .*REFIT"):
        build(surface, conv, replace(SPEC, flags=frozenset({"NO_SUCH_FLAG"})))


def test_half_by_flag_where_there_is_such_a_flag_makes_an_untyped_network(surface, mixed, host_cuda):
    spec = replace(SPEC, flags=frozenset({"FP16"}))
    if "FP16" in surface.members("BuilderFlag"):
        assert build(surface, mixed, spec).report.flags == ("FP16",)
        assert not calls(surface, "ILayer.precision=")
    else:
        with pytest.raises(EngineError, match="has no flag FP16"):
            build(surface, mixed, spec)


def test_a_graph_that_the_parser_refuses_is_told_by_node_operator_and_way_out(surface, mixed, host_cuda):
    surface.module.refuse["OnnxParser.parse_from_file"] = False
    with pytest.raises(ModelError, match=r"node half_conv \(Conv\): UNSUPPORTED_NODE; .*ONNX Runtime"):
        build(surface, mixed)


@pytest.mark.parametrize(
    ("call", "refusal", "message"),
    [
        ("Builder.build_serialized_network", None, "cannot build model.onnx: TensorRT gives no reason"),
        ("IBuilderConfig.add_optimization_profile", -1, "refuses the optimization profile"),
        ("Runtime.deserialize_cuda_engine", None, "cannot load the engine that it has just built"),
        ("EngineInspector.get_engine_information", "", "inspector returned nothing"),
    ],
)
def test_a_refused_call_is_an_error(surface, conv, host_cuda, call, refusal, message):
    if call.startswith("Runtime") and surface.builds_without_gpu:
        pytest.skip("may have been built for other GPUs than the one here")
    surface.module.refuse[call] = refusal
    with pytest.raises(EngineError, match=message):
        build(surface, conv)


@pytest.mark.parametrize(
    ("call", "refusal"), [("IBuilderConfig.set_timing_cache", False), ("IBuilderConfig.create_timing_cache", None)]
)
def test_a_timing_cache_that_is_refused_is_left_aside_with_a_warning(surface, conv, host_cuda, call, refusal):
    surface.module.refuse[call] = refusal
    built = build(surface, conv, cache=b"of another GPU")
    assert (built.engine, built.timing_cache) == (b"host memory", b"")
    assert built.report.warnings == (
        "the timing cache of 14 bytes is of another GPU or TensorRT",
        "TensorRT takes no timing cache; the next build measures again",
    )
    assert [given[0] for given in calls(surface, "IBuilderConfig.create_timing_cache")] == [b"of another GPU", b""]


def test_without_a_gpu_only_a_release_that_can_builds(surface, conv, no_gpu):
    if surface.builds_without_gpu:
        assert build(surface, conv).report.engine_layers is None
    else:
        with pytest.raises(EngineError, match=r"building an engine with tensorrt \S+ needs an NVIDIA GPU.*NoDevice"):
            build(surface, conv)


def test_a_profile_that_does_not_fit_the_model_is_refused_before_the_build(surface, conv, host_cuda):
    with pytest.raises(ModelError, match=r"does not fit the input x of the model, which is \?x2x\?x\?"):
        build(surface, conv, BuildSpec((Profile.up_to((1, 4, 8, 8)),)))


def test_the_log_of_tensorrt_arrives_with_the_levels_of_logging(surface):
    heard = []
    logger = surface.new_logger(lambda level, message: heard.append((level, message)))
    for name in ("VERBOSE", "INFO", "WARNING", "ERROR", "INTERNAL_ERROR"):
        logger.log(surface.module.ILogger.Severity[name], name)
    assert [level for level, _ in heard] == [
        logging.DEBUG,
        logging.INFO,
        logging.WARNING,
        logging.ERROR,
        logging.CRITICAL,
    ]


def test_the_stand_in_refuses_what_its_release_lacks(surface):
    config = surface.module.Builder(surface.new_logger(print)).create_builder_config()
    with pytest.raises(AttributeError):
        config.max_batch_size_of_another_release = 1
    with pytest.raises(TypeError):
        config.set_flag("FP16")
    with pytest.raises(AttributeError):
        config.set_flags(0)


def test_releases_differ_where_we_say_they_do(surface):
    is_old = surface.version.startswith("8.")
    assert surface.reports_progress is not is_old
    assert hasattr(surface.module.IExecutionContext, "set_device_memory") is not surface.version.startswith(
        ("8.", "10.0")
    )


def test_a_machine_without_tensorrt_says_so_in_one_sentence():
    load_surface.cache_clear()
    with pytest.raises(
        EngineError, match=r"TensorRT is not installed here, install squall\[tensorrt\] \(no_such_trt: "
    ):
        load_surface("no_such_trt")


def test_the_surface_is_the_first_module_that_can_be_imported(monkeypatch):
    load_surface.cache_clear()
    monkeypatch.setattr("engines.trt.surface.MODULES", ("no_such_trt", "json"))
    assert load_surface().module.__name__ == "json"
    load_surface.cache_clear()
