"""INT8 as a rewrite: calibrated Q/DQ before heavy operators, and the choice of cases to calibrate on."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from engines.base import ModelError
from engines.graph import first_line
from engines.precision.layers import HEAVY, OPSETS, checked, prepared, replace_all, steering, value_types
from engines.scratch import scratch_folder

_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": sorted(HEAVY),  # a Q/DQ between Conv and Relu would end their fusion
}
QUANTIZED = HEAVY - {"ConvTranspose"}  # TensorRT 8.6 cannot build one that takes Q/DQ
_PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")  # without it ONNX Runtime configures the root logger
_log = logging.getLogger(__name__)


def to_int8(
    model: onnx.ModelProto,
    cases: Sequence[NDArray[np.float32]],
    keep_first: bool = False,
    keep_last: bool = True,
) -> onnx.ModelProto:
    """The model with Q/DQ before its heavy operators and on their weights; bias, I/O and all else stay float32.

    ConvTranspose stays float32, too: `to_half` afterwards makes it half.

    Symmetric, data by one scale a tensor that spans all that the cases reach, weights by one a channel. Operators that
    compute where data moves (the coordinates of GridSample) are left alone. The same model and cases give the same
    bytes. A model that has nothing to quantize comes back unchanged and the log says so.

    Args:
        model: opset 13 to 17, float32.
        cases: (n, channel, h, w) in model space, finite; the extremes that must survive are among them.
        keep_first: leave operators that read the input before any other heavy one in float32.
        keep_last: the same of those that make the output.

    Raises:
        ModelError: wrong opset, a model that is quantized already, or the result is not valid ONNX.
        ValueError: no case, or one that does not fit the input or is not finite (names it).

    Source: docs/decisions/010-precision-is-the-graph.md.
    """
    rewrite = prepared(model)
    _check_opset(rewrite)
    _check_cases(rewrite.graph, cases)
    chosen = _choose(rewrite, keep_first, keep_last)
    if not chosen:
        _log.info("graph %r has no operator to compute in int8: it stays as it is", model.graph.name)
        return model
    _name_kernels(rewrite.graph)
    return checked(_quantize(rewrite, chosen, cases), "the int8 rewrite")


def _name_kernels(graph: onnx.GraphProto) -> None:
    """Says the kernel's size in every convolution: TensorRT 8.6 cannot read it off weights that are dequantized."""
    shapes = {tensor.name: list(tensor.dims)[2:] for tensor in graph.initializer}
    for node in graph.node:
        named = {attribute.name for attribute in node.attribute}
        if node.op_type in ("Conv", "ConvTranspose") and "kernel_shape" not in named and node.input[1] in shapes:
            node.attribute.append(onnx.helper.make_attribute("kernel_shape", shapes[node.input[1]]))


def choose_cases(intensity: ArrayLike, count: int, extremes: int = 4) -> list[int]:
    """Positions of `count` cases, rising: the most intense ones, the calmest one, the rest spread over intensity.

    The range of intensities is cut into equal strata, so that the few strong cases weigh as much as the many weak
    ones. All cases if there are not more than `count`. Equal intensities are taken in order.

    Args:
        intensity: (case,) one finite number a case, such as its highest rain rate, mm h-1.
        count: cases wanted, at least 1.
        extremes: the most intense cases that are always in, at least 1; no more than `count`.

    Raises:
        ValueError: no case, an intensity that is not finite, or a count below 1.

    >>> choose_cases([0, 0, 0, 0, 1, 2, 3, 100], count=4, extremes=2)
    [0, 5, 6, 7]
    """
    values = np.asarray(intensity, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"intensity has shape {values.shape} or is not finite; expected one finite number a case")
    if count < 1 or extremes < 1:
        raise ValueError(f"count is {count} and extremes is {extremes}; both must be at least 1")
    count = min(count, len(values))
    chosen = [int(k) for k in np.argsort(-values, kind="stable")[: min(count, extremes)]]
    edges = np.linspace(values.max(), values.min(), max(1, count - len(chosen)))
    for wanted in [values.min(), *(edges[1:] + edges[:-1]) / 2][: count - len(chosen)]:
        distance = np.abs(values - wanted)
        distance[chosen] = np.inf
        chosen.append(int(distance.argmin()))
    return sorted(chosen)


