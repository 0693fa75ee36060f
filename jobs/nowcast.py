"""One forecast from a product file: `squall run FILE`, or `python -m jobs.nowcast FILE` under `ray job submit`."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jobs.cycle import CycleReport, Progress, run_cycle
from jobs.kept import Keep
from jobs.pool import Pool, cluster_resources, connect, disconnect, outlives_us, the_same_command
from jobs.prepare import Loaded, load, prepare
from jobs.raylet import RayGoneError
from pipelines.product import Product


def forecast(
    file: Path,
    overrides: Sequence[str],
    reference_time: np.datetime64 | None,
    replace: bool,
    progress: Progress,
    tell: Callable[[str], None] = lambda text: None,
) -> CycleReport:
    """The report of one cycle of a product, on the cluster of RAY_ADDRESS or on a local Ray.

    Args:
        tell: called with what workers say while their engines are opened; "" once all are open.

    Raises:
        PipelineError, EngineError, RayGoneError: nothing was published.
    """
    loaded = load(file, overrides, all_times=False)
    connect()
    try:
        return _on_workers(loaded, reference_time, replace, progress, tell)
    finally:
        disconnect()


def _on_workers(
    loaded: Loaded,
    reference_time: np.datetime64 | None,
    replace: bool,
    progress: Progress,
    tell: Callable[[str], None],
) -> CycleReport:
    prepared = prepare(loaded, cluster_resources())
    pool = Pool(prepared.setup, prepared.workers, prepared.gpu, keep_of(loaded.product), tell)
    try:
        return run_cycle(prepared, pool, reference_time, replace, progress)
    except RayGoneError as error:
        raise RayGoneError(f"{error}; nothing was published, {the_same_command()} makes the cycle") from error
    finally:
        pool.close()


def keep_of(product: Product) -> Keep | None:
    """How long the product's workers stay after a run; None where nothing can stay or nothing is to."""
    seconds = product.keep_warm.total_seconds()
    return Keep(product.name, seconds) if seconds and outlives_us() else None


if __name__ == "__main__":
    from jobs.cli import run

    run()
