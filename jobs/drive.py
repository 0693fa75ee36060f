"""Drives one cycle's blocks over the workers of a pool: obeys the dispatcher, brings it news, keeps the results."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from engines.base import EngineError, InferenceError
from jobs.dispatch import Assign, Decision, Dispatcher
from jobs.pool import Pool
from pipelines.errors import PipelineError
from pipelines.run import BlockResult
from pipelines.tiling import Block

_TICK_SECONDS = 0.5

Progress = Callable[[int, int, Sequence[BlockResult]], None]


@dataclass
class Drive:
    """The blocks of one cycle on their way through a pool.

    Args:
        arguments: what `Worker.run` gets after the block; may raise a PipelineError.
        deadline: on the clock of `monotonic`, seconds; None = none.
        progress: called with blocks settled, blocks in all, and the results so far.
    """

    pool: Pool
    blocks: Sequence[Block]
    arguments: Callable[[Block], Sequence[Any]]
    deadline: float | None = None
    progress: Progress = lambda settled, total, results: None
    results: dict[int, BlockResult] = field(default_factory=dict)
    _flying: dict[Any, Assign] = field(default_factory=dict)

    def run(self) -> dict[int, str]:
        """Settle every block; the reasons of those given up.

        Raises:
            PipelineError, EngineError: an error of the input, output, configuration or engine, which no other worker
                could mend.
        """
        self._dispatcher = Dispatcher(range(len(self.blocks)), self.pool.at_once)
        self._obey(self._dispatcher.joined(self.pool.workers, monotonic()))
        while not self._dispatcher.is_settled:
            self._wait()
            self.progress(len(self._dispatcher.done) + len(self._dispatcher.given_up), len(self.blocks),
                          list(self.results.values()))  # fmt: skip
        self.recall()
        return dict(self._dispatcher.given_up)

    def recall(self) -> None:
        """End the workers that still run a block, so that nothing writes into the draft any more."""
        for name in {assign.worker for assign in self._flying.values()} & set(self.pool.workers):
            self.pool.drop(name)
        self._flying.clear()
        self.pool.fill()

    def _wait(self) -> None:
        if self.deadline is not None and monotonic() > self.deadline:
            self._dispatcher.stop("the deadline passed")
            return
        landed, _ = ray.wait(list(self._flying), num_returns=1, timeout=_TICK_SECONDS)
        for ref in landed:
            self._land(ref, self._flying.pop(ref))
        self._obey(self._dispatcher.tick(monotonic()))

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
            self.results.setdefault(assign.block, replace(result, worker=assign.worker))
            self._obey(self._dispatcher.finished(assign.worker, assign.block, monotonic()))

    def _replace(self, worker: str) -> None:
        """A worker died: its other calls are void, a new one takes its place."""
        if worker not in self.pool.workers:
            return
        self._flying = {ref: assign for ref, assign in self._flying.items() if assign.worker != worker}
        self.pool.drop(worker)
        decisions = self._dispatcher.lost(worker, monotonic())
        self._obey(decisions)
        self._obey(self._dispatcher.joined(self.pool.fill(), monotonic()))

    def _obey(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Assign):
                worker, block = self.pool.workers[decision.worker], self.blocks[decision.block]
                ref = worker.run.remote(block, *self.arguments(block))
                self._flying[ref] = decision


def _is_final(error: BaseException) -> bool:
    """True if another worker would fail in the same way; an inference may fail on one GPU only."""
    return isinstance(error, PipelineError | EngineError) and not isinstance(error, InferenceError)
