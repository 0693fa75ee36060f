"""The registry: versions that never change, aliases that move whole or not at all, and what is refused."""

import json
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import set_external_data

from engines.alias import ALIASES
from engines.base import ModelError
from engines.model import ModelPackage
from engines.object_shelf import ObjectShelf
from engines.precision import Precision, to_half
from engines.registry import Registry, RegistryError
from engines.typed import open_typed

ROOT, WORKER = Path(__file__).parents[2], Path(__file__).with_name("registry_worker.py")
PLACES = runpy.run_path(str(WORKER))["PLACES"]
ROUNDS, SEED = 4, 20160928  # two processes are killed each round


@pytest.fixture
def make(tmp_path, plain, package):
    """Makes a model package of a version."""

    def written(version, **changes):
        return package(tmp_path / f"package-{version}", plain(), version=version, **changes)

    return written


@pytest.fixture
def report(tmp_path):
    """Writes a gate report."""

    def written(verdict, name="gate.json"):
        path = tmp_path / name
        path.write_text(json.dumps({"verdict": verdict}))
        return path

    return written


@pytest.fixture(params=["folder", "objects"])
def registry(request, tmp_path, object_store):
    if request.param == "folder":
        return Registry(tmp_path / "registry")
    return Registry(ObjectShelf(object_store, "memory:///test", tmp_path / "fetched"))


only_folder = pytest.mark.parametrize("registry", ["folder"], indirect=True)  # looks into the folder


@pytest.fixture
def three(registry, make, report, plain, tmp_path):
    """A registry with versions 1, 2 and 3 of `test`, all of which passed the gate."""
    half = tmp_path / "half.onnx"
    half.write_bytes(to_half(plain()).SerializeToString())
    for version in "123":
        registry.add(make(version), reports=[report("go")], who="ann", why="trained", graphs=[half])
    return registry


def keep_weights(folder, model, named):
    """Writes the model of a package with its weights in a file beside it, under a path that onnx.save does not take."""
    (folder / named).parent.mkdir(exist_ok=True)
    for tensor in model.graph.initializer:
        data = tensor.raw_data
        place = folder / named
        start = place.stat().st_size if place.exists() else 0
        with open(place, "ab") as file:
            file.write(data)
        set_external_data(tensor, named, start, len(data))
        tensor.ClearField("raw_data")
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def versions_of(registry, alias="production"):
    return [move.version for move in registry.history("test", alias)]


# Versions


def test_a_version_is_the_package_with_its_cases_and_reports(registry, make, report, tmp_path):
    case = tmp_path / "storm.npz"
    np.savez(case, x=np.zeros(3))
    registry.add(make("1.0"), reports=[report("go")], cases=[case], who="ann", why="first")
    found = registry.resolve("test", "1.0")
    assert isinstance(found, ModelPackage)
    assert sorted(p.name for p in found.folder.rglob("*.*")) == [
        "gate.json", "model.onnx", "model.yaml", "storm.npz", "version.json"
    ]  # fmt: skip
    release = registry.release("test", "1.0")
    assert (release.who, release.why, release.weights_sha256) == ("ann", "first", found.weights_sha256)
    assert (registry.models(), [r.version for r in registry.versions("test")]) == (["test"], ["1.0"])


def test_weights_in_other_files_come_along(registry, make, plain, tmp_path):
    folder = make("1.0")
    model = plain()
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    (folder / "notes.txt").write_text("not part of the model")
    registry.add(folder)
    found = registry.resolve("test", "1.0").folder
    assert {p.name for p in found.iterdir()} == {"model.onnx", "model.yaml", "model.data", "version.json"}


@pytest.mark.parametrize(("named", "kept"), [("./w.bin", "w.bin"), ("data//w.bin", "data/w.bin")])
def test_weights_may_be_named_by_a_roundabout_path(registry, make, plain, named, kept):
    folder = make("1.0")
    keep_weights(folder, plain(), named)
    registry.add(folder)
    assert registry.resolve("test", "1.0").weights_sha256 == registry.release("test", "1.0").weights_sha256
    assert kept in registry.release("test", "1.0").files


