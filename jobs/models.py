"""Finds the model package of a product: a folder, one of the registry, or one that squall writes for its grid."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np

from engines.model import ModelPackage, load_package
from engines.registry import Registry
from engines.zoo import KINDS, AdvectionSpec, PersistenceSpec, Spec, UnetSpec, write_package
from jobs.folders import cache_folder, registry_folder
from pipelines.errors import ConfigError
from pipelines.frames import frame_offsets
from pipelines.product import Product
from pipelines.source import Source

BUILTIN, REGISTRY = "builtin:", "registry:"


def find_package(product: Product, source: Source) -> ModelPackage:
    """The checked model package of a product.

    Raises:
        ModelError: the package is refused, or the registry has none.
        ConfigError: no such builtin model, another version than the product asks for, or an alias of a folder.
    """
    name, version, alias = product.model.package, product.model.version, product.model.alias
    if name.startswith(REGISTRY):
        registry = Registry(registry_folder())
        return registry.resolve(name.removeprefix(REGISTRY), version or alias or "production")
    if alias is not None:
        raise ConfigError(f"model.alias is {alias!r}, but {name} is no model of the registry; expected {REGISTRY}NAME")
    package = load_package(
        _builtin_folder(_builtin_spec(name, product, source)) if name.startswith(BUILTIN) else Path(name)
    )
    if version not in (None, package.contract.version):
        raise ConfigError(f"model.version is {version!r}, but {name} holds version {package.contract.version!r}")
    return package


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
        write_package(spec, draft)
        digest = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(draft.iterdir()))).hexdigest()[:16]
        folder = home / f"{type(spec).__name__.removesuffix('Spec').lower()}-{digest}"
        if not folder.exists():
            with suppress(OSError):  # another process was faster; its bytes are the same
                os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def builtin_rows() -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """A table of the models that squall brings."""
    return ("model", "what it does"), [(BUILTIN + kind, text) for kind, text in KINDS.items()]


def package_rows(folder: Path) -> tuple[Sequence[str], list[tuple[str, str]]]:
    """A table of what a model package is and promises.

    Raises:
        ModelError: the package is refused.
    """
    package = load_package(folder)
    given, returned = package.contract.input, package.contract.output
    leads = ", ".join(f"{lead / timedelta(minutes=1):g}" for lead in returned.leads)
    tile = package.contract.tile
    return ("", "value"), [
        ("model", package.identity),
        ("description", package.contract.description),
        ("licence", package.contract.licence),
        ("input", f"{given.frames} frames of {given.standard_name}, {given.units}"),
        ("output", f"{returned.standard_name}, {returned.units}"),
        ("lead times", f"{leads} min"),
        (
            "tile",
            f"stride {tile.stride or 'measured'}, radius {tile.radius if tile.radius is not None else 'measured'}",
        ),
        ("graph sha256", package.graph_sha256),
        ("weights sha256", package.weights_sha256),
    ]
