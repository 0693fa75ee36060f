"""Cycles on an object store, which has no folders and no rename: only objects, put whole, also only where none is.

```
<root>/<product>/2016/09/28/1530.<random>.zarr/...   the store of one run, written once
                           /1530.json                names the store: it alone publishes the cycle
                /latest.json                         the same of the newest cycle
                /.staging/<work>                     names the store of a draft, or of what is being removed
```
docs/decisions/024-publish-by-claim.md
"""

import io
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import BinaryIO

from pipelines import objects
from pipelines.claim import Claim, read_claim
from pipelines.errors import OutputError
from pipelines.layout import Layout
from pipelines.shelf import STAGING, Choose, Draft
from pipelines.staging import new_work
from pipelines.threads import map_on

LATEST = "latest.json"
_PROBE = ".put-if-absent"
_TOGETHER = 16


class ObjectShelf:
    """The cycles of one product below a URL."""

    suffix = ".json"
    together = _TOGETHER

    def __init__(self, url: str) -> None:
        self.home = url

    def names(self, *parts: str) -> list[str]:
        """The next parts of all keys that begin with these."""
        return objects.names(self._url(*parts))

    def store_of(self, name: str) -> str | None:
        """The URL of the store that the claim names."""
        claim = self._claim_at(self._url(name))
        return None if claim is None else self._url(claim.store)

    def latest(self) -> str | None:
        """The claim that the pointer names, if that is there."""
        found = objects.get_tagged(self._url(LATEST))
        return None if found is None else self._standing(found[0])

    def point(self, choose: Choose) -> None:
        """Puts the pointer in place of the one that was looked at, or where none was.

        Where the store cannot compare (a folder used as a bucket), what was put is looked at again: another writer
        may have had the pointer go back for a moment.
        """
        while True:
            found = objects.get_tagged(self._url(LATEST))
            name = choose(None if found is None else self._standing(found[0]))
            if name is None:
                return
            with suppress(FileNotFoundError):  # the cycle was removed since: another is the newest
                if self._move(objects.get(self._url(name)), None if found is None else found[1]):
                    return

    def begin(self, name: str, layout: Layout) -> tuple[str, str]:
        """A marker that names the store, before anything is in it."""
        _check_claims_once(self.home)
        work = new_work(name.replace("/", ""))
        store = f"{name.removesuffix(self.suffix)}.{work.rpartition('~')[2]}.zarr"
        self._mark(work, store)
        return work, self._url(store)

    def describe(self, draft: Draft, files: Mapping[str, bytes]) -> None:
        """Some at the same time."""
        urls = [f"{draft.store}/{key}" for key in files]
        map_on(min(_TOGETHER, len(urls)), objects.put, urls, files.values())

    def put(self, draft: Draft, key: str, *pieces: bytes) -> None:
        """Once the marker was seen: of a draft that is published nothing changes any more."""
        self._refuse_gone(draft)
        objects.put(f"{draft.store}/{key}", b"".join(pieces))

    def put_shard(self, draft: Draft, key: str, *pieces: bytes) -> None:
        """Where none is: a shard is the same whoever makes it, and the first one stays.

        The marker is asked for so that who is late leaves nothing that nobody would remove; put where none is, a
        shard that comes after that changes nothing either.
        """
        self._refuse_gone(draft)
        objects.create(f"{draft.store}/{key}", b"".join(pieces))

    def claim(self, draft: Draft, name: str) -> str | None:
        """Puts the claim where none is, then looks whether the marker still stands.

        Who clears work removes its marker first and then looks for a claim: one of both sees the other.
        """
        if not objects.create(self._url(name), Claim(name, self._key(draft.store)).as_json()):
            return None
        if not objects.is_there(self._marker(draft.staging)):
            objects.delete(self._url(name))
            raise _gone(draft)
        with suppress(OutputError):  # it is published: the next sweep removes the marker
            self._unmark(draft.staging)
        return draft.store

    def abort(self, draft: Draft) -> None:
        """Removes the store unless it is published, and its marker; a store that gives no answer leaves both."""
        with suppress(OSError, OutputError):
            if objects.is_there(self._marker(draft.staging)):
                self._delete_unclaimed(self._key(draft.store))
                self._unmark(draft.staging)

    def keys(self, store: str) -> list[str]:
        """The rest of all keys below it."""
        return objects.keys(store)

    def read(self, store: str, key: str) -> BinaryIO:
        """The whole object, in memory."""
        return io.BytesIO(objects.get(f"{store}/{key}"))

    def stamp(self, store: str, key: str) -> str | None:
        """The tag of the object."""
        return objects.stamp(f"{store}/{key}")

    def seconds_untouched(self, work: str) -> float:
        """Since its marker was put."""
        return objects.seconds_since_put(self._marker(work)) or 0.0

    def clear(self, work: str) -> bool:
        """Takes the marker over, then removes the store that it names unless it is published."""
        marked = self._claim_at(self._marker(work))
        if marked is None:
            return False
        with self._removing(marked.store):
            self._unmark(work)
            self._delete_unclaimed(marked.store)
        return True

    def remove(self, name: str) -> bool:
        """Marks the store, removes the claim, then the store."""
        claim = self._claim_at(self._url(name))
        if claim is None:
            return False
        with self._removing(claim.store):
            objects.delete(self._url(name))
            self._delete(claim.store)
        return True

    def keep(self, name: str, data: bytes) -> None:
        """One request."""
        objects.put(self._url(name), data)

    def check(self) -> None:
        """That the bucket answers and puts only where nothing is."""
        _check_claims(self.home)

    def free_bytes(self) -> int | None:
        """No limit is known."""
        return None

    @contextmanager
    def errors(self, work: str = "") -> Iterator[None]:
        """With the URL."""
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write {self._marker(work) if work else self.home}: {error}") from error

    def _url(self, *parts: str) -> str:
        return "/".join((self.home, *parts))

    def _key(self, url: str) -> str:
        return url.removeprefix(f"{self.home}/")

    def _marker(self, work: str) -> str:
        return self._url(STAGING, work)

    def _claim_at(self, url: str) -> Claim | None:
        try:
            return read_claim(url, objects.get(url))
        except FileNotFoundError:
            return None

    def _standing(self, pointer: bytes) -> str | None:
        """The cycle that the pointer names, if it is there; a damaged pointer names none, and is put anew."""
        try:
            name = read_claim(self._url(LATEST), pointer).cycle
        except OutputError:
            return None
        return name if objects.is_there(self._url(name)) else None

    def _move(self, claim: bytes, tag: objects.Tag | None) -> bool:
        """True if the pointer is moved for good."""
        if tag is None:
            return objects.create(self._url(LATEST), claim)
        try:
            return objects.swap(self._url(LATEST), claim, tag)
        except NotImplementedError:
            objects.put(self._url(LATEST), claim)
            return False

    def _mark(self, work: str, store: str) -> None:
        objects.put(self._marker(work), Claim("", store).as_json())

    def _refuse_gone(self, draft: Draft) -> None:
        if not objects.is_there(self._marker(draft.staging)):
            raise _gone(draft)

    def _unmark(self, work: str) -> None:
        objects.delete(self._marker(work))

    @contextmanager
    def _removing(self, store: str) -> Iterator[None]:
        """Marks a store as ours to remove, so that the next sweep goes on where this process is killed."""
        work = new_work("discarded")
        self._mark(work, store)
        yield
        self._unmark(work)

    def _delete_unclaimed(self, store: str) -> None:
        if not self._is_claimed(store):
            self._delete(store)

    def _is_claimed(self, store: str) -> bool:
        day, _, name = store.rpartition("/")
        clock = name.partition(".")[0]
        claims = [n for n in self.names(day) if n.endswith(self.suffix) and n.partition(".")[0] == clock]
        return self._url(store) in [self.store_of(f"{day}/{claim}") for claim in claims]

    def _delete(self, store: str) -> None:
        """The root's metadata first: who comes too late finds no store, rather than one without shards."""
        objects.delete(self._url(store, "zarr.json"))
        objects.delete_below(self._url(store))


def _gone(draft: Draft) -> OutputError:
    return OutputError(f"cannot write {draft.store}: its draft is gone, published or removed by another process")


def follow(url: str) -> str:
    """The store that a claim or the pointer names (FileNotFoundError if it is not there), any other URL as it is."""
    if not url.endswith(ObjectShelf.suffix):
        return url.rstrip("/")
    claim = read_claim(url, objects.get(url))
    return url.removesuffix(LATEST if url.endswith(f"/{LATEST}") else claim.cycle) + claim.store


def find_store(url: str) -> str:
    """The store at a URL, followed; FileNotFoundError if there is none."""
    store = follow(url)
    if not objects.is_there(f"{store}/zarr.json"):
        raise FileNotFoundError(url)
    return store


def _check_claims(home: str) -> None:
    """Raises OutputError if the store does not heed put-if-absent: of two writers of a cycle both would win."""
    probe = f"{home}/{_PROBE}"
    if all(objects.create(probe, secrets.token_hex(8).encode()) for _ in range(2)):
        raise OutputError(f"the store of {home} overwrites where it should put only if nothing is there")


_check_claims_once = lru_cache(maxsize=None)(_check_claims)
