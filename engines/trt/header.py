"""What an engine file of TensorRT says of itself in its first bytes, read without TensorRT."""

from dataclasses import dataclass

from engines.trt.surface import Surface

_MAGIC, _VERSION = slice(1, 4), slice(24, 28)
_LEAST_BYTES = 64


@dataclass(frozen=True)
class Header:
    """Which release wrote an engine file: major, minor, patch and build number."""

    version: tuple[int, int, int, int]

    def __str__(self) -> str:
        return ".".join(map(str, self.version))


def read_header(data: bytes) -> Header | None:
    """The header of an engine file; None if these bytes are none.

    >>> read_header(b"an ONNX file, perhaps") is None
    True

    Source: measured on files of TensorRT 8.6 and of TensorRT for RTX 1.7, docs/decisions/016-engine-supply.md.
    """
    if len(data) < _LEAST_BYTES or data[_MAGIC] != b"trt":
        return None
    major, minor, patch, build = data[_VERSION]
    return Header((major, minor, patch, build))


def refuse_header(surface: Surface, data: bytes) -> str | None:
    """Why this TensorRT cannot load an engine file, judged by its header alone; None if nothing speaks against it.

    Patch and build number are left to TensorRT: its bindings may be of another patch than its library.
    """
    header = read_header(data)
    if header is None:
        return f"these {len(data)} bytes are no engine file of TensorRT (they begin with {data[:4].hex()})"
    ours = tuple(int(part) for part in surface.version.split(".")[:2])
    if header.version[:2] != ours:
        return f"it was built by TensorRT {header}; this is {surface.flavour} {surface.version}, so build it again here"
    return None
