"""A model package: a folder with `model.onnx` and the contract `model.yaml`, checked before anything runs."""

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import onnx
import pandas as pd
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from engines.base import ModelError

DATA_DEPENDENT = frozenset({"GridSample", "DeformConv", "RoiAlign", "GatherND"})
DEFAULT_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})


def _parse_duration(text: Any) -> Any:
    if not isinstance(text, str) or text.strip().lstrip("+-").replace(".", "").isdigit():
        raise ValueError(f"{text!r} has no unit; write a duration such as 5min")
    return pd.Timedelta(text).to_pytimedelta()


def _write_duration(value: timedelta) -> str:
    return f"{value.total_seconds():g}s"


Duration = Annotated[
    timedelta, BeforeValidator(_parse_duration), PlainSerializer(_write_duration), Field(gt=timedelta(0))
]


class Part(BaseModel):
    """A part of the contract: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Transform(Part):
    """How physical values become model space: `name` and its numbers (checked where it is applied)."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "identity"


class ModelInput(Part):
    """What goes in: `frames` fields of one quantity, `cadence` apart, oldest first."""

    standard_name: str
    units: str
    frames: int = Field(ge=1)
    cadence: Duration | None = None
    transform: Transform = Transform()
    missing: float = 0.0

    @model_validator(mode="after")
    def _cadence_of_several(self) -> Self:
        if self.frames > 1 and self.cadence is None:
            raise ValueError(f"{self.frames} frames need a cadence, such as 5min")
        return self


class EvenLeads(Part):
    """Lead times step, 2 step, ..., count step."""

    step: Duration
    count: int = Field(ge=1)

    @property
    def times(self) -> tuple[timedelta, ...]:
        return tuple(self.step * n for n in range(1, self.count + 1))


class ModelOutput(Part):
    """What comes out: one field a lead time."""

    standard_name: str
    units: str
    lead_times: tuple[Duration, ...] | EvenLeads
    transform: Transform = Transform()
    missing_below: float | None = None
    coverage: Literal["model", "input"] = "input"

    @property
    def leads(self) -> tuple[timedelta, ...]:
        return self.lead_times.times if isinstance(self.lead_times, EvenLeads) else self.lead_times


class TileRule(Part):
    """What tiles the model takes: sizes and starts are multiples of `stride`; `radius` cells reach each result.

    None means: probe it. `radius: global` says that every cell reaches every result.
    """

    stride: int | None = Field(default=None, ge=1)
    radius: int | Literal["global"] | None = None

    @model_validator(mode="after")
    def _not_negative(self) -> Self:
        if isinstance(self.radius, int) and self.radius < 0:
            raise ValueError(f"radius {self.radius} is negative")
        return self


