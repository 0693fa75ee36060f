import errno
import fcntl
import os

import pytest

from engines.lock import LockError, hold, share


def test_a_lock_whose_file_was_removed_while_we_took_it_is_taken_again(tmp_path, monkeypatch):
    path, taken = tmp_path / "lock", []
    real = fcntl.flock

    def flock(descriptor, how):
        if not taken:
            path.unlink()  # as its former holder does
        taken.append(real(descriptor, how))

    monkeypatch.setattr("engines.lock.fcntl.flock", flock)
    with hold(path), pytest.raises(LockError), hold(path, timeout_seconds=0):
        pass
    assert len(taken) >= 2


def test_a_shared_lock_is_held_by_many_and_by_nobody_alone(tmp_path):
    path = tmp_path / "lock"
    share(path)
    share.__wrapped__(path)
    with pytest.raises(LockError, match="was not free"), hold(path, timeout_seconds=0):
        pass


def test_a_lock_that_cannot_be_shared_is_named(tmp_path):
    with pytest.raises(LockError, match=f"cannot lock {tmp_path}/no/lock"):
        share(tmp_path / "no" / "lock")


def test_where_the_file_system_has_no_locks_the_error_says_so_and_nothing_stays_open(tmp_path, monkeypatch):
    def flock(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("engines.lock.fcntl.flock", flock)
    before = open_files()
    for take in (lambda: hold(tmp_path / "lock").__enter__(), lambda: share(tmp_path / "lock")):
        with pytest.raises(LockError, match=f"cannot lock {tmp_path}/lock: No locks available; expected .* with locks"):
            take()
    assert open_files() == before


def test_a_lock_whose_file_cannot_be_removed_is_free_all_the_same(tmp_path, monkeypatch):
    def refuse(path, missing_ok):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("engines.lock.Path.unlink", refuse)
        with pytest.raises(PermissionError), hold(tmp_path / "lock"):
            pass
    with hold(tmp_path / "lock", timeout_seconds=0):
        pass


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