@pytest.mark.parametrize("named", ["data/../w.bin", "version.json", "reports/w.bin", "graphs/half.onnx"])
def test_weights_in_the_place_of_what_the_registry_keeps_are_refused(registry, make, plain, named):
    folder = make("1.0")
    (folder / "data").mkdir()
    keep_weights(folder, plain(), named)
    with pytest.raises(RegistryError, match=f"keeps weights in '{re.escape(named)}'; expected a file beside it"):
        registry.add(folder)
    assert registry.models() == []


def test_graphs_of_other_precisions_come_along_and_are_checked_like_every_file(registry, make, plain, tmp_path):
    folder = make("1.0")
    onnx.save(plain(), folder / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    half = tmp_path / "half.onnx"
    half.write_bytes(to_half(onnx.load(folder / "model.onnx")).SerializeToString())
    registry.add(folder, graphs=[half])
    stored = registry.resolve("test", "1.0").folder / "graphs" / "half.onnx"
    assert open_typed(stored, Precision("half")).conversion.is_honoured
    registry.add(folder, graphs=[half])
    onnx.save(plain(), half)
    with pytest.raises(RegistryError, match=r"stands with another graphs/half\.onnx"):
        registry.add(folder, graphs=[half])


def test_a_graph_that_is_none_is_refused_and_nothing_is_added(registry, make, plain, tmp_path):
    wrong, foreign, spread = (tmp_path / name for name in ("half.onnx", "quarter.onnx", "int8.onnx"))
    wrong.write_text("no graph")
    onnx.save(plain(), foreign)
    onnx.save(plain(), spread, save_as_external_data=True, location="int8.data", size_threshold=0)
    for graph, reason in ((wrong, "half.onnx is no graph"), (foreign, "'quarter'"), (spread, "in one file")):
        with pytest.raises(RegistryError, match=reason):
            registry.add(make("1.0"), graphs=[graph])
    assert registry.models() == []


def test_a_model_may_have_another_name_than_its_contract(registry, make):
    registry.add(make("1.0"), name="rain")
    assert registry.resolve("rain", "1.0").contract.name == "test"


def test_adding_the_same_again_changes_nothing(three, make):
    before = three.release("test", "1")
    assert three.add(make("1"), who="bob") == before


def test_cases_of_a_version_stay_and_others_are_refused(registry, make, tmp_path):
    case = tmp_path / "storm.npz"
    case.write_bytes(b"one")
    before = registry.add(make("1"), cases=[case])
    assert registry.add(make("1")) == before
    case.write_bytes(b"other")
    with pytest.raises(RegistryError, match=r"version 1 of test stands with another cases/storm\.npz"):
        registry.add(make("1"), cases=[case])


def test_adding_the_same_again_keeps_the_newer_report(registry, make, report):
    registry.add(make("1"), reports=[report("no-go")])
    assert registry.gates("test", "1") == {"gate.json": False}
    registry.add(make("1"), reports=[report("go")])
    assert registry.gates("test", "1") == {"gate.json": True}


def test_a_version_with_other_contents_is_refused(three, make):
    with pytest.raises(RegistryError, match=r"version 2 of test stands with another model\.yaml"):
        three.add(make("2", description="other"))
    assert three.resolve("test", "2").contract.description == ""


@only_folder
def test_a_package_that_breaks_its_contract_is_refused_and_leaves_nothing(registry, make, tmp_path):
    folder = make("1.0")
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match="no ONNX"):
        registry.add(folder)
    assert registry.models() == []
    assert list((tmp_path / "registry" / ".staging").iterdir()) == []


