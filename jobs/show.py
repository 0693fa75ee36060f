"""What a person sees of a command: progress, tables, one clear line for an error; or JSON for machines."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic_core import to_json
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # help and errors must not wait for Ray
    from jobs.backfill import BackfillReport, Tally
    from jobs.cycle import CycleReport
    from jobs.scores import Verification
    from jobs.watch import Watcher
    from pipelines.memory import Memory
    from pipelines.run import BlockResult

_PIPED = None if os.isatty(1) else 10_000  # columns; where nobody looks, no path is folded
out = Console(highlight=False, soft_wrap=True, markup=False, width=_PIPED)  # a path may hold [red], or [/]
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
_LEADS_SHOWN = 6  # of scores
_UNITS = (("kB", 1e3), ("MB", 1e6), ("GB", 1e9))


def coloured(word: str, style: str, rest: str = "") -> Text:
    """A word in a colour, and what follows it as it is."""
    return Text.assemble((word, style), rest)


def as_json(value: Any) -> str:
    """Any value of squall as JSON; times as ISO 8601 in UTC, durations in seconds, NaN as null.

    One line where it goes into a file or a pipe, for each run of cron adds its report to the same file.
    """
    indent = None if _PIPED else 2
    return to_json(value, indent=indent, timedelta_mode="float", inf_nan_mode="null", fallback=_plain).decode()


def _plain(value: Any) -> Any:
    """What numpy holds, as Python would."""
    if isinstance(value, np.datetime64):
        return utc(value)
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def utc(time: np.datetime64) -> str:
    """A time as people and machines read it.

    >>> utc(np.datetime64("2016-09-28T15:30", "ns"))
    '2016-09-28T15:30:00Z'
    """
    return f"{time.astype('datetime64[s]')}Z"


def size(count: float) -> str:
    """Bytes in the unit that fits.

    >>> size(999), size(43_210_000), size(5e12)
    ('999 B', '43.2 MB', '5000.0 GB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    unit, scale = next((unit, scale) for unit, scale in _UNITS if count < 1000 * scale or unit == "GB")
    return f"{count / scale:.1f} {unit}"


def memory(held: "Memory") -> str:
    """What workers hold, in words.

    >>> from pipelines.memory import Memory
    >>> memory(Memory(543_000_000, 3_200_000_000, 930_000_000))
    '543.0 MB in the largest worker; all together 3.2 GB on GPUs, 930.0 MB pinned'
    """
    pinned = f"; all together {size(held.device)} on GPUs, {size(held.pinned)} pinned" if held.device else ""
    return f"{size(held.resident)} in the largest worker{pinned}"


@dataclass(frozen=True)
class CycleBar:
    """What a person sees while a cycle is made: called with blocks settled and results, and told what workers say."""

    bar: Progress
    task: TaskID

    def __call__(self, settled: int, total: int, results: "Sequence[BlockResult]") -> None:
        elapsed = self.bar.tasks[0].elapsed or 0.0
        tiles = sum(result.tiles_run + result.tiles_reused for result in results)
        rate = f"{tiles / elapsed:.1f} tiles/s" if elapsed else ""
        self.bar.update(self.task, completed=settled, total=total, rate=rate)

    def tell(self, text: str) -> None:
        self.bar.update(self.task, news=escape(text))


@contextmanager
def progress(title: str, quiet: bool) -> Iterator[CycleBar]:
    """A bar with blocks, tiles per second and the time left; silent where nobody looks."""
    bar = Progress(
        TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("blocks"),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("[dim]{task.fields[news]}"),
        console=err, transient=True, disable=quiet or not err.is_terminal,
    )  # fmt: skip
    with bar:
        yield CycleBar(bar, bar.add_task(escape(title), total=None, rate="", news=""))


@contextmanager
def backfill_progress(title: str, quiet: bool) -> Iterator["Callable[[Tally], None]"]:
    """A bar with cycles, cycles per second, the time left and how many failed; silent where nobody looks."""
    bar = Progress(
        TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cycles"),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
        TextColumn("[red]{task.fields[failed]}"),
        console=err, transient=True, disable=quiet or not err.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task(escape(title), total=None, rate="", failed="")

        def update(tally: "Tally") -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            rate = f"{tally.published / elapsed:.1f} cycles/s" if elapsed else ""
            failed = f"{tally.failed} failed" if tally.failed else ""
            bar.update(task, completed=tally.settled, total=tally.cycles, rate=rate, failed=failed)

        yield update


@contextmanager
def working(title: str, quiet: bool) -> Iterator["Watcher"]:
    """A line that says what is being done, and one for each step that has ended; silent where nobody looks."""
    from jobs.watch import SILENT, StepReport, Watcher

    if quiet:
        yield SILENT
        return
    title = escape(title)
    with err.status(title) as status:

        def ended(step: StepReport) -> None:
            how = "finished before" if step.was_finished else f"{step.seconds:.1f} s"
            err.print(f"  {step.name}: {how}", style="dim")

        doing = ""

        def begins(step: str) -> None:
            nonlocal doing
            doing = step
            status.update(f"{title}: {escape(step)}")

        yield Watcher(begins, lambda text: status.update(f"{title}: {escape(doing)}, {escape(text)}"), ended)


def cycle_table(report: "CycleReport") -> None:
    """The closing table of a cycle."""
    if not report.blocks:
        out.print(coloured(f"{report.product} {utc(report.reference_time)}:", "yellow", f" {report.note}"))
        return
    colour = "yellow" if report.gaps else "green"
    what = f" {report.product} {utc(report.reference_time)} -> {report.path}"
    out.print(coloured(str(report.status), colour, what))
    stages = report.stages
    pairs({
        "frames": ", ".join(str(t.astype("datetime64[m]"))[11:] for t in report.frame_times) + " UTC",
        "blocks, workers": f"{report.blocks}, {report.workers}",
        "engine": "; ".join(report.engines),
        "tiles": f"{report.tiles_run} run, {report.tiles_reused} reused ({report.reused_share:.0%})",
        "missing in the newest frame": f"{report.missing_share:.1%}{', of the blocks done' if report.gaps else ''}",
        "written": size(report.bytes_written),
        "wait for input": f"{report.wait_seconds:.2f} s",
        "read / infer / write, all workers": f"{stages.read:.2f} / {stages.infer:.2f} / {stages.write:.2f} s",
        "publish": f"{report.publish_seconds:.2f} s",
        "memory": memory(report.memory),
        "time to product": f"{report.total_seconds:.2f} s",
    })  # fmt: skip
    for gap in report.gaps:
        out.print(coloured("gap", "yellow", f" {gap}"))


def backfill_table(report: "BackfillReport") -> None:
    """The closing table of a backfill."""
    tally = report.tally
    colour, verb = ("yellow", "made in part") if tally.failed else ("green", "made")
    interval = f"{utc(report.start)} to {utc(report.stop)}"
    out.print(coloured(verb, colour, f" {report.product} {interval} -> {report.store}/{report.product}"))
    stages = tally.stages
    pairs({
        "cycles": f"{tally.published} published, {tally.already} already, {tally.failed} failed",
        "pace": f"{report.cycles_per_second:.2f} cycles/s, {report.workers} worker(s), {report.seconds:.1f} s",
        "tiles": f"{tally.tiles_run} run, {tally.tiles_reused} reused",
        "written": size(tally.bytes_written),
        "read / infer / write, all workers": f"{stages.read:.2f} / {stages.infer:.2f} / {stages.write:.2f} s",
        "publish, all workers": f"{tally.publish_seconds:.2f} s",
        "ledger": report.ledger,
    })  # fmt: skip
    for time, reason in tally.failures:
        out.print(coloured("failed", "red", f" {utc(time)} {reason}"))
    if tally.failed > len(tally.failures):
        out.print(f"and {tally.failed - len(tally.failures)} more, see the ledger")
    if tally.warned:
        warning(f"{tally.warned} published cycle(s) are not as they should be, see `reason` in the ledger")
    if report.note:
        out.print(coloured("note", "yellow", f" {report.note}"))


def verification_table(verification: "Verification") -> None:
    """Scores of a few lead times up to the last, and persistence beside them."""
    from pipelines.panels import choose_leads

    leads = sorted({score.lead_time for score in verification.forecast})
    shown = {leads[index] for index in choose_leads(len(leads), _LEADS_SHOWN)}
    rows = [
        (f"{ours.lead_time / timedelta(minutes=1):g} min", ours.cases, f"{ours.threshold:g}",
         *(f"{value:.3f}" for value in (ours.csi, theirs.csi, ours.pod, ours.far, ours.frequency_bias)))
        for ours, theirs in zip(verification.forecast, verification.persistence, strict=True)
        if ours.lead_time in shown
    ]  # fmt: skip
    out.print(f"{verification.product}: {verification.cycles} cycle(s) against the frames observed since")
    table("", ("lead time", "cycles", "threshold", "CSI", "persistence", "POD", "FAR", "bias"), rows)


def pairs(facts: Mapping[str, Any]) -> None:
    """Prints names and values, a line each."""
    shown = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column(style="dim", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in facts.items():
        shown.add_row(name, str(value))
    out.print(shown)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints rows under a heading; what starts with a digit to the right."""
    shown = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        number = bool(rows) and all(str(row[index])[:1].isdigit() for row in rows)
        shown.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(str, row))
    out.print(shown)


def warning(text: str) -> None:
    """One line on stderr about what does not end a command."""
    err.print(coloured("squall: warning:", "bold yellow", f" {text}"))


def problem(error: BaseException, way_out: str = "") -> None:
    """One clear error on stderr, and what to do about it."""
    name = type(error).__name__
    text = "; ".join(filter(None, (str(error) or name, way_out)))
    err.print(coloured(f"squall: {name.removesuffix('Error')}:", "bold red", f" {text}"))
