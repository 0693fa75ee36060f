"""The product file: what one published forecast is made of, as a forecaster writes it in YAML."""

import re
import reprlib
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from pipelines.errors import ConfigError

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([+-]?\d+(?:\.\d+)?)\s*(s|min|h|d)")
_SIZES = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
_LONGEST = timedelta(days=36525)  # a century: times in ns end in 2262
_BRIEF = reprlib.Repr()  # an alias in YAML can stand for gigabytes
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother = 2, 200, 200


def parse_duration(text: Any) -> Any:
    """The timedelta that a text such as `-10min`, `90s`, `2h` means; other types pass through.

    >>> parse_duration("-10min").total_seconds()
    -600.0
    """
    if not isinstance(text, str):
        if isinstance(text, int | float) and text == 0:
            return timedelta(0)
        if isinstance(text, timedelta):
            return text
        raise ValueError(f"{text!r} has no unit; write a number with s, min, h or d, such as 10min")
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no duration; write a number with s, min, h or d, such as 10min")
    seconds = float(found[1]) * _UNITS[found[2]]
    if abs(seconds) > _LONGEST.total_seconds():
        raise ValueError(f"{text!r} is more than a century")
    return timedelta(seconds=seconds)


def format_duration(value: timedelta) -> str:
    """The shortest text that `parse_duration` reads back.

    >>> format_duration(timedelta(minutes=90)), format_duration(timedelta(hours=-2))
    ('90min', '-2h')
    """
    seconds = value.total_seconds()
    for unit in ("h", "min"):
        if seconds and seconds % _UNITS[unit] == 0 and (unit != "h" or abs(seconds) >= 7200):
            return f"{seconds / _UNITS[unit]:.0f}{unit}"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


def parse_size(text: Any) -> Any:
    """Bytes that a text such as `2GB` means; whole numbers pass through."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip()) if isinstance(text, str) else None
    if found is None:
        return text
    if found[2] not in _SIZES:
        raise ValueError(f"{text!r} has the unit {found[2]}; use one of {', '.join(_SIZES)}")
    return int(Decimal(found[1]) * _SIZES[found[2]])


Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration)]
NotNegative = Annotated[Duration, Field(ge=timedelta(0))]
Positive = Annotated[Duration, Field(gt=timedelta(0))]
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]


def _form(value: Any) -> str:
    """How a value is written in the file; chooses the one alternative that is checked."""
    if isinstance(value, str):
        return "[word]"
    if isinstance(value, Mapping | BaseModel):
        return "[keys]"
    return "[list]" if isinstance(value, Sequence) else "[number]"


def _either(expected: str) -> Discriminator:
    return Discriminator(_form, custom_error_type="form", custom_error_message=f"must be {expected}")


Auto = Annotated[Literal["auto"], Tag("[word]")]
Count = Annotated[int, Field(ge=1), Tag("[number]")]
CountOrAuto = Annotated[Count | Auto, _either("a number or auto")]
Pair = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
PairOrAuto = Annotated[Annotated[Pair, Tag("[list]")] | Auto, _either("[y, x] or auto")]
Durations = Annotated[tuple[Duration, ...], Tag("[list]")]


CfAttribute = Annotated[
    Annotated[str, Tag("[word]")] | Annotated[float, Tag("[number]")] | Annotated[tuple[float, ...], Tag("[list]")],
    _either("text, a number or a list of numbers"),
]
_CF_ATTRIBUTES = (
    "units", "standard_name", "_FillValue", "missing_value", "scale_factor", "add_offset", "_Unsigned",
    "zr_a", "zr_b", "no_echo_value", "grid_mapping",
)  # fmt: skip


def _text_or_number(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, int | float) and isfinite(value)):
        return value
    raise ValueError("must be text or a finite number")


Attribute = Annotated[str | int | float, BeforeValidator(_text_or_number)]


class Part(BaseModel):
    """A part of the product file: unknown keys are errors, numbers are finite, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Last(Part):
    """History as the newest N frames, one store step apart."""

    last: int = Field(ge=1)


