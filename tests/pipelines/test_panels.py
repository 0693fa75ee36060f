from hypothesis import given
from hypothesis import strategies as st

from pipelines.panels import choose_columns, choose_leads


@given(st.integers(1, 400), st.integers(1, 24))
def test_chosen_leads_ascend_to_the_last(count, wanted):
    chosen = choose_leads(count, wanted)
    assert len(chosen) == min(count, wanted)
    assert chosen == sorted(set(chosen))
    assert chosen[0] >= 0
    assert chosen[-1] == count - 1


@given(st.integers(1, 3), st.integers(1, 12), st.floats(0.2, 5), st.booleans())
def test_rows_of_leads_are_full_and_the_past_fits_in_one(past, leads, aspect, verified):
    columns = choose_columns(past, leads, (aspect, 1.0), verified)
    assert leads % columns == 0
    assert columns >= min(past, leads)
