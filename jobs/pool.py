"""Starts, finds and replaces workers on Ray: a local one of our own, or a running cluster."""

import itertools
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import ray_constants
from ray.actor import ActorHandle

from engines.cores import usable_cores
from jobs.kept import NAMESPACE, Beat, Keep, ask, claim, find_kept, make_room
from jobs.ray_token import FILE, has_token, send_if_asked
from jobs.raylet import find_raylet
from jobs.session import session_folder
from jobs.worker import WATCH, Setup, Worker
from pipelines.planner import Crew

THREADS = 4  # of one process beside a GPU; with more of them its cores stay idle, docs/decisions/019
MOST_PER_GPU = 4
_OBJECT_STORE_BYTES = 10**9
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
"""What glibc gives back to the system it has to take again, page by page."""
_session = ExitStack()  # of the Ray that was started here


def connect(cores: int | None = None) -> None:
    """Join the cluster of RAY_ADDRESS, or start a local Ray on loopback; does nothing if already joined.

    Raises:
        ConnectionError: no cluster answers at RAY_ADDRESS, or it does not know our token.
    """
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with _our_sigterm():
        if outlives_us():
            _join(quiet)
        else:
            _start(quiet | _local(cores))


def _join(options: dict[str, Any]) -> None:
    try:
        _knock(os.environ["RAY_ADDRESS"])
        send_if_asked(os.environ["RAY_ADDRESS"])
        ray.init(**options)
    except (OSError, ray.exceptions.RayError) as error:
        raise ConnectionError(
            f"no Ray cluster at RAY_ADDRESS={os.environ['RAY_ADDRESS']} lets us in: {error}; is it running (where only "
            f"its raylet has ended, stop it and start it again), and is its token in RAY_AUTH_TOKEN or {FILE}?"
        ) from error


@contextmanager
def _our_sigterm() -> Iterator[None]:
    """What SIGTERM does here is not changed by Ray, whose handler may end the process before it has cleaned up."""
    ours = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if ours not in (None, signal.SIG_DFL) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)


def _knock(address: str) -> None:
    """Fails at once where nobody listens; Ray itself would try for minutes. Ports are 6379 unless given."""
    host, _, port = address.rpartition("/")[2].partition(":")
    if host and host not in ("auto", "local"):
        socket.create_connection((host, int(port or 6379)), timeout=10).close()


def _start(options: dict[str, Any]) -> None:
    _keep_to_ourselves()
    try:
        with _on_loopback():
            ray.init(**options, **_folder())
    except BaseException:
        disconnect()
        raise


def _folder() -> dict[str, str]:
    """Sockets and logs of a Ray started here end with it, unless the user says where Ray is to leave them."""
    return {} if "RAY_TMPDIR" in os.environ else {"_temp_dir": str(_session.enter_context(session_folder()))}


def _keep_to_ourselves() -> None:
    """A Ray started here sends no usage statistics, and where there is no token it gets one that ends with it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not has_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray started here has all of its processes listen on loopback alone, as where it knows no clusters (macOS).

    Without this it takes `_node_ip_address="127.0.0.1"` for the address that other machines know this one by.
    """
    ours, name = ray_constants.ENABLE_RAY_CLUSTER, ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    theirs = os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[name] = False, "0"  # for this process, and for those it starts
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = ours
        os.environ.pop(name) if theirs is None else os.environ.update({name: theirs})


def _local(cores: int | None) -> dict[str, Any]:
    return {
        "address": "local",
        "include_dashboard": False,
        "num_cpus": cores or usable_cores(),
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
    }


def disconnect() -> None:
    ray.shutdown()
    _session.close()


def outlives_us() -> bool:
    """True if the Ray that we have joined, or will join, is there when this run has ended."""
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")


def the_same_command() -> str:
    """What mends a run whose Ray has ended: one of our own is started anew, a cluster does not start itself."""
    return f"{outlives_us() * 'once its cluster is stopped and started again '}the same command"


def _ignore(text: str) -> None: ...


