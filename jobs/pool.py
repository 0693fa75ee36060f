"""Starts, finds and replaces workers on Ray: a local one of our own, or a running cluster."""

import itertools
import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from jobs.worker import Setup, Worker
from pipelines.planner import Crew

THREADS = 4  # of one process beyond which they wait for Python's lock more than they work
MOST_PER_GPU = 4
_OBJECT_STORE_BYTES = 10**9
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
"""What glibc gives back to the system it has to take again, page by page, while all threads of a process wait."""
_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_TOKEN_FILE = Path("~/.ray/auth_token")


def connect(cores: int | None = None) -> None:
    """Join the cluster of RAY_ADDRESS, or start a local Ray on loopback; does nothing if already joined.

    Raises:
        ConnectionError: no cluster answers at RAY_ADDRESS, or it does not know our token.
    """
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if "RAY_ADDRESS" not in os.environ:
        ray.init(**quiet, **_local(cores))
        return
    if any(name in os.environ for name in _TOKENS) or _TOKEN_FILE.expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # `ray start` asks for one, `ray.init` sends none by itself
    try:
        _knock(os.environ["RAY_ADDRESS"])
        ray.init(**quiet)
    except (OSError, ray.exceptions.RayError) as error:
        raise ConnectionError(
            f"no Ray cluster at RAY_ADDRESS={os.environ['RAY_ADDRESS']} lets us in: {error}; is it running, and is its "
            f"token in RAY_AUTH_TOKEN or {_TOKEN_FILE}?"
        ) from error


def _knock(address: str) -> None:
    """Fails at once where nobody listens; Ray itself would try for minutes. Ports are 6379 unless given."""
    host, _, port = address.rpartition("/")[2].partition(":")
    if host and host not in ("auto", "local"):
        socket.create_connection((host, int(port or 6379)), timeout=10).close()


def _local(cores: int | None) -> dict[str, Any]:
    return {
        "address": "local",
        "include_dashboard": False,
        "num_cpus": cores or os.cpu_count(),
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
    }


def disconnect() -> None:
    ray.shutdown()


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
    """

    def __init__(self, setup: Setup, count: int, gpu: bool) -> None:
        self._setup, self._count = setup, count
        self._actor = ray.remote(
            num_cpus=0 if gpu else setup.order.threads,
            num_gpus=1 / setup.workers_per_gpu if gpu else 0,
            runtime_env={"env_vars": _KEEP_MEMORY} if gpu else None,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=setup.blocks_in_flight,
        )(Worker)
        self._names = (f"worker-{n}" for n in itertools.count())
        self._workers: dict[str, ActorHandle[Worker]] = {}
        self._starting: dict[Any, str] = {}
        self._shared_setup = ray.put(setup)
        self.fill()

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
        new = [next(self._names) for _ in range(self._count - len(self._workers))]
        self._workers |= {name: self._actor.remote(self._shared_setup) for name in new}
        self._starting |= {self._workers[name].ready.remote(): name for name in new}
        return new

    def drop(self, name: str) -> None:
        """Forget a worker that died; it is ended if it still lives."""
        ray.kill(self._workers.pop(name))
        self._starting = {reference: worker for reference, worker in self._starting.items() if worker != name}

    def close(self) -> None:
        for name in list(self._workers):
            self.drop(name)
