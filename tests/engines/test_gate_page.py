"""The gate's page says in plain words what was found and holds its pictures; its JSON says the same to programs."""

import base64
import io
import json
import re
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from engines.gate import MEASURES, Fields, Reading, Verdict
from engines.gate_page import MEANING, _around, _coarse, draw_maps, summarize, to_html, to_json, write_report
from engines.model import GateLimits

LEAD = timedelta(minutes=5)
GOOD = (
    Reading("bias", LEAD, "ordinary", -0.0012345678, "calm"),
    Reading("max_error", LEAD, "extreme", 80.0, "strong"),
    Reading("csi_loss", LEAD, "ordinary", 0.001, "calm", 0.1),
)
BAD = Reading("rmse_over_std", 2 * LEAD, "extreme", 0.65, "strong")
ABOUT = {"candidate": "unet-1.0-abc, int8 <b>", "cases": "7 of sha256 12ab"}


def fields(shape: tuple[int, int] = (60, 90)) -> Fields:
    random = np.random.default_rng(0)
    reference = np.maximum(random.normal(size=shape), 0)
    reference[:5] = np.nan
    candidate = reference.copy()
    candidate[40, 70] += 9
    return Fields(reference, candidate)


def verdict(*more: Reading) -> Verdict:
    return Verdict((*GOOD, *more), GateLimits())


@pytest.fixture(scope="module")
def page() -> str:
    return to_html(verdict(BAD), fields(), ABOUT, "mm h-1")


def test_every_measure_is_explained():
    assert set(MEANING) == set(MEASURES)


def test_the_page_opens_with_the_verdict_and_names_what_failed(page, read_page):
    text = " ".join(read_page(page).words)
    assert "No-go" in text
    assert "1 of 4 readings exceed their limits" in text
    assert "is 0.65 for extreme cases at +10 min, case strong; the limit is 0.008" in text


def test_a_go_names_the_reading_nearest_to_its_limit():
    assert "Nearest: mean error over mean is -0.00123 for ordinary cases" in summarize(verdict())


def test_an_equal_candidate_is_said_to_be_equal():
    same = Verdict((Reading("bias", LEAD, "ordinary", 0.0),), GateLimits())
    assert "equals the reference" in summarize(same)


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(page, read_page):
    parsed = read_page(page)
    assert not parsed.open
    assert all(link.startswith("data:image/png;base64,") for link in parsed.links)
    assert parsed.links
    assert "script" not in parsed.tags


def test_words_from_outside_are_no_markup(page, read_page):
    assert "int8 &lt;b&gt;" in page
    assert "b" not in read_page(page).tags


def test_the_maps_on_the_page_are_a_picture(page):
    (link,) = re.findall(r"base64,([^\"]+)", page)
    image = imread(io.BytesIO(base64.b64decode(link)))
    assert image.shape[2] == 4
    assert image[..., :3].std() > 0.05


def test_the_json_twin_says_the_same():
    tree = json.loads(to_json(verdict(BAD), ABOUT, "mm h-1"))
    assert tree["verdict"] == "no-go"
    assert tree["summary"] == summarize(verdict(BAD), "mm h-1")
    assert [
        (row["measure"], row["lead_seconds"], row["group"], row["found"], row["limit"]) for row in tree["failures"]
    ] == [("rmse_over_std", 600.0, "extreme", 0.65, 0.008)]
    assert len(tree["readings"]) == 4
    assert tree["limits"]["moved_codes"] == {"ordinary": 0.5, "extreme": 0.5}
    assert tree["about"] == ABOUT


def test_numbers_in_json_have_six_digits_and_none_is_nan_or_infinite():
    tree = json.loads(to_json(verdict(Reading("seam", LEAD, "extreme", float("inf"), "strong"))))
    found = {row["measure"]: row["found"] for row in tree["readings"]}
    assert found["bias"] == -0.00123457
    assert found["seam"] is None
    assert tree["limits"]["max_error"]["ordinary"] is None
    assert tree["verdict"] == "no-go"


def test_the_same_verdict_gives_the_same_files(tmp_path):
    first, second = (write_report(tmp_path / name, verdict(BAD), fields(), ABOUT) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["gate.html", "gate.json"]


@pytest.mark.parametrize(
    "field",
    [np.zeros((8, 8)), np.full((8, 8), np.nan), np.full((8, 8), 280.0), np.linspace(-20, 30, 64).reshape(8, 8)],
    ids=["dry", "missing", "even", "both signs"],
)
def test_any_field_can_be_drawn(field):
    assert draw_maps(Fields(field, field + 1)).startswith(b"\x89PNG")


@pytest.mark.parametrize("shape", [(10, 2000), (2000, 10)])
def test_long_fields_can_be_drawn(shape):
    assert draw_maps(fields((max(50, shape[0]), max(90, shape[1])))).startswith(b"\x89PNG")


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 900), columns=st.integers(1, 900), where=st.integers(0, 10**6))
def test_a_single_strong_cell_is_never_lost_in_a_coarser_map(rows, columns, where):
    field = np.zeros((rows, columns))
    field.flat[where % field.size] = -7
    coarse = _coarse(field)
    assert coarse.min() == -7
    assert max(coarse.shape) <= 360


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 120), columns=st.integers(1, 120), where=st.integers(0, 10**6))
def test_the_close_up_holds_the_largest_difference(rows, columns, where):
    reference = np.zeros((rows, columns))
    candidate = reference.copy()
    candidate.flat[where % reference.size] = 5
    y, x = _around(Fields(reference, candidate))
    assert candidate[y, x].max() == 5
    assert y.stop <= rows
    assert x.stop <= columns


def test_a_cell_that_went_missing_counts_as_the_largest_difference():
    made = fields((200, 200))
    made.candidate[150, 20] = np.nan
    y, x = _around(made)
    assert y.start <= 150 < y.stop
    assert x.start <= 20 < x.stop


def test_cells_missing_in_only_one_are_black_in_the_difference():
    one, both = fields(), fields()
    for field in (one.candidate, both.candidate, both.reference):
        field[30:40, 30:40] = np.nan
    with_black, without = (imread(io.BytesIO(draw_maps(made)))[..., :3] for made in (one, both))
    assert (with_black.max(axis=2) < 0.05).sum() > (without.max(axis=2) < 0.05).sum() + 1000
