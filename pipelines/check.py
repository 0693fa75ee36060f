"""Everything that is wrong with a product, its store and its model, found before a cycle is run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from pipelines.cf import check_leads, check_names
from pipelines.encoding import Encoding
from pipelines.errors import PipelineError
from pipelines.frames import Cycle, Times, choose_frames, frame_offsets, usual_step
from pipelines.grid import Grid, known_units, unbroken
from pipelines.layout import Layout, choose_layout
from pipelines.planner import Needs, make_plan
from pipelines.product import InputSpec, Last, Product, format_duration
from pipelines.shelves import open_shelf
from pipelines.source import Source
from pipelines.transform import Encoder, ModelNeeds, make_decoder, make_encoder, output_quantity
from pipelines.units import Quantity, convert_units

RAIN_RATE = Quantity("lwe_precipitation_rate", "mm h-1")
PLAUSIBLE_RAIN_RATE = (0.0, 150.0)  # mm h-1; more falls for minutes only, and radar composites are capped near it
PLAUSIBLE_REFLECTIVITY = (-30.0, 70.0)  # dBZ
COARSEST_RAIN_RATE = 0.1  # mm h-1, the step of the usual composites and the usual threshold of rain
GRID_TOLERANCE = 1e-2  # of a cell


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the key of the product file, what was found there, and what was expected."""

    where: str
    found: str
    expected: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.found}" + (f"; expected {self.expected}" if self.expected else "")


def check_product(
    product: Product,
    source: Source | Exception,
    model: ModelNeeds | Exception,
    tile: Needs | None = None,
) -> list[Problem]:
    """Every problem of a product at once; an empty list means that a cycle can be run.

    Args:
        source: the opened store, or why it could not be opened.
        model: what the model's contract says, or why the package could not be loaded.
        tile: what the model asks of its tiles; None leaves the tiling unchecked.
    """
    problems = list(_check_output(product))
    if isinstance(source, Exception):
        problems.append(Problem("input.store", str(source)))
    else:
        problems += [*_check_times(source, product), *_check_unseen(source), *_check_newest(source, product)]
        problems += _check_room(source.grid, product)
        problems += _check_tiling(source.grid, product, tile)
    if isinstance(model, Exception):
        problems.append(Problem("model.package", str(model)))
    elif isinstance(source, Source):
        problems += check_fit(product, source, model)
    return problems


def check_fit(product: Product, source: Source, model: ModelNeeds) -> list[Problem]:
    """Why a product, its store and its model would give a wrong forecast, whatever frames have arrived."""
    return [
        *_check_grid(source.grid),
        *_check_spacing(source.grid, product),
        *_refusal("output.variable", lambda: check_names(source.grid, product.output.variable)),
        *_refusal("lead_times", lambda: check_leads(product.leads)),
        *_check_model(product, model),
        *_check_leads(product, model),
        *_check_packing(product, model),
        *_check_cadence(source, product.input, model),
        *_check_quantity(source.encoding, product, model),
    ]


def _refusal(where: str, action: Callable[[], object]) -> Iterator[Problem]:
    """The problem that an action refuses with, if it does."""
    try:
        action()
    except PipelineError as error:
        yield Problem(where, str(error))


def _check_grid(grid: Grid) -> Iterator[Problem]:
    x = unbroken(grid.x) if grid.is_in_degrees else grid.x
    for name, values in ((grid.y_name, grid.y), (grid.x_name, x)):
        if len(values) < 2:
            yield Problem("input.store", f"coordinate {name!r} has {len(values)} cell(s)", "at least 2")
        elif uneven := _uneven(values):
            yield Problem("input.store", f"coordinate {name!r} is not regular: {uneven}", "even steps")


def _check_spacing(grid: Grid, product: Product) -> Iterator[Problem]:
    """The one model that squall makes for the size of the cells knows it."""
    if product.model.package != "builtin:advection":
        return
    for name, attributes in ((grid.y_name, grid.y_attrs), (grid.x_name, grid.x_attrs)):
        if not known_units(attributes):
            found = f"coordinate {name!r} has units {attributes['units']!r}"
            yield Problem("input.store", found, "m, km or degrees, by which builtin:advection knows how far rain moves")


