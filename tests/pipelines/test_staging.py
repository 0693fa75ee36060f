import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import pytest

from pipelines import staging
from pipelines.staging import is_abandoned, new_work, this_process


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


def test_machines_of_one_name_are_told_apart(monkeypatch, tmp_path):
    here = this_process()
    monkeypatch.setattr(staging, "_MACHINE", tmp_path / "machine-id")
    nameless = this_process()
    (tmp_path / "machine-id").write_text("0123456789abcdef")
    assert replace(here, boot="00000000-1").is_gone(this_process()) is None
    assert len({here.host, nameless.host, this_process().host}) == 3


def test_work_of_a_living_process_is_not_abandoned():
    assert not is_abandoned(new_work("1530.zarr"), untouched_for(days=400))


def test_work_of_another_host_is_abandoned_after_a_day_untouched():
    theirs = new_work("1530.zarr").replace(this_process().host, "another-host")
    assert not is_abandoned(theirs, untouched_for(hours=23))
    assert is_abandoned(theirs, untouched_for(hours=25))


def test_what_squall_did_not_name_is_left_alone():
    assert not is_abandoned("my~notes", untouched_for(days=400))


def untouched_for(**ages):
    return lambda work: timedelta(**ages).total_seconds()
