"""The command line as a person meets it: help, messages, exit codes; nothing here needs Ray but the last."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from click.testing import CliRunner
from onnx import helper, numpy_helper

from jobs import show
from jobs.cli import main
from jobs.options import Time
from jobs.outcome import Exit
from jobs.raylet import RayGoneError

COMMANDS = ("demo", "run", "backfill", "validate", "plan", "inspect", "cycles", "verify", "models")


def squall(*args):
    return CliRunner().invoke(main, list(map(str, args)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command):
    done = squall(command, "--help")
    assert done.exit_code == 0
    assert f"squall {command}" in done.output.split("Usage:")[1].split("\n", 1)[1]


@pytest.mark.parametrize("group", [(), ("model",), ("engine",), ("pool",)])
def test_the_list_of_commands_says_what_each_is_for_in_whole_sentences(group):
    shown = CliRunner().invoke(main, [*group, "--help"], terminal_width=78).output  # of a terminal of 80
    assert "..." not in shown.split("Commands:")[1]


@pytest.mark.parametrize("display", [show.progress, show.backfill_progress])
def test_progress_prints_nothing_where_nobody_looks(display, capfd):
    with display("rain", quiet=False):
        pass
    assert capfd.readouterr() == ("", "")


def test_a_valid_product_is_said_to_be_valid(product):
    done = squall("validate", product)
    assert done.exit_code == 0, done.output
    assert "valid" in done.output


def test_of_a_time_axis_that_is_laid_out_ahead_the_newest_frame_there_is_checked(product, monkeypatch):
    frames = product.parent / "radar.zarr" / "precip_rate" / "c"
    shutil.rmtree(frames / "5")
    (frames / "4" / "0" / "0").write_bytes(b"damaged")
    monkeypatch.setattr("jobs.clock.now", lambda: np.datetime64("2024-06-01T12:21", "ns"))
    done = squall("validate", product, "--format", "json")
    (problem,) = json.loads(done.output)["problems"]
    assert "2024-06-01T12:20Z" in problem["found"]


def test_every_problem_of_a_product_is_listed_at_once(product):
    done = squall("validate", product, "lead_times=[5min, 7min]", "input.history=[-10min, 0min]", "--format", "json")
    assert done.exit_code == Exit.BAD_CONFIGURATION
    found = json.loads(done.output)["problems"]
    assert {problem["where"] for problem in found} >= {"lead_times", "input.history"}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("colour=red", "colour"),
        ("input.store=nowhere.zarr", "nowhere.zarr"),
        ("input.variable=snow", "precip_rate"),
        ("model.package=nowhere", "model.yaml"),
        ("model.package=builtin:magic", "builtin:advection"),
        ("model.version='9'", "'9'"),
        ("lead_times.until=7min", "no multiple of the step"),
        ("tiling.halo=1", "radius"),
        ("output.packing.scale_factor=0", "scale_factor"),
        ("output.variable=lead_time", "rename output.variable"),
        ("model.precision=int8", "model.precision: "),
    ],
)
def test_a_wrong_key_is_named_with_what_was_found(product, override, says):
    done = squall("validate", product, override)
    assert done.exit_code == Exit.BAD_CONFIGURATION
    assert says in done.output


def test_a_model_that_declares_its_tiles_but_cannot_run_on_them_is_a_problem(product):
    folder = product.parent / "blur"
    model = onnx.load(folder / "model.onnx")
    model.graph.node[-1].output[0] = "made"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 1, 7]), "leads"))  # of three
    model.graph.node.append(helper.make_node("Gather", ["made", "leads"], ["y"], axis=1))
    onnx.save(model, folder / "model.onnx")
    done = squall("validate", product)
    assert done.exit_code == Exit.BAD_CONFIGURATION, done.output
    assert "1 problem(s)" in done.output
    assert re.search(r"model.package: .*model.onnx failed on a batch of shape \(1, 2, 72, 72\): ", done.output)


@pytest.mark.parametrize("model", ["truncated", "gone", "wrong units"])
def test_a_damaged_model_ends_a_run_before_ray_is_started(product, model):
    folder = product.parent / "blur"
    if model == "truncated":
        (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:200])
    elif model == "gone":
        (folder / "model.onnx").unlink()
    else:
        contract = yaml.safe_load((folder / "model.yaml").read_text())
        contract["input"]["units"] = "K"
        (folder / "model.yaml").write_text(yaml.safe_dump(contract))
    done = squall("run", product)
    assert done.exit_code == Exit.BAD_CONFIGURATION
    assert "squall:" in done.output
    assert not (product.parent / "out").exists()


def test_an_input_that_is_not_there_is_no_input(product):
    assert squall("run", product, "input.store=nowhere.zarr").exit_code == Exit.NO_INPUT


def test_a_plan_says_what_was_picked_and_why(product):
    done = squall("plan", product, "tiling.tile=auto")
    assert done.exit_code == 0
    assert "least padded work" in done.output
    planned = json.loads(squall("plan", product, "--format", "json").output)
    assert planned["plan"]["tiling"]["halo"] == 4


@pytest.mark.parametrize("time", ["noon", "201609281530", "1500-01-01", "9999-12-31T23:59-10:00", "2016-09-28T25:00"])
def test_a_time_that_is_none_is_wrong_usage(product, time):
    done = squall("run", product, "--time", time)
    assert done.exit_code == Exit.USAGE
    assert "2016-09-28T15:30Z" in done.output


@pytest.mark.parametrize(
    "text",
    ["2016-09-28T15:30Z", "2016-09-28T15:30", "2016-09-28 15:30:00", "20160928T1530", "2016-09-28T17:30+02:00"],
)
def test_a_time_is_read_in_every_form_of_iso_8601(text):
    assert Time().convert(text, None, None) == np.datetime64("2016-09-28T15:30")


@pytest.mark.parametrize("option", ["--plot", "--trace"])
@pytest.mark.parametrize("path", ["nowhere/x", "", "tiny.yaml/x"])
def test_a_file_that_cannot_be_written_is_wrong_usage_before_anything_is_published(product, option, path):
    done = squall("run", product, option, product.parent / path)
    assert done.exit_code == Exit.USAGE
    assert "cannot be written" in done.output
    assert not (product.parent / "out").exists()


@pytest.mark.parametrize("folder", ["[red]", "[y, x]", "a[/]b", "[/b]", "long" * 50])
def test_paths_are_shown_as_they_are(product, folder):
    store = product.parent / folder
    assert f"is published in {store}\n" in squall("cycles", product, f"output.store={json.dumps(str(store))}").output
    (store / "tiny/2024/06/01/1200.zarr").mkdir(parents=True)
    assert f" {store}/tiny/2024/06/01/1200.zarr " in squall("cycles", product, f"output.store='{store}'").output
    here = store / product.name
    here.write_text("a: 1")
    assert f" in {here}:\n" in squall("validate", here).output


def test_models_are_listed_and_a_package_is_described(product):
    assert "builtin:advection" in squall("models").output
    done = squall("models", product.parent / "blur")
    assert "blur-1-" in done.output
    told = json.loads(squall("models", product.parent / "blur", "--format", "json").output)
    assert told["model"].startswith("blur-1-")
    assert told["lead_times"] == "5, 10, 15 min"
    assert squall("models", product.parent).exit_code == Exit.BAD_CONFIGURATION
    refused = squall("models", "builtin:unet")
    assert refused.exit_code == Exit.BAD_CONFIGURATION
    assert "written for the grid of a product" in refused.output


def test_a_model_of_the_registry_is_described(product, monkeypatch, tmp_path):
    monkeypatch.setenv("SQUALL_REGISTRY", str(tmp_path / "registry"))
    assert squall("model", "add", product.parent / "blur").exit_code == 0
    assert "blur-1-" in squall("models", "registry:blur@1").output
    assert squall("models", "registry:other").exit_code == Exit.BAD_CONFIGURATION


def test_each_wrong_key_of_a_product_file_is_a_problem_of_its_own(product):
    product.write_text("name: x\n")
    done = squall("validate", product)
    assert done.exit_code == Exit.BAD_CONFIGURATION
    assert done.output.count("problem(s)") == 1
    assert [line.split(":")[0].strip() for line in done.output.splitlines()[1:5]] == [
        "input",
        "model",
        "lead_times",
        "output",
    ]


def test_a_product_takes_its_model_from_the_registry(product, monkeypatch, tmp_path):
    monkeypatch.setenv("SQUALL_REGISTRY", str(tmp_path / "registry"))
    reference = ("model.package=registry:blur", "model.alias=production")
    assert squall("validate", product, *reference).exit_code == Exit.BAD_CONFIGURATION
    assert squall("model", "add", product.parent / "blur").exit_code == 0
    assert "promote one of 1" in squall("validate", product, *reference).output
    assert squall("model", "promote", "blur", "1", "--force", "--why", "no gate yet").exit_code == 0
    done = squall("validate", product, *reference)
    assert done.exit_code == 0, done.output
    assert "registry:NAME" in squall("validate", product, "model.alias=production").output


def test_an_input_store_is_inspected(product):
    done = squall("inspect", product.parent / "radar.zarr", "--format", "json")
    assert "mm h-1" in json.loads(done.output)["precip_rate"]
    assert squall("inspect", product.parent / "nothing").exit_code == Exit.NO_INPUT


def test_no_cycles_are_no_error_but_nothing_to_verify_is(product):
    assert "no cycle" in squall("cycles", product).output
    assert squall("verify", product).exit_code == Exit.NO_INPUT


@pytest.mark.ray
def test_a_run_is_drawn_listed_inspected_and_verified(product, tmp_path):
    picture = tmp_path / "tiny.png"
    done = squall("run", product, "--time", "2024-06-01T12:10Z", "--plot", picture, "--format", "json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert report["reference_time"] == "2024-06-01T12:10:00Z"
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = squall("run", product, "--time", "2024-06-01T12:10Z")
    assert again.exit_code == 0
    assert "published already" in again.output
    (cycle,) = json.loads(squall("cycles", product, "--format", "json").output)
    assert cycle["path"] == report["path"]
    facts = json.loads(squall("inspect", report["path"], "--format", "json").output)
    assert facts["completeness"] == 1
    assert facts["model"].startswith("blur-1-")
    verified = json.loads(squall("verify", product, "--threshold", "1", "--format", "json").output)
    assert [score["lead_time"] for score in verified["forecast"]] == [300, 600, 900]
    assert all(0 <= score["csi"] <= 1 for score in verified["forecast"] if np.isfinite(score["csi"]))
    renamed = squall("verify", product, "output.variable=snow")
    assert renamed.exit_code == Exit.NO_INPUT
    assert f"{cycle['path']} has no variable 'snow'; it has precip_rate" in renamed.output
    shard = sorted(Path(cycle["path"]).glob("precip_rate/c/0/0/*/*"))[0]
    shard.chmod(0o600)
    shard.write_bytes(bytes(len(shard.read_bytes())))
    damaged = squall("verify", product)
    assert damaged.exit_code == Exit.NO_INPUT
    assert f"cycle {cycle['path']} cannot be read: " in damaged.output


@pytest.mark.ray
def test_a_picture_that_cannot_be_drawn_does_not_hide_the_publication(product, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("no font")

    monkeypatch.setattr("jobs.picture.draw_cycle", fail)
    monkeypatch.setattr("jobs.trace.write_trace", fail)
    picture, trace = tmp_path / "tiny.png", tmp_path / "tiny.json"
    done = squall("run", product, "--plot", picture, "--trace", trace)
    assert done.exit_code == 0, done.output
    assert "published tiny 2024-06-01T12:25:00Z" in done.stdout
    assert "picture in" not in done.stdout
    assert f"warning: no picture in {picture}: no font\n" in done.stderr
    assert f"warning: no timeline in {trace}: no font\n" in done.stderr
    again = squall("run", product, "--plot", picture, "--format", "json")
    assert (again.exit_code, json.loads(again.stdout)["status"]) == (0, "already published")


@pytest.mark.ray
def test_a_run_that_made_nothing_leaves_the_timeline_of_an_earlier_one(product, tmp_path):
    trace = tmp_path / "tiny.json"
    assert squall("run", product, "--trace", trace).exit_code == 0
    before = trace.read_bytes()
    again = squall("run", product, "--trace", trace)
    assert (again.exit_code, trace.read_bytes()) == (0, before)
    assert f"warning: no timeline in {trace}: this run made nothing" in again.stderr


@pytest.mark.parametrize(
    ("command", "work"), [("run", "jobs.nowcast.forecast"), ("backfill", "jobs.backfill.backfill")]
)
def test_what_ray_prints_does_not_stand_among_the_reports(product, monkeypatch, command, work):
    def end(*args):
        print("(raylet) Raylet is terminated.")
        raise RayGoneError("Ray has ended")

    monkeypatch.setattr(work, end)
    done = squall(command, product, "--format", "json")
    assert (done.exit_code, done.stdout) == (Exit.FAILED, "")
    assert done.stderr == "(raylet) Raylet is terminated.\nsquall: RayGone: Ray has ended\n"


@pytest.mark.parametrize(("piped", "lines"), [(10_000, 1), (None, 5)])
def test_a_report_is_one_line_of_a_file_and_several_where_somebody_looks(product, monkeypatch, piped, lines):
    monkeypatch.setattr("jobs.show._PIPED", piped)
    done = squall("validate", product, "--format", "json")
    assert done.stdout.count("\n") == lines
    assert json.loads(done.stdout) == {"file": str(product), "valid": True, "problems": []}


@pytest.mark.ray
def test_what_is_wrong_with_a_published_cycle_is_said_on_stderr(blind_model, product):
    done = squall("run", product, "--format", "json")
    assert done.exit_code == 0, done.output
    (warning,) = json.loads(done.stdout)["warnings"]
    assert f"squall: warning: {warning}\n" in done.stderr


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--from", "noon"], Exit.USAGE, "2016-09-28T15:30Z"),
        (["--to", "latest"], Exit.USAGE, "write UTC such as"),
        (["--to", "NaT"], Exit.USAGE, "write UTC such as"),
        (["--every", "10"], Exit.USAGE, "has no unit|is no duration"),
        (["--every", "0min"], Exit.BAD_CONFIGURATION, "at least 1"),
        (["--every", "7min"], Exit.BAD_CONFIGURATION, "such as 5s|such as 300s"),
        (["--from", "2024-06-01T12:20Z", "--to", "2024-06-01T12:10Z"], Exit.BAD_CONFIGURATION, "swap"),
        (["--from", "2030-01-01", "--to", "2030-01-02"], Exit.NO_INPUT, "holds 6 from"),
    ],
)
def test_an_interval_that_makes_no_sense_is_refused(product, options, code, says):
    done = squall("backfill", product, *options)
    assert done.exit_code == code, done.output
    assert re.search(says, done.output)


@pytest.mark.ray
def test_a_backfill_says_what_it_made_and_what_failed(product):
    done = squall("backfill", product, "--to", "2024-06-01T12:15Z", "--format", "json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert (report["start"], report["stop"]) == ("2024-06-01T12:05:00Z", "2024-06-01T12:15:00Z")
    assert (report["tally"]["published"], report["tally"]["failed"]) == (3, 0)
    frame = product.parent / "radar.zarr" / "precip_rate" / "c" / "5" / "0" / "0"
    frame.write_bytes(b"torn")
    done = squall("backfill", product, "output.keep=10min")
    assert done.exit_code == Exit.GAPS, done.output
    for text in ("1 published, 3 already, 1 failed", "failed 2024-06-01T12:25:00Z", "output.keep is 10min", "ledger"):
        assert text in done.output


@pytest.mark.ray
def test_the_demo_publishes_draws_and_may_be_run_again(tmp_path):
    done = squall("demo", "--folder", tmp_path / "demo")
    assert done.exit_code == 0, done.output
    assert "published rain-demo 2024-06-01T13:30:00Z" in done.output
    assert (tmp_path / "demo" / "forecast.png").read_bytes().startswith(b"\x89PNG")
    again = squall("demo", "--folder", tmp_path / "demo")
    assert again.exit_code == 0
    assert "published already" in again.output
