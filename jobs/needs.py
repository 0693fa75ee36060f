"""What a model asks of its tiles: as declared, or measured once and kept, for a probe takes most of a second."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from math import prod
from pathlib import Path

from engines.cores import usable_cores
from engines.files import replace_file
from engines.footprint import bytes_per_cell
from engines.model import ModelPackage
from engines.ort import OrtEngine
from engines.probe import PROBE_VERSION, probe, takes_batches
from jobs import __version__
from jobs.folders import cache_folder
from pipelines.errors import ConfigError
from pipelines.planner import FULL_CELLS, Needs
from pipelines.product import TilingSpec
from pipelines.tiling import round_up


def tile_needs(package: ModelPackage) -> Needs:
    """What a model asks of its tiles: as declared, or measured where the contract does not say.

    Raises:
        ModelError: ONNX Runtime cannot load the graph, or it cannot be probed.
    """
    return _kept(package, None, lambda: measure_needs(package))


def needs_on(package: ModelPackage, grid: tuple[int, int], tiling: TilingSpec) -> Needs:
    """As `tile_needs`; of a model that must see the whole of this grid, with the memory that this takes.

    Where every cell looks at every other, memory grows faster than the cells, so a small tile says too little.
    """
    needs = tile_needs(package)
    if needs.radius is not None or needs.size is not None or tiling.mode == "feather":
        return needs
    frame = round_up(grid[0], needs.stride), round_up(grid[1], needs.stride)
    frames = package.contract.input.frames
    on_frame = partial(bytes_per_cell, package.onnx_path, frames, frame)
    return _kept(package, frame, lambda: replace(needs, bytes_per_cell=on_frame()))


def measure_needs(package: ModelPackage) -> Needs:
    """As `tile_needs`, measured now."""
    rule, frames = package.contract.tile, package.contract.input.frames
    engine = OrtEngine(package.onnx_path)
    size = _fixed_size(engine)
    radius, stride = (None if rule.radius == "global" else rule.radius), rule.stride
    if rule.radius is None or stride is None:
        measured = probe(engine, frames, size, rule.radius, stride)
        radius, stride = (measured.radius if rule.radius is None else radius), measured.stride
    tried = size or (round_up(256, stride), round_up(256, stride))
    footprint = bytes_per_cell(package.onnx_path, frames, tried)
    return Needs(radius, stride, footprint, size, _batch(engine, frames, tried))


def _batch(engine: OrtEngine, frames: int, tile: tuple[int, int]) -> int | None:
    """The one count of tiles in a batch that a model takes, None if any; a tile that fills a GPU alone is not tried."""
    count = engine.specs[0].shape[0]
    if count is not None or 2 * prod(tile) > FULL_CELLS or takes_batches(engine, frames, tile):
        return count
    return 1


def try_model(package: ModelPackage, tile: tuple[int, int]) -> None:
    """Runs a model once on a dry tile (y, x), and drops the result.

    Raises:
        ModelError, InferenceError: ONNX Runtime cannot load or run it (names the shape and ONNX Runtime's reason).
    """
    engine = OrtEngine(package.onnx_path, usable_cores())
    engine.warm((engine.specs[0].shape[0] or 1, package.contract.input.frames, *tile))


def _fixed_size(engine: OrtEngine) -> tuple[int, int] | None:
    """The one tile size that a model takes, None if it takes any."""
    height, width = engine.specs[0].shape[2:]
    return None if height is None or width is None else (height, width)


def _kept(package: ModelPackage, frame: tuple[int, int] | None, measure: Callable[[], Needs]) -> Needs:
    """What was measured before of a package, on a frame (h, w) or on any tile; measured and kept if nothing was."""
    with suppress(ConfigError, OSError, ValueError, TypeError, LookupError):
        kept = json.loads(_file(package, frame).read_bytes())
        return Needs(**kept | {"size": kept["size"] and tuple(kept["size"])})
    needs = measure()
    with suppress(ConfigError, OSError):  # where it cannot be kept, it is measured again the next time
        replace_file(_file(package, frame), json.dumps(asdict(needs)).encode())
    return needs


def _file(package: ModelPackage, frame: tuple[int, int] | None) -> Path:
    """Named by all that the needs come from."""
    rule, frames = package.contract.tile.model_dump_json(), package.contract.input.frames
    made_of = f"{__version__} {PROBE_VERSION} {package.graph_sha256} {package.weights_sha256} {frames} {rule} {frame}"
    return cache_folder() / "needs" / f"{hashlib.sha256(made_of.encode()).hexdigest()[:32]}.json"
