"""The recorded surfaces: as the script writes them, small, and those of the releases that we support."""

import importlib.util
import json
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted((HERE / "surfaces").glob("*.json"))


@pytest.fixture
def recorder():
    spec = importlib.util.spec_from_file_location("record_surfaces", HERE / "record_surfaces.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_supported_releases_are_recorded():
    releases = " ".join(file.stem for file in FILES)
    assert all(release in releases for release in ("8.6", "10.0", "10.13", "10.16", "11.0", "11.4", "rtx-"))
    assert all(file.stat().st_size < 40_000 for file in FILES)


def test_the_installed_release_has_the_surface_that_was_recorded(recorder):
    module = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    file = HERE / "surfaces" / f"rtx-{module.__version__}.json"
    if not file.exists():
        pytest.skip(f"{module.__version__} is not recorded")
    recorded = json.loads(file.read_text())
    assert {key: recorded[key] for key in ("enums", "classes", "functions")} == recorder.describe(module)


def test_signatures_lose_module_names_self_and_addresses(recorder):
    def function():
        pass

    function.__doc__ = "set_flag(self: a.tensorrt.IBuilderConfig, flag: a.tensorrt.BuilderFlag = <A.B: 0>) -> a.b.C\n"
    assert recorder._signatures(function) == ["(flag: BuilderFlag = ...) -> C"]
