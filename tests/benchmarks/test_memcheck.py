"""The small cycle for compute-sanitizer, where there is no GPU to be watched."""

import sys
from pathlib import Path

from benchmarks import memcheck


def test_a_small_cycle_is_made_in_one_process_with_three_blocks_in_flight(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("SQUALL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("engines.cuda.device_count", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["memcheck", "--out", str(tmp_path)])
    memcheck.main()
    said = capsys.readouterr().out
    assert "3 blocks in flight, 3 lanes" in said
    assert "0 of 786432 cells differ, equal" in said
    assert "there is nothing for compute-sanitizer to check" in said
