"""Cycles of real workers, published on an object store: obstore's store in a folder, which processes share."""

import json
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest
from click.testing import CliRunner

from jobs import cycle
from jobs.backfill import run_backfill
from jobs.cli import main
from jobs.cycle import Status, run_cycle
from jobs.make import Filled
from jobs.outcome import Exit
from jobs.pool import Pool, cluster_resources
from jobs.prepare import load, prepare
from pipelines.archive import open_archive, open_cycle
from pipelines.cycles import latest_cycle, list_cycles
from pipelines.interval import times_within
from pipelines.objects import keys
from pipelines.shelves import open_shelf

pytestmark = pytest.mark.ray
TIMES = [np.datetime64(f"2024-06-01T12:{minute:02}", "ns") for minute in (5, 10, 15, 20, 25)]


@pytest.fixture
def ready(product, root, local_ray):
    """Prepares a product whose forecasts go to an object store, unless told otherwise, and gives it a pool."""
    pools = []

    def start(*overrides, whole_cycles=False):
        while pools:
            pools.pop().close()
        prepared = prepare(load(product, (f"output.store={root}", *overrides)), cluster_resources(), whole_cycles)
        pools.append(Pool(prepared.setup, prepared.workers, prepared.gpu))
        return prepared, pools[-1]

    yield start
    for pool in pools:
        pool.close()


@pytest.fixture
def root(tmp_path):
    return f"file://{tmp_path}/bucket"


def files_of(root: str, store: str) -> dict[str, bytes]:
    """The files of a store but the one that names the product file, which says where forecasts go."""
    shelf = open_shelf(root, "tiny")
    return {key: shelf.read(store, key).read() for key in shelf.keys(store) if key != "zarr.json"}


def unpublished(root: str) -> list[str]:
    """Objects of no published cycle."""
    stores = tuple(c.path.removeprefix(f"{root}/tiny/") for c in list_cycles(root, "tiny"))
    return [
        key for key in keys(f"{root}/tiny") if (".zarr/" in key and not key.startswith(stores)) or ".staging" in key
    ]


def test_a_cycle_on_an_object_store_has_the_bytes_of_one_in_a_folder(ready, root, product):
    there = run_cycle(*ready(), TIMES[3])
    folder = str(product.parent / "out")
    here = run_cycle(*ready(f"output.store={folder}"), TIMES[3])
    assert (there.status, there.warnings) == (Status.PUBLISHED, ())
    assert there.path.startswith(f"{root}/tiny/2024/06/01/1220.")
    assert files_of(root, there.path) == files_of(folder, here.path)
    assert open_cycle(f"{root}/tiny/latest.json").precip_rate.dims == ("init_time", "lead_time", "y", "x")
    assert unpublished(root) == []


def test_a_cycle_again_is_refused_and_a_revision_is_published_where_asked_for(ready, root):
    prepared, pool = ready()
    first = run_cycle(prepared, pool, TIMES[3])
    again = run_cycle(prepared, pool, TIMES[3])
    assert (again.status, again.path) == (Status.ALREADY, first.path)
    second = run_cycle(prepared, pool, TIMES[3], replace_published=True)
    assert [(c.revision, c.path) for c in list_cycles(root, "tiny")] == [(1, second.path)]
    assert files_of(root, first.path) == files_of(root, second.path)
    assert len([key for key in keys(f"{root}/tiny") if key.endswith("precip_rate/zarr.json")]) == 2


def test_an_interrupted_cycle_leaves_nothing_and_the_pool_works_on(ready, root):
    prepared, pool = ready()

    def interrupt(settled, total, results):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cycle(prepared, pool, TIMES[3], progress=interrupt)
    assert list_cycles(root, "tiny") == []
    assert open_shelf(root, "tiny").names(".staging") == []
    assert run_cycle(prepared, pool, TIMES[3]).status is Status.PUBLISHED


def test_a_block_that_was_given_up_after_it_was_written_is_missing_all_the_same(ready, monkeypatch):
    drive = cycle._drive

    def all_but_one(*args):
        results = drive(*args).results
        return Filled(results[1:], {results[0].block: "the deadline passed"})

    monkeypatch.setattr(cycle, "_drive", all_but_one)
    prepared, pool = ready("output.incomplete=publish")
    report = run_cycle(prepared, pool, TIMES[3])
    assert report.status is Status.GAPS
    window = prepared.plan.tiling.blocks()[0].window
    values = open_cycle(report.path).precip_rate.values
    assert np.isnan(values[..., window.y0 : window.y1, window.x0 : window.x1]).all()
    assert not np.isnan(values).all()


def test_old_cycles_are_removed(ready, root):
    prepared, pool = ready("output.keep=10min")
    for time in TIMES:
        run_cycle(prepared, pool, time)
    assert [c.reference_time for c in list_cycles(root, "tiny")] == TIMES[2:]
    assert unpublished(root) == []


def test_a_backfill_publishes_what_single_runs_publish_and_keeps_its_ledger_beside(ready, root):
    prepared, pool = ready("output.store=" + root + "/single")
    single = [files_of(f"{root}/single", run_cycle(prepared, pool, time).path) for time in TIMES]
    prepared, pool = ready(whole_cycles=True)
    source = prepared.source
    times = times_within(source.times, prepared.product.input, None, None, None, source.where)
    for published, already in ((5, 0), (0, 5)):
        report = run_backfill(prepared, pool, times)
        assert (report.tally.published, report.tally.already, report.tally.failed) == (published, already, 0)
    cycles = list_cycles(root, "tiny")
    assert [files_of(root, c.path) for c in cycles] == single
    assert latest_cycle(root, "tiny") == cycles[-1]
    assert (open_archive(root, "tiny").init_time.values == np.array(TIMES)).all()
    assert report.ledger == f"{root}/tiny/ledger"
    ledger = pyarrow.dataset.dataset(report.ledger.removeprefix("file://")).to_table().sort_by("reference_time")
    assert ledger["path"].to_pylist() == [c.path for c in cycles]
    assert unpublished(root) == []


def test_the_command_line_works_on_an_object_store(product, root, tmp_path):
    def squall(*args):
        done = CliRunner().invoke(main, [str(arg) for arg in args])
        assert done.exit_code == 0, done.output
        return done.output

    there, picture = f"output.store={root}", tmp_path / "tiny.png"
    assert "valid" in squall("validate", product, there)
    assert "no cycle" in squall("cycles", product, there)
    made = ("--time", "2024-06-01T12:10Z", "--plot", picture, "--format", "json")
    report = json.loads(squall("run", product, there, *made))
    assert picture.read_bytes().startswith(b"\x89PNG")
    (found,) = json.loads(squall("cycles", product, there, "--format", "json"))
    assert found["path"] == report["path"]
    for url in (report["path"], f"{root}/tiny/latest.json"):
        assert json.loads(squall("inspect", url, "--format", "json"))["completeness"] == 1
    verified = json.loads(squall("verify", product, there, "--threshold", "1", "--format", "json"))
    assert [score["lead_time"] for score in verified["forecast"]] == [300, 600, 900]


def test_a_place_that_takes_no_forecasts_is_a_problem_at_once(product, tmp_path):
    Path(tmp_path / "file").write_text("")
    for url, says in (("https://host/out", "a plain web server takes no forecasts"), (f"file://{tmp_path}/file/x", "")):
        done = CliRunner().invoke(main, ["validate", str(product), f"output.store={url}", "--format", "json"])
        assert done.exit_code == Exit.BAD_CONFIGURATION
        (problem,) = json.loads(done.output)["problems"]
        assert problem["where"] == "output.store"
        assert says in problem["found"]
