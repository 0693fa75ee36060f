"""Where squall keeps things on this machine, as the environment says."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from engines.eviction import LIMIT_BYTES
from pipelines.errors import ConfigError

if TYPE_CHECKING:  # help must not wait for ONNX
    from engines.registry import Registry


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


def open_registry(place: str | Path | None = None) -> "Registry":
    """The registry in a folder or at a URL, or the one that the environment names."""
    from engines import registry

    return registry.open_registry(place or registry_place(), cache_folder() / "releases", cache_limit_bytes())


def cache_limit_bytes() -> int:
    """Of the engine files, and of the fetched versions of models: SQUALL_CACHE_LIMIT, such as 5GB, or 20 GB.

    Raises:
        ConfigError: it is no size.
    """
    text = os.environ.get("SQUALL_CACHE_LIMIT")
    if text is None:
        return LIMIT_BYTES
    from pipelines.product import parse_size

    try:
        limit = parse_size(text)
    except ValueError:
        limit = None
    if not isinstance(limit, int) or limit <= 0:  # a number without a unit stays a text
        raise ConfigError(f"SQUALL_CACHE_LIMIT is {text!r}; expected a size such as 5GB or 500MB")
    return limit


def way_out(full: Path) -> str:
    """What to do about a path for which there is no room."""
    owners = {
        "SQUALL_CACHE": os.environ.get("SQUALL_CACHE") or str(_home("XDG_CACHE_HOME", "~/.cache")),
        "SQUALL_REGISTRY": registry_place(),
        "TMPDIR": tempfile.gettempdir(),
    }
    there = [name for name, folder in owners.items() if full.is_relative_to(folder)]
    other = f", or let {there[0]} name a folder with more" if there else ""
    return f"make room there{other}; then give the same command again"


def _home(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or default).expanduser() / "squall"