def test_two_reports_of_one_name_are_refused(registry, make, report, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/gate.json").write_text("{}")
    with pytest.raises(RegistryError, match="have one name"):
        registry.add(make("1"), reports=[report("go"), tmp_path / "b/gate.json"])


BAD_NAMES = ["..", ".", "", "../other", "a/b", "/etc", ".hidden", "a b", "a\0", "a\n", "ä", "x" * 101, "-x"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_may_lead_elsewhere_is_refused(three, make, report, package, plain, tmp_path, name):
    odd = package(tmp_path / "odd", plain(), version=name)
    refusals = [
        lambda: three.add(make("1"), name=name or " "),
        lambda: three.add(odd),
        lambda: three.resolve(name),
        lambda: three.resolve("test", name),
        lambda: three.promote("test", name),
        lambda: three.promote(name, "1"),
        lambda: three.promote("test", "1", alias=name),
        lambda: three.rollback("test", alias=name),
        lambda: three.attach("test", name, report("go")),
        lambda: three.gates(name, "1"),
        lambda: three.history(name, "production"),
    ]
    for refusal in refusals:
        with pytest.raises(ModelError):
            refusal()


@pytest.mark.parametrize("version", ALIASES)
def test_a_version_cannot_be_called_like_an_alias(registry, make, version):
    with pytest.raises(RegistryError, match="is an alias"):
        registry.add(make(version))


@pytest.mark.parametrize(
    ("reference", "named"),
    [("4", "no version '4' in .*; there is 1, 2, 3"), ("canary", "no version of test is in canary; promote one of 1")],
)
def test_what_is_not_there_is_named_with_what_is(three, reference, named):
    with pytest.raises(RegistryError, match=named):
        three.resolve("test", reference)
    with pytest.raises(RegistryError, match=r"no model 'snow' in .*; there is test"):
        three.resolve("snow", reference)


def test_a_reader_sees_a_version_whole_or_not_at_all(registry, make, tmp_path):
    cases = [tmp_path / f"case-{n}.npz" for n in range(4)]
    for case in cases:
        case.write_bytes(bytes(4_000_000))
    registry.add(make("0"))
    seen, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            seen.extend(registry.resolve("test", release.version) for release in registry.versions("test"))

    with ThreadPoolExecutor() as pool:
        reader = pool.submit(read)
        for version in "12345":
            registry.add(make(version), cases=cases)
        stop.set()
        reader.result()
    assert len(seen) > 1


# Damage


def rewrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def link_away(path: Path, levels: int = 4) -> None:
    """The same contents, but outside the registry."""
    away = path.parents[levels] / "away"
    path.rename(away)
    path.symlink_to(away)


DAMAGES = {
    "a weight flipped": (lambda f: rewrite(f / "model.onnx", (f / "model.onnx").read_bytes()[:-9] + b"123456789"),
                         "sha256"),
    "another precision": (lambda f: rewrite(f / "graphs/half.onnx", b"changed"), r"graphs/half\.onnx has sha256"),
    "another contract": (lambda f: rewrite(f / "model.yaml", b"name: x"), "sha256"),
    "file gone": (lambda f: (f / "model.onnx").unlink(), "lacks"),
    "file added": (lambda f: (f / "more.bin").write_bytes(b""), "never added"),
    "file is a link": (lambda f: link_away(f / "model.onnx"), "link"),
    "link to a folder": (lambda f: (f / "cases").symlink_to("/"), "never added"),
    "record gone": (lambda f: (f / "version.json").unlink(), "version.json"),
    "record cut short": (lambda f: rewrite(f / "version.json", b'{"name": "te'), "damaged"),
    "record is a link": (lambda f: link_away(f / "version.json"), "link"),
    "record of another version": (lambda f: rewrite(f / "version.json", (f / "version.json").read_bytes().replace(
        b'"version": "1"', b'"version": "2"')), "expected test 1"),
    "record of a file elsewhere": (lambda f: rewrite(f / "version.json", (f / "version.json").read_bytes().replace(
        b'"model.yaml"', b'"../model.yaml"')), "expected a path inside"),
    "record without a sha256": (lambda f: rewrite(f / "version.json", (f / "version.json").read_bytes().replace(
        b'"model.yaml": "', b'"model.yaml": "../')), "64 hex digits"),
    "record of no files": (lambda f: rewrite(f / "version.json", json.dumps(json.loads(
        (f / "version.json").read_bytes()) | {"files": ["model.onnx"]}).encode()), "no table"),
    "record of another graph": (lambda f: rewrite(f / "version.json", (f / "version.json").read_bytes().replace(
        b'"graph_sha256": "', b'"graph_sha256": "0')), "another graph"),
    "the folder is a link": (lambda f: link_away(f, levels=3), "is a link"),
}  # fmt: skip


@only_folder
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_version_is_neither_used_nor_promoted(three, tmp_path, damage):
    cause, named = DAMAGES[damage]
    cause(tmp_path / "registry/test/versions/1")
    with pytest.raises(RegistryError, match=named):
        three.resolve("test", "1")
    with pytest.raises(RegistryError, match=named):
        three.promote("test", "1", why="must", force=True)
    three.promote("test", "2")
    assert three.resolve("test").contract.version == "2"


@only_folder
@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'{"number": 2}', b"[" * 100_000])
def test_a_damaged_history_is_an_error_and_never_an_older_version(three, tmp_path, text):
    three.promote("test", "1")
    three.promote("test", "2")
    rewrite(tmp_path / "registry/test/aliases/production/000002.json", text)
    with pytest.raises(RegistryError, match=r"000002\.json is damaged"):
        three.resolve("test")


