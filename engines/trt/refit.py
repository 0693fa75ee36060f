"""Other weights for an engine that was built with REFIT: seconds instead of a build. Never on an engine in use."""

import hashlib
from collections.abc import Mapping
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


def refit(
    surface: Surface, engine: Any, model: Path, previous: Mapping[str, str], logger: Any, journal: Journal
) -> tuple[str, ...]:
    """Names of the weights in which an ONNX file differs from what an engine was built from, now the engine's.

    Args:
        engine: of TensorRT, built with REFIT.
        previous: `digest_weights` of the ONNX file that it was built from.

    Raises:
        EngineError: the engine is not refittable, a weight that differs cannot be replaced in it, or TensorRT
            refuses; the engine may then be half refitted: build again.
    """
    if not engine.refittable:
        raise EngineError("the engine was not built with the flag REFIT; build it again with the new weights")
    new = _weights(model)
    if new.keys() != previous.keys():
        strangers = sorted(new.keys() ^ previous.keys())
        raise EngineError(f"{model} and the engine do not have the same weights: {strangers}; build again")
    differing = {name for name, values in new.items() if _digest(values) != previous[name]}
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


def digest_weights(model: Path) -> dict[str, str]:
    """Of every weight of an ONNX file, by its name: a digest of type, shape and values."""
    return {name: _digest(values) for name, values in _weights(model).items()}


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


def _digest(values: NDArray[Any]) -> str:
    return hashlib.sha256(f"{values.dtype.str} {values.shape} ".encode() + values.tobytes()).hexdigest()[:32]
