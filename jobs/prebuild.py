"""Engines built before they are needed, here and on other kinds of GPUs of the cluster; and what the cache holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx

from engines.base import EngineError
from engines.cores import usable_cores
from engines.precision import Precision
from engines.scratch import scratch_folder
from engines.spec import BuildSpec
from engines.supply import Supplied, Tell, find_runtime, supply
from engines.typed import TypedModel, open_typed
from jobs.cases import CaseSet
from jobs.engine import batch_spec, describe_engine, open_cache
from jobs.setting import Setting
from jobs.trial import graph_of
from jobs.watch import SILENT, StepReport, Watcher
from pipelines.errors import ConfigError

HERE = "here"


@dataclass(frozen=True)
class EngineReport:
    """An engine that is ready, where it is for, and how it came about (loaded, refitted, built)."""

    place: str
    precision: str
    how: str
    seconds: float
    digest: str
    size_bytes: int
    label: str
    obtained: str


def prebuild(
    setting: Setting, precisions: Sequence[Precision], places: Sequence[str], watcher: Watcher = SILENT
) -> list[EngineReport]:
    """Reports of engines that are ready now: of each precision, in each place.

    Args:
        places: `here`, or kinds of GPUs as Ray calls them, such as A100.

    Raises:
        ConfigError: there is no such GPU in the cluster, or no cluster.
        EngineError: an engine cannot be had.
    """
    kinds = _kinds([place for place in places if place != HERE])
    spec_of = {precision: batch_spec(setting.shape, precision) for precision in precisions}
    models = {precision: graph_of(setting.package, precision, _calibration(setting)) for precision in precisions}
    reports = []
    for place in places:
        for precision, model in models.items():
            watcher.begins(f"{precision} for {place}")
            if place == HERE:
                report = build_here(model, spec_of[precision], HERE, watcher.says)
            else:
                report = _build_there(model, spec_of[precision], kinds[place], watcher.says)
            watcher.ended(StepReport(f"{precision} for {place}: {report.how}", report.seconds))
            reports.append(report)
    return reports


def _calibration(setting: Setting) -> Callable[[], CaseSet]:
    return lambda: setting.gather_cases(None, takes_one_size=False)


def build_here(model: TypedModel, spec: BuildSpec, place: str, tell: Tell) -> EngineReport:
    """The report of an engine that is in the cache of this machine now.

    Raises:
        EngineError: it cannot be had, or the cache cannot keep it.
    """
    supplied = supply(find_runtime(threads=usable_cores()), open_cache(), model, spec, tell)
    supplied.engine.close()
    if supplied.unkept is not None:
        raise supplied.unkept
    return _report(supplied, place)


def _report(supplied: Supplied, place: str) -> EngineReport:
    key, manifest = supplied.key, supplied.manifest
    return EngineReport(
        place, key.precision, supplied.how, supplied.seconds, key.digest, manifest.size_bytes,
        describe_engine(supplied), manifest.notes.get("obtained", "unknown"),
    )  # fmt: skip


def _kinds(wanted: Sequence[str]) -> dict[str, str]:
    """Kinds of GPUs as the user and as the cluster calls them.

    Raises:
        ConfigError: the cluster has no such GPU (names those that it has), or there is no cluster.
    """
    if not wanted:
        return {}
    import ray

    from jobs.pool import connect, outlives_us

    if not outlives_us() and not ray.is_initialized():
        raise ConfigError(f"{', '.join(wanted)} is built by a Ray cluster that has one; set RAY_ADDRESS, or write here")
    connect()
    prefix = "accelerator_type:"
    there = {name.removeprefix(prefix) for name in ray.cluster_resources() if name.startswith(prefix)}
    found = {word: kind for word in wanted for kind in there if kind.lower() == word.lower()}
    absent = [word for word in wanted if word not in found]
    if absent:
        raise ConfigError(f"no GPU {', '.join(absent)} in the cluster; it has {', '.join(sorted(there)) or 'none'}")
    return found


def _build_there(model: TypedModel, spec: BuildSpec, kind: str, tell: Tell) -> EngineReport:
    """As `build_here`, in a Ray task on a node with that kind of GPU; the graph is sent there."""
    import ray
    from ray.exceptions import RayTaskError

    tell(f"on a node with {kind}")
    task = ray.remote(num_cpus=0, num_gpus=1, accelerator_type=kind, max_retries=0)(_task)
    try:
        report: EngineReport = ray.get(task.remote(_packed(model), str(model.precision), spec, kind))
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, EngineError) else EngineError(str(error.cause)) from None
    return report


def _packed(model: TypedModel) -> bytes:
    """The graph with all its weights."""
    return bytes(onnx.load(model.path).SerializeToString(deterministic=True))


def _task(graph: bytes, precision: str, spec: BuildSpec, kind: str) -> EngineReport:
    with scratch_folder("squall-scratch-build-") as folder:
        path = folder / "model.onnx"
        path.write_bytes(graph)
        return build_here(open_typed(path, Precision.parse(precision)), spec, kind, lambda text: None)


@dataclass(frozen=True)
class FileReport:
    """An engine file of the cache; `used_at` is in UTC."""

    digest: str
    graph_sha256: str
    weights_sha256: str | None
    precision: str
    runtime: str
    gpu: str
    size_bytes: int
    used_at: str


def list_files(root: Path | None = None) -> list[FileReport]:
    """The engine files of the cache, the last used first; damaged ones are left out."""
    cache = open_cache(root)
    keys: dict[str, Any] = cache.keys()
    entries = sorted(cache.entries(), key=lambda entry: (-entry.used_ns, entry.digest))
    return [
        FileReport(
            entry.digest, key.graph_sha256, key.weights_sha256, key.precision, f"{key.flavour} {key.runtime_version}",
            key.gpu, entry.size_bytes, datetime.fromtimestamp(entry.used_ns / 1e9, UTC).isoformat(timespec="seconds"),
        )
        for entry in entries if (key := keys.get(entry.digest)) is not None
    ]  # fmt: skip
