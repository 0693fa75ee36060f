import errno

import pytest

from engines.files import replace_file
from engines.room import DiskFullError


def test_a_file_is_put_whole_in_place_of_the_one_before(tmp_path):
    replace_file(tmp_path / "deep" / "file", b"one")
    assert replace_file(tmp_path / "deep" / "file", b"two").read_bytes() == b"two"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]


def test_a_file_that_the_disk_refuses_leaves_the_one_before_and_nothing_else(tmp_path, monkeypatch):
    def full(draft, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    replace_file(tmp_path / "file", b"one")
    monkeypatch.setattr("engines.files.os.replace", full)
    with pytest.raises(DiskFullError, match=f"the disk of {tmp_path} is full: file takes 3 bytes, .* bytes are free"):
        replace_file(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
