"""Whole cycles in one worker, one after the other or a few at once: the worker's part of a backfill."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from jobs.make import CycleReport, Filled, Status, describe_cycle, make_cycle
from pipelines.cycles import find_cycle
from pipelines.errors import AlreadyPublishedError, IncompleteError, InputError
from pipelines.history import History, Inputs
from pipelines.run import Forecaster, Seconds, run_block
from pipelines.sink import Draft, point_latest
from pipelines.threads import map_on

if TYPE_CHECKING:  # it imports the worker, which makes hindcasts
    from jobs.prepare import Prepared


@dataclass(frozen=True)
class Order:
    """What all groups of one backfill share.

    Attributes:
        name: of this backfill, unlike that of any other.
        cycles_in_flight: that a worker makes at the same time.
    """

    name: str
    prepared: "Prepared"
    replace_published: bool = False
    cycles_in_flight: int = 1


@dataclass(frozen=True)
class Group:
    """Cycles for one call of a worker: reference times that rise, and the revision that stands of each, None if none.

    A cycle of which another revision stands by then is left alone: somebody else has made it meanwhile.
    """

    reference_times: tuple[np.datetime64, ...]
    revisions: tuple[int | None, ...]

    def __len__(self) -> int:
        return len(self.reference_times)


@dataclass(frozen=True)
class GroupResult:
    """What became of the cycles of a group, and the seconds that it took."""

    reports: tuple[CycleReport, ...]
    seconds: float


class Hindcast:
    """Makes the cycles of one backfill in this process; keeps the last frames from group to group.

    Args:
        engine: what runs, as the worker calls it.
    """

    def __init__(self, order: Order, forecaster: Forecaster, engine: str) -> None:
        self.name = order.name
        self._order, self._forecaster, self._engine = order, forecaster, engine
        self._history = History(order.prepared.source, order.prepared.product)

    def make(self, group: Group) -> GroupResult:
        """Every cycle of a group, published or with the reason why not.

        Raises:
            PipelineError, EngineError: what would end every other cycle too. Those published stay.
        """
        start, output = monotonic(), self._order.prepared.product.output
        reports = map_on(self._order.cycles_in_flight, self._make, group.reference_times, group.revisions)
        if any(report.path for report in reports):
            point_latest(output.store, self._order.prepared.product.name)
        return GroupResult(tuple(reports), monotonic() - start)

    def _make(self, reference_time: np.datetime64, revision: int | None) -> CycleReport:
        product = self._order.prepared.product
        report = partial(CycleReport, product.name, reference_time)
        found = find_cycle(product.output.store, product.name, reference_time)
        if (None if found is None else found.revision) != revision:
            return report(Status.ALREADY, "" if found is None else found.path)
        try:
            return self._publish(reference_time)
        except AlreadyPublishedError as error:
            return report(Status.ALREADY, "", note=str(error))
        except (InputError, IncompleteError) as error:
            return report(Status.FAILED, "", note=str(error))

    def _publish(self, reference_time: np.datetime64) -> CycleReport:
        start = monotonic()
        inputs = self._history.find(reference_time)
        reading = Seconds(read=monotonic() - start)
        report = make_cycle(
            self._order.prepared,
            inputs.cycle,
            partial(self._fill, inputs),
            start,
            self._order.replace_published,
            point=False,
        )
        return replace(report, stages=report.stages + reading)

    def _fill(self, inputs: Inputs, draft: Draft) -> Filled:
        describe_cycle(self._order.prepared, inputs.cycle, draft)
        blocks = self._forecaster.tiling.blocks()
        results = [run_block(block, inputs.read, self._forecaster, draft) for block in blocks]
        return Filled([replace(result, engine=self._engine) for result in results])


def failed_reports(product: str, group: Group, reason: str) -> Sequence[CycleReport]:
    """The reports of a group that was given up."""
    return [CycleReport(product, time, Status.FAILED, "", note=reason) for time in group.reference_times]
