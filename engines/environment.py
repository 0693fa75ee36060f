"""What machine and what releases a figure was measured on; nothing that names a host or a person."""

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime as ort
import psutil

from engines import cuda
from engines.base import EngineError
from engines.cores import usable_cores
from engines.cuda import Gpu
from engines.trt.surface import load_surface


@dataclass(frozen=True)
class Environment:
    """A machine, as far as it decides how fast an engine is.

    Attributes:
        date: UTC, such as "2025-07-01T12:00Z".
        cpu: the processor's own name.
        threads: that this process may run on at once; `cores` are the machine's, physical, None if unknown.
        system: operating system, kernel release and processor architecture.
        releases: of the packages that compute, by name.
        cuda_driver: the newest CUDA that the driver knows; None without a GPU, as is `gpu`.
    """

    date: str
    cpu: str
    cores: int | None
    threads: int
    memory_bytes: int
    system: str
    python: str
    releases: Mapping[str, str]
    cuda_driver: str | None = None
    gpu: Gpu | None = None

    def describe(self) -> dict[str, str]:
        """As names and values for a reader."""
        cores = f"{self.cores} cores, " if self.cores else ""
        gpu, driver = "none", {}
        if self.gpu:
            size = f"{self.gpu.memory_bytes / 2**30:.0f} GiB, {self.gpu.multiprocessors} multiprocessors"
            gpu = f"{self.gpu.name}, compute capability {self.gpu.compute_capability}, {size}"
            driver = {"CUDA driver": str(self.cuda_driver)}
        return {
            "date": self.date,
            "processor": f"{self.cpu}; {cores}{self.threads} threads for this process",
            "memory": f"{self.memory_bytes / 2**30:.1f} GiB",
            "GPU": gpu,
            **driver,
            "system": self.system,
            "Python": self.python,
            **self.releases,
        }


def describe_environment(device: int = 0) -> Environment:
    """This machine, with the GPU of this number if there is any."""
    has_gpu = cuda.device_count() > 0
    return Environment(
        date=f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}",
        cpu=_cpu(),
        cores=psutil.cpu_count(logical=False),
        threads=usable_cores(),
        memory_bytes=int(psutil.virtual_memory().total),
        system=_system(),
        python=platform.python_version(),
        releases=_releases(has_gpu),
        cuda_driver=cuda.driver_version() if has_gpu else None,
        gpu=cuda.describe_device(device) if has_gpu else None,
    )


def _releases(has_gpu: bool) -> dict[str, str]:
    """TensorRT is asked only beside a GPU: without one it runs nothing, and some releases do not survive it."""
    found = {"numpy": np.__version__, "onnxruntime": str(ort.__version__)}
    if has_gpu:
        try:
            surface = load_surface()
            found[surface.flavour] = surface.version
        except EngineError:
            found["tensorrt"] = "not installed"
    return found


def _cpu() -> str:
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    return named.group(1).strip() if named else platform.processor() or platform.machine()


def _system() -> str:
    """Only the numbers of the kernel's release: what is appended to them may name whoever built it."""
    kernel = re.match(r"\d+(?:\.\d+)*", platform.release())
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = ""
    parts = (name, f"{platform.system()} {kernel.group() if kernel else ''}".strip(), platform.machine())
    return ", ".join(part for part in parts if part)
