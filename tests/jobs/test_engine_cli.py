"""Commands of engines as a user runs them: prebuilt, listed, judged, measured; on this machine and on the cluster."""

import errno
import json

import numpy as np
import pytest
import ray
import yaml
from click.testing import CliRunner

from engines.cases import GROUPS, Case, save_cases
from engines.registry import Registry
from engines.zoo import UnetSpec, write_package
from jobs import trial
from jobs.bench import Effort, batches_to
from jobs.cli import main
from jobs.outcome import Exit

SHAPE = ("--shape", "1x32x32")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SQUALL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SQUALL_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(trial, "Effort", lambda: Effort(seconds=0.05, rounds=2, most=4))
    return tmp_path


@pytest.fixture
def unet(home):
    return write_package(UnetSpec(width=2, depth=1, frames=2, leads=3), home / "unet")


def squall(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.parametrize("command", ["build", "list", "gate", "bench", "explain-key"])
def test_every_command_explains_itself_with_an_example(command):
    done = squall("engine", command, "--help")
    assert done.exit_code == 0
    assert f"squall engine {command}" in done.output.split("Usage:")[1].split("\n", 1)[1]


def test_publish_explains_its_exit_codes():
    said = squall("publish", "--help").output
    assert "squall publish unet.onnx --contract unet.yaml --as rain" in said
    assert "6 refused by the gate" in " ".join(said.split())


def test_an_engine_is_built_once_and_listed(unet):
    words = ("engine", "build", unet, "--precision", "float32,half", *SHAPE, "--format", "json")
    first, again = (json.loads(squall(*words).stdout) for _ in range(2))
    assert [(row["place"], row["precision"], row["how"]) for row in first] == [
        ("here", "float32", "built"), ("here", "half", "built")
    ]  # fmt: skip
    assert [row["how"] for row in again] == ["loaded", "loaded"]
    listed = json.loads(squall("engine", "list", "--format", "json").stdout)
    assert {row["digest"] for row in listed} == {row["digest"] for row in first}
    assert {row["precision"] for row in listed} == {"float32", "half"}
    assert "half" in squall("engine", "list").stdout


def test_an_engine_that_the_cache_cannot_keep_is_not_ready(unet, home, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("engines.files.os.rename", full)
    done = squall("engine", "build", unet, "--precision", "float32", *SHAPE)
    assert done.exit_code == Exit.FAILED
    said = " ".join(done.stderr.split())
    assert f"the disk of {home / 'cache' / 'engine-cache'} is full" in said
    assert "or let SQUALL_CACHE name a folder with more" in said


def test_an_empty_cache_says_how_to_begin():
    assert "squall engine build" in squall("engine", "list").stdout


def test_a_package_of_the_registry_is_named_with_a_version_or_an_alias(unet, home):
    Registry(home / "registry").add(unet, "rain")
    assert squall("engine", "build", "registry:rain@1.0", *SHAPE).exit_code == 0
    done = squall("engine", "build", "registry:rain", *SHAPE)
    assert (done.exit_code, "in production" in done.stderr) == (5, True)


def test_a_builtin_model_needs_the_product_for_whose_grid_it_is_written(product, home):
    done = squall("engine", "build", "builtin:unet")
    assert (done.exit_code, "--product" in done.stderr) == (5, True)
    words = ("engine", "build", "builtin:persistence", "--product", product, "--format", "json")
    assert json.loads(squall(*words).stdout)[0]["how"] == "built"


def test_the_gate_ends_with_0_or_6_and_writes_its_reports(unet, home):
    words = ("engine", "gate", unet, "--precision", "half", *SHAPE, "--out", home / "reports")
    assert squall(*words).exit_code == Exit.PUBLISHED
    assert {p.name for p in (home / "reports").iterdir()} == {"gate-half.html", "gate-half.json"}
    contract = yaml.safe_load((unet / "model.yaml").read_text()) | {"gate": {"moved_codes": 0}}
    (unet / "model.yaml").write_text(yaml.safe_dump(contract))
    done = squall(*words, "--format", "json")
    assert done.exit_code == Exit.REFUSED
    assert json.loads(done.stdout)["verdicts"]["half"]["failures"][0]["measure"] == "moved_codes"
    assert json.loads((home / "reports/gate-half.json").read_text())["verdict"] == "no-go"


def test_the_gate_says_what_to_do_where_int8_cannot_be_calibrated(unet, home):
    hole = np.full((2, 32, 32), np.nan, np.float32)
    path = save_cases(home / "holes.npz", [Case(group, group, hole) for group in GROUPS])
    words = ("--precision", "int8", *SHAPE, "--cases", path, "--out", home / "reports")
    done = squall("engine", "gate", unet, *words)
    said = " ".join(done.stderr.split())
    assert (done.exit_code, "stored in holes.npz" in said, "--product FILE.yaml" in said) == (1, True, True), said


def test_the_gate_of_a_product_cuts_cases_from_its_store(unet, home, product):
    words = ("--product", product, "--shape", "1x64x64", "--out", home / "reports")
    done = squall("engine", "gate", unet, "--precision", "half", *words)
    assert done.exit_code in (Exit.PUBLISHED, Exit.REFUSED), done.stderr
    about = json.loads((home / "reports/gate-half.json").read_text())["about"]
    assert "cut from precip_rate of radar.zarr" in about["cases"]


def test_thresholds_are_those_of_the_contract_in_units_of_the_product(unet, home, product):
    contract = yaml.safe_load((unet / "model.yaml").read_text()) | {"gate": {"thresholds": [0.5, 2]}}
    (unet / "model.yaml").write_text(yaml.safe_dump(contract))
    tree = yaml.safe_load(product.read_text())
    tree["output"] |= {"attributes": {"units": "mm/day"}, "packing": {"scale_factor": 0.25}}
    product.write_text(yaml.safe_dump(tree))
    words = ("--product", product, "--shape", "1x64x64", "--out", home / "reports")
    done = squall("engine", "gate", unet, "--precision", "half", *words)
    assert done.exit_code in (Exit.PUBLISHED, Exit.REFUSED), done.stderr
    report = json.loads((home / "reports/gate-half.json").read_text())
    assert {row["threshold"] for row in report["readings"]} == {None, 12.0, 48.0}


def test_the_bench_writes_its_page_and_tells_the_figures_of_every_batch(unet, home):
    words = ("engine", "bench", unet, "--precision", "half", "--shape", "3x32x32", "--out", home / "bench")
    done = squall(*words, "--format", "json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert "ONNX Runtime" in told["headline"]
    names = ("the model in ONNX Runtime", "engine, half")
    found = [(row["subject"], row["shape"][0]) for row in told["figures"] if row["tiles_per_second"]]
    assert found == [(name, tiles) for tiles in (1, 2, 3) for name in names]
    assert {p.name for p in (home / "bench").iterdir()} == {"bench.html", "bench.json"}
    results = json.loads((home / "bench/bench.json").read_text())["report"]["results"]
    whole, half = (result["memory"]["weights_bytes"] for result in results)
    assert whole / 2 <= half < whole  # some constants stay float32


def test_the_bench_is_a_table_for_people(unet, home):
    done = squall("engine", "bench", unet, "--precision", "half", *SHAPE, "--out", home / "bench")
    assert done.exit_code == 0, done.stderr
    for word in ("p50", "p90", "p99", "tiles/s", "first inference", "host memory", "engine, half", "report in"):
        assert word in done.stdout


def test_a_model_of_one_count_of_tiles_is_measured_at_that_alone():
    assert batches_to((4, 2, 32, 32), takes=4) == ((4, 2, 32, 32),)
    assert batches_to((1, 2, 32, 32)) == ((1, 2, 32, 32),)


# other GPUs, on the cluster


def test_another_gpu_without_a_cluster_is_refused(unet):
    done = squall("engine", "build", unet, *SHAPE, "--for-gpus", "here,A100")
    assert (done.exit_code, "set RAY_ADDRESS" in done.stderr) == (5, True)


@pytest.mark.ray
def test_a_gpu_of_the_cluster_builds_its_own_engine_and_one_that_is_not_there_is_named(unet):
    ray.init(address="local", num_cpus=1, num_gpus=1, resources={"accelerator_type:A100": 1}, include_dashboard=False,
             object_store_memory=10**8, log_to_driver=False, _node_ip_address="127.0.0.1")  # fmt: skip
    try:
        words = ("engine", "build", unet, "--precision", "half", *SHAPE, "--format", "json")
        rows = json.loads(squall(*words, "--for-gpus", "a100,here").stdout)
        assert [row["place"] for row in rows] == ["A100", "here"]
        assert rows[0]["digest"] == rows[1]["digest"]  # the node is this machine, and without a real GPU
        done = squall(*words, "--for-gpus", "H200")
        assert (done.exit_code, "no GPU H200 in the cluster; it has A100" in done.stderr) == (5, True), done.stderr
    finally:
        ray.shutdown()
