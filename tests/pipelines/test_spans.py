"""Spans: recorded from any thread, none lost; their sums count nothing twice."""

from threading import Barrier, Thread
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.spans import Seconds, Span, Stopwatch, add_up

STAGES = ("read", "decode", "infer", "pack", "write")
spans = st.builds(
    lambda stage, start, length: Span(stage, start, start + length, "main"),
    st.sampled_from(STAGES),
    st.integers(0, 1000).map(float),
    st.integers(0, 1000).map(float),
)


def test_a_span_lies_on_the_monotonic_clock_and_names_its_thread() -> None:
    watch, before = Stopwatch(), monotonic()
    with watch("read"):
        pass
    (span,) = watch.spans
    assert before <= span.start <= span.end <= monotonic()
    assert (span.stage, span.thread) == ("read", "MainThread")


def test_a_stage_that_fails_is_recorded_too() -> None:
    watch = Stopwatch()
    with pytest.raises(OSError, match="disk"), watch("write"):
        raise OSError("disk")
    assert [span.stage for span in watch.spans] == ["write"]


def test_an_outer_span_comes_before_those_inside_it() -> None:
    watch = Stopwatch()
    with watch("infer"), watch("decode"):
        pass
    assert [span.stage for span in watch.spans] == ["infer", "decode"]


def test_no_span_of_several_threads_is_lost() -> None:
    watch, together = Stopwatch(), Barrier(4)

    def work() -> None:
        together.wait()
        for _ in range(500):
            with watch("infer"):
                pass

    threads = [Thread(target=work, name=f"lane-{n}") for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [span.thread for span in watch.spans]
    assert {name: names.count(name) for name in set(names)} == {f"lane-{n}": 500 for n in range(4)}


@given(st.lists(spans))
def test_sums_count_every_stage_once_but_for_what_is_inside_another(some: list[Span]) -> None:
    seconds = add_up(some)
    assert seconds.read + seconds.infer + seconds.write == sum(s.seconds for s in some if s.stage != "decode")
    assert add_up(some[:1]) + add_up(some[1:]) == seconds


def test_packing_is_part_of_writing() -> None:
    assert add_up([Span("pack", 1.0, 2.0, "a"), Span("write", 2.0, 4.0, "a")]) == Seconds(write=3.0)
