"""A folder in which the steps of a long piece of work leave their results, so that a killed one goes on where it was.

```
<cache>/publish/<digest>/           named by everything that goes in; held by one process at a time
                        /steps/     the result of each finished step, put there whole
```
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from engines.files import replace_file
from engines.lock import LockError, hold
from engines.supply import Tell

T = TypeVar("T")

KEEP = 4  # works of the past


@dataclass(frozen=True)
class Work:
    """The folder of one piece of work."""

    folder: Path

    def keep(self, step: str, seconds: float, result: Any) -> None:
        """The step is done: what it gave, any dataclass, is there whole or not at all."""
        self.put(f"steps/{step}.json", to_json({"seconds": seconds, "result": result}, indent=1))

    def seconds(self, step: str) -> float:
        """How long a finished step took; a LookupError if it is not finished."""
        return float(self._read(step)["seconds"])

    def result(self, step: str, kind: type[T]) -> T:
        """What a finished step gave.

        Raises:
            LookupError: it is not finished.
        """
        return TypeAdapter(kind).validate_python(self._read(step)["result"])

    def is_done(self, step: str, kind: type[Any]) -> bool:
        """True if the result of a step is there and can be read."""
        with suppress(LookupError, ValidationError):
            self.result(step, kind)
            return True
        return False

    def put(self, name: str, data: bytes) -> Path:
        """The path of a file with these bytes, put there whole."""
        return replace_file(self.folder / name, data)

    def _read(self, step: str) -> dict[str, Any]:
        try:
            tree = json.loads((self.folder / "steps" / f"{step}.json").read_bytes())
            return {"seconds": tree["seconds"], "result": tree["result"]}
        except (FileNotFoundError, ValueError, TypeError, KeyError) as error:
            raise LookupError(f"step {step!r} in {self.folder} is not finished") from error


@contextmanager
def open_work(home: Path, digest: str, tell: Tell) -> Iterator[Work]:
    """The folder of a piece of work, ours alone; others that want it wait. Long unused ones are removed."""
    home.mkdir(parents=True, exist_ok=True)
    with hold(_lock(home / digest), lambda holder: tell(f"waiting for {holder}")):
        folder = home / digest
        folder.mkdir(exist_ok=True)
        os.utime(folder)
        yield Work(folder)
    _forget(home)


def _forget(home: Path) -> None:
    """Removes all but the newest works that nobody holds."""
    folders = sorted((p for p in home.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime_ns)
    for folder in folders[:-KEEP]:
        with suppress(LockError), hold(_lock(folder), timeout_seconds=0):
            shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path) -> Path:
    return folder.with_suffix(".lock")
