"""Models and their versions, which never change, and aliases that say which version is in use.

An alias is its history: numbered files, of which the highest counts. To promote or roll back is to put one more file
where none is yet, so it happens whole or not at all, of two at once one is second, and nothing is ever lost. No lock
is taken. docs/decisions/013-registry.md

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
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engines.files import make_folders, put_file, put_folder, read_plain, staging, sweep
from engines.lock import LockError
from engines.model import ModelPackage
from engines.release import (
    ALIASES,
    RegistryError,
    Release,
    as_json,
    checked_name,
    checked_version,
    is_name,
    now,
    open_release,
    read_json,
    read_release,
    reading,
    write_release,
)

__all__ = ["ALIASES", "Move", "Registry", "RegistryError", "Release"]

_MOVE, _LATER_REPORT = re.compile(r"(\d{6,})\.json"), re.compile(r"(\d{6,})-([0-9a-f]{64})-(.+)")
_REPORT_BYTES = 1 << 28


@dataclass(frozen=True)
class Move:
    """An entry in the history of an alias.

    Attributes:
        number: of the entry; the highest says which version is in use.
        action: "promote" or "rollback".
        undo: number of the entry to which a rollback returns; None for the first.
        is_forced: promoted without a passing gate.
    """

    number: int
    alias: str
    version: str
    action: str
    undo: int | None
    who: str
    why: str
    at: str
    is_forced: bool = False


def promoted(
    history: Sequence[Move], alias: str, version: str, who: str, why: str, at: str, is_forced: bool = False
) -> Move:
    """The move to `version`, or the last one if the alias stands there already."""
    last = history[-1] if history else None
    if last is not None and last.version == version:
        return last
    number, undo = (1, None) if last is None else (last.number + 1, last.number)
    return Move(number, alias, version, "promote", undo, who, why, at, is_forced)


def rolled_back(history: Sequence[Move], who: str, why: str, at: str) -> Move:
    """The move one step back from where the alias stands; rolling back again goes one further.

    Raises:
        RegistryError: there is nothing to go back to.
    """
    if not history:
        raise RegistryError("nothing to roll back: the alias was never promoted")
    last = history[-1]
    target = next((move for move in history if move.number == last.undo), None)
    if target is None:
        raise RegistryError(f"nothing to roll back to: {last.alias} stands at {last.version}, its first version")
    return Move(last.number + 1, last.alias, target.version, "rollback", target.undo, who, why, at)


class Registry:
    """The models below `root`, which the first `add` makes."""

    def __init__(self, root: Path) -> None:
        self._root = Path(root)

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

        Adding the same package again, or with fewer graphs, changes nothing; other reports are kept as later ones.

        Args:
            package: folder of the model package.
            name: of the model; None = that of the contract.
            reports, cases: files that are kept with it under their own names.
            graphs: the model in other precisions, each file called as its precision: `half.onnx`.

        Raises:
            ModelError: the package or a graph is refused.
            RegistryError: the version stands with other contents, a name is no name, or the disk refuses.
        """
        reports = list(reports)
        extras = _extras("reports", reports) | _extras("cases", cases) | _extras("graphs", graphs)
        with _writing(self._root):
            make_folders(self._root)
            sweep(self._root)
            with staging(self._root) as place:
                draft = place / "version"
                release = write_release(draft, Path(package), name, extras, who, why)
                home = self._place(release.name, "versions")
                make_folders(home)
                try:
                    put_folder(draft, home / release.version)
                except FileExistsError:
                    return self._same(release, reports)
        return release

    def attach(self, name: str, version: str, report: Path) -> None:
        """Keeps a report that came after the version was added; of each file name the newest counts."""
        came_with = self.release(name, version).files
        home = self._place(name, "reports", version)
        file = checked_name(report.name, "report")
        with reading(report):
            data = report.read_bytes()
        digest, later = hashlib.sha256(data).hexdigest(), _later_reports(home)
        known = [came_with.get(f"reports/{file}"), *(row[1] for row in later if row[2] == file)]
        if known[-1] == digest:
            return
        with _writing(self._root), staging(self._root) as place:
            make_folders(home)
            put_file(data, home / f"{1 + max((row[0] for row in later), default=0):06}-{digest}-{file}", place)

    def models(self) -> list[str]:
        """Names of all models."""
        return sorted(p.parent.name for p in self._root.glob("*/versions") if is_name(p.parent.name))

    def versions(self, name: str) -> list[Release]:
        """All versions of a model, in the order in which they were added."""
        folders = self._existing(name, "versions").iterdir()
        found = [self.release(name, folder.name) for folder in folders if is_name(folder.name)]
        return sorted(found, key=lambda release: (release.at, release.version))

    def release(self, name: str, version: str) -> Release:
        """What the registry knows of a version; the files of the version are not read."""
        return read_release(self._existing(name, "versions", checked_version(version)), name, version)

    def find(self, name: str, version: str) -> Release | None:
        """As `release`; None if there is no such model or version."""
        is_there = self._place(name, "versions", checked_version(version)).is_dir()
        return self.release(name, version) if is_there else None

    def gates(self, name: str, version: str) -> dict[str, bool]:
        """The newest gate reports, `gate*.json`, by file name: True for the verdict go."""
        first, later = self._place(name, "versions", version), self._place(name, "reports", version)
        came_with = sorted(self.release(name, version).files.items())
        reports = [(path.removeprefix("reports/"), first / path, digest) for path, digest in came_with
                   if path.startswith("reports/")]  # fmt: skip
        reports += [(file, later / f"{n:06}-{digest}-{file}", digest) for n, digest, file in _later_reports(later)]
        newest = {file: (path, digest) for file, path, digest in reports if re.fullmatch(r"gate.*\.json", file)}
        return {file: _is_go(path, digest) for file, (path, digest) in newest.items()}

    def history(self, name: str, alias: str) -> list[Move]:
        """All moves of an alias, oldest first; the last one says where it stands."""
        self._existing(name)
        home = self._place(name, "aliases", _checked_alias(alias))
        numbers = sorted(int(row[0]) for row in _numbered(home, _MOVE))
        return [_read_move(home / f"{number:06}.json", alias, number) for number in numbers]

    def current(self, name: str, alias: str = "production") -> Move | None:
        """The move that says where an alias stands; None if it was never promoted."""
        return next(reversed(self.history(name, alias)), None)

    def resolve(self, name: str, reference: str = "production") -> ModelPackage:
        """The model package of a version, or of the version at which an alias stands; every file was checked.

        Raises:
            RegistryError: there is none, or a file is damaged, missing, a link, or was never added (names it).
        """
        if reference not in ALIASES:
            return self._verified(name, reference)
        move = self.current(name, reference)
        if move is None:
            known = ", ".join(release.version for release in self.versions(name))
            raise RegistryError(f"no version of {name} is in {reference}; promote one of {known}")
        return self._verified(name, move.version)

    def promote(
        self, name: str, version: str, alias: str = "production", who: str = "", why: str = "", force: bool = False
    ) -> Move:
        """Moves an alias to a version, in one step; where it stands there already, nothing changes.

        Raises:
            RegistryError: the version is damaged, or has no passing gate and is not forced with a reason.
        """
        self._verified(name, version)
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
            self._verified(name, move.version)
            return move

        return self._move(name, alias, back)

    def _move(self, name: str, alias: str, decide: Callable[[Sequence[Move]], Move]) -> Move:
        """Writes the move that `decide` makes of the history; decides again if another was first."""
        self._existing(name)
        home = self._place(name, "aliases", _checked_alias(alias))
        with _writing(self._root), staging(self._root) as place:
            make_folders(home)
            while True:
                history = self.history(name, alias)
                move = decide(history)
                if history and move == history[-1]:
                    return move
                try:
                    put_file(as_json(move), home / f"{move.number:06}.json", place)
                    return move
                except FileExistsError:
                    continue

    def _same(self, fresh: Release, reports: Iterable[Path]) -> Release:
        """The version that stands, if it holds the same model; the reports are attached."""
        there = self.release(fresh.name, fresh.version)
        ours, theirs = fresh.model_files, there.model_files
        unasked = {path for path in theirs if path.startswith("graphs/")} - set(ours)
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

    def _verified(self, name: str, version: str) -> ModelPackage:
        return open_release(self._existing(name, "versions", version), self.release(name, version))

    def _place(self, *parts: str) -> Path:
        """A place below the root; no part of its path is a link, or leads elsewhere by its name."""
        folder = self._root
        for part in parts:
            folder = folder / checked_name(part, "folder of a registry")
            if folder.is_symlink():
                raise RegistryError(f"{folder} is a link; everything in a registry must lie in it")
        return folder

    def _existing(self, *parts: str) -> Path:
        """A place that is there: a model, and in it a folder or a version."""
        folder = self._place(*parts)
        if not folder.is_dir():
            if len(parts) > 1:
                self._existing(parts[0])
            kind = "version" if len(parts) > 1 else "model"
            known = sorted(path.name for path in folder.parent.glob("*") if is_name(path.name))
            raise RegistryError(f"no {kind} {parts[-1]!r} in {folder.parent}; there is {', '.join(known) or 'none'}")
        return folder


