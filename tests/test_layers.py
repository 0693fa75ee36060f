"""Two leaves and a driver: engines and pipelines know neither each other nor Ray; only jobs joins them."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
FORBIDDEN = {
    "engines": {"pipelines", "jobs", "ray"},
    "pipelines": {"engines", "jobs", "ray"},
    "jobs": set(),
}


def imported_names(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, also those inside functions and by `import_module`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                yield node.lineno, node.module or "."
            case ast.Call(func=ast.Name("import_module" | "__import__") | ast.Attribute(attr="import_module")):
                yield from ((node.lineno, str(arg.value)) for arg in node.args if isinstance(arg, ast.Constant))


def trespasses(source: str, package: str) -> list[str]:
    """Imports in `source` that `package` must not have, as `line: name`."""
    found = imported_names(source)
    return [f"{line}: {name}" for line, name in found if name.partition(".")[0] in FORBIDDEN[package]]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_what_its_layer_may(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    found = {str(file.relative_to(ROOT)): trespasses(file.read_text(), package) for file in files}
    assert found, f"no modules found in {package}"
    assert not {file: lines for file, lines in found.items() if lines}


@pytest.mark.parametrize(
    "source",
    [
        "import ray",
        "import numpy, ray.util",
        "from jobs.cycle import run_cycle",
        "def late():\n    from engines import base",
        "import importlib\nimportlib.import_module('ray.data')",
        "if TYPE_CHECKING:\n    from engines.base import Engine",
    ],
)
def test_an_import_across_layers_is_found_wherever_it_hides(source: str) -> None:
    assert trespasses(source, "pipelines")


def test_names_that_only_look_like_a_layer_are_free() -> None:
    assert not trespasses("import rays\nfrom pipelines.engines import x\nray = 'ray'", "pipelines")


def test_every_package_of_the_distribution_exists_and_none_is_left_out() -> None:
    present = {
        ".".join(file.parent.relative_to(ROOT).parts) for top in FORBIDDEN for file in (ROOT / top).rglob("__init__.py")
    }
    assert present == set(PACKAGES)


def test_no_package_marker_under_tests_hides_a_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("leaf", ["engines", "pipelines"])
def test_a_leaf_works_where_ray_cannot_be_imported(leaf: str) -> None:
    modules = [f"{leaf}.{file.stem}" for file in (ROOT / leaf).glob("[!_]*.py")]
    program = f"import sys; sys.modules['ray'] = None; import {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
