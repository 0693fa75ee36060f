"""What an operator sees of kept workers, and how they are ended by hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from jobs.kept import Workers, ask, find_kept
from jobs.pool import connect, disconnect, outlives_us
from jobs.worker import Status
from pipelines.errors import ConfigError
from pipelines.product import load_product


@dataclass(frozen=True)
class WorkerRow:
    """A kept worker; `state` is one of idle, in use, abandoned, opening, silent, ended."""

    product: str
    worker: str
    state: str
    node: str = ""
    pid: int = 0
    engine: str = ""
    idle_seconds: float = 0.0
    rss_bytes: int = 0


def list_workers(file: Path | None) -> list[WorkerRow]:
    """The workers kept on the cluster, of all products or of that of a file.

    Raises:
        ConfigError: there is no cluster to ask, or the product file is wrong.
        ConnectionError: the cluster does not answer.
    """
    with _kept(file) as kept:
        return _rows(kept)


def stop_workers(file: Path | None) -> list[WorkerRow]:
    """Ends the kept workers that no run uses; all that were found.

    Raises:
        ConfigError, ConnectionError: as of `list_workers`.
    """
    with _kept(file) as kept:
        return [row if row.state == "in use" else _end(kept, row) for row in _rows(kept)]


def _end(kept: Workers, row: WorkerRow) -> WorkerRow:
    ray.kill(kept[row.worker])
    return replace(row, state="ended")


@contextmanager
def _kept(file: Path | None) -> Iterator[Workers]:
    product = None if file is None else load_product(file).name
    if not outlives_us():
        raise ConfigError("RAY_ADDRESS is not set; workers are kept on a running cluster only, so name it, or auto")
    connect()
    try:
        yield find_kept(product)
    finally:
        disconnect()


def _rows(kept: Workers) -> list[WorkerRow]:
    said = ask(kept, lambda worker: worker.status.remote())
    return [_row(name, said.get(name)) for name in kept]


def _row(name: str, status: Status | None) -> WorkerRow:
    product = name.rpartition("-")[0]
    if status is None:
        return WorkerRow(product, name, "silent")
    return WorkerRow(
        product, name, state_of(status), status.node, status.pid, status.engine, status.idle_seconds, status.rss_bytes
    )


def state_of(status: Status) -> str:
    """In one word what a worker is doing; `abandoned` if its run is gone without a word."""
    if status.is_abandoned:
        return "abandoned"
    if status.holder:
        return "in use"
    return "opening" if status.news else "idle"
