"""From a product file to everything a cycle needs that stays the same from cycle to cycle."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.footprint import bytes_per_cell
from engines.model import Contract, ModelPackage, Transform
from engines.ort import OrtEngine
from engines.probe import Reach, probe
from jobs import __version__
from jobs.models import find_package
from jobs.pool import Resources
from jobs.worker import Setup
from pipelines.cf import Attribute, Provenance
from pipelines.errors import ConfigError
from pipelines.layout import Layout, choose_layout
from pipelines.planner import Needs, Plan, make_plan
from pipelines.product import Product, dump_product, load_product
from pipelines.source import Cycle, Source, open_source
from pipelines.transform import ModelNeeds, make_decoder, make_encoder, make_space, output_quantity
from pipelines.units import Quantity

_VERSIONED = ("numpy", "onnxruntime", "zarr", "ray")


@dataclass(frozen=True)
class Loaded:
    """A product with its store open and its model checked; no worker is needed yet."""

    product: Product
    source: Source
    package: ModelPackage
    model: ModelNeeds
    tiles: Needs


@dataclass(frozen=True)
class Prepared:
    """All that the cycles of a product share."""

    product: Product
    source: Source
    package: ModelPackage
    layout: Layout
    plan: Plan
    setup: Setup
    workers: int
    gpu: bool
    attributes: dict[str, Attribute]

    def provenance(self, cycle: Cycle) -> Provenance:
        """Where a cycle's forecast comes from."""
        package = self.package
        return Provenance(
            product=dump_product(self.product),
            model=package.identity,
            engine=f"onnxruntime CPU float32, graph {package.graph_sha256[:12]}, weights {package.weights_sha256[:12]}",
            versions={"squall": __version__} | {name: importlib.metadata.version(name) for name in _VERSIONED},
            input_store=self.product.input.store,
            frame_times=cycle.frame_times,
        )


def load(file: Path, overrides: Sequence[str]) -> Loaded:
    """The product of a file, its store open and its model checked.

    Raises:
        ConfigError, InputError, ModelError: what was found and what was expected.
    """
    product = load_product(file, overrides)
    source = open_source(product.input)
    package = find_package(product, source)
    return Loaded(product, source, package, model_needs(package.contract), tile_needs(package))


def prepare(loaded: Loaded, resources: Resources) -> Prepared:
    """All that the cycles of a product share, for the workers that there are.

    Raises:
        ConfigError: the product does not fit its store or its model.
    """
    product, source, model = loaded.product, loaded.source, loaded.model
    layout = choose_layout(source.grid.shape, len(product.leads), product.output)
    crew = resources.crew(None if product.workers == "auto" else product.workers)
    plan = make_plan(source.grid.shape, layout.shard[1:], loaded.tiles, product.tiling, crew)
    workers = min(crew.workers, len(plan.tiling.blocks()))
    setup = Setup(
        model=loaded.package.onnx_path,
        threads=max(1, resources.cores // workers),
        source=source,
        tiling=plan.tiling,
        decoder=make_decoder(source.encoding, product.input, model),
        encoder=make_encoder(product.output, model),
        leads=lead_indices(product, model),
        batch=plan.batch,
        mask_from_input=model.coverage == "input",
    )
    return Prepared(
        product, source, loaded.package, layout, plan, setup, workers, not crew.shared, attributes_of(product, model)
    )


def model_needs(contract: Contract) -> ModelNeeds:
    """What a contract means for pipelines."""
    given, returned = contract.input, contract.output
    return ModelNeeds(
        name=contract.name,
        version=contract.version,
        frames=given.frames,
        cadence=given.cadence,
        quantity=Quantity(given.standard_name, given.units),
        space=make_space(_numbers(given.transform), given.missing),
        leads=returned.leads,
        output_quantity=Quantity(returned.standard_name, returned.units),
        output_space=make_space(_numbers(returned.transform), missing_below=returned.missing_below),
        coverage=returned.coverage,
    )


def tile_needs(package: ModelPackage) -> Needs:
    """What a model asks of its tiles: as declared, or measured where the contract does not say."""
    rule = package.contract.tile
    reach = Reach(None if rule.radius == "global" else rule.radius, rule.stride or 1)
    if rule.radius is None or rule.stride is None:
        measured = probe(OrtEngine(package.onnx_path), package.contract.input.frames)
        reach = Reach(measured.radius if rule.radius is None else reach.radius, rule.stride or measured.stride)
    return Needs(reach.radius, reach.stride, bytes_per_cell(package.onnx_path, package.contract.input.frames))


def lead_indices(product: Product, model: ModelNeeds) -> tuple[int, ...]:
    """Which of the model's lead times the product publishes.

    Raises:
        ConfigError: a lead time that the model does not make.
    """
    unknown = [lead for lead in product.leads if lead not in model.leads]
    if unknown:
        raise ConfigError(f"lead time {unknown[0]} of product {product.name!r} is none of the model's: "
                          f"{', '.join(map(str, model.leads))}")  # fmt: skip
    return tuple(model.leads.index(lead) for lead in product.leads)


def attributes_of(product: Product, model: ModelNeeds) -> dict[str, Attribute]:
    """CF attributes of the forecast variable: the model's quantity, and what the product file adds."""
    quantity = output_quantity(product.output, model)
    named = {"standard_name": quantity.standard_name} if quantity.standard_name else {}
    long_name = {"long_name": (quantity.standard_name or product.output.variable).replace("_", " ")}
    return named | long_name | {"units": quantity.units} | dict(product.output.attributes)


def _numbers(transform: Transform) -> dict[str, Any]:
    return transform.model_dump()
