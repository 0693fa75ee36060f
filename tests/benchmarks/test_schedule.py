"""Sections run one after the other: what goes wrong with one ends it alone, and nothing that was said is lost."""

import json
import signal
import time
from pathlib import Path

import pytest

from benchmarks.bench import Bench
from benchmarks.cases import QUICK
from benchmarks.report import Report
from benchmarks.schedule import Budget, run_section, run_sections, summary
from benchmarks.throughput import SECTIONS, chosen, parse


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, None, QUICK, [1], False, {})


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path)


def broken(bench):
    """Breaks."""
    yield "one line"
    raise RuntimeError("out of luck")


def whole(bench):
    """Works."""
    bench.record["whole"] = 7
    yield "another line"


def endless(bench):
    """Never ends."""
    yield "begun"
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            continue


def test_a_section_that_fails_says_so_and_the_next_one_runs(bench, report, tmp_path: Path, capsys) -> None:
    ended = run_sections([broken, whole], bench, report, Budget(600, 60))
    said = capsys.readouterr().out
    assert (tmp_path / "report.md").read_text() == said
    for text in ("### broken: Breaks.", "one line", "FAILED", "out of luck", "### whole: Works.", "another line"):
        assert text in said
    assert ended == {"broken": "FAILED", "whole": "done"}
    assert json.loads((tmp_path / "report.json").read_text())["sections"] == ended
    assert "FAILED: broken. done: whole" in said.splitlines()[-1]


def test_a_section_that_hangs_is_ended_even_where_it_expects_errors(bench, report, capsys) -> None:
    former = signal.getsignal(signal.SIGALRM)
    assert run_section(endless, bench, report, 0.2) == "out of time"
    said = capsys.readouterr().out
    assert "begun" in said
    assert "OUT OF TIME: the section was ended after" in said
    assert signal.getsignal(signal.SIGALRM) == former
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_section_knows_how_much_time_is_left_to_it(bench, report) -> None:
    seen = []

    def asks(bench):
        """Asks."""
        seen.append(bench.seconds_left)
        yield ""

    run_section(asks, bench, report, 60)
    assert 0 < seen[0] <= 60


def test_sections_for_which_no_time_is_left_are_named_and_not_run(bench, report, capsys) -> None:
    spent = Budget(600, 60, started=time.monotonic() - 595)
    assert run_sections([whole, broken], bench, report, spent) == {"whole": "not run", "broken": "not run"}
    said = capsys.readouterr().out
    assert "not run: whole, broken" in said
    assert "###" not in said


def test_numbers_are_on_disk_while_a_section_still_runs(bench, report, tmp_path: Path) -> None:
    seen = []

    def slow(bench):
        """Takes long."""
        bench.record["first"] = 1
        yield "so far"
        seen.append(json.loads((tmp_path / "report.json").read_text()))

    run_section(slow, bench, report, 60)
    assert seen == [{"first": 1}]


def test_a_new_report_begins_anew(tmp_path: Path) -> None:
    Report(tmp_path).say("of an earlier run")
    Report(tmp_path).say("of this run")
    assert (tmp_path / "report.md").read_text() == "of this run\n"


def test_a_report_that_goes_on_runs_only_what_is_not_done(tmp_path: Path, capsys) -> None:
    first = Bench(tmp_path, None, QUICK, [1], False, {})
    run_sections([whole, broken], first, Report(tmp_path), Budget(600, 60))
    report, again = Report(tmp_path, resume=True), Bench(tmp_path, None, QUICK, [1], False, {})
    again.record |= report.numbers
    capsys.readouterr()
    assert run_sections([whole, broken], again, report, Budget(600, 60)) == {"whole": "done", "broken": "FAILED"}
    said = capsys.readouterr().out
    assert "### broken" in said
    assert "### whole" not in said
    assert again.record["whole"] == 7
    assert (tmp_path / "report.md").read_text().count("another line") == 1


@pytest.mark.parametrize("times", [(0, 60), (600, 0), (-1, 60)])
def test_a_budget_of_nothing_is_refused(times) -> None:
    with pytest.raises(ValueError, match="expected more than 0"):
        Budget(*times)


def test_a_section_gets_its_own_limit_or_what_is_left_of_the_whole() -> None:
    assert Budget(600, 60).next == 60
    assert 0 < Budget(600, 60, started=time.monotonic() - 570).next <= 30


def test_the_summary_names_each_section_once() -> None:
    line = summary({"a": "done", "b": "not run", "c": "done"}, Budget(600, 60))
    assert line == "0 of 600 s. done: a, c. not run: b"


def test_sections_are_chosen_by_name_and_keep_their_order() -> None:
    names = [section.__name__ for section in chosen(["leak", "mrms"])]
    assert names == ["mrms", "leak"]
    assert chosen(None) == list(SECTIONS)
    assert parse(["--only", "engines", "mrms", "--gpus", "1", "2", "4"]).gpus == [1, 2, 4]


def test_every_section_says_what_it_measures_in_one_line() -> None:
    for section in SECTIONS:
        assert (section.__doc__ or "").splitlines()[0].endswith("."), section.__name__


@pytest.mark.parametrize("wrong", [["--quick", "--data", "x"], ["--only", "nothing"]])
def test_arguments_that_make_no_sense_are_refused(wrong, capsys) -> None:
    with pytest.raises(SystemExit):
        parse(wrong)
    assert "--quick makes small storms" in capsys.readouterr().err or "--only" in wrong