class _Cases:
    """Cases kept in memory, one at a time, as ONNX Runtime's calibration asks for them."""

    def __init__(self, name: str, cases: Sequence[NDArray[np.float32]]) -> None:
        self._feeds = ({name: case} for case in cases)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)

    def __iter__(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        return self._feeds


def _quantize(model: onnx.ModelProto, chosen: set[str], cases: Sequence[NDArray[np.float32]]) -> onnx.ModelProto:
    entry = model.metadata_props.add()
    entry.key, entry.value = _PREPARED
    with scratch_folder("squall-scratch-int8-") as folder:
        path = folder / "model.onnx"
        try:
            quantize_static(
                model,
                path,
                _Cases(model.graph.input[0].name, cases),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=sorted(QUANTIZED),
                nodes_to_quantize=sorted(chosen),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                extra_options=dict(_OPTIONS),
            )
        except Exception as error:  # ONNX Runtime asserts, and raises unrelated types
            raise ModelError(
                f"graph {model.graph.name!r} cannot be quantized; int8 needs finite values before every heavy "
                f"operator in all cases (ask for half where float32 has none): {first_line(error)}"
            ) from error
        made = onnx.load(path)
    own = [entry for entry in model.metadata_props if entry.key != _PREPARED[0]]
    replace_all(made.metadata_props, own)
    made.producer_name, made.producer_version = model.producer_name, model.producer_version
    return made


def _choose(model: onnx.ModelProto, keep_first: bool, keep_last: bool) -> set[str]:
    """Names of the float32 heavy operators to quantize."""
    types, steers, graph = value_types(model), steering(model.graph), model.graph
    heavy = {node.name for node in graph.node if node.op_type in QUANTIZED}
    float32 = {node.name for node in graph.node if types.get(node.output[0]) == TensorProto.FLOAT}
    kept = steers | (_first(graph) if keep_first else set()) | (_last(graph) if keep_last else set())
    return (heavy & float32) - kept


def _first(graph: onnx.GraphProto) -> set[str]:
    """Names of the heavy operators that no other heavy one comes before."""
    behind: set[str] = set()
    first = set()
    for node in graph.node:
        is_behind = bool(behind.intersection(node.input))
        if node.op_type in HEAVY and not is_behind:
            first.add(node.name)
        if node.op_type in HEAVY or is_behind:
            behind.update(node.output)
    return first


def _last(graph: onnx.GraphProto) -> set[str]:
    """Names of the heavy operators that no other heavy one comes after."""
    before: set[str] = set()
    last = set()
    for node in reversed(graph.node):
        is_before = bool(before.intersection(node.output))
        if node.op_type in HEAVY and not is_before:
            last.add(node.name)
        if node.op_type in HEAVY or is_before:
            before.update(node.input)
    return last


def _check_opset(model: onnx.ModelProto) -> None:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset not in OPSETS:
        raise ModelError(
            f"graph {model.graph.name!r} has opset {opset}; int8 needs {OPSETS[0]} to {OPSETS[-1]}; export it again "
            f"with opset {OPSETS[-1]} (in PyTorch with dynamo=False), or ask for half"
        )
    quantized = [node.name for node in model.graph.node if node.op_type == "QuantizeLinear"]
    if quantized:
        raise ModelError(
            f"graph {model.graph.name!r} is quantized already: {quantized[0]}; start from the float32 model"
        )


def _check_cases(graph: onnx.GraphProto, cases: Sequence[NDArray[np.float32]]) -> None:
    if len(graph.input) != 1:
        raise ModelError(f"graph {graph.name!r} has {len(graph.input)} inputs; expected one")
    if not len(cases):
        raise ValueError("no calibration case; expected at least one array (n, channel, h, w)")
    want = [d.dim_value if d.HasField("dim_value") else None for d in graph.input[0].type.tensor_type.shape.dim]
    for k, case in enumerate(cases):
        fits = len(case.shape) == len(want) and all(w in (None, h) for w, h in zip(want, case.shape, strict=True))
        if case.dtype != np.float32 or not fits:
            raise ValueError(f"calibration case {k} is {case.dtype} {case.shape}; the input is float32 {tuple(want)}")
        if not np.isfinite(case).all():
            raise ValueError(f"calibration case {k} holds NaN or infinity; give missing cells as the model wants them")
