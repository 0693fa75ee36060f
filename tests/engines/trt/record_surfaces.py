"""Writes down which names a release of TensorRT has, from its bindings wheel, on a machine without a GPU.

    pip download --no-deps --only-binary=:all: -d wheels tensorrt-bindings==8.6.1
    python tests/engines/trt/record_surfaces.py wheels/*.whl        # writes tests/engines/trt/surfaces/8.6.1.json ...

The bindings are an extension module that links the TensorRT libraries (gigabytes, in other wheels). Empty libraries
with the same symbols satisfy the loader; importing then registers every class, and nothing of TensorRT itself runs.
The wheels must be of the Python that runs this. Needs gcc and binutils.
"""

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

SURFACES = Path(__file__).parent / "surfaces"
LINKED = re.compile(r"\(NEEDED\).*\[(lib(?:nv|tensorrt)\S+)\]")
OF_TENSORRT = re.compile(r" U (\w*(?:_INTERNAL|nvuff|nvcaffe|Plugin|NvOnnx)\w*)")
LEFT_OUT = re.compile(
    r"Plugin|^Dims|^Permutation|^(Uff|Caffe)|^(?!ILayer$)I\w*Layer$|^IAttention|^IIf|^ILoop|^IExpr|^IDimension"
)
SIGNATURE = re.compile(r"^(?:\d+\. )?(\w+)\((.*)\) -> (.+)$", re.MULTILINE)


def record(wheel: Path, folder: Path = SURFACES) -> Path:
    """The JSON file with the surface of a bindings wheel; a file of the same release is replaced."""
    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(wheel) as archive:
        root = Path(temporary)
        archive.extractall(root)
        (module,) = root.glob("tensorrt*_bindings/tensorrt*.so")
        _write_empty_libraries(module, root / "lib")
        env = os.environ | {"LD_LIBRARY_PATH": str(root / "lib"), "PYTHONPATH": str(root)}
        command = [sys.executable, __file__, "--describe", module.parent.name]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    name, version = wheel.name.split("-")[:2]
    surface = {"distribution": name, "version": version, **json.loads(done.stdout)}
    path = folder / f"{'rtx-' * ('rtx' in name)}{version}.json"
    path.write_text(json.dumps(surface, indent=0, sort_keys=True) + "\n")
    return path


def describe(module: Any) -> dict[str, Any]:
    """Enums with their members, classes with their methods (every signature) and properties, functions."""
    public = {name: value for name, value in vars(module).items() if _is_public(name)}
    kinds = {name: value for name, value in public.items() if isinstance(value, type) and not LEFT_OUT.search(name)}
    enums = {name: sorted(kind.__members__) for name, kind in kinds.items() if hasattr(kind, "__members__")}
    enums["ILogger.Severity"] = sorted(module.ILogger.Severity.__members__)
    classes = {name: _describe_class(kind) for name, kind in kinds.items() if name not in enums}
    functions = {name: _signatures(value) for name, value in public.items() if inspect.isbuiltin(value)}
    return {"enums": enums, "classes": classes, "functions": functions}


def _describe_class(kind: type) -> dict[str, Any]:
    methods: dict[str, list[str]] = {}
    properties: dict[str, str] = {}
    for name in dir(kind):
        value = inspect.getattr_static(kind, name)
        if name.startswith("add_") and "add_optimization_profile" not in name:
            continue  # the layers of a network that is built by hand
        if isinstance(value, property):
            properties[name] = "rw" if value.fset else "r"
        elif (_is_public(name) or name == "__init__") and callable(getattr(kind, name)):
            methods[name] = _signatures(getattr(kind, name))
    methods.pop("Severity", None)
    return {"methods": methods, "properties": properties}


def _signatures(function: Any) -> list[str]:
    """`(flag: BuilderFlag) -> None` for every overload, without self and without module names."""
    found = [f"({given}) -> {made}" for _, given, made in SIGNATURE.findall(function.__doc__ or "") if given[:1] != "*"]
    short = [re.sub(r"\b(?:\w+\.)+(?=\w)", "", text) for text in found]
    short = [re.sub(r"<(\w+): [^<>]*>|<\w+\.\w+ object at [^<>]*>|<(\w+)\.\w+[^<>]*>", "...", text) for text in short]
    return [re.sub(r"^\((?:self|arg0): \w+(?:, )?", "(", text) for text in short]


def _is_public(name: str) -> bool:
    return not name.startswith("_")


def _write_empty_libraries(module: Path, folder: Path) -> None:
    folder.mkdir()
    dynamic = subprocess.run(["readelf", "-dW", module], capture_output=True, text=True, check=True).stdout
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", module], capture_output=True, text=True, check=True
    ).stdout
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in OF_TENSORRT.findall(symbols)))
    for name in LINKED.findall(dynamic):
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, source]
        subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs="*", type=Path)
    parser.add_argument("--describe", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.describe:
        print(json.dumps(describe(__import__(options.describe))))
    for wheel in options.wheels:
        print(record(wheel))


if __name__ == "__main__":
    main()