class InputSpec(Part):
    """Where the frames come from and which of them a cycle needs."""

    store: str
    variable: str
    history: Annotated[
        Durations | Annotated[Last, Tag("[keys]")],
        _either("a list of offsets such as [-20min, -10min, 0min], or last: N"),
    ]
    convert: Literal["none", "zr"] = "none"
    tolerance: NotNegative = timedelta(seconds=30)
    missing_frame: Literal["refuse", "use_available"] = "refuse"
    max_missing: float = Field(default=0.95, gt=0, le=1)
    attributes: dict[str, CfAttribute] = {}
    wait: NotNegative = timedelta(0)

    @field_validator("history")
    @classmethod
    def _oldest_first_up_to_now(cls, value: Any) -> Any:
        if isinstance(value, tuple) and (list(value) != sorted(set(value)) or not value or value[-1] != timedelta(0)):
            found = [format_duration(v) for v in value]
            raise ValueError(f"offsets {found} must rise and end with 0min, such as [-20min, -10min, 0min]")
        return value

    @field_validator("attributes")
    @classmethod
    def _that_are_read(cls, value: dict[str, CfAttribute]) -> dict[str, CfAttribute]:
        unknown = sorted(set(value) - set(_CF_ATTRIBUTES))
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is not among those that are read: {', '.join(_CF_ATTRIBUTES)}")
        return value


class ModelRef(Part):
    """Which model package makes the forecast: a folder, `builtin:NAME`, or `registry:NAME` in a version or an alias.

    Attributes:
        precision: what heavy operators compute in.
        engine: the runtime; auto is TensorRT where Ray has GPUs, and ONNX Runtime elsewhere.
    """

    package: str
    version: str | None = None
    alias: str | None = None
    precision: Literal["float32", "half", "int8"] = "float32"
    engine: Literal["auto", "onnxruntime", "tensorrt"] = "auto"

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.version is not None and self.alias is not None:
            raise ValueError(f"version {self.version!r} and alias {self.alias!r} are both given; keep one")
        return self


