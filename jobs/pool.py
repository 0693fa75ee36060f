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

_OBJECT_STORE_BYTES = 10**9
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

    def crew(self, wanted: int | None, in_flight: int | None = None) -> Crew:
        """Who can work: a worker a GPU, or a worker a core."""
        available = self.gpus or self.cores
        return Crew(min(wanted or available, available), not self.gpus, self.cores, in_flight)


def cluster_resources() -> Resources:
    found = ray.cluster_resources()
    return Resources(int(found.get("GPU", 0)), max(1, int(found.get("CPU", 1))))


class Pool:
    """Workers of one setup; names are never used twice.

    Args:
        setup: of every worker.
        count: workers.
        gpu: give each worker a GPU of its own, else as many cores as its engine has threads.
    """

    def __init__(self, setup: Setup, count: int, gpu: bool) -> None:
        self._setup, self._count = setup, count
        self._actor = ray.remote(
            num_cpus=0 if gpu else setup.order.threads,
            num_gpus=1 if gpu else 0,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=setup.blocks_in_flight,
        )(Worker)
        self._names = (f"worker-{n}" for n in itertools.count())
        self._workers: dict[str, ActorHandle[Worker]] = {}
        self._shared_setup = ray.put(setup)
        self.fill()

    @property
    def workers(self) -> dict[str, "ActorHandle[Worker]"]:
        return dict(self._workers)

    @property
    def at_once(self) -> int:
        """Blocks that a worker makes at the same time."""
        return self._setup.blocks_in_flight

    def fill(self) -> list[str]:
        """Start workers until all are there; the names of the new ones."""
        new = [next(self._names) for _ in range(self._count - len(self._workers))]
        self._workers |= {name: self._actor.remote(self._shared_setup) for name in new}
        return new

    def drop(self, name: str) -> None:
        """Forget a worker that died; it is ended if it still lives."""
        ray.kill(self._workers.pop(name))

    def close(self) -> None:
        for name in list(self._workers):
            self.drop(name)
