"""ONNX graphs on disk: read without trust, checked, told apart by content. Knows nothing of contracts."""

import hashlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import numpy_helper

from engines.base import ModelError

DEFAULT_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
WEIGHT_TYPES = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
)
RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
STRUCTURAL = 1024  # values; no shape, axis, scale or pad of an operator comes from a larger constant
SUMMING = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"})

# Operators that move data, and which of their inputs say where; None = any input.
MOVERS: dict[str, tuple[int, ...] | None] = {
    "GridSample": (1,),
    "RoiAlign": (1, 2),
    "DeformConv": (2,),
    "Gather": (1,),
    "GatherElements": (1,),
    "GatherND": (1,),
    "ScatterElements": (1,),
    "ScatterND": (1,),
    "Slice": (1, 2, 3, 4),
    "Pad": (1,),
    "Resize": (1, 2, 3),
    "If": (0,),
    "Loop": None,
    "Compress": None,
    "NonZero": None,
    "NonMaxSuppression": None,
    "Unique": None,
}


def read_graph(folder: Path) -> onnx.ModelProto:
    """`model.onnx` of a folder, without its external weights, checked; nothing outside the folder is opened.

    Raises:
        ModelError: damaged, unsafe, random, or not standard ONNX; names the file and what is wrong with it.
    """
    model, path = parse_graph(folder), folder / "model.onnx"
    foreign = {node.domain for node in _nodes(model)} - DEFAULT_DOMAINS
    if foreign:
        raise ModelError(f"{path} uses operators of {sorted(foreign)}; only standard ONNX operators are supported")
    random = {node.op_type for node in _nodes(model)} & RANDOM
    if random:
        raise ModelError(
            f"{path} draws random numbers ({sorted(random)[0]}), so no two runs or tiles would agree; export the model "
            "without noise, or with its noise made from the input"
        )
    training = in_training(model, folder)
    if training is not None:
        raise ModelError(
            f"{path}: {training.op_type} {_name_of(training)!r} is in training mode, or no constant says that it is "
            "not, so results may be random or depend on the tiles beside; call model.eval() before the export, and "
            "export without training=TrainingMode.TRAINING"
        )
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # checker and shape inference raise unrelated types
        raise ModelError(f"{path} fails the ONNX checker: {first_line(error)}") from error
    return model


def parse_graph(folder: Path) -> onnx.ModelProto:
    """As `read_graph`, but only the places of its external weights are checked, which all lie inside the folder."""
    path = inside(folder, "model.onnx")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has moved between releases
        raise ModelError(f"{path} is no ONNX file or is truncated: {first_line(error)}") from error
    if not model.graph.node:
        raise ModelError(f"{path} is no ONNX file or is truncated: it holds no operators")
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            _external_place(tensor, folder)  # before the checker, which opens external files itself
    return model


def weights_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which large constants are inputs of the same type and shape, so that it weighs next to nothing.

    ONNX's checker and shape inference copy a whole model several times and find the same without the values.
    """
    light = onnx.ModelProto()
    _copy_fields(model, light, but="graph")
    _copy_fields(model.graph, light.graph, but="initializer")
    inputs = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= STRUCTURAL:
            light.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    light.ir_version = max(light.ir_version, 4)  # before it every initializer had to be an input, too
    return light


def _copy_fields(message: Message, copy: Any, but: str) -> None:
    for field, value in message.ListFields():
        if field.name == but:
            continue
        if isinstance(value, Message):
            getattr(copy, field.name).CopyFrom(value)
        elif isinstance(value, int | float | str | bytes):
            setattr(copy, field.name, value)
        else:
            getattr(copy, field.name).extend(value)


def inside(folder: Path, name: str) -> Path:
    """The file `name` of a folder.

    Raises:
        ModelError: it is not there, or it is a path or link that leaves the folder.
    """
    try:
        root, path = folder.resolve(), (folder / name).resolve()
        is_inside = path.is_relative_to(root) and not Path(name).is_absolute()
        is_there = is_inside and path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, NUL inside, a loop of links
        raise ModelError(f"{name!r} is no usable file name in the model package {folder}: {error}") from error
    if not is_inside:
        raise ModelError(f"{name!r} leads outside the model package {folder}; all its files must lie inside")
    if not is_there:
        raise ModelError(f"the model package {folder} has no file {name!r}")
    return folder / name


def data_dependent(graph: onnx.GraphProto) -> set[str]:
    """Operators that read or write at places computed from the input's values: no probe can bound their reach."""
    computed = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    found = set()
    for node in graph.node:
        at = MOVERS.get(node.op_type, ())
        places = node.input if at is None else [name for i, name in enumerate(node.input) if i in at]
        inner = {other.op_type for attribute in node.attribute for other in _nodes(attribute)} & set(MOVERS)
        found |= inner | ({node.op_type} if computed.intersection(places) else set())
        if node.op_type not in ("Shape", "Size") and (inner or computed.intersection(node.input)):
            computed.update(node.output)
    return found


def aligns_corners(graph: onnx.GraphProto) -> str | None:
    """The first Resize whose steps depend on the size of what it is given, as the corners stay where they are."""
    for node in _nodes(graph):
        modes = [a.s for a in node.attribute if a.name == "coordinate_transformation_mode"]
        if node.op_type == "Resize" and modes == [b"align_corners"]:
            return _name_of(node)
    return None


