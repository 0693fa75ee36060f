"""The worker: one engine (on one GPU where there is one), fed block after block, kept from run to run if it may."""

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from time import sleep
from typing import Any, TypeVar, cast

import psutil
import ray

from engines.base import DeviceLostError
from jobs.heap import keep_freed_memory
from jobs.hindcast import Group, GroupResult, Hindcast, Order
from jobs.holder import has_ended
from jobs.lease import Lease
from jobs.outfit import Outfit, Place, Setup, change_outfit, open_outfit
from jobs.version import code_version
from pipelines.run import BlockResult, Read, run_block
from pipelines.sink import Draft
from pipelines.source import Cycle, Part, Source, cut
from pipelines.tiling import Block

__all__ = ["WATCH", "Setup", "Status", "Worker"]

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

WATCH = "watch"  # calls that are answered while blocks are made
_LOOK_SECONDS = 5.0


def _watched(method: F) -> F:
    """Makes a method of the actor one that is answered while blocks are made."""
    return cast(F, ray.method(concurrency_group=WATCH)(method))


@dataclass(frozen=True)
class Status:
    """What a worker says of itself.

    Attributes:
        version: of squall, as loaded by the worker.
        place: that its actor was made for.
        engine: what runs; "" while it is being opened or if it cannot be.
        news: how far the opening of its engine is; "" once it is done.
        holder: the run that uses it; "" = none.
        is_lapsed: its holder has not been heard of for long.
        rss_bytes: resident memory of its process.
    """

    version: str
    pid: int
    node: str
    place: Place
    engine: str
    news: str
    holder: str
    is_lapsed: bool
    idle_seconds: float
    rss_bytes: int

    @property
    def is_abandoned(self) -> bool:
        """True if its holder is gone: silent for long, or seen to have ended by whoever asks."""
        return self.is_lapsed or has_ended(self.holder)


class Worker:
    """One engine and its forecaster. Runs as a Ray actor, or in the driver for a test.

    The engine is opened in a thread, for a build takes minutes and the worker is to say how far it is. One that cannot
    be opened is an error of the first block: an actor that fails to start could not say why.

    Args:
        holder: the run that uses it first.
        keep_seconds: end this process when nothing called for so long; None = whoever made it ends it.
    """

    def __init__(self, setup: Setup, holder: str = "", keep_seconds: float | None = None) -> None:
        keep_freed_memory()
        self._version, self._lease, self._news = code_version(), Lease(holder), ""
        self._hindcast: Hindcast | None = None
        self._lock = threading.Lock()
        self._setup, self._place, self._keep_seconds = setup, setup.place, keep_seconds
        self._opener = ThreadPoolExecutor(1, "engine")
        self._outfit: Future[Outfit] = self._opener.submit(self._open, setup, keep_seconds is not None)
        if keep_seconds is not None:
            threading.Thread(target=self._end_when_idle, name="idle", daemon=True).start()

    def run(self, block: Block, cycle: Cycle, draft: Draft, *frames: Source | Part) -> BlockResult:
        """Make one block of a cycle.

        Args:
            frames: parts of the frames that the node shares and the block lies in; or the source to read from.

        A GPU that is lost ends the actor: nothing would run in its process any more.

        Raises:
            EngineError: the engine could not be opened.
        """
        with self._at_work() as outfit:
            result = run_block(block, _reader(outfit, cycle, frames), outfit.forecaster, draft)
            return replace(result, engine=outfit.label, memory=outfit.memory)

    def make(self, group: Group, order: Order) -> GroupResult:
        """Make whole cycles of a backfill, from their frames to their publication.

        Raises:
            EngineError: the engine could not be opened.
        """
        with self._at_work() as outfit:
            return self._hindcast_of(order, outfit).make(group)

    @_watched
    def status(self, holder: str = "") -> Status:
        """What the worker is, has and does; a call of its holder keeps it."""
        self._lease.hear(holder)
        opened = self._outfit.done() and self._outfit.exception() is None
        return Status(
            version=self._version,
            pid=os.getpid(),
            node=socket.gethostname(),
            place=self._place,
            engine=self._outfit.result().label if opened else "",
            news=self._news,
            holder=self._lease.holder,
            is_lapsed=self._lease.is_lapsed,
            idle_seconds=self._lease.idle_seconds,
            rss_bytes=psutil.Process().memory_info().rss,
        )

    @_watched
    def take(self, holder: str) -> Status:
        """Become a run's own if free; the status says whose it is now."""
        self._lease.take(holder)
        return self.status()

    @_watched
    def release(self, holder: str) -> None:
        """Be free for the next run."""
        self._lease.release(holder)

    @_watched
    def adopt(self, setup: Setup, keep_seconds: float | None) -> None:
        """Work with another setup from the next block on; what is the same stays as it is.

        Blocks wait for a new engine; one that cannot be opened is their error.
        """
        self._keep_seconds = keep_seconds
        failed = self._outfit.done() and self._outfit.exception() is not None
        if failed or setup != self._setup:
            self._outfit = self._opener.submit(self._change, self._outfit, setup)
            self._setup = setup

    def ready(self) -> None:
        """Returns once the engine is open, or known not to open."""
        wait([self._outfit])

    def pid(self) -> int:
        """The process, for monitoring and tests."""
        return os.getpid()

    @contextmanager
    def _at_work(self) -> Iterator[Outfit]:
        """The outfit once it is there; meanwhile the worker is not idle."""
        try:
            with self._lease.running():
                yield self._outfit.result()
        except DeviceLostError as error:
            _end_actor(error)
            raise

    def _hindcast_of(self, order: Order, outfit: Outfit) -> Hindcast:
        with self._lock:
            if self._hindcast is None or self._hindcast.name != order.name:
                self._hindcast = Hindcast(order, outfit.forecaster, outfit.label)
            return self._hindcast

    def _open(self, setup: Setup, warm: bool) -> Outfit:
        try:
            self._tell("opening the engine")
            return open_outfit(setup, self._tell, warm)
        finally:
            self._news = ""

    def _change(self, worn: "Future[Outfit]", setup: Setup) -> Outfit:
        if worn.exception() is not None:
            return self._open(setup, warm=True)
        try:
            return change_outfit(worn.result(), setup, self._tell)
        finally:
            self._news = ""

    def _tell(self, text: str) -> None:
        log.info(text)
        self._news = text

    def _end_when_idle(self) -> None:
        while self._keep_seconds is not None:
            sleep(min(_LOOK_SECONDS, self._keep_seconds / 4))
            self._lease.end_if_idle(self._keep_seconds, partial(os._exit, 0))


def _reader(outfit: Outfit, cycle: Cycle, frames: Sequence[Source | Part]) -> Read:
    parts = [part for part in frames if isinstance(part, Part)]
    if parts:
        return partial(cut, parts, fill=outfit.forecaster.decoder.encoding.fill)
    (source,) = (source for source in frames if isinstance(source, Source))
    return partial(source.read, cycle)


def _end_actor(error: DeviceLostError) -> None:
    """Ends this process if it is an actor: the driver puts another worker in its place."""
    if ray.is_initialized() and ray.get_runtime_context().get_actor_id():
        log.critical("this worker ends: %s", error)
        os._exit(1)
