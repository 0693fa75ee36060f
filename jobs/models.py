"""Finds the model package of a product: a folder, one of the registry, or one that squall writes for its grid."""

import hashlib
import os
import shutil
import tempfile
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np

from engines.model import ModelPackage, load_package
from engines.precision import Precision
from engines.registry import Registry
from engines.room import room
from engines.zoo import KINDS, AdvectionSpec, PersistenceSpec, Spec, UnetSpec, write_package
from jobs.contract import chain_text, model_needs
from jobs.folders import cache_folder, open_registry
from pipelines.errors import ConfigError
from pipelines.frames import frame_offsets
from pipelines.product import ModelRef, Product, load_product
from pipelines.source import Source, open_source

BUILTIN, REGISTRY = "builtin:", "registry:"


def find_package(product: Product, source: Source) -> ModelPackage:
    """The checked model package of a product.

    Raises:
        ModelError: the package is refused, or the registry has none.
        ConfigError: no such builtin model, another version than the product asks for, an alias of a folder, or a
            precision that has not passed the gate.
    """
    name, version, alias = product.model.package, product.model.version, product.model.alias
    if name.startswith(REGISTRY):
        registry, model = open_registry(), name.removeprefix(REGISTRY)
        package = registry.resolve(model, version or alias or "production")
        _check_gate(registry, model, package.contract.version, product.model.precision)
        return package
    if alias is not None:
        raise ConfigError(f"model.alias is {alias!r}, but {name} is no model of the registry; expected {REGISTRY}NAME")
    package = load_package(
        _builtin_folder(_builtin_spec(name, product, source)) if name.startswith(BUILTIN) else Path(name)
    )
    if version not in (None, package.contract.version):
        raise ConfigError(f"model.version is {version!r}, but {name} holds version {package.contract.version!r}")
    return package


def open_package(text: str, product: Path | None = None) -> ModelPackage:
    """The package that a command names: a folder, `registry:NAME[@VERSION or ALIAS]`, or a builtin for a product.

    Raises:
        ModelError: the package is refused, or the registry has none.
        ConfigError: a builtin model without the product for whose grid it is to be written.
    """
    if text.startswith(REGISTRY):
        name, _, reference = text.removeprefix(REGISTRY).partition("@")
        return open_registry().resolve(name, reference or "production")
    if not text.startswith(BUILTIN):
        return load_package(Path(text))
    if product is None:
        raise ConfigError(f"{text} is written for the grid of a product; name the product, too (--product FILE)")
    made = load_product(product)
    return find_package(
        made.model_copy(update={"model": ModelRef(package=text)}), open_source(made.input, all_times=False)
    )


def _check_gate(registry: Registry, name: str, version: str, precision: str) -> None:
    """Raises ConfigError where a precision other than the reference has no passing gate of its own."""
    gates, report = registry.gates(name, version), gate_report(precision)
    if precision == str(Precision()) or gates.get(report):
        return
    found = "says no-go" if report in gates else "is not there"
    raise ConfigError(
        f"model.precision is {precision}, but {report} of version {version} of {name} {found}; publish it in this "
        f"precision (squall publish ... --as {name} --precision {precision}), or write float32"
    )


def gate_report(precision: object) -> str:
    """The name of the gate's report on a precision of a model."""
    return f"gate-{precision}.json"


def _builtin_spec(name: str, product: Product, source: Source) -> Spec:
    kind = name.removeprefix(BUILTIN)
    history = tuple(t / np.timedelta64(1, "m") for t in frame_offsets(source.times, product.input, source.where))
    leads = tuple(lead / timedelta(minutes=1) for lead in product.leads)
    try:
        match kind:
            case "advection":
                return AdvectionSpec(source.grid.spacing_km, history, leads)
            case "persistence":
                return PersistenceSpec(history, leads)
            case "unet":
                return UnetSpec(frames=len(history), leads=len(leads), step_minutes=leads[0])
    except ValueError as error:
        raise ConfigError(f"{name} cannot be made for product {product.name!r}: {error}") from error
    raise ConfigError(f"no model {name!r}; squall brings {', '.join(BUILTIN + k for k in KINDS)}")


def _builtin_folder(spec: Spec) -> Path:
    """The folder of a builtin package in the user's cache, named by its content."""
    home = cache_folder() / "models"
    home.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=home, prefix="."))
    try:
        with room(draft):
            write_package(spec, draft)
        digest = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(draft.iterdir()))).hexdigest()[:16]
        folder = home / f"{type(spec).__name__.removesuffix('Spec').lower()}-{digest}"
        if not folder.exists():
            with suppress(OSError):  # another process was faster; its bytes are the same
                os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def builtin_models() -> dict[str, str]:
    """The models that squall brings, and what each does."""
    return {BUILTIN + kind: text for kind, text in KINDS.items()}


def describe_package(text: str) -> dict[str, str]:
    """What a model package is and promises: one in a folder, or `registry:NAME[@VERSION or ALIAS]`.

    Raises:
        ModelError, ConfigError: the package is refused, or its transforms are.
    """
    if text.startswith(BUILTIN):
        raise ConfigError(f"{text} is written for the grid of a product; squall validate PRODUCT checks it there")
    package = open_package(text)
    model_needs(package.contract)
    given, returned = package.contract.input, package.contract.output
    leads = ", ".join(f"{lead / timedelta(minutes=1):g}" for lead in returned.leads)
    tile = package.contract.tile
    stride, radius = ("measured" if found is None else found for found in (tile.stride, tile.radius))
    return {
        "model": package.identity,
        "description": package.contract.description,
        "licence": package.contract.licence,
        "input": f"{given.frames} frames of {given.standard_name}, {given.units}",
        "input transform": chain_text(given.transform),
        "output": f"{returned.standard_name}, {returned.units}",
        "output transform": chain_text(returned.transform),
        "lead times": f"{leads} min",
        "tile": f"stride {stride}, radius {radius}",
        "graph sha256": package.graph_sha256,
        "weights sha256": package.weights_sha256,
    }
