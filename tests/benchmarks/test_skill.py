"""Skill on real radar data: what the README claims of `advection` holds on the cases it names."""

from pathlib import Path

import pytest

from benchmarks.skill import CASES, evaluate, open_rain

DATA = Path(__file__).parents[3] / "shared/data"
FMI = CASES[0]

pytestmark = pytest.mark.skipif(not (DATA / FMI.store).exists(), reason=f"no real radar data in {DATA}")


@pytest.fixture(scope="module")
def rain():
    return open_rain(FMI, DATA)


def csi(rain, model: str) -> tuple[dict[tuple[int, float], float], float]:
    scores, seconds = evaluate(FMI, rain, model, threads=1)
    return {(round(s.lead_time.total_seconds() / 60), s.threshold): s.csi for s in scores}, seconds


def test_advection_is_not_behind_pysteps_at_any_lead_time_and_threshold(rain):
    found, seconds = csi(rain, "advection")
    behind = {row: (found[row], peer) for row, peer in FMI.peer.items() if found[row] < peer}
    assert not behind
    assert seconds < 2.5, "pysteps needs 5 to 9 core-seconds"


def test_persistence_scores_what_others_found_so_the_comparison_is_fair(rain):
    found, _ = csi(rain, "persistence")
    published = {(15, 0.1): 0.726, (15, 1.0): 0.365, (30, 1.0): 0.290, (60, 1.0): 0.208, (90, 1.0): 0.160}
    assert {row: round(found[row], 3) for row in published} == published
