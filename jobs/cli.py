"""The command line `squall`: cycles of a product here; models, engines and publishing in files of their own."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs import show
from jobs.command import as_json, ends_clearly, is_done, only_the_report
from jobs.engine_cli import engine
from jobs.options import NewFile, Step, Time
from jobs.outcome import Exit
from jobs.pool_cli import pool
from jobs.publish_cli import publish
from jobs.registry_cli import model

if TYPE_CHECKING:  # help and errors must not wait for Ray
    from jobs.cycle import CycleReport

_EXIT_CODES = """\b
Exit codes: 0 published (or published already), 1 failed, 2 wrong usage, 3 published with gaps,
4 no input, 5 bad configuration, 130 interrupted. With 1, 2, 4 and 5 nothing new is published."""

_VALIDATE_EXIT_CODES = "Exit codes: 0 valid, 1 failed, 2 wrong usage, 5 problems were found, 130 interrupted."

_BACKFILL_EXIT_CODES = """\b
Exit codes: 0 every cycle is published, 1 failed, or no cycle could be made, 2 wrong usage,
3 some cycles could not be made, 4 no input, 5 bad configuration, 130 interrupted."""

product_file = click.argument("file", type=click.Path(path_type=Path))
overrides = click.argument("overrides", nargs=-1, metavar="[KEY.SUB=VALUE]...")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="squall", message="squall %(version)s")
def main() -> None:
    """squall makes forecasts from gridded weather data: frames in a Zarr store, an ONNX model, a YAML file.

    \b
    squall demo                          make storms, forecast them, draw the result
    squall validate rain.yaml            check a product file against its store and model
    squall run rain.yaml                 make and publish the forecast of the newest frame
    squall run rain.yaml --time 2016-09-28T15:30Z output.store=/data/out
    squall backfill rain.yaml --from 2016-09-28T15:00Z --to 2016-09-28T18:00Z
    squall cycles rain.yaml              what is published
    squall publish unet.onnx --as rain   from a trained model to a judged release
    """


@main.command(epilog=_EXIT_CODES)
@product_file
@overrides
@click.option(
    "--time", type=Time(or_latest=True), default="latest", show_default=True, help="Reference time in UTC, or latest."
)
@click.option("--replace", is_flag=True, help="Publish a revision if the cycle is published already.")
@click.option("--plot", type=NewFile(), help="Draw observed past and forecast into this PNG.")
@click.option("--trace", type=NewFile(), help="Write what ran when to this JSON; see ui.perfetto.dev.")
@as_json
@click.option("--debug", is_flag=True, help="Show the traceback of an unexpected error.")
@ends_clearly
def run(
    file: Path,
    overrides: tuple[str, ...],
    time: Any,
    replace: bool,
    plot: Path | None,
    trace: Path | None,
    format_: str,
    debug: bool,
) -> Exit:
    """Make one cycle of the product FILE and publish it, or nothing.

    \b
    Examples:
      squall run rain.yaml
      squall run rain.yaml --time 2016-09-28T15:30Z --plot rain.png --trace cycle.json
      squall run rain.yaml input.tolerance=1min output.store=/data/out --format json
      */5 * * * *  squall run /etc/squall/rain.yaml          (crontab)
      ray job submit --working-dir . -- python -m jobs.nowcast rain.yaml
    """
    from jobs.nowcast import forecast

    with only_the_report(), show.progress(file.stem, quiet=format_ == "json") as progress:
        report = forecast(file, overrides, time, replace, progress, progress.tell)
    if format_ == "json":
        click.echo(show.as_json({key: value for key, value in vars(report).items() if key != "activities"}))
    else:
        show.cycle_table(report)
    for text in report.warnings:
        show.warning(text)
    tell: Callable[[str], object] = (lambda text: None) if format_ == "json" else show.out.print
    if plot is not None and is_done(f"no picture in {plot}", lambda: _draw(plot, file, overrides, report)):
        tell(f"picture in {plot}")
    if trace is not None and is_done(f"no timeline in {trace}", lambda: _trace(trace, report)):
        tell(f"timeline in {trace}, to be opened in ui.perfetto.dev")
    return Exit.GAPS if report.gaps else Exit.PUBLISHED


def _draw(picture: Path, file: Path, overrides: tuple[str, ...], report: "CycleReport") -> None:
    from jobs.picture import draw_cycle

    draw_cycle(file, overrides, report.reference_time, picture)


def _trace(timeline: Path, report: "CycleReport") -> None:
    from jobs.trace import write_trace

    if not report.activities:
        raise LookupError("this run made nothing; an earlier file is left as it is")
    write_trace(timeline, report.activities)


@main.command(epilog=_BACKFILL_EXIT_CODES)
@product_file
@overrides
@click.option("--from", "start", type=Time(), show_default="as early as the store allows",
              help="First reference time, UTC.")  # fmt: skip
@click.option("--to", "stop", type=Time(), show_default="as late as the store allows",
              help="Last reference time, UTC.")  # fmt: skip
@click.option("--every", type=Step(), show_default="every frame",
              help="Time from one cycle to the next, counted from the first.")  # fmt: skip
@click.option("--replace", is_flag=True, help="Publish revisions of cycles that are published already.")
@as_json
@ends_clearly
def backfill(
    file: Path,
    overrides: tuple[str, ...],
    start: Any,
    stop: Any,
    every: Any,
    replace: bool,
    format_: str,
) -> Exit:
    """Make the cycles of the product FILE in an interval.

    Each is made as `squall run --time` makes it. Cycles that are published already are left alone, so the same command
    goes on after a stop. A cycle that fails is recorded in the ledger of the product, with the reason, and does not
    stop the others.

    \b
    Examples:
      squall backfill rain.yaml --from 2016-09-28T15:00Z --to 2016-09-28T18:00Z
      squall backfill rain.yaml --from 2016-09-01 --to 2016-09-30T23:50Z --every 10min output.store=/data/hindcast
      squall backfill rain.yaml --format json
      ray job submit --working-dir . -- python -m jobs.backfill rain.yaml --from 2016-09-28T15:00Z
    """
    from jobs.backfill import Wanted, outcome_of
    from jobs.backfill import backfill as make

    with only_the_report(), show.backfill_progress(file.stem, quiet=format_ == "json") as progress:
        report = make(file, overrides, Wanted(start, stop, every, replace), progress)
    if format_ == "json":
        click.echo(show.as_json(report))
    else:
        show.backfill_table(report)
    return outcome_of(report)


@main.command(epilog=_VALIDATE_EXIT_CODES)
@product_file
@overrides
@as_json
@ends_clearly
def validate(file: Path, overrides: tuple[str, ...], format_: str) -> Exit:
    """Check the product FILE against its store and its model.

    Every problem is listed at once.

    \b
    Example:
      squall validate rain.yaml lead_times.until=60min
    """
    from jobs.prepare import find_problems

    problems = find_problems(file, overrides)
    if format_ == "json":
        click.echo(show.as_json({"file": file, "valid": not problems, "problems": problems}))
    elif problems:
        show.err.print(show.coloured(f"{len(problems)} problem(s)", "bold red", f" in {file}:"))
        for problem in problems:
            show.err.print(f"  {problem}")
    else:
        show.out.print(show.coloured("valid", "green", f" {file}"))
    return Exit.BAD_CONFIGURATION if problems else Exit.PUBLISHED


@main.command()
@product_file
@overrides
@click.option("--calibrate", "measure", is_flag=True, help="Measure GPU and cores first.")
@as_json
@ends_clearly
def plan(file: Path, overrides: tuple[str, ...], measure: bool, format_: str) -> None:
    """Show how the grid of the product FILE would be cut, and why.

    Beside GPUs the cut depends on how fast GPU and cores are. --calibrate measures that on blocks of the newest cycle,
    which are thrown away, and keeps it on this machine; engines may then have to be built for other tiles.

    \b
    Examples:
      squall plan rain.yaml
      squall plan rain.yaml tiling.memory=500MB
      squall plan rain.yaml --calibrate
    """
    from jobs.prepare import plan_of

    if measure:
        from jobs.calibrate import calibrate

        calibrate(file, overrides)
    planned = plan_of(file, overrides)
    if format_ == "json":
        click.echo(show.as_json(planned))
        return
    show.out.print(planned.plan.reason)
    show.pairs(dict(planned.rows()))


@main.command()
@click.argument("path", type=str)
@as_json
@ends_clearly
def inspect(path: str, format_: str) -> None:
    """Show what a store holds.

    It may be a published cycle, which is shown with its provenance, or an input store.

    \b
    Examples:
      squall inspect out/rain-fmi/latest.zarr
      squall inspect s3://bucket/radar.zarr
    """
    from jobs.inspect import describe

    found = describe(path)
    if format_ == "json":
        click.echo(show.as_json(found))
        return
    show.pairs(found)


@main.command()
@product_file
@overrides
@as_json
@ends_clearly
def cycles(file: Path, overrides: tuple[str, ...], format_: str) -> None:
    """List the published cycles of the product FILE, oldest first.

    \b
    Example:
      squall cycles rain.yaml --format json
    """
    from pipelines.archive import latest_cycle, list_cycles
    from pipelines.product import load_product

    product = load_product(file, overrides)
    found = list_cycles(product.output.store, product.name)
    latest = latest_cycle(product.output.store, product.name)
    if format_ == "json":
        click.echo(show.as_json(found))
        return
    rows = [(show.utc(c.reference_time), c.revision, c.path, "latest" if c == latest else "") for c in found]
    if rows:
        show.table("", ("init_time", "revision", "store", ""), rows)
    else:
        show.out.print(f"no cycle of {product.name} is published in {product.output.store}")


@main.command()
@product_file
@overrides
@click.option("--threshold", "thresholds", type=float, multiple=True, show_default="0.1, 1 and 5 mm h-1",
              help="Events are values at or above it, in units of the forecast; repeatable.")  # fmt: skip
@click.option("--start", type=Time(), help="Score cycles from this reference time on (UTC).")
@click.option("--stop", type=Time(), help="Score cycles before this reference time (UTC).")
@as_json
@ends_clearly
def verify(
    file: Path, overrides: tuple[str, ...], thresholds: tuple[float, ...], start: Any, stop: Any, format_: str
) -> None:
    """Score the published cycles of the product FILE.

    They are held against the frames observed since, beside persistence.

    \b
    Examples:
      squall verify rain.yaml
      squall verify rain.yaml --threshold 1 --start 2016-09-28T15:00Z --format json
    """
    from jobs.scores import verify_product

    verification = verify_product(file, overrides, thresholds, start, stop)
    if format_ == "json":
        click.echo(show.as_json(verification))
        return
    show.verification_table(verification)


@main.command()
@click.argument("package", required=False)
@as_json
@ends_clearly
def models(package: str | None, format_: str) -> None:
    """List the models that squall brings, or show and check a PACKAGE.

    PACKAGE is a folder, registry:NAME, registry:NAME@VERSION or registry:NAME@ALIAS. A transform in its model.yaml is
    one step or a list of steps, in order: log, log10, log1p, db, standardise, clip, each with its numbers, such as
    [{name: clip, minimum: 0}, {name: log1p}].

    \b
    Examples:
      squall models
      squall models ./my-model
      squall models registry:rain@canary
    """
    from jobs.models import builtin_models, describe_package

    found = builtin_models() if package is None else describe_package(package)
    if format_ == "json":
        click.echo(show.as_json({name.replace(" ", "_"): text for name, text in found.items()}))
    else:
        show.pairs(found)


@main.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@ends_clearly
def demo(folder: Path) -> Exit:
    """Make storms, forecast them on a local Ray, and draw the result.

    \b
    Example:
      squall demo --folder /data/demo
    """
    from jobs.demo import run_demo

    return run_demo(folder)


main.add_command(model)
main.add_command(engine)
main.add_command(publish)
main.add_command(pool)


if __name__ == "__main__":
    main()
