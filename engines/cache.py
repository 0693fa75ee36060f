"""Engine files kept by content: built once for all processes, checked when read, forgotten when room is short.

An engine file is a program that the GPU's driver runs, so only files that we wrote are ever handed out. Everything
here can be deleted at any time; it is made again. docs/decisions/012-engine-cache.md

```
<root>/engines/<digest of the key>/    a sealed folder, see engines/sealed.py; its age is that of its last use
      /timing/<digest>/<n>/            timing caches of one GPU and runtime; the highest number counts
      /quarantine/                     what was damaged or not from us, for a look
      /locks/  /.staging/
```
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engines.base import EngineError
from engines.eviction import LIMIT_BYTES, Entry, to_evict
from engines.files import discard, make_folders, put_folder, staging, sweep
from engines.lock import Holder, Lock, LockError, hold
from engines.room import room
from engines.sealed import DATA, DamagedError, Manifest, describe, read_manifest, read_sealed, write_sealed
from engines.spec import EngineKey

log = logging.getLogger(__name__)

_QUARANTINED = 4  # newest damaged entries that are kept
_MAC_KEY_CHARACTERS = 32

WHY = {
    "graph_sha256": "another network",
    "weights_sha256": "other weights, and the engine cannot be refitted",
    "precision": "other types of numbers",
    "converter": "the rewriting of the graph has changed since",
    "profiles": "other shapes of batches",
    "flags": "other builder flags",
    "workspace_bytes": "the builder may choose faster or slower kernels",
    "level": "the builder searches more or less",
    "flavour": "another runtime",
    "runtime_version": "a runtime loads only what its own version has built",
    "gpu": "kernels are chosen and timed on one GPU",
    "compute_capability": "machine code of another GPU",
    "multiprocessors": "kernels are chosen for the size of the GPU or of its slice",
    "memory_bytes": "kernels are chosen for the memory of the GPU or of its slice",
}
_OF_TIMING = ("flavour", "runtime_version", "gpu", "compute_capability", "multiprocessors", "memory_bytes")


class CacheError(EngineError):
    """The cache refuses its folder or key, or a build gave nothing that may be kept."""


@dataclass(frozen=True)
class EngineFile:
    """Bytes that were checked, what they are, and why the cache could not keep them if it could not."""

    data: bytes
    manifest: Manifest
    unkept: EngineError | None = None


class BuildLog:
    """What a build tells while it runs: progress for those who wait, notes for the manifest."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self.notes: dict[str, str] = {}

    def progress(self, text: str) -> None:
        self._lock.report(text)

    def note(self, name: str, value: str) -> None:
        self.notes[name] = value


class Build(Protocol):
    """Makes an engine file; may take minutes."""

    def __call__(self, log: BuildLog, /) -> bytes: ...


Check = Callable[[bytes], str | None]
"""What is wrong with an engine file, judged without running it; None = nothing."""


@dataclass(frozen=True)
class Difference:
    """A field in which two keys differ, and why that forbids sharing an engine file."""

    field: str
    ours: str
    theirs: str
    why: str

    def __str__(self) -> str:
        return f"{self.field}: {self.ours} | {self.theirs} ({self.why})"


def explain(ours: EngineKey, theirs: EngineKey) -> list[Difference]:
    """The fields in which two keys differ, each with its reason; empty for equal keys."""
    a, b = ours.to_json(), theirs.to_json()
    return [Difference(name, *_apart(a[name], b[name]), WHY[name]) for name in a if a[name] != b[name]]


def _apart(ours: Any, theirs: Any) -> tuple[str, str]:
    """Two values as text; of two lists only what one has and the other lacks."""
    if isinstance(ours, list) and isinstance(theirs, list):
        only = [v for v in ours if v not in theirs], [v for v in theirs if v not in ours]
        if any(only):
            return f"only {only[0]}" if only[0] else "-", f"only {only[1]}" if only[1] else "-"
    return str(ours), str(theirs)


