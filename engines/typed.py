"""The graph of a model in one precision: the same ONNX file is judged by the gate and built by every runtime."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from engines.base import ModelError
from engines.files import replace_file
from engines.graph import digests, first_line
from engines.model import ModelPackage
from engines.precision import (
    CONVERTER_VERSION,
    Conversion,
    Precision,
    emulate_half,
    record_conversion,
    to_half,
    to_half_ports,
    to_int8,
)

Tensor = NDArray[np.float32]


class PrecisionError(ModelError):
    """A precision was asked for that the graph or the engine built from it does not have."""


@dataclass(frozen=True)
class TypedModel:
    """An ONNX file in one precision, with the record of its conversion and its digests (sha256, hex)."""

    path: Path
    conversion: Conversion
    graph_sha256: str
    weights_sha256: str

    @property
    def precision(self) -> Precision:
        """As asked for."""
        return self.conversion.asked


def type_model(
    package: ModelPackage, precision: Precision, home: Path, calibration: Sequence[Tensor] = (), allow: bool = False
) -> TypedModel:
    """The model of a package in a precision; what was rewritten before, from the same bytes, is taken from `home`.

    Args:
        home: folder of rewritten graphs, which may be deleted at any time; made if need be.
        calibration: (n, channel, h, w) inputs in model space for int8, the extremes among them.
        allow: take a graph that has no operator to compute in the precision asked for.

    Raises:
        ModelError: the rewrite refuses the graph, or int8 is asked for without calibration.
        PrecisionError: nothing of the graph is in the precision asked for.
    """
    if precision == Precision():
        model = onnx.load(package.onnx_path, load_external_data=False)
        return TypedModel(
            package.onnx_path, record_conversion(precision, model), package.graph_sha256, package.weights_sha256
        )
    path = home / _content(package, precision, calibration) / "model.onnx"
    model = _kept(path)
    if model is None:
        _save(_rewrite(onnx.load(package.onnx_path), precision, calibration), path.parent)
        model = _load(path)
    return _honoured(path, model, precision, allow)


def open_typed(path: Path, precision: Precision, allow: bool = False) -> TypedModel:
    """A graph that was rewritten before.

    Raises:
        ModelError: it is no ONNX file.
        PrecisionError: nothing of the graph is in the precision asked for.
    """
    return _honoured(path, _load(path), precision, allow)


def _honoured(path: Path, model: onnx.ModelProto, precision: Precision, allow: bool) -> TypedModel:
    conversion = record_conversion(precision, model)
    if not (conversion.is_honoured or allow):
        raise PrecisionError(
            f"{precision} was asked of {path.name}, but the graph is {conversion.obtained} ({conversion.layers}); "
            f"ask for {conversion.obtained}"
        )
    return TypedModel(path, conversion, *digests(model, path.parent))


def write_emulated(model: TypedModel, folder: Path) -> Path:
    """A float32 graph that rounds as a device would that computes the half of `model` in half; itself if it has none.

    ONNX Runtime computes half in float32 on a CPU, so there only this graph shows what half costs.
    """
    if not model.conversion.layers.half:
        return model.path
    _save(emulate_half(onnx.load(model.path)), folder)
    return folder / "model.onnx"


def _rewrite(model: onnx.ModelProto, precision: Precision, calibration: Sequence[Tensor]) -> onnx.ModelProto:
    if precision.is_packed:
        raise ModelError(f"{precision} needs the packing of the product; use engines.precision.pack_io")
    match precision.arithmetic:
        case "int8":
            if not calibration:
                raise ModelError(
                    "int8 needs inputs to calibrate on, the extremes among them; found none, and no graphs/int8.onnx "
                    "in the package; expected a version of the registry, published in int8"
                )
            return to_int8(model, calibration)
        case "half":
            return to_half_ports(to_half(model))
        case _:
            return model


def _content(package: ModelPackage, precision: Precision, calibration: Sequence[Tensor]) -> str:
    """A name for the rewritten graph that stands for everything that it is made from."""
    total = hashlib.sha256(f"{package.graph_sha256} {package.weights_sha256} {precision} {CONVERTER_VERSION}".encode())
    for array in calibration if precision.arithmetic == "int8" else ():
        total.update(f"{array.shape}".encode() + np.ascontiguousarray(array, "<f4").tobytes())
    return f"{package.contract.name}-{precision}-{total.hexdigest()[:16]}"


def _kept(path: Path) -> onnx.ModelProto | None:
    """A graph that was rewritten before; None also for what a machine that failed has left empty or in part."""
    try:
        return _load(path)
    except ModelError:
        return None


def _load(path: Path) -> onnx.ModelProto:
    """A graph with its weights.

    Raises:
        ModelError: there is no such file, or it is no ONNX file.
    """
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's DecodeError has moved between releases
        raise ModelError(f"{path} is no ONNX file or is truncated: {first_line(error)}") from error
    if not model.graph.node:
        raise ModelError(f"{path} is no ONNX file or is truncated: it holds no operators")
    return model


def _save(model: onnx.ModelProto, folder: Path) -> None:
    """Puts `model.onnx` into a folder in one step."""
    replace_file(folder / "model.onnx", model.SerializeToString(deterministic=True))
