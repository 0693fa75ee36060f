"""Versions of models that were fetched from elsewhere, kept by content on this machine; checked on each use.

Everything here can be deleted at any time; it is fetched again.

```
<root>/<sha256 of version.json>/    a version, as in a registry in a folder; it gets its name once all are whole
      /.locks/  /.staging/
```
"""

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engines.base import ModelError
from engines.files import discard, make_folders, put_folder, staging, sweep, write_new
from engines.lock import LockError, hold
from engines.model import ModelPackage
from engines.release import RECORD, RegistryError, Release, as_json, open_release

log = logging.getLogger(__name__)

Fetch = Callable[[Path], None]


class Fetched:
    """Fetched versions below `root`, which the first one makes; safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, release: Release, fetch: Fetch) -> ModelPackage:
        """The model package of a version, every file of which was checked; fetched if it is not here, or damaged.

        Args:
            fetch: puts the files of the version into a new folder; raises RegistryError if it gets others.
        """
        return self._found(release) or self._fetched(release, fetch)

    def check(self, release: Release, fetch: Fetch) -> None:
        """Fetches a version even if it is here; raises RegistryError unless it is as it was added."""
        with _keeping(self.root), self._draft(release, fetch) as draft, suppress(FileExistsError):
            put_folder(draft, self._home(release))

    def _home(self, release: Release) -> Path:
        return self.root / hashlib.sha256(as_json(release)).hexdigest()

    def _found(self, release: Release) -> ModelPackage | None:
        home = self._home(release)
        if home.is_symlink() or not home.is_dir():
            return None
        try:
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
                    discard(self.root, home)
                    with suppress(FileExistsError):  # `check` takes no lock
                        put_folder(draft, home)
        return open_release(home, release)

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
        yield
    except (OSError, LockError) as error:
        raise RegistryError(f"cannot keep fetched versions in {root}: {error}") from error
