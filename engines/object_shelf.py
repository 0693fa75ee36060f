"""A registry on an object store, which has no folders and no rename: only objects, put whole where none is.

The files of a version are named by their content and put first; its `version.json`, put last, makes it a version. What
a killed writer leaves is a few files that no version names, and that the next try uses.

```
<url>/<model>/files/<sha256>                      a file of one or more versions
             /versions/<version>/version.json     which files, and under which paths
             /reports/  /aliases/                 as in a folder
```
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import from_url

from engines.base import RegistryError
from engines.eviction import LIMIT_BYTES
from engines.fetched import Fetched
from engines.files import settle
from engines.model import ModelPackage
from engines.release import RECORD, Release, as_json, checked_name, reading

# pipelines/objects.py says the same for forecasts: of the two leaves neither may import the other.
_AWS = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, for other stores than Amazon's, AWS_ENDPOINT_URL"
_AZURE = "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
_CREDENTIALS = {
    "s3": _AWS, "s3a": _AWS, "gs": "GOOGLE_APPLICATION_CREDENTIALS", "az": _AZURE, "azure": _AZURE, "abfs": _AZURE,
    "abfss": _AZURE,
}  # fmt: skip
_EXAMPLES = "expected a folder, s3://BUCKET/PATH, gs://BUCKET/PATH or az://CONTAINER/PATH"

_PROBE = ".put-if-absent"
_RETRIES = {"max_retries": 4}
_PART_BYTES = 1 << 24  # of one request: obstore ends each after 30 s, its whole answer included
_WORDS = 300


@lru_cache(maxsize=16)
def connect(url: str) -> Any:
    """The object store at a URL; nothing is read. `memory:///NAME` lasts as long as the process.

    Raises:
        RegistryError: no such kind of store, or the URL names no bucket.
    """
    scheme = url.partition("://")[0]
    if scheme == "memory":
        return from_url("memory:///")
    if scheme not in _CREDENTIALS:
        reason = "; a plain web server does not list what it holds" if scheme in ("http", "https") else ""
        raise RegistryError(f"no registry can be kept at {url}{reason}; {_EXAMPLES}")
    try:
        return from_url(url, retry_config=_RETRIES)
    except (BaseError, ValueError) as error:
        raise RegistryError(f"{url} cannot be opened: {_said(error)}; {_EXAMPLES}") from error


class ObjectShelf:
    """The models below a URL; versions that are used are fetched into the folder `cache`, `cache_bytes` at most."""

    def __init__(self, store: Any, url: str, cache: Path, cache_bytes: int = LIMIT_BYTES) -> None:
        self._store, self._url, self._fetched = store, url.rstrip("/"), Fetched(cache, cache_bytes)

    @property
    def drafts(self) -> Path:
        """The cache."""
        return self._fetched.root

    def where(self, *parts: str) -> str:
        """The URL."""
        return "/".join((self._url, *parts))

    def models(self) -> list[str]:
        """Names of the prefixes that have versions."""
        return [name for name in self.names() if not name.startswith(".") and self.names(name, "versions")]

    def names(self, *parts: str) -> list[str]:
        """The next parts of all keys that begin with these."""
        prefix = _prefix(parts)
        with self._asking(prefix):
            found = self._store.list_with_delimiter(prefix or None)
        keys = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return sorted({key.rstrip("/").rpartition("/")[2] for key in keys})

    def read(self, *parts: str, limit_bytes: int) -> bytes:
        """The bytes of an object."""
        key = _key(parts)
        with self._asking(key):
            found = self._store.get(key)
            size = found.meta["size"]
            if size > limit_bytes:
                raise ValueError(f"{self.where(key)} has {size} bytes; expected at most {limit_bytes}")
            return bytes(found.bytes())

    def put(self, data: bytes, *parts: str) -> bool:
        """Puts an object where none is, with If-None-Match or what the store has for it."""
        key = _key(parts)
        try:
            with self._asking(key):
                self._store.put(key, data, mode="create")
        except FileExistsError:
            return self._holds(key, data)  # a request that had succeeded may be repeated, and then finds itself
        return True

    def put_version(self, draft: Path, release: Release) -> bool:
        """Puts the files, then the record that makes them a version."""
        home = (release.name, "versions", release.version)
        if self.names(*home):
            return False
        self._check_store()
        for path in release.files:
            key = _key(self.place_of(release, path))
            with self._asking(key):
                self._store.put(key, draft / path)  # whatever is there has the same contents, or is damaged
        return self.put(as_json(release), *home, RECORD)

    def place_of(self, release: Release, path: str) -> tuple[str, ...]:
        """By its content."""
        return release.name, "files", release.files[path]

    def open_version(self, release: Release) -> ModelPackage:
        """The fetched version, in the cache."""
        return self._fetched.open(release, lambda folder: self._fetch(release, folder))

    def check_version(self, release: Release) -> None:
        """Fetches the version, even if it is in the cache."""
        self._fetched.check(release, lambda folder: self._fetch(release, folder))

    def _fetch(self, release: Release, folder: Path) -> None:
        for path, digest in release.files.items():
            key = _key(self.place_of(release, path))
            with reading(f"{self.where(key)}, {path} of version {release.version}"):
                found = self._download(key, folder / path)
                if found != digest:
                    raise ValueError(f"it has sha256 {found}; expected that of its name")

    def _download(self, key: str, target: Path) -> str:
        """Copies an object into a new file, safe on disk, and gives its sha256."""
        target.parent.mkdir(parents=True, exist_ok=True)
        content = hashlib.sha256()
        with open(target, "xb") as file:
            for chunk in self._chunks(key):
                content.update(chunk)
                file.write(chunk)
        settle(target)
        return content.hexdigest()

    def _chunks(self, key: str) -> Iterator[Any]:
        with self._asking(key):
            size = self._store.head(key)["size"]
            for start in range(0, size, _PART_BYTES):
                yield self._store.get_range(key, start=start, end=min(start + _PART_BYTES, size))

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.read(*key.split("/"), limit_bytes=len(data)) == data
        except (FileNotFoundError, ValueError):
            return False

    def _check_store(self) -> None:
        """Raises RegistryError if the store does not heed put-if-absent: of two moves at once one would be lost."""
        for _ in range(2):
            try:
                with self._asking(_PROBE):
                    self._store.put(_PROBE, b"", mode="create")
            except FileExistsError:
                return
        raise RegistryError(f"the store of {self._url} overwrites where it should put only if nothing is there")

    @contextmanager
    def _asking(self, key: str) -> Iterator[None]:
        """Turns what a store may say inside into the errors of a file, or a RegistryError with what it needs."""
        try:
            yield
        except AlreadyExistsError as error:
            raise FileExistsError(f"{self.where(key)} is there already") from error
        except FileNotFoundError as error:
            raise FileNotFoundError(f"there is no object {self.where(key)}") from error
        except (BaseError, PermissionError, ConnectionError, TimeoutError) as error:
            credentials = _CREDENTIALS.get(self._url.partition("://")[0])
            need = f"; expected a bucket that is there, and {credentials} in the environment" if credentials else ""
            raise RegistryError(f"no answer for {self.where(key)}: {_said(error)}{need}") from error


def _prefix(parts: tuple[str, ...]) -> str:
    return "/".join(checked_name(part, "folder of a registry") for part in parts)


def _key(parts: tuple[str, ...]) -> str:
    """The key of an object; its last part is a name that the registry made or found."""
    return "/".join((_prefix(parts[:-1]), parts[-1]))


def _said(error: Exception) -> str:
    """What an error says, without what it repeats for debugging."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())[:_WORDS]
