"""Brings the files of a trained model, wherever they lie and whatever they are called, together as a package."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import onnx

from engines.base import ModelError
from engines.files import copy_file
from engines.graph import external_files, first_line, inside
from engines.model import ModelPackage, load_package

MODEL, CONTRACT = "model.onnx", "model.yaml"


def find_files(model: Path, contract: Path | None) -> dict[str, Path]:
    """The files of a model by the names that they have in its package.

    Args:
        model: an ONNX file, with its weights beside it or in it, or the folder of a package.
        contract: its contract; None = the `model.yaml` beside the ONNX file.

    Raises:
        ModelError: no ONNX file, or one that keeps weights elsewhere than beside it.
    """
    graph = model / MODEL if model.is_dir() else model
    home = graph.parent
    weights = sorted(_weights(graph))
    files = {MODEL: graph, CONTRACT: contract or home / CONTRACT} | {name: inside(home, name) for name in weights}
    if {MODEL, CONTRACT} & set(weights):
        raise ModelError(f"{graph} keeps weights in {weights}; no such file may be called {MODEL} or {CONTRACT}")
    for path in files.values():
        if not path.is_file():
            raise ModelError(f"no file {path}; a model needs an ONNX file and a contract")
    return files


def _weights(graph: Path) -> set[str]:
    """Names of the files beside an ONNX file that hold its weights."""
    try:
        return external_files(onnx.load(graph, load_external_data=False))
    except OSError as error:
        raise ModelError(f"cannot read the model {graph}: {error.strerror}") from error
    except Exception as error:  # protobuf's DecodeError has moved between releases
        raise ModelError(f"{graph} is no ONNX file or is truncated: {first_line(error)}") from error


def bring(files: Mapping[str, Path], folder: Path) -> ModelPackage:
    """The checked package of these files, copied into `folder` in one step, or as it is there already.

    Raises:
        ModelError: the package is refused (names the file as the user knows it).
    """
    if not folder.exists():
        for left in folder.parent.glob(".package-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=".package-", dir=folder.parent))
        try:
            package = _copy(files, draft)
            os.rename(draft, folder)
            return replace(package, folder=folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return load_package(folder)


def _copy(files: Mapping[str, Path], draft: Path) -> ModelPackage:
    for name, path in files.items():
        copy_file(path, draft / name)
    try:
        return load_package(draft)
    except ModelError as error:
        text = str(error)
        for name, path in files.items():
            text = text.replace(str(draft / name), str(path))
        raise ModelError(text) from error


def digest_of(files: Mapping[str, Path], texts: Iterable[str]) -> str:
    """sha256, hex and shortened, of the contents of files under their names, and of texts."""
    total = hashlib.sha256()
    for name, path in sorted(files.items()):
        with open(path, "rb") as file:
            total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    for text in texts:
        total.update(f"{text}\n".encode())
    return total.hexdigest()[:24]
