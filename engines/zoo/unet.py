"""A plain U-Net with fixed random weights: the load of a learned nowcast, for benchmarks. No real forecast."""

from dataclasses import dataclass

import numpy as np
import onnx

from engines.zoo.graph import Graph

SPREAD = 0.01  # by which the fields of a member are stronger than those of the one before
CORRECTION = 0.05  # size of the random correction to the newest field: dry cells stay dry, as in a trained net


@dataclass(frozen=True)
class UnetSpec:
    """What a U-Net is written for.

    Args:
        width: channels of the finest level; each level down has twice as many.
        depth: times that the field is halved.
        frames: input fields, `step_minutes` apart, the last one at the reference time.
        leads: lead times, in steps.
        seed: of the weights.
        members: passes of a batch through the network, each with the fields a little stronger; the forecast is their
            mean.

    Raises:
        ValueError: a size below 1 (found, expected).
    """

    width: int = 8
    depth: int = 3
    frames: int = 4
    leads: int = 18
    step_minutes: float = 5
    seed: int = 0
    members: int = 1

    def __post_init__(self) -> None:
        sizes = {"width": self.width, "depth": self.depth, "frames": self.frames, "leads": self.leads}
        sizes["members"] = self.members
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; at least 1 is expected")
        if self.step_minutes <= 0:
            raise ValueError(f"step_minutes is {self.step_minutes}; more than 0 is expected")

    @property
    def stride(self) -> int:
        """Tile starts and sizes are multiples of this many cells."""
        return int(2**self.depth)

    @property
    def radius(self) -> int:
        """Cells along a border of a tile that feel what lies outside it; exact, for borders on the lattice of strides.

        >>> UnetSpec(depth=1).radius, UnetSpec(depth=3).radius
        (8, 46)
        """
        near = range(8 * self.stride)
        below = [p + 1 for p in near if _decoded(p, p, 0, self.depth)[0] < 0]
        above = [p + 1 for p in near if _decoded(-1 - p, -1 - p, 0, self.depth)[1] >= 0]
        return max(below + above)


def _decoded(first: int, last: int, level: int, depth: int) -> tuple[int, int]:
    """Input cells behind cells first to last of a level's output on the way up."""
    if level == depth:
        return _encoded(first, last, level)
    first, last = first - 2, last + 2
    below = _decoded(first // 2, last // 2, level + 1, depth)
    beside = _encoded(first, last, level)
    return min(below[0], beside[0]), max(below[1], beside[1])


def _encoded(first: int, last: int, level: int) -> tuple[int, int]:
    """Input cells behind cells first to last of a level's output on the way down."""
    first, last = first - 2, last + 2
    return (first, last) if level == 0 else _encoded(2 * first, 2 * last + 1, level - 1)


def write_graph(spec: UnetSpec) -> onnx.ModelProto:
    """The graph: `frames` (n, frame, h, w) to `forecast` (n, lead, h, w), log10 of mm h-1; h, w multiples of stride."""
    graph, random = Graph("unet"), np.random.default_rng(spec.seed)
    value, channels, skips = _members(graph, spec), spec.frames, []
    for level in range(spec.depth):
        value, channels = _pair(graph, random, value, channels, spec.width * 2**level)
        skips.append(value)
        value = graph.op("MaxPool", value, kernel_shape=(2, 2), strides=(2, 2))
    value, channels = _pair(graph, random, value, channels, spec.width * 2**spec.depth)
    for level in reversed(range(spec.depth)):
        half = spec.width * 2**level
        weights = graph.floats(_he(random, (channels, half, 2, 2), channels))
        raised = graph.op("ConvTranspose", value, weights, strides=(2, 2))
        value, channels = _pair(graph, random, graph.concat([raised, skips[level]]), 2 * half, half)
    last = graph.floats(CORRECTION * _he(random, (spec.leads, channels, 1, 1), channels))
    newest = graph.channels("frames", spec.frames - 1, spec.frames)
    graph.add(_mean(graph, spec, graph.op("Conv", value, last)), newest)
    return graph.model(spec.frames, spec.leads, "forecast")


def _members(graph: Graph, spec: UnetSpec) -> str:
    """The fields (member n, frame, h, w) of all members."""
    if spec.members == 1:
        return "frames"
    return graph.concat([graph.scale("frames", 1 + SPREAD * member) for member in range(spec.members)], axis=0)


def _mean(graph: Graph, spec: UnetSpec, value: str) -> str:
    """(member n, lead, h, w) to the mean of the members (n, lead, h, w)."""
    if spec.members == 1:
        return value
    shape = graph.op("Shape", "frames")
    batch, field = graph.part(shape, 0, 0, 1), graph.part(shape, 0, 2)
    sizes = graph.concat([graph.integers([spec.members]), batch, graph.integers([spec.leads]), field], axis=0)
    return graph.op("ReduceMean", graph.op("Reshape", value, sizes), axes=(0,), keepdims=0)


def _pair(graph: Graph, random: np.random.Generator, value: str, given: int, made: int) -> tuple[str, int]:
    """Two 3 x 3 convolutions with ReLU, and how many channels they make."""
    for channels in (given, made):
        weights = graph.floats(_he(random, (made, channels, 3, 3), 9 * channels))
        value = graph.op("Relu", graph.op("Conv", value, weights, graph.floats(np.zeros(made)), pads=(1, 1, 1, 1)))
    return value, made


def _he(random: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    """Source: He et al. (2015), arXiv 1502.01852: keeps the size of activations from layer to layer."""
    return random.normal(scale=(2 / fan_in) ** 0.5, size=shape)
