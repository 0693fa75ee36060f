"""How far a build is, from the phases that TensorRT announces."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engines.trt.surface import Surface


@dataclass(frozen=True)
class Progress:
    """How far a build is: what it does, the share done (0 to 1; None = this TensorRT does not tell), seconds so far."""

    phase: str
    share: float | None
    seconds: float


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0
    inside: float = 0.0  # share of the step under way that the phases within it have done

    @property
    def share(self) -> float:
        return min(1.0, (self.done + self.inside) / self.steps)


@dataclass
class Phases:
    """The phases of a build, nested; `share` never falls.

    >>> phases = Phases()
    >>> phases.start("build", None, 4); phases.step("build", 0)
    >>> phases.start("time", "build", 2); phases.step("time", 0)
    >>> phases.share
    0.375
    """

    share: float = 0.0
    _open: dict[str, _Phase] = field(default_factory=dict)

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._open[name] = _Phase(parent if parent in self._open else None, max(1, steps))

    def step(self, name: str, step: int) -> None:
        """Step number `step`, counted from 0, is done."""
        if name in self._open:
            phase = self._open[name]
            phase.done, phase.inside = max(phase.done, step + 1), 0.0
            self._tell(name)

    def finish(self, name: str) -> None:
        if name in self._open:
            self._open[name].done = self._open[name].steps
            self._tell(name)
            del self._open[name]

    def _tell(self, name: str) -> None:
        phase = self._open[name]
        while phase.parent is not None and phase.parent in self._open:
            share, phase = phase.share, self._open[phase.parent]
            phase.inside = max(phase.inside, min(1.0, share))
        self.share = max(self.share, phase.share)


def new_monitor(surface: Surface, tell: Callable[[str, float], None]) -> Any:
    """A TensorRT progress monitor that tells the phase and the share done, each whole percent once.

    None where TensorRT has no such thing.
    """
    if not surface.reports_progress:
        return None

    class Monitor(surface.module.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.phases, self.told = Phases(), -1.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.phases.step(phase_name, step)
            self._tell(phase_name)
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.phases.finish(phase_name)
            self._tell(phase_name)

        def _tell(self, phase_name: str) -> None:
            if self.phases.share - self.told >= 0.01:
                self.told = self.phases.share
                tell(phase_name, self.told)

    return Monitor()
