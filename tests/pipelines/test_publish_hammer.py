"""Two writers publish the same cycles and are killed at random while a reader opens whatever is there.

Agreed: no cycle is ever seen in part, none is won twice, `latest` never goes back, a rerun changes nothing, and
after one sweep nothing is left of the dead. Run as a script, this file is the hammer; the test starts it so,
because it forks.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

ROOT = Path(__file__).parents[2]
PRODUCT, KILLS, SEED = "rain", 24, 20160928
START = np.datetime64("2016-09-28T12:00", "ns")


@pytest.fixture(scope="module", params=["", "file://"], ids=["folder", "objects"])
def hammered(request, tmp_path_factory):
    """Where the cycles lie after the hammer, its folder, and what the reader saw."""
    folder = tmp_path_factory.mktemp("hammer")
    command = [sys.executable, __file__, str(folder), request.param]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads((folder / "seen.json").read_text())
    print(f"hammer: {KILLS} kills, {len(won(folder))} cycles won and logged, reader saw {seen}")
    return f"{request.param}{folder}", folder, seen


def won(folder: Path) -> list[str]:
    return (folder / "won.log").read_text().split()


def test_no_reader_saw_part_of_a_cycle(hammered):
    _, _, seen = hammered
    assert seen["opens"] > 0
    assert seen["torn"] == []


def test_latest_never_went_back(hammered):
    root, _, seen = hammered
    if root.startswith("file://"):
        pytest.skip("obstore's store in a folder cannot compare and swap: `latest` may go back for a moment")
    assert seen["backwards"] == []


def test_no_cycle_was_won_twice(hammered):
    wins = Counter(won(hammered[1]))
    assert wins
    assert max(wins.values()) == 1


def test_every_cycle_stands_whole_and_one_sweep_clears_the_rest(hammered):
    from pipelines.cycles import latest_cycle, list_cycles
    from pipelines.sink import sweep

    root, folder, _ = hammered
    sweep(root, PRODUCT)
    left = {path.name for path in (folder / PRODUCT / ".staging").iterdir()}
    unlisted = {name for name in left if root.startswith("file://") and "#" in name}  # obstore's own, half written
    assert left == unlisted
    cycles = list_cycles(root, PRODUCT)
    assert {fault(cycle.path) for cycle in cycles} == {None}
    assert latest_cycle(root, PRODUCT) == cycles[-1]


def test_a_rerun_of_every_cycle_changes_nothing(hammered):
    from pipelines.cycles import list_cycles
    from pipelines.errors import AlreadyPublishedError

    root, folder, _ = hammered
    before = {p: p.stat().st_mtime_ns for p in (folder / PRODUCT).rglob("*.zarr/**/*")}
    cycles = list_cycles(root, PRODUCT)
    for number in range(len(cycles)):
        with pytest.raises(AlreadyPublishedError):
            make_cycle(root, number, writer=1)
    assert {p: p.stat().st_mtime_ns for p in (folder / PRODUCT).rglob("*.zarr/**/*")} == before


# What the processes of the hammer do


def make_cycle(root: str, number: int, writer: int) -> None:
    """Publishes cycle `number`; every code says which cycle and which writer it is of."""
    from pipelines.cf import Provenance
    from pipelines.grid import Grid
    from pipelines.layout import choose_layout
    from pipelines.product import OutputSpec
    from pipelines.sink import abort, open_draft, publish, write_block

    grid = Grid(np.arange(24.0), np.arange(24.0), "y", "x", {"units": "m"}, {"units": "m"})
    output = OutputSpec(store=root, variable="rain_rate", shards=(8, 8), chunks=(8, 4))
    layout = choose_layout(grid.shape, 2, output)
    leads = (timedelta(minutes=5), timedelta(minutes=10))
    provenance = Provenance(f"writer {writer}", "model", "engine", {}, "in.zarr", ())
    reference_time = START + np.timedelta64(5 * number, "m")
    draft = open_draft(root, PRODUCT, reference_time, grid, leads, layout, {"units": "mm h-1"}, provenance)
    try:
        for shard in layout.shards:
            window = layout.shard_window(*shard)
            write_block(draft, window, np.full((2, *window.shape), 2 * number + writer, np.int16))
        publish(draft)
    finally:
        abort(draft)


def fault(path: str) -> str | None:
    """What a plain reader finds wrong with a cycle of the hammer, or None."""
    from pipelines.shelves import as_opened

    dataset = xr.open_zarr(as_opened(path), mask_and_scale=False, chunks=None)
    codes = np.unique(dataset.rain_rate.values)
    number = int((dataset.init_time.values[0] - START) / np.timedelta64(5, "m"))
    writer = int(dataset.attrs["squall_product"].split()[1])
    return None if codes.tolist() == [2 * number + writer] else f"{path} holds {codes.tolist()}"


def write_forever(root: str, folder: Path, writer: int) -> None:
    from pipelines.cycles import list_cycles
    from pipelines.errors import AlreadyPublishedError
    from pipelines.sink import sweep

    log = os.open(folder / "won.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        sweep(root, PRODUCT)
        for number in range(max(0, len(list_cycles(root, PRODUCT)) - 1), 10_000):
            try:
                make_cycle(root, number, writer)
            except AlreadyPublishedError:
                continue
            os.write(log, f"{number}\n".encode())


def read_until_stopped(root: str, folder: Path) -> None:
    from pipelines.cycles import latest_cycle, list_cycles

    choose, newest = random.Random(SEED), START - np.timedelta64(1, "D")
    opens, torn, backwards = 0, [], []
    while not (folder / "stop").exists():
        latest = latest_cycle(root, PRODUCT)
        cycles = list_cycles(root, PRODUCT)[-3:]
        if latest is None or not cycles:
            continue
        if latest.reference_time < newest:
            backwards.append(str(latest.reference_time))
        newest = latest.reference_time
        for path in (latest.path, choose.choice(cycles).path, cycles[-1].path):
            opens += 1
            try:
                found = fault(path)
            except Exception as error:
                found = f"{path}: {error!r}"
            torn += [found] if found else []
    (folder / "seen.json").write_text(json.dumps({"opens": opens, "torn": torn, "backwards": backwards}))


def fork(work, *arguments) -> int:
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
        finally:
            os._exit(0)
    return child


def hammer(root: str, folder: Path) -> None:
    import pipelines.sink  # noqa: F401  so that the children need not

    chance = random.Random(SEED)
    reader = fork(read_until_stopped, root, folder)
    writers = {writer: fork(write_forever, root, folder, writer) for writer in (1, 2)}
    for kill in range(KILLS):
        time.sleep(chance.uniform(0.05, 0.4))
        victim = chance.choice((1, 2))
        os.kill(writers[victim], signal.SIGKILL)
        os.waitpid(writers[victim], 0)
        if kill < KILLS - 1:
            writers[victim] = fork(write_forever, root, folder, victim)
        else:
            del writers[victim]
    for child in writers.values():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    (folder / "stop").touch()
    os.waitpid(reader, 0)


if __name__ == "__main__":
    hammer(f"{sys.argv[2]}{sys.argv[1]}", Path(sys.argv[1]))