def _uneven(values: NDArray[np.float64]) -> str:
    """Where a coordinate leaves its even steps; empty if it does not."""
    even = np.linspace(values[0], values[-1], len(values))
    rounding = np.spacing(np.float32(np.abs(values).max()))  # many stores keep coordinates in float32
    off = np.abs(values - even) > GRID_TOLERANCE * abs(values[-1] - values[0]) / (len(values) - 1) + rounding
    if values[0] == values[-1]:
        return f"it starts and ends at {values[0]:g}"
    return f"cell {off.argmax()} is at {values[off.argmax()]:g}, not {even[off.argmax()]:g}" if off.any() else ""


def _check_times(source: Source, product: Product) -> Iterator[Problem]:
    yield from _refusal(
        "input.history",
        lambda: choose_frames(source.times, product.name, product.input, None, source.where, source.first),
    )


def _check_unseen(source: Source) -> Iterator[Problem]:
    """A store whose readers will never see its newest frames."""
    found = []
    yield from _refusal("input.store", lambda: found.append(source.count_unseen()))
    if found and found[0]:
        yield Problem(
            "input.store",
            f"{source.where} holds {found[0]} frame(s) that its consolidated metadata does not show",
            "a writer that renews it after every append, such as zarr.consolidate_metadata(store)",
        )


def _check_newest(source: Source, product: Product) -> Iterator[Problem]:
    """The newest frame can be read and its values make sense."""
    index = source.newest

    def read() -> None:
        if index >= 0 and source.is_stored(index):
            time = source.times[-1]
            source.read_frames(Cycle(product.name, time, (time,), (index,)))

    yield from _refusal("input.variable", read)


def _check_cadence(source: Source, spec: InputSpec, model: ModelNeeds) -> Iterator[Problem]:
    """Frames as many and as far apart as the model was made for."""
    count = spec.history.last if isinstance(spec.history, Last) else len(spec.history)
    if count != model.frames:
        yield Problem("input.history", f"{count} frame(s)", f"{model.frames} for {_named(model)}")
    steps = _history_steps(source.times, spec)
    wrong = [step for step in steps if model.cadence is not None and abs(step - model.cadence) > spec.tolerance]
    if wrong and model.cadence is not None:
        found = ", ".join(dict.fromkeys(format_duration(step) for step in steps))
        yield Problem("input.history", f"frames {found} apart", f"{format_duration(model.cadence)} for {_named(model)}")


def _history_steps(times: Times, spec: InputSpec) -> list[timedelta]:
    if isinstance(spec.history, Last) and (spec.history.last < 2 or usual_step(times) is None):
        return []
    offsets = np.array(frame_offsets(times, spec, ""), "timedelta64[us]")
    return [step.item() for step in np.diff(offsets)]


def _check_quantity(encoding: Encoding, product: Product, model: ModelNeeds) -> Iterator[Problem]:
    for problem in _refusal("input.variable", lambda: make_decoder(encoding, product.input, model)):
        yield replace(problem, found=f"{problem.found}; {_advice(encoding, product.input, model)}")


def _advice(encoding: Encoding, spec: InputSpec, model: ModelNeeds) -> str:
    """The line of the product file that may make the variable fit."""
    units = encoding.units.strip().lower()
    if units == "dbz" and spec.convert == "zr" and not model.quantity.is_rain_rate:
        return "for a model of reflectivity leave out input.convert"
    if units == "dbz" and spec.convert == "zr":
        return "write those of your radars, such as input.attributes: {zr_a: 200, zr_b: 1.6}"
    if units == "dbz" and model.quantity.is_rain_rate:
        return "for rain rate from reflectivity write input.convert: zr"
    if units in ("mm", "kg m-2") and model.quantity.is_rain_rate:
        rate = f"{{standard_name: {model.quantity.standard_name}, units: mm/(5 min)}}"
        return f"for sums of 5 minutes, say, write input.attributes: {rate}"
    return f"if the store is wrong or silent, write what is true, such as input.attributes: {{units: {_unit(model)}}}"


def _unit(model: ModelNeeds) -> str:
    return model.quantity.units or "the units"


def _check_model(product: Product, model: ModelNeeds) -> Iterator[Problem]:
    wanted = product.model.version
    if wanted is not None and wanted != model.version:
        yield Problem("model.version", f"{wanted}, but the package holds {model.version}", f"{model.version}")


