"""Commands of engines: `squall engine build | list | gate | bench | explain-key`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs import show
from jobs.command import as_json, ends_clearly
from jobs.options import Tile, file, precision_option
from jobs.outcome import Exit

if TYPE_CHECKING:  # help must not wait for ONNX
    from engines.bench_report import Report
    from engines.precision import Precision
    from engines.spec import EngineKey

HERE = "here"

package = click.argument("package")
cache_folder = click.option(
    "--cache", "root", type=click.Path(path_type=Path), help="Folder of the engine cache.",
    show_default="engine-cache in the folder of SQUALL_CACHE, or of squall in the user's cache folder",
)  # fmt: skip
shape = click.option("--shape", "tile", type=Tile(), help="Tiles of a batch and cells of a tile: 4x512x512.")
product = click.option("--product", type=file, help="A product that will run the model: its tiles are taken.")
product_with_cases = click.option(
    "--product", type=file, help="A product that will run the model: its tiles are taken, and cases from its store."
)


@click.group()
def engine() -> None:
    """Engine files: built from models, kept by content."""


@engine.command()
@package
@precision_option("float32")
@shape
@product
@click.option("--for-gpus", "gpus", default=HERE, show_default=True,
              help="here, or kinds of GPUs in the cluster of RAY_ADDRESS, with commas: here,A100,H100.")  # fmt: skip
@as_json
@ends_clearly
def build(
    package: str,
    precisions: "tuple[Precision, ...]",
    tile: tuple[int, int, int] | None,
    product: Path | None,
    gpus: str,
    format_: str,
) -> None:
    """Build engines of PACKAGE before the first cycle needs them.

    PACKAGE is a folder, registry:NAME, registry:NAME@VERSION, registry:NAME@ALIAS, or, with --product, builtin:KIND.
    What is in the cache already is not built again. Kinds of GPUs are built where they are, by Ray.

    \b
    Examples:
      squall engine build ./my-unet --precision half --shape 4x512x512
      squall engine build registry:rain@1.1 --precision half --product rain.yaml
      RAY_ADDRESS=HOST:6379 squall engine build registry:rain@1.1 --precision half --product rain.yaml --for-gpus A100
    """
    from jobs.models import open_package
    from jobs.prebuild import prebuild
    from jobs.setting import Purpose, find_setting

    setting = find_setting(open_package(package, product), Purpose(tile, product))
    places = [word.strip() for word in gpus.split(",") if word.strip()]
    with show.working(f"engines of {setting.package.identity}", quiet=format_ == "json") as watch:
        rows = prebuild(setting, precisions, places, watch)
    if format_ == "json":
        click.echo(show.as_json(rows))
    else:
        columns = ("for", "precision", "", "seconds", "size", "engine file", "engine")
        cells = [(r.place, r.precision, r.how, f"{r.seconds:.1f}", show.size(r.size_bytes), r.digest[:12], r.label)
                 for r in rows]  # fmt: skip
        show.table("", columns, cells)


@engine.command("list")
@cache_folder
@as_json
@ends_clearly
def list_engines(root: Path | None, format_: str) -> None:
    """List the engine files of this machine, the last used first.

    \b
    Example:
      squall engine list --format json
    """
    from jobs.prebuild import list_files

    rows = list_files(root)
    if format_ == "json":
        click.echo(show.as_json(rows))
    elif rows:
        columns = ("engine file", "graph", "precision", "runtime", "on", "size", "last used, UTC")
        cells = [(r.digest[:8], r.graph_sha256[:8], r.precision, r.runtime, r.gpu, show.size(r.size_bytes),
                  r.used_at[:16].replace("T", " ")) for r in rows]  # fmt: skip
        show.table("", columns, cells)
    else:
        show.out.print("no engine files; squall engine build PACKAGE makes one")


@engine.command()
@package
@precision_option("half")
@shape
@product_with_cases
@click.option("--cases", type=file, help="Stored cases (.npz); else cut from the product's store, else made-up storms.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the reports.")
@as_json
@ends_clearly
def gate(
    package: str,
    precisions: "tuple[Precision, ...]",
    tile: tuple[int, int, int] | None,
    product: Path | None,
    cases: Path | None,
    out: Path,
    format_: str,
) -> Exit:
    """Judge engines of PACKAGE against its float32 reference.

    The limits are those of its contract. Writes gate-PRECISION.html and gate-PRECISION.json into --out.
    Exit code 0: go, 6: no-go.

    \b
    Examples:
      squall engine gate ./my-unet --precision half --product rain.yaml --out reports
      squall engine gate registry:rain@1.1 --precision half,int8 --cases storms.npz --out reports
    """
    from jobs.models import open_package
    from jobs.setting import Purpose
    from jobs.trial import try_package

    purpose = Purpose(tile, product, cases)
    with show.working("gate", quiet=format_ == "json") as watch:
        verdicts = try_package(open_package(package, product), precisions, purpose, out, watch)
    if format_ == "json":
        click.echo(show.as_json({"out": out, "verdicts": verdicts}))
    else:
        for precision, verdict in verdicts.items():
            word = ("go", "green") if verdict.is_go else ("no-go", "bold red")
            show.out.print(show.coloured(*word, f" {precision}: {verdict.summary}"))
        show.out.print(f"reports in {out}")
    return Exit.PUBLISHED if all(verdict.is_go for verdict in verdicts.values()) else Exit.REFUSED


@engine.command()
@package
@precision_option("float32,half")
@shape
@product_with_cases
@click.option("--cases", type=file, help="Stored cases (.npz); else as for the gate.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="bench", show_default=True,
              help="Folder of bench.html and bench.json.")  # fmt: skip
@as_json
@ends_clearly
def bench(
    package: str,
    precisions: "tuple[Precision, ...]",
    tile: tuple[int, int, int] | None,
    product: Path | None,
    cases: Path | None,
    out: Path,
    format_: str,
) -> None:
    """Measure engines of PACKAGE beside the model in ONNX Runtime.

    What is measured: latency, throughput of batches of 1, 2, 4 ... tiles up to --shape, time to start, memory, distance
    of the outputs. The same in more detail, with plots: bench.html in --out, which needs no other file.

    \b
    Examples:
      squall engine bench ./my-unet --shape 4x512x512
      squall engine bench registry:rain --precision half,int8 --product rain.yaml --out bench
    """
    from engines.bench_page import to_summary
    from jobs.models import open_package
    from jobs.setting import Purpose
    from jobs.trial import bench_package

    with show.working("bench", quiet=format_ == "json") as watch:
        report = bench_package(open_package(package, product), precisions, Purpose(tile, product, cases), out, watch)
    if format_ == "json":
        click.echo(show.as_json({"out": out} | to_summary(report)))
    else:
        _show_bench(report, out)


def _show_bench(report: "Report", out: Path) -> None:
    """The tables of a bench; the way to the GPU and back only where an engine can tell it."""
    from engines.bench_page import summarize, to_memory_rows, to_rows, to_split_rows

    for head, *rows in (to_rows(report), to_split_rows(report), to_memory_rows(report)):
        if rows:
            show.table("", head, rows)
            show.out.print()
    for name, error in report.errors.items():
        show.warning(f"{name}: {error}")
    show.out.print(f"{summarize(report)}\nreport in {out}")


@engine.command("explain-key")
@click.argument("ours")
@click.argument("theirs")
@cache_folder
@as_json
@ends_clearly
def explain_key(ours: str, theirs: str, root: Path | None, format_: str) -> None:
    """Say why two engine files cannot stand for each other.

    OURS and THEIRS are beginnings of their names, or files.

    \b
    Examples:
      squall engine explain-key 3fa1 9c07
      squall engine explain-key manifest.json other/manifest.json --format json
    """
    from engines.cache import explain

    keys = [_key(text, root) for text in (ours, theirs)]
    differences = explain(*keys)
    if format_ == "json":
        click.echo(show.as_json({"digests": [key.digest for key in keys], "differences": differences}))
    elif differences:
        show.table("", ("", "ours", "theirs", "why"), [(d.field, d.ours, d.theirs, d.why) for d in differences])
    else:
        show.out.print("the keys are equal; one engine file serves both")


def _key(text: str, root: Path | None) -> "EngineKey":
    """The key in a manifest or key file, or of the one engine file whose name begins so."""
    from engines.spec import EngineKey
    from jobs.engine import open_cache

    path = Path(text)
    if path.is_file():
        try:
            tree = json.loads(path.read_bytes())
            return EngineKey.from_json(tree.get("subject", tree))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise click.BadParameter(f"{path} holds no engine key: {error}") from error
    keys = open_cache(root).keys()
    found = [key for digest, key in keys.items() if digest.startswith(text)]
    if len(found) != 1:
        known = ", ".join(digest[:12] for digest in keys) or "none"
        raise click.BadParameter(f"{len(found)} engine files begin with {text!r}; there are {known}")
    return found[0]
