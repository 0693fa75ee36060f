"""Memory that is freed is used again, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from jobs import heap

TOUCH = """
import resource
from jobs.heap import keep_freed_memory

def faults_of(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory = bytearray(size)
    memory[::4096] = b"1" * len(memory[::4096])
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(keep_freed_memory(), [faults_of(50_000_000) for _ in range(4)])
"""


def test_what_was_freed_costs_no_fresh_pages():
    command = [sys.executable, "-c", TOUCH]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2], timeout=60
    )
    is_kept, faults = done.stdout.strip().split(" ", 1)
    if is_kept == "False":
        pytest.skip("the C library has no mallopt")
    first, *later = map(int, faults.strip("[]").split(","))
    assert first > 10_000
    assert max(later) < first / 10


def test_a_c_library_without_the_switch_is_left_alone(monkeypatch):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    assert heap.keep_freed_memory.__wrapped__() is False