@only_folder
def test_an_alias_that_leads_elsewhere_is_refused(three, tmp_path):
    three.promote("test", "1")
    (tmp_path / "registry/test/aliases").rename(tmp_path / "away")
    (tmp_path / "registry/test/aliases").symlink_to(tmp_path / "away")
    for action in (three.resolve, three.rollback, three.current):
        with pytest.raises(RegistryError, match="is a link"):
            action("test")


# The gate


@pytest.mark.parametrize("force", [False, True])
def test_a_version_without_a_passing_gate_is_refused_unless_forced_with_a_reason(registry, make, report, force):
    registry.add(make("1"), reports=[report("no-go")])
    with pytest.raises(RegistryError, match=r"gate\.json of it say no-go"):
        registry.promote("test", "1", why="" if force else "hurry", force=force)
    registry.add(make("2"))
    with pytest.raises(RegistryError, match="it has no gate report; run the gate"):
        registry.promote("test", "2")
    move = registry.promote("test", "2", who="ann", why="storm is here", force=True)
    assert move.is_forced
    assert registry.current("test").why == "storm is here"


def test_one_passing_gate_is_enough_and_forcing_it_leaves_no_mark(registry, make, report):
    registry.add(make("1"), reports=[report("no-go", "gate-int8.json"), report("go", "gate-half.json")])
    assert not registry.promote("test", "1", why="x", force=True).is_forced


def test_a_later_verdict_replaces_an_earlier_one(three, report):
    three.attach("test", "1", report("no-go"))
    with pytest.raises(RegistryError, match="no passing gate"):
        three.promote("test", "1")
    three.attach("test", "1", report("go"))
    three.promote("test", "1")


@pytest.mark.parametrize("name", ["bench.json", "gate.html", "mygate.json"])
def test_a_report_that_is_no_gate_opens_none(registry, make, report, name):
    registry.add(make("1"), reports=[report("go", name)])
    with pytest.raises(RegistryError, match="no gate report"):
        registry.promote("test", "1")


@only_folder
def test_a_verdict_that_was_changed_afterwards_is_refused(registry, make, report, tmp_path):
    registry.add(make("1"))
    registry.attach("test", "1", report("no-go"))
    (later,) = (tmp_path / "registry/test/reports/1").iterdir()
    rewrite(later, b'{"verdict": "go"}')
    with pytest.raises(RegistryError, match="changed after"):
        registry.promote("test", "1")


# Aliases


