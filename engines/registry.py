"""Models and their versions, which never change, and aliases that say which version is in use.

An alias is its history: numbered files, of which the highest counts. To promote or roll back is to put one more file
where none is yet, so it happens whole or not at all, of two at once one is second, and nothing is ever lost. No lock
is taken. The rules are here and, of aliases, in engines/alias.py; how all lies in a folder or on an object store is the
work of a shelf.
docs/decisions/013-registry.md

In a folder (engines/object_shelf.py says what differs on an object store):

```
<root>/<model>/versions/<version>/version.json        who added it, sha256 of every file
                                 /model.onnx, model.yaml, files with weights
                                 /graphs/              the model in other precisions, such as half.onnx
                                 /cases/  /reports/    golden cases; reports that came with it
              /reports/<version>/000001-<sha256>-<file>    reports that came later
              /aliases/<alias>/000001.json            a move of the alias
```
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engines.alias import ALIASES, Move, checked_alias, promoted, rolled_back
from engines.base import RegistryError
from engines.eviction import LIMIT_BYTES
from engines.files import make_folders, staging, sweep
from engines.folder_shelf import FolderShelf
from engines.lock import LockError
from engines.model import ModelPackage
from engines.release import (
    RECORD,
    Release,
    as_json,
    checked_name,
    checked_version,
    is_name,
    now,
    parse_json,
    parse_release,
    reading,
    write_release,
)
from engines.room import DiskFullError, room
from engines.shelf import Shelf

__all__ = ["Move", "Registry", "RegistryError", "Release", "open_registry"]

_MOVE, _LATER_REPORT = re.compile(r"(\d{6,})\.json"), re.compile(r"(\d{6,})-([0-9a-f]{64})-(.+)")
_JSON_BYTES, _REPORT_BYTES = 1 << 24, 1 << 28


def open_registry(place: str | Path, cache: Path, cache_bytes: int = LIMIT_BYTES) -> "Registry":
    """The registry in a folder, or at the URL of an object store: s3://, gs://, az://.

    Args:
        cache: folder for versions of an object store that are used on this machine.
        cache_bytes: of all versions there.

    Raises:
        RegistryError: no registry can be kept at such a URL.
    """
    scheme, is_url, path = str(place).partition("://")
    if not is_url:
        return Registry(Path(place))
    if scheme == "file":
        return Registry(Path(path))
    from engines.object_shelf import ObjectShelf, connect

    return Registry(ObjectShelf(connect(str(place)), str(place), cache, cache_bytes))


class Registry:
    """The models on a shelf, or below a folder, which the first `add` makes."""

    def __init__(self, place: Shelf | Path) -> None:
        self._shelf: Shelf = FolderShelf(place) if isinstance(place, Path) else place

    def add(
        self,
        package: Path,
        name: str | None = None,
        reports: Iterable[Path] = (),
        cases: Iterable[Path] = (),
        who: str = "",
        why: str = "",
        graphs: Iterable[Path] = (),
    ) -> Release:
        """The version that now holds a copy of the model package, numbered as its contract says.

        Adding the same package again, or with fewer graphs or cases, changes nothing; other reports are kept as later
        ones.

        Args:
            package: folder of the model package.
            name: of the model; None = that of the contract.
            reports, cases: files that are kept with it under their own names.
            graphs: the model in other precisions, each file called as its precision: `half.onnx`.

        Raises:
            ModelError: the package or a graph is refused.
            RegistryError: the version stands with other contents, a name is no name, or the disk refuses.
            DiskFullError: there is no room for a copy; nothing was added.
        """
        reports = list(reports)
        extras = _extras("reports", reports) | _extras("cases", cases) | _extras("graphs", graphs)
        drafts = self._shelf.drafts
        with self._writing():
            make_folders(drafts)
            sweep(drafts)
            with staging(drafts) as place:
                draft = place / "version"
                release = write_release(draft, Path(package), name, extras, who, why)
                is_new = self._shelf.put_version(draft, release)
            return release if is_new else self._same(release, reports)

    def attach(self, name: str, version: str, report: Path) -> None:
        """Keeps a report that came after the version was added; of each file name the newest counts."""
        came_with = self.release(name, version).files
        file = checked_name(report.name, "report")
        with reading(report):
            data = report.read_bytes()
        digest, later = hashlib.sha256(data).hexdigest(), self._later_reports(name, version)
        known = [came_with.get(f"reports/{file}"), *(row[1] for row in later if row[2] == file)]
        if known[-1] == digest:
            return
        number = 1 + max((row[0] for row in later), default=0)
        with self._writing():
            self._shelf.put(data, name, "reports", version, _report_name(number, digest, file))

    def models(self) -> list[str]:
        """Names of all models."""
        with reading(self._shelf.where()):
            return sorted(name for name in self._shelf.models() if is_name(name))

    def versions(self, name: str) -> list[Release]:
        """All versions of a model, in the order in which they were added."""
        found = [self.release(name, version) for version in self._versions(name)]
        return sorted(found, key=lambda release: (release.at, release.version))

    def release(self, name: str, version: str) -> Release:
        """What the registry knows of a version; the files of the version are not read."""
        home = (name, "versions", checked_version(version))
        there = self._versions(name)
        if version not in there:
            known = ", ".join(sorted(there))
            raise RegistryError(f"no version {version!r} in {self._shelf.where(*home[:2])}; there is {known}")
        with reading(self._shelf.where(*home, RECORD)):
            return parse_release(self._shelf.read(*home, RECORD, limit_bytes=_JSON_BYTES), name, version)

    def find(self, name: str, version: str) -> Release | None:
        """As `release`; None if there is no such model or version."""
        is_there = checked_version(version) in self._names(name, "versions")
        return self.release(name, version) if is_there else None

    def gates(self, name: str, version: str) -> dict[str, bool]:
        """The newest gate reports, `gate*.json`, by file name: True for the verdict go."""
        release = self.release(name, version)
        came_with = sorted(path for path in release.files if path.startswith("reports/"))
        reports = {path.removeprefix("reports/"): (self._shelf.place_of(release, path), release.files[path])
                   for path in came_with}  # fmt: skip
        for number, digest, file in self._later_reports(name, version):
            reports[file] = (name, "reports", version, _report_name(number, digest, file)), digest
        gates = {file: report for file, report in reports.items() if re.fullmatch(r"gate.*\.json", file)}
        return {file: self._is_go(place, digest) for file, (place, digest) in gates.items()}

    def history(self, name: str, alias: str) -> list[Move]:
        """All moves of an alias, oldest first; the last one says where it stands."""
        return [self._read_move(name, alias, number) for number in self._numbers(name, alias)]

    def current(self, name: str, alias: str = "production") -> Move | None:
        """The move that says where an alias stands; None if it was never promoted."""
        numbers = self._numbers(name, alias)
        return self._read_move(name, alias, numbers[-1]) if numbers else None

    def resolve(self, name: str, reference: str = "production") -> ModelPackage:
        """The model package of a version, or of the version at which an alias stands; every file was checked.

        Raises:
            RegistryError: there is none, or a file is damaged, missing, a link, or was never added (names it).
        """
        if reference not in ALIASES:
            return self._shelf.open_version(self.release(name, reference))
        move = self.current(name, reference)
        if move is None:
            known = ", ".join(release.version for release in self.versions(name))
            raise RegistryError(f"no version of {name} is in {reference}; promote one of {known}")
        return self._shelf.open_version(self.release(name, move.version))

    def promote(
        self, name: str, version: str, alias: str = "production", who: str = "", why: str = "", force: bool = False
    ) -> Move:
        """Moves an alias to a version, in one step; where it stands there already, nothing changes.

        Raises:
            RegistryError: the version is damaged, or has no passing gate and is not forced with a reason.
        """
        self._shelf.check_version(self.release(name, version))
        gates = self.gates(name, version)
        is_gated = any(gates.values())
        if not is_gated and not (force and why.strip()):
            found = f"{', '.join(gates)} of it say no-go" if gates else "it has no gate report"
            need = "to force it, give a reason" if force else "run the gate, or force it with a reason"
            raise RegistryError(f"version {version} of {name} has no passing gate: {found}; {need}")
        return self._move(name, alias, lambda h: promoted(h, alias, version, who, why, now(), not is_gated))

    def rollback(
        self, name: str, alias: str = "production", who: str = "", why: str = "", only_from: str | None = None
    ) -> Move:
        """Moves an alias one step back, in one step.

        Args:
            only_from: nothing changes unless the alias stands at this version: several who see one fault go one step.

        Raises:
            RegistryError: there is nothing to go back to, or the version there is damaged.
        """

        def back(history: Sequence[Move]) -> Move:
            if only_from is not None and history and history[-1].version != only_from:
                return history[-1]
            move = rolled_back(history, who, why, now())
            self._shelf.check_version(self.release(name, move.version))
            return move

        return self._move(name, alias, back)

    def _move(self, name: str, alias: str, decide: Callable[[Sequence[Move]], Move]) -> Move:
        """Writes the move that `decide` makes of the history; decides again if another was first."""
        while True:
            history = self.history(name, alias)
            move = decide(history)
            if history and move == history[-1]:
                return move
            with self._writing():
                if self._shelf.put(as_json(move), name, "aliases", alias, _move_name(move.number)):
                    return move

    def _same(self, fresh: Release, reports: Iterable[Path]) -> Release:
        """The version that stands, if it holds the same model; the reports are attached."""
        there = self.release(fresh.name, fresh.version)
        ours, theirs = fresh.model_files, there.model_files
        unasked = {path for path in theirs if path.startswith(("graphs/", "cases/"))} - set(ours)
        differing = sorted(path for path in (ours | theirs).keys() - unasked if ours.get(path) != theirs.get(path))
        if differing:
            how = "with another" if differing[0] in theirs else "without"
            raise RegistryError(
                f"version {there.version} of {there.name} stands {how} {differing[0]}; a version never changes, so "
                "give the model.yaml a new version"
            )
        for report in reports:
            self.attach(there.name, there.version, report)
        return there

    def _is_go(self, place: Sequence[str], digest: str) -> bool:
        """True if a gate report, unchanged since it was added, has the verdict go."""
        with reading(self._shelf.where(*place)):
            data = self._shelf.read(*place, limit_bytes=_REPORT_BYTES)
            if hashlib.sha256(data).hexdigest() != digest:
                raise ValueError("it was changed after it was added")
            tree = json.loads(data)
        return isinstance(tree, dict) and tree.get("verdict") == "go"

    def _read_move(self, name: str, alias: str, number: int) -> Move:
        place = (name, "aliases", alias, _move_name(number))
        with reading(self._shelf.where(*place)):
            move = Move(**parse_json(self._shelf.read(*place, limit_bytes=_JSON_BYTES)))
        if (move.alias, move.number) != (alias, number):
            raise RegistryError(
                f"{self._shelf.where(*place)} is move {move.number} of {move.alias}; expected {number} of {alias}"
            )
        return move

    def _numbers(self, name: str, alias: str) -> list[int]:
        """The numbers of all moves of an alias of a model that is there."""
        found = [_MOVE.fullmatch(file) for file in self._names(name, "aliases", checked_alias(alias))]
        if not found:
            self._versions(name)
        return sorted(int(match[1]) for match in found if match)

    def _later_reports(self, name: str, version: str) -> list[tuple[int, str, str]]:
        """Number, sha256 and file name of reports, in the order in which they came."""
        found = [_LATER_REPORT.fullmatch(file) for file in self._names(name, "reports", version)]
        return sorted((int(match[1]), match[2], match[3]) for match in found if match)

    def _versions(self, name: str) -> list[str]:
        """The versions of a model that is there."""
        found = [version for version in self._names(name, "versions") if is_name(version)]
        if not found:
            known = ", ".join(self.models()) or "none"
            raise RegistryError(f"no model {name!r} in {self._shelf.where()}; there is {known}")
        return found

    def _names(self, *parts: str) -> list[str]:
        with reading(self._shelf.where(*parts)):
            return self._shelf.names(*parts)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with room(self._shelf.drafts):
                yield
        except DiskFullError:
            raise
        except (OSError, LockError) as error:
            raise RegistryError(f"cannot write the registry {self._shelf.where()}: {error}") from error


def _move_name(number: int) -> str:
    return f"{number:06}.json"


def _report_name(number: int, digest: str, file: str) -> str:
    return f"{number:06}-{digest}-{file}"


def _extras(kind: str, paths: Iterable[Path]) -> dict[str, Path]:
    """Files by the path that they get in a release."""
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        key = f"{kind}/{checked_name(path.name, 'file')}"
        if found.setdefault(key, path) != path:
            raise RegistryError(f"{found[key]} and {path} have one name; the {kind} of a version need different ones")
    return found
