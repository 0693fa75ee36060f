"""Other weights for an engine that was built with REFIT: seconds instead of a build. Never on an engine in use."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from engines.base import EngineError
from engines.trt.builder import Journal
from engines.trt.surface import Surface

Weights = dict[str, NDArray[Any]]


def refit(surface: Surface, engine: Any, model: Path, previous: Path, logger: Any, journal: Journal) -> tuple[str, ...]:
    """Names of the weights that differ between two ONNX files of one graph, now the engine's.

    Args:
        engine: of TensorRT, built from `previous` with REFIT.

    Raises:
        EngineError: the engine is not refittable, a weight that differs cannot be replaced in it, or TensorRT
            refuses; the engine may then be half refitted: build again.
    """
    if not engine.refittable:
        raise EngineError("the engine was not built with the flag REFIT; build it again with the new weights")
    new, old = _weights(model), _weights(previous)
    if new.keys() != old.keys():
        raise EngineError(f"{model} and {previous} do not have the same weights: {sorted(new.keys() ^ old.keys())}")
    differing = {name for name in new if not _same(new[name], old[name])}
    refitter = surface.module.Refitter(engine, logger)
    replaceable = set(refitter.get_all_weights())
    if differing - replaceable:
        raise EngineError(f"TensorRT cannot replace the weights {sorted(differing - replaceable)}; build again")
    _replace(surface, refitter, model, {name: new[name] for name in new.keys() & replaceable}, logger, journal)
    missing = refitter.get_missing_weights()
    if missing:
        raise EngineError(f"the refit lacks the weights {sorted(missing)}; build again")
    if not refitter.refit_cuda_engine():
        raise EngineError(f"TensorRT refuses the refit: {journal.reason()}; build again")
    return tuple(sorted(differing))


def _replace(surface: Surface, refitter: Any, model: Path, weights: Weights, logger: Any, journal: Journal) -> None:
    """Hand over the weights: through the ONNX parser where it can, else by their names."""
    if hasattr(surface.module, "OnnxParserRefitter"):
        parser = surface.module.OnnxParserRefitter(refitter, logger)
        if not parser.refit_from_file(str(model)):
            raise EngineError(f"TensorRT refuses the refit from {model}: {journal.reason()}; build again")
        return
    for name, values in sorted(weights.items()):
        if not refitter.set_named_weights(name, surface.module.Weights(values)):
            raise EngineError(f"TensorRT refuses the weight {name} of {model}: {journal.reason()}; build again")


def _weights(path: Path) -> Weights:
    """The initializers of an ONNX file by name; TensorRT keeps pointers to them until the refit is done."""
    tensors = onnx.load(path).graph.initializer
    return {tensor.name: np.ascontiguousarray(numpy_helper.to_array(tensor)) for tensor in tensors}


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
