"""How busy the machine is while something runs: cores, disk, GPU and host link, read several times a second."""

import ctypes
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from time import monotonic, sleep

import numpy as np
import psutil

EVERY_SECONDS = 0.05
WAIT_SECONDS, MOST_WAITS = 0.5, 10  # for memory of a GPU to be given back


@dataclass(frozen=True)
class Sample:
    """What one look at the machine found; None where that cannot be read.

    Attributes:
        time: seconds on CLOCK_MONOTONIC.
        cores: share of all cores that were busy since the look before.
        disk: bytes written a second since the look before, to the disk that was written to most.
        gpu: share of the time that the busiest GPU ran something, as the driver averages it.
        link: bytes a second between host and GPUs, both ways together.
        device: memory taken on all GPUs, bytes.
        disk_busy: share of the time since the look before in which the busiest disk worked.
    """

    time: float
    cores: float
    disk: float | None = None
    gpu: float | None = None
    link: float | None = None
    device: int | None = None
    disk_busy: float | None = None


class Sampler:
    """Looks at the machine in a thread of its own, inside its context."""

    def __init__(self, every_seconds: float = EVERY_SECONDS) -> None:
        self._every, self._gpus = every_seconds, Gpus()
        self.samples: list[Sample] = []

    def __enter__(self) -> "Sampler":
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        psutil.cpu_percent()
        before, disks = monotonic(), _disks()
        is_over = False
        while not is_over:
            is_over = self._stop.wait(self._every)
            now, later = monotonic(), _disks()
            if now - before < self._every / 4:
                continue  # too short a time to tell anything
            rate, busy = disk_use(disks, later, now - before)
            self.samples.append(Sample(now, psutil.cpu_percent() / 100, rate, *self._gpus.look(), busy))
            before, disks = now, later


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what could be read, None if nothing could."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


Disks = Mapping[str, tuple[int, float]]
"""Bytes written and seconds at work of each disk, since the machine started."""


def disk_use(before: Disks, after: Disks, seconds: float) -> tuple[float | None, float | None]:
    """Bytes a second written to the disk that was written to most, and the share of the time that the busiest worked.

    Both None where there is none. A partition counts as a disk; the whole disk has at least as much to do.
    """
    both = [(after[name], before[name]) for name in after if name in before]
    rates = [(late[0] - early[0]) / seconds for late, early in both]
    shares = [min(1.0, (late[1] - early[1]) / seconds) for late, early in both]
    return max(rates, default=None), max(shares, default=None)


def _disks() -> Disks:
    counters = psutil.disk_io_counters(perdisk=True) or {}
    return {name: (one.write_bytes, getattr(one, "busy_time", 0) / 1e3) for name, one in counters.items()}


class _Pair(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Gpus:
    """The GPUs of this host through NVML, the library that nvidia-smi reads; none where it is not there."""

    def __init__(self) -> None:
        self._handles: list[ctypes.c_void_p] = []
        try:
            self._nvml = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return
        count = ctypes.c_uint()
        if self._nvml.nvmlInit_v2() or self._nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return
        for index in range(count.value):
            handle = ctypes.c_void_p()
            if not self._nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
                self._handles.append(handle)

    def look(self) -> tuple[float | None, float | None, int | None]:
        """Share of time in use of the busiest, bytes a second over the links, bytes of memory taken."""
        used, links, memory = zip(*map(self._one, self._handles), strict=True) if self._handles else ((), (), ())
        return max(_known(used), default=None), _sum(links), _sum(memory)

    def device_bytes(self) -> int | None:
        """Memory taken on all GPUs."""
        return self.look()[2]

    def settled_bytes(self) -> int | None:
        """As `device_bytes`, once processes that have just ended gave theirs back."""
        taken = self.device_bytes()
        for _ in range(MOST_WAITS):
            if taken is None:
                break
            sleep(WAIT_SECONDS)
            before, taken = taken, self.device_bytes()
            if taken is None or taken >= before:
                break
        return taken

    def _one(self, handle: ctypes.c_void_p) -> tuple[float | None, float | None, int | None]:
        rates, memory = _Pair(), _Memory()
        used = None if self._nvml.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(rates)) else rates.gpu / 100
        taken = None if self._nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) else int(memory.used)
        return used, _sum([self._link(handle, way) for way in (0, 1)]), taken

    def _link(self, handle: ctypes.c_void_p, way: int) -> float | None:
        kilobytes = ctypes.c_uint()
        failed = self._nvml.nvmlDeviceGetPcieThroughput(handle, way, ctypes.byref(kilobytes))
        return None if failed else kilobytes.value * 1e3


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _sum(values: Iterable[float | None]) -> int | None:
    known = _known(values)
    return int(sum(known)) if known else None