@dataclass(frozen=True)
class Resources:
    """What the cluster offers to workers: GPUs, or cores that CPU workers share."""

    gpus: int
    cores: int

    def crew(self, wanted: int | None, in_flight: int | None = None, per_gpu: int | None = None) -> Crew:
        """Who can work: a few workers a GPU, or a worker a core.

        Args:
            wanted: workers at most.
            in_flight: blocks that each makes at the same time.
            per_gpu: workers that share a GPU; None = one for every `THREADS` cores beside it, up to `MOST_PER_GPU`.
        """
        if not self.gpus:
            return Crew(min(wanted or self.cores, self.cores), True, self.cores, in_flight)
        share = per_gpu or min(max(1, self.cores // self.gpus // THREADS), MOST_PER_GPU)
        if wanted is not None:
            share = min(share, -(-wanted // self.gpus))  # few workers take whole GPUs
        return Crew(min(wanted or self.gpus * share, self.gpus * share), False, self.cores, in_flight, share)


def cluster_resources() -> Resources:
    found = ray.cluster_resources()
    return Resources(int(found.get("GPU", 0)), max(1, int(found.get("CPU", 1))))


class Pool:
    """Workers of one setup; names are never used twice.

    Args:
        setup: of every worker.
        count: workers.
        gpu: give each worker its part of a GPU, else as many cores as its engine has threads.
        keep: find workers that were kept for this product, and keep them again; None = workers end with the pool.
        tell: called, from a thread, with what workers say while their engines are opened; "" once all is open.
    """

    def __init__(
        self, setup: Setup, count: int, gpu: bool, keep: Keep | None = None, tell: Callable[[str], None] = _ignore
    ) -> None:
        self._setup, self._count, self._gpu, self._keep = setup, count, gpu, keep
        self._shared_setup = ray.put(setup)
        self._workers: dict[str, ActorHandle[Worker]] = {} if keep is None else self._claim(keep)
        self._starting = {worker.ready.remote(): name for name, worker in self._workers.items()}
        self._names = self._free_names()
        self.fill()
        self.raylet = find_raylet()
        self._beat = Beat(lambda: self.workers, "" if keep is None else keep.holder, tell, self._make_room)

    @property
    def workers(self) -> dict[str, "ActorHandle[Worker]"]:
        return dict(self._workers)

    @property
    def starting(self) -> dict[Any, str]:
        """Workers that are not yet known to be ready, by the reference that is there when they are."""
        return dict(self._starting)

    def started(self, reference: Any) -> str:
        """The worker of a reference of `starting` that is there.

        Raises:
            RayActorError: it died before it was ready; it is forgotten.
        """
        name = self._starting.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayActorError:
            self.drop(name)
            raise
        return name

    @property
    def at_once(self) -> int:
        """Blocks that a worker makes at the same time."""
        return self._setup.blocks_in_flight

    def fill(self) -> list[str]:
        """Start workers until all are there; the names of the new ones."""
        missing = self._count - len(self._workers)
        if missing > 0:
            self._make_room(missing)
        new = dict(self._start() for _ in range(missing))
        self._workers = self._workers | new
        self._starting |= {worker.ready.remote(): name for name, worker in new.items()}
        return list(new)

    def drop(self, name: str) -> None:
        """Forget a worker that died; it is ended if it still lives."""
        workers = dict(self._workers)
        ray.kill(workers.pop(name))
        self._workers = workers
        self._starting = {reference: worker for reference, worker in self._starting.items() if worker != name}

    def close(self) -> None:
        """Leave the workers to the next run, or end them; those that do not answer are ended in any case.

        Where Ray has ended, so have they.
        """
        self._beat.stop()
        if self.raylet.is_gone:
            return
        if self._keep is not None:
            holder, left = self._keep.holder, self.workers
            answers = ask(left, lambda worker: worker.release.remote(holder))
            self._workers = {name: worker for name, worker in left.items() if name not in answers}
        for name in self.workers:
            self.drop(name)

    def _claim(self, keep: Keep) -> dict[str, "ActorHandle[Worker]"]:
        """Kept workers that this run may use, with its setup."""
        mine = claim(keep, self._setup.place, self._count)
        adopted = ask(mine, lambda worker: worker.adopt.remote(self._shared_setup, keep.seconds))
        for name in set(mine) - set(adopted):
            ray.kill(mine[name])
        return {name: mine[name] for name in adopted}

    def _start(self) -> tuple[str, "ActorHandle[Worker]"]:
        actor = ray.remote(
            num_cpus=0 if self._gpu else self._setup.order.threads,
            num_gpus=1 / self._setup.workers_per_gpu if self._gpu else 0,
            runtime_env={"env_vars": _KEEP_MEMORY} if self._gpu else None,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=self.at_once,
            concurrency_groups={WATCH: 1},
        )(Worker)
        if self._keep is None:
            return next(self._names), actor.remote(self._shared_setup)
        while True:
            name = next(self._names)
            with suppress(ValueError):  # another run has just started a worker of this name
                kept = actor.options(name=name, namespace=NAMESPACE, lifetime="detached")
                return name, kept.remote(self._shared_setup, self._keep.holder, self._keep.seconds)

    def _free_names(self) -> Iterator[str]:
        if self._keep is None:
            return (f"worker-{n}" for n in itertools.count())
        taken, product = set(find_kept(self._keep.product)) | set(self._workers), self._keep.product
        return (name for n in itertools.count() if (name := f"{product}-{n}") not in taken)

    def _make_room(self, count: int) -> None:
        make_room(self._setup.place, count)
