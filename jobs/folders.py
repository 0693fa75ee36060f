"""Where squall keeps things on this machine, as the environment says."""

import os
from pathlib import Path

from pipelines.errors import ConfigError


def cache_folder() -> Path:
    """What squall can make again: SQUALL_CACHE, or squall in the user's cache folder; made if need be.

    Raises:
        ConfigError: it cannot be made.
    """
    folder = Path(os.environ.get("SQUALL_CACHE") or _home("XDG_CACHE_HOME", "~/.cache"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the cache folder {folder} cannot be made: {error.strerror}; SQUALL_CACHE names another"
        ) from error
    return folder


def registry_place() -> str:
    """Folder or URL of the registry of models: SQUALL_REGISTRY, or squall/registry in the user's data folder."""
    return os.environ.get("SQUALL_REGISTRY") or str(_home("XDG_DATA_HOME", "~/.local/share") / "registry")


def releases_folder() -> Path:
    """Where versions of a registry on an object store are kept, once they are used on this machine."""
    return cache_folder() / "releases"


def _home(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or default).expanduser() / "squall"
