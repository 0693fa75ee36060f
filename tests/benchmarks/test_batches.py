import doctest

from benchmarks import batches
from engines.base import Split


class Slow:
    """An engine that needs 1 ms, and 1 ms for each tile."""

    def timed(self, batch):
        return Split(0.0, (1 + len(batch)) / 1e3, 0.0, 0.0)


def test_larger_batches_take_less_for_each_tile(capsys):
    batches.report(batches.measure(Slow(), (8, 8), [1, 4], 3), 64)
    *_, one, four = capsys.readouterr().out.splitlines()
    assert one == "| 1 | 64 | 2.000 | 2.000 | 1.00 |"
    assert four == "| 4 | 256 | 5.000 | 1.250 | 0.62 |"


def test_the_examples_hold():
    assert doctest.testmod(batches).failed == 0
