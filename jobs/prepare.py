"""From a product file to everything a cycle needs that stays the same from cycle to cycle."""

import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, TypeVar

from engines import cuda
from engines.base import EngineError
from engines.cores import usable_cores
from engines.model import ModelPackage
from engines.precision import Precision
from engines.supply import Name
from engines.typed import TypedModel
from jobs import __version__, clock
from jobs.contract import model_needs
from jobs.engine import EngineOrder, batch_spec, typed_graph
from jobs.models import find_package
from jobs.needs import needs_on, try_model
from jobs.outfit import Setup
from jobs.pace import known_pace
from jobs.pool import Resources
from pipelines.cf import Attribute, Provenance, StoreTemplate, store_template
from pipelines.check import Problem, check_fit, check_product
from pipelines.errors import ConfigError, PipelineError
from pipelines.layout import Layout, choose_layout
from pipelines.planner import Crew, Flight, Needs, Pace, Plan, make_plan
from pipelines.product import Product, ProductFileError, dump_product, load_product
from pipelines.source import Cycle, Source, arrived, open_source
from pipelines.transform import BLOCK_CELLS, SHARED_CELLS, ModelNeeds, make_decoder, make_encoder, output_quantity

T = TypeVar("T")

GROUPS_IN_FLIGHT = 2  # of cycles, in a worker: while one ends, cycles of the next keep it busy
MOST_LANES = 8  # batches in an engine at once; more take memory and wait for each other

_VERSIONED = ("numpy", "onnxruntime", "zarr", "ray")


@dataclass(frozen=True)
class Loaded:
    """A product with its store open and its model checked; no worker is needed yet."""

    product: Product
    source: Source
    package: ModelPackage
    graph: TypedModel
    model: ModelNeeds
    tiles: Needs


@dataclass(frozen=True)
class Prepared:
    """All that the cycles of a product share.

    Attributes:
        cycles_in_flight: that a worker makes at the same time, if it makes whole ones.
    """

    product: Product
    source: Source
    package: ModelPackage
    layout: Layout
    plan: Plan
    setup: Setup
    workers: int
    gpu: bool
    attributes: dict[str, Attribute]
    cycles_in_flight: int = 1

    @cached_property
    def template(self) -> StoreTemplate:
        """What all stores of the product share; a ConfigError if grid, lead times and names do not fit each other."""
        product, grid = self.product, self.source.grid
        return store_template(product.name, grid, product.leads, self.layout, self.attributes)

    @cached_property
    def _product_file(self) -> str:
        return dump_product(self.product)

    def provenance(self, cycle: Cycle) -> Provenance:
        """Where a cycle's forecast comes from."""
        package, order = self.package, self.setup.order
        return Provenance(
            product=self._product_file,
            model=package.identity,
            engine=f"{order.runtime} {order.model.precision}, graph {order.model.graph_sha256[:12]}, "
            f"weights {order.model.weights_sha256[:12]}",
            versions=_versions(),
            input_store=self.product.input.store,
            frame_times=cycle.found_times,
            missing_times=cycle.missing_times,
        )


def load(file: Path, overrides: Sequence[str], all_times: bool = True) -> Loaded:
    """The product of a file, its store open and its model checked.

    Args:
        all_times: read all times of the store; else the newest, as `open_source` has it.

    Raises:
        ConfigError, InputError, ModelError: what was found and what was expected.
    """
    product = load_product(file, overrides)
    source = open_source(product.input, all_times)
    package = find_package(product, source)
    model = model_needs(package.contract)
    require_fit(product, source, model, file)
    graph = typed_graph(package, Precision.parse(product.model.precision))
    return Loaded(product, source, package, graph, model, needs_on(package, source.grid.shape, product.tiling))


def require_fit(product: Product, source: Source, model: ModelNeeds, file: Path) -> None:
    """Raises ConfigError if a product, its store and a model do not fit each other (lists every reason)."""
    problems = check_fit(product, source, model)
    if problems:
        raise ConfigError("\n  ".join([f"{len(problems)} problem(s) in {file}:", *map(str, problems)]))


