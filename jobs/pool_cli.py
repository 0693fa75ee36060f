"""Commands of kept workers: `squall pool status | stop`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs import show
from jobs.command import as_json, ends_clearly

if TYPE_CHECKING:  # help must not wait for Ray
    from jobs.keeper import WorkerRow

file = click.argument("file", required=False, type=click.Path(path_type=Path))


@click.group()
def pool() -> None:
    """Workers that stay warm on a running cluster, between runs."""


@pool.command()
@file
@as_json
@ends_clearly
def status(file: Path | None, format_: str) -> None:
    """Show the workers kept on the cluster of RAY_ADDRESS.

    Those of all products, or of the product FILE.

    \b
    Examples:
      RAY_ADDRESS=auto squall pool status
      RAY_ADDRESS=auto squall pool status rain.yaml --format json
    """
    from jobs.keeper import list_workers

    _show(list_workers(file), format_)


@pool.command()
@file
@as_json
@ends_clearly
def stop(file: Path | None, format_: str) -> None:
    """End the workers that no run uses.

    Those of all products, or of the product FILE; shows what ended and what did not.

    \b
    Example:
      RAY_ADDRESS=auto squall pool stop rain.yaml
    """
    from jobs.keeper import stop_workers

    _show(stop_workers(file), format_)


def _show(rows: list["WorkerRow"], format_: str) -> None:
    if format_ == "json":
        click.echo(show.as_json(rows))
        return
    columns = ("product", "worker", "state", "node", "pid", "engine", "idle", "memory")
    cells = [(r.product, r.worker, r.state, r.node, r.pid, r.engine, f"{r.idle_seconds:.0f} s", show.size(r.rss_bytes))
             for r in rows]  # fmt: skip
    if rows:
        show.table("", columns, cells)
    else:
        show.out.print("no workers are kept")