class EngineCache:
    """Engine files in a folder that processes, and nodes by a shared file system, use together.

    Args:
        root: made if need be. Without a secret key it must belong to us or to root, and others may not write there.
        max_bytes: of all engine files together; one that is larger alone is kept until the next is stored.
        mac_key: secret; then only files that were written with it are handed out.

    Raises:
        CacheError: others may write into `root`, or a part of it is a link.
    """

    def __init__(self, root: Path, max_bytes: int = LIMIT_BYTES, mac_key: bytes | None = None) -> None:
        self._root, self._max_bytes, self._mac_key = Path(root), max_bytes, mac_key
        self._engines, self._timing, self._quarantine, self._locks = (
            self._root / name for name in ("engines", "timing", "quarantine", "locks")
        )
        with _writing(self._root):
            for folder in (self._engines, self._timing, self._quarantine, self._locks, self._root / ".staging"):
                make_folders(folder)
                _refuse_unsafe(folder, is_signed=mac_key is not None)

    def get_or_build(
        self,
        key: EngineKey,
        build: Build,
        check: Check = lambda data: None,
        on_wait: Callable[[Holder], None] | None = None,
        wait_seconds: float | None = None,
    ) -> EngineFile:
        """The engine file of `key`, built by one process if none has; sha256 taken of exactly these bytes.

        A file that is damaged, not from us or refused by `check` is put aside and built again. If the cache cannot
        store what was built (a full disk), it is handed out all the same and a warning logged.

        Args:
            check: run on the file before it is handed out, and on what `build` returns before it is stored.
            on_wait: called again and again with who builds, and how far, while another process does.

        Raises:
            CacheError: `check` refuses even what was built.
            LockError: another process still built after `wait_seconds`.
        """
        found = self.find(key, check)
        if found is not None:
            return found
        with hold(self._locks / key.digest, on_wait, wait_seconds) as lock:
            return self._healed(key, check) or self._built(key, build, check, lock)

    def find(self, key: EngineKey, check: Check = lambda data: None) -> EngineFile | None:
        """The engine file of `key` with its manifest; None if there is none that may be used. Changes nothing."""
        with suppress(DamagedError):
            return self._read(key, check)
        return None

    def keys(self) -> dict[str, EngineKey]:
        """The keys of all engine files by their digests; damaged ones are left out."""
        found = {}
        for entry in self.entries():
            with suppress(DamagedError, OSError, ValueError):
                manifest = read_manifest(self._engines / entry.digest, self._mac_key)
                found[entry.digest] = EngineKey.from_json(manifest.subject)
        return found

    def entries(self) -> list[Entry]:
        """All engine files, by digest."""
        found = []
        for folder in sorted(self._engines.iterdir()):
            with suppress(OSError):  # evicted meanwhile, or damaged
                size = (folder / DATA).lstat().st_size
                found.append(Entry(folder.name, size, folder.lstat().st_mtime_ns))
        return found

    def evict(self, limit_bytes: int, keep: Collection[str] = ()) -> list[str]:
        """Removes the longest unused engine files until the rest fits; returns their digests.

        Those who have read one before are not disturbed.
        """
        chosen = to_evict(self.entries(), limit_bytes, keep)
        with _writing(self._root):
            return [digest for digest in chosen if discard(self._root, self._engines / digest)]

    def timing(self, key: EngineKey) -> bytes | None:
        """The timing cache of the GPU and runtime of `key`, checked; None if there is none that may be used."""
        subject = _timing_subject(key)
        with hold(self._locks / _digest(subject)):
            return self._read_timing(subject)

    def merge_timing(self, key: EngineKey, fresh: bytes, merge: Callable[[bytes, bytes], bytes]) -> None:
        """Merges `fresh` into the timing cache of the GPU and runtime of `key`, as `merge(kept, fresh)`.

        If it cannot be stored (a full disk), the kept one stays and a warning is logged: the build has its engine.
        """
        subject = _timing_subject(key)
        try:
            with hold(self._locks / _digest(subject)):
                kept = self._read_timing(subject)
                self._write_timing(subject, fresh if kept is None else merge(kept, fresh))
        except (CacheError, LockError) as error:
            log.warning("timing cache not kept, the next build measures again: %s", error)

    def _read(self, key: EngineKey, check: Check) -> EngineFile | None:
        """As `find`; raises DamagedError where the entry must go."""
        folder = self._engines / key.digest
        sealed = self._sealed(folder)
        if sealed is None:
            return None
        manifest, data = sealed
        if manifest.subject != key.to_json():
            raise DamagedError(f"{folder} holds an engine of another key")
        fault = check(data)
        if fault is not None:
            raise DamagedError(f"{folder / DATA}: {fault}")
        with suppress(OSError):  # a cache that we may only read
            os.utime(folder, follow_symlinks=False)
        return EngineFile(data, manifest)

    def _sealed(self, folder: Path) -> tuple[Manifest, bytes] | None:
        with suppress(FileNotFoundError):
            owner = folder.lstat().st_uid
            if self._mac_key is None and owner not in (0, os.geteuid()):
                raise DamagedError(f"{folder} belongs to user {owner}, and no secret key shows that it is from us")
        return read_sealed(folder, self._mac_key)

    def _healed(self, key: EngineKey, check: Check) -> EngineFile | None:
        """As `find`; what may not be used is put aside. Only under the lock, or a fresh one might be."""
        try:
            return self._read(key, check)
        except DamagedError as error:
            self._put_aside(self._engines / key.digest, error)
            return None

    def _built(self, key: EngineKey, build: Build, check: Check, lock: Lock) -> EngineFile:
        build_log = BuildLog(lock)
        data = build(build_log)
        fault = check(data)
        if fault is not None:
            raise CacheError(f"the engine built for {key.graph_sha256[:12]} on {key.gpu} is refused: {fault}")
        manifest = describe(data, key.to_json(), build_log.notes)
        try:
            self._store(key, data, manifest)
        except (CacheError, LockError) as error:
            log.warning("engine file not kept, the next process builds it again: %s", error)
            return EngineFile(data, manifest, error)
        return EngineFile(data, manifest)

    def _store(self, key: EngineKey, data: bytes, manifest: Manifest) -> None:
        with _writing(self._root):
            sweep(self._root)
            with staging(self._root) as place:
                write_sealed(place / "entry", data, manifest, self._mac_key)
                put_folder(place / "entry", self._engines / key.digest)
        self.evict(self._max_bytes, keep=[key.digest])

    def _read_timing(self, subject: Mapping[str, Any]) -> bytes | None:
        """Under the lock."""
        newest = max(self._timing_folders(subject), key=_number, default=None)
        if newest is None:
            return None
        try:
            sealed = self._sealed(newest)
            if sealed is not None and sealed[0].subject != subject:
                raise DamagedError(f"{newest} holds the timing cache of another GPU or runtime")
        except DamagedError as error:
            self._put_aside(newest, error)
            return self._read_timing(subject)
        return None if sealed is None else sealed[1]

    def _write_timing(self, subject: Mapping[str, Any], data: bytes) -> None:
        """Under the lock; the former file goes only when the new one is safe."""
        former = self._timing_folders(subject)
        home = self._timing / _digest(subject)
        with _writing(self._root), staging(self._root) as place:
            make_folders(home)
            write_sealed(place / "timing", data, describe(data, subject, {}), self._mac_key)
            put_folder(place / "timing", home / str(max(map(_number, former), default=0) + 1))
            for folder in former:
                shutil.rmtree(folder)

    def _timing_folders(self, subject: Mapping[str, Any]) -> list[Path]:
        return [p for p in (self._timing / _digest(subject)).glob("*") if p.name.isdecimal()]

    def _put_aside(self, folder: Path, error: DamagedError) -> None:
        """Moves an entry that may not be used to the quarantine, of which only the newest are kept."""
        log.warning("engine file put aside: %s", error)
        with _writing(self._root):
            with suppress(FileNotFoundError):  # evicted meanwhile
                os.rename(folder, self._quarantine / f"{folder.name[:12]}-{secrets.token_hex(4)}")
            for old in self._aside()[_QUARANTINED:]:
                discard(self._root, old)

    def _aside(self) -> list[Path]:
        """What is in the quarantine, the newest first."""
        since = {}
        for folder in self._quarantine.iterdir():
            with suppress(FileNotFoundError):  # another process keeps only the newest, too
                since[folder] = folder.lstat().st_ctime_ns
        return sorted(since, key=since.__getitem__, reverse=True)


