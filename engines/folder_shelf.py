"""A registry in a folder: versions are folders renamed into place once, moves are files linked where none is."""

import os
from pathlib import Path

from engines.base import RegistryError
from engines.files import make_folders, put_file, put_folder, read_plain, staging
from engines.model import ModelPackage
from engines.release import Release, checked_name, is_name, open_release


class FolderShelf:
    """The models below `root`, which the first version makes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def drafts(self) -> Path:
        """The root: a folder can only be renamed within a file system."""
        return self._root

    def where(self, *parts: str) -> str:
        """The path."""
        return str(self._root.joinpath(*parts))

    def models(self) -> list[str]:
        """Names of the folders that have versions."""
        return [path.parent.name for path in self._root.glob("*/versions") if is_name(path.parent.name)]

    def names(self, *parts: str) -> list[str]:
        """Names of all files and folders in a folder."""
        folder = self._place(*parts)
        return os.listdir(folder) if folder.is_dir() else []

    def read(self, *parts: str, limit_bytes: int) -> bytes:
        """The bytes of a plain file; links are not followed."""
        *folders, file = parts
        return read_plain(self._place(*folders) / file, limit_bytes)

    def put(self, data: bytes, *parts: str) -> bool:
        """Puts a file where none is, with link(2)."""
        *folders, file = parts
        home = self._place(*folders)
        make_folders(home)
        with staging(self._root) as place:
            try:
                put_file(data, home / file, place)
            except FileExistsError:
                return False
        return True

    def put_version(self, draft: Path, release: Release) -> bool:
        """Renames the draft, which must lie below the root."""
        home = self._place(release.name, "versions")
        make_folders(home)
        try:
            put_folder(draft, home / release.version)
        except FileExistsError:
            return False
        return True

    def place_of(self, release: Release, path: str) -> tuple[str, ...]:
        """In the folder of the version."""
        return release.name, "versions", release.version, *path.split("/")

    def open_version(self, release: Release) -> ModelPackage:
        """The folder of the version itself."""
        return open_release(self._place(release.name, "versions", release.version), release)

    def check_version(self, release: Release) -> None:
        """As `open_version`."""
        self.open_version(release)

    def _place(self, *parts: str) -> Path:
        """A place below the root; no part of its path is a link, or leads elsewhere by its name."""
        folder = self._root
        for part in parts:
            folder = folder / checked_name(part, "folder of a registry")
            if folder.is_symlink():
                raise RegistryError(f"{folder} is a link; everything in a registry must lie in it")
        return folder
