"""Who can work on a cluster, and how a cluster that is not there is noticed."""

import os

import psutil
import pytest

from jobs.pool import Resources, connect, disconnect, the_same_command
from pipelines.planner import Crew


@pytest.mark.parametrize(
    ("resources", "wanted", "crew"),
    [
        (Resources(0, 2), None, Crew(2, shared=True, cores=2)),
        (Resources(0, 16), 4, Crew(4, shared=True, cores=16)),
        (Resources(0, 2), 8, Crew(2, shared=True, cores=2)),
        (Resources(4, 64), None, Crew(16, shared=False, cores=64, per_gpu=4)),
        (Resources(4, 64), 1, Crew(1, shared=False, cores=64)),
        (Resources(4, 64), 6, Crew(6, shared=False, cores=64, per_gpu=2)),
        (Resources(1, 6), None, Crew(1, shared=False, cores=6)),
        (Resources(2, 4), None, Crew(2, shared=False, cores=4)),
    ],
)
def test_workers_share_gpus_where_there_are_gpus_and_take_a_core_elsewhere(resources, wanted, crew):
    assert resources.crew(wanted) == crew


def test_the_user_says_how_many_workers_share_a_gpu():
    assert Resources(2, 64).crew(None, per_gpu=1) == Crew(2, shared=False, cores=64)
    assert Resources(2, 64).crew(None, per_gpu=8) == Crew(16, shared=False, cores=64, per_gpu=8)


def test_a_cluster_that_does_not_answer_is_an_error_at_once(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConnectionError, match=r"RAY_ADDRESS=127\.0\.0\.1:1"):
        connect()


@pytest.mark.parametrize(
    ("address", "says"),
    [("", "the same command"), ("host:6379", "once its cluster is stopped and started again the same command")],
)
def test_who_must_start_a_ray_that_has_ended_is_said(monkeypatch, address, says):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert the_same_command() == says


@pytest.mark.ray
def test_a_ray_of_our_own_listens_on_loopback_alone(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = dict(os.environ)
    connect(cores=1)
    try:
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = [c.laddr.ip for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
        assert len(listening) > 5
        assert {ip.removeprefix("::ffff:") for ip in listening} <= {"127.0.0.1", "::1"}
        assert dict(os.environ).items() >= before.items()
        assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ
    finally:
        disconnect()
