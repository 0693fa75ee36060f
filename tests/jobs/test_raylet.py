"""A Ray that ends in the middle of a run ends it with one message, and leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from jobs.outcome import Exit
from jobs.raylet import RayGoneError, Raylet

ROOT = Path(__file__).parents[2]
RUN = """
import sys
from pathlib import Path
import psutil
from jobs.command import ends_clearly
from jobs.nowcast import forecast

def kill_raylet(settled, total, results):
    for child in psutil.Process().children():
        if child.name() == "raylet":
            child.kill()
            child.wait()

@ends_clearly
def main():
    forecast(Path(sys.argv[1]), [], None, False, kill_raylet)

main()
"""


def test_a_process_that_was_killed_is_gone_also_before_its_parent_has_asked():
    started = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    raylet = Raylet(psutil.Process(started.pid))
    assert not raylet.is_gone
    raylet.check()
    started.kill()
    os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)  # ended, and a zombie still
    with pytest.raises(RayGoneError, match=f"its raylet, process {started.pid}, was killed or failed"):
        raylet.check()
    started.communicate()
    assert raylet.is_gone


def test_a_raylet_that_cannot_be_seen_counts_as_there():
    assert not Raylet(None).is_gone
    Raylet(None).check()


@pytest.mark.ray
def test_a_run_whose_ray_is_killed_says_so_and_the_next_one_makes_the_cycle(product):
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", RUN, product], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == Exit.FAILED, done.stderr
    assert "squall: RayGone: Ray has ended: its raylet, process" in done.stderr
    assert "nothing was published, the same command makes the cycle" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((product.parent / "out").rglob("*.zarr"))
    assert not list((product.parent / "out" / "tiny" / ".staging").iterdir())
    again = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "run", product], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert again.returncode == Exit.PUBLISHED, again.stderr