class Contract(Part):
    """What a model promises: `model.yaml`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str
    licence: str
    description: str = ""
    input: ModelInput
    output: ModelOutput
    tile: TileRule = TileRule()


@dataclass(frozen=True)
class ModelPackage:
    """A checked model package: its folder, contract and the digests of graph and weights (sha256, hex)."""

    folder: Path
    contract: Contract
    graph_sha256: str
    weights_sha256: str

    @property
    def onnx_path(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def identity(self) -> str:
        """Name, version and content, short enough for a log line."""
        content = hashlib.sha256((self.graph_sha256 + self.weights_sha256).encode()).hexdigest()
        return f"{self.contract.name}-{self.contract.version}-{content[:12]}"


def load_package(folder: Path) -> ModelPackage:
    """The package in `folder`, every promise checked that can be checked without running it.

    Raises:
        ModelError: what was found, what was expected, and in which file.
    """
    folder = Path(folder)
    contract = read_contract(folder / "model.yaml")
    model = _read_graph(folder / "model.onnx")
    _check_external_data(model, folder)
    _check_graph(model, folder / "model.onnx")
    _check_tensors(model, contract, folder / "model.onnx")
    _check_reach(model, contract, folder)
    graph, weights = _digests(model, folder)
    return ModelPackage(folder, contract, graph, weights)


def read_contract(path: Path) -> Contract:
    """The contract in a `model.yaml`.

    Raises:
        ModelError: every problem at once, each with its key.
    """
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read the model contract {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ModelError(f"the model contract {path} is not YAML: {error}") from error
    try:
        return Contract.model_validate(tree)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, p['loc']))}: {p['msg']} (found {p['input']!r})" for p in error.errors()]
        raise ModelError(f"{len(lines)} problem(s) in {path}:\n" + "\n".join(lines)) from error


def _read_graph(path: Path) -> onnx.ModelProto:
    """The graph without its external weights; nothing outside the file is touched."""
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # protobuf's DecodeError has moved between releases
        raise ModelError(f"{path} is no ONNX file or is truncated: {error}") from error
    if not model.graph.node:
        raise ModelError(f"{path} is no ONNX file or is truncated: it holds no operators")
    return model


def _external_files(model: onnx.ModelProto) -> set[str]:
    tensors = [t for t in _all_tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    return {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}


def _all_tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Initializers and constants of the graph and of every subgraph in it."""
    found, graphs = [], [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        found += list(getattr(graph, "initializer", ()))
        for attribute in (a for node in graph.node for a in node.attribute):
            found += [attribute.t] if attribute.HasField("t") else []
            found += list(attribute.tensors)
            graphs += [attribute.g] if attribute.HasField("g") else []
            graphs += list(attribute.graphs)
    return found


def _check_external_data(model: onnx.ModelProto, folder: Path) -> None:
    root = folder.resolve()
    for location in sorted(_external_files(model)):
        path = (root / location).resolve()
        if Path(location).is_absolute() or not path.is_relative_to(root):
            raise ModelError(
                f"{folder / 'model.onnx'} keeps weights in {location!r}, outside its folder; "
                "weights must lie beside model.onnx"
            )
        if not path.is_file():
            raise ModelError(f"{folder / 'model.onnx'} keeps weights in {location!r}, which is not there")


def _check_graph(model: onnx.ModelProto, path: Path) -> None:
    foreign = {node.domain for node in model.graph.node} - DEFAULT_DOMAINS
    if foreign:
        raise ModelError(f"{path} uses operators of {sorted(foreign)}; only standard ONNX operators are supported")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # checker and shape inference raise unrelated types
        raise ModelError(f"{path} fails the ONNX checker: {str(error).strip().splitlines()[0]}") from error


def _check_tensors(model: onnx.ModelProto, contract: Contract, path: Path) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise ModelError(
            f"{path} has {len(inputs)} input(s) and {len(model.graph.output)} output(s); expected one of "
            "each: (n, channel, h, w) and (n, lead, h, w)"
        )
    _check_tensor(inputs[0], contract.input.frames, "input.frames", path)
    _check_tensor(model.graph.output[0], len(contract.output.leads), "output.lead_times", path)


def _check_tensor(value: onnx.ValueInfoProto, planes: int, key: str, path: Path) -> None:
    tensor = value.type.tensor_type
    axes = [axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim]
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if kind != "FLOAT" or len(axes) != 4:
        raise ModelError(f"{path}: {value.name} is {kind} with {len(axes)} axes; expected FLOAT with 4")
    if axes[1] not in (None, planes):
        raise ModelError(f"{path}: {value.name} has {axes[1]} planes, but {key} of model.yaml has {planes}")


def _check_reach(model: onnx.ModelProto, contract: Contract, folder: Path) -> None:
    samplers = {node.op_type for node in model.graph.node} & DATA_DEPENDENT
    if samplers and contract.tile.radius is None:
        raise ModelError(
            f"{folder / 'model.yaml'} declares no tile.radius, and {sorted(samplers)[0]} moves data by its "
            "values, so it cannot be probed; declare the radius in cells, or `global`"
        )


def _digests(model: onnx.ModelProto, folder: Path) -> tuple[str, str]:
    """sha256 of the graph (names, operators, shapes) and of the weights (initializer contents)."""
    graph, weights = onnx.ModelProto(), hashlib.sha256()
    graph.CopyFrom(model)
    for tensor in graph.graph.initializer:
        weights.update(tensor.name.encode() + b"\0" + tensor.SerializeToString(deterministic=True))
        bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        tensor.CopyFrom(bare)
    for location in sorted(_external_files(model)):
        with open(folder / location, "rb") as file:
            weights.update(hashlib.file_digest(file, "sha256").digest())
    return hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest(), weights.hexdigest()
