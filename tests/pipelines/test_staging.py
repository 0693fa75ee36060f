import os
import subprocess
import sys
from dataclasses import replace

import pytest

from pipelines.staging import abandoned, make_staging, this_process


def test_this_process_is_not_gone():
    assert this_process().is_gone(this_process()) is False


def test_a_process_that_ended_is_gone():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert replace(this_process(), pid=child.pid).is_gone(this_process()) is True


def test_a_later_process_with_the_same_number_is_another():
    assert replace(this_process(), start="1").is_gone(this_process()) is True


def test_a_process_of_an_earlier_boot_is_gone():
    assert replace(this_process(), boot="00000000-1").is_gone(this_process()) is True


@pytest.mark.parametrize(
    "elsewhere",
    [{"host": "another-host"}, {"boot": this_process().boot.partition("-")[0] + "-1"}],
    ids=["host", "container"],
)
def test_a_process_elsewhere_cannot_be_seen(elsewhere):
    assert replace(this_process(), **elsewhere).is_gone(this_process()) is None


def test_a_folder_of_a_living_process_is_not_abandoned(tmp_path):
    make_staging(str(tmp_path), "rain", "1530.zarr")
    assert abandoned(str(tmp_path), "rain") == []


def test_a_folder_of_another_host_is_abandoned_after_a_day_untouched(tmp_path):
    mine = make_staging(str(tmp_path), "rain", "1530.zarr")
    theirs = mine.rename(mine.with_name(mine.name.replace(this_process().host, "another-host")))
    (theirs / "store").mkdir()
    assert abandoned(str(tmp_path), "rain") == []
    os.utime(theirs, (0, 0))
    assert abandoned(str(tmp_path), "rain") == []
    os.utime(theirs / "store", (0, 0))
    os.utime(theirs, (0, 0))
    assert abandoned(str(tmp_path), "rain") == [theirs]


def test_a_folder_that_squall_did_not_name_is_left_alone(tmp_path):
    (tmp_path / "rain/.staging/my~notes").mkdir(parents=True)
    assert abandoned(str(tmp_path), "rain") == []
