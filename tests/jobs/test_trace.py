"""The timeline of a cycle: a Chrome trace in which nothing is lost and everything lies inside its cycle."""

import json
from collections import Counter
from copy import deepcopy

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from jobs.cli import main
from jobs.trace import DRIVER, Activity, activities_of, chrome_trace, write_trace
from pipelines.run import BlockResult
from pipelines.spans import Seconds, Span

names = st.sampled_from(["read", "infer", "write"])
spans = st.builds(
    lambda stage, start, length, thread: Span(stage, start, start + length, thread),
    names,
    st.integers(0, 10**6).map(lambda n: n / 1000),
    st.integers(0, 10**4).map(lambda n: n / 1000),
    st.sampled_from(["MainThread", "lane-0", "lane-1"]),
)
activities = st.builds(
    Activity, st.sampled_from([DRIVER, "worker-0", "worker-1"]), spans, st.none() | st.integers(0, 9)
)


def events(trace: dict, phase: str) -> list[dict]:
    return [event for event in trace["traceEvents"] if event["ph"] == phase]


def named(trace: dict) -> Counter:
    """Process, thread, stage, block, and start and length in whole microseconds, by the names that a viewer shows."""
    known = {(e["name"], e["pid"], e["tid"]): e["args"]["name"] for e in events(trace, "M")}
    return Counter(
        (
            known["process_name", e["pid"], 0],
            known["thread_name", e["pid"], e["tid"]],
            e["name"],
            e.get("args", {}).get("block"),
            round(e["ts"]),
            round(e["dur"]),
        )
        for e in events(trace, "X")
    )


@given(st.lists(activities, min_size=1))
def test_no_activity_is_lost_and_each_keeps_its_place(some: list[Activity]) -> None:
    origin = min(activity.span.start for activity in some)
    expected = Counter(
        (
            a.process,
            a.span.thread,
            a.span.stage,
            None if a.block is None else f"block {a.block}",
            round((a.span.start - origin) * 1e6),
            round(a.span.seconds * 1e6),
        )
        for a in some
    )
    assert named(chrome_trace(some)) == expected


@given(st.lists(activities))
def test_a_trace_is_a_pure_function_of_its_activities_in_plain_json(some: list[Activity]) -> None:
    before = deepcopy(some)
    trace = chrome_trace(some)
    assert some == before
    assert json.loads(json.dumps(trace)) == trace == chrome_trace(some)


@given(st.lists(activities, min_size=1))
def test_every_event_has_what_the_format_asks_for(some: list[Activity]) -> None:
    trace = chrome_trace(some)
    for event in events(trace, "X"):
        assert {"name", "ph", "ts", "dur", "pid", "tid"} <= event.keys()
        assert event["ts"] >= 0
        assert event["dur"] >= 0
    assert {event["ph"] for event in trace["traceEvents"]} == {"X", "M"}


@given(st.lists(spans), st.lists(st.lists(spans), max_size=4))
def test_activities_are_the_spans_of_driver_and_workers_in_the_order_of_their_beginning(driver, blocks) -> None:
    results = [
        BlockResult(number, 1, 0, (), 0, Seconds(), spans=tuple(own), worker=f"worker-{number}")
        for number, own in enumerate(blocks)
    ]
    found = activities_of(driver, results)
    theirs = [Activity(f"worker-{number}", span, number) for number, own in enumerate(blocks) for span in own]
    assert Counter(found) == Counter([Activity(DRIVER, span) for span in driver] + theirs)
    assert [a.span.start for a in found] == sorted(a.span.start for a in found)


def test_a_trace_that_cannot_be_written_says_where(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_trace(tmp_path / "nowhere" / "cycle.json", ())


@pytest.mark.ray
def test_a_run_leaves_a_trace_in_which_every_span_lies_inside_its_cycle(product, tmp_path) -> None:
    path = tmp_path / "cycle.json"
    done = CliRunner().invoke(
        main, ["run", str(product), "--time", "2024-06-01T12:20Z", "--trace", str(path), "--format", "json"]
    )
    assert done.exit_code == 0, done.output
    assert "activities" not in json.loads(done.output)
    trace = json.loads(path.read_text())
    found = events(trace, "X")
    (cycle,) = (event for event in found if event["name"] == "cycle")
    ends = np.array([event["ts"] + event["dur"] for event in found])
    assert cycle["ts"] == 0
    assert (ends <= cycle["dur"] + 1).all()
    stages = {event["name"] for event in found}
    assert stages >= {"wait", "share", "describe", "publish", "read", "decode", "infer", "pack", "write"}
    processes = {event["args"]["name"] for event in events(trace, "M") if event["name"] == "process_name"}
    workers = processes - {DRIVER}
    assert workers  # any of them: the one that starts first may make all blocks
    assert all(name.startswith("worker-") for name in workers)
