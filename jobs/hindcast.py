"""Whole cycles in one worker, one after the other or a few at once: the worker's part of a backfill."""

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from jobs.make import CycleReport, Filled, Status, describe_cycle, make_cycle
from pipelines.cycles import PublishedCycle, find_cycle
from pipelines.errors import AlreadyPublishedError, IncompleteError, InputError, RewrittenError
from pipelines.history import History, Inputs
from pipelines.run import Forecaster, run_block
from pipelines.sink import Draft, point_latest
from pipelines.spans import Stopwatch

if TYPE_CHECKING:  # it imports the worker, which makes hindcasts
    from jobs.prepare import Prepared


@dataclass(frozen=True)
class Order:
    """What all groups of one backfill share; `name` is unlike that of any other backfill."""

    name: str
    prepared: "Prepared"
    replace_published: bool = False


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

    Where several cycles are in flight, they may be of two groups: those of the second start as those of the first end.

    Args:
        engine: what runs, as the worker calls it.
    """

    def __init__(self, order: Order, forecaster: Forecaster, engine: str) -> None:
        self.name = order.name
        self._order, self._forecaster, self._engine = order, forecaster, engine
        self._history = History(order.prepared.source, order.prepared.product)
        self._cycles = ThreadPoolExecutor(order.prepared.cycles_in_flight, "cycle")

    def make(self, group: Group) -> GroupResult:
        """Every cycle of a group, published or with the reason why not.

        Raises:
            PipelineError, EngineError: what would end every other cycle too. Those published stay.
        """
        start, output = monotonic(), self._order.prepared.product.output
        reports = self._each(group)
        if any(report.path for report in reports):
            point_latest(output.store, self._order.prepared.product.name)
        return GroupResult(tuple(reports), monotonic() - start)

    def _each(self, group: Group) -> list[CycleReport]:
        if self._order.prepared.cycles_in_flight == 1:  # this thread's memory is warm
            return list(map(self._make, group.reference_times, group.revisions))
        pairs = zip(group.reference_times, group.revisions, strict=True)
        cycles = [self._cycles.submit(self._make, time, revision) for time, revision in pairs]
        wait(cycles)
        return [cycle.result() for cycle in cycles]

    def _make(self, reference_time: np.datetime64, revision: int | None) -> CycleReport:
        product = self._order.prepared.product
        report = partial(CycleReport, product.name, reference_time)
        made = _made_meanwhile(product.output.store, product.name, reference_time, revision)
        if made is not None:
            return report(Status.ALREADY, made.path)
        try:
            return self._publish(reference_time)
        except AlreadyPublishedError as error:
            return report(Status.ALREADY, "", note=str(error))
        except RewrittenError:  # of every cycle that is not made yet
            raise
        except (InputError, IncompleteError) as error:
            return report(Status.FAILED, "", note=str(error))

    def _publish(self, reference_time: np.datetime64) -> CycleReport:
        start, watch = monotonic(), Stopwatch()
        with watch("read"):
            inputs = self._history.find(reference_time)
        fill, again = partial(self._fill, inputs, watch), self._order.replace_published
        report = make_cycle(self._order.prepared, inputs.cycle, fill, start, watch, again, point=False)
        return replace(report, stages=report.stages + watch.seconds(), activities=())

    def _fill(self, inputs: Inputs, watch: Stopwatch, draft: Draft) -> Filled:
        describe_cycle(self._order.prepared, inputs.cycle, draft, watch)
        blocks = self._forecaster.tiling.blocks()
        results = [run_block(block, inputs.read, self._forecaster, draft) for block in blocks]
        return Filled([replace(result, engine=self._engine) for result in results])


def given_up_reports(store: str, product: str, group: Group, reason: str) -> list[CycleReport]:
    """The reports of a group that was given up: what its workers had published before they died stands."""
    pairs = zip(group.reference_times, group.revisions, strict=True)
    made = [(time, _made_meanwhile(store, product, time, revision)) for time, revision in pairs]
    return [
        CycleReport(product, time, Status.FAILED, "", note=reason)
        if found is None
        else CycleReport(product, time, Status.ALREADY, found.path)
        for time, found in made
    ]


def _made_meanwhile(
    store: str, product: str, reference_time: np.datetime64, revision: int | None
) -> PublishedCycle | None:
    """The published cycle, if it is another revision than the one that stood before."""
    found = find_cycle(store, product, reference_time)
    return None if found is None or found.revision == revision else found