def in_training(model: onnx.ModelProto, folder: Path) -> onnx.NodeProto | None:
    """The first operator that does as in training: drops values at random, or normalises by the batch at hand.

    A dropout whose mode is computed counts as one of them.
    """
    nodes = _nodes(model)
    constants = {tensor.name: tensor for tensor in _tensors(model)}
    made = ((n.output[:1], a) for n in nodes if n.op_type == "Constant" for a in n.attribute)
    constants |= {name: attribute.t for names, attribute in made for name in names if attribute.name == "value"}

    def is_on(node: onnx.NodeProto) -> bool:
        if node.op_type == "Dropout":  # from opset 12 on the third input says so
            says = [name for name in node.input[2:] if name]
            return any(name not in constants or any(_contents(constants[name], folder)) for name in says)
        return any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)

    return next(filter(is_on, nodes), None)


def spoiled_weight(model: onnx.ModelProto, folder: Path) -> str | None:
    """The first weight of a convolution or matrix product that holds NaN or infinity; None if all are finite.

    Elsewhere such a constant may be meant: as a mask, as a bound, as what stands for missing.
    """
    summed = {name for node in model.graph.node if node.op_type in SUMMING for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name in summed and tensor.data_type in WEIGHT_TYPES:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            if not np.isfinite(np.frombuffer(_contents(tensor, folder), dtype)).all():
                return str(tensor.name)
    return None


def digests(model: onnx.ModelProto, folder: Path) -> tuple[str, str]:
    """sha256 of the graph and of its weights (floating-point initializers), hex.

    They depend on contents, not on how these are stored: moving weights to an external file changes neither.
    Constants that are not weights, such as the shape of a Reshape, belong to the graph.
    """
    bare, weights = onnx.ModelProto(), hashlib.sha256()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        if tensor.data_type in WEIGHT_TYPES:
            weights.update(tensor.name.encode() + b"\0" + _contents(tensor, folder))
            tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
    for tensor in _tensors(bare):
        if tensor.external_data:
            tensor.raw_data = _external_bytes(tensor, folder)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest(), weights.hexdigest()


def count_narrow_weights(path: Path) -> int:
    """How many numbers the weights of an ONNX file are that are stored as half or int8, scales and biases left out."""
    narrow = (onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8)
    weights = onnx.load(path, load_external_data=False).graph.initializer
    return sum(prod(tensor.dims) for tensor in weights if tensor.data_type in narrow and len(tensor.dims) > 1)


def weights_bytes(path: Path) -> int:
    """Size of the weights and constants of an ONNX file; those that lie beside it count, too."""
    tensors = _tensors(onnx.load(path, load_external_data=False))
    return sum(prod(t.dims) * onnx.helper.tensor_dtype_to_np_dtype(t.data_type).itemsize for t in tensors)


def external_files(model: onnx.ModelProto) -> set[str]:
    """Names of the files beside `model.onnx` that hold tensors."""
    places = [entry for tensor in _tensors(model) for entry in tensor.external_data]
    return {entry.value for entry in places if entry.key == "location"}


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _name_of(node: onnx.NodeProto) -> str:
    """Its name, or that of what it makes where the exporter gave it none."""
    return str(node.name or next(iter(node.output), ""))


def _messages(message: Message) -> Iterator[Message]:
    """A message and all messages in it; the inside of tensors is left out."""
    yield message
    if isinstance(message, onnx.TensorProto):
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from _messages(part)


def _tensors(message: Message) -> list[onnx.TensorProto]:
    """Every tensor in a model, wherever it is: initializers, constants, sparse ones, in subgraphs, in functions."""
    return [part for part in _messages(message) if isinstance(part, onnx.TensorProto)]


def _nodes(message: Message) -> list[onnx.NodeProto]:
    return [part for part in _messages(message) if isinstance(part, onnx.NodeProto)]


def _contents(tensor: onnx.TensorProto, folder: Path) -> bytes:
    """The values of a weight as bytes, wherever and however they are stored."""
    stored = _external_bytes(tensor, folder) if tensor.external_data else bytes(tensor.raw_data)
    return stored or numpy_helper.to_array(tensor).tobytes()


def _external_bytes(tensor: onnx.TensorProto, folder: Path) -> bytes:
    path, offset, length = _external_place(tensor, folder)
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def _external_place(tensor: onnx.TensorProto, folder: Path) -> tuple[Path, int, int]:
    """The file, offset and length in bytes of a tensor that is kept in another file of the folder."""
    where, onnx_path = {entry.key: entry.value for entry in tensor.external_data}, folder / "model.onnx"
    path = inside(folder, where.get("location", ""))
    size = path.stat().st_size
    try:
        offset = int(where.get("offset", 0))
        length = int(where.get("length", size - offset))
    except ValueError as error:
        raise ModelError(f"weight {tensor.name!r} of {onnx_path} lies at {where}: {error}") from error
    if not 0 <= offset <= offset + length <= size:
        raise ModelError(
            f"weight {tensor.name!r} of {onnx_path} needs bytes {offset} to {offset + length} of {path}, "
            f"which has {size}; the file is truncated or belongs to another model"
        )
    return path, offset, length
