"""A folder with one file of bytes and a manifest that says what they are; written whole, checked when read.

```
<folder>/manifest.json    what the data was made from, its sha256 and size; for people too
        /manifest.mac     HMAC-SHA256 of manifest.json, where there is a secret key
        /data
```
"""

import hashlib
import hmac
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engines.base import EngineError
from engines.files import read_plain, write_new

MANIFEST, MAC, DATA = "manifest.json", "manifest.mac", "data"
_MANIFEST_BYTES = 1 << 20
_MAC_BYTES = 64


def _are_texts(notes: Any) -> bool:
    return isinstance(notes, dict) and all(isinstance(note, str) for note in notes.values())


_FIT: Mapping[str, Callable[[Any], bool]] = {  # what each field of a manifest must be
    "subject": lambda subject: isinstance(subject, dict),
    "sha256": lambda digest: isinstance(digest, str),
    "size_bytes": lambda size: type(size) is int and 0 <= size < 2**63,
    "made_at": lambda time: isinstance(time, str),
    "made_by": lambda host: isinstance(host, str),
    "notes": _are_texts,
}


class DamagedError(EngineError):
    """The contents of a sealed folder are not what its manifest says, or not from us."""


@dataclass(frozen=True)
class Manifest:
    """What sealed data is.

    Attributes:
        subject: what it was made from, with and for, in values that JSON knows.
        notes: what its maker says about it.
    """

    subject: Mapping[str, Any]
    sha256: str
    size_bytes: int
    made_at: str
    made_by: str
    notes: Mapping[str, str]


def describe(data: bytes, subject: Mapping[str, Any], notes: Mapping[str, str]) -> Manifest:
    """The manifest of data that was made here and now."""
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    digest = hashlib.sha256(data).hexdigest()
    return Manifest(subject, digest, len(data), made_at, socket.gethostname(), dict(notes))


def write_sealed(folder: Path, data: bytes, manifest: Manifest, mac_key: bytes | None) -> None:
    """Seals data into `folder`, which is new."""
    text = json.dumps(asdict(manifest), indent=1).encode()
    folder.mkdir(mode=0o755)
    write_new(folder / DATA, data)
    write_new(folder / MANIFEST, text)
    if mac_key is not None:
        write_new(folder / MAC, _mac(text, mac_key))


def read_sealed(folder: Path, mac_key: bytes | None) -> tuple[Manifest, bytes] | None:
    """Manifest and data; the sha256 was taken of exactly these bytes. None if there is no such folder.

    Raises:
        DamagedError: a file is missing, a link, too long or not what it should be (names it and what was found).
    """
    if not folder.is_symlink() and not folder.exists():
        return None
    try:
        manifest = read_manifest(folder, mac_key)
        data = read_plain(folder / DATA, manifest.size_bytes)
    except FileNotFoundError as error:
        if not folder.exists():  # evicted while it was being read
            return None
        raise DamagedError(f"{error.filename} is missing in {folder}") from error
    except (OSError, ValueError) as error:
        raise DamagedError(str(error)) from error
    found = hashlib.sha256(data).hexdigest()
    if found != manifest.sha256:
        raise DamagedError(f"{folder / DATA} has sha256 {found}; its manifest says {manifest.sha256}")
    return manifest, data


def read_manifest(folder: Path, mac_key: bytes | None) -> Manifest:
    """The manifest of a sealed folder, its MAC checked if there is a key.

    Raises:
        DamagedError: it is malformed, or its MAC is missing or wrong.
        FileNotFoundError, ValueError: it is missing, no plain file or too long.
    """
    path = folder / MANIFEST
    text = read_plain(path, _MANIFEST_BYTES)
    if mac_key is not None:
        _check_mac(folder, text, mac_key)
    try:
        manifest = Manifest(**json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} is no manifest: {error}") from error
    odd = [name for name, is_fit in _FIT.items() if not is_fit(getattr(manifest, name))]
    if odd:
        raise DamagedError(f"{path} is no manifest: {', '.join(odd)} cannot be")
    return manifest


def _check_mac(folder: Path, text: bytes, mac_key: bytes) -> None:
    try:
        found = read_plain(folder / MAC, _MAC_BYTES)
    except FileNotFoundError as error:
        raise DamagedError(f"{folder} has no MAC, but a secret key is set; it is not from us") from error
    if not hmac.compare_digest(found, _mac(text, mac_key)):
        raise DamagedError(f"{folder / MAC} does not fit the manifest and our secret key")


def _mac(text: bytes, mac_key: bytes) -> bytes:
    return hmac.new(mac_key, text, hashlib.sha256).hexdigest().encode()
