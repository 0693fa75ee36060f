"""A run is told by its name: whether it has ended is seen on its own machine, and nowhere else."""

import subprocess
import sys

import pytest

from jobs.holder import has_ended, name_this_run


@pytest.fixture
def other():
    """The name of a run in a process that lives until its input ends."""
    code = "from jobs.holder import name_this_run; print(name_this_run(), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True) as p:
        yield p.stdout.readline().strip(), p


def test_names_of_two_runs_of_one_process_differ_and_neither_has_ended():
    first, second = name_this_run(), name_this_run()
    assert first != second
    assert not has_ended(first)


def test_a_run_has_ended_once_its_process_was_killed(other):
    name, process = other
    assert not has_ended(name)
    process.kill()
    process.wait()
    assert has_ended(name)


@pytest.mark.parametrize("part", [1, 2])
def test_a_run_of_another_machine_or_container_is_not_said_to_have_ended(part):
    parts = name_this_run().split("~")
    parts[part] = parts[part][:-1] + ("x" if part == 1 else "0" if parts[2][-1] != "0" else "1")
    parts[3] = "999999999"
    assert not has_ended("~".join(parts))


@pytest.mark.parametrize("name", ["", "0a1b2c", "a~b~c~d~e~f"])
def test_a_name_of_another_kind_says_nothing(name):
    assert not has_ended(name)
