"""The commands of registry and engine cache, as a user runs them: text, JSON, exit codes."""

import errno
import json
import os
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner

from engines.cache import EngineCache
from engines.spec import EngineKey
from engines.zoo import PersistenceSpec, write_package
from jobs.engine_cli import engine
from jobs.registry_cli import model

KEY = EngineKey("a" * 64, None, "float16", "1", (), frozenset({"FP16"}), None, 3, "tensorrt", "8.6.1", "NVIDIA H200",
                "9.0", 132, 150_000_000_000)  # fmt: skip


@pytest.fixture(params=["", "memory:///"], ids=["folder", "objects"])
def run(request, tmp_path, monkeypatch):
    """Runs a command; gives exit code and output."""
    monkeypatch.setenv("SQUALL_REGISTRY", f"{request.param}{tmp_path / 'registry'}")
    monkeypatch.setenv("SQUALL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "400")

    def invoke(group, *words):
        done = CliRunner().invoke(group, [str(word) for word in words])
        return done.exit_code, done.output + done.stderr

    return invoke


@pytest.fixture
def two(run, tmp_path):
    """The registry has versions 1.0 and 2.0 of rain; only the first passed the gate."""
    for version, verdict in (("1.0", "go"), ("2.0", "no-go")):
        folder = write_package(PersistenceSpec(), tmp_path / version)
        text = (folder / "model.yaml").read_text().replace("'1.0'", f"'{version}'")
        (folder / "model.yaml").write_text(text)
        (tmp_path / "gate.json").write_text(json.dumps({"verdict": verdict}))
        code, said = run(model, "add", folder, "--as", "rain", "--report", tmp_path / "gate.json", "--why", "trained")
        assert code == 0, said
    return run


def test_list_and_show_say_what_stands_where(two):
    two(model, "promote", "rain", "1.0")
    code, said = two(model, "list", "--format", "json")
    assert (code, json.loads(said)) == (
        0, [{"model": "rain", "versions": 2, "production": "1.0", "canary": None, "shadow": None}]
    )  # fmt: skip
    code, said = two(model, "show", "rain", "--format", "json")
    rows = [(row["version"], row["gate"], row["aliases"]) for row in json.loads(said)]
    assert rows == [("1.0", "go", ["production"]), ("2.0", "no-go", [])]
    code, said = two(model, "show", "rain", "production")
    assert code == 0
    assert "model.onnx" in said


def test_an_ungated_promote_ends_with_5_and_a_forced_one_is_in_the_history(two):
    code, said = two(model, "promote", "rain", "2.0", "--force")
    assert code == 5
    assert "give a reason" in said
    assert two(model, "promote", "rain", "1.0")[0] == 0
    assert two(model, "promote", "rain", "2.0", "--force", "--why", "storm")[0] == 0
    assert two(model, "rollback", "rain", "--why", "too wet")[0] == 0
    moves = json.loads(two(model, "history", "rain", "--format", "json")[1])
    rows = [(m["action"], m["version"], m["why"], m["is_forced"]) for m in moves]
    assert rows == [
        ("promote", "1.0", "", False), ("promote", "2.0", "storm", True), ("rollback", "1.0", "too wet", False)
    ]  # fmt: skip
    assert "promote (forced)" in two(model, "history", "rain", "--alias", "production")[1]


@pytest.mark.parametrize(
    "words", [("show", "snow"), ("promote", "rain", "../x"), ("rollback", "rain"), ("history", "")]
)
def test_what_cannot_be_ends_with_5_and_one_line(two, words):
    code, said = two(model, *words)
    assert code == 5
    assert "Traceback" not in said


def test_a_registry_is_named_by_an_option_too_and_a_bad_url_ends_with_5_and_one_line(two, tmp_path):
    assert "1.0" not in two(model, "list", "--registry", f"memory:///{tmp_path}/other")[1]
    assert "1.0" in two(model, "show", "rain", "--registry", os.environ["SQUALL_REGISTRY"])[1]
    code, said = two(model, "list", "--registry", "https://host/models")
    assert code == 5
    assert "no registry can be kept at https://host/models" in said
    assert "Traceback" not in said


def test_a_model_for_which_there_is_no_room_ends_with_1_and_is_added_later(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    words = ("add", write_package(PersistenceSpec(), tmp_path / "still"), "--as", "rain")
    with monkeypatch.context() as patch:
        patch.setattr("engines.files.shutil.copyfile", full)
        code, said = run(model, *words)
    assert code == 1
    assert re.search(r"/version is full: model.onnx takes [\d,]+ bytes, .* or let SQUALL_(REGISTRY|CACHE) name", said)
    assert run(model, *words)[0] == 0


def test_an_empty_registry_says_how_to_begin(run):
    assert "squall model add" in run(model, "list")[1]


def test_a_history_of_no_moves_says_how_to_move(two):
    assert two(model, "history", "rain") == (
        0, "no alias of rain was moved; squall model promote rain VERSION moves one\n"
    )  # fmt: skip
    assert json.loads(two(model, "history", "rain", "--format", "json")[1]) == []


def test_two_engine_files_are_told_apart_by_the_beginning_of_their_names(run, tmp_path):
    other = replace(KEY, gpu="NVIDIA A100")
    cache = EngineCache(tmp_path / "cache" / "engine-cache")
    for key in (KEY, other):
        cache.get_or_build(key, lambda log: b"engine")
    code, said = run(engine, "explain-key", KEY.digest[:8], other.digest[:8])
    assert code == 0
    assert "NVIDIA H200" in said
    assert "NVIDIA A100" in said
    assert "gpu" in said
    manifest = tmp_path / "cache/engine-cache/engines" / KEY.digest / "manifest.json"
    assert "equal" in run(engine, "explain-key", manifest, KEY.digest)[1]
    (tmp_path / "key.json").write_text(json.dumps(other.to_json()))
    code, said = run(engine, "explain-key", tmp_path / "key.json", manifest, "--format", "json")
    assert [d["field"] for d in json.loads(said)["differences"]] == ["gpu"]


def test_an_unknown_or_broken_key_is_wrong_usage_and_names_what_there_is(run, tmp_path):
    EngineCache(tmp_path / "cache" / "engine-cache").get_or_build(KEY, lambda log: b"engine")
    code, said = run(engine, "explain-key", "ffff", KEY.digest)
    assert code == 2
    assert KEY.digest[:12] in said
    for text in ("[]", "[" * 500_000, '{"subject": 5}'):
        (tmp_path / "bad.json").write_text(text)
        code, said = run(engine, "explain-key", tmp_path / "bad.json", KEY.digest)
        assert code == 2
        assert "holds no engine key" in said
