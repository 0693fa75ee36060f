"""The three ways to run: a local Ray that squall starts, a running cluster, and a submitted Ray job."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import xarray as xr

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def command(*args, env=None, timeout=120):
    return subprocess.run(list(map(str, args)), cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)


def environment(**more) -> dict[str, str]:
    """What a cron job has, without a cluster of the machine that runs the tests."""
    ours = {"RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | ours | more


@pytest.fixture(scope="module")
def cluster():
    """The environment of a client of a head node on loopback with a dashboard and a token."""
    port, dashboard = free_port(), free_port()
    env = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    with tempfile.TemporaryDirectory(prefix="sq", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}",
             f"--dashboard-agent-listen-port={free_port()}", "--num-cpus=2", "--node-ip-address=127.0.0.1",
             f"--temp-dir={folder}", "--object-store-memory=200000000"],
            env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        yield env | {"RAY_ADDRESS": f"127.0.0.1:{port}", "DASHBOARD": f"http://127.0.0.1:{dashboard}"}
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            process.kill()
        head.wait(30)


def wait_for_dashboard(env):
    for _ in range(60):
        if command(BIN / "ray", "job", "list", env=env | {"RAY_ADDRESS": env["DASHBOARD"]}).returncode == 0:
            return
        time.sleep(1)
    pytest.fail("the dashboard of the test cluster did not come up within a minute")


def test_a_local_ray_is_started_and_ended(product):
    done = command(BIN / "squall", "run", product, "--format", "json", env=environment())
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["status"] == "published"
    assert xr.open_zarr(report["path"]).sizes["lead_time"] == 3


def test_a_user_without_a_home_makes_forecasts_and_nobody_is_told(product, tmp_path):
    (tmp_path / "home").write_text("no folder")
    nowhere = {"HOME": str(tmp_path / "home"), "SQUALL_CACHE": str(tmp_path / "cache")}
    env = {k: v for k, v in environment(**nowhere).items() if k not in ("CI", "RAY_USAGE_STATS_ENABLED")}
    done = command(BIN / "squall", "run", product, "--format", "json", env=env)
    assert done.returncode == 0, done.stderr
    assert "telemetry" not in done.stderr
    told = (
        "import jobs.pool, os; jobs.pool.connect(); print(jobs.pool.ray._common.usage.usage_lib.usage_stats_enabled())"
    )
    asked = command(BIN / "python", "-c", told, env=env)
    assert asked.stdout.strip() == "False", asked.stderr


def test_a_running_cluster_is_joined_by_its_address_and_its_token(product, cluster):
    wait_for_dashboard(cluster)
    env = {k: v for k, v in cluster.items() if k != "RAY_AUTH_MODE"}
    done = command(BIN / "squall", "run", product, "output.store=joined", env=env)
    assert done.returncode == 0, done.stderr
    assert (product.parent / "joined" / "tiny" / "latest.zarr").exists()


def test_a_submitted_job_publishes(product, cluster):
    wait_for_dashboard(cluster)
    env = cluster | {"RAY_ADDRESS": cluster["DASHBOARD"]}
    submit = [BIN / "ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", "jobs.nowcast", product]
    done = command(*submit, env=env)
    for _ in range(30):  # the dashboard answers before the agent that starts jobs does
        if "No available agent" not in done.stderr:
            break
        time.sleep(1)
        done = command(*submit, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (product.parent / "out" / "tiny" / "latest.zarr").exists()


def test_a_cluster_that_is_not_there_is_named(product):
    done = command(BIN / "squall", "run", product, env=environment(RAY_ADDRESS=f"127.0.0.1:{free_port()}"))
    assert done.returncode == 1
    assert "RAY_ADDRESS" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_ray_is_there_stops_a_command_as_ctrl_c_does(product, number):
    code = f"import os, jobs.command as c; c.ends_clearly(lambda: os.kill(os.getpid(), {number:d}))()"
    done = command(BIN / "python", "-c", code, env=environment())
    assert done.returncode == 130
    assert "interrupted" in done.stderr
    ignoring = f"import signal; signal.signal({number:d}, signal.SIG_IGN); {code}"
    assert command(BIN / "python", "-c", ignoring, env=environment()).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_a_run_cleanly_and_nothing_is_published(product, number):
    slow = ["tiling.tile=[16,16]", "output.shards=[8,8]", "output.chunks=[8,8]"]
    run = subprocess.Popen(
        [BIN / "squall", "run", product, *slow], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    )
    staging = product.parent / "out" / "tiny" / ".staging"
    while run.poll() is None and not list(staging.glob("*~*/store/precip_rate/c/0/0/*/*")):
        time.sleep(0.05)
    run.send_signal(number)
    _, stderr = run.communicate(timeout=30)
    assert run.returncode == 130, stderr
    assert "interrupted; nothing is half published" in stderr
    assert not list((product.parent / "out").rglob("*.zarr"))
    assert not list(staging.glob("*"))


def test_ctrl_c_stops_a_backfill_cleanly_and_the_same_command_goes_on(product):
    slow = ["tiling.tile=[16,16]", "output.shards=[8,8]", "output.chunks=[8,8]"]
    backfill = subprocess.Popen(
        [BIN / "squall", "backfill", product, *slow], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    )
    out = product.parent / "out" / "tiny"
    while backfill.poll() is None and not list(out.glob(".staging/*~*/store/precip_rate/c/0/0/*/*")):
        time.sleep(0.05)
    backfill.send_signal(signal.SIGINT)
    _, stderr = backfill.communicate(timeout=30)
    assert backfill.returncode == 130, stderr
    assert "goes on" in stderr
    assert not list(out.glob(".staging/*"))
    done = command(BIN / "python", "-m", "jobs.backfill", product, "--format", "json", env=environment())
    assert done.returncode == 0, done.stderr
    tally = json.loads(done.stdout)["tally"]
    assert tally["published"] + tally["already"] == len(list(out.glob("2024/06/01/*.zarr"))) == 5
