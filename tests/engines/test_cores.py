import os

import pytest

from engines import cores
from engines.cores import usable_cores


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 16 cores with a control group a/b below its root; writes limits into it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    (tmp_path / "groups/a/b").mkdir(parents=True)
    ours = tmp_path / "ours"
    ours.write_text("3:cpuset:/elsewhere\n0::/a/b\n")

    def found(**limits):
        for folder, limit in limits.items():
            (tmp_path / "groups" / {"root": ".", "a": "a", "b": "a/b"}[folder] / "cpu.max").write_text(limit)
        return usable_cores(tmp_path / "groups", ours)

    return found


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 16),
        ({"b": "max 100000\n"}, 16),
        ({"b": "400000 100000\n"}, 4),
        ({"b": "250000 100000\n"}, 3),  # two and a half: three threads are not too many
        ({"b": "10000 100000\n"}, 1),
        ({"a": "200000 100000\n", "b": "max 100000\n"}, 2),  # a group above has less
        ({"root": "800000 100000\n", "a": "max 100000\n"}, 8),  # a container sees its own as the root
        ({"b": "3200000 100000\n"}, 16),  # more than the machine has
        ({"b": "damaged\n"}, 16),
        ({"b": "100000 0\n"}, 16),
    ],
)
def test_the_least_of_affinity_and_quotas_counts(machine, limits, expected):
    assert machine(**limits) == expected


def test_a_machine_without_control_groups_has_what_it_may_run_on(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert usable_cores(tmp_path, tmp_path / "none") == 2


def test_where_nobody_knows_there_is_one(tmp_path, monkeypatch):
    monkeypatch.delattr(cores.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(cores.os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path, tmp_path / "none") == 1
