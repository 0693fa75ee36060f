import pytest

from engines.eviction import LIMIT_BYTES
from jobs.engine import open_cache
from jobs.folders import cache_folder, cache_limit_bytes
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
