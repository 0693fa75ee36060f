"""A packing as a table gives the codes of the packing, whatever the bits of a value."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipelines.model_space import ModelSpace, make_space
from pipelines.product import Packing
from pipelines.thresholds import NEAR, find_thresholds, from_keys, to_keys
from pipelines.transform import Encoder
from pipelines.units import Linear

SPACES = {
    "identity": [],
    "log10": {"name": "log10", "threshold": 0.1, "zero": -2.0},
    "log10 with offset": {"name": "log10", "offset": 0.01},
    "db": {"name": "db", "threshold": 0.1, "zero": -15.0},
    "clip": {"name": "clip", "minimum": 0.0, "maximum": 20.0},
    "standardise": {"name": "standardise", "mean": 3.0, "std": 12.5},
    "two steps": [{"name": "dbr", "threshold": 0.1, "zero": -15.0}, {"name": "standardise", "mean": -5.0, "std": 10.0}],
}
ANY_BITS = hnp.arrays(np.uint32, 200)
SPECIAL = np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.0, -30.0])


@st.composite
def encoders(draw):
    packing = Packing(
        dtype=draw(st.sampled_from(["int16", "uint16", "uint8"])),
        scale_factor=draw(st.sampled_from([0.001, 0.01, 0.5])),
        add_offset=draw(st.sampled_from([-32.0, 0.0, 7.3])),
    )
    space = make_space(
        draw(st.sampled_from(list(SPACES.values()))), missing_below=draw(st.sampled_from([None, -0.5, -1.5, 2.0]))
    )
    return Encoder(
        packing, space, Linear(draw(st.sampled_from([1.0, 1 / 3600, 60.0])), draw(st.sampled_from([0.0, 273.15])))
    )


def encode(encoder, values):
    codes = np.empty((1, 1, values.size), encoder.dtype)
    encoder.encode(values.reshape(codes.shape), codes)
    return codes.ravel()


def look_up(encoder, values):
    """What the docstring of `Encoder.thresholds` says."""
    codes = encoder.limits[0] + np.searchsorted(encoder.thresholds, values, side="right")
    below = encoder.space.missing_below
    missing = np.isnan(values) if below is None else ~(values >= np.float32(below))
    return np.where(missing, encoder.fill, codes)


def assert_told(encoder, values):
    """The table tells the codes, but one code off beside a threshold."""
    differs = look_up(encoder, values) != encode(encoder, values)
    keys, edges = to_keys(values[differs]), to_keys(encoder.thresholds)
    assert (np.abs(look_up(encoder, values) - encode(encoder, values).astype(int)) <= 1).all()
    assert all(np.abs(edges - key).min() <= NEAR for key in keys)


@settings(max_examples=40, deadline=None)
@given(encoder=encoders(), bits=ANY_BITS, at=hnp.arrays(np.int64, 50, elements=st.integers(0, 253)))
def test_the_table_tells_the_code_of_any_bits(encoder, bits, at):
    near = encoder.thresholds[at]
    with np.errstate(invalid="ignore"):
        beside = np.nextafter(near, np.float32(-np.inf))
    assert_told(encoder, np.concatenate([bits.view(np.float32), SPECIAL, near, beside]))


@settings(max_examples=40, deadline=None)
@given(encoder=encoders(), values=hnp.arrays(np.float32, 300, elements=st.floats(-60, 400, width=32)))
def test_the_table_tells_the_code_of_what_a_model_gives(encoder, values):
    assert_told(encoder, values)


@settings(max_examples=30, deadline=None)
@given(encoder=encoders())
def test_thresholds_rise_and_are_the_least_values_of_their_codes(encoder):
    table, codes = encoder.thresholds, np.arange(encoder.limits[0] + 1, encoder.limits[1] + 1)
    assert (table.shape, table.dtype) == (codes.shape, np.float32)
    there = ~np.isnan(table)
    assert (table[there][:-1] <= table[there][1:]).all()
    assert (np.diff(there.astype(int)) <= 0).all()
    whole = Encoder(encoder.packing, ModelSpace(encoder.space.steps), encoder.change)
    inner = there & (table > -np.inf)
    below = from_keys(to_keys(table[inner]) - NEAR - 1)
    assert (encode(whole, table[there]) >= codes[there]).all()
    assert (encode(whole, below) < codes[inner]).all()


def test_without_a_formula_the_thresholds_are_those_of_rounding_half_to_even():
    table = Encoder(Packing(dtype="uint8", scale_factor=1.0)).thresholds
    above_half = np.nextafter(np.float32(0.5), np.float32(1))
    assert table[:4].tolist() == [above_half, 1.5, np.nextafter(np.float32(2.5), np.float32(3)), 3.5]
    assert len(table) == 254


def test_codes_that_no_value_has_have_no_threshold():
    table = Encoder(Packing(dtype="uint8", scale_factor=1.0), make_space(SPACES["clip"])).thresholds
    assert np.isnan(table[20:]).all()
    assert not np.isnan(table[:20]).any()


def falling(values):
    return np.where(values < 0, 0, np.where(values < 1000, 5, 3))


@pytest.mark.parametrize("code_of", [falling, lambda values: 9 - np.clip(values, 0, 9).astype(int)])
def test_what_falls_somewhere_has_no_table(code_of):
    assert find_thresholds(code_of, (0, 9)) is None


@pytest.mark.parametrize(
    "encoder",
    [
        Encoder(Packing(), change=Linear(-1.0)),
        Encoder(Packing(), make_space({"name": "log10", "threshold": -5.0, "offset": 10.0})),
    ],
    ids=["negative factor", "dry is more than what is a little wet"],
)
def test_an_encoder_that_is_not_monotone_has_no_table(encoder):
    assert encoder.thresholds is None


def test_one_code_off_is_borne_beside_a_threshold_and_nowhere_else():
    def blurred(width):
        def code_of(values):
            keys = to_keys(values) - to_keys(np.float32([10.0]))
            return np.where(np.abs(keys) <= width, keys % 2, keys > 0).astype(int)

        return code_of

    assert find_thresholds(blurred(1), (0, 1)) is not None
    assert find_thresholds(blurred(4 * NEAR), (0, 1)) is None


@given(bits=ANY_BITS)
def test_keys_are_in_the_order_of_values_and_give_them_back(bits):
    values = bits.view(np.float32)
    values = values[~np.isnan(values)]
    assert (from_keys(to_keys(values)).view(np.uint32) == values.view(np.uint32)).all()
    order = np.argsort(to_keys(values))
    assert (np.diff(values[order].astype(np.float64)) >= 0).all()
