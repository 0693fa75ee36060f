"""Who is told how far a long command is."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class StepReport:
    """A step and its seconds; those of a step that was finished by an earlier run are of that run."""

    name: str
    seconds: float
    was_finished: bool = False


@dataclass(frozen=True)
class Watcher:
    """What is called when a step begins, says something, or has ended."""

    begins: Callable[[str], None] = lambda step: None
    says: Callable[[str], None] = lambda text: None
    ended: Callable[[StepReport], None] = lambda report: None


SILENT = Watcher()
