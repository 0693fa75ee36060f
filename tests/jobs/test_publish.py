"""From a trained model to a release: what is obtained, what is refused, and what a killed run leaves to the next."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from click.testing import CliRunner
from onnx import numpy_helper

from engines.cases import GROUPS, Case, digest, load_cases, save_cases
from engines.files import replace_file
from engines.ort import OnnxRuntime, OrtEngine
from engines.registry import Registry
from engines.typed import PrecisionError
from engines.zoo import PersistenceSpec, UnetSpec, write_package
from jobs import bench, bring, judge
from jobs import publish as publishing
from jobs.cli import main
from jobs.outcome import Exit

ROOT, WORKER = Path(__file__).parents[2], Path(__file__).with_name("publish_worker.py")
SPEC = UnetSpec(width=2, depth=1, frames=2, leads=3)
SHAPE = ("--shape", "1x32x32")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Cache and registry of a test; the bench is short."""
    monkeypatch.setenv("SQUALL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SQUALL_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setattr(publishing, "QUICK", bench.Effort(seconds=0.05, rounds=2, most=4))
    return tmp_path


def write_model(folder: Path, version: str = "1.0", gate: dict | None = None, spec=SPEC) -> Path:
    write_package(spec, folder)
    contract = yaml.safe_load((folder / "model.yaml").read_text())
    contract |= {"version": version} | ({"gate": gate} if gate else {})
    (folder / "model.yaml").write_text(yaml.safe_dump(contract))
    return folder


def squall(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def publish(*words):
    """Exit code and report of `squall publish`."""
    done = squall("publish", *words, "--as", "rain", *SHAPE, "--format", "json")
    assert done.exit_code in (Exit.PUBLISHED, Exit.REFUSED), done.output + done.stderr
    return done.exit_code, json.loads(done.stdout)


# what is obtained


def test_a_good_model_is_published_with_its_graphs_and_reports_and_promoted(home):
    code, report = publish(write_model(home / "unet"), "--promote", "production", "--why", "trained")
    assert (code, report["status"], report["move"]["version"]) == (0, "published", "1.0")
    for asked, found in zip(("float32", "half"), report["precisions"], strict=True):
        assert (found["asked"], found["built"]["obtained"], found["built"]["how"]) == (asked, asked, "built")
        assert found["judged"]["is_go"]
    assert "not the user's archive" in report["cases"]
    assert "the model in ONNX Runtime" in report["bench"]
    files = set(Registry(home / "registry").release("rain", "1.0").files)
    assert {"graphs/half.onnx", "reports/gate-float32.json", "reports/gate-half.html", "reports/bench.json"} <= files
    assert "cases/cases.npz" in files
    page = json.loads((home / "registry/rain/versions/1.0/reports/gate-half.json").read_text())
    assert "not the user's archive" in page["about"]["cases"]
    assert "rounded as a device" in page["about"]["candidate"]


def test_an_onnx_file_of_any_name_with_weights_beside_it_is_a_model_too(home):
    folder = write_model(home / "unet")
    graph = onnx.load(folder / "model.onnx")
    (home / "made").mkdir()
    onnx.save(
        graph, home / "made/rain-v7.onnx", save_as_external_data=True, location="rain.weights", size_threshold=100
    )
    (folder / "model.yaml").rename(home / "contract.yaml")
    code, report = publish(home / "made/rain-v7.onnx", "--contract", home / "contract.yaml")
    assert code == 0
    assert report["move"] is None
    stored = Registry(home / "registry").resolve("rain", "1.0").folder
    assert {"model.onnx", "model.yaml", "rain.weights"} <= {path.name for path in stored.iterdir()}


def test_a_model_of_one_fixed_tile_is_judged_without_smaller_ones(home):
    folder = write_model(home / "unet")
    graph = onnx.load(folder / "model.onnx")
    for port in (*graph.graph.input, *graph.graph.output):
        for axis in port.type.tensor_type.shape.dim[2:]:
            axis.dim_value = 32
    onnx.save(graph, folder / "model.onnx")
    code, _ = publish(folder)
    assert code == 0
    page = json.loads((home / "registry/rain/versions/1.0/reports/gate-half.json").read_text())
    assert page["about"]["seam"] == "not measured: the engine takes tiles of one size"


def test_the_cases_of_the_first_verdict_stay_with_a_version_and_judge_it_again(home):
    folder = write_model(home / "unet")
    publish(folder)
    golden = home / "registry/rain/versions/1.0/cases/cases.npz"
    judged_on = json.loads((golden.parents[1] / "reports/gate-half.json").read_text())["about"]["cases sha256"]
    assert digest(load_cases(golden)) == judged_on
    inputs = load_cases(golden)[0].inputs
    others = save_cases(home / "others.npz", [Case(group, group, inputs) for group in GROUPS])
    publish(folder, "--cases", others)
    assert digest(load_cases(golden)) == judged_on
    words = ("engine", "gate", "registry:rain@1.0", *SHAPE, "--cases", golden, "--out", home / "again")
    assert squall(*words).exit_code == Exit.PUBLISHED
    assert json.loads((home / "again/gate-half.json").read_text())["about"]["cases sha256"] == judged_on


def test_the_same_again_changes_nothing_and_does_nothing_twice(home):
    words = (write_model(home / "unet"), "--promote", "production")
    _, first = publish(*words)
    before = tree_of(home / "registry")
    code, again = publish(*words)
    assert code == 0
    assert tree_of(home / "registry") == before
    assert again["precisions"] == first["precisions"]
    fresh = [step["name"] for step in again["steps"] if not step["was_finished"]]
    assert fresh == ["check", "add", "promote"]


def test_a_large_model_is_checked_and_read_as_seldom_as_can_be(home, monkeypatch):
    """Each of these takes seconds where the weights are hundreds of megabytes."""
    calls = []
    for module, name in ((bring, "load_package"), (publishing, "open_typed"), (onnx.checker, "check_model")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, n=name, r=real, **k: calls.append((n, a)) or r(*a, **k))
    publish(write_model(home / "unet"), "--precision", "float32,half")
    assert [name for name, _ in calls].count("load_package") == 1
    assert [name for name, _ in calls].count("open_typed") == 1
    whole = [args for name, args in calls if name == "check_model" and isinstance(args[0], str)]
    assert len(whole) == 2  # what was brought, and what the registry will keep


def test_the_reference_is_held_while_the_gate_runs_and_no_longer(home, monkeypatch):
    """It takes as much memory as the weights, or twice that."""
    made, held, seen = [], [], {}

    class Counted(OrtEngine):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)
            held.append(self)

        def close(self):
            super().close()
            held.remove(self)

    def look(name):
        real = getattr(publishing, name)

        def call(*args, **options):
            seen[name] = len(held)
            return real(*args, **options)

        monkeypatch.setattr(publishing, name, call)

    monkeypatch.setattr(judge, "OrtEngine", Counted)
    for name in ("type_model", "judge", "measure"):
        look(name)
    publish(write_model(home / "unet"), "--precision", "float32")
    assert seen == {"type_model": 0, "judge": 0, "measure": 0}
    assert len(made) == 1


def test_new_weights_of_the_same_graph_are_said_to_be_no_more_than_that(home):
    publish(write_model(home / "old"), "--promote", "production")
    _, report = publish(write_model(home / "new", "1.1", spec=UnetSpec(**vars(SPEC) | {"seed": 1})))
    assert report["change"] == "only the weights differ from 1.0, which is in production"
    assert report["precisions"][1]["built"]["how"] == "built"  # ONNX Runtime has weights built in; TensorRT refits


def test_int8_is_calibrated_on_the_cases_and_told_by_itself(home):
    wide = {"rmse_over_std": 9, "bias": 9, "maximum_bias": 9, "moved_codes": 1, "csi_loss": 1, "fss_loss": 1, "seam": 9}
    code, report = publish(write_model(home / "unet", gate=wide), "--precision", "int8")
    assert (code, report["precisions"][0]["built"]["obtained"]) == (0, "int8")
    assert "graphs/int8.onnx" in report["release"]["files"]


def test_int8_without_usable_cases_is_refused_with_their_origin_and_the_options_that_give_others(home):
    inputs = np.ones((2, 32, 32), np.float32)
    inputs[0, :9] = np.nan
    path = save_cases(home / "holes.npz", [Case("a", "extreme", inputs), Case("b", "ordinary", inputs[:, ::-1])])
    words = ("publish", write_model(home / "unet"), "--as", "rain", *SHAPE, "--cases", path)
    done = squall(*words, "--precision", "int8")
    said = " ".join(done.stderr.split())
    assert done.exit_code == Exit.FAILED
    assert "on the cases (stored in holes.npz): calibration case 0 holds NaN or infinity" in said
    for remedy in ("--product FILE.yaml", "--cases FILE.npz", "input.missing of the contract", "out of --precision"):
        assert remedy in said


@pytest.mark.ray
@pytest.mark.parametrize("place", ["", "memory:///"], ids=["folder", "objects"])
def test_a_product_runs_what_was_published_in_the_precision_that_passed(home, product, monkeypatch, place):
    monkeypatch.setenv("SQUALL_REGISTRY", f"{place}{home / 'registry'}")
    publish(write_model(home / "unet"), "--promote", "production")
    words = ["model.package=registry:rain", "model.precision=half", "tiling.tile=[64,64]", "workers=1"]
    done = squall("run", product, *words, "--format", "json")
    assert done.exit_code == 0, done.output + done.stderr
    assert "half" in json.loads(done.stdout)["engines"][0]
    refused = squall("validate", product, "model.package=registry:rain", "model.precision=int8")
    assert refused.exit_code == Exit.BAD_CONFIGURATION
    assert "gate-int8.json" in refused.output + refused.stderr


@dataclass
class OneSize:
    """An engine as TensorRT's: it takes tiles of the size that it was built for, and weights can be put into it."""

    engine: OrtEngine
    size: tuple[int, ...]

    @property
    def specs(self):
        return self.engine.specs

    def __call__(self, batch):
        assert batch.shape[2:] == self.size
        return self.engine(batch)

    def lane(self, shape):
        return self.engine.lane(shape)

    def warm(self, shape):
        self.engine.warm(shape)

    def close(self):
        self.engine.close()


@dataclass
class StandIn:
    """A runtime as TensorRT, on ONNX Runtime; `refused` is a precision that it builds in float32."""

    refused: str = ""
    label: str = "stand-in 1.0 on a GPU"
    inner: OnnxRuntime = field(default_factory=OnnxRuntime)

    def key(self, model, spec):
        weights = None if "REFIT" in spec.flags else model.weights_sha256
        return replace(self.inner.key(model, spec), weights_sha256=weights, flavour="standin", gpu="a GPU")

    def build(self, model, spec, timings, tell):
        if str(model.precision) == self.refused:
            raise PrecisionError(f"{model.path.name} is {self.refused}, but the engine computes in float32")
        return self.inner.build(model, spec, timings, tell)

    def merge(self, kept, fresh):
        return fresh

    def refuse(self, data):
        return None

    def load(self, data):
        return OneSize(OrtEngine(data), (32, 32))

    def refit(self, engine, model, notes):
        engine.engine = OrtEngine(model.path)
        return ("every weight",)


def test_where_engines_can_be_refitted_new_weights_are_a_refit_and_the_engine_itself_is_judged(home, monkeypatch):
    monkeypatch.setattr(publishing, "find_runtime", lambda **options: StandIn())
    publish(write_model(home / "old"), "--promote", "production")
    code, report = publish(write_model(home / "new", "1.1", spec=UnetSpec(**vars(SPEC) | {"seed": 1})))
    assert (code, [p["built"]["how"] for p in report["precisions"]]) == (0, ["refitted", "refitted"])
    about = json.loads((home / "registry/rain/versions/1.1/reports/gate-half.json").read_text())["about"]
    assert "a GPU, half" in about["candidate"]
    assert about["seam"].startswith("not measured")


# what is refused


def test_a_runtime_that_builds_another_precision_than_asked_is_refused(home, monkeypatch):
    monkeypatch.setattr(publishing, "find_runtime", lambda **options: StandIn(refused="half"))
    code, report = publish(write_model(home / "unet"), "--promote", "production")
    assert (code, report["refused"], report["move"]) == (6, ["half"], None)
    assert "computes in float32" in report["precisions"][1]["judged"]["summary"]


def test_limits_that_nothing_holds_end_with_6_and_move_no_alias(home):
    publish(write_model(home / "good"), "--promote", "production")
    strict = write_model(home / "strict", "2.0", gate={"moved_codes": 0, "rmse_over_std": 0})
    code, report = publish(strict, "--promote", "production")
    assert (code, report["status"], report["refused"], report["move"]) == (6, "refused", ["half"], None)
    assert {"rmse_over_std", "moved_codes"} == {f["measure"] for f in report["precisions"][1]["judged"]["failures"]}
    registry = Registry(home / "registry")
    assert registry.current("rain").version == "1.0"
    assert registry.gates("rain", "2.0") == {"gate-float32.json": True, "gate-half.json": False}


def test_a_half_graph_with_wrong_weights_is_refused(home, monkeypatch):
    rewrite = publishing.type_model

    def planted(package, precision, folder, *args, **options):
        model = rewrite(package, precision, folder, *args, **options)
        if precision.arithmetic == "half":
            spoil(model.path)
        return model

    monkeypatch.setattr(publishing, "type_model", planted)
    code, report = publish(write_model(home / "unet"), "--promote", "production")
    assert (code, report["refused"]) == (6, ["half"])
    assert Registry(home / "registry").history("rain", "production") == []


def spoil(path: Path) -> None:
    graph, random = onnx.load(path), np.random.default_rng(0)
    for tensor in graph.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.ndim == 4:
            off = weights * (1 + 0.1 * random.normal(size=weights.shape))
            tensor.CopyFrom(numpy_helper.from_array(off.astype(weights.dtype), tensor.name))
    onnx.save(graph, path)


def test_a_precision_that_cannot_be_had_is_said_so_and_refused(home):
    model = write_model(home / "still", spec=PersistenceSpec((-5, 0), (5, 10, 15)))
    code, report = publish(model, "--precision", "float32,half", "--promote", "production")
    half = report["precisions"][1]
    assert (code, report["refused"], half["typed"]["obtained"]) == (6, ["half"], "float32")
    assert "nothing to compute in half" in half["judged"]["summary"]
    assert Registry(home / "registry").gates("rain", "1.0")["gate-half.json"] is False


@pytest.mark.parametrize(
    ("part", "owner", "finished"),
    [
        ("/model.yaml", "SQUALL_CACHE", []),
        ("/cases.npz", "SQUALL_CACHE", []),
        ("/graphs/half.onnx", "SQUALL_CACHE", ["cases"]),
        ("/gate-half.html", "SQUALL_CACHE", ["cases", "type-half", "build-half"]),
        ("/registry/.staging/", "SQUALL_REGISTRY", ["cases", "type-half", "build-half", "gate-half", "bench"]),
    ],
)
def test_a_full_disk_ends_with_1_says_the_way_out_and_costs_no_step_that_was_done(
    home, monkeypatch, part, owner, finished
):
    words = (write_model(home / "unet"), "--precision", "half")
    with monkeypatch.context() as patch:
        fill(patch, part)
        done = squall("publish", *words, "--as", "rain", *SHAPE)
    assert done.exit_code == Exit.FAILED
    said = " ".join(done.stderr.split())
    assert f"squall: DiskFull: the disk of {home}" in said
    assert f"make room there, or let {owner} name a folder with more; then give the same command again" in said
    code, report = publish(*words)
    assert (code, [step["name"] for step in report["steps"] if step["was_finished"]]) == (0, finished)
    assert not list((home / "registry" / ".staging").iterdir())


def fill(monkeypatch, part):
    """No file whose path has that part finds room from now on."""

    def refusing(real):
        def refuse(source, target, *args, **options):
            if part in str(target):
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(source, target, *args, **options)

        return refuse

    monkeypatch.setattr(os, "replace", refusing(os.replace))
    monkeypatch.setattr(shutil, "copyfile", refusing(shutil.copyfile))


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--contract", "{bad}"], 5, "4 problem(s)"),
        (["--contract", "{other}"], 5, "input.frames of model.yaml gives 5"),
        (["--contract", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["--precision", "quarter"], 2, "'quarter'"),
        (["--precision", "half+packed"], 2, "packed"),
        (["--cases", "{cases}"], 1, "has 5 channels; unet takes 2"),
        (["--cases", "{bad}"], 1, "no file of cases"),
        (["--shape", "1x33x32"], 5, "no multiples of the stride 2"),
        (["--shape", "32x32"], 2, "4x512x512"),
        (["--product", "{bad}"], 5, "problem(s) in"),
        (["--as", "../rain"], 5, "no name of a"),
    ],
)
def test_what_cannot_be_published_is_refused_in_one_clear_message(home, words, code, says):
    folder = write_model(home / "unet")
    contract = yaml.safe_load((folder / "model.yaml").read_text())
    given = {name: home / f"{name}.yaml" for name in ("bad", "other")} | {"cases": home / "cases.npz"}
    given["bad"].write_text("name: unet\n")
    contract["input"]["frames"] = 5
    given["other"].write_text(yaml.safe_dump(contract))
    save_cases(given["cases"], [Case(g, g, np.ones((5, 32, 32), np.float32)) for g in ("ordinary", "extreme")])
    done = squall("publish", folder, "--as", "rain", *(word.format(**given) for word in words))
    said = done.output + done.stderr
    assert done.exit_code == code, said
    assert says in said
    assert "Traceback" not in said
    assert not list((home / "registry").glob("*/versions/*"))


