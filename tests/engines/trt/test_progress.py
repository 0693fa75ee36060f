"""The share of a build that is done: between 0 and 1, never falling, whole in the end."""

from hypothesis import given
from hypothesis import strategies as st

from engines.trt.progress import Phases, new_monitor

steps = st.integers(1, 5)
trees = st.recursive(st.builds(lambda n: (n, ()), steps), lambda inner: st.tuples(steps, st.lists(inner, max_size=4)))


def walk(phases, tree, name="build", parent=None):
    """Yields after every event; a phase's inner phases run within its first step."""
    count, inner = tree
    phases.start(name, parent, count)
    yield
    for number, each in enumerate(inner):
        yield from walk(phases, each, f"{name}.{number}", name)
    for step in range(count):
        phases.step(name, step)
        yield
    phases.finish(name)
    yield


@given(trees)
def test_the_share_never_falls_and_ends_whole(tree):
    phases = Phases()
    shares = [phases.share for _ in walk(phases, tree)]
    assert all(0 <= share <= 1 for share in shares)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_phases_that_were_never_announced_do_no_harm():
    phases = Phases()
    phases.step("unknown", 3)
    phases.finish("unknown")
    phases.start("orphan", "unknown", 0)
    phases.finish("orphan")
    assert phases.share == 1


def test_a_monitor_tells_each_percent_once_and_never_asks_to_stop(surface):
    told = []
    monitor = new_monitor(surface, lambda phase, share: told.append((phase, share)))
    if monitor is None:
        assert not surface.reports_progress
        return
    monitor.phase_start("build", None, 1000)
    assert all(monitor.step_complete("build", step) for step in range(1000))
    monitor.phase_finish("build")
    assert 90 <= len(told) <= 101
    assert told[-1] == ("build", 1.0)
