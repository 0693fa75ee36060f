"""Objects by their URLs: one request each, connections that processes keep, and errors that say what to do."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import LocalStore, from_url

from pipelines.errors import ConfigError, OutputError

# engines/object_shelf.py says the same for registries: of the two leaves neither may import the other.
_AWS = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, for other stores than Amazon's, AWS_ENDPOINT_URL"
_AZURE = "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
_CREDENTIALS = {
    "s3": _AWS, "s3a": _AWS, "gs": "GOOGLE_APPLICATION_CREDENTIALS", "az": _AZURE, "azure": _AZURE, "abfs": _AZURE,
    "abfss": _AZURE,
}  # fmt: skip
OBJECT_STORES = tuple(_CREDENTIALS)
"""Schemes of URLs of buckets."""
_ON_THIS_MACHINE = ("file", "memory")
_EXAMPLES = "expected a folder, s3://BUCKET/PATH, gs://BUCKET/PATH or az://CONTAINER/PATH"
_RETRIES = {"max_retries": 4}
_WORDS = 300

Tag = Mapping[str, str]
"""What tells one content of an object from another, as the store has it."""


def is_url(place: str) -> bool:
    """True if a place is named by a URL, and not by a path."""
    return "://" in place


def can_hold(url: str) -> bool:
    """True if the URL is of a kind of store that lists what it holds and takes more."""
    scheme = url.partition("://")[0]
    return scheme in _CREDENTIALS or scheme in _ON_THIS_MACHINE


def locate(url: str) -> tuple[Any, str]:
    """The store of a bucket, and the key of a URL in it; nothing is read.

    Raises:
        ConfigError: no such kind of store, or the URL names no bucket, or has parts that no key has.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    odd = [part for part in key.split("/") if part in ("", ".", "..")] if key else []
    if odd:
        raise ConfigError(f"{url} has the part {odd[0]!r} between two slashes, or at its end; expected names")
    return connect(f"{scheme}://{'' if scheme == 'memory' else bucket}"), key


@lru_cache(maxsize=16)
def connect(bucket: str) -> Any:
    """The store of a bucket, by its URL; credentials come from the environment.

    `memory://` lasts as long as the process, `file://` is a folder used as if it were a bucket.
    """
    scheme, _, rest = bucket.partition("://")
    if bucket == "file://":
        return LocalStore()
    if scheme == "memory":
        return from_url("memory:///")
    if not rest or scheme not in _CREDENTIALS:
        reason = "; a plain web server takes no forecasts and lists none" if scheme in ("http", "https") else ""
        raise ConfigError(f"no forecasts can be kept at {bucket}{reason}; {_EXAMPLES}")
    try:
        return from_url(bucket, retry_config=_RETRIES)
    except (BaseError, ValueError) as error:
        need = _CREDENTIALS[scheme]
        raise ConfigError(f"{bucket} cannot be opened: {_said(error)}; expected {need} in the environment") from error


def get(url: str) -> bytes:
    """The bytes of an object.

    Raises:
        FileNotFoundError: there is none.
        OutputError: as all functions of this file, if the store gives no answer or refuses.
    """
    store, key = locate(url)
    with _asking(url):
        return bytes(store.get(key).bytes())


def get_tagged(url: str) -> tuple[bytes, Tag] | None:
    """The bytes of an object and what tells them from others, or None if there is none."""
    store, key = locate(url)
    try:
        with _asking(url):
            found = store.get(key)
            return bytes(found.bytes()), _tag(found.meta)
    except FileNotFoundError:
        return None


def put(url: str, data: bytes) -> None:
    """Puts a whole object, whatever is there."""
    store, key = locate(url)
    with _asking(url), _refusing_no_bucket():
        store.put(key, data)


def create(url: str, data: bytes) -> bool:
    """Puts a whole object where none is; False if another is there."""
    store, key = locate(url)
    try:
        with _asking(url), _refusing_no_bucket():
            store.put(key, data, mode="create", use_multipart=False)
    except FileExistsError:
        return _holds(url, data)  # a request whose answer was lost is repeated, and then finds itself
    return True


