"""What a worker works with: an open engine, and the forecaster that feeds it. Where grids and engines meet."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from numpy.typing import NDArray

from engines.base import Accounted, DeviceLostError, Engine, EngineError, OutOfMemoryError, Packs
from engines.codes import CodeTable, ValueTable
from engines.spec import Shape
from engines.supply import Tell
from jobs.engine import EngineOrder, describe_engine, open_engine
from pipelines.memory import Memory, peak_resident
from pipelines.run import Forecaster, Lane, OpenLane
from pipelines.team import Team
from pipelines.tiling import Tiling
from pipelines.transform import Decoder, Encoder, every_code

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """What an actor takes of a cluster; it cannot change while the actor lives.

    Attributes:
        at_once: blocks that it makes at the same time.
    """

    gpus: float
    cores: int
    at_once: int

    @property
    def scarce(self) -> tuple[Literal["GPU", "CPU"], float]:
        """The resource of Ray by which workers are counted, and how much of it this is."""
        return ("GPU", self.gpus) if self.gpus else ("CPU", self.cores)


@dataclass(frozen=True)
class Setup:
    """What a worker needs to know once; it stays the same from cycle to cycle.

    Attributes:
        blocks_in_flight: blocks that a worker makes at the same time, each in a thread of its own.
        workers_per_gpu: workers that share a GPU.
        team: threads that decode, pack and compress for all blocks of a worker.
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
    team: int = 1

    @property
    def place(self) -> Place:
        """A part of a GPU, else as many cores as its engine has threads."""
        if self.order.runtime == "tensorrt":
            return Place(1 / self.workers_per_gpu, 0, self.blocks_in_flight)
        return Place(0, self.order.threads, self.blocks_in_flight)


@dataclass(frozen=True)
class Outfit:
    """An open engine, what provenance calls it, and its forecaster."""

    setup: Setup
    engine: Engine
    label: str
    forecaster: Forecaster

    @property
    def memory(self) -> Memory:
        """What this process holds by now."""
        if not isinstance(self.engine, Accounted):
            return Memory(peak_resident())
        device = self.engine.activation_bytes + self.engine.buffer_bytes
        return Memory(peak_resident(), device, self.engine.pinned_bytes)


def open_outfit(setup: Setup, tell: Tell = log.info, warm: bool = False) -> Outfit:
    """The outfit of a setup; its engine may be built first.

    Args:
        tell: called with one line whenever there is news of a build.
        warm: run the engine once, so that the first block pays for no first touch.

    Raises:
        EngineError: the engine cannot be had, or does not run.
    """
    supplied = open_engine(setup.order, tell)
    if warm:
        _warm(supplied.engine, setup)
    return Outfit(setup, supplied.engine, describe_engine(supplied), _forecaster(setup, supplied.engine))


def change_outfit(worn: Outfit, setup: Setup, tell: Tell = log.info) -> Outfit:
    """The outfit of another setup; the engine stays if it is the same, else it is closed once the new one is open.

    Raises:
        EngineError: as of `open_outfit`; the old engine is closed then, too.
    """
    if setup.order == worn.setup.order:
        return replace(worn, setup=setup, forecaster=_forecaster(setup, worn.engine))
    try:
        return open_outfit(setup, tell, warm=True)
    finally:
        worn.engine.close()


def _forecaster(setup: Setup, engine: Engine) -> Forecaster:
    lane, takes_codes = open_lanes(setup, engine)
    return Forecaster(
        tiling=setup.tiling,
        decoder=setup.decoder,
        encoder=setup.encoder,
        lane=_of_leads(engine, lane, setup.leads),
        leads=len(setup.leads),
        batch=setup.batch,
        mask_from_input=setup.mask_from_input,
        team=Team(setup.team),
        dtype=engine.specs[0].dtype,
        takes_codes=takes_codes,
    )


def open_lanes(setup: Setup, engine: Engine) -> tuple[OpenLane, bool]:
    """The lanes of an engine, and whether they take codes.

    They unpack and pack where the engine can and where no tiles are blended, which takes numbers. Where it cannot do
    both they only pack, and where not even that they do neither; the log says why.

    Raises:
        DeviceLostError: the GPU was lost meanwhile.
    """
    if setup.tiling.mode == "feather" or not isinstance(engine, Packs):
        return engine.lane, False
    codes, values = code_table(setup.encoder), value_table(setup, engine.specs[0].dtype)
    if codes is None:
        log.info("results are packed on the host: larger ones have lesser codes somewhere, so no table tells them")
        return engine.lane, False
    if values is None:
        log.info("frames are decoded on the host: no table holds all codes of %s", setup.decoder.encoding.dtype)
    elif open_lane := _packing(engine, codes, values, "frames are decoded on the host"):
        return open_lane, True
    return _packing(engine, codes, None, "results are packed on the host") or engine.lane, False


def _packing(engine: Packs, codes: CodeTable, values: ValueTable | None, otherwise: str) -> OpenLane | None:
    """Lanes that pack, and unpack if there are values; None if the engine cannot, which is logged as `otherwise`."""
    try:
        return engine.packing(codes, values)
    except DeviceLostError:
        raise
    except EngineError as error:
        log.warning("%s: %s", otherwise, error)
        return None


def code_table(encoder: Encoder) -> CodeTable | None:
    """An encoder as a table for an engine that packs; None if no table tells what it does."""
    if encoder.thresholds is None:
        return None
    return CodeTable(
        encoder.thresholds, encoder.dtype.name, encoder.limits[0], encoder.fill, encoder.space.missing_below
    )


def value_table(setup: Setup, dtype: str) -> ValueTable | None:
    """A decoder as a table for an engine that unpacks, with what masks its results; None if codes are too many."""
    decoder = setup.decoder
    values = decoder.half_table if dtype == "float16" else decoder.table
    if values is None:
        return None
    stored = decoder.encoding.dtype
    missing = decoder.is_missing(every_code(stored)) if setup.mask_from_input else None
    return ValueTable(values, stored, missing)


def _warm(engine: Engine, setup: Setup) -> None:
    """Runs a batch of the setup; one that does not fit into memory is made smaller where blocks are made."""
    try:
        engine.warm(setup.order.spec.profiles[0].opt)
    except OutOfMemoryError as error:
        log.warning("the engine was not warmed: %s", error)


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


def _of_leads(engine: Engine, whole: OpenLane, leads: tuple[int, ...]) -> OpenLane:
    """Lanes of an engine, reduced to some of its lead times."""
    if leads == tuple(range(engine.specs[1].shape[1] or len(leads))):
        return whole

    @contextmanager
    def open_lane(shape: Shape) -> Iterator[Lane]:
        with whole(shape) as lane:
            yield _SomeLeads(lane, list(leads))

    return open_lane
