"""The graph of a package in a precision: what came with it is taken if it lies inside and is one."""

import shutil

import pytest

from engines.base import ModelError
from engines.model import load_package
from engines.precision import Precision
from engines.typed import type_model
from engines.zoo import UnetSpec, write_package
from jobs.engine import typed_graph

HALF = Precision.parse("half")


@pytest.fixture
def package(tmp_path):
    return load_package(write_package(UnetSpec(width=2, depth=1, frames=2, leads=2), tmp_path / "package"))


@pytest.fixture
def rewritten(package, tmp_path):
    return type_model(package, HALF, tmp_path / "graphs").path


@pytest.fixture
def stored(package):
    path = package.folder / "graphs" / "half.onnx"
    path.parent.mkdir()
    return path


def test_a_graph_that_came_with_the_package_is_taken(package, rewritten, stored):
    shutil.copy(rewritten, stored)
    assert typed_graph(package, HALF).path == stored


def test_a_link_out_of_the_package_is_refused(package, rewritten, stored):
    stored.symlink_to(rewritten)
    with pytest.raises(ModelError, match=r"'graphs/half\.onnx' leads outside the model package"):
        typed_graph(package, HALF)


@pytest.mark.parametrize("data", [b"", b"garbage"])
def test_what_is_no_graph_is_refused(package, stored, data):
    stored.write_bytes(data)
    with pytest.raises(ModelError, match=r"half\.onnx is no ONNX file or is truncated"):
        typed_graph(package, HALF)
