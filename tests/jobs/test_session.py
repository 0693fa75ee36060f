"""What a Ray of our own leaves behind: nothing, also if its run is killed, and wherever temporary files go."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from jobs.pool import connect, disconnect, outlives_us
from jobs.session import session_folder

HOLD = """
import time
from jobs.session import session_folder
with session_folder() as folder:
    print(folder, flush=True)
    time.sleep(99)
"""


@pytest.fixture
def temporary(monkeypatch):
    """A folder of temporary files with a path of a length that is usual."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


def hold():
    """Another process with a session, and its folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    return process, Path(process.stdout.readline().strip()).parent


def test_a_session_is_of_its_user_alone_and_ends_with_its_run(temporary):
    with session_folder() as folder:
        (above,) = temporary.iterdir()
        assert folder.parent == above
        assert above.stat().st_mode & 0o077 == 0
        folder.mkdir()
    assert not any(temporary.iterdir())


def test_a_session_of_a_killed_run_is_swept_and_one_of_a_living_run_is_left_alone(temporary):
    (killed, old), (living, young) = hold(), hold()
    (temporary / "squall-ray-file").touch()
    (temporary / "squall-ray-link").symlink_to(temporary)
    try:
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        with session_folder():
            assert not old.exists()
            assert young.exists()
            assert (temporary / "squall-ray-link").is_symlink()
    finally:
        living.kill()
        living.wait()


def test_the_path_of_a_session_leaves_room_for_the_sockets_of_ray(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 20)))
    with session_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = folder / "session_2026-11-27_16-52-44_119933_1234567" / "sockets" / "plasma_store"
        path.parent.mkdir(parents=True)
        listener.bind(str(path))


@pytest.mark.parametrize("address", ["", "local"])
def test_an_address_that_names_no_cluster_is_that_of_a_ray_of_our_own(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert not outlives_us()


@pytest.mark.ray
def test_a_ray_of_our_own_leaves_nothing_behind_unless_the_user_names_a_folder_for_it(monkeypatch, temporary):
    monkeypatch.setenv("RAY_ADDRESS", "")
    connect(cores=1)
    assert any(temporary.glob("squall-ray-*/r/session_*/logs/*"))
    disconnect()
    assert not any(temporary.iterdir())
    monkeypatch.setenv("RAY_TMPDIR", str(temporary / "kept"))
    connect(cores=1)
    disconnect()
    assert any(temporary.glob("kept/ray/session_*/logs/*"))
