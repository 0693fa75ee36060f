"""A model package: a folder with `model.onnx` and the contract `model.yaml`, checked before anything runs."""

import hashlib
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import onnx
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    PlainSerializer,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from engines.base import ModelError
from engines.graph import aligns_corners, data_dependent, digests, inside, read_graph, spoiled_weight

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)")
_short = reprlib.Repr()  # a few lines of YAML can stand for gigabytes of text
_short.maxlevel, _short.maxstring = 2, 80


def _parse_duration(text: Any) -> Any:
    if isinstance(text, timedelta):
        return text
    found = _DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        raise ValueError("is no duration; write a number with s, min, h or d, such as 5min")
    if not float(found[1]):
        raise ValueError("must be longer than 0min")
    return timedelta(seconds=float(found[1]) * _UNITS[found[2]])


def _write_duration(value: timedelta) -> str:
    minutes, rest = divmod(value, timedelta(minutes=1))
    return f"{value.total_seconds():g}s" if rest else f"{minutes}min"


Duration = Annotated[timedelta, BeforeValidator(_parse_duration), PlainSerializer(_write_duration)]


class Part(BaseModel):
    """A part of the contract: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Transform(Part):
    """How physical values become model space: `name` and its numbers (checked where it is applied)."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "identity"


def _chain(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _unchain(value: tuple[Transform, ...]) -> Any:
    return value[0] if len(value) == 1 else list(value)


Transforms = Annotated[tuple[Transform, ...], Field(min_length=1), BeforeValidator(_chain), PlainSerializer(_unchain)]
"""One transform or a list of them, in the order in which they make model space."""


class ModelInput(Part):
    """What goes in: `frames` fields of one quantity, `cadence` apart, oldest first."""

    standard_name: str
    units: str
    frames: int = Field(ge=1)
    cadence: Duration | None = None
    transform: Transforms = (Transform(),)
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


def _how_written(value: Any) -> str:
    return "[one by one]" if isinstance(value, list | tuple) else "[even]"


LeadTimes = Annotated[
    Annotated[tuple[Duration, ...], Tag("[one by one]"), Field(min_length=1)] | Annotated[EvenLeads, Tag("[even]")],
    Discriminator(_how_written),
]


class ModelOutput(Part):
    """What comes out: one field a lead time."""

    standard_name: str
    units: str
    lead_times: LeadTimes
    transform: Transforms = (Transform(),)
    missing_below: float | None = None
    coverage: Literal["model", "input"] = "input"

    @field_validator("lead_times")
    @classmethod
    def _rising(cls, value: Any) -> Any:
        if isinstance(value, tuple) and list(value) != sorted(set(value)):
            raise ValueError("lead times must rise")
        return value

    @property
    def leads(self) -> tuple[timedelta, ...]:
        return self.lead_times.times if isinstance(self.lead_times, EvenLeads) else self.lead_times


class TileRule(Part):
    """What tiles the model takes: sizes and starts are multiples of `stride`; `radius` cells reach each result.

    None means: probe it. `radius: global` says that every cell reaches every result.
    """

    stride: int | None = Field(default=None, ge=1)
    radius: Annotated[int, Field(ge=0)] | Literal["global"] | None = None


def _pair(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"ordinary": value, "extreme": value} if is_number else value


def _unpair(value: "Limit") -> Any:
    return value.ordinary if value.ordinary == value.extreme else {"ordinary": value.ordinary, "extreme": value.extreme}


class Limit(Part):
    """The most that a measure may reach in each group of cases; `.inf` = not judged."""

    ordinary: float = Field(ge=0)
    extreme: float = Field(ge=0)


OneOrTwo = Annotated[Limit, BeforeValidator(_pair), PlainSerializer(_unpair)]


def _limit(value: float) -> Any:
    return Field(default=Limit(ordinary=value, extreme=value))


class GateLimits(Part):
    """How far another precision or build of the model may be from its float32 reference, at any lead time.

    Each is one number, or `{ordinary: ..., extreme: ...}`. The defaults pass half precision; int8 must ask for more.

    Attributes:
        max_error: largest difference of a cell, units of the output; a cell moved by one next to a storm is as far off
            as the storm is strong, so it is judged only if the contract says so.
        rmse_over_std: root mean square error of a case over the reference's standard deviation in its group.
        bias: mean error of a case over the reference's mean in its group (both above the reference's least value).
        maximum_bias: error of a case's largest value over the reference's range in its group.
        nan_cells: cells that became NaN or infinite.
        moved_missing: share of cells of a case that are missing in only one of the two.
        moved_codes: share of cells of a case whose packed code is another one; many where the packing is finer than
            half, which is a step of 0.01 from 20 on.
        csi_loss: 1 - CSI with the reference as the truth; no CSI against observations can change by more.
        fss_loss: 1 - FSS with the reference as the truth.
        seam: root mean square difference, along the worst row or column, between the case cut into tiles and the
            whole, over the standard deviation; 0 for an exact model.
        thresholds: of CSI and FSS, rising, units of the output: an event is a value at or above one of them. None =
            0.1, 1 and 5 mm h-1.

    Source: docs/decisions/014-gate.md.
    """

    max_error: OneOrTwo = _limit(float("inf"))
    rmse_over_std: OneOrTwo = _limit(0.008)
    bias: OneOrTwo = _limit(0.002)
    maximum_bias: OneOrTwo = _limit(0.018)
    nan_cells: OneOrTwo = _limit(0)
    moved_missing: OneOrTwo = _limit(0)
    moved_codes: OneOrTwo = _limit(0.5)
    csi_loss: OneOrTwo = _limit(0.01)
    fss_loss: OneOrTwo = _limit(0.002)
    seam: OneOrTwo = _limit(0.01)
    thresholds: tuple[FiniteFloat, ...] | None = None

    @field_validator("thresholds")
    @classmethod
    def _rise(cls, thresholds: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if thresholds is not None and list(thresholds) != sorted(set(thresholds)):
            raise ValueError(f"thresholds are {thresholds}; rising values are expected")
        return thresholds


class Contract(Part):
    """What a model promises: `model.yaml`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str
    licence: str
    description: str = ""
    input: ModelInput
    output: ModelOutput
    tile: TileRule = TileRule()
    gate: GateLimits = GateLimits()


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
        ModelError: what was found, what was expected, and in which file. Nothing outside the folder is opened.
    """
    folder = Path(folder)
    contract = read_contract(inside(folder, "model.yaml"))
    model = read_graph(folder)
    _check_tensors(model.graph, contract, folder / "model.onnx")
    _check_reach(model.graph, contract, folder)
    _check_weights(model, folder)
    graph, weights = digests(model, folder)
    return ModelPackage(folder, contract, graph, weights)


def read_contract(path: Path) -> Contract:
    """The contract in a `model.yaml`.

    Raises:
        ModelError: every problem at once, each with its key and what was found.
    """
    try:
        tree = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ModelError(f"cannot read the model contract {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date such as 2016-13-01
        raise ModelError(f"the model contract {path} is not YAML: {error}") from error
    try:
        return Contract.model_validate(tree)
    except ValidationError as error:
        problems = [f"  {_key(p['loc'])}: {_reason(p)}" for p in error.errors()]
        raise ModelError(f"{len(problems)} problem(s) in {path}:\n" + "\n".join(problems)) from error


def _key(loc: tuple[int | str, ...]) -> str:
    """The key as written in the file; names of alternatives that pydantic adds are left out."""
    return ".".join(str(part) for part in loc if not re.search(r"[\[(]|^constrained-int$|^int$", str(part))) or "file"


def _reason(problem: Any) -> str:
    match problem["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return "unknown key"
        case "string_type" if isinstance(problem["input"], float | int | date):
            return f'must be text (found {problem["input"]}); put it in quotes, such as "{problem["input"]}"'
        case _:
            return f"{problem['msg'].removeprefix('Value error, ')} (found {_short.repr(problem['input'])})"


def _check_tensors(graph: onnx.GraphProto, contract: Contract, path: Path) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ModelError(
            f"{path} has {len(inputs)} input(s) and {len(graph.output)} output(s): {_names(inputs)} to "
            f"{_names(graph.output)}; expected one of each: (n, channel, h, w) and (n, lead, h, w); before the export "
            "make what is constant a buffer of a module around the model, and join or drop outputs there"
        )
    given = _axes(inputs[0], contract.input.frames, "input.frames", path)
    returned = _axes(graph.output[0], len(contract.output.leads), "output.lead_times", path)
    if (given[2] is None) != (given[3] is None):
        raise ModelError(
            f"{path} takes tiles of {given[2:]} cells, where None is dynamic; expected h and w both dynamic or both "
            "fixed: export it with both as dynamic axes"
        )
    if any(None not in pair and pair[0] != pair[1] for pair in zip(given[2:], returned[2:], strict=True)):
        raise ModelError(
            f"{path} turns tiles of {given[2:]} cells into {returned[2:]}; expected the same size, as the last "
            "two axes of (n, channel, h, w) and (n, lead, h, w)"
        )


def _names(values: Sequence[onnx.ValueInfoProto]) -> str:
    return ", ".join(value.name for value in values) or "none"


def _axes(value: onnx.ValueInfoProto, planes: int, key: str, path: Path) -> list[int | None]:
    """The sizes of a tensor's four axes (None = dynamic), the second as the contract says."""
    tensor = value.type.tensor_type
    axes = [axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim]
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if kind != "FLOAT" or len(axes) != 4:
        raise ModelError(
            f"{path}: {value.name} is {kind} with {len(axes)} axes; expected FLOAT with 4: (n, channel or lead, h, w); "
            "cast and reshape in a module around the model before the export"
        )
    if axes[1] != planes == axes[3]:
        raise ModelError(
            f"{path}: {value.name} has its {planes} planes on the last axis, {axes}; expected (n, channel or lead, h, "
            "w): permute the axes in a module around the model before the export"
        )
    if axes[1] not in (None, planes):
        raise ModelError(f"{path}: {value.name} has {axes[1]} planes, but {key} of model.yaml gives {planes}")
    return axes


def _check_reach(graph: onnx.GraphProto, contract: Contract, folder: Path) -> None:
    radius = contract.tile.radius
    stretching = aligns_corners(graph) if radius != "global" else None
    if stretching is not None:
        raise ModelError(
            f"{folder / 'model.yaml'} declares {'no tile.radius' if radius is None else f'tile.radius {radius}'}, but "
            f"Resize {stretching!r} aligns the corners of its tile (align_corners=True), so a result depends on where "
            "in the tile it lies; declare `radius: global` to run whole frames, or train with align_corners=False"
        )
    movers = data_dependent(graph) if radius is None else set()
    if movers:
        raise ModelError(
            f"{folder / 'model.yaml'} declares no tile.radius, and {sorted(movers)[0]} moves data by its "
            "values, so it cannot be probed; declare the radius in cells, or `global`"
        )


def _check_weights(model: onnx.ModelProto, folder: Path) -> None:
    spoiled = spoiled_weight(model, folder)
    if spoiled is not None:
        raise ModelError(
            f"{folder / 'model.onnx'}: weight {spoiled!r} holds NaN or infinity, so that forecasts would be missing; "
            "export a checkpoint from before the training diverged"
        )
