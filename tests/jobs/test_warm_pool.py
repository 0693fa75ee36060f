"""Workers that stay on a running cluster: each run here is a Ray job of its own, as cron starts them."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import xarray as xr
import yaml
from click.testing import CliRunner
from onnx import numpy_helper
from ray._private import ray_constants

from jobs import kept
from jobs.cli import main
from jobs.keeper import list_workers, stop_workers
from jobs.nowcast import forecast
from jobs.outfit import Place
from jobs.pool import connect, disconnect

pytestmark = pytest.mark.ray
TIME = np.datetime64("2024-06-01T12:20", "ns")
ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """A head node on loopback that outlives every run of this module, at RAY_ADDRESS."""
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="sq", ignore_cleanup_errors=True) as d,
    ):
        address = f"127.0.0.1:{free_port()}"
        for name in [name for name in os.environ if name.startswith("RAY_") and "AUTH" not in name]:
            patch.delenv(name)
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)  # as in a process that starts with the variable
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = subprocess.Popen(
            [RAY, "start", "--head", "--block", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false",
             f"--dashboard-agent-listen-port={free_port()}", "--num-cpus=2", "--node-ip-address=127.0.0.1",
             f"--temp-dir={d}", "--object-store-memory=200000000"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        patch.setenv("RAY_ADDRESS", address)
        wait_until(lambda: answers(address))
        yield head
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            process.kill()
        head.wait(30)


@pytest.fixture(autouse=True)
def nobody_is_left():
    yield
    for row in stop_workers(None):
        if row.state == "in use":
            os.kill(row.pid, signal.SIGKILL)


def answers(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as s:
        return s.connect_ex((host, int(port))) == 0


def wait_until(is_so, seconds=60):
    for _ in range(seconds * 10):
        if is_so():
            return
        time.sleep(0.1)
    pytest.fail(f"did not happen within {seconds} s")


def run(product, *overrides):
    report = forecast(product, list(overrides), TIME, replace=True, progress=lambda *_: None)
    return report, list_workers(product)


def pids(rows):
    return {row.pid for row in rows}


def scale_weights(file, factor):
    model = onnx.load(file)
    (weights,) = model.graph.initializer
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(factor), weights.name))
    onnx.save(model, file)


def files_of(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def test_the_next_run_uses_the_same_processes_and_publishes_the_same_bytes(product):
    cold, first = run(product)
    warm, second = run(product)
    assert len(first) == 2
    assert pids(first) == pids(second)
    assert {row.state for row in second} == {"idle"}
    assert all("onnxruntime" in row.engine for row in second)
    assert files_of(cold.path) == files_of(warm.path)


def test_a_changed_product_is_adopted(product):
    _, first = run(product)
    changed, second = run(product, "tiling.tile=[80,80]", "lead_times.until=10min")
    assert pids(first) == pids(second)
    assert xr.open_zarr(changed.path).sizes["lead_time"] == 2


def test_a_promoted_model_is_adopted_by_the_next_cycle_and_provenance_names_it(product, monkeypatch, tmp_path):
    monkeypatch.setenv("SQUALL_REGISTRY", str(tmp_path / "registry"))

    def release(version, factor):
        scale_weights(tmp_path / "blur" / "model.onnx", factor)
        contract = tmp_path / "blur" / "model.yaml"
        contract.write_text(yaml.safe_dump(yaml.safe_load(contract.read_text()) | {"version": version}))
        for args in (["add", str(tmp_path / "blur")], ["promote", "blur", version, "--force", "--why", "a test"]):
            done = CliRunner().invoke(main, ["model", *args])
            assert done.exit_code == 0, done.output

    release("1", 1)
    before, first = run(product, "model.package=registry:blur")
    release("2", 0.5)
    after, second = run(product, "model.package=registry:blur")
    assert pids(first) == pids(second)
    old, new = xr.open_zarr(before.path), xr.open_zarr(after.path)
    assert "blur-2" in new.attrs["source"]
    assert float(new.precip_rate.mean()) == pytest.approx(float(old.precip_rate.mean()) / 2, rel=0.02)


def test_a_worker_that_was_killed_is_replaced(product):
    _, first = run(product)
    os.kill(first[0].pid, signal.SIGKILL)
    _, second = run(product)
    assert len(second) == 2
    assert first[0].pid not in pids(second)
    assert first[1].pid in pids(second)


def test_workers_of_a_run_that_was_killed_are_replaced_at_once_and_the_forecast_is_the_same(product):
    calm, _ = run(product)
    slow = ["tiling.tile=[16,16]", "output.shards=[8,8]", "output.chunks=[8,8]"]
    command = [sys.executable, "-m", "jobs.cli", "run", product, "--replace", *slow]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    staging = product.parent / "out" / "tiny" / ".staging"
    wait_until(lambda: list(staging.glob("*~*/store/precip_rate/c/0/0/*/*")))
    driver.kill()
    driver.wait()
    left = list_workers(product)
    assert {row.state for row in left} == {"abandoned"}
    again, rows = run(product)
    assert not pids(rows) & pids(left)
    assert files_of(again.path) == files_of(calm.path)
    assert not list(staging.iterdir())


def test_fewer_workers_are_kept_if_fewer_are_wanted(product):
    _, first = run(product)
    connect()
    (left,) = kept.claim(kept.Keep("tiny", 60), Place(0, 1, 1), 1)
    disconnect()
    wait_until(lambda: [row.worker for row in list_workers(product)] == [left])
    assert left in {row.worker for row in first}


def test_workers_of_another_size_are_replaced(product):
    _, first = run(product)
    _, second = run(product, "workers=1")  # of two cores
    assert len(second) == 1
    assert not pids(second) & pids(first)


def test_the_cluster_of_one_machine_listens_on_loopback_alone(product, cluster):
    run(product)
    processes = [psutil.Process(), *psutil.Process(cluster.pid).children(recursive=True)]
    listening = [c.laddr.ip for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
    assert len(listening) > 5
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


def test_nothing_stays_if_nothing_is_to(product):
    _, rows = run(product, "keep_warm=0")
    assert rows == []


def test_idle_workers_end_by_themselves(product):
    run(product, "keep_warm=1s")
    wait_until(lambda: not list_workers(product))


def test_workers_of_another_squall_are_replaced(product, monkeypatch):
    _, first = run(product)
    monkeypatch.setattr(kept, "code_version", lambda: "another")
    _, second = run(product)
    assert not pids(first) & pids(second)
    assert len(second) == 2


def test_idle_workers_of_another_product_make_room(product, tmp_path):
    _, first = run(product)
    other = tmp_path / "other.yaml"
    other.write_text(product.read_text().replace("name: tiny", "name: other"))
    _, second = run(other)
    assert len(second) == 2
    assert not pids(list_workers(product)) & pids(first)


def test_status_and_stop_on_the_command_line(product):
    _, rows = run(product)
    shown = CliRunner().invoke(main, ["pool", "status", str(product), "--format", "json"])
    assert {row["pid"] for row in json.loads(shown.output)} == pids(rows)
    assert "tiny-0" in CliRunner().invoke(main, ["pool", "status"]).output
    stopped = CliRunner().invoke(main, ["pool", "stop", str(product), "--format", "json"])
    assert {row["state"] for row in json.loads(stopped.output)} == {"ended"}
    wait_until(lambda: not list_workers(product))
