"""Eulerian persistence: the newest field stands for every lead time. The forecast that every other must beat."""

from dataclasses import dataclass

import onnx

from engines.zoo.graph import Graph


@dataclass(frozen=True)
class PersistenceSpec:
    """What a persistence graph is written for; minutes relative to the reference time, as in `AdvectionSpec`.

    Raises:
        ValueError: no history or lead times that do not rise (found, expected).
    """

    history_minutes: tuple[float, ...] = (0,)
    lead_minutes: tuple[float, ...] = tuple(range(5, 95, 5))

    def __post_init__(self) -> None:
        gaps = {b - a for a, b in zip(self.history_minutes, self.history_minutes[1:], strict=False)}
        if not self.history_minutes or len(gaps) > 1 or min(gaps, default=1) <= 0:
            raise ValueError(f"history_minutes is {self.history_minutes}; one or more even steps are expected")
        if not self.lead_minutes or list(self.lead_minutes) != sorted({t for t in self.lead_minutes if t > 0}):
            raise ValueError(f"lead_minutes is {self.lead_minutes}; rising minutes above 0 are expected")


def write_graph(spec: PersistenceSpec) -> onnx.ModelProto:
    """The graph: `frames` (n, frame, h, w) to `rain_rate` (n, lead, h, w), mm h-1; missing (-1) stays missing."""
    graph = Graph("persistence")
    frames, leads = len(spec.history_minutes), len(spec.lead_minutes)
    newest = graph.channels("frames", frames - 1, frames)
    graph.concat([newest] * leads)
    return graph.model(frames, leads, "rain_rate")