def prepare(loaded: Loaded, resources: Resources, whole_cycles: bool = False) -> Prepared:
    """All that the cycles of a product share, for the workers that there are.

    Args:
        whole_cycles: each worker makes cycles by itself, as in a backfill; else all share the blocks of one cycle.

    Raises:
        ConfigError: the product does not fit its store or its model.
    """
    product = loaded.product
    resources = _for_engine(resources, product)
    pace = known_pace(loaded.package) or Pace()
    layout, crew, plan = choose_plan(product, loaded.source, loaded.tiles, resources, pace, whole_cycles)
    pieces = sys.maxsize if whole_cycles else len(plan.tiling.blocks())
    flight = crew.flight(pieces)
    return Prepared(
        product=product,
        source=loaded.source,
        package=loaded.package,
        layout=layout,
        plan=plan,
        setup=_setup(loaded, plan, crew, flight, whole_cycles),
        workers=min(crew.workers, pieces),
        gpu=not crew.shared,
        attributes=attributes_of(product, loaded.model),
        cycles_in_flight=flight.blocks if whole_cycles else 1,
    )


def _setup(loaded: Loaded, plan: Plan, crew: Crew, flight: Flight, whole_cycles: bool) -> Setup:
    """What each worker needs to know, by how many blocks and threads it has in flight."""
    product, model = loaded.product, loaded.model
    cells = SHARED_CELLS if flight.threads > 1 else BLOCK_CELLS
    return Setup(
        order=_order(loaded, plan, crew, flight),
        tiling=plan.tiling,
        decoder=replace(make_decoder(loaded.source.encoding, product.input, model), block_cells=cells),
        encoder=replace(make_encoder(product.output, model), block_cells=cells),
        leads=tuple(model.leads.index(lead) for lead in product.leads),
        batch=plan.batch,
        mask_from_input=model.coverage == "input",
        blocks_in_flight=min(flight.blocks, GROUPS_IN_FLIGHT) if whole_cycles else flight.blocks,
        workers_per_gpu=crew.per_gpu,
        team=max(1, flight.threads // flight.blocks) if whole_cycles else flight.threads,
    )


def _order(loaded: Loaded, plan: Plan, crew: Crew, flight: Flight) -> EngineOrder:
    """The engine that each worker opens."""
    spec = batch_spec((plan.batch, loaded.model.frames, *plan.tiling.tile), loaded.graph.precision)
    runtime: Name = "onnxruntime" if crew.shared else "tensorrt"
    lanes = min(flight.blocks, flight.threads + 1, MOST_LANES)
    return EngineOrder(loaded.graph, spec, runtime, threads=flight.threads, lanes=lanes)


def choose_plan(
    product: Product, source: Source, tiles: Needs, resources: Resources, pace: Pace, whole_cycles: bool = False
) -> tuple[Layout, Crew, Plan]:
    """How the forecast is stored, who works on it, and how the grid is cut for them.

    Where each worker makes whole cycles, it is cut for one of them alone; but beside GPUs always for all of them: an
    engine is built for one size of tile, and a cycle names its engine.

    Raises:
        ConfigError: nothing fits; names the number that is in the way.
    """
    layout = choose_layout(source.grid.shape, len(product.leads), product.output)
    crew = resources.crew(_count(product.workers), _count(product.blocks_in_flight), _count(product.workers_per_gpu))
    cutting = replace(crew, workers=1) if whole_cycles and crew.shared else crew
    return layout, crew, make_plan(source.grid.shape, layout.shard[1:], tiles, product.tiling, cutting, pace)


def _count(wanted: int | Literal["auto"]) -> int | None:
    return None if wanted == "auto" else wanted


def _for_engine(resources: Resources, product: Product) -> Resources:
    """What of the cluster the product's engine can use.

    Raises:
        ConfigError: TensorRT is asked for and Ray has no GPU.
    """
    if product.model.engine == "tensorrt" and not resources.gpus:
        raise ConfigError("model.engine is tensorrt, but Ray knows of no GPU here; use auto or onnxruntime")
    return Resources(0, resources.cores) if product.model.engine == "onnxruntime" else resources


def attributes_of(product: Product, model: ModelNeeds) -> dict[str, Attribute]:
    """CF attributes of the forecast variable: the model's quantity, and what the product file adds."""
    quantity = output_quantity(product.output, model)
    named = {"standard_name": quantity.standard_name} if quantity.standard_name else {}
    long_name = {"long_name": (quantity.standard_name or product.output.variable).replace("_", " ")}
    return named | long_name | {"units": quantity.units} | dict(product.output.attributes)


@dataclass(frozen=True)
class Planned:
    """How a product's grid would be cut, with what that was decided from."""

    plan: Plan
    layout: Layout
    tiles: Needs
    workers: int
    flight: Flight
    gpu: bool
    pace: Pace | None

    def rows(self) -> list[tuple[str, str]]:
        """Names and values to show."""
        tiling, needs, flight = self.plan.tiling, self.tiles, self.flight
        radius = "the whole frame" if needs.radius is None else f"{needs.radius} cells"
        pace = [] if self.pace is None and not self.gpu else [("pace", _pace(self.pace))]
        return [
            ("grid", _by(tiling.grid)),
            ("model", f"radius {radius}, stride {needs.stride}, {needs.bytes_per_cell:.0f} bytes per cell"),
            ("mode", tiling.mode),
            ("tile", f"{_by(tiling.tile)}, halo {tiling.halo}, core {_by(tiling.core)}"),
            ("tiles", f"{tiling.tile_count}, {self.plan.batch} in a batch, {self.plan.memory_bytes / 1e9:.2f} GB"),
            ("blocks", f"{len(tiling.blocks())} of {_by(tiling.block)} cells"),
            ("shards", f"{_by(self.layout.shard[1:])}, chunks {_by(self.layout.chunk[1:])}"),
            ("workers", f"{self.workers}, {flight.blocks} block(s) in flight, {flight.threads} thread(s)"),
            *pace,
        ]


def plan_of(file: Path, overrides: Sequence[str]) -> Planned:
    """How the grid of a product would be cut on this machine; no Ray is started."""
    loaded = load(file, overrides, all_times=False)
    prepared = prepare(loaded, Resources(cuda.device_count(), usable_cores()))
    setup = prepared.setup
    flight = Flight(setup.blocks_in_flight, setup.team)
    plan, layout, pace = prepared.plan, prepared.layout, known_pace(loaded.package)
    return Planned(plan, layout, loaded.tiles, prepared.workers, flight, prepared.gpu, pace)


def _pace(measured: Pace | None) -> str:
    pace, source = measured or Pace(), "measured here" if measured else "of one H200 with 16 cores, see --calibrate"
    return f"{pace.infer * 1e9:.2f} ns a cell of a tile, {pace.host * 1e9:.0f} core-ns a cell of the grid; {source}"


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def find_problems(file: Path, overrides: Sequence[str]) -> list[Problem]:
    """Every problem of a product file, its store and its model at once; an empty list means that it can run."""
    try:
        product = load_product(file, overrides)
    except ProductFileError as error:
        return [Problem(key, reason) for key, reason in error.problems]
    except ConfigError as error:
        return [Problem("product file", str(error))]
    source = _tried(lambda: arrived(open_source(product.input), clock.now(), clock.AHEAD))
    if isinstance(source, Exception):
        unseen = ConfigError(f"{product.model.package} is checked once the input store can be opened")
        return check_product(product, source, unseen)
    package = _tried(lambda: find_package(product, source))
    if isinstance(package, Exception):
        return check_product(product, source, package)
    model = _tried(lambda: model_needs(package.contract))
    tiles = _tried(lambda: needs_on(package, source.grid.shape, product.tiling))
    if isinstance(tiles, Exception):
        return check_product(product, source, tiles)
    problems = check_product(product, source, model, tiles)
    return problems or _try_model(product, source, package, tiles)


def _try_model(product: Product, source: Source, package: ModelPackage, tiles: Needs) -> list[Problem]:
    """Why the model cannot be had in the precision of the product, or run on one of its tiles; nothing if it can."""
    graph = _tried(lambda: typed_graph(package, Precision.parse(product.model.precision)))
    if isinstance(graph, Exception):
        return [Problem("model.precision", str(graph))]
    shard = choose_layout(source.grid.shape, len(product.leads), product.output).shard[1:]
    tile = make_plan(source.grid.shape, shard, tiles, product.tiling).tiling.tile
    fault = _tried(lambda: try_model(package, tile))
    return [Problem("model.package", str(fault))] if isinstance(fault, Exception) else []


def _tried(action: Callable[[], T]) -> T | Exception:
    """What an action gives, or the error it refuses with."""
    try:
        return action()
    except (PipelineError, EngineError) as error:
        return error


@cache
def _versions() -> dict[str, str]:
    return {"squall": __version__} | {name: importlib.metadata.version(name) for name in _VERSIONED}
