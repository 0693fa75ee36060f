"""Fetched versions are forgotten when room is short: the longest unused first, never one in use."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from engines.eviction import LIMIT_BYTES
from engines.fetched import Fetched
from engines.release import RECORD, write_release

WORKER = Path(__file__).with_name("fetched_worker.py")


class Elsewhere:
    """Where versions are fetched from; counts how often."""

    def __init__(self, home, package, plain):
        self.home, self.package, self.plain, self.fetched = home, package, plain, []

    def release(self, version):
        draft = self.home / version
        draft.mkdir(parents=True)
        source = self.package(self.home / f"package-{version}", self.plain(), version=version)
        return write_release(draft, source, "test", {}, "ann", "why")

    def fetch(self, release):
        def fetched(folder):
            self.fetched.append(release.version)
            shutil.copytree(self.home / release.version, folder, dirs_exist_ok=True, ignore=lambda *_: [RECORD])

        return fetched


@pytest.fixture
def elsewhere(tmp_path, package, plain):
    return Elsewhere(tmp_path / "elsewhere", package, plain)


@pytest.fixture
def three(elsewhere):
    return [elsewhere.release(version) for version in "123"]


@pytest.fixture
def cache(tmp_path):
    return Fetched(tmp_path / "cache")


@pytest.fixture
def filled(cache, elsewhere, three):
    """All three are here, opened by nobody; 1 is the longest unused."""
    for age, release in enumerate(three):
        cache.check(release, elsewhere.fetch(release))
        os.utime(cache._home(release), (1000 + age, 1000 + age))
    return cache


@contextmanager
def opened(cache, elsewhere, release):
    """Another process has opened a version."""
    words = [
        sys.executable,
        str(WORKER),
        str(cache.root),
        str(elsewhere.home / release.version / RECORD),
        release.version,
    ]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout.readline() == b"open\n"
        yield process
        process.stdin.close()


def there(cache, releases):
    return [release.version for release in releases if cache._home(release).exists()]


def one(cache):
    """Bytes that one version takes, and half of another."""
    return max(entry.size_bytes for entry in cache.entries()) * 3 // 2


def test_entries_have_the_size_of_all_files_and_the_time_of_the_last_use(filled, three):
    entries = {entry.digest: entry for entry in filled.entries()}
    assert len(entries) == 3
    for age, release in enumerate(three):
        home = filled._home(release)
        assert entries[home.name].size_bytes >= sum(p.stat().st_size for p in home.iterdir())
        assert entries[home.name].used_ns == (1000 + age) * 10**9


def test_the_longest_unused_go_until_the_rest_fits(filled, three):
    gone = filled.evict(one(filled))
    assert gone == [filled._home(release).name for release in three[:2]]
    assert there(filled, three) == ["3"]


def test_nothing_goes_where_there_is_room(filled, three):
    assert filled.evict(LIMIT_BYTES) == []
    assert there(filled, three) == ["1", "2", "3"]


def test_a_version_that_another_process_has_opened_stays_until_that_has_ended(filled, elsewhere, three):
    with opened(filled, elsewhere, three[0]):
        filled.evict(0)
        assert there(filled, three) == ["1"]
    filled.evict(0)
    assert there(filled, three) == []


def test_what_a_killed_process_had_opened_is_in_use_no_more(filled, elsewhere, three):
    with opened(filled, elsewhere, three[0]) as process:
        process.kill()
        process.wait()
        filled.evict(0)
        assert there(filled, three) == []


def test_a_version_that_this_process_has_opened_stays(filled, elsewhere, three):
    package = filled.open(three[1], elsewhere.fetch(three[1]))
    Fetched(filled.root).evict(0)
    assert there(filled, three) == ["2"]
    assert package.onnx_path.exists()


def test_to_open_a_version_is_to_use_it(filled, elsewhere, three):
    with opened(filled, elsewhere, three[0]):
        pass
    filled.evict(one(filled))
    assert there(filled, three) == ["1"]


@pytest.mark.parametrize("how", ["open", "check"])
def test_fetching_one_makes_room_for_it(filled, elsewhere, three, how):
    small, fourth = Fetched(filled.root, max_bytes=one(filled)), elsewhere.release("4")
    getattr(small, how)(fourth, elsewhere.fetch(fourth))
    assert there(filled, [*three, fourth]) == ["4"]


def test_one_that_is_larger_than_the_limit_is_kept_until_the_next(filled, elsewhere, three):
    small = Fetched(filled.root, max_bytes=1)
    for version in "45":
        release = elsewhere.release(version)
        small.check(release, elsewhere.fetch(release))
        assert len(filled.entries()) == 1
        assert there(filled, [release]) == [version]


def test_an_evicted_version_is_fetched_again(filled, elsewhere, three):
    filled.evict(0)
    elsewhere.fetched.clear()
    package = filled.open(three[0], elsewhere.fetch(three[0]))
    assert (package.contract.version, elsewhere.fetched) == ("1", ["1"])


def test_what_is_no_version_is_neither_counted_nor_removed(filled, three):
    (filled.root / "notes.txt").write_text("mine")
    (filled.root / ("0" * 63)).mkdir()
    filled.evict(0)
    assert there(filled, three) == []
    assert (filled.root / "notes.txt").exists()
    assert (filled.root / ("0" * 63)).exists()


def test_what_cannot_be_removed_stays_and_harms_nobody(filled, elsewhere, three, monkeypatch):
    real = os.rename

    def rename(source, target, **options):
        if Path(source) == filled._home(three[0]):
            raise PermissionError(1, "not yours", str(source))
        real(source, target, **options)

    monkeypatch.setattr(os, "rename", rename)
    assert len(filled.evict(0)) == 2
    assert there(filled, three) == ["1"]


def test_versions_that_are_opened_while_others_are_evicted_are_whole(cache, elsewhere, three):
    """Opened ones never vanish; at most they are fetched again."""
    small = Fetched(cache.root, max_bytes=1)

    def use(n):
        release = three[n % 3]
        if n % 2:
            small.check(release, elsewhere.fetch(release))
            return True
        return small.open(release, elsewhere.fetch(release)).onnx_path.exists()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, range(24)))
    assert there(cache, three) == ["1", "2", "3"]
