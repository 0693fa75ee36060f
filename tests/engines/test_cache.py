"""The cache of engine files: one build for all, only checked bytes, and what becomes of every accident."""

import errno
import hashlib
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.cache import WHY, CacheError, EngineCache, explain, mac_key_from
from engines.eviction import Entry, to_evict
from engines.lock import LockError, hold, holder_of
from engines.spec import EngineKey

ROOT, WORKER = Path(__file__).parents[2], Path(__file__).with_name("cache_worker.py")
SECRET, OTHER_SECRET = b"0" * 32, b"1" * 32
ROUNDS, SEED = 6, 20160928  # two processes are killed each round
KEY = EngineKey(
    graph_sha256="a" * 64,
    weights_sha256="b" * 64,
    precision="float16",
    converter="to_half 1",
    profiles=(((1, 4, 512, 512), (8, 4, 512, 512), (8, 4, 512, 512)),),
    flags=frozenset({"FP16", "OBEY_PRECISION_CONSTRAINTS"}),
    workspace_bytes=None,
    level=3,
    flavour="tensorrt",
    runtime_version="8.6.1",
    gpu="NVIDIA H200",
    compute_capability="9.0",
    multiprocessors=132,
    memory_bytes=150_754_820_096,
)
OTHER_VALUES = {
    "graph_sha256": "c" * 64, "weights_sha256": None, "precision": "float32", "converter": "to_half 2",
    "profiles": (((1, 4, 256, 256),) * 3,), "flags": frozenset(), "workspace_bytes": 1 << 30, "level": 5,
    "flavour": "tensorrt-rtx", "runtime_version": "10.0.1", "gpu": "NVIDIA A100", "compute_capability": "8.0",
    "multiprocessors": 66, "memory_bytes": 18 << 30,
}  # fmt: skip


def number(n: int) -> EngineKey:
    return replace(KEY, graph_sha256=f"{n:064x}")


def gives(data: bytes):
    return lambda log: data


def never(log):
    raise AssertionError("built again")


def folder_of(root: Path, key: EngineKey = KEY) -> Path:
    return root / "engines" / key.digest


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path)


# Keys


def test_a_key_survives_json():
    assert EngineKey.from_json(json.loads(json.dumps(KEY.to_json()))) == KEY


def test_the_order_of_flags_is_no_difference():
    assert replace(KEY, flags=frozenset(sorted(KEY.flags, reverse=True))).digest == KEY.digest


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_every_field_makes_another_key_and_is_explained(name):
    other = replace(KEY, **{name: OTHER_VALUES[name]})
    assert other.digest != KEY.digest
    assert [d.field for d in explain(KEY, other)] == [name]
    assert WHY[name] in str(explain(KEY, other)[0])


def test_every_field_has_a_reason_and_a_test():
    assert list(WHY) == list(OTHER_VALUES) == [field.name for field in fields(EngineKey)]


def test_equal_keys_need_no_explanation():
    assert explain(KEY, replace(KEY)) == []


def test_of_flags_only_the_differing_ones_are_named():
    (difference,) = explain(KEY, replace(KEY, flags=frozenset({"FP16", "TF32"})))
    assert (difference.ours, difference.theirs) == ("only ['OBEY_PRECISION_CONSTRAINTS']", "only ['TF32']")


@pytest.mark.parametrize(
    ("change", "named"),
    [({"colour": 1}, "colour"), ({"profiles": [[1]]}, "malformed"), ({"flags": 5}, "malformed")],
)
def test_a_key_of_another_form_is_refused(change, named):
    with pytest.raises(ValueError, match=named):
        EngineKey.from_json(KEY.to_json() | change)


# Built once


def test_an_engine_is_built_once_and_then_read(tmp_path):
    assert EngineCache(tmp_path).get_or_build(KEY, gives(b"engine")).data == b"engine"
    assert EngineCache(tmp_path).get_or_build(KEY, never).data == b"engine"


def test_manifest_and_key_are_readable_json_with_the_notes_of_the_build(tmp_path, cache):
    def build(log):
        log.note("precision_obtained", "float16")
        return b"engine"

    cache.get_or_build(KEY, build)
    manifest = json.loads((folder_of(tmp_path) / "manifest.json").read_text())
    assert manifest["subject"]["gpu"] == "NVIDIA H200"
    assert manifest["sha256"] == hashlib.sha256(b"engine").hexdigest()
    assert cache.find(KEY).manifest.notes == {"precision_obtained": "float16"}
    assert cache.keys() == {KEY.digest: KEY}