def _extras(kind: str, paths: Iterable[Path]) -> dict[str, Path]:
    """Files by the path that they get in a release."""
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        key = f"{kind}/{checked_name(path.name, 'file')}"
        if found.setdefault(key, path) != path:
            raise RegistryError(f"{found[key]} and {path} have one name; the {kind} of a version need different ones")
    return found


def _is_go(report: Path, digest: str) -> bool:
    """True if a gate report, unchanged since it was added, has the verdict go."""
    with reading(report):
        data = read_plain(report, _REPORT_BYTES)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError("it was changed after it was added")
        tree = json.loads(data)
    return isinstance(tree, dict) and tree.get("verdict") == "go"


def _read_move(path: Path, alias: str, number: int) -> Move:
    with reading(path):
        move = Move(**read_json(path))
    if (move.alias, move.number) != (alias, number):
        raise RegistryError(f"{path} is move {move.number} of {move.alias}; expected {number} of {alias}")
    return move


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[tuple[str, ...]]:
    """The parts of the names in a folder that follow a pattern; none if there is no folder."""
    names = os.listdir(folder) if folder.is_dir() else []
    return [found.groups() for name in names if (found := pattern.fullmatch(name))]


def _later_reports(folder: Path) -> list[tuple[int, str, str]]:
    """Number, sha256 and file name of reports, in the order in which they came."""
    return sorted((int(number), digest, file) for number, digest, file in _numbered(folder, _LATER_REPORT))


def _checked_alias(text: str) -> str:
    if text not in ALIASES:
        raise RegistryError(f"no alias {text!r}; there are {', '.join(ALIASES)}")
    return text


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, LockError) as error:
        raise RegistryError(f"cannot write the registry {root}: {error}") from error