def test_promote_and_roll_back_move_the_alias_and_keep_who_when_and_why(three):
    three.promote("test", "1", who="ann", why="first")
    three.promote("test", "2", who="bob", why="better")
    three.rollback("test", who="eve", why="too wet")
    assert three.resolve("test").contract.version == "1"
    rows = [(m.action, m.version, m.who, m.why) for m in three.history("test", "production")]
    assert rows == [
        ("promote", "1", "ann", "first"), ("promote", "2", "bob", "better"), ("rollback", "1", "eve", "too wet")
    ]  # fmt: skip
    times = [m.at for m in three.history("test", "production")]
    assert times == sorted(times)


def test_rolling_back_again_goes_one_step_further_and_stops_at_the_first(three):
    for version in "123":
        three.promote("test", version)
    assert [three.rollback("test").version for _ in range(2)] == ["2", "1"]
    with pytest.raises(RegistryError, match="stands at 1, its first version"):
        three.rollback("test")
    assert versions_of(three) == ["1", "2", "3", "2", "1"]


def test_promoting_what_stands_there_changes_nothing(three):
    first = three.promote("test", "1", who="ann")
    assert three.promote("test", "1", who="bob") == first


def test_an_alias_that_was_never_promoted_cannot_roll_back(three):
    with pytest.raises(RegistryError, match="never promoted"):
        three.rollback("test", "canary")


def test_aliases_do_not_touch_each_other(three):
    three.promote("test", "1")
    three.promote("test", "2", "canary")
    assert [three.resolve("test", alias).contract.version for alias in ("production", "canary")] == ["1", "2"]


@only_folder
def test_a_damaged_version_is_no_place_to_roll_back_to(three, tmp_path):
    three.promote("test", "1")
    three.promote("test", "2")
    rewrite(tmp_path / "registry/test/versions/1/model.yaml", b"")
    with pytest.raises(RegistryError, match="sha256"):
        three.rollback("test")
    assert three.current("test").version == "2"


def test_many_who_see_one_fault_go_back_one_step(three):
    for version in "123":
        three.promote("test", version)
    at_once(lambda n: three.rollback("test", who=str(n), only_from="3"), 6)
    assert versions_of(three) == ["1", "2", "3", "2"]


def at_once(action, count):
    errors = []

    def guarded(n):
        try:
            action(n)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_of_promotes_at_once_one_order_wins_and_none_is_lost(three):
    answers = []
    at_once(lambda n: [answers.append(three.promote("test", "123"[(n + k) % 3], who=f"{n}.{k}")) for k in range(4)], 8)
    history = three.history("test", "production")
    assert len(answers) == 32
    assert all(move in history for move in answers)
    assert [move.number for move in history] == list(range(1, len(history) + 1))
    assert [move.undo for move in history] == [None, *range(1, len(history))]
    assert len({move.who for move in history}) == len(history)
    assert all(a.version != b.version for a, b in pairwise(history))


# Processes that are killed


def start(*words: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(WORKER), *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE,
                            env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True)  # fmt: skip


@pytest.mark.parametrize("kind", PLACES)
def test_processes_killed_at_random_tear_no_version_and_no_alias(tmp_path, package, plain, kind):
    packages = tmp_path / "packages"
    packages.mkdir()
    for version in range(30):
        package(packages / str(version), plain(), version=f"{version}")
    root, choose = tmp_path / "registry", random.Random(SEED)
    registry, before = PLACES[kind](root), []
    for n in range(ROUNDS):
        processes = [start(kind, root, packages, f"{n}.{k}") for k in range(2)]
        for process in processes:
            process.stdout.readline()
        time.sleep(choose.uniform(0.05, 0.4))
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        if not registry.models():
            continue
        history = registry.history("test", "production")
        assert history[: len(before)] == before
        assert [move.number for move in history] == list(range(1, len(history) + 1))
        for release in registry.versions("test"):
            registry.resolve("test", release.version)
        assert not history or registry.resolve("test").contract.version == history[-1].version
        before = history
    assert len(before) > 1
    print(f"{2 * ROUNDS} kills, {len(before)} moves, {len(registry.versions('test'))} versions, none torn")
    registry.add(packages / "0")
    drafts = root if kind == "folder" else root / "cache"
    assert list((drafts / ".staging").iterdir()) == []
