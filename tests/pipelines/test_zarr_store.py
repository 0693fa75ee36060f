"""How a Zarr store is reached; what is read from one shows in test_source.py."""

import pytest

from pipelines.zarr_store import connect


@pytest.mark.parametrize("url", ["s3://bucket/radar.zarr", "gs://bucket/radar.zarr"])
def test_object_stores_are_reached_without_a_request(url):
    assert type(connect(url)).__name__ == "ObjectStore"
