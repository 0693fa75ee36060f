import numpy as np

from pipelines.memory import Memory, peak_resident, together


def test_the_largest_process_counts_and_all_that_is_on_gpus():
    assert together([Memory(5, 10, 2), Memory(7, 20, 3), Memory()]) == Memory(7, 30, 5)
    assert together([]) == Memory()


def test_what_was_held_once_is_remembered():
    before = peak_resident()
    np.ones(before // 4, np.float64)
    assert peak_resident() > before
