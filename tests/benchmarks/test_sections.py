"""Sections of the benchmark of throughput: what they decide from what they measured."""

import os
import socket
from contextlib import nullcontext
from pathlib import Path
from time import thread_time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bench import Bench
from benchmarks.cases import QUICK, Case
from benchmarks.cluster import free_port, open_cluster, shared_environment, without_address
from benchmarks.codes import Apart, compare, open_published, open_rival
from benchmarks.contender import Contender
from benchmarks.floor import Bare
from benchmarks.laps import Ran
from benchmarks.sections import engine_alone
from benchmarks.sections.engine_alone import host_overhead, host_seconds
from benchmarks.sections.exact import forecast_plainly
from benchmarks.sections.leak import LEAST, SETTLING, Growth, Row, growth_of
from benchmarks.sections.several_gpus import several_gpus
from benchmarks.sections.warm_pool import Command, run_command
from jobs.outfit import open_outfit
from pipelines.run import infer_block
from pipelines.source import find_inputs
from pipelines.spans import Stopwatch

codes = st.lists(st.integers(-32768, 32767), min_size=6, max_size=6).map(
    lambda some: np.array(some, np.int16).reshape(2, 1, 3)
)


@given(codes, codes)
def test_codes_that_differ_are_counted_over_all_lead_times(ours, theirs) -> None:
    found, between = compare(ours, theirs), abs(ours.astype(int) - theirs)
    assert (found.cells, found.wet) == (6, (ours > 0).sum())
    assert (found.differing, found.beyond, found.most) == ((between > 0).sum(), (between > 1).sum(), between.max())
    assert compare(ours[:1], theirs[:1]) + compare(ours[1:], theirs[1:]) == found
    assert compare(theirs, ours).most == found.most
    assert compare(ours, ours).verdict == "equal"


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Apart(9, 3, 0, 0, 0), "equal"),
        (Apart(9, 3, 4, 0, 1), "within one code"),
        (Apart(9, 3, 1, 1, 2), "MORE THAN ONE CODE"),
    ],
)
def test_one_code_is_the_most_that_is_let_pass(found: Apart, verdict: str) -> None:
    assert found.verdict == verdict


def test_forecasts_of_other_cells_or_lead_times_are_not_compared() -> None:
    with pytest.raises(ValueError, match="expected equal"):
        compare(np.zeros((1, 2, 2)), np.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match="zip"):
        compare(np.zeros((1, 2, 2)), np.zeros((2, 2, 2)))


