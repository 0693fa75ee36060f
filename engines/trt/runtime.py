"""TensorRT as a runtime: keys for one GPU, builds whose precision is verified, loading and refitting."""

import json
import logging
from collections.abc import Callable, Mapping

from engines import cuda
from engines.base import Engine, EngineError
from engines.graph import count_narrow_weights
from engines.runtime import BuiltFile
from engines.spec import BuildSpec, EngineKey
from engines.trt.build import build
from engines.trt.engine import TensorRTEngine
from engines.trt.header import refuse_header
from engines.trt.memory import LANES
from engines.trt.progress import Progress
from engines.trt.refit import digest_weights
from engines.trt.report import BuildReport, is_too_small_for_float32, obtained
from engines.trt.surface import load_surface
from engines.trt.timing import merge_timings
from engines.typed import PrecisionError, TypedModel

log = logging.getLogger(__name__)

REFIT = "REFIT"
BAR = 20  # characters


class TensorRTRuntime:
    """TensorRT on one GPU.

    Args:
        device: number of the GPU.
        allow: keep an engine that came out in another precision than its graph.
        lanes: batches on their way at once in an engine.

    Raises:
        EngineError: TensorRT is not installed, or there is no such GPU.
    """

    def __init__(self, device: int = 0, allow: bool = False, lanes: int = LANES) -> None:
        self._surface = load_surface()
        cuda.require_device(f"running engines with {self._surface.flavour} {self._surface.version}")
        self._device, self._gpu, self._allow = device, cuda.describe_device(device), allow
        self._lanes = lanes

    @property
    def label(self) -> str:
        return f"{self._surface.flavour} {self._surface.version} on {self._gpu.name}"

    def key(self, model: TypedModel, spec: BuildSpec) -> EngineKey:
        gpu = self._gpu
        return EngineKey(
            graph_sha256=model.graph_sha256,
            weights_sha256=None if REFIT in spec.flags else model.weights_sha256,
            precision=str(model.precision),
            converter=model.conversion.converter_version,
            profiles=tuple((profile.min, profile.opt, profile.max) for profile in spec.profiles),
            flags=spec.flags,
            workspace_bytes=spec.workspace_bytes,
            level=spec.level,
            flavour=self._surface.flavour,
            runtime_version=self._surface.version,
            gpu=gpu.name,
            compute_capability=gpu.compute_capability,
            multiprocessors=gpu.multiprocessors,
            memory_bytes=gpu.memory_bytes,
        )

    def build(self, model: TypedModel, spec: BuildSpec, timings: bytes, tell: Callable[[str], None]) -> BuiltFile:
        built = build(model.path, spec, timing_cache=timings, on_progress=lambda progress: tell(_line(progress)))
        found = _verified(model, built.report, self._allow)
        notes = {
            "obtained": found or "unknown",
            "report": json.dumps(built.report.to_json()),
            "weights": json.dumps(digest_weights(model.path)) if REFIT in spec.flags else "{}",
        }
        return BuiltFile(built.engine, notes, built.timing_cache)

    def merge(self, kept: bytes, fresh: bytes) -> bytes:
        return merge_timings(self._surface, kept, fresh)

    def refuse(self, data: bytes) -> str | None:
        return refuse_header(self._surface, data)

    def load(self, data: bytes) -> Engine:
        return TensorRTEngine(data, device=self._device, lanes=self._lanes)

    def refit(self, engine: Engine, model: TypedModel, notes: Mapping[str, str]) -> tuple[str, ...]:
        if not isinstance(engine, TensorRTEngine):
            raise EngineError(f"a {type(engine).__name__} cannot be refitted by TensorRT")
        return engine.refit(model.path, json.loads(notes.get("weights", "{}")))


def _line(progress: Progress) -> str:
    """How far a build is, in one line; a bar where TensorRT tells."""
    share = "" if progress.share is None else f"{'━' * round(progress.share * BAR):╌<{BAR}} {progress.share:.0%}, "
    return f"building: {share}{progress.seconds:.0f} s ({progress.phase})"


def _verified(model: TypedModel, report: BuildReport, allow: bool) -> str | None:
    """The arithmetic that the engine has by its layers, else by its size; None if neither says.

    Raises:
        PrecisionError: it is not that of the graph.
    """
    wanted, found = model.conversion.obtained.arithmetic, obtained(report)
    if found is None and wanted != "float32" and is_too_small_for_float32(report, count_narrow_weights(model.path)):
        found = wanted
    if found not in (None, wanted) and not allow:
        raise PrecisionError(
            f"{model.path.name} is {wanted}, but the engine that {report.tensorrt} built computes in {found} "
            f"(layers by type: {dict(report.engine_layers or report.network_layers)}); this GPU or TensorRT has no "
            f"{wanted} for it"
        )
    if found is None:
        log.warning(
            "%s does not tell the types of its layers, nor does the size of the engine; %s was asked for",
            report.tensorrt, wanted,
        )  # fmt: skip
    return found
