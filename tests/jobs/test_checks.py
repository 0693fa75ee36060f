"""Shards are checked beside the blocks; what is no longer asked for is not checked."""

from contextlib import suppress
from time import sleep
from types import SimpleNamespace

import pytest

from jobs.checks import Checks
from pipelines.errors import OutputError
from pipelines.spans import Stopwatch


def blocks(count: int):
    return [SimpleNamespace(window=number) for number in range(count)]


def test_all_shards_that_are_whole_are_known_and_each_check_is_a_span(monkeypatch):
    monkeypatch.setattr("jobs.checks.check_block", lambda draft, window: {f"c/{window}": f"{draft}"})
    watch = Stopwatch()
    with Checks("draft", watch) as checks:
        for block in blocks(20):
            checks.begin(block)
        assert checks.whole() == {f"c/{number}": "draft" for number in range(20)}
    assert [span.stage for span in watch.spans] == ["check"] * 20


def test_a_shard_that_cannot_be_read_is_an_error_when_all_are_asked_for(monkeypatch):
    def fail(draft, window):
        raise OutputError("cannot read")

    monkeypatch.setattr("jobs.checks.check_block", fail)
    with Checks("draft", Stopwatch()) as checks:
        checks.begin(*blocks(1))
        with pytest.raises(OutputError, match="cannot read"):
            checks.whole()


def test_after_an_error_no_check_begins_any_more(monkeypatch):
    begun = []

    def slow(draft, window):
        begun.append(window)
        sleep(0.1)

    monkeypatch.setattr("jobs.checks.check_block", slow)
    with suppress(KeyboardInterrupt), Checks("draft", Stopwatch()) as checks:
        for block in blocks(200):
            checks.begin(block)
        raise KeyboardInterrupt
    at_end = len(begun)
    sleep(0.3)
    assert len(begun) == at_end < 200
