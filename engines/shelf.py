"""What the registry needs of the place where it lies: a few verbs, so that its rules are the same everywhere."""

from pathlib import Path
from typing import Protocol

from engines.model import ModelPackage
from engines.release import Release


class Shelf(Protocol):
    """A place for models. What lies there is named by parts, as `"rain", "aliases", "production", "000001.json"`.

    Every verb raises RegistryError where a part but the last is no name, or the place cannot be reached; and OSError or
    ValueError where something in it cannot be read or written.
    """

    @property
    def drafts(self) -> Path:
        """The folder in whose staging folders versions are drafted."""
        ...

    def where(self, *parts: str) -> str:
        """Path or URL, for messages."""
        ...

    def models(self) -> list[str]:
        """Names of what has versions."""
        ...

    def names(self, *parts: str) -> list[str]:
        """Names of all that lies there; none if there is no such place."""
        ...

    def read(self, *parts: str, limit_bytes: int) -> bytes:
        """The bytes of a file; FileNotFoundError if there is none, ValueError if there are more than `limit_bytes`."""
        ...

    def put(self, data: bytes, *parts: str) -> bool:
        """Puts a file where none is, whole or not at all; False if another was first."""
        ...

    def put_version(self, draft: Path, release: Release) -> bool:
        """Puts a version where none is, whole or not at all; False if another was first."""
        ...

    def place_of(self, release: Release, path: str) -> tuple[str, ...]:
        """Where a file of a version lies, to `read` it."""
        ...

    def open_version(self, release: Release) -> ModelPackage:
        """The model package of a version, in a folder of this machine, every file of which was checked.

        Raises:
            RegistryError: a file is damaged, missing, a link, or was never added (names it).
        """
        ...

    def check_version(self, release: Release) -> None:
        """As `open_version`, but what others would get is checked, not a copy on this machine."""
        ...
