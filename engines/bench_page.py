"""What a bench found as a page to show, as JSON to keep, and as rows for a terminal; equal reports give equal bytes.

Knows nothing of how the report came about.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from engines.bench_plots import (
    colour_of,
    draw_latency,
    draw_needs,
    draw_split,
    draw_throughput,
    show_bytes,
    show_number,
    show_seconds,
)
from engines.bench_report import Difference, Laps, Measurement, Report, Result, SpeedUp, show_shape, warnings
from engines.page import document, facts, image, write_pair
from engines.spec import Shape

VERSION = 1  # of the JSON
ALIKE = 1.05  # times as fast; nearer to 1 is no difference worth a headline
NONE = "–"
Rows = tuple[tuple[str, ...], ...]

_STYLE = """
.lead{border-left:.5rem solid #0f766e;background:#eef6f5;padding:1rem 1.3rem;margin-bottom:1rem}
.lead h1{font-size:1.6rem;line-height:1.25}
.lead h1 span{font-weight:400;font-size:1.15rem;color:#5b626a;white-space:nowrap}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(12rem,1fr));gap:.8rem;margin:1.2rem 0}
.card{border:1px solid #e3e5e8;border-radius:.4rem;padding:.7rem 1rem}
.card b{display:block;font-size:1.7rem;color:#0f766e}
.note{border-left:.5rem solid #b98900;background:#fdf8ea;padding:.5rem 1.2rem;margin:1rem 0}
.failed{border-color:#b3261e;background:#fcefee} .note ul{margin:.3rem 0;padding-left:1.2rem}
table{font-size:.86rem;margin-bottom:1.6rem} td,th{white-space:nowrap;padding:.25rem .5rem} td.n,th.n{text-align:right}
caption{white-space:normal;padding-bottom:.4rem}
tr.first td{border-top:2px solid #c9cdd2} .key{display:inline-block;width:.75rem;height:.75rem;border-radius:.15rem}
.key{margin-right:.45rem} h3{font-size:1rem;margin:1rem 0 .2rem} p{max-width:56rem}
@media print{body{max-width:none;margin:0} h2{break-after:avoid} img,table,.cards{break-inside:avoid}}
"""
_HEAD = '<meta name="viewport" content="width=device-width,initial-scale=1">'


def write_report(folder: Path, report: Report) -> tuple[Path, Path]:
    """Paths of `bench.html` (self-contained) and `bench.json` in a folder, made if need be; both are replaced."""
    return write_pair(folder, "bench", to_html(report), to_json(report))


def to_json(report: Report) -> str:
    """The report as JSON, keys sorted: every field of it, and what follows from it under `summary`."""
    tree = {"version": VERSION, "report": _adapter().dump_python(report, mode="json"), "summary": to_summary(report)}
    return json.dumps(tree, indent=1, sort_keys=True, allow_nan=False) + "\n"


def to_summary(report: Report) -> dict[str, Any]:
    """What follows from a report: its headline, warnings, errors, and the figures of every engine at every shape."""
    return {
        "headline": summarize(report),
        "reference": report.reference.name,
        "warnings": list(warnings(report)),
        "errors": report.errors,
        "figures": [_figures(report, result, one) for result, one in _measured(report)],
    }


def from_json(text: str) -> Report:
    """The report that `to_json` wrote; its summary is made anew and not read.

    Raises:
        ValueError: it is no JSON, of another version, or fields are missing or malformed (names them).
    """
    tree = json.loads(text)
    version = tree.get("version") if isinstance(tree, dict) else None
    if version != VERSION:
        raise ValueError(f"a bench report of version {version} was found; expected {VERSION}")
    try:
        return _adapter().validate_python(tree.get("report"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("report", *first["loc"])))
        raise ValueError(f"{place} of a bench report is malformed: {first['msg']}") from error


@cache
def _adapter() -> TypeAdapter[Report]:
    return TypeAdapter(Report)


def _measured(report: Report) -> Iterator[tuple[Result, Measurement]]:
    """What was measured, shape by shape."""
    for shape in report.shapes:
        for result in report.results:
            one = result.at(shape)
            if one:
                yield result, one


def _figures(report: Report, result: Result, one: Measurement) -> dict[str, Any]:
    speed_up, laps = report.speed_up(result, one.shape), one.laps
    return {
        "subject": result.name,
        "shape": list(one.shape),
        "laps": laps.count if laps else 0,
        "p50_seconds": laps.p50 if laps else None,
        "p90_seconds": laps.p90 if laps else None,
        "p99_seconds": laps.p99 if laps else None,
        "tiles_per_second": one.tiles_per_second,
        "cells_per_second": one.cells_per_second,
        "tiles_per_second_in_a_row": one.tiles_per_second_in_a_row,
        "speed_up": vars(speed_up) if speed_up else None,
        "host_latency_seconds": one.split.latency_seconds if one.split else None,
    }


def summarize(report: Report) -> str:
    """What was found, in one sentence: the fastest engine against the reference at the main shape."""
    return " ".join(_headline(report)).strip()


def _headline(report: Report) -> tuple[str, str]:
    """What was found, and the medians behind it."""
    shape, best, reference = report.main_shape, _best(report), report.reference
    if best is None:
        return f"Nothing could be measured: {len(report.errors)} of {len(report.results)} engines failed.", ""
    where, p50, speed_up = f"at {_short(shape)}", _laps(best, shape).p50, report.speed_up(best, shape)
    if speed_up is None or best is reference:
        return f"{best.name} takes {show_seconds(p50)} for a batch {where}", "(p50)"
    against = f"(p50 {show_seconds(p50)} against {show_seconds(_laps(reference, shape).p50)})"
    if speed_up.value >= ALIKE:
        return f"{best.name} is {show_times(speed_up.value)} as fast as {reference.name} {where}", against
    if speed_up.value > 1 / ALIKE:
        return f"{best.name} is about as fast as {reference.name} {where}", against
    slower = show_times(1 / speed_up.value)
    return f"{reference.name} is the fastest {where}; {best.name} takes {slower} as long", against


def show_times(ratio: float) -> str:
    """A ratio with the digits that it deserves.

    >>> show_times(3.8181), show_times(1.0), show_times(0.97), show_times(138.4)
    ('3.8x', '1.0x', '0.97x', '138x')
    """
    if ratio < 0.995:
        return f"{ratio:.2g}x"
    return f"{ratio:.1f}x" if ratio < 9.95 else f"{ratio:.0f}x"


def to_rows(report: Report) -> Rows:
    """Latency and throughput at every shape of the engines that were loaded, for a table; the first row is the head."""
    loaded = [result for result in report.results if result.measurements]
    return (_HEADINGS, *(_row(report, result, shape) for shape in report.shapes for result in loaded))


def to_memory_rows(report: Report) -> Rows:
    """Time to start, files and memory of every engine, for a table; the first row is the head."""
    head = "engine", "load", "first inference", "engine file", "weights", "activation", "I/O buffers"
    return ((*head, "GPU memory", "host memory"), *(_memory_row(result) for result in report.results))


def to_split_rows(report: Report) -> Rows:
    """The parts of a call of the engines that can tell them, for a table; the first row is the head."""
    head = "batch", "engine", "H2D latency", "GPU compute time", "D2H latency", "host latency", "enqueue time"
    return (
        (*head, "whole call p50", "laps"),
        *(_split_row(result, one) for result, one in _measured(report) if one.split),
    )


_LATENCY = ("batch", "engine", "p50", "p90", "p99", "laps", "tiles/s", "Mcells/s", "in a row")
_HEADINGS = (*_LATENCY, "speed-up", "by round", "RMS diff.")


def _row(report: Report, result: Result, shape: Shape) -> tuple[str, ...]:
    one, is_other = result.at(shape), result is not report.reference
    speed_up = report.speed_up(result, shape) if is_other else None
    if one is None or one.laps is None:
        return show_shape(shape), result.name, "failed", *([NONE] * (len(_HEADINGS) - 3))
    rates = one.tiles_per_second, (one.cells_per_second or 0.0) / 1e6, one.tiles_per_second_in_a_row
    return (
        show_shape(shape),
        result.name,
        *(show_seconds(one.laps.percentile(share)) for share in (50, 90, 99)),
        f"{one.laps.count:,}",
        *(NONE if rate is None else show_number(rate) for rate in rates),
        *((show_times(speed_up.value), _range(speed_up)) if speed_up else (NONE, NONE)),
        _difference(one),
    )


def _range(speed_up: SpeedUp) -> str:
    return f"{speed_up.low:.3g}..{speed_up.high:.3g}"


def _difference(one: Measurement) -> str:
    off = one.difference
    if off is None:
        return NONE
    return "no number" if off.rms is None else f"{off.rms:.2g}"


def _memory_row(result: Result) -> tuple[str, ...]:
    times, memory = (result.load_seconds, result.first_seconds), result.memory
    kept = memory.engine_bytes, memory.weights_bytes, memory.activation_bytes, memory.buffer_bytes
    return (
        result.name,
        *("failed" if seconds is None else show_seconds(seconds) for seconds in times),
        *(NONE if size is None else show_bytes(size) for size in (*kept, memory.device_bytes, memory.host_bytes)),
    )


def _split_row(result: Result, one: Measurement) -> tuple[str, ...]:
    split, laps = one.split, one.laps
    if split is None or laps is None:
        return ()
    parts = split.h2d_seconds, split.compute_seconds, split.d2h_seconds, split.latency_seconds, split.enqueue_seconds
    shown = (show_seconds(seconds) for seconds in (*parts, laps.p50))
    return show_shape(one.shape), result.name, *shown, f"{one.split_laps:,}"


def to_html(report: Report) -> str:
    """The page: the headline, what to know before trusting it, pictures, tables, how it was measured and on what."""
    sections = (
        _lead(report),
        _note("Failed", [f"{where}: {why}" for where, why in report.errors.items()], "note failed"),
        _note("Before you trust these figures", warnings(report), "note"),
        facts(report.about) if report.about else "",
        *(_pictures(report) if _best(report) else ()),
        *_tables(report),
        _engines(report),
        f"<h2>Environment</h2>\n{facts(report.environment.describe())}",
        _method(report),
    )
    return document("Engine benchmark", "\n".join(part for part in sections if part), _STYLE, _HEAD)


def _best(report: Report) -> Result | None:
    """The fastest result at the main shape that is not the reference, or the reference if no other was measured."""
    shape = report.main_shape
    others = [result for result in report.results if result.at(shape)]
    others = [result for result in others if result is not report.reference] or others
    return min(others, key=lambda result: _laps(result, shape).p50, default=None)


def _laps(result: Result, shape: Shape) -> Laps:
    found = result.at(shape)
    if found is None or found.laps is None:
        raise ValueError(f"{result.name} was not measured at {show_shape(shape)}")
    return found.laps


def _short(shape: Shape) -> str:
    n, _, h, w = shape
    return f"{n} x {h} x {w}"


def _lead(report: Report) -> str:
    best, machine = _best(report), report.environment
    where = machine.gpu.name if machine.gpu else machine.cpu
    cards = "".join(_card(*card) for card in _cards(report, best)) if best else ""
    size = f"{len(report.results)} engines, {len(report.shapes)} batch shapes, on {where}, {machine.date}"
    said, medians = _headline(report)
    title = f"<h1>{escape(said)} <span>{escape(medians)}</span></h1>"
    return f'<div class="lead">{title}<div class=faint>{escape(size)}</div></div>\n<div class="cards">{cards}</div>'


def _card(value: str, what: str, more: str) -> str:
    return f'<div class="card"><b>{escape(value)}</b>{escape(what)}<div class=faint>{escape(more)}</div></div>'


def _cards(report: Report, best: Result) -> Iterator[tuple[str, str, str]]:
    """The figures of the best engine at the main shape: value, what it is, and more."""
    shape = report.main_shape
    laps, one, speed_up = _laps(best, shape), best.at(shape), report.speed_up(best, shape)
    if speed_up and best is not report.reference:
        rounds = f"{show_times(speed_up.low)} to {show_times(speed_up.high)} over {len(laps.rounds)} rounds"
        yield show_times(speed_up.value), f"as fast as {report.reference.name}", rounds
    yield (
        show_seconds(laps.p50),
        f"a batch of {_short(shape)} (p50)",
        f"p90 {show_seconds(laps.p90)}, p99 {show_seconds(laps.p99)}",
    )
    if one and one.tiles_per_second and one.cells_per_second:
        row = one.tiles_per_second_in_a_row
        more = f"; {show_number(row)} in a row" if row else ""
        yield (
            show_number(one.tiles_per_second),
            "tiles a second",
            f"{show_number(one.cells_per_second / 1e6)} Mcells/s{more}",
        )
    if best.load_seconds is not None and best.first_seconds is not None:
        parts = f"load {show_seconds(best.load_seconds)}, first inference {show_seconds(best.first_seconds)}"
        yield show_seconds(best.load_seconds + best.first_seconds), "from nothing to the first forecast", parts
    if one and one.difference and one.difference.rms is not None:
        yield f"{one.difference.rms:.2g}", "RMS difference of the output", _more(one.difference)


def _more(off: Difference) -> str:
    if not off.largest:
        return "equal to the reference in every cell"
    relative = "" if off.rms_over_std is None else f"; {off.rms_over_std:.2g} of the spread"
    return f"largest {off.largest:.2g}{relative}"


def _note(title: str, lines: Sequence[str], style: str) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="{style}"><b>{title}</b><ul>{items}</ul></div>'


def _pictures(report: Report) -> Iterator[str]:
    shape = report.main_shape
    yield "<h2>Latency</h2>"
    yield (
        '<p class="faint">Every dot is one call from end to end, from a batch in host memory to its forecast there. '
        "The circle is p50, the marks are p90 and p99. The axis is logarithmic.</p>"
    )
    yield image(draw_latency(report, shape), "duration of calls by engine, with p50, p90 and p99")
    yield "<h2>Throughput over batch sizes</h2>"
    yield image(draw_throughput(report), "tiles a second over the batch size, by engine")
    yield "<h2>Where the time of a call goes</h2>"
    split = draw_split(report, shape)
    yield image(split, "parts of a call by engine") if split else f'<p class="faint">{_NO_SPLIT}</p>'
    needs = draw_needs(report)
    if needs:
        yield f"<h2>Start and memory</h2>\n{image(needs, 'time to start, files and memory by engine')}"


_NO_SPLIT = "None of these engines computes on a GPU and can tell the way there and back apart."


def _tables(report: Report) -> Iterator[str]:
    yield "<h2>All figures</h2>"
    caption = f"Compared with {report.reference.name}, the reference. p50, p90, p99, single calls one after the other."
    yield _table(report, to_rows(report), caption, 2)
    splits = to_split_rows(report)
    if len(splits) > 1:
        yield _table(report, splits, "Medians, in the words of TensorRT's trtexec.", 2)
    yield _table(
        report, to_memory_rows(report), "Before the first forecast; the first inference is of the largest batch.", 1
    )


def _table(report: Report, rows: Rows, caption: str, names: int) -> str:
    """A table whose first columns, `names` of them, are text; the last of these is the engine."""
    styles = [""] * names + [" class=n"] * (len(rows[0]) - names)
    head = "".join(f"<th{style}>{escape(cell)}</th>" for style, cell in zip(styles, rows[0], strict=True))
    keys = {result.name: colour_of(report, result) for result in report.results}
    body, before = "", ""
    for row in rows[1:]:
        shown = [escape(cell) for cell in row]
        shown[names - 1] = f'<span class=key style="background:{keys[row[names - 1]]}"></span>{shown[names - 1]}'
        is_new = names > 1 and row[0] != before
        shown[0] = shown[0] if is_new or names == 1 else ""
        cells = "".join(f"<td{style}>{cell}</td>" for style, cell in zip(styles, shown, strict=True))
        body, before = f"{body}<tr{' class=first' if is_new else ''}>{cells}</tr>\n", row[0]
    return f'<div class="wide"><table><caption>{escape(caption)}</caption>\n<tr>{head}</tr>\n{body}</table></div>'


def _engines(report: Report) -> str:
    parts = ["<h2>Engines</h2>"]
    for result in report.results:
        key = f'<span class=key style="background:{colour_of(report, result)}"></span>'
        given = {"input": result.tensors[0], "output": result.tensors[-1]} if result.tensors else {}
        parts.append(f"<h3>{key}{escape(result.name)}</h3>\n{facts({**result.notes, **given})}")
    return "\n".join(parts)


def _method(report: Report) -> str:
    effort = report.effort
    said = (
        f"All engines were loaded into one process and took turns: in each of {effort.rounds} rounds, every engine had "
        f"one turn of {effort.turn_seconds:g} s at a shape, at most {effort.turn_laps:,} laps, every other "
        "round in reverse order. So a busy machine hurts all alike. A turn begins with laps that are not counted.",
        "A lap is one call from end to end: a batch in host memory, its forecast in host memory. p50, p90 and p99 are "
        "the durations that 50, 90 and 99 of 100 laps do not exceed, over the laps of all rounds. Speed-up is the "
        "p50 of the reference over the p50 of the engine; by round, the same over the medians of each round.",
        "In a row are tiles a second when the engine is given the next batch while the last one is under way. "
        "H2D latency, GPU compute time and D2H latency are taken on the GPU, one part after the other; host latency is "
        "their sum, and the rest of a call is staging and copies on the host.",
        "Mcells are millions of grid cells, whatever their channels. Host memory is the growth of the process over "
        "loading and the first inference: what an engine shares with one loaded before it is counted there. GPU "
        "memory is what was free before and is not any more.",
        "RMS difference is that of the outputs for one batch from the reference's, in units of the output: a sign that "
        "both are the same model, not a verdict on its forecasts.",
    )
    return "<h2>How it was measured</h2>\n" + "\n".join(f"<p>{escape(text)}</p>" for text in said)
