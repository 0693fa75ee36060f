import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cycles import cycle_name, find_cycle, find_cycles, latest_cycle, list_cycles, newest_cycle, parse_name
from pipelines.errors import ConfigError

seconds = st.integers(0, 4_000_000_000).map(lambda s: np.datetime64(s, "s").astype("datetime64[ns]"))


@given(seconds, st.integers(0, 99))
def test_a_name_gives_back_its_cycle(time, revision):
    name = cycle_name(time, revision)
    cycle = parse_name(name)
    assert (cycle.reference_time, cycle.revision) == (time, revision)
    assert parse_name(cycle_name(time, revision, ".json"), ".json") == cycle


@pytest.mark.parametrize(
    ("time", "name"),
    [("2016-09-28T15:30", "2016/09/28/1530.zarr"), ("2016-09-28T00:00:36", "2016/09/28/000036.zarr")],
)
def test_names_are_what_the_documentation_says(time, name):
    assert cycle_name(np.datetime64(time, "ns")) == name


@pytest.mark.parametrize("time", ["NaT", "2016-09-28T15:30:00.5"])
def test_a_time_that_has_no_name_is_refused(time):
    with pytest.raises(ConfigError, match="not a whole second"):
        cycle_name(np.datetime64(time, "ns"))


@pytest.mark.parametrize(
    "name",
    [
        "latest.zarr",
        "2016/09/28/.1530.zarr",
        "2016/09/28/1530.r0.zarr",
        "2016/09/28/15300.zarr",
        "2016/13/28/1530.zarr",
        "2016/09/28/2460.zarr",
        "16/09/28/1530.zarr",
        ".staging/x~y/store",
        "2016/09/28/1530.json",
        "2016/09/28/1530.3f2a5c01.zarr",
    ],
)
def test_what_is_not_named_like_a_cycle_is_none(name):
    assert parse_name(name) is None


def make(folder: Path, *names: str) -> str:
    for name in names:
        (folder / "rain" / name).mkdir(parents=True)
    return str(folder)


def test_the_highest_revision_of_each_cycle_is_listed_oldest_first(tmp_path):
    root = make(
        tmp_path,
        "2016/09/28/1530.zarr",
        "2016/09/28/1530.r2.zarr",
        "2016/09/28/1530.r10.zarr",
        "2016/09/27/2355.zarr",
        ".staging/201609281535.zarr~host~boot~1~1~ab",
        "notes",
    )
    (tmp_path / "rain/2016/readme.txt").write_text("not a folder")
    listed = [str(Path(c.path).relative_to(tmp_path / "rain")) for c in list_cycles(root, "rain")]
    assert listed == ["2016/09/27/2355.zarr", "2016/09/28/1530.r10.zarr"]
    assert newest_cycle(root, "rain").revision == 10
    assert find_cycle(root, "rain", np.datetime64("2016-09-28T15:30", "ns")).revision == 10
    assert find_cycle(root, "rain", np.datetime64("2016-09-28T15:35", "ns")) is None


def test_many_reference_times_are_looked_up_with_one_listing_a_day(tmp_path, monkeypatch):
    names = ["28/1530.zarr", "28/1530.r1.zarr", "28/153036.zarr", "29/0000.zarr"]
    root = make(tmp_path, *(f"2016/09/{name}" for name in names))
    times = np.datetime64("2016-09-28T15:00", "ns") + np.arange(60) * np.timedelta64(600, "s")
    listed, listdir = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or listdir(path))
    found = dict(find_cycles(root, "rain", [*times, np.datetime64("2016-09-30T00:00", "ns")]))
    assert len(listed) == 3
    assert len(found) == 61
    standing = {str(time)[:16]: cycle.revision for time, cycle in found.items() if cycle is not None}
    assert standing == {"2016-09-28T15:30": 1, "2016-09-29T00:00": 0}
    cycles = {time: find_cycle(root, "rain", time) for time in found}
    assert {time: cycle and cycle.revision for time, cycle in cycles.items()} == {
        time: name and name.revision for time, name in found.items()
    }


def test_an_empty_day_does_not_hide_the_newest_cycle(tmp_path):
    root = make(tmp_path, "2016/09/27/2355.zarr", "2016/09/28", "2017")
    assert newest_cycle(root, "rain").path.endswith("27/2355.zarr")


def test_a_product_that_was_never_published_has_no_cycles(tmp_path):
    assert list_cycles(str(tmp_path), "rain") == []
    assert newest_cycle(str(tmp_path), "rain") is None
    assert latest_cycle(str(tmp_path), "rain") is None


def test_a_pointer_to_a_cycle_that_is_gone_counts_as_none(tmp_path):
    root = make(tmp_path, "2016/09/27/2355.zarr")
    os.symlink("2016/09/28/1530.zarr", tmp_path / "rain/latest.zarr")
    assert latest_cycle(root, "rain") is None


def test_a_plain_web_server_is_refused():
    with pytest.raises(ConfigError, match=r"no forecasts can be kept at https://host; a plain web server takes no"):
        list_cycles("https://host/x", "rain")
