"""The gate's verdict as a page to read and as JSON to act on; the same verdict gives the same bytes.

Draws with Agg into memory and leaves pyplot alone. Knows nothing of how the verdict came about.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import Normalize, PowerNorm, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from engines.cases import GROUPS, Group
from engines.gate import MEASURES, Fields, Reading, Verdict
from engines.page import document, facts, image, to_png, write_pair

MEANING = {
    "max_error": "largest error of a cell",
    "rmse_over_std": "error (RMSE) over standard deviation",
    "bias": "mean error over mean",
    "maximum_bias": "error of the highest value over range",
    "nan_cells": "cells that became NaN or infinite",
    "moved_missing": "share of cells missing in only one of the two",
    "moved_codes": "share of packed codes that moved",
    "seam": "worst row or column between tiles and whole",
    "csi_loss": "1 - CSI against the reference",
    "fss_loss": "1 - FSS against the reference",
}
DIGITS = 6  # of numbers in JSON: more would differ between machines
PIXELS = 360  # of the longer side of a map; coarser maps keep the strongest cell of each block
NEAR = 24  # cells around the largest difference in the close-up
MISSING, MARK = "#c9c9c6", "#b3261e"

Floats = NDArray[np.float64]


def write_report(
    folder: Path, verdict: Verdict, fields: Fields, about: Mapping[str, str] | None = None, units: str = ""
) -> tuple[Path, Path]:
    """Paths of `gate.html` (one self-contained page) and `gate.json` in a folder, made if need be; both are replaced.

    Args:
        fields: of `verdict.worst`, by `engines.gate.read_fields`.
        about: what was compared and by which cases, as names and values for the reader; no times of day, if the bytes
            are to stay the same.
        units: of the model's output.
    """
    return write_pair(folder, "gate", to_html(verdict, fields, about, units), to_json(verdict, about, units))


def to_json(verdict: Verdict, about: Mapping[str, str] | None = None, units: str = "") -> str:
    """The verdict as JSON, keys sorted.

    Keys: `verdict` ("go" or "no-go"), `summary`, `failures` and `readings` (each with measure, lead_seconds, group,
    threshold, case, found, limit), `limits`, `about`, `units`. A `found` of null is infinite or no number; a `limit`
    of null is not judged.
    """
    tree = {
        "verdict": "go" if verdict.is_go else "no-go",
        "summary": summarize(verdict, units),
        "about": dict(about or {}),
        "units": units,
        "limits": {
            measure: {group: _number(getattr(getattr(verdict.limits, measure), group)) for group in GROUPS}
            for measure in MEASURES
        },
        "failures": [_row(reading, verdict) for reading in verdict.failures],
        "readings": [_row(reading, verdict) for reading in verdict.readings],
    }
    return json.dumps(tree, indent=1, sort_keys=True, allow_nan=False) + "\n"


def summarize(verdict: Verdict, units: str = "") -> str:
    """The verdict in one or two plain sentences."""
    total, worst = len(verdict.readings), verdict.worst
    if not verdict.is_go:
        kinds = {reading.measure for reading in verdict.failures}
        named = "; ".join(MEANING[name] for name in MEASURES if name in kinds)
        return (
            f"Do not use it: {len(verdict.failures)} of {total} readings exceed their limits ({named}). "
            f"Farthest beyond: {_sentence(worst, verdict, units)}."
        )
    if not worst.found:
        return (
            f"It may be used: all {total} readings are within their limits; it equals the reference wherever measured."
        )
    return f"It may be used: all {total} readings are within their limits. Nearest: {_sentence(worst, verdict, units)}."


def to_html(verdict: Verdict, fields: Fields, about: Mapping[str, str] | None = None, units: str = "") -> str:
    """The page: verdict, table of measures and limits, maps of the worst case, every reading."""
    word, worst = ("Go" if verdict.is_go else "No-go"), verdict.worst
    body = f"""<div class="verdict {word.lower()}"><h1>{word}</h1><div>{escape(summarize(verdict, units))}</div></div>
{facts(about or {})}
<h2>Measures and limits</h2>
<div class="wide"><table><caption>The worst lead time of each measure. A dash: measured, not judged.</caption>
<tr><th>measure</th>{"".join(f"<th>{group}</th><th>limit</th><th>where</th><th></th>" for group in GROUPS)}</tr>
{"".join(_lines(verdict, units))}</table></div>
<h2>{escape(_place(worst))}: {escape(MEANING[worst.measure])}</h2>
<p class="faint">Reference, candidate and their difference{escape(f", {units}" if units else "")}; grey is missing.
Black in the difference: missing in only one of the two. Below, the surroundings of the largest difference.</p>
{image(draw_maps(fields, units), "maps of reference, candidate and difference")}
<h2>All readings</h2>
<details><summary>{len(verdict.readings)} readings</summary><div class="wide"><table>
<tr><th>measure</th><th>group</th><th>lead time</th><th>case</th><th>found</th><th>limit</th><th></th></tr>
{"".join(_every(verdict, units))}</table></div></details>"""
    return document(f"Gate: {word}", body)


def draw_maps(fields: Fields, units: str = "") -> bytes:
    """A PNG of reference, candidate and difference: the whole, and the surroundings of the largest difference."""
    window, shape = _around(fields), fields.reference.shape
    rows = [(slice(0, shape[0]), slice(0, shape[1])), window]
    ratio = min(max(shape[0] / shape[1], 0.15), 2.0)
    figure = Figure(figsize=(11, 3.0 * (ratio + 1) + 0.3), dpi=110, layout="constrained")
    grid = figure.subplots(2, 3, height_ratios=[ratio, 1])
    norms = _norms(fields)
    for axes, part in zip(grid, rows, strict=True):
        fields_of_part = (fields.reference[part], fields.candidate[part], fields.difference[part])
        for panel, field, norm, name in zip(axes, fields_of_part, norms, _PANELS, strict=True):
            _draw(panel, field, norm, "RdBu_r" if name == "difference" else "YlGnBu", part)
        _mark_moved(axes[-1], fields, part)
    for panel, name in zip(grid[0], _PANELS, strict=True):
        panel.set_title(name, fontsize=10)
        panel.add_patch(_box(window))
    for column, label in ((slice(0, 2), units), (slice(2, 3), f"difference, {units}" if units else "difference")):
        images = grid[0, column][0].images[0]
        figure.colorbar(images, ax=list(grid[:, column].ravel()), shrink=0.7, label=label)
    return to_png(figure)


_PANELS = ("reference", "candidate", "difference")


def _number(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None


def _row(reading: Reading, verdict: Verdict) -> dict[str, Any]:
    return {
        "measure": reading.measure,
        "lead_seconds": reading.lead_time.total_seconds(),
        "group": reading.group,
        "threshold": reading.threshold,
        "case": reading.case,
        "found": _number(reading.found),
        "limit": _number(reading.limit(verdict.limits)),
    }


def _sentence(reading: Reading, verdict: Verdict, units: str) -> str:
    limit = _short(reading.limit(verdict.limits))
    return f"{_title(reading, units)} is {_short(reading.found)} for {_place(reading)}; the limit is {limit}"


def _place(reading: Reading) -> str:
    case = f", case {reading.case}" if reading.case else ""
    return f"{reading.group} cases at {_lead(reading.lead_time)}{case}"


def _lead(value: timedelta) -> str:
    return f"+{value / timedelta(minutes=1):g} min"


def _title(reading: Reading, units: str) -> str:
    if reading.threshold is not None:
        return f"{MEANING[reading.measure]} at {reading.threshold:g} {units}".rstrip()
    return (
        f"{MEANING[reading.measure]}, {units}" if reading.measure == "max_error" and units else MEANING[reading.measure]
    )


def _short(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else ("infinite" if np.isinf(value) else "no number")


def _limit(reading: Reading, verdict: Verdict) -> str:
    limit = reading.limit(verdict.limits)
    return _short(limit) if np.isfinite(limit) else "–"


def _lines(verdict: Verdict, units: str) -> Iterator[str]:
    """A line of the table for each measure and threshold: the worst reading of either group."""
    found: dict[tuple[int, float], dict[Group, Reading]] = {}
    for reading in verdict.readings:
        key = MEASURES.index(reading.measure), reading.threshold or 0.0
        old = found.setdefault(key, {}).get(reading.group)
        if old is None or not abs(reading.found) <= abs(old.found):
            found[key][reading.group] = reading
    for _, groups in sorted(found.items()):
        cells = "".join(_cells(groups.get(group), verdict) for group in GROUPS)
        is_bad = any(not reading.is_within(verdict.limits) for reading in groups.values())
        title = _title(next(iter(groups.values())), units)
        yield f"<tr{' class=bad' if is_bad else ''}><td>{escape(title)}</td>{cells}</tr>\n"


def _cells(reading: Reading | None, verdict: Verdict) -> str:
    if reading is None:
        return "<td class=faint colspan=4>too few events</td>"
    where = f"{_lead(reading.lead_time)} {reading.case}" if reading.found else ""
    return (
        f"<td class=n>{_short(reading.found)}</td><td class=n>{_limit(reading, verdict)}</td>"
        f"<td class=faint>{escape(where)}</td><td class=mark>{_mark(reading, verdict)}</td>"
    )


def _every(verdict: Verdict, units: str) -> Iterator[str]:
    for reading in verdict.readings:
        style = "" if reading.is_within(verdict.limits) else " class=bad"
        texts = (_title(reading, units), reading.group, _lead(reading.lead_time), reading.case)
        named = "".join(f"<td>{escape(text)}</td>" for text in texts)
        yield (
            f"<tr{style}>{named}<td class=n>{_short(reading.found)}</td>"
            f"<td class=n>{_limit(reading, verdict)}</td><td class=mark>{_mark(reading, verdict)}</td></tr>\n"
        )


def _mark(reading: Reading, verdict: Verdict) -> str:
    return "" if reading.is_within(verdict.limits) else "exceeded"


def _around(fields: Fields) -> tuple[slice, slice]:
    """A window around the largest difference, or around the middle if there is none."""
    moved = np.isnan(fields.reference) != np.isnan(fields.candidate)
    size = np.where(moved, np.inf, np.abs(np.nan_to_num(fields.difference)))
    at = np.unravel_index(int(size.argmax()), size.shape) if size.any() else [n // 2 for n in size.shape]
    y, x = (_near(int(k), n) for k, n in zip(at, size.shape, strict=True))
    return y, x


def _near(at: int, length: int) -> slice:
    """Cells around one cell of an axis, as many at its ends as in its middle."""
    start = max(0, min(at - NEAR, length - 2 * NEAR))
    return slice(start, min(start + 2 * NEAR, length))


def _norms(fields: Fields) -> tuple[Normalize, Normalize, Normalize]:
    """Colours of both fields alike, finer near zero where nothing is negative, and of the difference about zero."""
    known = fields.reference[np.isfinite(fields.reference)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    high = high if high > low else low + 1.0
    both = PowerNorm(0.4, low, high, clip=True) if low >= 0 else Normalize(low, high, clip=True)
    most = float(np.nan_to_num(np.abs(fields.difference)).max()) or 1.0
    return both, both, TwoSlopeNorm(0.0, -most, most)


def _draw(panel: Any, field: Floats, norm: Normalize, colours: str, part: tuple[slice, slice]) -> None:
    panel.set_facecolor(MISSING)
    panel.tick_params(labelsize=7)
    _paint(panel, _coarse(field), norm, colours, part)


def _paint(panel: Any, image: Floats, norm: Normalize, colours: str, part: tuple[slice, slice]) -> None:
    rows, columns = part
    extent = (columns.start, columns.stop, rows.stop, rows.start)
    panel.imshow(np.ma.masked_invalid(image), norm=norm, cmap=colours, extent=extent, interpolation="nearest")


def _mark_moved(panel: Any, fields: Fields, part: tuple[slice, slice]) -> None:
    """Black where a cell is missing in only one of the two."""
    moved = np.isnan(fields.reference[part]) != np.isnan(fields.candidate[part])
    black = Normalize(1.0, 2.0)
    _paint(panel, _coarse(np.where(moved, 2.0, np.nan)), black, "binary", part)


def _coarse(field: Floats) -> Floats:
    """The field with at most `PIXELS` cells a side; of each block the value farthest from zero. NaN where all are."""
    step = -(-max(field.shape) // PIXELS)
    if step == 1:
        return field
    pads = [(0, -n % step) for n in field.shape]
    blocks = np.pad(field, pads, constant_values=np.nan)
    blocks = blocks.reshape(blocks.shape[0] // step, step, -1, step).swapaxes(1, 2).reshape(-1, step * step)
    strongest = np.where(np.isnan(blocks), -1, np.abs(blocks)).argmax(axis=1)
    return np.asarray(blocks[np.arange(len(blocks)), strongest]).reshape(-(-field.shape[0] // step), -1)


def _box(window: tuple[slice, slice]) -> Rectangle:
    rows, columns = window
    size = columns.stop - columns.start, rows.stop - rows.start
    return Rectangle((columns.start, rows.start), *size, fill=False, edgecolor=MARK, linewidth=1.2)