def test_a_file_that_is_no_model_and_a_version_that_stands_with_another_are_refused_at_once(home):
    (home / "text.onnx").write_text("no model")
    done = squall("publish", home / "text.onnx", "--as", "rain")
    assert (done.exit_code, "text.onnx is no ONNX file" in done.stderr) == (5, True), done.stderr
    publish(write_model(home / "unet"))
    done = squall(
        "publish", write_model(home / "new", spec=UnetSpec(**vars(SPEC) | {"seed": 1})), "--as", "rain", *SHAPE
    )
    assert (done.exit_code, "version 1.0 of rain stands" in done.stderr) == (5, True), done.stderr


# a run that is killed


def tree_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def kept(home: Path) -> dict[str, tuple[bytes, int]]:
    """Results of finished steps, and when they were written."""
    found = (home / "cache").glob("publish/*/steps/*.json")
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


@pytest.mark.parametrize(
    ("moment", "step"),
    [("begins", "cases"), ("says", "build-half"), ("ended", "gate-float32"), ("ended", "add")],
)
def test_a_killed_run_goes_on_with_the_first_unfinished_step(home, moment, step):
    tree = {
        "model": str(write_model(home / "unet")),
        "registry": str(home / "registry"),
        "precisions": ["float32", "half"],
    }
    command = [sys.executable, WORKER, json.dumps(tree), moment, step]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(home), "SQUALL_CACHE": str(home / "cache")}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    finished = kept(home)
    for work in (home / "cache/publish").glob("*/package"):
        replace_file(work.with_name("reports") / ".gate-half.json.0a", b"a draft")
    assert Registry(home / "registry").models() == (["rain"] if step == "add" else [])
    code, report = publish(home / "unet", "--promote", "production")
    assert code == 0
    assert {name: kept(home)[name] for name in finished} == finished
    assert [s["name"] for s in report["steps"] if s["was_finished"]] == [s for s in order() if f"{s}.json" in finished]
    registry = Registry(home / "registry")
    assert registry.current("rain").version == "1.0"
    assert len(registry.history("rain", "production")) == 1
    assert registry.resolve("rain").contract.name == "unet"
    assert not list((home / "registry/.staging").glob("*"))
    assert not (home / "registry/rain/reports").exists()


def order() -> list[str]:
    verbs = ["type", "build", "gate"]
    return ["cases", *(f"{verb}-{precision}" for verb in verbs for precision in ("float32", "half")), "bench"]
