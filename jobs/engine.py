"""The engine of a product: which graph, built how, by which runtime; and the cache of this machine."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from engines.cache import EngineCache, mac_key_from
from engines.graph import inside
from engines.model import ModelPackage
from engines.precision import Precision
from engines.spec import BuildSpec, Profile, Shape
from engines.supply import Name, Supplied, Tell, find_runtime, supply
from engines.typed import TypedModel, open_typed, type_model
from jobs.folders import cache_folder, cache_limit_bytes

log = logging.getLogger(__name__)

GRAPHS = "graphs"
REFIT = frozenset({"REFIT"})


@dataclass(frozen=True)
class EngineOrder:
    """An engine that a worker is to open: the same on every machine, small enough to send.

    Attributes:
        threads: of one inference of ONNX Runtime.
        lanes: batches that are in a TensorRT engine at once.
    """

    model: TypedModel
    spec: BuildSpec
    runtime: Name = "auto"
    threads: int = 1
    lanes: int = 3


def open_engine(order: EngineOrder, tell: Tell = log.info) -> Supplied:
    """The engine of an order on this machine: from the cache, refitted, or built.

    Raises:
        EngineError: it cannot be had here; names why.
    """
    runtime = find_runtime(order.runtime, order.threads, lanes=order.lanes)
    return supply(runtime, open_cache(), order.model, order.spec, tell)


def open_cache(root: Path | None = None) -> EngineCache:
    """The cache of engine files in a folder, or in the one that the environment names.

    Raises:
        CacheError: others may write there, or the secret key of the environment is no such.
        ConfigError: the limit of the environment is no size.
    """
    folder = root or cache_folder() / "engine-cache"
    return EngineCache(folder, cache_limit_bytes(), mac_key_from(os.environ))


def typed_graph(package: ModelPackage, precision: Precision) -> TypedModel:
    """The graph of a package in a precision: the one that came with it, else rewritten here.

    Raises:
        ModelError: it cannot be had in this precision; int8 must come with the package, for it needs calibration. Or it
            lies outside the package.
    """
    stored = f"{GRAPHS}/{precision}.onnx"
    if precision != Precision() and (package.folder / stored).is_file():
        return open_typed(inside(package.folder, stored), precision)
    return type_model(package, precision, cache_folder() / GRAPHS)


def batch_spec(shape: Shape, precision: Precision) -> BuildSpec:
    """How engines of a product are built: for batches of 1 to n tiles of one size, refittable but for int8.

    The scales of int8 belong to its weights, so other weights need another build.
    """
    flags = REFIT if precision.arithmetic != "int8" else frozenset()
    return BuildSpec((Profile.up_to(shape),), flags)


def describe_engine(supplied: Supplied) -> str:
    """What ran, for provenance: equal on machines that compute the same."""
    key, sha256 = supplied.key, supplied.manifest.sha256
    if key.flavour == "onnxruntime":
        return f"onnxruntime {key.runtime_version} on CPU, {key.precision}"
    return f"{key.flavour} {key.runtime_version} on {key.gpu}, {key.precision}, engine file {sha256[:12]}"
