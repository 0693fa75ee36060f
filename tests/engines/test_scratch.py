"""Folders for temporary files: gone with their process, also if it is killed, and never those of the living."""

import os
import signal
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest

from engines.base import ModelError
from engines.room import DiskFullError
from engines.scratch import scratch_folder

Usage = namedtuple("Usage", "total used free")
PREFIX = "squall-scratch-build-"
HOLD = f"""
import time
from engines.scratch import scratch_folder
with scratch_folder("{PREFIX}") as folder:
    (folder / "engine").touch()
    print(folder, flush=True)
    time.sleep(99)
"""


@pytest.fixture
def temporary(monkeypatch, tmp_path):
    """An empty folder of temporary files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def hold():
    """Another process with a folder, and that folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    return process, Path(process.stdout.readline().strip())


def test_a_folder_is_of_its_user_alone_and_ends_with_its_use(temporary):
    with scratch_folder(PREFIX) as folder, scratch_folder(PREFIX) as other:
        assert folder != other
        assert folder.exists()
        assert folder.stat().st_mode & 0o077 == 0
    assert not any(temporary.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_others_use_or_name_stays(temporary):
    (killed, old), (living, young) = hold(), hold()
    (temporary / "squall-scratch-gate-x").mkdir()
    (temporary / f"{PREFIX}link").symlink_to(temporary)
    try:
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
        assert (old / "engine").exists()
        with scratch_folder(PREFIX):
            assert not old.exists()
            assert (young / "engine").exists()
            assert (temporary / "squall-scratch-gate-x").exists()
            assert (temporary / f"{PREFIX}link").is_symlink()
    finally:
        living.kill()
        living.communicate()


def test_a_folder_of_another_user_is_left_alone(temporary, monkeypatch):
    theirs = temporary / f"{PREFIX}theirs"
    theirs.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: theirs.stat().st_uid + 1)
        with scratch_folder(PREFIX):
            assert theirs.exists()
    with scratch_folder(PREFIX):
        assert not theirs.exists()


def test_a_full_disk_is_named_whatever_native_code_makes_of_it(temporary, monkeypatch):
    monkeypatch.setattr("engines.room.shutil.disk_usage", lambda path: Usage(100, 100, 0))
    with (
        pytest.raises(DiskFullError, match=f"{temporary}/{PREFIX}.* is full: 0 bytes are free"),
        scratch_folder(PREFIX),
    ):
        raise ModelError("ONNX Runtime cannot load model.onnx: Protobuf serialization failed")
    assert not list(temporary.iterdir())
