"""Windows are boxes of cells; a grid knows its cells and how far apart they are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.grid import Grid, Window

corners = st.integers(-50, 50)


@st.composite
def windows(draw):
    (y0, y1), (x0, x1) = sorted((draw(corners), draw(corners))), sorted((draw(corners), draw(corners)))
    return Window(y0, y1, x0, x1)


def cells(window: Window) -> set[tuple[int, int]]:
    return {(y, x) for y in range(window.y0, window.y1) for x in range(window.x0, window.x1)}


@given(windows(), windows())
def test_a_clipped_window_holds_the_cells_that_both_have(one, other):
    assert cells(one.clip(other)) == cells(one) & cells(other)
    assert other.contains(one.clip(other))


@given(windows(), st.integers(0, 9))
def test_growing_adds_cells_on_every_side(window, halo):
    grown = window.grow(halo)
    assert grown.contains(window)
    assert grown.shape == (window.shape[0] + 2 * halo, window.shape[1] + 2 * halo)


@given(windows(), windows())
def test_a_window_within_another_keeps_its_shape(one, origin):
    assert one.within(origin).shape == one.shape
    assert one.within(origin).cells == one.cells


@pytest.mark.parametrize("box", [(3, 2, 0, 1), (0, 1, 3, 2)])
def test_a_window_that_ends_before_it_starts_is_refused(box):
    with pytest.raises(ValueError, match="ends before it starts"):
        Window(*box)


def test_a_window_prints_as_one_would_say_it():
    assert str(Window(0, 4, -2, 8)) == "y 0:4, x -2:8"


@pytest.mark.parametrize(
    ("units", "y", "x", "spacing"),
    [
        ("m", [3000.0, 2000.0, 1000.0], [0.0, 500.0], (1.0, 0.5)),
        ("km", [3.0, 1.0], [0.0, 1.0], (2.0, 1.0)),
        ("degrees_north", [61.0, 60.0, 59.0], [0.0, 1.0], (111.195, 111.195 / 2)),
        ("m", [0.0], [0.0], (0.001, 0.001)),
        ("kilometers", [3.0, 1.0], [0.0, 1.0], (2.0, 1.0)),
        ("metres", [3.0, 1.0], [0.0, 1.0], (0.002, 0.001)),
        ("Degrees", [61.0, 60.0, 59.0], [359.0, 0.0], (111.195, 111.195 / 2)),
    ],
)
def test_spacing_is_in_km_whatever_the_units(units, y, x, spacing):
    attrs = {"units": units}
    grid = Grid(np.array(y), np.array(x), "y", "x", attrs, attrs)
    assert grid.spacing_km == pytest.approx(spacing)


@pytest.mark.parametrize(
    ("name", "attributes", "spacing"),
    [
        ("lat", {}, (111.195, 111.195 / 2)),
        ("row", {"standard_name": "latitude"}, (111.195, 111.195 / 2)),
        ("y", {}, (1.0, 1.0)),
    ],
)
def test_without_units_the_name_tells_degrees_and_the_step_km(name, attributes, spacing):
    grid = Grid(np.array([61.0, 60.0, 59.0]), np.array([0.0, 1.0]), name, "x", attributes, {})
    assert grid.spacing_km == pytest.approx(spacing)
    metres = Grid(np.array([0.0, 250.0]), np.array([0.0, 500.0]), "y", "x")
    assert metres.spacing_km == pytest.approx((0.25, 0.5))