def test_a_failed_build_frees_the_lock_and_leaves_nothing(tmp_path, cache):
    def fail(log):
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"):
        cache.get_or_build(KEY, fail)
    assert cache.get_or_build(KEY, gives(b"engine"), wait_seconds=0).data == b"engine"
    assert list((tmp_path / "locks").iterdir()) == []
    assert list((tmp_path / ".staging").iterdir()) == []


def test_threads_that_want_one_engine_cause_one_build_and_see_who_builds(cache):
    builds, seen, is_seen = [], [], threading.Event()

    def build(log):
        builds.append(1)
        log.progress("layer 3 of 7")
        assert is_seen.wait(20)
        return b"engine"

    def on_wait(holder):
        if holder.progress:
            seen.append(str(holder))
            is_seen.set()

    found = []
    threads = [threading.Thread(target=lambda: found.append(cache.get_or_build(KEY, build, on_wait=on_wait).data))
               for _ in range(4)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, len(builds)) == ([b"engine"] * 4, 1)
    assert "layer 3 of 7" in seen[0]
    assert str(os.getpid()) in seen[0]


def test_waiting_ends_with_the_name_of_the_builder(tmp_path, cache):
    with hold(tmp_path / "locks" / KEY.digest), pytest.raises(LockError, match=f"process {os.getpid()} on"):
        cache.get_or_build(KEY, never, wait_seconds=0.05)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def no_lock(*_):
    raise LockError("cannot lock it: No space left on device")


@pytest.mark.parametrize("refusal", [full, no_lock])
def test_an_engine_that_the_disk_refuses_is_used_all_the_same(cache, caplog, monkeypatch, refusal):
    monkeypatch.setattr("engines.cache.staging", refusal)
    assert cache.get_or_build(KEY, gives(b"engine")).data == b"engine"
    assert "engine file not kept" in caplog.text
    assert re.search("is full: .* bytes are free|cannot lock it", caplog.text)
    assert cache.find(KEY) is None


@pytest.mark.parametrize("refusal", [full, no_lock])
def test_timings_that_the_disk_refuses_cost_no_build(cache, caplog, monkeypatch, refusal):
    cache.merge_timing(KEY, b"kept", never)
    with monkeypatch.context() as patch:
        patch.setattr("engines.cache.staging", refusal)
        cache.merge_timing(KEY, b"fresh", lambda kept, fresh: kept + fresh)
    assert "timing cache not kept" in caplog.text
    assert cache.timing(KEY) == b"kept"


# Only checked bytes


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    rewrite(path, bytes(data))


def rewrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def link_away(path: Path) -> None:
    """The same contents, but outside the cache."""
    away = path.parents[2 if path.is_file() else 1] / "away" / path.name
    away.parent.mkdir()
    path.rename(away)
    path.symlink_to(away)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def named_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def claim(folder: Path, **claims: object) -> None:
    """A manifest that says something else."""
    manifest = json.loads((folder / "manifest.json").read_text())
    rewrite(folder / "manifest.json", json.dumps(manifest | claims).encode())


ACCIDENTS = {
    "one byte flipped": (lambda folder: flip(folder / "data"), "sha256"),
    "cut short": (lambda folder: rewrite(folder / "data", b"eng"), "sha256"),
    "longer": (lambda folder: rewrite(folder / "data", b"engine!"), "at most 6"),
    "data gone": (lambda folder: (folder / "data").unlink(), "missing"),
    "data is a link": (lambda folder: link_away(folder / "data"), "link"),
    "data is a folder": (lambda folder: make_folder(folder / "data"), "not a plain file"),
    "data is a pipe": (lambda folder: named_pipe(folder / "data"), "no plain file"),
    "manifest gone": (lambda folder: (folder / "manifest.json").unlink(), "missing"),
    "manifest is a link": (lambda folder: link_away(folder / "manifest.json"), "link"),
    "manifest is no JSON": (lambda folder: rewrite(folder / "manifest.json", b"{"), "no manifest"),
    "manifest nested without end": (lambda folder: rewrite(folder / "manifest.json", b"[" * 500_000), "no manifest"),
    "manifest is something else": (lambda folder: rewrite(folder / "manifest.json", b"[1]"), "no manifest"),
    "size beyond all memory": (lambda folder: claim(folder, size_bytes=10**30, sha256="no"), "size_bytes cannot be"),
    "size beyond this memory": (lambda folder: claim(folder, size_bytes=10**15, sha256="no"), "its manifest says no"),
    "size below nothing": (lambda folder: claim(folder, size_bytes=-5), "size_bytes cannot be"),
    "notes are none": (lambda folder: claim(folder, notes=None), "notes cannot be"),
    "a note is no text": (lambda folder: claim(folder, notes={"a": 5}), "notes cannot be"),
    "manifest too long": (lambda folder: rewrite(folder / "manifest.json", b" " * 2_000_000), "at most"),
    "the folder is a link": (link_away, "link"),
    "the folder is a file": (lambda folder: (link_away(folder), folder.unlink(), folder.write_bytes(b"")), "link"),
}


