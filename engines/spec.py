"""Frozen values that describe an engine's tensors, and how an engine is to be built."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class TensorSpec:
    """An I/O tensor: its name, numpy dtype name and shape; None stands for a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    @property
    def call_dtype(self) -> str:
        """What callers of an engine give or get: float32 for a half tensor, cast at the border.

        >>> TensorSpec("x", "float16", (None, 4, None, None)).call_dtype
        'float32'
        """
        return "float32" if self.dtype == "float16" else self.dtype

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """True if an array of this shape fits.

        >>> TensorSpec("x", "float32", (None, 4, None, None)).accepts((2, 4, 256, 256))
        True
        """
        return len(shape) == len(self.shape) and all(
            want in (None, have) for want, have in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        axes = ", ".join("?" if axis is None else str(axis) for axis in self.shape)
        return f"{self.name}: {self.dtype} ({axes})"


@dataclass(frozen=True)
class Profile:
    """An optimization profile: the (n, channel, h, w) shapes of the input that an engine takes, and its fastest one.

    Raises:
        ValueError: sizes below 1, or not min <= opt <= max along an axis (names the axis).
    """

    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        for axis, sizes in enumerate(zip(self.min, self.opt, self.max, strict=True)):
            if not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
                raise ValueError(f"axis {axis} of {self} has sizes {sizes}; expected 1 <= min <= opt <= max")
        if len(self.min) != 4:
            raise ValueError(f"{self} has {len(self.min)} axes; expected 4: (n, channel, h, w)")

    @classmethod
    def up_to(cls, shape: Shape) -> Self:
        """Batches of 1 to n tiles of one size, fastest when full.

        >>> str(Profile.up_to((8, 4, 512, 512)))
        '1x4x512x512..8x4x512x512, best 8x4x512x512'
        """
        return cls((1, *shape[1:]), shape, shape)

    def holds(self, shape: tuple[int, ...]) -> bool:
        """True if the engine takes a batch of this shape under this profile."""
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        low, best, high = ("x".join(map(str, shape)) for shape in (self.min, self.opt, self.max))
        return f"{low}..{high}, best {best}"


@dataclass(frozen=True)
class BuildSpec:
    """How an engine is to be built; precision is not here, it is in the graph.

    Args:
        profiles: one or more; an inference takes the first that holds its shape.
        flags: names of TensorRT's builder and network flags to set beyond those that the types of the graph need.
            TF32 is off unless it is named here: float32 means float32.
        workspace_bytes: scratch memory that a layer may take; None = as much as the GPU has.
        level: builder optimization level, 0 (fast build) to 5 (fast engine); None = TensorRT's own.

    Raises:
        ValueError: no profile, a workspace below 1 byte, a level outside 0 to 5.
    """

    profiles: tuple[Profile, ...]
    flags: frozenset[str] = frozenset()
    workspace_bytes: int | None = None
    level: int | None = None

    def __post_init__(self) -> None:
        if not self.profiles:
            raise ValueError("a build needs an optimization profile; found none")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise ValueError(f"workspace of {self.workspace_bytes} bytes; expected 1 or more")
        if self.level is not None and not 0 <= self.level <= 5:
            raise ValueError(f"builder optimization level {self.level}; expected 0 to 5")

    def to_json(self) -> dict[str, Any]:
        """As plain values; equal specs give equal ones."""
        return {
            "profiles": [[list(profile.min), list(profile.opt), list(profile.max)] for profile in self.profiles],
            "flags": sorted(self.flags),
            "workspace_bytes": self.workspace_bytes,
            "level": self.level,
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """The spec that `to_json` wrote."""
        profiles = tuple(Profile(*(to_shape(sizes) for sizes in triple)) for triple in tree["profiles"])
        return cls(profiles, frozenset(tree["flags"]), tree["workspace_bytes"], tree["level"])


@dataclass(frozen=True)
class EngineKey:
    """What an engine file was built from, with and for: equal keys may share a file, others may not.

    Attributes:
        weights_sha256: None for a refittable engine, whose file serves every set of weights of the graph.
        precision: as asked for; `converter` names and dates the code that rewrote the graph to it.
        profiles: (min, opt, max) of each optimization profile, in their order.
        flags: builder flags by name; their numbers shift between releases.
        workspace_bytes, level: as in `BuildSpec`.
        flavour: of the runtime, such as "tensorrt" or "onnxruntime".
        multiprocessors, memory_bytes: of the GPU or of its MIG slice; slices of one GPU differ in both.
    """

    graph_sha256: str
    weights_sha256: str | None
    precision: str
    converter: str
    profiles: tuple[tuple[Shape, Shape, Shape], ...]
    flags: frozenset[str]
    workspace_bytes: int | None
    level: int | None
    flavour: str
    runtime_version: str
    gpu: str
    compute_capability: str
    multiprocessors: int
    memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        """As plain values; equal keys give equal ones."""
        rows = [[list(shape) for shape in profile] for profile in self.profiles]
        return {**vars(self), "profiles": rows, "flags": sorted(self.flags)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """The key that `to_json` wrote.

        Raises:
            ValueError: fields are missing, unknown or malformed (names them).
        """
        expected = {field.name for field in fields(cls)}
        if set(tree) != expected:
            missing, unknown = sorted(expected - set(tree)), sorted(set(tree) - expected)
            raise ValueError(f"an engine key has unknown fields {unknown} and lacks {missing}")
        try:
            rows = tuple((to_shape(low), to_shape(best), to_shape(high)) for low, best, high in tree["profiles"])
            return cls(**{**tree, "profiles": rows, "flags": frozenset(tree["flags"])})
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"an engine key has malformed profiles or flags: {error}") from error

    @property
    def digest(self) -> str:
        """sha256 of the key, hex: the name under which its engine file is kept."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def to_shape(sizes: Iterable[int]) -> Shape:
    """Four sizes as a shape.

    >>> to_shape([1, 4, 256, 256])
    (1, 4, 256, 256)
    """
    n, channel, h, w = map(int, sizes)
    return n, channel, h, w
