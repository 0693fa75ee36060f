"""The worker: one engine (on one GPU where there is one), fed block after block. Where grids and engines meet."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from engines.base import Engine, EngineError
from jobs.engine import EngineOrder, describe_engine, open_engine
from jobs.hindcast import Group, GroupResult, Hindcast, Order
from pipelines.run import BlockResult, Forecaster, Infer, Read, run_block
from pipelines.sink import Draft
from pipelines.source import Cycle, Part, Source, cut
from pipelines.tiling import Block, Tiling
from pipelines.transform import Decoder, Encoder


@dataclass(frozen=True)
class Setup:
    """What a worker needs to know once; it stays the same from cycle to cycle."""

    order: EngineOrder
    tiling: Tiling
    decoder: Decoder
    encoder: Encoder
    leads: tuple[int, ...]
    batch: int
    mask_from_input: bool


class Worker:
    """One engine and its forecaster. Runs as a Ray actor, or in the driver for a test.

    An engine that cannot be opened is an error of the first block: an actor that fails to start could not say why.
    """

    def __init__(self, setup: Setup) -> None:
        self._fault: EngineError | None = None
        self._hindcast: Hindcast | None = None
        try:
            supplied = open_engine(setup.order)
        except EngineError as error:
            self._fault = error
            return
        self._engine = describe_engine(supplied)
        self._forecaster = Forecaster(
            tiling=setup.tiling,
            decoder=setup.decoder,
            encoder=setup.encoder,
            infer=_of_leads(supplied.engine, setup.leads),
            leads=len(setup.leads),
            batch=setup.batch,
            mask_from_input=setup.mask_from_input,
            threads=setup.order.threads,
        )

    def run(self, block: Block, cycle: Cycle, draft: Draft, *frames: Source | Part) -> BlockResult:
        """Make one block of a cycle.

        Args:
            frames: parts of the frames that the node shares and the block lies in; or the source to read from.

        Raises:
            EngineError: the engine could not be opened.
        """
        if self._fault is not None:
            raise self._fault
        return replace(run_block(block, self._reader(cycle, frames), self._forecaster, draft), engine=self._engine)

    def make(self, group: Group, order: Order) -> GroupResult:
        """Make whole cycles of a backfill, from their frames to their publication.

        Raises:
            EngineError: the engine could not be opened.
        """
        if self._fault is not None:
            raise self._fault
        if self._hindcast is None or self._hindcast.name != order.name:
            self._hindcast = Hindcast(order, self._forecaster, self._engine)
        return self._hindcast.make(group)

    def _reader(self, cycle: Cycle, frames: Sequence[Source | Part]) -> Read:
        parts = [part for part in frames if isinstance(part, Part)]
        if parts:
            return partial(cut, parts, fill=self._forecaster.decoder.encoding.fill)
        (source,) = (source for source in frames if isinstance(source, Source))
        return partial(source.read, cycle)

    def pid(self) -> int:
        """The process, for monitoring and tests."""
        return os.getpid()


def _of_leads(engine: Engine, leads: tuple[int, ...]) -> Infer:
    """The engine, reduced to some of its lead times."""
    if leads == tuple(range(engine.specs[1].shape[1] or len(leads))):
        return engine
    return lambda batch: engine(batch)[:, list(leads)]
