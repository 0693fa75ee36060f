"""Kernels of our own: CUDA sources beside the PTX that was made of them, which the driver compiles for its GPU.

python -m engines.trt.kernels       makes the PTX anew; needs NVRTC 12, of the package nvidia-cuda-nvrtc-cu12
"""

import hashlib
from pathlib import Path

from engines.base import EngineError

FOLDER = Path(__file__).parent
DIGEST, LOOK_UP, MASK, PACK = (FOLDER / f"{name}.cu" for name in ("digest", "look_up", "mask", "pack"))


def ptx_of(source: Path) -> Path:
    """Where the PTX of a source is."""
    return source.with_suffix(".ptx")


def origin_line(source: Path) -> str:
    """The first line of the PTX of a source: which source it was made of."""
    return f"// of {source.name}, sha256 {hashlib.sha256(source.read_bytes()).hexdigest()}\n"


def read_ptx(source: Path) -> bytes:
    """What the driver is to load, ended by a zero.

    Raises:
        EngineError: it was not installed.
    """
    try:
        return ptx_of(source).read_bytes() + b"\0"
    except OSError as error:
        raise EngineError(f"a kernel cannot be read, install squall again: {error}") from error
