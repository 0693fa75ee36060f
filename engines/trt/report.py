"""What a build gave: the precision obtained, as the engine itself tells it, never the one asked for."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from engines.base import EngineError
from engines.precision import Arithmetic
from engines.trt.surface import Surface

# Words of the inspector for types, in all releases; a format says `Half` in one and `FP16` in another.
WORDS = {
    "float32": r"fp32|float",
    "float16": r"fp16|half",
    "bfloat16": r"bf16|bfloat16",
    "float8": r"fp8|float8\w*",
    "float4": r"fp4|float4\w*",
    "int8": r"int8",
    "uint8": r"uint8",
    "int4": r"int4",
    "int32": r"int32",
    "int64": r"int64",
    "bool": r"bool",
}


@dataclass(frozen=True)
class BuildReport:
    """What a build gave.

    Args:
        tensorrt: flavour and version that built it.
        seconds: of the builder alone.
        engine_bytes: size of the engine file.
        flags: names of the flags that were on.
        network_layers: layers of the network by type, as parsed.
        engine_layers: layers of the engine by the type they compute in; None where no GPU could load the engine.
        has_progress: whether this TensorRT tells how far it is.
        warnings: what TensorRT warned of, each once.
    """

    tensorrt: str
    seconds: float
    engine_bytes: int
    flags: tuple[str, ...]
    network_layers: Mapping[str, int]
    engine_layers: Mapping[str, int] | None
    has_progress: bool
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """The report that `to_json` wrote."""
        return cls(**{**tree, "flags": tuple(tree["flags"]), "warnings": tuple(tree["warnings"])})


def inspect_engine(surface: Surface, engine: Any) -> str:
    """The engine inspector's JSON: every layer with its tensors; detailed only if it was built so.

    Raises:
        EngineError: it returned nothing.
    """
    text = engine.create_engine_inspector().get_engine_information(surface.members("LayerInformationFormat")["JSON"])
    if not text:
        raise EngineError("the engine inspector returned nothing")
    return str(text)


def count_engine_layers(inspection: str) -> dict[str, int]:
    """Layers of an engine by the type that they compute in, most first.

    That is the narrowest floating-point type among the inputs of a layer (its outputs, if it has none), int8 before
    all: a convolution that takes half and gives float computes in half. Where shapes are dynamic, 8.6 tells no types of
    tensors; there the type of the layer's weights counts. A layer without details is `unknown`.

    >>> count_engine_layers('{"Layers": [{"Inputs": [{"Format/Datatype": "Half"}], "Outputs": []}, "a name"]}')
    {'float16': 1, 'unknown': 1}
    """
    layers = json.loads(inspection, strict=False)["Layers"]  # 8.6 leaves line ends inside strings
    return dict(Counter(_computed_in(layer) for layer in layers).most_common())


def obtained(report: BuildReport) -> Arithmetic | None:
    """What the layers of an engine compute in: int8 or half if one does, else float32; None if it does not say.

    Where no GPU could load the engine, or its layers tell no types, a typed network answers for it.
    """
    layers = report.engine_layers
    if _is_silent(layers) and "STRONGLY_TYPED" in report.flags:
        layers = report.network_layers
    if layers is None or _is_silent(layers):
        return None
    return "int8" if layers.get("int8") else "half" if layers.get("float16") else "float32"


def is_too_small_for_float32(report: BuildReport, weights: int) -> bool:
    """True if an engine file with so many weights in it cannot hold them as float32: they are narrower."""
    return "STRIP_PLAN" not in report.flags and report.engine_bytes < weights * np.dtype(np.float32).itemsize


def _is_silent(layers: Mapping[str, int] | None) -> bool:
    return not layers or set(layers) == {"unknown"}


def _computed_in(layer: Any) -> str:
    if not isinstance(layer, dict):
        return "unknown"
    tensors = layer.get("Inputs") or layer.get("Outputs") or []
    types = {_type_in(str(tensor.get("Format/Datatype", tensor.get("Datatype", "")))) for tensor in tensors}
    if types <= {"unknown"} and isinstance(layer.get("Weights"), dict):
        types = {_type_in(str(layer["Weights"].get("Type", "")))}
    order = ("int4", "float4", "int8", "float8", "float16", "bfloat16", "float32")
    return next((kind for kind in order if kind in types), min(types, default="unknown"))


def _type_in(text: str) -> str:
    found = [kind for kind, words in WORDS.items() if re.search(rf"(?<![a-z0-9])(?:{words})(?![a-z0-9])", text, re.I)]
    return found[0] if found else "unknown"
