"""Which squall runs: its version and the content of its modules."""

import hashlib
from functools import cache
from pathlib import Path

from jobs import __version__

_PACKAGES = ("engines", "pipelines", "jobs")


@cache
def code_version() -> str:
    """As `0.1.0+5f0c..`; processes that loaded the same modules say the same."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(file for package in _PACKAGES for file in (root / package).rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:12]}"