def test_the_reference_is_what_squall_makes_with_reuse_and_without(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SQUALL_CACHE", str(tmp_path / "cache"))
    prepared = Bench(tmp_path, None, QUICK, [1], False, {"tiling": {"tile": [128, 128]}}).case("fmi").prepared
    cycle, outfit = find_inputs(prepared.source, prepared.product), open_outfit(prepared.setup)
    tiling = prepared.plan.tiling
    plain = forecast_plainly(prepared, outfit.engine, tiling, cycle)
    for block in tiling.blocks():
        seen, ours = tiling.reads(block), np.empty((plain.shape[0], *block.window.shape), plain.dtype)
        raw = prepared.source.read(cycle, seen)
        infer_block(raw, seen, block, outfit.forecaster, ours, Stopwatch())
        outfit.forecaster.encoder.mask(
            ours, outfit.forecaster.decoder.is_missing(raw[-1][block.window.within(seen).slices])
        )
        np.testing.assert_array_equal(plain[:, *block.window.slices], ours)
    assert (plain > 0).any()


class Host:
    """Contenders of a host on which n GPUs are so many times as fast as one."""

    def __init__(self, speed):
        self.speed, self.asked = speed, []

    def run_laps(self, bench, case, name, numbers, environment):
        count = len(environment["CUDA_VISIBLE_DEVICES"].split(","))
        self.asked.append((case.name, name, count, list(numbers)))
        cycles = numbers[-1] if name == "backfill" else 1
        facts = {"seconds": cycles / self.speed[count], "workers": 4 * count}
        return Ran(facts=[facts | ({"cycles": cycles} if name == "backfill" else {})] * len(numbers))


def test_scaling_is_told_in_cycles_a_second_against_the_first_number_of_gpus(tmp_path: Path, monkeypatch) -> None:
    host, bench = Host({1: 2.0, 2: 4.0, 4: 6.0}), Bench(tmp_path, None, QUICK, [1, 2, 4], False, {})
    monkeypatch.setattr("benchmarks.sections.several_gpus.run_laps", host.run_laps)
    monkeypatch.setattr("benchmarks.sections.several_gpus.cuda.device_count", lambda: 4)
    bench.cases |= {name: Case(name, tmp_path, None) for name in ("mrms", "mrms_archive-many", "fmi_archive-many")}
    lines = list(several_gpus(bench))
    assert len(lines) == 2 + 3 * 3
    for case in bench.cases:
        kept = [one for one in bench.record["several GPUs"] if one["case"] == case]
        assert [one["speed-up"] for one in kept] == pytest.approx([1, 2, 3])
        assert [one["efficiency"] for one in kept] == pytest.approx([1, 1, 0.75])
    backfills = [numbers[0] for name, _, _, numbers in host.asked if name == "fmi_archive-many"]
    assert backfills == [QUICK.fmi_archive, 2 * QUICK.fmi_archive, 4 * QUICK.fmi_archive]


def test_fewer_gpus_than_asked_for_are_said_and_nothing_is_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.sections.several_gpus.cuda.device_count", lambda: 1)
    (line,) = several_gpus(Bench(tmp_path, None, QUICK, [1, 2], False, {}))
    assert line == "1 GPU(s) here; --gpus asks for 2"


def test_filling_a_lane_is_no_part_of_what_the_host_does_for_a_batch() -> None:
    class Slow:
        def __setitem__(self, where, value):
            end = thread_time() + 0.02
            while thread_time() < end:
                pass

    lane = SimpleNamespace(given=Slow(), run=lambda: None)
    assert host_seconds(lambda shape: nullcontext(lane), (1, 2, 8, 8)) < 0.01


def test_the_hosts_part_of_a_batch_is_a_share_of_its_time_on_the_gpu(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Bench, "has_gpu", True)
    bench = Bench(tmp_path, None, QUICK, [1], False, {})
    profile = SimpleNamespace(opt=(2, 4, 64, 32))
    setup = SimpleNamespace(order=SimpleNamespace(spec=SimpleNamespace(profiles=[profile])))
    monkeypatch.setattr(Bench, "engine", lambda self, case: SimpleNamespace(engine="engine"))
    monkeypatch.setattr(engine_alone, "open_lanes", lambda setup, engine: (f"lanes of {engine}", True))
    monkeypatch.setattr(engine_alone, "host_seconds", lambda lanes, shape: 0.0002)
    for name in ("mrms", "wet-wide-10-members-many"):
        bench.cases[name] = Case(name, tmp_path, SimpleNamespace(setup=setup))
        bench.bares[name] = Bare(0.004, 0.0, 0.004, 1, 1)
    assert "| mrms | 2 x 4 x 64 x 32 | 4.000 | 0.200 | 5.0% | <= 5 % |" in list(host_overhead(bench))
    assert bench.record["host overhead"] == pytest.approx({"mrms": 0.05, "wet-wide-10-members-many": 0.05})


def test_memory_that_settles_and_then_stays_is_flat() -> None:
    growth = growth_of([*range(100, 100 + SETTLING), *[1000, 1004, 996] * 20])
    assert growth.verdict == "FLAT"
    assert growth.first == growth.last == 1000


@given(st.integers(LEAST, 300), st.integers(1, 50))
def test_memory_that_grows_with_every_cycle_grows(cycles: int, step: int) -> None:
    growth = growth_of([1000 + step * n for n in range(cycles)])
    assert growth.rate == pytest.approx(step)
    assert growth.verdict == ("GROWS" if growth.last > 1.01 * growth.first else "FLAT")


def test_memory_that_is_given_back_does_not_grow() -> None:
    assert Growth(1000.0, 900.0, 9).verdict == "SHRINKS"
    assert Growth(1000.0, 1010.0, 9).verdict == "FLAT"
    assert Growth(1000.0, 1011.0, 9).verdict == "GROWS"


def test_a_few_cycles_tell_nothing_about_a_leak() -> None:
    with pytest.raises(ValueError, match=f"expected {LEAST} or more"):
        growth_of([1000] * (LEAST - 1))


def test_a_row_keeps_the_memory_after_each_cycle() -> None:
    row = Row()
    for nbytes in (5, 7):
        row.note({"driver RSS": nbytes, "workers RSS": 2 * nbytes})
    assert row.made == 2
    assert row.series == {"driver RSS": [5, 7], "workers RSS": [10, 14]}


def test_node_and_commands_have_one_token_and_no_settings_of_another_ray(monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")
    shown = shared_environment(4321)
    assert shown["RAY_ADDRESS"] == "127.0.0.1:4321"
    assert shown["RAY_AUTH_MODE"] == "token"
    assert len(shown["RAY_AUTH_TOKEN"]) >= 32
    assert "RAY_AUTH_TOKEN_PATH" not in shown
    assert shown["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert shown["PATH"] == os.environ["PATH"]
    head = without_address(shown)
    assert set(shown) - set(head) == {"RAY_ADDRESS"}
    assert 0 < free_port() < 65536


@pytest.mark.ray
def test_a_cluster_answers_inside_its_context_and_is_gone_after_it(tmp_path: Path) -> None:
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    with pytest.raises(KeyError), open_cluster(tmp_path / "log", {"FOR": "a test"}) as shown:  # noqa: PT012
        host, port = shown["RAY_ADDRESS"].split(":")
        socket.create_connection((host, int(port)), timeout=10).close()
        assert shown["FOR"] == "a test"
        mine = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        listening = [c.laddr.ip for p in mine for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
        assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
        raise KeyError
    assert not [p for p in mine if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_a_cluster_that_does_not_come_up_is_an_error_with_its_last_words(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.cluster._command", lambda port, folder: ["sh", "-c", "echo no luck; exit 3"])
    with pytest.raises(RuntimeError, match=r"ended with 3: no luck"), open_cluster(tmp_path / "log"):
        pass


def test_a_command_that_fails_says_why(tmp_path: Path, monkeypatch) -> None:
    case = Case("nothing", tmp_path, None)
    with pytest.raises(RuntimeError, match=r"ended with 5: .*product.yaml"):
        run_command(case, np.datetime64("2024-06-01T12:00"), dict(os.environ))


def test_what_a_command_takes_beside_its_cycle_is_the_rest() -> None:
    assert Command(wall=2.5, product=0.5, workers=1).rest == 2.0


def test_a_contender_is_gone_when_its_context_ends_with_an_error(tmp_path: Path) -> None:
    contender = Contender("engine_nothing", tmp_path, tmp_path / "log")
    pid = contender.memory.tree()[0].pid
    contender.__exit__(KeyError)
    assert not psutil.pid_exists(pid)


@pytest.mark.filterwarnings("ignore:Failed to open Zarr store with consolidated metadata")
def test_published_and_rival_stores_are_read_as_codes(tmp_path: Path) -> None:
    rain = np.array([[[1, -32768, 3]]], np.int16)
    attributes = {"scale_factor": 0.01, "_FillValue": -32768}
    published = xr.Dataset({"rain": (("init_time", "lead_time", "y", "x"), rain[None], attributes)})
    published.to_zarr(tmp_path / "ours.zarr", zarr_format=3, consolidated=False)
    xr.Dataset({"rain": (("lead_time", "y", "x"), rain, attributes)}).to_zarr(
        tmp_path / "theirs.zarr", zarr_format=3, consolidated=False
    )
    ours, theirs = open_published(str(tmp_path / "ours.zarr")), open_rival(tmp_path / "theirs.zarr")
    np.testing.assert_array_equal(ours, rain)
    assert compare(ours, theirs) == Apart(3, 2)