class EvenLeads(Part):
    """Lead times step, 2 step, ... until."""

    step: Duration
    until: Duration

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        if self.step <= timedelta(0) or self.until < self.step or self.until % self.step:
            raise ValueError(
                f"lead time {format_duration(self.until)} is no multiple of the step {format_duration(self.step)}"
            )
        return self

    @property
    def times(self) -> tuple[timedelta, ...]:
        return tuple(self.step * n for n in range(1, self.until // self.step + 1))


class TilingSpec(Part):
    """How the grid is cut; everything is chosen by the planner where it says auto."""

    mode: Literal["crop", "feather"] = "crop"
    tile: Annotated[
        Annotated[Pair, Tag("[list]")] | Annotated[Literal["auto", "whole"], Tag("[word]")],
        _either("[y, x], auto or whole"),
    ] = "auto"
    halo: Annotated[Annotated[int, Field(ge=0), Tag("[number]")] | Auto, _either("a number or auto")] = "auto"
    batch: CountOrAuto = "auto"
    memory: Size = 2 * 10**9


class Packing(Part):
    """How values become integers in the store: value = code * scale_factor + add_offset."""

    dtype: Literal["int16", "uint16", "uint8"] = "int16"
    scale_factor: float = Field(default=0.01, gt=0)
    add_offset: float = 0.0


class OutputSpec(Part):
    """Where and how the forecast is written."""

    store: str
    variable: str
    attributes: dict[str, Attribute] = {}
    packing: Packing = Packing()
    shards: PairOrAuto = "auto"
    chunks: PairOrAuto = "auto"
    incomplete: Literal["refuse", "publish"] = "refuse"
    keep: Positive | None = None


class Product(Part):
    """One published forecast, from frames to store."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    input: InputSpec
    model: ModelRef
    lead_times: Annotated[
        Durations | Annotated[EvenLeads, Tag("[keys]")],
        _either("a list such as [30min, 60min], or step and until"),
    ]
    tiling: TilingSpec = TilingSpec()
    output: OutputSpec
    deadline: Positive | None = None
    workers: CountOrAuto = "auto"
    workers_per_gpu: CountOrAuto = "auto"
    blocks_in_flight: CountOrAuto = "auto"
    keep_warm: NotNegative = timedelta(minutes=15)

    @field_validator("lead_times")
    @classmethod
    def _rising(cls, value: Any) -> Any:
        if isinstance(value, tuple) and (not value or list(value) != sorted(set(value)) or value[0] <= timedelta(0)):
            raise ValueError(f"{[format_duration(v) for v in value]} must rise and start after 0min")
        return value

    @property
    def leads(self) -> tuple[timedelta, ...]:
        return self.lead_times.times if isinstance(self.lead_times, EvenLeads) else self.lead_times


def load_product(path: Path, overrides: Sequence[str] = ()) -> Product:
    """The product that a YAML file describes, with `key.sub=value` overrides applied.

    Relative stores and model folders are taken from the folder of the file.

    Raises:
        ConfigError: every problem of the file at once, each with its key and what was found.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        tree = yaml.safe_load(text)
        twice = _find_twice(yaml.compose(text, yaml.SafeLoader))
    except OSError as error:
        raise ConfigError(f"cannot read product file {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates and numbers have errors of their own
        raise ConfigError(f"product file {path} is not YAML: {error}") from error
    if twice:
        raise ConfigError(f"product file {path} gives keys twice: {', '.join(twice)}; keep one of each")
    if not isinstance(tree, dict):
        raise ConfigError(f"product file {path} holds {type(tree).__name__}; expected keys such as name, input, model")
    for override in overrides:
        _apply_override(tree, override)
    return _with_absolute_paths(_validated(tree, str(path)), Path(path).resolve().parent)


def dump_product(product: Product) -> str:
    """The product as YAML, every default written out; `load_product` reads it back."""
    return str(yaml.safe_dump(product.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def _find_twice(root: yaml.Node | None) -> list[str]:
    """Keys that a mapping holds more than once, with their lines; YAML takes the last of them without a word."""
    seen, twice = {id(root)}, []
    for node in (queue := [root]):
        keys = set()
        for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
            if key.value in keys:
                twice.append(f"{key.value} (line {key.start_mark.line + 1})")
            keys.add(key.value)
            if id(value) not in seen:  # an alias is the node that it stands for
                seen.add(id(value))
                queue.append(value)
    return twice


class ProductFileError(ConfigError):
    """Keys of a product file that are wrong.

    Attributes:
        problems: each key, and what is wrong with it.
    """

    def __init__(self, where: str, problems: Sequence[tuple[str, str]]) -> None:
        lines = [f"{len(problems)} problem(s) in {where}:", *(f"{key}: {reason}" for key, reason in problems)]
        super().__init__("\n  ".join(lines))
        self.problems = tuple(problems)


def _validated(tree: dict[str, Any], where: str) -> Product:
    try:
        return Product.model_validate(tree)
    except ValidationError as error:
        raise ProductFileError(where, [(_key(p["loc"]), _reason(p)) for p in error.errors()]) from error


def _key(loc: tuple[int | str, ...]) -> str:
    """The key as written in the file; names of alternatives that pydantic adds are left out."""
    return ".".join(
        str(part) for part in loc if not re.search(r"[\[(]|^[A-Z]|^(literal|tuple|int|timedelta)$", str(part))
    )


def _reason(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown key (found value {_BRIEF.repr(problem['input'])})"
    if problem["type"] == "missing":
        return "is missing"
    if problem["type"] == "string_type" and isinstance(problem["input"], float | int | date):
        return f'must be text (found {problem["input"]}); put it in quotes, such as "{problem["input"]}"'
    return f"{problem['msg'].removeprefix('Value error, ')} (found {_BRIEF.repr(problem['input'])})"


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form key.sub=value")
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {override!r}: {parent} holds {tree!r}, not keys")
    try:
        tree[last] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"override {override!r}: the value is not YAML") from error


def _with_absolute_paths(product: Product, folder: Path) -> Product:
    return product.model_copy(
        update={
            "input": product.input.model_copy(update={"store": _absolute(product.input.store, folder)}),
            "output": product.output.model_copy(update={"store": _absolute(product.output.store, folder)}),
            "model": product.model.model_copy(
                update={"package": _absolute(product.model.package, folder)}
                if not product.model.package.startswith(("builtin:", "registry:"))
                else {}
            ),
        }
    )


def _absolute(path: str, folder: Path) -> str:
    try:
        return path if "://" in path else str((folder / Path(path).expanduser()).resolve())
    except RuntimeError as error:  # there is no such user, or a link that leads to itself
        raise ConfigError(f"{path} is no path: {error}") from error
