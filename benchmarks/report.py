"""The report of a run of the benchmark: lines and numbers, on disk as soon as they are known."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Report:
    """What is printed, kept in report.md of a folder, and the numbers beside it in report.json.

    A run that is killed loses nothing of either.

    Args:
        resume: go on with the report that is there, instead of a new one.
    """

    def __init__(self, home: Path, resume: bool = False) -> None:
        self._lines, self._numbers = home / "report.md", home / "report.json"
        home.mkdir(parents=True, exist_ok=True)
        if not resume:
            self._lines.unlink(missing_ok=True)
            self._numbers.unlink(missing_ok=True)

    @property
    def numbers(self) -> dict[str, Any]:
        """What was kept so far."""
        return dict(json.loads(self._numbers.read_text())) if self._numbers.exists() else {}

    def say(self, line: str) -> None:
        print(line, flush=True)
        with self._lines.open("a") as file:
            file.write(line + "\n")

    def keep(self, record: Mapping[str, Any]) -> None:
        """All numbers so far, in place of those before."""
        whole = self._numbers.with_suffix(".new")
        whole.write_text(json.dumps(record, indent=1))
        os.replace(whole, self._numbers)
