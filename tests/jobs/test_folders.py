import pytest

from jobs.folders import cache_folder
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
