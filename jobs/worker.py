"""The worker: one engine (on one GPU where there is one), fed block after block. Where grids and engines meet."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

import ray
from numpy.typing import NDArray

from engines.base import DeviceLostError, Engine, EngineError
from engines.spec import Shape
from jobs.engine import EngineOrder, describe_engine, open_engine
from jobs.hindcast import Group, GroupResult, Hindcast, Order
from pipelines.run import BlockResult, Forecaster, Lane, OpenLane, Read, run_block
from pipelines.sink import Draft
from pipelines.source import Cycle, Part, Source, cut
from pipelines.tiling import Block, Tiling
from pipelines.transform import Decoder, Encoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """What a worker needs to know once; it stays the same from cycle to cycle.

    Attributes:
        blocks_in_flight: blocks that a worker makes at the same time, each in a thread of its own.
        workers_per_gpu: workers that share a GPU.
    """

    order: EngineOrder
    tiling: Tiling
    decoder: Decoder
    encoder: Encoder
    leads: tuple[int, ...]
    batch: int
    mask_from_input: bool
    blocks_in_flight: int = 1
    workers_per_gpu: int = 1


class Worker:
    """One engine and its forecaster. Runs as a Ray actor, or in the driver for a test.

    An engine that cannot be opened is an error of the first block: an actor that fails to start could not say why.
    """

    def __init__(self, setup: Setup) -> None:
        self._fault: EngineError | None = None
        self._hindcast: Hindcast | None = None
        self._lock = Lock()
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
            lane=_of_leads(supplied.engine, setup.leads),
            leads=len(setup.leads),
            batch=setup.batch,
            mask_from_input=setup.mask_from_input,
            threads=setup.order.threads,
            dtype=supplied.engine.specs[0].dtype,
        )

    def run(self, block: Block, cycle: Cycle, draft: Draft, *frames: Source | Part) -> BlockResult:
        """Make one block of a cycle.

        Args:
            frames: parts of the frames that the node shares and the block lies in; or the source to read from.

        A GPU that is lost ends the actor: nothing would run in its process any more.

        Raises:
            EngineError: the engine could not be opened.
        """
        with self._at_work():
            result = run_block(block, self._reader(cycle, frames), self._forecaster, draft)
            return replace(result, engine=self._engine)

    def make(self, group: Group, order: Order) -> GroupResult:
        """Make whole cycles of a backfill, from their frames to their publication.

        Raises:
            EngineError: the engine could not be opened.
        """
        with self._at_work():
            return self._hindcast_of(order).make(group)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        if self._fault is not None:
            raise self._fault
        try:
            yield
        except DeviceLostError as error:
            _end_actor(error)
            raise

    def _hindcast_of(self, order: Order) -> Hindcast:
        with self._lock:
            if self._hindcast is None or self._hindcast.name != order.name:
                self._hindcast = Hindcast(order, self._forecaster, self._engine)
            return self._hindcast

    def _reader(self, cycle: Cycle, frames: Sequence[Source | Part]) -> Read:
        parts = [part for part in frames if isinstance(part, Part)]
        if parts:
            return partial(cut, parts, fill=self._forecaster.decoder.encoding.fill)
        (source,) = (source for source in frames if isinstance(source, Source))
        return partial(source.read, cycle)

    def ready(self) -> None:
        """Returns once the engine is open, or known not to open."""

    def pid(self) -> int:
        """The process, for monitoring and tests."""
        return os.getpid()


def _end_actor(error: DeviceLostError) -> None:
    """Ends this process if it is an actor: the driver puts another worker in its place."""
    if ray.is_initialized() and ray.get_runtime_context().get_actor_id():
        log.critical("this worker ends: %s", error)
        os._exit(1)


@dataclass(frozen=True)
class _SomeLeads:
    """A lane, its result reduced to some lead times."""

    whole: Lane
    leads: Sequence[int]

    @property
    def given(self) -> NDArray[Any]:
        return self.whole.given

    def run(self) -> NDArray[Any]:
        return self.whole.run()[:, self.leads]


def _of_leads(engine: Engine, leads: tuple[int, ...]) -> OpenLane:
    """The lanes of an engine, reduced to some of its lead times."""
    if leads == tuple(range(engine.specs[1].shape[1] or len(leads))):
        return engine.lane

    @contextmanager
    def open_lane(shape: Shape) -> Iterator[Lane]:
        with engine.lane(shape) as lane:
            yield _SomeLeads(lane, list(leads))

    return open_lane
