"""The bench's page says in plain words what was found and holds its pictures; its JSON gives the same report back."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from engines.base import Split
from engines.bench_page import (
    from_json,
    show_times,
    summarize,
    to_html,
    to_json,
    to_memory_rows,
    to_rows,
    to_split_rows,
    write_report,
)
from engines.bench_plots import (
    COLOURS,
    colour_of,
    draw_latency,
    draw_needs,
    draw_split,
    draw_throughput,
    show_bytes,
    show_name,
    show_number,
    show_seconds,
)
from engines.bench_report import Difference, Effort, Laps, Measurement, Memory, Report, Result
from engines.cuda import Gpu
from engines.environment import Environment

SHAPES = ((1, 4, 512, 512), (8, 4, 512, 512))
GPU = Gpu("NVIDIA <H200>", "9.0", 132, 150 << 30)
MACHINE = Environment(
    "2025-07-01T12:00Z", "a processor", 96, 16, 128 << 30, "Linux", "3.11.7", {"tensorrt": "8.6.1"}, "12.4", GPU
)
PLAIN = replace(MACHINE, gpu=None, cuda_driver=None)
TENSORS = ("x: float32 (?, 4, ?, ?)", "y: float32 (?, 18, ?, ?)")


def laps(seconds, count=120):
    """Two rounds, spread by a tenth."""
    spread = np.linspace(0.95, 1.05, count // 2)
    return Laps(tuple(tuple(float(seconds * k * one) for one in spread) for k in (0.99, 1.01)))


def measured(shape, seconds, **more):
    return Measurement(shape, laps(seconds * shape[0]), **more)


def on_gpu(shape, seconds):
    split = Split(0.1 * seconds * shape[0], 0.5 * seconds * shape[0], 0.2 * seconds * shape[0], 1e-5)
    return measured(
        shape,
        seconds,
        rows=Laps(((0.6 * seconds * shape[0],), (0.7 * seconds * shape[0],))),
        split=split,
        split_laps=40,
        difference=Difference(0.003, 0.0002, 0.0003),
    )


REFERENCE = Result(
    "onnxruntime float32",
    {"threads": "16 <b>"},
    TENSORS,
    0.08,
    0.4,
    Memory(7_800_000, 7_700_000, host_bytes=620_000_000),
    tuple(measured(shape, 2.1e-3) for shape in SHAPES),
)
HALF = Result(
    "tensorrt half",
    {"precision obtained": "float16 41"},
    TENSORS,
    0.28,
    0.021,
    Memory(4_700_000, 3_900_000, 205_000_000, 185_000_000, 210_000_000, 480_000_000),
    tuple(on_gpu(shape, 0.55e-3) for shape in SHAPES),
)
BROKEN = Result("tensorrt int8 <i>", {}, error="EngineError: of another <u>GPU</u>")


def report(*results, machine=MACHINE, shapes=SHAPES):
    return Report(machine, Effort(), shapes, results or (REFERENCE, HALF, BROKEN), {"model": "unet 1.0 <em>"})


def alone(name="engine", seconds=1e-3, **more):
    return Result(name, measurements=tuple(measured(shape, seconds) for shape in SHAPES), **more)


@pytest.fixture(scope="module")
def page():
    return to_html(report())


def test_the_headline_compares_the_fastest_with_the_reference_at_the_largest_shape():
    expected = "tensorrt half is 3.8x as fast as onnxruntime float32 at 8 x 512 x 512 (p50 4.40 ms against 16.8 ms)"
    assert summarize(report()) == expected


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ((alone("a"),), "a takes 8.00 ms for a batch at 8 x 512 x 512 (p50)"),
        ((alone("a"), alone("b", 1.01e-3)), "b is about as fast as a at 8 x 512 x 512"),
        ((alone("a"), alone("b", 2e-3)), "a is the fastest at 8 x 512 x 512; b takes 2.0x as long"),
        ((alone("a"), alone("b", 2e-3), alone("c", 0.5e-3)), "c is 2.0x as fast as a"),
        ((BROKEN,), "Nothing could be measured: 1 of 1 engines failed."),
        ((BROKEN, alone("b")), "b takes 8.00 ms for a batch at 8 x 512 x 512 (p50)"),
    ],
    ids=["one", "alike", "slower", "three", "none", "no reference"],
)
def test_every_outcome_has_a_headline_and_a_page(results, message, read_page):
    found = report(*results)
    assert message in summarize(found)
    parsed = read_page(to_html(found))
    assert message.partition(" (")[0] in " ".join(parsed.words)
    assert not parsed.open


def test_a_shape_that_only_the_reference_can_run_is_not_the_one_to_speak_of():
    small = replace(HALF, measurements=(HALF.measurements[0], Measurement(SHAPES[1], error="OutOfMemoryError: no")))
    assert "3.8x as fast as onnxruntime float32 at 1 x 512 x 512" in summarize(report(REFERENCE, small))
    assert "tensorrt half at 8x4x512x512: OutOfMemoryError: no" in to_html(report(REFERENCE, small))


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(page, read_page):
    parsed = read_page(page)
    assert not parsed.open
    assert len(parsed.links) == 4
    assert all(link.startswith("data:image/png;base64,") for link in parsed.links)
    assert "script" not in parsed.tags


def test_words_from_outside_are_no_markup(page, read_page):
    assert not {"i", "u", "em", "h200"} & read_page(page).tags
    for text in (
        "tensorrt int8 &lt;i&gt;",
        "16 &lt;b&gt;",
        "&lt;u&gt;GPU",
        "unet 1.0 &lt;em&gt;",
        "NVIDIA &lt;H200&gt;",
    ):
        assert text in page


def test_the_page_says_what_where_and_how(page, read_page):
    text = " ".join(read_page(page).words)
    for words in ("H2D latency", "GPU compute time", "D2H latency", "host latency", "enqueue time", "p99", "Mcells/s"):
        assert words in text
    for words in ("CUDA driver", "12.4", "a processor; 96 cores, 16 threads", "compute capability 9.0", "8.6.1"):
        assert words in text
    assert "in each of 10 rounds, every engine had one turn of 1 s" in text


def test_the_pictures_on_the_page_are_pictures(page):
    for link in re.findall(r"base64,([^\"]+)", page):
        image = imread(io.BytesIO(base64.b64decode(link)))
        assert image[..., :3].std() > 0.02


def test_what_to_know_before_trusting_a_figure_is_on_the_page():
    few = replace(REFERENCE, measurements=tuple(Measurement(shape, laps(1e-3, 20)) for shape in SHAPES))
    assert "rests on fewer than 100 laps (20 at 1x4x512x512" in to_html(report(few, HALF))
    assert "Before you trust" not in to_html(report(REFERENCE, HALF))


def test_engines_that_cannot_tell_the_parts_are_said_to_be_such():
    plain = report(alone("a"), alone("b"), machine=PLAIN)
    assert draw_split(plain, SHAPES[1]) is None
    assert draw_needs(plain) is None
    assert "None of these engines computes on a GPU" in to_html(plain)
    assert len(to_split_rows(plain)) == 1


def test_several_tile_sizes_have_a_panel_each_and_one_batch_size_is_enough(read_page):
    shapes = ((1, 4, 256, 256), (4, 4, 256, 256), (1, 4, 512, 512))
    both = [Result(name, measurements=tuple(measured(shape, 1e-3) for shape in shapes)) for name in "ab"]
    assert len(read_page(to_html(report(*both, shapes=shapes))).links) == 2


@pytest.mark.parametrize("name", ["$x^", "$a$ $", "_hidden", "long " * 40, "two\nlines", "%s {0} \\alpha"])
def test_any_name_can_be_drawn_and_is_in_the_legend(name):
    found = report(alone("a"), replace(HALF, name=name))
    assert draw_throughput(found) != draw_throughput(report(alone("a"), replace(HALF, name="b")))
    for picture in (draw_latency(found, SHAPES[1]), draw_split(found, SHAPES[1]), draw_needs(found)):
        assert picture.startswith(b"\x89PNG")


def test_an_engine_that_runs_only_one_tile_size_is_in_the_legend():
    shapes = ((1, 4, 256, 256), (1, 4, 512, 512))
    first = Result("a", measurements=tuple(measured(shape, 1e-3) for shape in shapes))
    late = Result("b", measurements=(Measurement(shapes[0], error="no"), measured(shapes[1], 1e-3)))
    renamed = replace(late, name="quite another")
    assert draw_throughput(report(first, late, shapes=shapes)) != draw_throughput(report(first, renamed, shapes=shapes))


def test_the_reference_is_grey_and_no_two_others_look_alike():
    found = report(*(alone(name) for name in "abcdefg"))
    colours = [colour_of(found, result) for result in found.results]
    assert colours[0] not in COLOURS
    assert len(set(colours)) == 7


def test_rows_say_what_was_measured():
    head, reference, half = to_rows(report(shapes=SHAPES[1:]))
    row = dict(zip(head, half, strict=True))
    assert (row["batch"], row["engine"], row["p50"], row["laps"]) == ("8x4x512x512", "tensorrt half", "4.40 ms", "120")
    assert (row["tiles/s"], row["Mcells/s"], row["in a row"]) == ("1,818", "477", "2,797")
    assert (row["speed-up"], row["by round"], row["RMS diff."]) == ("3.8x", "3.82..3.82", "0.0002")
    assert dict(zip(head, reference, strict=True))["speed-up"] == "–"


def test_rows_of_memory_and_parts_say_what_was_measured():
    head, reference, half, broken = to_memory_rows(report())
    assert dict(zip(head, half, strict=True))["GPU memory"] == "480 MB"
    assert reference[1:4] == ("80.0 ms", "400 ms", "7.80 MB")
    assert broken[1:3] == ("failed", "failed")
    head, _, large = to_split_rows(report())
    row = dict(zip(head, large, strict=True))
    assert (row["H2D latency"], row["GPU compute time"], row["host latency"]) == ("0.440 ms", "2.20 ms", "3.52 ms")


def test_rows_are_all_as_long_as_their_head():
    partly = replace(HALF, measurements=(HALF.measurements[0], Measurement(SHAPES[1], error="no")))
    odd = replace(REFERENCE, measurements=(Measurement(SHAPES[0], laps(1), difference=Difference(None, None, None)),))
    found = report(REFERENCE, partly, replace(odd, name="odd"))
    for rows in (to_rows(found), to_memory_rows(found), to_split_rows(found)):
        assert len({len(row) for row in rows}) == 1
    assert [row[2] for row in to_rows(found) if row[0] == "8x4x512x512"] == ["16.8 ms", "failed", "failed"]
    assert "no number" in str(to_rows(found))


def test_the_json_gives_the_report_back():
    assert from_json(to_json(report())) == report()
    assert to_json(from_json(to_json(report()))) == to_json(report())


def test_the_json_says_what_follows_from_the_report():
    tree = json.loads(to_json(report()))
    assert tree["summary"]["headline"] == summarize(report())
    assert tree["summary"]["errors"] == {BROKEN.name: BROKEN.error}
    figures = tree["summary"]["figures"]
    assert [(row["subject"], row["shape"][0]) for row in figures][-1] == ("tensorrt half", 8)
    assert figures[-1]["p50_seconds"] == HALF.at(SHAPES[1]).laps.p50
    assert figures[-1]["speed_up"]["value"] == pytest.approx(2.1 / 0.55)
    assert figures[-1]["host_latency_seconds"] == pytest.approx(0.8 * 4.4e-3)


MAYBE = st.none() | st.integers(0, 10**12)
NUMBERS = st.floats(0, 1e6)
LAPS = st.lists(st.lists(st.floats(1e-9, 1e6), min_size=1, max_size=5).map(tuple), min_size=1, max_size=4)
MEASUREMENTS = st.builds(
    Measurement,
    shape=st.sampled_from(SHAPES),
    laps=st.none() | LAPS.map(lambda rounds: Laps(tuple(rounds))),
    rows=st.none() | LAPS.map(lambda rounds: Laps(tuple(rounds))),
    split=st.none() | st.builds(Split, NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    split_laps=st.integers(0, 100),
    difference=st.none() | st.builds(Difference, *[st.none() | NUMBERS] * 3),
    error=st.none() | st.text(),
)
RESULTS = st.builds(
    Result,
    name=st.text(min_size=1),
    notes=st.dictionaries(st.text(), st.text(), max_size=2),
    tensors=st.lists(st.text(), max_size=2).map(tuple),
    load_seconds=st.none() | NUMBERS,
    first_seconds=st.none() | NUMBERS,
    memory=st.builds(Memory, *[MAYBE] * 6),
    measurements=st.lists(MEASUREMENTS, max_size=2).map(tuple),
    error=st.none() | st.text(),
)
REPORTS = st.builds(
    Report,
    st.sampled_from([MACHINE, PLAIN]),
    st.builds(Effort, st.floats(0.1, 100), st.integers(1, 10), st.integers(10, 100)),
    st.just(SHAPES),
    st.lists(RESULTS, min_size=1, max_size=3, unique_by=lambda result: result.name).map(tuple),
    st.dictionaries(st.text(), st.text(), max_size=2),
)


@settings(max_examples=60)
@given(REPORTS)
def test_any_report_goes_through_json_unchanged(found):
    text = to_json(found)
    assert from_json(text) == found
    assert text == to_json(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update(version=2), "a bench report of version 2 was found; expected 1"),
        (lambda tree: tree.pop("version"), "version None"),
        (lambda tree: tree.pop("report"), "report of a bench report is malformed"),
        (
            lambda tree: tree["report"].pop("environment"),
            "report.environment of a bench report is malformed: Field required",
        ),
        (lambda tree: tree["report"].update(shapes=[[1, 2, 3]]), "report.shapes.0.3 of"),
        (lambda tree: tree["report"].update(results=[]), "0 results at 2 shapes"),
        (lambda tree: tree["report"]["results"][0]["measurements"][0]["laps"].update(rounds=[[-1]]), "a lap took -1.0"),
        (lambda tree: tree["report"]["effort"].update(rounds=0), "rounds of the effort is 0"),
    ],
)
def test_a_json_that_is_no_report_is_refused(change, message):
    tree = json.loads(to_json(report()))
    change(tree)
    with pytest.raises(ValueError, match=message):
        from_json(json.dumps(tree))


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "{"])
def test_a_text_that_is_no_report_is_refused(text):
    with pytest.raises(ValueError, match=r"version None|Expecting"):
        from_json(text)


def test_the_same_report_gives_the_same_files_and_leaves_no_others(tmp_path):
    first, second = (write_report(tmp_path / name, report()) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["bench.html", "bench.json"]


def test_a_report_replaces_an_older_one(tmp_path):
    write_report(tmp_path, report(alone("old")))
    page, twin = write_report(tmp_path, report())
    assert "tensorrt half" in page.read_text("utf-8")
    assert from_json(twin.read_text("utf-8")) == report()


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (show_seconds(0.0), "0 µs"),
        (show_seconds(9.99e-5), "99.9 µs"),
        (show_seconds(0.9996), "1,000 ms"),
        (show_seconds(75), "75.0 s"),
        (show_bytes(0), "0 B"),
        (show_bytes(999), "999 B"),
        (show_bytes(1_500_000), "1.50 MB"),
        (show_number(0.000123456), "0.000123"),
        (show_number(1234567), "1,234,567"),
        (show_number(float("inf")), "inf"),
        (show_name("_a $x"), r" _a \$x"),
        (show_name("a" * 30 + "b" * 30), "a" * 20 + "…" + "b" * 19),
        (show_times(9.96), "10x"),
        (show_times(256.3), "256x"),
        (show_times(0.996), "1.0x"),
    ],
)
def test_numbers_are_shown_with_the_digits_that_count(shown, expected):
    assert shown == expected
