"""One forecast from a product file: `squall run FILE`, or `python -m jobs.nowcast FILE` under `ray job submit`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jobs.cycle import CycleReport, Progress, run_cycle
from jobs.pool import Pool, cluster_resources, connect, disconnect
from jobs.prepare import Loaded, load, prepare


def forecast(
    file: Path, overrides: Sequence[str], reference_time: np.datetime64 | None, replace: bool, progress: Progress
) -> CycleReport:
    """The report of one cycle of a product, on the cluster of RAY_ADDRESS or on a local Ray.

    Raises:
        PipelineError, EngineError: nothing was published.
    """
    loaded = load(file, overrides)
    connect()
    try:
        return _on_workers(loaded, reference_time, replace, progress)
    finally:
        disconnect()


def _on_workers(loaded: Loaded, reference_time: np.datetime64 | None, replace: bool, progress: Progress) -> CycleReport:
    prepared = prepare(loaded, cluster_resources())
    pool = Pool(prepared.setup, prepared.workers, prepared.gpu)
    try:
        return run_cycle(prepared, pool, reference_time, replace, progress)
    finally:
        pool.close()


if __name__ == "__main__":
    from jobs.cli import run

    run()
