"""Drives pieces of work over the workers of a pool: obeys the dispatcher, brings it news, hands on the results."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from engines.base import EngineError, InferenceError
from jobs.dispatch import Assign, Decision, Dispatcher
from jobs.pool import Pool
from pipelines.errors import PipelineError

MOST_STILLBORN = 3  # workers of one run that may die before they are ready

_TICK_SECONDS = 0.5

Work = TypeVar("Work")


@dataclass
class Drive(Generic[Work]):
    """Pieces of work on their way through a pool; only those that are not settled are held.

    Args:
        work: the pieces, pulled as workers have room.
        send: starts a piece on a worker and gives the reference of its result; may raise a PipelineError.
        landed: called with every piece that was done, its result and the name of its worker, once.
        gave_up: called with every piece that will not be done and the reason, once.
        meanwhile: called once, when all workers that are ready have work.
        deadline: on the clock of `monotonic`, seconds; None = none.
    """

    pool: Pool
    work: Iterable[Work]
    send: Callable[[Any, Work], Any]
    landed: Callable[[Work, Any, str], None]
    gave_up: Callable[[Work, str], None]
    meanwhile: Callable[[], None] = lambda: None
    deadline: float | None = None
    _open: dict[int, Work] = field(default_factory=dict)
    _flying: dict[Any, Assign] = field(default_factory=dict)
    _stillborn: int = 0

    def run(self) -> None:
        """Settle every piece.

        Raises:
            PipelineError, EngineError: an error of the input, output, configuration or engine, which no other worker
                could mend; also whatever the callables raise. Nothing is in flight then.
            RayGoneError: the Ray of this machine has ended.
        """
        self._dispatcher = Dispatcher(self._numbers(), self.pool.at_once)
        try:
            starting = set(self.pool.starting.values())
            self._obey(self._dispatcher.joined([w for w in self.pool.workers if w not in starting], monotonic()))
            self.meanwhile()
            while not self._dispatcher.is_settled:
                self._wait()
        finally:
            self._recall()

    def _numbers(self) -> Iterator[int]:
        for number, piece in enumerate(self.work):
            self._open[number] = piece
            yield number

    def _recall(self) -> None:
        """End the workers that still run a piece, so that nothing writes into a draft any more."""
        if self.pool.raylet.is_gone:
            return
        for name in {assign.worker for assign in self._flying.values()} & set(self.pool.workers):
            self.pool.drop(name)
        self._flying.clear()
        self.pool.fill()

    def _wait(self) -> None:
        self.pool.raylet.check()
        if self.deadline is not None and monotonic() > self.deadline:
            self._obey(self._dispatcher.stop("the deadline passed"))
            return
        refs = [*self._flying, *self.pool.starting]
        seen, _ = ray.wait(refs, num_returns=len(refs), timeout=0)  # who is ready together begins together
        seen = seen or ray.wait(refs, num_returns=1, timeout=_TICK_SECONDS)[0]
        self._greet([ref for ref in seen if ref not in self._flying])
        for ref in seen:
            if ref in self._flying:
                self._land(ref, self._flying.pop(ref))
        self._obey(self._dispatcher.tick(monotonic()))

    def _greet(self, refs: Iterable[Any]) -> None:
        """Workers are ready, or died before they were; then others take their places, but not for ever."""
        ready = []
        for ref in refs:
            try:
                ready.append(self.pool.started(ref))
            except RayActorError as error:
                self._stillborn += 1
                if self._stillborn > MOST_STILLBORN:
                    raise EngineError(
                        f"{self._stillborn} workers died before they were ready; the last: {error}"
                    ) from error
                self.pool.fill()
        self._obey(self._dispatcher.joined(ready, monotonic()))

    def _land(self, ref: Any, assign: Assign) -> None:
        try:
            result = ray.get(ref)
        except RayActorError:
            self._replace(assign.worker)
        except RayTaskError as error:
            if _is_final(error.cause):
                raise error.cause from None
            self._obey(self._dispatcher.failed(assign.worker, assign.block, str(error.cause), monotonic()))
        else:
            decisions = self._dispatcher.finished(assign.worker, assign.block, monotonic())
            if assign.block in self._open:
                self.landed(self._open.pop(assign.block), result, assign.worker)
            self._obey(decisions)

    def _replace(self, worker: str) -> None:
        """A worker died: its other calls are void, a new one takes its place."""
        if worker not in self.pool.workers:
            return
        self._flying = {ref: assign for ref, assign in self._flying.items() if assign.worker != worker}
        self.pool.drop(worker)
        decisions = self._dispatcher.lost(worker, monotonic())
        self._obey(decisions)
        self.pool.fill()

    def _obey(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Assign):
                ref = self.send(self.pool.workers[decision.worker], self._open[decision.block])
                self._flying[ref] = decision
            else:
                self.gave_up(self._open.pop(decision.block), decision.reason)


def _is_final(error: BaseException) -> bool:
    """True if another worker would fail in the same way; an inference may fail on one GPU only."""
    return isinstance(error, PipelineError | EngineError) and not isinstance(error, InferenceError)
