"""Makes the PTX of every kernel anew, with NVRTC; to be run after a change of a source, and its outcome committed."""

import ctypes
import re
import sys
from pathlib import Path

from engines.trt.kernels import FOLDER, origin_line, ptx_of

LIBRARIES = ("libnvrtc.so.12", "libnvrtc.so")
OPTIONS = (b"--gpu-architecture=compute_70", b"--std=c++17")
VERSION = b".version 7.0"  # of PTX, so that any driver of CUDA 11 or later takes it; NVRTC writes its own, the newest


def main() -> None:
    compiler = _load()
    for source in sorted(FOLDER.glob("*.cu")):
        ptx = re.sub(rb"^\.version \S+$", VERSION, _compile(compiler, source), count=1, flags=re.MULTILINE)
        ptx_of(source).write_bytes(origin_line(source).encode() + ptx)
        print(f"{ptx_of(source).name}: {len(ptx)} bytes")


def _load() -> ctypes.CDLL:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    sys.exit(f"none of {', '.join(LIBRARIES)} was found; install nvidia-cuda-nvrtc-cu12 and set LD_LIBRARY_PATH to it")


def _compile(compiler: ctypes.CDLL, source: Path) -> bytes:
    """The PTX of a source, without the zero at its end."""
    program, options = ctypes.c_void_p(), (ctypes.c_char_p * len(OPTIONS))(*OPTIONS)
    made = compiler.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None)
    if made or compiler.nvrtcCompileProgram(program, len(OPTIONS), options):
        sys.exit(f"NVRTC refuses {source.name}: {_read(compiler, 'ProgramLog', program).decode(errors='replace')}")
    return _read(compiler, "PTX", program)


def _read(compiler: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    getattr(compiler, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(compiler, f"nvrtcGet{what}")(program, text)
    return text.value


if __name__ == "__main__":
    main()
