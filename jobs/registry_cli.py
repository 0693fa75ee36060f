"""Commands of the registry: `squall model ...`."""

import getpass
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.alias import ALIASES
from jobs import show
from jobs.command import as_json, ends_clearly
from jobs.folders import open_registry
from jobs.options import file

if TYPE_CHECKING:  # help must not wait for ONNX
    from engines.registry import Registry

name_argument = click.argument("name")
why = click.option("--why", default="", help="The reason, for those who look at the model later.")
registry_option = click.option(
    "--registry", "root",
    help="Folder of the registry, or a URL such as s3://BUCKET/PATH.",
    show_default="SQUALL_REGISTRY, or squall/registry in the user's data folder",
)  # fmt: skip
alias_option = click.option("--alias", type=click.Choice(ALIASES), default="production", show_default=True)


def user_and_host() -> str:
    """Who does what is done, for the history."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


@click.group()
def model() -> None:
    """Versions of models, and which of them is in use."""


@model.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--as", "name", help="Name of the model; that of its model.yaml if not given.")
@click.option("--report", "reports", type=file, multiple=True, help="A report to keep, such as gate.json; repeatable.")
@click.option("--case", "cases", type=file, multiple=True, help="A golden case to keep; repeatable.")
@why
@registry_option
@as_json
@ends_clearly
def add(
    folder: Path,
    name: str | None,
    reports: tuple[Path, ...],
    cases: tuple[Path, ...],
    why: str,
    root: str | None,
    format_: str,
) -> None:
    """Copy the model package in FOLDER into the registry.

    Its version is the one that its model.yaml gives. FOLDER is shown and checked, transforms and all, by
    `squall models FOLDER`.

    \b
    Example:
      squall model add ./my-model --as rain --report gate.json --report gate.html --why "trained on 2026"
    """
    from engines.graph import inside
    from engines.model import read_contract
    from jobs.contract import model_needs

    model_needs(read_contract(inside(folder, "model.yaml")))
    release = open_registry(root).add(folder, name, reports, cases, user_and_host(), why)
    if format_ == "json":
        click.echo(show.as_json(release))
    else:
        show.out.print(f"{release.name} {release.version} is in the registry; {len(release.files)} files")


@model.command("list")
@registry_option
@as_json
@ends_clearly
def list_models(root: str | None, format_: str) -> None:
    """List the models and where their aliases stand.

    \b
    Example:
      squall model list --format json
    """
    registry = open_registry(root)
    rows = [_row(registry, name) for name in registry.models()]
    if format_ == "json":
        click.echo(show.as_json(rows))
    elif rows:
        show.table("", tuple(rows[0]), [tuple(str(value or "") for value in row.values()) for row in rows])
    else:
        show.out.print("no models; squall model add FOLDER brings one in")


@model.command("show")
@name_argument
@click.argument("reference", default=None, required=False)
@registry_option
@as_json
@ends_clearly
def show_model(name: str, reference: str | None, root: str | None, format_: str) -> None:
    """Show the versions of the model NAME, or check and show one.

    REFERENCE is its version or alias.

    \b
    Examples:
      squall model show rain
      squall model show rain production
    """
    registry = open_registry(root)
    if reference is not None:
        _show_version(registry, name, reference, format_)
        return
    aliases = {alias: registry.current(name, alias) for alias in ALIASES}
    rows = []
    for release in registry.versions(name):
        gates = registry.gates(name, release.version)
        verdict = "go" if any(gates.values()) else "no-go" if gates else "none"
        here = [alias for alias, move in aliases.items() if move is not None and move.version == release.version]
        rows.append((release.version, release.at, release.who, release.why, verdict, here))
    columns = ("version", "added", "by", "why", "gate", "aliases")
    if format_ == "json":
        click.echo(show.as_json([dict(zip(columns, row, strict=True)) for row in rows]))
    else:
        show.table("", columns, [(*row, ", ".join(here)) for *row, here in rows])


@model.command()
@name_argument
@click.argument("version")
@alias_option
@click.option("--force", is_flag=True, help="Promote without a passing gate; needs --why.")
@why
@registry_option
@as_json
@ends_clearly
def promote(name: str, version: str, alias: str, force: bool, why: str, root: str | None, format_: str) -> None:
    """Put VERSION of the model NAME in use, in one step.

    Refused without a passing gate.

    \b
    Examples:
      squall model promote rain 1.1 --alias canary
      squall model promote rain 1.1 --why "better beyond 60 min"
    """
    _show_move(open_registry(root).promote(name, version, alias, user_and_host(), why, force), format_)


@model.command()
@name_argument
@alias_option
@click.option("--only-from", help="Do nothing unless the alias stands at this version.")
@why
@registry_option
@as_json
@ends_clearly
def rollback(name: str, alias: str, only_from: str | None, why: str, root: str | None, format_: str) -> None:
    """Take back the last promote of the model NAME, in one step.

    The version that was in use before is in use again.

    \b
    Example:
      squall model rollback rain --only-from 1.1 --why "too wet"
    """
    _show_move(open_registry(root).rollback(name, alias, user_and_host(), why, only_from), format_)


@model.command()
@name_argument
@click.option("--alias", type=click.Choice(ALIASES), help="Of this alias only.")
@registry_option
@as_json
@ends_clearly
def history(name: str, alias: str | None, root: str | None, format_: str) -> None:
    """List who moved which alias of the model NAME, when and why.

    The oldest move comes first.

    \b
    Example:
      squall model history rain --alias production
    """
    registry = open_registry(root)
    moves = [move for each in ([alias] if alias else ALIASES) for move in registry.history(name, each)]
    moves.sort(key=lambda move: move.at)
    if format_ == "json":
        click.echo(show.as_json(moves))
        return
    rows = [(m.at, m.alias, m.action + (" (forced)" if m.is_forced else ""), m.version, m.who, m.why) for m in moves]
    if rows:
        show.table("", ("time", "alias", "", "version", "by", "why"), rows)
    else:
        show.out.print(f"no alias of {name} was moved; squall model promote {name} VERSION moves one")


def _row(registry: "Registry", name: str) -> dict[str, Any]:
    moves = {alias: registry.current(name, alias) for alias in ALIASES}
    stands = {alias: None if move is None else move.version for alias, move in moves.items()}
    return {"model": name, "versions": len(registry.versions(name))} | stands


def _show_version(registry: "Registry", name: str, reference: str, format_: str) -> None:
    package = registry.resolve(name, reference)
    release = registry.release(name, package.contract.version)
    gates = registry.gates(name, release.version)
    if format_ == "json":
        click.echo(show.as_json({"folder": package.folder, "gates": gates, "release": release}))
        return
    verdicts = {f"gate {file}": "go" if is_go else "no-go" for file, is_go in gates.items()}
    facts = {"folder": package.folder, "added": release.at, "by": release.who, "why": release.why} | verdicts
    show.pairs(facts | dict(release.files))


def _show_move(move: Any, format_: str) -> None:
    if format_ == "json":
        click.echo(show.as_json(move))
    else:
        show.out.print(f"{move.alias} stands at version {move.version} ({move.action} by {move.who}, {move.at})")
