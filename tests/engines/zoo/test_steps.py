"""Every step of advection alone: what a cell comes to does not depend on the tensor around it, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.zoo import AdvectionSpec
from engines.zoo import advection as steps
from engines.zoo.graph import Graph

SPEC = AdvectionSpec((2.0, 2.0))
HEIGHT, WIDTH = 64, 7168
REACH = 16  # cells from which a step takes something, at most
STRIDE = 16


def shift(graph: Graph) -> str:
    """The fields moved by up to 12 cells along each axis, each cell by others."""
    cells = graph.op("Round", graph.op("Clip", graph.channels("frames", 0, 2), graph.floats(-12.0), graph.floats(12.0)))
    return steps._shift(graph, "frames", cells, steps._lattice(graph, "frames"), "border")


def slope(graph: Graph) -> str:
    seen = steps._observed(graph, "frames")
    fields = [(graph.channels("frames", k, k + 1), graph.channels(seen, k, k + 1)) for k in range(3)]
    return steps._slope(graph, SPEC.levels[0], fields)


def solve(graph: Graph) -> str:
    prior, scalars = graph.channels("frames", 0, 2), graph.channels("frames", 2, 3)
    return steps._solve(graph, SPEC, SPEC.levels[0], prior, graph.op("Relu", scalars), scalars, prior)


def enlarge(graph: Graph) -> str:
    """Every eighth value, and what lies between."""
    limited = graph.op("Clip", "frames", graph.floats(-100.0), graph.floats(100.0))
    coarse = graph.part(graph.part(limited, 2, 0, step=8), 3, 0, step=8)
    return steps._enlarge(graph, coarse, 8, 100.0)


def average(graph: Graph) -> str:
    """The means of 2 x 2 cells, each 2 x 2 times."""
    means = steps._average(graph, "frames", 2)
    return graph.op("Resize", means, "", graph.floats((1, 1, 2, 2)), mode="nearest")


# Each step, and how many channels it makes.
STEPS = {
    "track": (lambda graph: steps._tracked(graph, "frames"), 3),
    "average": (average, 3),
    "blur": (lambda graph: steps._blur(graph, "frames"), 3),
    "interior": (lambda graph: steps._interior(graph, steps._observed(graph, "frames")), 3),
    "slope": (slope, 2),
    "solve": (solve, 2),
    "enlarge": (enlarge, 3),
    "shift": (shift, 3),
    "sample": (lambda graph: graph.part(graph.part(steps._sampled(graph, SPEC), 2, 1, -1), 3, 1, -1), 1),
}


@pytest.fixture(scope="module")
def fields() -> np.ndarray:
    """(1, 3, h, w) of all sizes, negative, positive and 0."""
    random, shape = np.random.default_rng(0), (1, 3, HEIGHT, WIDTH)
    return (random.lognormal(0, 3, shape) * random.choice([-1, 0, 1], shape, p=[0.2, 0.2, 0.6])).astype(np.float32)


@pytest.fixture(scope="module", params=STEPS)
def step(request, load, fields):
    """The step on one thread and on two, and what it makes of all fields."""
    (write, channels), graph = STEPS[request.param], Graph("step")
    graph.scale(write(graph), 1.0)
    engines = [load(graph.model(3, channels, "made"), threads) for threads in (1, 2)]
    return engines, engines[0](fields)


@st.composite
def spans(draw, size: int) -> tuple[int, int]:
    """First and last cell, on the lattice, of a tile that has some cells away from its edges."""
    start = draw(st.integers(0, size // STRIDE - 3))
    return start * STRIDE, draw(st.integers(start + 3, size // STRIDE)) * STRIDE


def kept(span: tuple[int, int], size: int) -> tuple[int, int]:
    """The cells that see all they need: those far from an edge, or at an edge of the whole."""
    return span[0] + REACH * (span[0] > 0), span[1] - REACH * (span[1] < size)


@settings(max_examples=20)
@given(rows=spans(HEIGHT), columns=spans(WIDTH), threads=st.integers(1, 2))
def test_a_cell_does_not_depend_on_width_height_position_or_threads(step, fields, rows, columns, threads):
    """At these widths runtimes change their kernels, and values of all sizes show every change of order."""
    (engines, whole), y, x = step, kept(rows, HEIGHT), kept(columns, WIDTH)
    tile = engines[threads - 1](np.ascontiguousarray(fields[..., slice(*rows), slice(*columns)]))
    found = tile[..., y[0] - rows[0] : y[1] - rows[0], x[0] - columns[0] : x[1] - columns[0]]
    expected = whole[..., slice(*y), slice(*x)]
    np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))
