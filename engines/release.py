"""A release: the folder of one version of a model, with the sha256 of every file in it; it never changes."""

import hashlib
import json
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import onnx

from engines.alias import ALIASES
from engines.base import RegistryError
from engines.files import copy_file, settle, write_new
from engines.graph import external_files, first_line, inside, parse_graph
from engines.model import ModelPackage, load_package
from engines.precision import Precision

RECORD = "version.json"

_OF_REGISTRY = ("cases", "graphs", "reports", RECORD)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Release:
    """A version of a model: who added it when and why, and the sha256 of each of its files by path."""

    name: str
    version: str
    who: str
    why: str
    at: str
    graph_sha256: str
    weights_sha256: str
    files: Mapping[str, str]

    @property
    def model_files(self) -> dict[str, str]:
        """The files but for reports."""
        return {path: digest for path, digest in self.files.items() if not path.startswith("reports/")}


def write_release(
    draft: Path, package: Path, name: str | None, extras: Mapping[str, Path], who: str, why: str
) -> Release:
    """A release, whole and safe on disk in the new folder `draft`; it is the copy that was checked.

    Args:
        package: folder of the model package.
        name: of the model; None = that of the contract.
        extras: other files, by their paths in the release.

    Raises:
        ModelError: the package or a graph is refused.
        RegistryError: its name or version is no name, or its weights lie where a release has other files.
    """
    names = ["model.onnx", "model.yaml", *sorted(_places_of_weights(external_files(parse_graph(package))))]
    sources = {path: inside(package, path) for path in names} | dict(extras)
    files = {path: _copy(source, draft / path) for path, source in sources.items()}
    copied = load_package(draft)
    for graph in sorted(path for path in files if path.startswith("graphs/")):
        _check_graph(draft / graph)
    model, version = checked_name(name or copied.contract.name, "model"), checked_version(copied.contract.version)
    release = Release(model, version, who, why, now(), copied.graph_sha256, copied.weights_sha256, files)
    write_new(draft / RECORD, as_json(release))
    return release


def parse_release(data: bytes, name: str, version: str) -> Release:
    """What a release says of itself in its record; its files are not read.

    Raises:
        ValueError, TypeError: damaged, or of another model or version.
    """
    release = Release(**parse_json(data))
    if (release.name, release.version) != (name, version):
        raise ValueError(f"it is of {release.name} {release.version}; expected {name} {version}")
    if not isinstance(release.files, dict):
        raise ValueError("its files are no table of paths")
    for path, digest in release.files.items():
        if not _is_inside(path) or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise ValueError(f"it names a file {path!r} with sha256 {digest!r}; expected a path inside, 64 hex digits")
    return release


def open_release(folder: Path, release: Release) -> ModelPackage:
    """The model package in a release, every file of which was checked.

    Raises:
        RegistryError: a file is damaged, missing, a link, or was never added (names it).
    """
    with reading(folder):
        _check_files(folder, release.files)
    package = load_package(folder)
    if (package.graph_sha256, package.weights_sha256) != (release.graph_sha256, release.weights_sha256):
        raise RegistryError(f"{folder} holds another graph or other weights than its {RECORD} says")
    return package


def is_name(text: str) -> bool:
    """True for what may name a model or version: no path, nothing hidden."""
    return _NAME.fullmatch(text) is not None


def checked_name(text: str, kind: str) -> str:
    """The text if it is a name; `kind` says of what, for the RegistryError if it is none."""
    if not is_name(text):
        raise RegistryError(f"{text!r} is no name of a {kind}; expected letters and digits, and . _ + - between them")
    return text


def checked_version(text: str) -> str:
    """The text if a version may be called so; else a RegistryError."""
    if text in ALIASES:
        raise RegistryError(f"a version cannot be called {text!r}, which is an alias")
    return checked_name(text, "version")


def parse_json(data: bytes) -> dict[str, Any]:
    """The JSON object in the bytes of a file; else a ValueError."""
    tree = json.loads(data)
    if not isinstance(tree, dict):
        raise ValueError("it holds no JSON object")
    return tree


def as_json(value: Any) -> bytes:
    """A dataclass as JSON for people."""
    return json.dumps(asdict(value), indent=1).encode()


def now() -> str:
    """The time in UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turns what may go wrong with a file inside into a RegistryError that names its path or URL."""
    try:
        yield
    except (ValueError, TypeError, RecursionError) as error:
        raise RegistryError(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise RegistryError(f"cannot read {path}: {error}") from error


def _is_inside(path: str) -> bool:
    """True for the path of a file in a release, as `graphs/half.onnx`: none that leads elsewhere, not the record."""
    return path != RECORD and "\0" not in path and not {"", ".", ".."} & set(path.split("/"))


def _places_of_weights(names: Iterable[str]) -> set[str]:
    """The files of weights by their paths in a release: `./w.bin` is `w.bin` there, as for whoever opens it.

    Raises:
        RegistryError: a path that no record may name, or that belongs to the registry.
    """
    places = {str(PurePosixPath(name)) for name in names}
    for place in sorted(places):
        if not _is_inside(place) or place.split("/")[0] in _OF_REGISTRY:
            raise RegistryError(
                f"the model keeps weights in {place!r}; expected a file beside it or in a folder of their own, without "
                f"'..' and none of {', '.join(_OF_REGISTRY)}"
            )
    return places


def _copy(source: Path, target: Path) -> str:
    """Copies a file, safe on disk, and gives the sha256 of the copy."""
    copy_file(source, target)
    settle(target)
    return _sha256(target)


def _check_graph(path: Path) -> None:
    """Raises RegistryError unless a file is a graph of one precision that needs no other file."""
    try:
        Precision.parse(path.stem)
        elsewhere = external_files(onnx.load(path, load_external_data=False))
    except Exception as error:  # protobuf's DecodeError has moved between releases
        raise RegistryError(f"{path.name} is no graph in a precision, as half.onnx: {first_line(error)}") from error
    if elsewhere:
        raise RegistryError(f"{path.name} keeps weights in {sorted(elsewhere)}; expected a graph in one file")


def _check_files(folder: Path, expected: Mapping[str, str]) -> None:
    found = {str(path.relative_to(folder)): path for path in _entries(folder)}
    strangers, missing = sorted(set(found) - set(expected) - {RECORD}), sorted(set(expected) - set(found))
    if strangers or missing:
        raise ValueError(f"it lacks {missing} and holds {strangers}, which were never added")
    for path, digest in expected.items():
        actual = _sha256(found[path])
        if actual != digest:
            raise ValueError(f"{path} has sha256 {actual}; expected {digest}")


def _entries(folder: Path) -> Iterator[Path]:
    """Everything below a folder but plain folders."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            yield from _entries(entry)
        else:
            yield entry


def _sha256(path: Path) -> str:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ValueError(f"{path} is a link or no plain file")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