def mac_key_from(environment: Mapping[str, str]) -> bytes | None:
    """The secret key of SQUALL_ENGINE_KEY, or in the file that SQUALL_ENGINE_KEY_FILE names; None if neither is set.

    Raises:
        CacheError: it cannot be read, others may read or change the file, or it is too short to be a secret.
    """
    text, where = environment.get("SQUALL_ENGINE_KEY"), "SQUALL_ENGINE_KEY"
    if text is None and (name := environment.get("SQUALL_ENGINE_KEY_FILE")) is not None:
        text, where = _read_secret(Path(name)), name
    if text is None:
        return None
    secret = text.strip()
    if len(secret) < _MAC_KEY_CHARACTERS:
        raise CacheError(
            f"the secret key in {where} has {len(secret)} characters; expected {_MAC_KEY_CHARACTERS} or more"
        )
    return secret.encode()


def _read_secret(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        if mode & 0o007:
            raise CacheError(f"the secret key {path} has mode {stat.S_IMODE(mode):o}; expected none for others (o-rwx)")
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise CacheError(f"cannot read the secret key {path}: {error}") from error


def _refuse_unsafe(folder: Path, is_signed: bool) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise CacheError(f"{folder} is a link or no folder; the parts of an engine cache must lie in it")
    for place in () if is_signed else (folder, folder.parent):
        found = place.stat()
        if found.st_mode & stat.S_IWOTH or found.st_uid not in (0, os.geteuid()):
            raise CacheError(
                f"the engine cache {place} belongs to user {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}; "
                "engine files are programs, so nobody else may write there (chmod o-w), or set SQUALL_ENGINE_KEY"
            )


def _timing_subject(key: EngineKey) -> dict[str, Any]:
    tree = key.to_json()
    return {name: tree[name] for name in _OF_TIMING}


def _digest(subject: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()


def _number(folder: Path) -> int:
    return int(folder.name)


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    """Turns an OSError inside into a CacheError that names the path and, if the disk is full, the room left."""
    try:
        with room(root):
            yield
    except OSError as error:
        raise CacheError(f"cannot write {error.filename or root}: {error.strerror or error}") from error
