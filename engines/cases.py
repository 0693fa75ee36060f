"""Cases that a model is tried on: fields in model space, ordinary and extreme, kept without pickle."""

import hashlib
import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engines.base import EngineError
from engines.files import replace_file
from engines.precision import choose_cases

Tensor = NDArray[np.float32]
Group = Literal["ordinary", "extreme"]

GROUPS: tuple[Group, ...] = ("ordinary", "extreme")
INTENSE = 0.999  # share of cells below a field's intensity: one wild cell makes no extreme
GREATEST_BYTES = 8 * 2**30  # of an unpacked file of cases
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class CaseError(EngineError):
    """Cases that cannot be used: damaged, of the wrong shape, or too few."""


@dataclass(frozen=True, eq=False)
class Case:
    """One input of a model, `inputs` (channel, h, w) in model space, and the group that it is judged in.

    Raises:
        CaseError: a name that is no file name, an unknown group, or other than three axes of float32.
    """

    name: str
    group: Group
    inputs: Tensor

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise CaseError(f"case name {self.name!r}; expected letters, digits, '.', '_' and '-'")
        if self.group not in GROUPS:
            raise CaseError(f"case {self.name!r} is in group {self.group!r}; expected one of {GROUPS}")
        if self.inputs.ndim != 3 or self.inputs.dtype != np.float32 or not self.inputs.size:
            raise CaseError(
                f"case {self.name!r} is {self.inputs.dtype} of shape {self.inputs.shape}; "
                "expected float32 (channel, h, w)"
            )


def cases_from_arrays(
    arrays: Mapping[str, Tensor], count: int | None = None, extremes: int | None = None
) -> tuple[Case, ...]:
    """Cases of named inputs, in the order of their names: the most intense are extreme, others spread over intensity.

    Args:
        arrays: name to (channel, h, w) in model space; transforms to model space are expected to rise.
        count: how many cases are wanted; all if None. The most intense are never left out.
        extremes: how many of them are extreme; a quarter of them, but at least one, if None.

    Raises:
        CaseError: fewer than one case a group, or inputs that are no case.
    """
    count = len(arrays) if count is None else min(count, len(arrays))
    extremes = max(1, count // 4) if extremes is None else extremes
    if not 0 < extremes < count:
        raise CaseError(f"{count} case(s), {extremes} of them extreme; expected at least one ordinary and one extreme")
    names = sorted(arrays, key=lambda name: (-intensity(arrays[name]), name))
    ranks = choose_cases([intensity(arrays[name]) for name in names], count, extremes)
    wild = set(names[:extremes])
    chosen = sorted(names[rank] for rank in ranks)
    return tuple(Case(name, "extreme" if name in wild else "ordinary", arrays[name]) for name in chosen)


def intensity(inputs: Tensor) -> float:
    """The value that one cell of a thousand of the newest field (the last channel) reaches; NaN does not count.

    Raises:
        CaseError: not one cell is finite.
    """
    newest = inputs[-1]
    known = newest[np.isfinite(newest)]
    if not known.size:
        raise CaseError(f"the newest field of an input {inputs.shape} holds no finite cell")
    return float(np.quantile(known, INTENSE))


def widen(case: Case, shape: tuple[int, int]) -> Case:
    """The case mirrored at its borders until it is at least as large as `shape` (y, x); some faults need width.

    >>> widen(Case("a", "extreme", np.zeros((3, 64, 64), np.float32)), (32, 100)).inputs.shape
    (3, 64, 100)
    """
    more = [max(0, want - have) for want, have in zip(shape, case.inputs.shape[1:], strict=True)]
    pads = [(0, 0), *((0, pad) for pad in more)]
    return Case(f"{case.name}-wide", case.group, np.pad(case.inputs, pads, mode="symmetric"))


def save_cases(path: Path | str, cases: Sequence[Case]) -> Path:
    """The path of a new .npz of cases; equal cases give equal bytes. A file that is there is replaced at once.

    Raises:
        CaseError: no cases, or two of one name.
    """
    arrays: dict[str, Any] = {f"{case.group}.{case.name}": case.inputs for case in cases}
    names = sorted(case.name for case in cases)
    if not names or len(set(names)) != len(names):
        raise CaseError(f"cases are named {names}; expected at least one, and each name once")
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return replace_file(Path(path), file.getvalue())


def load_cases(path: Path) -> tuple[Case, ...]:
    """The cases of a file, in the order in which they were saved; nothing in it is executed.

    Raises:
        CaseError: the file is not there, is damaged, holds Python objects, or holds something else than cases.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > GREATEST_BYTES:
            raise CaseError(f"{path} unpacks to {size} bytes; at most {GREATEST_BYTES} are expected")
        with np.load(path, allow_pickle=False) as stored:
            return tuple(_case(key, stored[key]) for key in stored.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError) as error:
        raise CaseError(f"{path} is no file of cases: {error}") from error


def _case(key: str, inputs: Tensor) -> Case:
    group, _, name = key.partition(".")
    return Case(name, group, inputs)  # type: ignore[arg-type]  # refused by Case if it is no group


def digest(cases: Sequence[Case]) -> str:
    """sha256, hex, of the contents of cases, whatever their order and however they are stored."""
    total = hashlib.sha256()
    for case in sorted(cases, key=lambda one: (one.name, one.group)):
        total.update(f"{case.group} {case.name} {case.inputs.shape}\n".encode())
        total.update(np.ascontiguousarray(case.inputs, "<f4").tobytes())
    return total.hexdigest()
