from pathlib import Path

import pytest

from engines.eviction import LIMIT_BYTES
from jobs.engine import open_cache
from jobs.folders import cache_folder, cache_limit_bytes, way_out
from pipelines.errors import ConfigError


def test_the_cache_folder_is_made_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("SQUALL_CACHE", str(tmp_path / "a" / "b"))
    assert cache_folder() == tmp_path / "a" / "b"
    assert cache_folder().is_dir()


def test_a_cache_folder_that_cannot_be_made_is_named_with_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "home").write_text("no folder")
    monkeypatch.delenv("SQUALL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match=r"home/\.cache/squall cannot be made.*SQUALL_CACHE names another"):
        cache_folder()


def test_the_limit_of_a_cache_is_what_the_environment_says(monkeypatch):
    monkeypatch.delenv("SQUALL_CACHE_LIMIT", raising=False)
    assert cache_limit_bytes() == LIMIT_BYTES
    monkeypatch.setenv("SQUALL_CACHE_LIMIT", "1.5GB")
    assert cache_limit_bytes() == 1_500_000_000


@pytest.mark.parametrize("text", ["much", "5", "-5GB", "5TB", "0MB"])
def test_a_limit_that_is_no_size_is_refused_before_anything_is_evicted(tmp_path, monkeypatch, text):
    monkeypatch.setenv("SQUALL_CACHE_LIMIT", text)
    with pytest.raises(ConfigError, match=f"SQUALL_CACHE_LIMIT is '{text}'; expected a size such as 5GB"):
        open_cache(tmp_path)


@pytest.mark.parametrize(
    ("path", "other"),
    [
        ("/big/cache/publish/ab/cases.npz", ", or let SQUALL_CACHE name a folder with more"),
        ("/data/models/rain/versions", ", or let SQUALL_REGISTRY name a folder with more"),
        ("/scratch/squall-scratch-build-x", ", or let TMPDIR name a folder with more"),
        ("/home/me/reports/gate.html", ""),
    ],
)
def test_the_way_out_of_a_full_disk_names_the_variable_that_names_the_folder(monkeypatch, path, other):
    for name, folder in (("SQUALL_CACHE", "/big/cache"), ("SQUALL_REGISTRY", "/data/models")):
        monkeypatch.setenv(name, folder)
    monkeypatch.setattr("jobs.folders.tempfile.gettempdir", lambda: "/scratch")
    assert way_out(Path(path)) == f"make room there{other}; then give the same command again"
