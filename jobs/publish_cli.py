"""The command `squall publish`: from a trained model to a release in the registry, in one go."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from engines.alias import ALIASES
from jobs import folders, show
from jobs.command import as_json, ends_clearly
from jobs.options import Tile, file, precision_option
from jobs.outcome import Exit
from jobs.registry_cli import registry_option, user_and_host, why

if TYPE_CHECKING:  # help must not wait for ONNX
    from engines.precision import Precision
    from jobs.published import PublishReport

_EXIT_CODES = """\b
Exit codes: 0 done, 1 failed, 2 wrong usage, 4 no input, 5 bad model, contract or product, 6 refused by the gate,
130 interrupted. With 6 the release is in the registry with its reports, and no alias was moved."""


@click.command(epilog=_EXIT_CODES)
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--contract", type=file, help="The model's contract; model.yaml beside MODEL if not given.")
@click.option("--as", "name", required=True, help="Name of the model in the registry.")
@precision_option("float32,half")
@click.option("--cases", type=file, help="Stored cases (.npz).")
@click.option("--product", type=file, help="A product that will run the model: cases are cut from its store.")
@click.option("--shape", "tile", type=Tile(), help="Tiles of a batch and cells of a tile; else those of the product.")
@click.option("--promote", "alias", type=click.Choice(ALIASES), help="Move this alias, if every precision passes.")
@why
@registry_option
@as_json
@ends_clearly
def publish(
    model: Path,
    contract: Path | None,
    name: str,
    precisions: "tuple[Precision, ...]",
    cases: Path | None,
    product: Path | None,
    tile: tuple[int, int, int] | None,
    alias: str | None,
    why: str,
    root: str | None,
    format_: str,
) -> Exit:
    """Make a judged release in the registry of a trained MODEL.

    MODEL is an ONNX file with its weights in it or beside it, or the folder of a model package. It is checked,
    rewritten to each precision, built, judged against the reference, measured and added. Without --cases and --product
    the cases are storms that squall makes up. A run that was killed goes on where it was.

    \b
    Examples:
      squall publish unet.onnx --contract unet.yaml --as rain
      squall publish unet.onnx --contract unet.yaml --as rain --precision half,int8 --product rain.yaml
      squall publish ./my-unet --as rain --product rain.yaml --promote production --why "trained on 2026"
      squall publish ./my-unet --as rain --cases storms.npz --format json > published.json
    """
    from jobs.publish import Request
    from jobs.publish import publish as run
    from jobs.setting import Purpose

    purpose = Purpose(tile, _whole(product), _whole(cases))
    registry = root or folders.registry_place()
    request = Request(model, contract, name, precisions, purpose, registry, alias, user_and_host(), why)
    with show.working(f"publish {name}", quiet=format_ == "json") as watcher:
        report = run(request, watcher)
    if format_ == "json":
        click.echo(show.as_json(as_tree(report)))
    else:
        _show(report)
    return Exit.REFUSED if report.refused else Exit.PUBLISHED


def as_tree(report: "PublishReport") -> dict[str, object]:
    """The report as one JSON document, its conclusions first."""
    status = "refused" if report.refused else "published"
    return {"status": status, "refused": report.refused, "total_seconds": report.total_seconds} | vars(report)


def _whole(path: Path | None) -> Path | None:
    return None if path is None else path.resolve()


def _show(report: "PublishReport") -> None:
    """What was obtained, precision by precision, and what is in use now."""
    show.out.print(show.coloured(f"{report.name} {report.version}", "bold", f" ({report.identity}): {report.change}"))
    rows = [
        (
            each.asked,
            each.built.obtained or each.typed.obtained,
            each.built.how or "none",
            f"{each.built.seconds:.1f} s",
            "go" if each.judged.is_go else "no-go",
        )
        for each in report.precisions
    ]
    show.table("", ("asked", "obtained", "engine", "in", "gate"), rows)
    for each in report.precisions:
        show.out.print(f"{each.asked}: {each.judged.summary}")
        if each.built.computed and not each.built.fault:
            show.out.print(f"{each.asked}: computed in {each.built.computed}", style="dim")
    show.pairs({
        "runtime": report.runtime,
        "cases": report.cases,
        "bench": report.bench,
        "reports": report.reports,
        "seconds": f"{report.total_seconds:.1f}",
        "registry": f"{report.name} {report.version}, {len(report.release.files)} files",
    })  # fmt: skip
    _show_end(report)


def _show_end(report: "PublishReport") -> None:
    if report.refused:
        show.out.print(show.coloured("refused", "bold red", f" in {', '.join(report.refused)}; no alias was moved"))
    elif report.move is not None:
        show.out.print(show.coloured(report.move.alias, "green", f" stands at version {report.move.version}"))
    else:
        show.out.print(show.coloured("ready", "green", f": squall model promote {report.name} {report.version}"))
