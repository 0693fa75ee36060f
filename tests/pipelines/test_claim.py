"""Claims: what they say comes back, and what is damaged or leads elsewhere is refused with its name."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.claim import Claim, read_claim
from pipelines.cycles import cycle_name
from pipelines.errors import OutputError

URL, STORE = "s3://bucket/rain/2016/09/28/1530.json", "2016/09/28/1530.3f2a5c01.zarr"


@given(st.datetimes(), st.integers(0, 99), st.integers(0, 2**32 - 1))
def test_a_claim_comes_back(time, revision, random):
    name = cycle_name(np.datetime64(time, "s"), revision, ".json")
    claim = Claim(name, f"{name.partition('.')[0]}.{random:08x}.zarr")
    assert read_claim(URL, claim.as_json()) == claim


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b'{"store": 1}', b"\xff"])
def test_what_is_no_claim_is_named(data):
    with pytest.raises(
        OutputError, match=r"s3://bucket/.*1530\.json is damaged \(.*\); expected JSON with cycle and store"
    ):
        read_claim(URL, data)


@pytest.mark.parametrize(
    "store", ["", ".", "2016/09/28", "2016/09/28/1530.r1.zarr", f"../{STORE}", f"{STORE}/x", 1, None]
)
def test_a_claim_names_the_store_of_a_run_and_nothing_else(store):
    """What a marker names is removed: it must not be everything."""
    with pytest.raises(OutputError, match=r"names Claim\(.*\); expected a store such as"):
        read_claim(URL, json.dumps({"cycle": "", "store": store}).encode())
