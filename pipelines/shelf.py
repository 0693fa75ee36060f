"""What publishing needs of the place where the cycles of a product lie, so that its rules are the same everywhere.

A shelf has names below its product, such as `2016/09/28/1530.zarr`; Zarr stores are named by whole paths or URLs.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np

from pipelines.layout import Layout

STAGING = ".staging"


@dataclass(frozen=True)
class Draft:
    """A cycle being written: small, picklable, invisible to readers until it is published.

    Attributes:
        staging: name of the work in progress.
        store: path or URL of the Zarr store that its shards are written into.
    """

    root: str
    product: str
    reference_time: np.datetime64
    staging: str
    store: str
    layout: Layout


Choose = Callable[[str | None], str | None]
"""The name that a pointer should have, given the one that it has; None leaves it."""


class Shelf(Protocol):
    """The place of one product. Verbs raise OSError or OutputError; inside `errors` it is always an OutputError."""

    home: str
    """Path or URL of the product."""
    suffix: str
    """Of the names of published cycles."""
    together: int
    """Files that are worth reading at the same time."""

    def names(self, *parts: str) -> list[str]:
        """Names of all that lies there; none if there is no such place."""
        ...

    def store_of(self, name: str) -> str | None:
        """The store of a published cycle; None if it is not there."""
        ...

    def latest(self) -> str | None:
        """The published cycle that the pointer names; None if there is none."""
        ...

    def point(self, choose: Choose) -> None:
        """Moves the pointer in one step; `choose` is asked again if another was first."""
        ...

    def begin(self, name: str, layout: Layout) -> tuple[str, str]:
        """New work of this process alone, for a cycle of that name: its own name, and a store with room for shards."""
        ...

    def describe(self, draft: Draft, files: Mapping[str, bytes]) -> None:
        """Writes files of the draft, by key, once."""
        ...

    def put(self, draft: Draft, key: str, *pieces: bytes) -> None:
        """Writes a file of the draft, whole, whatever is there."""
        ...

    def put_shard(self, draft: Draft, key: str, *pieces: bytes) -> None:
        """Writes a shard, whole; one that is there may stay. Who is late changes nothing that is published."""
        ...

    def claim(self, draft: Draft, name: str) -> str | None:
        """Publishes the draft under a name in one step, and gives its store; None if the name is taken: look again."""
        ...

    def abort(self, draft: Draft) -> None:
        """Removes what is not published of a draft, as far as it can."""
        ...

    def keys(self, store: str) -> list[str]:
        """The files of a store."""
        ...

    def read(self, store: str, key: str) -> BinaryIO:
        """A file of a store; FileNotFoundError if there is none."""
        ...

    def stamp(self, store: str, key: str) -> str | None:
        """What tells a file from all others that were or will be put there; None if there is none."""
        ...

    def seconds_untouched(self, work: str) -> float:
        """How long nobody has written anything for a piece of work, as far as it shows."""
        ...

    def clear(self, work: str) -> bool:
        """Removes work that was left behind. False if it was gone.

        No reader sees half a cycle, and a living writer whose work is cleared by mistake fails to publish it.
        """
        ...

    def remove(self, name: str) -> bool:
        """Removes a published cycle; it leaves in one step. False if it was gone."""
        ...

    def keep(self, name: str, data: bytes) -> None:
        """Writes a file beside the cycles, whole and once."""
        ...

    def check(self) -> None:
        """Raises OutputError if a forecast cannot be written here, as far as it can be told."""
        ...

    def free_bytes(self) -> int | None:
        """Room that is left, where there is a limit."""
        ...

    def errors(self, work: str = "") -> AbstractContextManager[None]:
        """Turns any OSError inside into an OutputError that names the place: of the product, or of some work."""
        ...
