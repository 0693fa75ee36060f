"""Cases for the gate and for calibration: stored ones, cut from an archive, or storms of squall where there is neither.

The same file, archive or model gives the same cases.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.cases import GROUPS, Case, CaseError, Tensor, cases_from_arrays, digest, intensity, load_cases, widen
from engines.precision import choose_cases
from pipelines.encoding import Encoding
from pipelines.errors import ConfigError, InputError
from pipelines.frames import text_of
from pipelines.grid import Window
from pipelines.product import Product
from pipelines.source import Cycle, Part, Source, cut, find_inputs
from pipelines.storms import FILL_VALUE, SCALE_FACTOR, draw_storms
from pipelines.tiling import Shape
from pipelines.transform import Decoder, ModelNeeds, make_decoder
from pipelines.units import Quantity, convert_units

COUNT, EXTREMES = 6, 2
TIMES = 16  # reference times that are looked at in an archive
STORMS = 8  # storms that are drawn
STORM_MINUTES = 60.0
LEAST_KNOWN = 0.5  # share of a window that must not be missing, where the archive has such windows

_RAIN = Encoding("int16", FILL_VALUE, (FILL_VALUE,), SCALE_FACTOR, 0.0, "mm h-1", "lwe_precipitation_rate", 0.0)


@dataclass(frozen=True, eq=False)
class CaseSet:
    """Cases of one size, ordinary and extreme, and where they come from, for the reader of a report."""

    cases: tuple[Case, ...]
    origin: str

    @property
    def about(self) -> dict[str, str]:
        """Names and values for a report."""
        counts = [f"{sum(case.group == group for case in self.cases)} {group}" for group in GROUPS]
        size = " x ".join(map(str, self.cases[0].inputs.shape[1:]))
        return {
            "cases": f"{', '.join(counts)}, {size} cells: {self.origin}",
            "cases sha256": digest(self.cases),
        }

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """(1, channel, h, w) each, for calibration."""
        return tuple(case.inputs[None] for case in self.cases)


@contextmanager
def calibrating_on(cases: CaseSet) -> Iterator[None]:
    """Says which cases a graph could not be calibrated on, and how others are given.

    Raises:
        CaseError: in place of a ValueError of the calibration.
    """
    try:
        yield
    except ValueError as error:
        raise CaseError(
            f"int8 cannot be calibrated on the cases ({cases.origin}): {error}. Give finite ones: cut from the archive "
            "of a product (--product FILE.yaml), or stored (--cases FILE.npz, of publish and the gate). If cells are "
            "missing there, input.missing of the contract must be a number. Or leave int8 out of --precision"
        ) from error


def stored_cases(path: Path, needs: ModelNeeds, size: Shape) -> CaseSet:
    """The cases of a file, each mirrored or cut around its strongest cell to (y, x) cells.

    Raises:
        CaseError: no file of cases, a group without a case, or other channels than the model takes (names the case).
    """
    cases = load_cases(path)
    for case in cases:
        if len(case.inputs) != needs.frames:
            raise CaseError(
                f"case {case.name!r} in {path} has {len(case.inputs)} channels; {needs.name} takes {needs.frames}"
            )
    for group in GROUPS:
        if all(case.group != group for case in cases):
            raise CaseError(f"no case in {path} is {group}; at least one ordinary and one extreme case is expected")
    return CaseSet(tuple(fit_case(case, size) for case in cases), f"stored in {path.name}")


def fit_case(case: Case, size: Shape) -> Case:
    """The case with exactly (y, x) cells: mirrored where it is too small, cut around its strongest cell where too big.

    >>> fit_case(Case("a", "extreme", np.zeros((3, 64, 200), np.float32)), (96, 96)).inputs.shape
    (3, 96, 96)
    """
    wide = case if _is_within(size, case.inputs.shape[1:]) else replace(widen(case, size), name=case.name)
    strongest = np.unravel_index(int(np.nan_to_num(wide.inputs[-1]).argmax()), wide.inputs.shape[1:])
    starts = [
        min(max(0, int(at) - want // 2), have - want)
        for at, want, have in zip(strongest, size, wide.inputs.shape[1:], strict=True)
    ]
    y, x = (slice(start, start + want) for start, want in zip(starts, size, strict=True))
    return replace(case, inputs=np.ascontiguousarray(wide.inputs[:, y, x]))


def _is_within(size: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return all(want <= have for want, have in zip(size, shape, strict=True))


def archive_cases(product: Product, source: Source, needs: ModelNeeds, size: Shape) -> CaseSet:
    """Cases cut from the store of a product: times spread over it, windows spread over the grid, the strongest always.

    Raises:
        InputError: no reference time has all its frames.
        CaseError: every window is alike, so that nothing could be judged.
    """
    decoder = make_decoder(source.encoding, product.input, needs)
    places = list(_places(product, source, decoder, size))
    strengths = [strength for _, _, strength in places]
    if len(set(strengths)) < 2:
        raise CaseError(
            f"{_all_alike(strengths)} in {source.where}; a gate needs ordinary and extreme weather: give a store with "
            "both (--product), or stored cases (--cases)"
        )
    chosen = [places[rank] for rank in choose_cases(strengths, min(COUNT, len(places)), EXTREMES)]
    arrays = {
        f"{_name(cycle)}-y{window.y0}-x{window.x0}": decoder.decode(source.read(cycle, window))
        for cycle, window, _ in chosen
    }
    first, last = (text_of(time) for time in (source.times[0], source.times[-1]))
    origin = f"cut from {source.variable} of {Path(source.store).name}, {first} to {last}"
    return CaseSet(cases_from_arrays(arrays, extremes=min(EXTREMES, len(arrays) - 1)), origin)


def _all_alike(strengths: list[float]) -> str:
    """What was found where no window is stronger than another.

    >>> _all_alike([0.5] * 3)
    'all 3 windows looked at are equally strong (0.5 in model space)'
    """
    if not strengths:
        return "all windows looked at are missing"
    if len(strengths) == 1:
        return "there is one window only"
    return f"all {len(strengths)} windows looked at are equally strong ({strengths[0]:g} in model space)"


def _places(product: Product, source: Source, decoder: Decoder, size: Shape) -> Iterator[tuple[Cycle, Window, float]]:
    """Windows of the archive with the intensity of their newest frame."""
    found = []
    for cycle in _cycles(product, source):
        newest = replace(cycle, frame_times=cycle.frame_times[-1:], frame_indices=cycle.frame_indices[-1:])
        frame = [Part(source.grid.window, source.read_frames(newest))]
        for window in _windows(source.grid.shape, size):
            codes = cut(frame, window, source.encoding.fill)
            known = 1.0 - float(decoder.is_missing(codes).mean())
            if known:
                found.append((known, (cycle, window, intensity(decoder.decode(codes)))))
    enough = min(LEAST_KNOWN, max((known for known, _ in found), default=0.0))
    yield from (place for known, place in found if known >= enough)


def _cycles(product: Product, source: Source) -> list[Cycle]:
    """Cycles of reference times spread over the archive; times without all their frames are left out.

    Raises:
        InputError: none is left (names the reason of the last).
    """
    picks = np.unique(np.linspace(0, len(source.times) - 1, TIMES).round().astype(int))
    found, reason = [], None
    for pick in picks:
        try:
            found.append(find_inputs(source, product, source.times[pick]))
        except InputError as error:
            reason = error
    if not found and reason is not None:
        raise reason
    return found


def _windows(grid: Shape, size: Shape) -> Iterator[Window]:
    """Windows of one size that cover a grid evenly; one that reaches beyond it where the grid is smaller."""
    rows, columns = (_starts(length, want) for length, want in zip(grid, size, strict=True))
    for y in rows:
        for x in columns:
            yield Window(y, y + size[0], x, x + size[1])


def _starts(length: int, size: int) -> list[int]:
    """
    >>> _starts(1000, 400), _starts(300, 400)
    ([0, 300, 600], [0])
    """
    count = max(1, -(-length // size))
    return [int(start) for start in np.linspace(0, max(0, length - size), count)]


def _name(cycle: Cycle) -> str:
    return str(cycle.reference_time.astype("datetime64[s]")).replace("-", "").replace(":", "")


def storm_cases(needs: ModelNeeds, size: Shape) -> CaseSet:
    """Cases of storms that squall makes up; the strongest of them are the extremes.

    Raises:
        ConfigError: the model takes something else than rain.
    """
    try:
        change = convert_units(Quantity(_RAIN.standard_name, _RAIN.units), needs.quantity)
    except ConfigError as error:
        raise ConfigError(
            f"{needs.name} takes {needs.quantity}, and squall's own storms are rain; "
            "give stored cases (--cases) or a product (--product)"
        ) from error
    decoder = Decoder(_RAIN, needs.space, change)
    arrays = {f"storm-{seed}": decoder.decode(_storm(seed, needs, size)) for seed in range(1, STORMS + 1)}
    return CaseSet(
        cases_from_arrays(arrays, COUNT, EXTREMES),
        "storms made up by squall, not the user's archive",
    )


def _storm(seed: int, needs: ModelNeeds, size: Shape) -> NDArray[np.int16]:
    """(frame, y, x) codes of a storm half-way through."""
    apart = 0.0 if needs.cadence is None else needs.cadence.total_seconds() / 60
    storms = draw_storms(size, STORM_MINUTES, seed)
    frames = np.stack([storms.rain(STORM_MINUTES / 2 - back * apart) for back in reversed(range(needs.frames))])
    return np.where(np.isnan(frames), FILL_VALUE, np.rint(np.nan_to_num(frames) / SCALE_FACTOR)).astype(np.int16)