@pytest.mark.parametrize("accident", ACCIDENTS)
@pytest.mark.parametrize("secret", [None, SECRET], ids=["checksum", "MAC"])
def test_a_damaged_file_is_put_aside_and_built_again(tmp_path, caplog, accident, secret):
    cause, named = ACCIDENTS[accident]
    cache = EngineCache(tmp_path, mac_key=secret)
    cache.get_or_build(KEY, gives(b"engine"))
    cause(folder_of(tmp_path))
    assert cache.find(KEY) is None
    assert cache.get_or_build(KEY, gives(b"fresh")).data == b"fresh"
    assert cache.get_or_build(KEY, never).data == b"fresh"
    assert (named in caplog.text) or secret is not None
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


def test_the_file_of_another_key_is_put_aside(tmp_path, cache):
    cache.get_or_build(number(1), gives(b"other"))
    folder_of(tmp_path, number(1)).rename(folder_of(tmp_path))
    assert cache.get_or_build(KEY, gives(b"engine")).data == b"engine"


def test_a_check_may_refuse_what_the_checksum_cannot_see(cache):
    cache.get_or_build(KEY, gives(b"built by 8.6"))
    wrong = {b"built by 8.6": "built by 8.6; this is 11.4"}.get
    assert cache.find(KEY, wrong) is None
    assert cache.get_or_build(KEY, gives(b"built by 11.4"), wrong).data == b"built by 11.4"


def test_a_build_that_the_check_refuses_is_an_error_and_not_kept(cache):
    with pytest.raises(CacheError, match="float32 instead of float16"):
        cache.get_or_build(KEY, gives(b"engine"), lambda data: "float32 instead of float16")
    assert cache.find(KEY) is None


@pytest.mark.parametrize("writer", [None, OTHER_SECRET], ids=["no MAC", "wrong MAC"])
def test_with_a_secret_key_only_files_written_with_it_are_used(tmp_path, writer):
    EngineCache(tmp_path, mac_key=writer).get_or_build(KEY, gives(b"planted"))
    ours = EngineCache(tmp_path, mac_key=SECRET)
    assert ours.find(KEY) is None
    assert ours.get_or_build(KEY, gives(b"engine")).data == b"engine"
    assert ours.get_or_build(KEY, never).data == b"engine"


def test_a_forged_manifest_of_a_planted_file_is_refused_by_its_mac(tmp_path):
    cache = EngineCache(tmp_path, mac_key=SECRET)
    cache.get_or_build(KEY, gives(b"engine"))
    folder = folder_of(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"sha256": hashlib.sha256(b"planted").hexdigest(), "size_bytes": 7}
    rewrite(folder / "data", b"planted")
    rewrite(folder / "manifest.json", json.dumps(manifest).encode())
    assert cache.find(KEY) is None


def test_the_quarantine_does_not_grow(tmp_path, cache):
    for n in range(7):
        cache.get_or_build(KEY, gives(b"engine"))
        rewrite(folder_of(tmp_path) / "data", str(n).encode())
    cache.get_or_build(KEY, gives(b"engine"))
    kept = sorted((p / "data").read_text() for p in (tmp_path / "quarantine").iterdir())
    assert kept == ["3", "4", "5", "6"]


