"""The table of codes, and the ways it is searched: as a sorted list, in numpy as the GPU does, and by the kernel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engines.codes import CodeTable, ValueTable, to_keys

SPECIAL = np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1e-39, 3.4e38, -3.4e38, 0.5, -0.5])


@st.composite
def tables(draw):
    """Few or many thresholds, close together or far apart, some of them equal, some of codes that no value has."""
    dtype, lowest, fill, most = draw(
        st.sampled_from([("int16", -32767, -32768, 65534), ("uint16", 0, 65535, 65534), ("uint8", 0, 255, 254)])
    )
    number = draw(st.integers(1, most))
    start, step = draw(st.sampled_from([(-2.0, 0.01), (-1e30, 1e26), (0.1, 1e-7), (-1e-38, 1e-42), (100.0, 1e-6)]))
    thresholds = (start + step * np.arange(number)).astype(np.float32)
    thresholds[number - draw(st.integers(0, number // 2)) :] = np.nan
    thresholds[: draw(st.integers(0, number // 3))] = -np.inf
    return CodeTable(thresholds, dtype, lowest, fill, draw(st.sampled_from([None, -0.5, 0.0, 2.5])))


def sought(table, values):
    """The code of each value by the words of `CodeTable`."""
    codes = table.lowest + np.searchsorted(table.thresholds, values, side="right")
    missing = np.isnan(values) | (values < np.float32(-np.inf if table.missing_below is None else table.missing_below))
    return np.where(missing, table.fill, codes).astype(table.dtype)


def around(table):
    """Special values, some thresholds and their neighbours."""
    some = table.thresholds[:: max(1, len(table.thresholds) // 500)]
    with np.errstate(all="ignore"):
        beside = [np.nextafter(some, np.float32(end)) for end in (-np.inf, np.inf)]
    return np.concatenate([SPECIAL, some, *beside])


@settings(max_examples=60, deadline=None)
@given(table=tables(), bits=hnp.arrays(np.uint32, 300))
def test_a_search_in_two_steps_finds_what_a_search_of_all_finds(table, bits):
    values = np.concatenate([bits.view(np.float32), around(table)])
    np.testing.assert_array_equal(table.search(values), sought(table, values))


@settings(max_examples=10, deadline=None)
@given(table=tables())
def test_the_codes_of_halves_are_those_of_their_values(table):
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(table.of_halves, sought(table, halves.astype(np.float32)))


@given(table=tables())
def test_a_look_up_begins_where_the_thresholds_of_its_upper_bits_begin(table):
    keys = to_keys(around(table))
    upper = (keys + 2**31) >> 16
    rank = np.searchsorted(table.keys, keys, side="right")
    assert (table.starts[upper] <= rank).all()
    assert (rank <= table.starts[upper + 1]).all()
    assert table.starts[-1] == len(table.thresholds)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": "int32"}, "codes are int32; expected int16, uint16 or uint8"),
        ({"thresholds": np.zeros(3)}, "thresholds of float64 in this order; expected float32, not falling"),
        ({"thresholds": np.float32([1, 0])}, "expected float32, not falling"),
        ({"thresholds": np.float32([np.nan, 0])}, "expected float32, not falling"),
        ({"lowest": 254}, "3 thresholds above the code 254 do not fit uint8"),
        ({"fill": -1}, "do not fit uint8"),
    ],
)
def test_a_table_that_cannot_be_is_refused(changed, message):
    fine = {"thresholds": np.float32([0, 1, 2]), "dtype": "uint8", "lowest": 0, "fill": 255}
    CodeTable(**fine)
    with pytest.raises(ValueError, match=message):
        CodeTable(**fine | changed)


@pytest.mark.parametrize(
    ("values", "dtype", "missing", "message"),
    [
        (np.zeros(256, np.float32), "int32", None, "codes are int32; expected integers of 8 or 16 bits"),
        (np.zeros(65536, np.float32), "float16", None, "codes are float16; expected integers of 8 or 16 bits"),
        (np.zeros(256, np.float64), "uint8", None, "values are float64; expected float32 or float16"),
        (
            np.zeros(255, np.float32),
            "uint8",
            None,
            r"values of uint8 are \(255,\); expected \(256,\), one of each",
        ),
        (np.zeros(256, np.float32), "int16", None, r"values of int16 are \(256,\); expected \(65536,\)"),
        (np.zeros(256, np.float16), "int8", np.zeros(9, bool), r"missing of int8 are \(9,\); expected \(256,\)"),
    ],
)
def test_a_table_of_values_that_does_not_fit_its_codes_is_refused(values, dtype, missing, message):
    with pytest.raises(ValueError, match=message):
        ValueTable(values, dtype, missing)
