"""Versions of models that were fetched from elsewhere, kept by content on this machine; checked on each use.

When room is short the longest unused go, but none that a living process has opened. What nobody uses can be deleted at
any time; it is fetched again.

```
<root>/<sha256 of version.json>/    a version, as in a registry in a folder; its age is that of its last use
      /.locks/  /.staging/
```
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engines.base import ModelError, RegistryError
from engines.eviction import LIMIT_BYTES, Entry, to_evict
from engines.files import discard, make_folders, put_folder, staging, sweep, write_new
from engines.lock import LockError, hold, share
from engines.model import ModelPackage
from engines.release import RECORD, Release, as_json, open_release
from engines.room import DiskFullError, room

log = logging.getLogger(__name__)

_NAME = "[0-9a-f]" * 64
Fetch = Callable[[Path], None]


class Fetched:
    """Fetched versions below `root`, which the first one makes; safe for several processes at once.

    Args:
        max_bytes: of all versions together; those in use, and the one fetched last, stay whatever it takes.
    """

    def __init__(self, root: Path, max_bytes: int = LIMIT_BYTES) -> None:
        self.root, self._max_bytes = root, max_bytes

    def open(self, release: Release, fetch: Fetch) -> ModelPackage:
        """The model package of a version, every file of which was checked; fetched if it is not here, or damaged.

        It stays here until this process has ended.

        Args:
            fetch: puts the files of the version into a new folder; raises RegistryError if it gets others.
        """
        return self._found(release) or self._fetched(release, fetch)

    def check(self, release: Release, fetch: Fetch) -> None:
        """Fetches a version even if it is here; raises RegistryError unless it is as it was added."""
        with _keeping(self.root):
            with self._draft(release, fetch) as draft, suppress(FileExistsError):
                put_folder(draft, self._home(release))
            self.evict(self._max_bytes, keep=self._home(release).name)

    def entries(self) -> list[Entry]:
        """All versions that are here, by the names of their folders."""
        found = []
        for folder in sorted(self.root.glob(_NAME)):
            with suppress(OSError):  # evicted meanwhile
                size = sum(path.lstat().st_size for path in folder.rglob("*"))
                found.append(Entry(folder.name, size, folder.lstat().st_mtime_ns))
        return found

    def evict(self, limit_bytes: int, keep: str = "") -> list[str]:
        """Removes the longest unused versions until the rest fits; returns the names of their folders.

        Args:
            keep: stays whatever it takes, as do those that are in use.
        """
        gone, staying = list[str](), {keep}
        while chosen := to_evict(self.entries(), limit_bytes, staying):
            removed = [name for name in chosen if self._is_removed(name)]
            staying.update(set(chosen) - set(removed))
            gone += removed
        return gone

    def _home(self, release: Release) -> Path:
        return self.root / hashlib.sha256(as_json(release)).hexdigest()

    def _found(self, release: Release) -> ModelPackage | None:
        home = self._home(release)
        if home.is_symlink() or not home.is_dir():
            return None
        try:
            self._use(home)
            return open_release(home, release)
        except ModelError as error:
            log.warning("version %s of %s is fetched again: %s", release.version, release.name, error)
            return None

    def _fetched(self, release: Release, fetch: Fetch) -> ModelPackage:
        """As `open`; of several who want one version, one fetches it."""
        home = self._home(release)
        with _keeping(self.root):
            make_folders(self.root / ".locks")
            with hold(self.root / ".locks" / home.name):
                found = self._found(release)
                if found is not None:
                    return found
                with self._draft(release, fetch) as draft:
                    self._use(home)
                    discard(self.root, home)
                    with suppress(FileExistsError):  # `check` takes no lock
                        put_folder(draft, home)
            self.evict(self._max_bytes, keep=home.name)
        return open_release(home, release)

    def _use(self, home: Path) -> None:
        """Nobody evicts a version from now on, and it is the last used one."""
        with suppress(OSError, LockError):  # a cache that we may only read
            make_folders(self.root / ".locks")
            share(self._guard(home.name))
            os.utime(home)

    def _guard(self, name: str) -> Path:
        return self.root / ".locks" / f"{name}.use"

    def _is_removed(self, name: str) -> bool:
        """Removes a version; False if it is in use, or not ours to remove."""
        try:
            make_folders(self.root / ".locks")
            with hold(self._guard(name), timeout_seconds=0):
                discard(self.root, self.root / name)
        except (OSError, LockError) as error:
            log.info("version in %s stays: %s", self.root / name, error)
            return False
        return True

    @contextmanager
    def _draft(self, release: Release, fetch: Fetch) -> Iterator[Path]:
        """A folder with the version as it was fetched and checked now."""
        make_folders(self.root)
        sweep(self.root)
        with staging(self.root) as place:
            draft = place / "version"
            draft.mkdir()
            fetch(draft)
            write_new(draft / RECORD, as_json(release))
            open_release(draft, release)
            yield draft


@contextmanager
def _keeping(root: Path) -> Iterator[None]:
    try:
        with room(root):
            yield
    except DiskFullError:
        raise
    except (OSError, LockError) as error:
        raise RegistryError(f"cannot keep fetched versions in {root}: {error}") from error