def _check_leads(product: Product, model: ModelNeeds) -> Iterator[Problem]:
    absent = [format_duration(lead) for lead in product.leads if lead not in model.leads]
    if absent:
        offered = _listed([format_duration(lead) for lead in model.leads])
        yield Problem("lead_times", f"{_listed(absent)} not made by {_named(model)}", f"some of {offered}")


def _check_packing(product: Product, model: ModelNeeds) -> Iterator[Problem]:
    """Units fit, and plausible values find a code."""
    output = product.output
    try:
        encoder = make_encoder(output, model)
        low, high, coarsest = _plausible(output_quantity(output, model))
    except PipelineError as error:
        yield Problem("output.attributes", str(error))
        return
    least, greatest = packed_range(encoder)
    if least > low or greatest < high:
        yield Problem("output.packing", f"holds {least:g} to {greatest:g}", f"a range that holds {low:g} to {high:g}")
    if output.packing.scale_factor > coarsest * (1 + 1e-9):
        yield Problem("output.packing.scale_factor", f"{output.packing.scale_factor:g}", f"at most {coarsest:g}")


def _plausible(quantity: Quantity) -> tuple[float, float, float]:
    """Least and greatest plausible value and coarsest useful step, in the quantity's units; open where unknown."""
    if quantity.is_rain_rate:
        factor = convert_units(RAIN_RATE, quantity).factor
        return PLAUSIBLE_RAIN_RATE[0] * factor, PLAUSIBLE_RAIN_RATE[1] * factor, COARSEST_RAIN_RATE * factor
    if quantity.units.lower() == "dbz":
        return *PLAUSIBLE_REFLECTIVITY, np.inf
    return np.inf, -np.inf, np.inf


def packed_range(encoder: Encoder) -> tuple[float, float]:
    """The least and the greatest value that packed codes can hold, in the forecast's units."""
    least, greatest = encoder.limits
    scale, offset = encoder.packing.scale_factor, encoder.packing.add_offset
    return least * scale + offset, greatest * scale + offset


def _check_tiling(grid: Grid, product: Product, tile: Needs | None) -> Iterator[Problem]:
    try:
        layout = choose_layout(grid.shape, len(product.leads), product.output)
    except PipelineError as error:
        yield Problem("output.shards", str(error))
        return
    if tile is not None:
        shard = layout.shard[1], layout.shard[2]
        yield from _refusal("tiling", lambda: make_plan(grid.shape, shard, tile, product.tiling))


def _check_output(product: Product) -> Iterator[Problem]:
    """The forecast goes to a place that can be written and is not the input."""
    root, frames = PurePath(product.output.store), PurePath(product.input.store)
    if root == frames or frames in root.parents:
        yield Problem("output.store", f"{product.output.store} lies in the store that is read", "a place of its own")
    if product.output.store.startswith("memory://"):
        found = f"{product.output.store} is in the memory of one process"
        yield Problem("output.store", found, "a place that all workers see")
    yield from _refusal("output.store", lambda: open_shelf(product.output.store, product.name).check())


def _check_room(grid: Grid, product: Product) -> Iterator[Problem]:
    try:
        layout = choose_layout(grid.shape, len(product.leads), product.output)
        free = open_shelf(product.output.store, product.name).free_bytes()
    except PipelineError:
        return  # the other checks name it
    needed = largest_cycle_bytes(layout)
    if free is not None and free < needed:
        found = f"{free / 1e6:,.0f} MB free at {product.output.store}"
        yield Problem("output.store", found, f"{needed / 1e6:,.0f} MB, a cycle that does not compress")


def largest_cycle_bytes(layout: Layout) -> int:
    """Bytes of a cycle's shards if nothing compresses: whole chunks, their checksums and the shard index."""
    chunks = layout.chunks_per_shard
    per_shard = chunks[0] * chunks[1] * chunks[2] * (_chunk_bytes(layout) + 4 + 16) + 4
    return len(layout.shards) * per_shard


def _chunk_bytes(layout: Layout) -> int:
    lead, y, x = layout.chunk
    return lead * y * x * np.dtype(layout.dtype).itemsize


def _named(model: ModelNeeds) -> str:
    return f"the model {model.name} {model.version}"


def _listed(names: list[str]) -> str:
    """All names if they are few, else the first and the last ones.

    >>> _listed([f"{n}min" for n in range(5, 65, 5)])
    '5min, 10min, 15min, ..., 60min'
    """
    return ", ".join(names if len(names) <= 6 else [*names[:3], "...", names[-1]])
