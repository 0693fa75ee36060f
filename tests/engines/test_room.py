"""A full disk: which it is and what did not fit, whoever was writing; other errors stay what they are."""

import copy
import errno
from collections import namedtuple

import pytest

from engines.base import EngineError, ModelError
from engines.room import DiskFullError, room, room_for_others

Usage = namedtuple("Usage", "total used free")
TEXT = "the disk of {} is full: half.onnx takes 1,234 bytes, 7 bytes are free"


@pytest.fixture
def seven_left(monkeypatch):
    monkeypatch.setattr("engines.room.shutil.disk_usage", lambda path: Usage(100, 93, 7))


def full(code=errno.ENOSPC):
    return OSError(code, "No space left on device")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_and_a_spent_quota_are_told_with_what_did_not_fit(tmp_path, seven_left, code):
    with pytest.raises(DiskFullError) as caught, room(tmp_path / "to be made" / "half.onnx", 1234):
        raise full(code)
    assert str(caught.value) == TEXT.format(tmp_path)
    assert caught.value.filename == str(tmp_path / "to be made" / "half.onnx")


def test_who_knows_the_file_speaks_and_not_who_stands_around(tmp_path, seven_left):
    with pytest.raises(DiskFullError) as caught, room(tmp_path), room(tmp_path / "half.onnx", 1234):
        raise full()
    assert str(caught.value) == TEXT.format(tmp_path)


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), ValueError("odd")])
def test_other_errors_stay_what_they_are(tmp_path, seven_left, error):
    with pytest.raises(type(error), match=r"denied|odd"), room(tmp_path):
        raise error


def test_a_copy_as_another_process_gets_it_says_the_same(tmp_path, seven_left):
    with pytest.raises(DiskFullError) as caught, room(tmp_path / "half.onnx", 1234):
        raise full()
    other = copy.copy(caught.value)  # by __reduce__, as pickle does
    assert (str(other), other.filename) == (str(caught.value), caught.value.filename)


def test_what_native_code_says_of_a_full_disk_is_not_believed(tmp_path, seven_left):
    with pytest.raises(DiskFullError, match="is full: 7 bytes are free"), room_for_others(tmp_path):
        raise ModelError("cannot load model.onnx: Protobuf serialization failed")


@pytest.mark.parametrize("error", [ModelError("no such operator"), FileNotFoundError("no such file")])
def test_native_code_is_believed_where_there_is_room(tmp_path, error):
    with pytest.raises(type(error), match="no such"), room_for_others(tmp_path):
        raise error


def test_those_who_catch_errors_of_engines_or_of_the_system_catch_it():
    assert issubclass(DiskFullError, EngineError)
    assert issubclass(DiskFullError, OSError)