def test_a_file_that_is_evicted_while_it_is_refused_is_built_again(cache):
    cache.get_or_build(KEY, gives(b"old"))
    looks = []

    def check(data: bytes) -> str | None:
        looks.append(data)
        if looks == [b"old", b"old"]:  # the second look is under the lock
            cache.evict(0)
        return "it is old" if data == b"old" else None

    assert cache.get_or_build(KEY, gives(b"new"), check).data == b"new"


# A safe place


def test_a_folder_in_which_everybody_may_write_is_refused_without_a_secret_key(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(CacheError, match=r"mode 777.*chmod o-w"):
        EngineCache(tmp_path)
    assert EngineCache(tmp_path, mac_key=SECRET).get_or_build(KEY, gives(b"engine")).data == b"engine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_what_belongs_to_another_user_is_refused_without_a_secret_key(tmp_path, cache):
    cache.get_or_build(KEY, gives(b"planted"))
    os.chown(folder_of(tmp_path), 12345, 12345)
    assert cache.find(KEY) is None
    assert cache.get_or_build(KEY, gives(b"engine")).data == b"engine"
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(CacheError, match="user 12345"):
        EngineCache(tmp_path)


@pytest.mark.parametrize("part", ["engines", "timing", "quarantine", "locks", ".staging"])
@pytest.mark.parametrize("secret", [None, SECRET], ids=["checksum", "MAC"])
def test_a_part_of_the_cache_that_leads_elsewhere_is_refused(tmp_path, part, secret):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / part).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match="is a link"):
        EngineCache(tmp_path / "cache", mac_key=secret)


def test_a_lock_that_leads_elsewhere_is_refused(tmp_path, cache):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "locks" / KEY.digest).symlink_to(tmp_path / "precious")
    with pytest.raises(LockError, match="cannot lock"):
        cache.get_or_build(KEY, never)
    assert (tmp_path / "precious").read_text() == "kept"


def test_eviction_removes_a_link_and_not_what_it_leads_to(tmp_path, cache):
    cache.get_or_build(KEY, gives(b"engine"))
    link_away(folder_of(tmp_path))
    assert cache.evict(0) == [KEY.digest]
    assert (tmp_path / "away" / KEY.digest / "data").read_bytes() == b"engine"


def test_an_engine_file_is_read_only(tmp_path, cache):
    cache.get_or_build(KEY, gives(b"engine"))
    assert not (folder_of(tmp_path) / "data").stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)


def test_the_secret_key_comes_from_the_environment_or_a_file(tmp_path):
    path = tmp_path / "key"
    path.write_text("s" * 40 + "\n")
    path.chmod(0o600)
    assert mac_key_from({}) is None
    assert mac_key_from({"SQUALL_ENGINE_KEY": "t" * 32}) == b"t" * 32
    assert mac_key_from({"SQUALL_ENGINE_KEY_FILE": str(path)}) == b"s" * 40


@pytest.mark.parametrize(
    ("text", "mode", "named"), [("s" * 40, 0o644, "mode 644"), ("short", 0o600, "5 characters"), (None, 0, "read")]
)
def test_a_secret_key_that_is_none_is_refused(tmp_path, text, mode, named):
    path = tmp_path / "key"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    with pytest.raises(CacheError, match=named):
        mac_key_from({"SQUALL_ENGINE_KEY_FILE": str(path)})


# Room


ENTRIES = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=12).map(
    lambda rows: [Entry(str(n), size, used) for n, (size, used) in enumerate(rows)]
)


@given(ENTRIES, st.integers(0, 200), st.sets(st.integers(0, 11).map(str)))
def test_the_longest_unused_go_until_the_rest_fits_and_no_more(entries, limit, keep):
    gone = to_evict(entries, limit, keep)
    by_name = {entry.digest: entry for entry in entries}
    stay = [e for e in entries if e.digest not in gone]
    total = sum(e.size_bytes for e in stay)
    assert not set(gone) & keep
    assert total <= limit or not [e for e in stay if e.digest not in keep]
    if gone:
        assert total + by_name[gone[-1]].size_bytes > limit
        newest_gone = max(by_name[d].used_ns for d in gone)
        assert all(e.used_ns >= newest_gone for e in stay if e.digest not in keep)


def test_a_file_that_was_read_lately_outlives_one_that_was_not(tmp_path):
    cache = EngineCache(tmp_path, max_bytes=20)
    for n in (1, 2):
        cache.get_or_build(number(n), gives(b"x" * 10))
        os.utime(folder_of(tmp_path, number(n)), (n, n))
    cache.get_or_build(number(1), never)
    cache.get_or_build(number(3), gives(b"x" * 10))
    assert set(cache.keys()) == {number(1).digest, number(3).digest}


