"""One build, in this process: what runs in the child. A native crash of the builder ends the process."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import cuda
from engines.base import EngineError, ModelError
from engines.spec import BuildSpec, Profile
from engines.trt.network import (
    Types,
    check_flags,
    count_types,
    explain,
    hold_to_float32,
    parse,
    read_types,
    type_ports,
    typing_flags,
)
from engines.trt.report import BuildReport, count_engine_layers, inspect_engine
from engines.trt.surface import LogSink, Surface


@dataclass(frozen=True)
class Built:
    """A built engine: the engine file, the timing cache to give to the next build, the report.

    `inspection` is the engine inspector's JSON, every layer with its tensors; empty where no GPU could load the engine.
    """

    engine: bytes
    timing_cache: bytes
    report: BuildReport
    inspection: str = ""


class Journal:
    """Passes TensorRT's log on, and keeps what a report or an error needs of it."""

    def __init__(self, sink: LogSink) -> None:
        self._sink = sink
        self.errors: list[str] = []
        self.warnings: dict[str, None] = {}

    def __call__(self, level: int, message: str) -> None:
        if level >= logging.ERROR:
            self.errors.append(message.strip())
        elif level == logging.WARNING:
            self.warnings[message.strip()] = None
        self._sink(level, message)

    def reason(self) -> str:
        """The last errors since this was last asked."""
        last, self.errors = self.errors[-3:], []
        return " | ".join(last) or "TensorRT gives no reason"


def build_here(
    surface: Surface, model: Path, spec: BuildSpec, timing_cache: bytes, sink: LogSink, monitor: Any = None
) -> Built:
    """An engine from an ONNX file.

    Raises:
        ModelError: the graph is refused; names the node.
        EngineError: no GPU to build on, an unknown flag, or the builder failed; names TensorRT's reason.
    """
    if not surface.builds_without_gpu:
        cuda.require_device(f"building an engine with {surface.flavour} {surface.version}")
    check_flags(surface, spec.flags)
    types = read_types(model)
    flags = spec.flags | typing_flags(surface, types, spec.flags)
    journal = Journal(sink)
    logger = surface.new_logger(journal)
    builder = surface.module.Builder(logger)
    network = surface.new_network(builder, flags)
    _fill(surface, network, model, types, flags, logger)
    config = _configure(surface, builder, network, spec, flags, monitor)
    cache = _attach(config, timing_cache, journal)
    started = time.monotonic()
    engine = builder.build_serialized_network(network, config)
    seconds = time.monotonic() - started
    if engine is None:
        raise _refusal(surface, model, spec, journal)
    engine = bytes(engine)
    inspection = _inspect(surface, engine, logger)
    report = BuildReport(
        tensorrt=f"{surface.flavour} {surface.version}",
        seconds=seconds,
        engine_bytes=len(engine),
        flags=_flags_on(surface, config, flags),
        network_layers=count_types(surface, network),
        engine_layers=count_engine_layers(inspection) if inspection else None,
        has_progress=monitor is not None,
        warnings=(*journal.warnings, *journal.errors),  # what it could do without
    )
    timings = bytes(cache.serialize()) if cache is not None else b""
    del cache, config, network, builder, logger  # 8.6 crashes unless they go in the reverse order of their making
    return Built(engine, timings, report, inspection)


def _fill(surface: Surface, network: Any, model: Path, types: Types, flags: frozenset[str], logger: Any) -> None:
    """Fills an empty network from an ONNX file, and holds to its types where the flags do not."""
    parse(surface, network, model, logger)
    if "STRONGLY_TYPED" not in flags:
        type_ports(surface, network, model)
    if "OBEY_PRECISION_CONSTRAINTS" in flags:
        hold_to_float32(surface, network, types)


def _refusal(surface: Surface, model: Path, spec: BuildSpec, journal: Journal) -> EngineError:
    reason = explain(journal.reason(), model, spec.workspace_bytes)
    return EngineError(f"{surface.flavour} {surface.version} cannot build {model.name}: {reason}")


def _configure(
    surface: Surface, builder: Any, network: Any, spec: BuildSpec, flags: frozenset[str], monitor: Any
) -> Any:
    config, known = builder.create_builder_config(), surface.members("BuilderFlag")
    config.clear_flag(known["TF32"])
    for name in sorted(flags & known.keys()):
        config.set_flag(known[name])
    if spec.workspace_bytes is not None:
        config.set_memory_pool_limit(surface.members("MemoryPoolType")["WORKSPACE"], spec.workspace_bytes)
    if spec.level is not None:
        config.builder_optimization_level = spec.level
    config.profiling_verbosity = surface.members("ProfilingVerbosity")["DETAILED"]
    for profile in spec.profiles:
        _add_profile(builder, config, network.get_input(0), profile)
    if monitor is not None:
        config.progress_monitor = monitor
    return config


def _add_profile(builder: Any, config: Any, given: Any, profile: Profile) -> None:
    shape = tuple(given.shape)
    fits = len(shape) == len(profile.min) and all(
        axis in (-1, low) and axis in (-1, high)
        for axis, low, high in zip(shape, profile.min, profile.max, strict=True)
    )
    if not fits:
        raise ModelError(
            f"the optimization profile {profile} does not fit the input {given.name} of the model, which is "
            f"{'x'.join('?' if axis == -1 else str(axis) for axis in shape)}"
        )
    wanted = builder.create_optimization_profile()
    wanted.set_shape(given.name, profile.min, profile.opt, profile.max)
    if config.add_optimization_profile(wanted) < 0:
        raise EngineError(f"TensorRT refuses the optimization profile {profile}")


def _attach(config: Any, timing_cache: bytes, journal: Journal) -> Any:
    """Start from the timings of earlier builds; those of another GPU or release are left aside with a warning.

    Returns:
        TensorRT's cache, None if it takes none. It must outlive the build: the config only points at it.
    """
    cache = _set_timings(config, timing_cache)
    if cache is None and timing_cache:
        journal(logging.WARNING, f"the timing cache of {len(timing_cache)} bytes is of another GPU or TensorRT")
        cache = _set_timings(config, b"")
    if cache is None:
        journal(logging.WARNING, "TensorRT takes no timing cache; the next build measures again")
    return cache


def _set_timings(config: Any, data: bytes) -> Any:
    cache = config.create_timing_cache(data)
    return cache if cache is not None and config.set_timing_cache(cache, False) else None


def _flags_on(surface: Surface, config: Any, flags: frozenset[str]) -> tuple[str, ...]:
    on = {name for name, flag in surface.members("BuilderFlag").items() if config.get_flag(flag)}
    return tuple(sorted(on | (flags & surface.members("NetworkDefinitionCreationFlag").keys())))


def _inspect(surface: Surface, engine: bytes, logger: Any) -> str:
    """The inspector's JSON; empty without a GPU, or where this GPU is not one of those built for."""
    if not cuda.device_count():
        return ""
    loaded = surface.module.Runtime(logger).deserialize_cuda_engine(engine)
    if loaded is not None:
        return inspect_engine(surface, loaded)
    if surface.builds_without_gpu:
        return ""
    raise EngineError(f"{surface.flavour} {surface.version} cannot load the engine that it has just built")