def swap(url: str, data: bytes, tag: Tag) -> bool:
    """Puts an object in place of the one with the tag; False if that is no more there.

    Raises:
        NotImplementedError: the store cannot.
    """
    store, key = locate(url)
    try:
        with _asking(url), _noticing_not_implemented():
            store.put(key, data, mode=dict(tag), use_multipart=False)
    except (FileExistsError, FileNotFoundError):
        return _holds(url, data)
    return True


def is_there(url: str) -> bool:
    """True if there is such an object."""
    return seconds_since_put(url) is not None


def seconds_since_put(url: str) -> float | None:
    """How old an object is, or None if there is none."""
    store, key = locate(url)
    try:
        with _asking(url):
            written: datetime = store.head(key)["last_modified"]
    except FileNotFoundError:
        return None
    return (datetime.now(UTC) - written).total_seconds()


def stamp(url: str) -> str | None:
    """What tells an object from others that are put there; None if there is none, or the store does not tell them."""
    store, key = locate(url)
    try:
        with _asking(url):
            tag: str | None = store.head(key).get("e_tag")
    except FileNotFoundError:
        return None
    return tag


def names(url: str) -> list[str]:
    """The next parts of all keys that lie below; none if nothing does."""
    store, key = locate(url)
    with _asking(url), _refusing_no_bucket():
        found = store.list_with_delimiter(key or None)
    keys = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
    return sorted({key.rstrip("/").rpartition("/")[2] for key in keys})


def keys(url: str) -> list[str]:
    """The rest of all keys that lie below, at any depth."""
    store, key = locate(url)
    with _asking(url), _refusing_no_bucket():
        found = sorted(entry["path"] for batch in store.list(key) for entry in batch)
    return [path.removeprefix(f"{key}/") for path in found]


def delete(url: str) -> None:
    """Removes an object, if it is there."""
    store, key = locate(url)
    try:
        with _asking(url):
            store.delete(key)
    except FileNotFoundError:
        pass


def delete_below(url: str) -> None:
    """Removes all objects that lie below; others may do so at the same time."""
    store, key = locate(url)
    while rest := keys(url):
        try:
            with _asking(url):
                store.delete([f"{key}/{path}" for path in rest])
        except FileNotFoundError:
            continue


def _holds(url: str, data: bytes) -> bool:
    try:
        return get(url) == data
    except FileNotFoundError:
        return False


def _tag(meta: Mapping[str, Any]) -> Tag:
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}


@contextmanager
def _refusing_no_bucket() -> Iterator[None]:
    """A list of nothing is empty, and a new object needs nothing: only the bucket can be not found."""
    try:
        yield
    except FileNotFoundError as error:
        raise ConnectionError("there is no such bucket") from error


@contextmanager
def _noticing_not_implemented() -> Iterator[None]:
    """What the client cannot do is a NotImplementedError already; what the server cannot is status 501."""
    try:
        yield
    except BaseError as error:
        if "501 Not Implemented" in str(error):
            raise NotImplementedError("the store does not compare what it replaces") from error
        raise


@contextmanager
def _asking(url: str) -> Iterator[None]:
    """Turns what a store may say inside into the errors of a file, or an OutputError with what it needs."""
    try:
        yield
    except (AlreadyExistsError, PreconditionError) as error:
        raise FileExistsError(f"another object is at {url}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no object {url}") from error
    except (BaseError, PermissionError, ConnectionError, TimeoutError) as error:
        credentials = _CREDENTIALS.get(url.partition("://")[0])
        need = f"; expected a bucket that is there, and {credentials} in the environment" if credentials else ""
        raise OutputError(f"no answer for {url}: {_said(error)}{need}") from error


def _said(error: Exception) -> str:
    """What an error says, without what it repeats for debugging."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())[:_WORDS]