def test_a_file_larger_than_the_cache_is_kept_alone(tmp_path):
    cache = EngineCache(tmp_path, max_bytes=20)
    cache.get_or_build(number(1), gives(b"x"))
    cache.get_or_build(number(2), gives(b"x" * 30))
    assert set(cache.keys()) == {number(2).digest}


# Timing caches


def test_timing_caches_of_one_gpu_are_merged_and_of_another_kept_apart(cache):
    other_gpu = replace(KEY, multiprocessors=66)
    assert cache.timing(KEY) is None
    for letter in (b"a", b"b", b"c"):
        cache.merge_timing(replace(KEY, graph_sha256=letter.hex() * 32), letter, lambda kept, fresh: kept + fresh)
    assert cache.timing(KEY) == b"abc"
    assert cache.timing(other_gpu) is None


def test_concurrent_merges_lose_nothing(tmp_path, cache):
    def merge(letter):
        cache.merge_timing(KEY, letter, lambda kept, fresh: (time.sleep(0.002), kept + fresh)[1])

    threads = [threading.Thread(target=merge, args=(bytes([65 + n]),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(cache.timing(KEY)) == list(range(65, 73))
    assert len(list((tmp_path / "timing").glob("*/*"))) == 1


@pytest.mark.parametrize("secret", [None, SECRET], ids=["checksum", "MAC"])
def test_a_damaged_timing_cache_is_put_aside_and_begun_anew(tmp_path, secret):
    cache = EngineCache(tmp_path, mac_key=secret)
    cache.merge_timing(KEY, b"old", never)
    flip(next((tmp_path / "timing").glob("*/*")) / "data")
    cache.merge_timing(KEY, b"new", never)
    assert cache.timing(KEY) == b"new"
    assert cache.timing(KEY) == b"new"


# Processes that are killed


def start(root: Path, what: str) -> subprocess.Popen:
    words = [str(root), what, json.dumps(KEY.to_json())]
    return subprocess.Popen([sys.executable, str(WORKER), *words], cwd=ROOT, stdout=subprocess.PIPE,
                            env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True)  # fmt: skip


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_processes_killed_at_random_tear_nothing_and_hold_nothing(tmp_path):
    choose, cache, read = random.Random(SEED), EngineCache(tmp_path), 0
    for _ in range(ROUNDS):
        processes = [start(tmp_path, "forever") for _ in range(2)]
        for process in processes:
            process.stdout.readline()
        time.sleep(choose.uniform(0, 0.1))
        for process in processes:
            kill(process)
        for digest, key in cache.keys().items():
            name = str(int(key.graph_sha256, 16)).encode()
            assert cache.find(key).data == hashlib.sha256(name).digest() * 4096, digest
            read += 1
        assert len(cache.keys()) == len(list((tmp_path / "engines").iterdir()))
        assert cache.timing(KEY)
    print(f"{2 * ROUNDS} kills, {read} engine files read, none torn")
    cache.get_or_build(number(20_000), gives(b"engine"), wait_seconds=5)
    cache.merge_timing(KEY, b"", lambda kept, fresh: kept)
    assert list((tmp_path / "quarantine").iterdir()) == []
    assert list((tmp_path / ".staging").iterdir()) == []
    assert len(list((tmp_path / "timing").glob("*/*"))) == 1


def test_a_builder_that_is_killed_frees_the_lock_for_those_who_wait(tmp_path, cache):
    builder = start(tmp_path, "stall")
    assert builder.stdout.readline() == "building\n"
    assert holder_of(tmp_path / "locks" / KEY.digest).pid == builder.pid
    with pytest.raises(LockError, match=r"1 of 2"):
        cache.get_or_build(KEY, never, wait_seconds=0.1)
    threading.Timer(0.1, kill, [builder]).start()
    assert cache.get_or_build(KEY, gives(b"engine"), wait_seconds=20).data == b"engine"


def test_processes_that_want_one_engine_cause_one_build(tmp_path):
    processes = [start(tmp_path, "once") for _ in range(4)]
    assert sorted(process.communicate()[0] for process in processes) == ["built\nengine\n", *["engine\n"] * 3]
